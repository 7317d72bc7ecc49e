"""The process of a command: its device, its ranks."""

import os
from typing import Any

import torch

from ddengine.system import dist, program, runtime
from ddengine.system.errors import UserError


def start(options: Any) -> torch.device:
    """Set the process up for the device and precision of the options, and join the other ranks."""
    device = runtime.setup(options.device, options.precision)
    dist.start(device)
    return device


def alone(command: str) -> None:
    """Raise UserError where several ranks would run a command that they cannot share."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"{program.name()} {command} runs in one process; start it without torchrun."
        )


def one_process(options: Any, command: str) -> torch.device:
    """`start` for a command that several ranks cannot share."""
    alone(command)
    return start(options)
