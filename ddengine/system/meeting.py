"""Which ranks a launcher has started together, where others have met at the same store before.

torchrun keeps one store for all attempts, in which what killed ranks have written still lies, and
its agents on several machines count attempts each for itself. So ranks agree on a name: the first
one makes it up, each other answers with a word of its own, and the first one lists the words that
it has seen. A rank whose word is not in the list has read what was left, and looks again.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from typing import Protocol

from ddengine.system import log

LOOK_EVERY = 0.05  # seconds between two looks at the store


class Store(Protocol):
    """What ranks write into and read, of torch.distributed."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all these keys have values."""
        ...

    def get(self, key: str) -> bytes:
        """The value of a key, which is there."""
        ...


def agreed_name(store: Store, rank: int, ranks: int, seconds: float) -> str:
    """A name that this attempt's ranks have and no other's, once all of them are there.

    Raises RuntimeError where they are not within so many seconds.
    """
    if rank == 0:
        return _made_up(store, ranks, seconds)
    at = place()
    word = secrets.token_hex(8)
    answered = ""
    for _ in looks(seconds):
        name = _read(store, f"{at}/name")
        if name and name != answered:
            store.set(f"{at}/answer/{rank}", f"{name} {word}")
            answered = name
        words = json.loads(_read(store, f"{at}/{name}/words") or "{}")
        if words.get(str(rank)) == word:
            return name
    raise AssertionError("the last look has raised an error")


def place() -> str:
    """Where the ranks of a job meet in a store, which several of torchrun may share."""
    return f"ddengine/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/meeting"


def _made_up(store: Store, ranks: int, seconds: float) -> str:
    """The first rank's part."""
    name = secrets.token_hex(8)
    at = place()
    store.set(f"{at}/name", name)
    words: dict[int, str] = {}
    for _ in looks(seconds):
        for other in range(1, ranks):
            answered, _, word = _read(store, f"{at}/answer/{other}").partition(" ")
            if answered == name:
                words[other] = word
        if len(words) == ranks - 1:
            break
    store.set(f"{at}/{name}/words", json.dumps(words))
    return name


def _read(store: Store, key: str) -> str:
    """What stands under a key; nothing where it is not there."""
    return store.get(key).decode() if store.check([key]) else ""


def looks(seconds: float) -> Iterator[None]:
    """Looks at the store, one after another; RuntimeError where there are no more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(LOOK_EVERY)
    raise RuntimeError(f"not all have begun within {log.duration(seconds)}")
