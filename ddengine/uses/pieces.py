"""The pieces of a long work: what each came to is remembered, and which one is done is shown."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ddengine.system.memo import Memo
from ddengine.types import Json


def timed(compute: Callable[[], Json]) -> Json:
    """What a computation gives, with the seconds it took."""
    begin = time.perf_counter()
    result = compute()
    return result | {"seconds": time.perf_counter() - begin}


@dataclass(frozen=True)
class Pieces:
    """Where pieces are remembered, and who is told of each."""

    memo: Memo = field(default_factory=lambda: Memo(None, ""))
    advance: Callable[[str], None] = lambda label: None
    shown: set[str] = field(default_factory=set)  # their keys

    def remember(self, key: str, label: str, compute: Callable[[], Json]) -> Json:
        """The result under `key` with the seconds it took, computed when new."""
        self.show(key, label)
        return self.memo(key, partial(timed, compute))

    def show(self, key: str, label: str) -> None:
        """Say that a piece is being done, once however often its result is asked for."""
        if key not in self.shown:
            self.shown.add(key)
            self.advance(label)
