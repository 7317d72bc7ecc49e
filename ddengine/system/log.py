"""Progress for a person, one JSON line per event for a program."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ddengine.system import bars, digests, files
from ddengine.system.errors import UserError
from ddengine.system.visible import visible

# a terminal without UTF-8 gets question marks, not a traceback
if hasattr(sys.stdout, "reconfigure"):  # probe: of a stream that somebody may have replaced
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


class VisibleConsole(Console):
    """A console that shows control characters in place of obeying them, whoever wrote the text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """As rich renders it; what moves the cursor of a bar is no text, and stays."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


# plain text in notebooks too: rich would make a block of HTML of each line
console = VisibleConsole(highlight=False, markup=False, soft_wrap=True, force_jupyter=False)

PLAIN_EVERY = 20.0  # seconds between lines where no bar can move

Progress = bool | bars.Report  # what the public functions take as `progress`
# the function that is told of progress in place of a bar, within `shown`
_report: ContextVar[bars.Report | None] = ContextVar("report", default=None)


class PlainLines(bars.Display):
    """A line now and then, where no bar can move, such as in a file."""

    def __init__(self, title: str, total: int, done: int):
        """Nothing is printed yet."""
        self._title, self._total = title, total
        self._last = time.monotonic()
        self._left = bars.TimeLeft(total, done)

    def update(self, done: float, note: str) -> None:
        """A line where the last one is some time ago."""
        now = time.monotonic()
        left = self._left.after(done)
        if now - self._last <= PLAIN_EVERY or left is None:
            return
        self._last = now
        so_far = f"{self._title}: {round(done, 1)}/{self._total}"
        console.print(f"{so_far}, about {duration(left)} left {note}".rstrip())


class Hidden(bars.Display):
    """Nothing, for all ranks but the first."""

    def update(self, done: float, note: str) -> None:
        """Show nothing."""


def _display(title: str, total: int, done: int) -> bars.Display:
    """What shows a piece of work here and now."""
    report = _report.get()
    if os.environ.get("RANK", "0") != "0":
        return Hidden()
    if report is not None:
        return bars.Reported(report, title, total, done)
    if console.quiet:
        return Hidden()
    if bars.in_notebook() and bars.has_tqdm():
        return bars.NotebookBar(title, total, done)
    if console.is_terminal:
        return bars.TerminalBar(console, title, total, done)
    return PlainLines(title, total, done)


class Bar:
    """A counter that is shown."""

    def __init__(self, title: str, total: int, done: int = 0):
        self.title = title
        self.total = total
        self.done = done
        self.note = ""
        self._display = _display(title, total, done)

    def advance(self, note: str = "") -> None:
        """One more is done."""
        self.done += 1
        self.note = note or self.note
        self._display.update(self.done, self.note)

    def move(self, done: float, note: str = "") -> None:
        """So many are done in all, the last of them in part."""
        self.done = int(done)
        self.note = note or self.note
        self._display.update(done, self.note)

    def announce(self, text: str) -> None:
        """What comes next."""
        self.note = text
        if not self._display.announce(self.done, text):
            say(text)

    def grow(self, table: Callable[[], RenderableType], line: str) -> None:
        """Show a table that has grown by a row, or, where no table can grow, a line for the row."""
        if not self._display.grow(table):
            say(line)

    def stop(self) -> None:
        """Remove what is shown."""
        self._display.close()


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A Bar that is removed at the end."""
    bar = Bar(title, total, done)
    try:
        yield bar
    finally:
        bar.stop()


@contextmanager
def shown(wanted: Progress) -> Iterator[None]:
    """Within the block bars and lines are shown, or not, or a function is told of progress.

    A function takes (title, done, total, note) in place of bars; lines are shown then, too.
    Raises UserError for anything else.
    """
    if not isinstance(wanted, bool) and not callable(wanted):
        raise UserError(
            f"progress is {wanted!r}; give True, False or a function of (title, done, total, note)."
        )
    before = console.quiet
    console.quiet = before or wanted is False
    report = _report.get() if wanted is True else None
    token = _report.set(wanted if callable(wanted) else report)
    try:
        yield
    finally:
        console.quiet = before
        _report.reset(token)


class Counter(Protocol):
    """What counts steps for a person."""

    def advance(self, note: str = "") -> None:
        """One more is done; `note` says what there is to say of it."""


def say(message: str) -> None:
    """A line for the person at the terminal; of several ranks the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    if bars.in_notebook() and bars.has_tqdm() and not console.quiet:
        bars.write_beside_bars(visible(message))
    else:
        console.print(message)


@cache
def say_once(message: str) -> None:
    """A line for the person at the terminal, which is not repeated."""
    say(message)


def complain(message: str) -> None:
    """A line on standard error."""
    print(visible(message), file=sys.stderr)


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

    def part(self, name: str) -> "Board":
        """A board for a part of the run, which TensorBoard shows as a run below this one."""
        return Board(self._folder / name)

    def event(self, event: Mapping[str, Any]) -> None:
        """The numbers of an event that has a step."""
        numbers = {}
        for name, value in event.items():
            if name != "step" and isinstance(value, int | float):
                numbers[name] = float(value)
        self.write(event["step"], numbers)

    def close(self) -> None:
        """Close the files; a number that is written later begins other ones."""
        if self._writer is not None:
            self._writer.close()
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

    def __init__(
        self,
        path: Path,
        keep: int = 0,
        board: Board | None = None,
        digest: str | None = None,
    ):
        """Open `path` for appending after its first `keep` bytes.

        It is said where these have another digest than `digest`: their events cannot be had again.
        """
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file, so no lines can be added to it; remove it.")
        self.path = path
        self._board = board
        self._file = path.open("ab")
        kept = path.read_bytes()[:keep]
        if digest is not None and digests.of_bytes(kept) != digest:
            say(
                f"warning: {path} was cut or changed since the checkpoint, so the curves of this "
                "run will be wrong or incomplete"
            )
        kept = kept[: kept.rfind(b"\n") + 1]  # lines that are complete
        os.truncate(path, len(kept))
        self._digest = digests.running(kept)

    def write(self, **event: Any) -> None:
        """Append one event; numbers in it that are not finite become null."""
        line = files.to_json(event).encode() + b"\n"
        with files.naming(self.path):
            self._file.write(line)
            self._file.flush()
        self._digest.update(line)
        if self._board is not None and "step" in event:
            self._board.event(event)

    def size(self) -> int:
        """Bytes written so far, for the checkpoint."""
        return self.path.stat().st_size

    def digest(self) -> str:
        """Of all that the file holds, for the checkpoint and meta.json."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
