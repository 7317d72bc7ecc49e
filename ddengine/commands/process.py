"""The process of a command."""

import os
from collections.abc import Callable
from typing import Any

import torch

from ddengine.commands.options import Options
from ddengine.system import dist, program, runtime
from ddengine.system.errors import UserError


def start(options: Options[Any]) -> torch.device:
    """Set the process up and return its device."""
    device = runtime.setup(options.device, options.precision)
    dist.start(device)
    return device


def one_process(options: Any, command: str) -> torch.device:
    """`start` for a command that several ranks cannot share."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"{program.name()} {command} runs in one process; start it without torchrun."
        )
    return start(options)


def on_first_rank(action: Callable[[], None]) -> None:
    """Do something to the file system once, while the other ranks wait."""
    if dist.rank() == 0:
        action()
    dist.barrier()
