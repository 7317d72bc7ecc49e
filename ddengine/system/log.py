"""Progress for a person, one JSON line per event for a program."""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ddengine.system import files
from ddengine.system.errors import UserError

# a terminal without UTF-8 gets question marks, not a traceback
if hasattr(sys.stdout, "reconfigure"):  # probe: of a stream that somebody may have replaced
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
console = Console(highlight=False, markup=False, soft_wrap=True)

PLAIN_EVERY = 20.0  # seconds between lines where the output is not a terminal


def _shows_bars() -> bool:
    """Whether a bar can move: in a terminal, and in a notebook that has its widgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class Bar:
    """A counter with an estimate of the time left.

    A live bar in a terminal and in a notebook, a line now and then elsewhere.
    """

    def __init__(self, title: str, total: int, done: int = 0):
        self.title = title
        self.total = total
        self.done = done
        self.note = ""
        self._start = time.monotonic()
        self._first = done
        self._last = time.monotonic()
        self._live: Progress | None = None
        if _shows_bars() and os.environ.get("RANK", "0") == "0":
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._live = Progress(
                *columns, TextColumn("{task.fields[note]}"), console=console, transient=True
            )
            self._task = self._live.add_task(title, total=total, completed=done, note="")
            self._live.start()

    def advance(self, note: str = "") -> None:
        """One more is done."""
        self.done += 1
        self.note = note or self.note
        if self._live is not None:
            self._live.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._last > PLAIN_EVERY:
            self._last = time.monotonic()
            each = (self._last - self._start) / (self.done - self._first)
            left = duration(each * (self.total - self.done))
            line = f"{self.title}: {self.done}/{self.total}, about {left} left {self.note}"
            console.print(line.rstrip())

    def stop(self) -> None:
        """Remove the bar."""
        if self._live is not None:
            self._live.stop()


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A Bar that is removed at the end."""
    bar = Bar(title, total, done)
    try:
        yield bar
    finally:
        bar.stop()


@contextmanager
def shown(wanted: bool) -> Iterator[None]:
    """Within the block bars and lines are shown, or not."""
    before = console.quiet
    console.quiet = before or not wanted
    try:
        yield
    finally:
        console.quiet = before


class Counter(Protocol):
    """What counts steps for a person."""

    def advance(self, note: str = "") -> None:
        """One more is done; `note` says what there is to say of it."""


def say(message: str) -> None:
    """A line for the person at the terminal; of several ranks the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        console.print(message)


def complain(message: str) -> None:
    """A line on standard error, as it is."""
    print(message, file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min or 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(num: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if num < 1000:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:.3g} GB"


class Board:
    """The numbers of a run as TensorBoard files, beside its metrics.jsonl."""

    def __init__(self, folder: Path):
        """Files in `folder`, from the first number on.

        Raises UserError where tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import (
                SummaryWriter,  # seconds to import, and few runs want it
            )
        except ImportError:
            raise UserError(
                "--tensorboard needs the package tensorboard, which is not installed; pip install "
                "tensorboard."
            ) from None
        self._new = SummaryWriter
        self._folder = folder
        self._writer = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step.

        The first after a resume takes back what an interrupted run had written from its step on.
        """
        writer = self._open(step)
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()  # what is not flushed is lost when the run is killed

    def picture(self, step: int, path: Path) -> None:
        """The picture of a step, from its PNG file."""
        writer = self._open(step)
        with Image.open(path) as image:
            writer.add_image(
                path.parent.name, np.asarray(image.convert("RGB")), step, dataformats="HWC"
            )
        writer.flush()

    def _open(self, step: int) -> Any:
        if self._writer is None:
            self._writer = self._new(str(self._folder), purge_step=step)
        return self._writer


class EventLog:
    """metrics.jsonl: one JSON object per line, cut back to a checkpoint on resume.

    With a board its numbers go there too.
    """

    def __init__(self, path: Path, keep: int = 0, board: Board | None = None):
        """Open `path` for appending after its first `keep` bytes."""
        self.path = path
        self._board = board
        self._file = path.open("ab")
        os.truncate(path, min(keep, path.stat().st_size))

    def write(self, **event: Any) -> None:
        """Append one event; numbers in it that are not finite become null."""
        self._file.write(files.to_json(event).encode() + b"\n")
        self._file.flush()
        if self._board is not None and "step" in event:
            self._board.write(
                event["step"],
                {
                    k: float(v)
                    for k, v in event.items()
                    if k != "step" and isinstance(v, int | float)
                },
            )

    def size(self) -> int:
        """Bytes written so far, for the checkpoint."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
