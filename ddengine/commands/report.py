"""`report SET... [--out FILE]`: one HTML page about one or several runs."""

from dataclasses import dataclass
from pathlib import Path

import ddengine
from ddengine.commands import cli
from ddengine.commands.options import SET, paths_of
from ddengine.system import log


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Flags of report."""

    out: Path | None = None  # file to write; None: report.html in the first folder


def main(args: list[str]) -> None:
    """The command."""
    if args and args[0] in ("-h", "--help"):
        cli.parse(ReportOptions, args, ReportOptions(), "report RUN ...")
    paths, flags = paths_of(args, "report", SET)
    options = cli.parse(ReportOptions, flags, ReportOptions(), "report RUN ...")
    log.say(f"report: {ddengine.report(paths, options.out)}")
