"""The report page: one HTML file that shows runs, and needs nothing beside it.

What a folder lacks is left out.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ddengine.evaluation.tables import set_of
from ddengine.pages import accuracies, charts, facts, pictures, results
from ddengine.pages.commands import commands
from ddengine.pages.heat import heat_table
from ddengine.pages.reading import Run, named, read
from ddengine.pages.words import flat
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.visible import visible
from ddengine.types import Json

MARK = '<meta name="generator" content="ddengine report">'  # near the beginning of every page
NOT_OF_TABLE = ("note", "cites", "published")  # fields of a recipe that are said otherwise
ANONYMOUS = "Distilled is not anonymous: images start from real ones and can still resemble them."


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of `runs` to the file `out` and return it.

    Each is the folder of a run, a distilled folder, or a folder that holds an evaluation. Raises
    UserError for any other, for damaged files, and for an `out` that cannot be written.
    """
    if not runs:
        raise UserError("A report needs a run to show; give the folder of one.")
    if out.is_dir():
        raise UserError(f"{out} is a folder, and a report is one file; name a file with --out.")
    if out.is_file() and MARK.encode() not in out.read_bytes()[:500]:
        raise UserError(
            f"{out} is there and no report, so it is left alone; name another file with --out."
        )
    html = _render(named(list(map(read, runs))))
    files.make_folder(out.parent)
    with files.replacing(out) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")
    return out


def _section(run: Run, num_runs: int, numbers: Iterator[int], key: str) -> Json:
    """Everything that the template shows of a run, one of `num_runs` that have the page together.

    `numbers` are those of the figures of the page; `key` is the beginning of the section's ids.
    """
    recipe = dict(run.recipe)
    for name in NOT_OF_TABLE:
        recipe.pop(name, None)
    grids = pictures.grids(run, pictures.VALUES // num_runs)
    overview = ""
    if not grids.get("real"):
        overview = pictures.picture_of(run.path / "real_vs_distilled.png")
    return {
        "key": key,
        "name": run.name,
        "finished": bool(run.meta) or not run.settings,
        "facts": facts.facts(run),
        "note": run.recipe.get("note") or "",
        "recipe": list(flat(recipe)),
        "grids": grids,
        "overview": overview,
        "frames": pictures.frames(run, pictures.FRAME_BYTES // num_runs),
        "pictures": len(run.progress),
        "curves": charts.curves([run], numbers),
        "charts": charts.bars(run, numbers),
        "accuracies": accuracies.accuracies(run),
        "classes": accuracies.classes(run),
        "chosen": accuracies.rates_were_chosen(run),
        "heat": _heat_of(run),
        "scores": results.score_tables(run),
        "ranking": results.ranking(run),
        "privacy": results.privacy(run),
        "transfer": results.transfer(run),
        "uses": results.uses(run),
        "ledger": facts.ledger(run),
        "cost": facts.cost(run),
        "commands": commands(run),
    }


def _heat_of(run: Run) -> Json:
    """The accuracies of a run on several networks; empty for a single one."""
    if len(run.models) < 2:
        return {}
    return heat_table([(set_of(row), row) for row in run.rows])


def _together(runs: Sequence[Run], numbers: Iterator[int]) -> Json:
    """What the template shows of several runs side by side; empty values for a single one."""
    if len(runs) == 1:
        return {"several": False, "comparison": {}, "overlaid": [], "heat": {}, "settings": []}
    rows = [(f"{run.name}: {row['set']}", row) for run in runs for row in run.rows]
    return {
        "several": True,
        "comparison": accuracies.comparison(runs),
        "overlaid": charts.curves(runs, numbers),
        "heat": heat_table(rows) if rows else {},
        "settings": accuracies.by_setting(runs),
    }


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    return environment.get_template("report.html")


def _visible(value: Any) -> Any:
    """A value for the page; what is markup already is ours."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value) if is_text else value


def _render(runs: Sequence[Run]) -> str:
    numbers = itertools.count(1)
    together = _together(runs, numbers)
    sections = []
    for i, run in enumerate(runs):
        sections.append(_section(run, len(runs), numbers, f"run{i + 1}"))
    return _template().render(
        title=f"{len(runs)} runs" if together["several"] else runs[0].name,
        runs=sections,
        legend=charts.legend(runs),
        anonymous=ANONYMOUS,
        **together,
    )
