"""`compare RUN... [flags]`: one row for each setting, over distillations of several seeds."""

from dataclasses import dataclass
from pathlib import Path

import ddengine
from ddengine.api.compare import SWEEP
from ddengine.artefact.runs import is_set
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.system import log

FIGURE = Path("comparison.png")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Flags of compare."""

    # the run whose setting the others are compared with, or the number of a row; None: the first
    to: str | None = None
    across: bool = False  # compare runs of different protocols too, by the fields that differ
    csv: Path | None = None  # file to write, with every field and number
    latex: Path | None = None  # file to write, a table for the package booktabs
    # PNG to write; None: with --x comparison.png, else none
    figure: Path | None = None
    # what the figure shows accuracy against: ipc | bytes | seconds | a setting; None: the first
    # setting that is a number
    x: str | None = None


def is_run_or_sweep(path: Path) -> bool:
    """Whether a path is that of a run, a set or a sweep."""
    return is_set(path) or (path / SWEEP).is_file()


COMMAND = OnPaths(
    "compare",
    CompareOptions,
    what="the folders of runs that were evaluated, or of sweeps",
    shown="RUN...",
    is_meant=is_run_or_sweep,
)


def main(args: list[str]) -> None:
    """The command."""
    paths, flags = COMMAND.paths(args)
    options = COMMAND.parse("RUN...", flags)
    figure = options.figure or (FIGURE if options.x is not None else None)
    outcome = ddengine.compare(
        paths,
        to=options.to,
        across=options.across,
        csv=options.csv,
        latex=options.latex,
        figure=figure,
        x=options.x,
    )
    cli.show(outcome)
    written = [path for path in (options.csv, options.latex, figure) if path is not None]
    if written:
        log.say(f"written: {', '.join(map(str, written))}")
