"""The only user of torch.distributed: what several ranks share.

With one rank everything here is the identity.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as td
from torch import Tensor

Item = TypeVar("Item")
_started: list[torch.device] = []  # the device that `start` joined a group with


def start(device: torch.device) -> None:
    """Join the group that torchrun describes in the environment; nothing without one."""
    if "RANK" in os.environ and not td.is_initialized():
        _started.append(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        # ranks wait for each other while one trains a longer share or validates
        td.init_process_group(backend, timeout=timedelta(days=1))


def started_here() -> bool:
    """Whether the group of this process was joined by `start`, and not by a user's program."""
    return bool(_started)


def rank() -> int:
    """This process's number."""
    if not td.is_initialized():
        return 0
    return td.get_rank()


def num_ranks() -> int:
    """R."""
    if not td.is_initialized():
        return 1
    return td.get_world_size()


def my_share(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this rank: every R-th."""
    return items[rank() :: num_ranks()]


def mean(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place."""
    if num_ranks() > 1:
        for tensor in tensors:
            td.all_reduce(tensor)
            tensor /= num_ranks()


def from_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by the first rank's, in place."""
    if num_ranks() > 1:
        for tensor in tensors:
            td.broadcast(tensor, 0)


def any_of(flag: bool) -> bool:
    """Whether a flag is set on any rank."""
    if num_ranks() == 1:
        return flag
    device = _started[0] if _started else torch.device("cpu")
    number = torch.tensor(int(flag), device=device)
    td.all_reduce(number, td.ReduceOp.MAX)
    return bool(number.item())


def barrier() -> None:
    """Wait for all ranks."""
    if num_ranks() > 1:
        td.barrier()


def on_first_rank(action: Callable[[], None]) -> None:
    """Do something to the file system once, while the other ranks wait."""
    if rank() == 0:
        action()
    barrier()
