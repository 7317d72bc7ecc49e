"""`report SET... [--out FILE]`: one HTML page about one or several runs."""

from dataclasses import dataclass
from pathlib import Path

import ddengine
from ddengine.commands.compare import is_run_or_sweep
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Waits
from ddengine.pages.reading import OPTIONAL
from ddengine.system import log


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Waits):
    """Flags of report."""

    out: Path | None = None  # file to write; None: report.html in the first folder


def is_shown(path: Path) -> bool:
    """Whether a path is that of a run, a set or a sweep, or of a use of a dataset."""
    return is_run_or_sweep(path) or any((path / name).is_file() for name in OPTIONAL)


COMMAND = OnPaths("report", ReportOptions, shown="SET...", is_meant=is_shown)


def main(args: list[str]) -> None:
    """The command."""
    paths, flags = COMMAND.paths(args)
    options = COMMAND.parse("SET...", flags)
    log.say(f"report: {ddengine.report(paths, options.out)}")
