"""The process of a command: its device, its ranks."""

import math
import os
from typing import Any

import torch

from ddengine.system import dist, log, program, runtime
from ddengine.system.errors import UserError


def start(options: Any) -> torch.device:
    """Set the process up for the device and precision of the options, and join the other ranks.

    Of several ranks the first alone shows anything. Raises UserError for a timeout that is none.
    """
    timeout = options.dist_timeout
    if not 0 < timeout < math.inf:
        raise UserError(f"--dist_timeout {timeout:g} must be a number of seconds above 0.")
    try:
        device = runtime.setup(options.device, options.precision)
    except UserError as error:
        if not is_first():  # other machines may have other devices
            log.complain(f"error: rank {os.environ['RANK']}: {error}")
        raise
    dist.start(device, timeout)
    if dist.rank() != 0:
        log.console.quiet = True
    return device


def is_first() -> bool:
    """Whether this process is the first of its ranks, as their launcher says, or alone."""
    return os.environ.get("RANK", "0") == "0"


def alone(command: str) -> None:
    """Raise UserError where several ranks would run a command that they cannot share."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"{program.name()} {command} runs in one process; start it without torchrun."
        )


def one_process(options: Any, command: str) -> torch.device:
    """The device, set up, of a command that several ranks cannot share."""
    alone(command)
    return runtime.setup(options.device, options.precision)
