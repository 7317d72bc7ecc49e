"""Processes of their own, so that what is measured in one is that of one command.

And clocks and memory as they are read in them.
"""

import multiprocessing as mp
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddengine.system import log, runtime
from ddengine.system.errors import UserError
from ddengine.system.pool import script_left_alone

KILLED = -9  # the exit code of a process that the system ended
FIRST_USE = 10**8  # bytes that libraries take when they are first used
SHORT_OF_MEMORY = ("allocate memory", "start new thread")  # in what libraries say without it

T = TypeVar("T")


def apart(
    target: Callable[..., Any],
    *args: Any,
    limit: int | None = None,
    until: float | None = None,
) -> Any:
    """What `target(began, *args)` returns, from a new process that was started at `began`.

    `limit` is how many bytes it may take on a CPU beyond what importing takes, `until` the time of
    time.monotonic by which it must be done. Raises UserError for what went wrong there, in one
    sentence, MemoryError where memory did not suffice, and TimeoutError where time did not.
    """
    if until is not None and time.monotonic() >= until:
        raise TimeoutError
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    given = (sender, time.time(), limit, target, args)
    process = context.Process(target=_child, args=given, daemon=True)
    with script_left_alone(args):
        process.start()
    sender.close()  # so that a process that dies ends the waiting
    try:
        if until is not None and not receiver.poll(max(0.0, until - time.monotonic())):
            process.kill()
            raise TimeoutError
        kind, value = receiver.recv()
    except EOFError:
        kind, value = "died", None
    finally:
        receiver.close()
        process.join()
    if kind == "result":
        return value
    # libraries may abort where they get no memory
    if kind == "died" and (process.exitcode == KILLED or limit is not None):
        kind, value = "memory", "the process was killed"
    value = value or f"its process ended with code {process.exitcode}"
    raise _error_of(kind, value, target.__name__.strip("_"))


def _error_of(kind: str, said: str, name: str) -> Exception:
    """What went wrong in the process of a calibration, by its kind and what it said."""
    if kind == "memory":
        return MemoryError(said)
    if kind == "user":
        return UserError(said)
    return UserError(
        f"The calibration of {name} failed ({said}); run the command itself to see why."
    )


def _child(
    sender: Connection,
    began: float,
    limit: int | None,
    target: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Run `target` and send what comes of it, with a word for its kind."""
    log.console.quiet = True
    try:
        if limit is not None and sys.platform == "linux":
            most = max(limit - status("VmRSS"), 0) + status("VmData") + FIRST_USE
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        sender.send(("result", target(began, *args)))
    except MemoryError as error:
        sender.send(("memory", str(error)))
    except UserError as error:
        sender.send(("user", str(error)))
    except BaseException as error:
        sender.send(_failure(error))


def _failure(error: BaseException) -> tuple[str, str]:
    """(kind, one line) of an error that is no sentence for a user."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    short = isinstance(error, torch.OutOfMemoryError) or any(w in text for w in SHORT_OF_MEMORY)
    return "memory" if short else "failed", f"{type(error).__name__}: {first}"


def status(name: str) -> int:
    """Bytes that /proc/self/status says (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held so far.

    Not the system's own count of it on Linux, which a child has from its parent.
    """
    if device.type == "cpu" and sys.platform == "linux":
        return status("VmHWM")
    return runtime.peak_memory(device)


def held(device: torch.device) -> int:
    """Bytes that this process holds now.

    A new high-water mark starts here where the system has one to start.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return runtime.peak_memory(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return status("VmHWM")
    return status("VmRSS")


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, action: Callable[[], T]) -> tuple[float, T]:
    """(seconds, result)."""
    wait(device)
    start = time.perf_counter()
    result = action()
    wait(device)
    return time.perf_counter() - start, result
