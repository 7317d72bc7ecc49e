"""The only user of torch.distributed: what several ranks share.

With one rank everything here is the identity. Tensors go by torch's collectives, in which ranks are
in step. What may take long is waited for at the store through which the ranks have met: there
signals are heard, and a rank that has ended is seen (`heartbeat`).
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from ddengine.system import files
from ddengine.system.heartbeat import LOST, MEETING, Heartbeat
from ddengine.system.meeting import agreed_name
from ddengine.system.runtime import available_memory

Item = TypeVar("Item")
TIMEOUT = 600.0  # seconds that a silent rank is given
# of torch's collectives, in which ranks wait for one that validates; who is gone is seen before
COLLECTIVE = timedelta(days=1)
LOOK_EVERY = 0.02  # seconds between two looks at the store
LINGER = 5.0  # seconds for which the end of other ranks is waited for, after a failure
CHUNK = 2**22  # bytes of a value in the store, which takes no more than 8 MiB
# of the environment: how many processes of the same work were started beside this one, with it
AT_A_TIME = "DDENGINE_AT_A_TIME"


class Lost(Exception):
    """Another rank is gone.

    `code` is the exit code of this one, which is `silent` where the first rank has said why.
    """

    def __init__(self, sentence: str, code: int = LOST, silent: bool = False):
        super().__init__(sentence)
        self.code = code
        self.silent = silent


@dataclass
class _Group:
    """The group that `start` has joined."""

    device: torch.device
    store: td.Store
    heartbeat: Heartbeat
    numbers: dict[str, int] = field(default_factory=dict)  # how often what was done together

    def number(self, what: str) -> int:
        """Which time something is done that all ranks do together."""
        self.numbers[what] = self.numbers.get(what, 0) + 1
        return self.numbers[what]


_started: list[_Group] = []
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def start(device: torch.device, timeout: float = TIMEOUT) -> None:
    """Join the group that torchrun describes in the environment; nothing without one.

    `timeout`: seconds after which a rank without a heartbeat is named, and this one ends. Raises
    Lost where the ranks do not come together.
    """
    if "RANK" not in os.environ or td.is_initialized():
        return
    try:
        _started.append(_joined(device, timeout))
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0]
        raise Lost(f"The ranks did not come together ({line}); start them again.") from error


def _joined(device: torch.device, timeout: float) -> _Group:
    """The group, which this process has joined, and in which its heart beats."""
    store, rank, ranks = _connected()
    name = f"ddengine/{agreed_name(store, rank, ranks, max(MEETING, timeout))}"
    # a connection of its own: one that waits for an answer keeps others from asking
    heartbeat = Heartbeat(td.PrefixStore(name, _connected()[0]), rank, ranks, timeout)
    heartbeat.start()
    backend = "nccl" if device.type == "cuda" else "gloo"
    td.init_process_group(
        backend,
        store=td.PrefixStore(f"{name}/group", store),
        rank=rank,
        world_size=ranks,
        timeout=COLLECTIVE,
    )
    return _Group(device, td.PrefixStore(name, store), heartbeat)


def _connected() -> tuple[td.Store, int, int]:
    """(the store through which the ranks meet, number of this one, number of all)."""
    return next(iter(td.rendezvous("env://", timeout=timedelta(minutes=10))))


def end(code: int) -> int:
    """Say to the other ranks that this one ends, with which exit code, and leave the group.

    One that has done its work waits for the others: the launcher would wait for one that was
    stopped. The first leaves last, because others may have met through it, and of a store that goes
    while they read in it torch would complain. Returns the code to end with, which is that of Lost
    where another rank is silent.
    """
    if not _started:
        return code
    group = _started.pop()
    try:
        group.heartbeat.end(code)
        if code == 0 and not group.heartbeat.others_end():
            return LOST
        if rank() == 0:
            _until_all_left(group, LINGER)
        else:
            group.store.set(_left(rank()), "")  # reads nothing any more
    except RuntimeError:  # the store is gone, and with it those who would want to know
        pass
    if code == 0:
        td.destroy_process_group()
    return code


def _until_all_left(group: _Group, seconds: float) -> None:
    """Wait so long at most."""
    deadline = time.monotonic() + seconds
    keys = [_left(other) for other in range(1, num_ranks())]
    while keys and time.monotonic() < deadline and not group.store.check(keys):
        time.sleep(LOOK_EVERY)


def _left(rank: int) -> str:
    """What a rank writes last."""
    return f"left/{rank}"


def started_here() -> bool:
    """Whether the group of this process was joined by `start`, and not by a user's program."""
    return bool(_started)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process is the only rank: it waits for no other and tells it nothing.

    For what one rank tries by itself while the others wait for what it will tell them.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def shares() -> bool:
    """Whether there are other ranks, of a group that `start` has joined."""
    return bool(_started) and num_ranks() > 1


def rank() -> int:
    """This process's number."""
    if _alone.get() or not td.is_initialized():
        return 0
    return td.get_rank()


def ranks_here() -> int:
    """How many of the ranks are on this machine, as their launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _started else 1


def share_of_memory(device: torch.device) -> int:
    """Bytes of the available memory that are for this process, beside others of the same work.

    These are runs of a sweep, and the ranks on this machine, each of which has a CUDA device.
    """
    beside = int(os.environ.get(AT_A_TIME, "1"))
    if device.type != "cuda":
        beside *= ranks_here()
    return available_memory(device) // beside


def num_ranks() -> int:
    """R."""
    if _alone.get() or not td.is_initialized():
        return 1
    return td.get_world_size()


def my_share(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this rank: every R-th."""
    return items[rank() :: num_ranks()]


