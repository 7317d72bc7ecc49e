"""What a page shows of scores.json, ranking.json, privacy.json, transfer.json, and of the uses."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ddengine.evaluation import scores
from ddengine.evaluation.tables import DIVERGED, interval_of
from ddengine.pages import of_continual, of_labels, of_privacy, of_pruning, of_transfer
from ddengine.pages.html_table import cells_of
from ddengine.pages.pictures import picture_of
from ddengine.pages.reading import Run
from ddengine.pages.words import NONE, cell, number
from ddengine.system.errors import UserError
from ddengine.types import Facts, Json

BETWEEN = 2  # the column of a row of scores that holds the interval


def _ends(ci95: Any) -> str:
    """A 95 % interval in words, a dash for anything else."""
    if isinstance(ci95, list | tuple) and len(ci95) == 2:
        return f"{number(ci95[0])} to {number(ci95[1])}"
    return NONE


def score_tables(run: Run) -> list[Json]:
    """Small tables of scores.json, one for each network, for the template."""
    content = run.extra.get("scores") or {}
    tables = []
    for entry in content.get("scores") or []:
        if isinstance(entry, dict) and isinstance(entry.get("scores"), dict):
            tables.append(_score_table(entry, content))
    return tables


def _score_table(entry: Facts, content: Facts) -> Json:
    rows = []
    for name, value in entry["scores"].items():
        fields = value if isinstance(value, dict) else {"mean": value}
        rows.append(_score_row(name, fields, bool(entry.get("diverged"))))
    title = ""
    if entry.get("model"):
        title = f"on {entry['model']}"
    if any(row[BETWEEN] != NONE for row in rows):
        title += f"; 95 % intervals of the mean by {interval_of(content)}"
    return {"title": title, "rows": rows}


def _score_row(name: str, fields: Facts, diverged: bool) -> list[str]:
    """The cells (title, mean, interval, number of networks) of a score."""
    title = scores.SHOWN.get(name, str(name).replace("_", " ")).capitalize()
    mean = number(fields.get("mean"))
    if diverged and fields.get("mean") is None:
        mean = DIVERGED
    return [title, mean, _ends(fields.get("ci95")), cell(fields, "n")]


def ranking(run: Run) -> Json:
    """Rank correlations of ranking.json by set, for the template; empty without the file."""
    if "ranking" not in run.extra:
        return {}
    content = run.extra["ranking"]
    sets = content.get("sets")
    rows = []
    if isinstance(sets, list):
        rows = [_correlations(entry) for entry in sets if isinstance(entry, dict)]
    others = []
    for key, value in content.items():
        if key not in ("sets", "note") and isinstance(value, str | int | float):
            others.append((key.replace("_", " "), number(value)))
    return {"rows": rows, "note": str(content.get("note") or ""), "others": others}


def _correlations(entry: Facts) -> list[str]:
    """The cells (set, Kendall's correlation, its interval, Spearman's, its interval)."""
    cells = [str(entry.get("set", ""))]
    for key in ("kendall", "spearman"):
        value = NONE
        if entry.get(key) is not None:
            value = number(entry[key])
        cells += [value, _ends(entry.get(f"{key}_ci95"))]
    return cells


@contextmanager
def _written_by(command: str, run: Run, file: str) -> Iterator[None]:
    """Within the block a file is shown; raises UserError for one that the command did not write."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UserError(
            f"{run.path / file} does not hold what the {command} command writes; run it again."
        ) from None


def transfer(run: Run) -> Json:
    """The table of a transfer to other datasets and its notes, for the template.

    Empty without transfer.json. Raises UserError for a file that transfer did not write.
    """
    content = run.extra.get("transfer")
    if content is None:
        return {}
    with _written_by("transfer", run, "transfer.json"):
        return {
            "heads": of_transfer.heads(content),
            "rows": of_transfer.lines(content),
            "notes": of_transfer.notes(content),
            "models": ", ".join(content["models"]),
        }


def privacy(run: Run) -> Json:
    """The note, the numbers and the picture of a privacy check, for the template.

    Empty without privacy.json. Raises UserError for a file that the check did not write.
    """
    content = run.extra.get("privacy")
    if content is None:
        return {}
    with _written_by("privacy", run, "privacy.json"):
        rows = of_privacy.lines(content)
        title, note = of_privacy.title(content), str(content["note"])
    return {
        "note": note,
        "title": title,
        "heads": ["Measure", *of_privacy.HEADS[1:]],
        "rows": rows,
        "picture": picture_of(run.path / "privacy.png"),
    }


@dataclass(frozen=True)
class Use:
    """A command that uses a dataset, as a page shows what it wrote."""

    heading: str
    command: str
    table: Callable[[Facts], Table]
    notes: Callable[[Facts], Sequence[str]]
    picture: str  # what the picture beside the file shows, in words


# by the name of the file and of the picture
USES = {
    "prune": Use(
        heading="Distillation on pruned data",
        command="prune",
        table=of_pruning.table,
        notes=of_pruning.notes,
        picture="Accuracy, and the best share of distillation, against the fraction that is kept",
    ),
    "labels": Use(
        heading="Labels bought from a teacher that errs",
        command="buy_labels",
        table=of_labels.table,
        notes=of_labels.notes,
        picture="Accuracy after the last round against the share of wrong answers",
    ),
    "continual": Use(
        heading="Continual learning",
        command="continual",
        table=of_continual.table,
        notes=of_continual.notes,
        picture="Accuracy after each stage",
    ),
}


def uses(run: Run) -> list[Json]:
    """What the uses of a dataset wrote into a folder, each with its table, for the template.

    Raises UserError for a file that the command did not write.
    """
    shown = []
    for name, use in USES.items():
        if name in run.extra:
            with _written_by(use.command, run, f"{name}.json"):
                shown.append(_shown(run, name, use))
    return shown


def _shown(run: Run, name: str, use: Use) -> Json:
    content = run.extra[name]
    table = use.table(content)
    heads, rows = cells_of(table)
    return {
        "heading": use.heading,
        "title": f"{table.title}; ± sample standard deviation",
        "heads": heads,
        "rows": rows,
        "notes": use.notes(content),
        "words": use.picture,
        "picture": picture_of(run.path / f"{name}.png"),
    }
