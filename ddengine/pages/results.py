"""What a page shows of scores.json, ranking.json, privacy.json, transfer.json, and of the uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from ddengine.evaluation import scores
from ddengine.evaluation.tables import DIVERGED, interval_of
from ddengine.pages import of_continual, of_labels, of_privacy, of_pruning, of_transfer
from ddengine.pages.html_table import cells_of
from ddengine.pages.pictures import picture_of
from ddengine.pages.reading import Run
from ddengine.pages.words import NONE, cell, number
from ddengine.types import Facts, Json

BETWEEN = 2  # the column of a row of scores that holds the interval


def _ends(ci95: Sequence[float] | None) -> str:
    """A 95 % interval in words, a dash for none."""
    if ci95 is None:
        return NONE
    return f"{number(ci95[0])} to {number(ci95[1])}"


def score_tables(run: Run) -> list[Json]:
    """Small tables of scores.json, one for each network, for the template."""
    content = run.extra.get("scores") or {}
    return [_score_table(entry, content) for entry in content.get("scores", ())]


def _score_table(entry: Facts, content: Facts) -> Json:
    rows = []
    for name, value in entry["scores"].items():
        fields = value if isinstance(value, dict) else {"mean": value}
        rows.append(_score_row(name, fields, bool(entry.get("diverged"))))
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
    rows = [_correlations(entry) for entry in content["sets"]]
    others = []
    for key, value in content.items():
        if key not in ("sets", "note") and isinstance(value, str | int | float):
            others.append((key.replace("_", " "), number(value)))
    return {"rows": rows, "note": content.get("note", ""), "others": others}


def _correlations(entry: Facts) -> list[str]:
    """The cells (set, Kendall's correlation, its interval, Spearman's, its interval)."""
    cells = [entry["set"]]
    for key in ("kendall", "spearman"):
        cells += [number(entry[key]), _ends(entry.get(f"{key}_ci95"))]
    return cells


def transfer(run: Run) -> Json:
    """The table of a transfer to other datasets and its notes, for the template.

    Empty without transfer.json.
    """
    content = run.extra.get("transfer")
    if content is None:
        return {}
    return {
        "heads": of_transfer.heads(content),
        "rows": of_transfer.lines(content),
        "notes": of_transfer.notes(content),
        "models": ", ".join(content["models"]),
    }


def privacy(run: Run) -> Json:
    """The note, the numbers and the picture of a privacy check, for the template.

    Empty without privacy.json.
    """
    content = run.extra.get("privacy")
    if content is None:
        return {}
    return {
        "note": content["note"],
        "title": of_privacy.title(content),
        "heads": ["Measure", *of_privacy.HEADS[1:]],
        "rows": of_privacy.lines(content),
        "picture": picture_of(run.path / "privacy.png"),
    }


@dataclass(frozen=True)
class Use:
    """A command that uses a dataset, as a page shows what it wrote."""

    heading: str
    table: Callable[[Facts], Table]
    notes: Callable[[Facts], Sequence[str]]
    picture: str  # what the picture beside the file shows, in words


# by the name of the file and of the picture
USES = {
    "prune": Use(
        heading="Distillation on pruned data",
        table=of_pruning.table,
        notes=of_pruning.notes,
        picture="Accuracy, and the best share of distillation, against the fraction that is kept",
    ),
    "labels": Use(
        heading="Labels bought from a teacher that errs",
        table=of_labels.table,
        notes=of_labels.notes,
        picture="Accuracy after the last round against the share of wrong answers",
    ),
    "continual": Use(
        heading="Continual learning",
        table=of_continual.table,
        notes=of_continual.notes,
        picture="Accuracy after each stage",
    ),
}


def uses(run: Run) -> list[Json]:
    """What the uses of a dataset wrote into a folder, each with its table, for the template."""
    shown = []
    for name, use in USES.items():
        if name in run.extra:
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
