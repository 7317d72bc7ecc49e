"""How far long work is, shown where a person looks: a terminal, a notebook, a function of theirs.

A terminal has rich's bar. A notebook has tqdm's, which is a widget where ipywidgets is installed
and a line that moves where it is not; rich's needs ipywidgets and leaves a gap behind each bar.
"""

import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

# what is called with (title, done, total, note) whenever one more of `total` is done; what it
# raises stops the work
Report = Callable[[str, int, int, str], None]


RECENT_SECONDS = 300.0  # of work by which the time left is told ...
RECENT_STEPS = 10  # ... or of so many steps, where they take longer


class TimeLeft:
    """How long what is not done yet will take, by the steps of the last minutes.

    So a pause, or a slow beginning, is forgotten.
    """

    def __init__(self, total: int, done: int):
        """Work of which `done` of `total` are done now."""
        self._total = total
        self._seen: deque[tuple[float, float]] = deque([(time.monotonic(), done)])

    def after(self, done: float) -> float | None:
        """Seconds that are left when `done` are done now; None where nothing was done yet."""
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > RECENT_STEPS + 1 and now - self._seen[1][0] > RECENT_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        if done <= before:
            return None
        return (now - since) / (done - before) * (self._total - done)


def clock(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds, such as 0:02:05."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class Display(Protocol):
    """What shows how far one piece of work is."""

    def update(self, done: float, note: str) -> None:
        """So many are done, one may be in part; `note` says what there is to say of the last."""
        ...

    def announce(self, done: int, text: str) -> bool:
        """Show what comes next; False where that is not shown here."""
        return False

    def grow(self, table: Callable[[], RenderableType]) -> bool:
        """Show a table beside, which has grown; False where none can be shown."""
        return False

    def close(self) -> None:
        """Remove it."""


class _WithTable(Progress):
    """A bar of rich below a table."""

    table: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table, as soon as there is one, and the bar."""
        if self.table is not None:
            yield self.table
        yield from super().get_renderables()


class TerminalBar(Display):
    """A live bar of rich in a terminal."""

    def __init__(self, console: Console, title: str, total: int, done: int):
        """A bar that starts at `done` of `total`."""
        self._live = _WithTable(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._left = TimeLeft(total, done)
        self._task = self._live.add_task(
            title, total=total, completed=done, left=clock(None), note=""
        )
        self._live.start()

    def update(self, done: float, note: str) -> None:
        """Move the bar."""
        left = clock(self._left.after(done))
        self._live.update(self._task, completed=done, left=left, note=note)

    def announce(self, done: int, text: str) -> bool:
        """Beside the bar."""
        self._live.update(self._task, note=text)
        return True

    def grow(self, table: Callable[[], RenderableType]) -> bool:
        """Above the bar."""
        self._live.table = table()
        self._live.refresh()
        return True

    def close(self) -> None:
        """Remove the bar."""
        self._live.stop()


class NotebookBar(Display):
    """A bar of tqdm in a notebook."""

    def __init__(self, title: str, total: int, done: int):
        """A bar that starts at `done` of `total`; tqdm is installed."""
        self._bar = _tqdm()(
            desc=title,
            total=total,
            initial=done,
            leave=False,
            file=sys.stdout,
            dynamic_ncols=True,
        )

    def update(self, done: float, note: str) -> None:
        """Move the bar."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


class Reported(Display):
    """A function of the caller in place of a bar."""

    def __init__(self, report: Report, title: str, total: int, done: int):
        """It is called at once with what is done already."""
        self._report, self._title, self._total = report, title, total
        report(title, done, total, "")

    def update(self, done: float, note: str) -> None:
        """Call the function."""
        self._report(self._title, int(done), self._total, note)


def in_notebook() -> bool:
    """Whether output goes to a notebook: Jupyter, Colab, Databricks."""
    return Console().is_jupyter


def has_tqdm() -> bool:
    """Whether tqdm is installed; this program does not need it."""
    try:
        _tqdm()
    except ImportError:
        return False
    return True


def write_beside_bars(message: str) -> None:
    """A line in a notebook that no moving line of tqdm is mixed with; tqdm is installed."""
    _tqdm().write(message, file=sys.stdout)


def _tqdm() -> Any:
    """The class of tqdm that suits the place."""
    with warnings.catch_warnings():
        # without ipywidgets tqdm warns, and takes the line that is wanted then
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm
