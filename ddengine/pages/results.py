"""What a page shows of scores.json, ranking.json, privacy.json and transfer.json."""

from typing import Any

from ddengine.evaluation import scores
from ddengine.evaluation.tables import DIVERGED, interval_of
from ddengine.pages import of_privacy, of_transfer
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


def transfer(run: Run) -> Json:
    """The table of a transfer to other datasets and its notes, for the template.

    Empty without transfer.json. Raises UserError for a file that transfer did not write.
    """
    content = run.extra.get("transfer")
    if content is None:
        return {}
    try:
        return {
            "heads": of_transfer.heads(content),
            "rows": of_transfer.lines(content),
            "notes": of_transfer.notes(content),
            "models": ", ".join(content["models"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{run.path / 'transfer.json'} does not hold what the transfer command writes; run it "
            "again."
        ) from None


def privacy(run: Run) -> Json:
    """The note, the numbers and the picture of a privacy check, for the template.

    Empty without privacy.json. Raises UserError for a file that the check did not write.
    """
    content = run.extra.get("privacy")
    if content is None:
        return {}
    try:
        rows = of_privacy.lines(content)
        title, note = of_privacy.title(content), str(content["note"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{run.path / 'privacy.json'} does not hold what the privacy command writes; run it "
            "again."
        ) from None
    return {
        "note": note,
        "title": title,
        "heads": ["Measure", *of_privacy.HEADS[1:]],
        "rows": rows,
        "picture": picture_of(run.path / "privacy.png"),
    }