# Tensors.


@contextmanager
def _together() -> Iterator[None]:
    """Within the block all ranks do the same. Raises Lost where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        if _started:
            _look_for_failed(_started[-1])
        line = str(error).strip().partition("\n")[0]
        raise Lost(
            f"Another rank is gone ({line}), so rank {rank()} ends; the same command continues "
            "from the last checkpoint."
        ) from error


def _look_for_failed(group: _Group) -> None:
    """Raise Lost with the name of a rank that says that it has ended."""
    deadline = time.monotonic() + 2 * group.heartbeat.interval
    while time.monotonic() < deadline:
        _check_others(group)
        time.sleep(LOOK_EVERY)


def _check_others(group: _Group) -> None:
    """Raise Lost where a rank has ended with another code than 0."""
    if failed := group.heartbeat.failed():
        other, code = failed
        raise Lost(
            f"Rank {other} has ended with code {code}, as it says itself, so rank {rank()} ends; "
            "the same command continues from the last checkpoint.",
            code,
            silent=other == 0,
        )


def mean(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place."""
    if num_ranks() > 1:
        for tensor in tensors:
            with _together():
                td.all_reduce(tensor)
            tensor /= num_ranks()


def total(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, in place."""
    if num_ranks() > 1:
        for tensor in tensors:
            with _together():
                td.all_reduce(tensor)


def from_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by the first rank's, in place."""
    if num_ranks() > 1:
        for tensor in tensors:
            with _together():
                td.broadcast(tensor, 0)


def most(number: int) -> int:
    """The largest of the numbers that the ranks give."""
    if num_ranks() == 1:
        return number
    device = _started[-1].device if _started else torch.device("cpu")
    tensor = torch.tensor(number, device=device)
    with _together():
        td.all_reduce(tensor, td.ReduceOp.MAX)
    return int(tensor.item())


# What is waited for.


def _wait_for(group: _Group, key: str) -> None:
    """Wait until a key has a value. Raises Lost where a rank fails meanwhile."""
    while not group.store.check([key]):
        _check_others(group)
        time.sleep(LOOK_EVERY)


def meet() -> None:
    """Wait for all ranks, however long they take."""
    if num_ranks() == 1:
        return
    if not _started:  # a group of the user's program
        td.barrier()
        return
    group = _started[-1]
    name = f"meet/{group.number('meet')}"
    with _together():
        if group.store.add(f"{name}/there", 1) == num_ranks():
            group.store.set(f"{name}/all", "")
        _wait_for(group, f"{name}/all")


def on_first_rank(action: Callable[[], None]) -> None:
    """Do something to the file system once, while the other ranks wait."""
    if rank() == 0:
        action()
    meet()


def told(value: Any) -> Any:
    """The value that the first rank gives, JSON data, on every rank."""
    if not shares():
        return value
    key = numbered("told")
    if rank() == 0:
        put(key, files.to_json(value).encode())
        return value
    return json.loads(taken(key))


def gathered(value: Any) -> list[Any]:
    """The values that all ranks give, JSON data, in their order."""
    if not shares():
        return [value]
    name = numbered("gathered")
    put(f"{name}/{rank()}", files.to_json(value).encode())
    return [json.loads(taken(f"{name}/{other}")) for other in range(num_ranks())]


def first_says(sentence: str) -> None:
    """Let the other ranks know what the first one says at its end."""
    if _started:
        with suppress(RuntimeError):  # nobody is there any more
            _started[-1].store.set("complaint", sentence)


def first_has_said(sentence: str) -> bool:
    """Whether the first rank says the same, which is waited for a moment."""
    group, deadline = _started[-1], time.monotonic() + LINGER
    try:
        while not group.store.check(["complaint"]):
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_EVERY)
        return group.store.get("complaint").decode() == sentence
    except RuntimeError:  # the first rank has gone, and the store with it
        return False


def numbered(what: str) -> str:
    """A name for something that all ranks do together, which nothing else has."""
    return f"{what}/{_started[-1].number(what)}"


def put(key: str, content: bytes) -> None:
    """Write bytes into the store of the ranks, however many."""
    group = _started[-1]
    chunks = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    with _together():
        for number, chunk in enumerate(chunks):
            group.store.set(f"{key}/{number}", chunk)  # type: ignore[arg-type]
        group.store.set(key, str(len(chunks)))


def is_there(key: str) -> bool:
    """Whether bytes were written under a key. Raises Lost where a rank has failed."""
    group = _started[-1]
    _check_others(group)
    with _together():
        return group.store.check([key])


def taken(key: str) -> bytes:
    """The bytes that another rank has written, which are waited for."""
    group = _started[-1]
    with _together():
        _wait_for(group, key)
        num = int(group.store.get(key))
        return b"".join(group.store.get(f"{key}/{number}") for number in range(num))


def removed(key: str) -> bytes:
    """As `taken`, of bytes that nobody else reads, which are removed."""
    content = taken(key)
    group = _started[-1]
    with _together():
        for number in range(int(group.store.get(key))):
            group.store.delete_key(f"{key}/{number}")
        group.store.delete_key(key)
    return content


def shared_out(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Items that no other rank gets: each takes the next one when it has time for it."""
    if not shares():
        yield from items
        return
    group = _started[-1]
    key = f"next/{numbered(what)}"
    while True:
        with _together():
            number = group.store.add(key, 1) - 1
        if number >= len(items):
            return
        yield items[number]
