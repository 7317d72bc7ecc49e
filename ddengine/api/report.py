"""One page about runs."""

from collections.abc import Sequence
from pathlib import Path

from ddengine.api.compare import runs_in
from ddengine.api.results import Distilled, path_of
from ddengine.system import claims
from ddengine.system.errors import UserError


def report(
    runs: Distilled | Path | str | Sequence[Distilled | Path | str],
    file: Path | str | None = None,
) -> Path:
    """Write one HTML page about one or several runs, from their folders alone; returns its path.

        ddengine.report(["runs/mine", "runs/other"], "report.html")

    Args:
        runs: folders of runs, of sweeps or of distilled sets, or sets that lie in one.
        file: to write; None: report.html in the first folder.

    Raises:
        UserError: a folder that holds nothing to report.
    """
    from ddengine.pages import page

    several = [runs] if isinstance(runs, Distilled | Path | str) else list(runs)
    if not several:
        raise UserError("report was given no runs; name the folder of one at least.")
    folders = [path_of(of) if isinstance(of, Distilled) else Path(of) for of in several]
    paths: list[Path] = []
    for folder in folders:
        paths += runs_in(folder)
    out = folders[0] / "report.html" if file is None else Path(file)
    with claims.claimed_file(out, "report"):
        return page.write(paths, out)
