"""What a page shows of scores.json, ranking.json and privacy.json."""

from collections.abc import Mapping
from typing import Any

from ddengine.evaluation import scores
from ddengine.evaluation.tables import DIVERGED, interval_of
from ddengine.pages import of_privacy
from ddengine.pages.pictures import picture_of
from ddengine.pages.reading import Run
from ddengine.pages.words import NONE, cell, number
from ddengine.system.errors import UserError

BETWEEN = 2  # the column of a row of scores that holds the interval


def _ends(ci95: Any) -> str:
    """A 95 % interval in words, a dash for anything else."""
    if isinstance(ci95, list | tuple) and len(ci95) == 2:
        return f"{number(ci95[0])} to {number(ci95[1])}"
    return NONE


def score_tables(run: Run) -> list[dict[str, Any]]:
    """Small tables of scores.json, one for each network, for the template."""
    content = run.extra.get("scores") or {}
    tables = []
    for entry in content.get("scores") or []:
        if isinstance(entry, dict) and isinstance(entry.get("scores"), dict):
            tables.append(_score_table(entry, content))
    return tables


def _score_table(entry: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for name, value in entry["scores"].items():
        fields = value if isinstance(value, dict) else {"mean": value}
        rows.append(_score_row(name, fields, bool(entry.get("diverged"))))
    title = f"on {entry['model']}" if entry.get("model") else ""
    if any(row[BETWEEN] != NONE for row in rows):
        title += f"; 95 % intervals of the mean by {interval_of(content)}"
    return {"title": title, "rows": rows}


def _score_row(name: str, fields: Mapping[str, Any], diverged: bool) -> list[str]:
    """The cells (title, mean, interval, number of networks) of a score."""
    title = scores.SHOWN.get(name, str(name).replace("_", " ")).capitalize()
    mean = fields.get("mean")
    in_words = DIVERGED if diverged and mean is None else number(mean)
    return [title, in_words, _ends(fields.get("ci95")), cell(fields, "n")]


def ranking(run: Run) -> dict[str, Any]:
    """Rank correlations of ranking.json by set, for the template; empty without the file."""
    if "ranking" not in run.extra:
        return {}
    content = run.extra["ranking"]
    sets = content.get("sets", [])
    rows = []
    for entry in sets if isinstance(sets, list) else []:
        if isinstance(entry, dict):
            rows.append([
                str(entry.get("set", "")),
                *_correlation(entry, "kendall"),
                *_correlation(entry, "spearman"),
            ])  # fmt: skip
    others = []
    for key, value in content.items():
        if key not in ("sets", "note") and isinstance(value, str | int | float):
            others.append((key.replace("_", " "), number(value)))
    return {"rows": rows, "note": str(content.get("note") or ""), "others": others}


def _correlation(entry: Mapping[str, Any], key: str) -> tuple[str, str]:
    """(a rank correlation, its interval) in words."""
    value = entry.get(key)
    return NONE if value is None else number(value), _ends(entry.get(f"{key}_ci95"))


def privacy(run: Run) -> dict[str, Any]:
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
