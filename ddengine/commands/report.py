"""Report."""

from dataclasses import dataclass
from pathlib import Path

from ddengine.commands import cli
from ddengine.commands.options import paths_of
from ddengine.system import log


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Flags of report."""

    out: Path | None = None  # file to write; None: report.html in the first folder


def main(args: list[str]) -> None:
    """One page about one or several runs."""
    from ddengine.pages import page

    paths = paths_of(args, "report", "the folder of a run or of a distilled set")
    options = cli.parse(ReportOptions, args[len(paths) :], ReportOptions(), "report RUN ...")
    log.say(f"report: {page.write(paths, options.out or paths[0] / 'report.html')}")
