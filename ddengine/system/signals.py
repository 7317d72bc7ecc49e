"""Signals that ask a command to end: it finishes its step, writes a checkpoint, says so and ends.

SIGTERM and SIGHUP, SIGINT of the keyboard, and SIGUSR1, which SLURM sends before it ends a job. The
exit code is 128 and the number of the signal. A second signal ends the command at once.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

PASSED_ON = 5.0  # seconds in which a launcher of ranks passes on the signal that they had, too
ASKING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
EXIT = 128  # exit codes of signals are this and their number


class Stopped(BaseException):
    """A signal has asked the command to end.

    `where` says what it leaves; the same command goes on from there.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(number, where)
        self.number = number
        self.where = where

    @property
    def code(self) -> int:
        """The exit code."""
        return EXIT + self.number

    def __str__(self) -> str:
        place = f" {self.where}" if self.where else ""
        name = signal.Signals(self.number).name
        return f"stopped by {name}{place}; the same command continues from what is finished."


@dataclass
class _State:
    """What this process was asked."""

    asked: int | None = None  # the first signal
    asked_at: float = 0.0  # of time.monotonic
    in_steps: int = 0  # blocks that look themselves whether they are to end


_state = _State()


@contextmanager
def heard() -> Iterator[None]:
    """Within the block the signals are heard, and raise `Stopped` where no steps are finished.

    Only in the main thread, where Python hears them. One that was to be ignored (nohup) still is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}
    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.asked = None


@contextmanager
def at_step_ends() -> Iterator[None]:
    """Within the block signals are kept until `is_asked` is looked at, between two steps."""
    _state.in_steps += 1
    try:
        yield
    finally:
        _state.in_steps -= 1
    if _state.in_steps == 0 and _state.asked is not None:  # asked in the last step
        raise stopped()


def is_asked() -> bool:
    """Whether a signal has asked this process to end."""
    return _state.asked is not None


def asked() -> int:
    """The signal that has asked this process to end; 0 where none has."""
    return _state.asked or 0


def ask(number: int) -> None:
    """Ask this process to end as a signal would, between two steps; from any thread."""
    if _state.asked is None:
        _state.asked = number
        _state.asked_at = time.monotonic()


def leave_to_parent() -> None:
    """From now on this process ignores the signals: the one that started it hears them, and asks.

    A launcher may send them to both, and the second would end this one at once.
    """
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


def stopped(where: str = "", number: int = 0) -> Stopped:
    """What is raised once a step is finished; `where` says which, in words.

    `number` is the signal, where another rank may have heard it; 0: this process has.
    """
    return Stopped(number or _state.asked or signal.SIGTERM, where)


def _hear(number: int, frame: FrameType | None) -> None:
    if _state.asked is not None:
        if _is_passed_on():
            return
        os._exit(EXIT + number)
    _state.asked = number
    _state.asked_at = time.monotonic()
    if not _state.in_steps:
        raise Stopped(number)
    if os.environ.get("RANK", "0") != "0":  # the first of several ranks says it
        return
    # not by print, which the signal may have interrupted
    name = signal.Signals(number).name
    said = f"{name}: this step is finished first, then a checkpoint; again ends at once\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, said.encode())


def _is_passed_on() -> bool:
    """Whether a signal may be the first once more.

    SLURM sends it to torchrun and to the ranks, to which torchrun sends it again.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and time.monotonic() - _state.asked_at < PASSED_ON
