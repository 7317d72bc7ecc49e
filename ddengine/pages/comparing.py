"""A comparison of settings as a table for the terminal, for a page, for LaTeX, and as CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ddengine.evaluation.comparison import Comparison
from ddengine.evaluation.tables import percent
from ddengine.pages.words import NONE, plain
from ddengine.types import Row

INTERVALS = ("95 % interval", "its 95 % interval")  # columns; on the terminal lines of others
# titles where there is little room; `SHORT_TITLES` says what they stand for
SHORT = {
    "between distillations": "± sets",
    "between networks": "± nets",
    "distillations": "sets",
    "p (Holm)": "p",
}
SHORT_TITLES = (
    "± sets and ± nets: standard deviations between distillations, and between networks on one "
    "set; in parentheses 95 % intervals"
)
WIDEST = 12  # characters of a setting's title that a narrow terminal does not fold
ONE = "one"  # in the column of distillations; it stands out more than a number
TITLES = {"name": "recipe"}  # fields that people call otherwise
# of what a row says beside its fields, in the order of a CSV file
NUMBERS = (
    "ipc",
    "bytes",
    "seconds",
    "accuracy_mean",
    "between_std",
    "within_std",
    "num_distillations",
    "num_networks",
    "difference",
    "p",
    "p_holm",
    "paired",
    "diverged",
)
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{EN DASH}": "--", "<": "$<$",
})  # fmt: skip


def head(comparison: Comparison) -> list[str]:
    """The titles of the columns."""
    return list(_columns(comparison))


def lines(comparison: Comparison) -> list[list[str]]:
    """The cells of each row."""
    cells = []
    for row in comparison.rows:
        cells.append([cell(row) for cell in _columns(comparison).values()])
    return cells


def _columns(comparison: Comparison) -> dict[str, Callable[[Row], str]]:
    """What stands in each column."""
    rows = comparison.rows
    columns: dict[str, Callable[[Row], str]] = {"row": lambda row: str(row["row"])}
    for name in comparison.fields:
        title = TITLES.get(name, comparison.short[name])
        columns[title] = lambda row, name=name: value_in_words(row["settings"][name])
    if len({row["model"] for row in rows}) > 1:
        columns["network"] = lambda row: row["model"]
    columns["accuracy %"] = lambda row: percent(row["accuracy_mean"])
    columns["95 % interval"] = lambda row: _ends(row["ci95"])
    if any(row["between_std"] is not None for row in rows):
        columns["between distillations"] = lambda row: _points(row["between_std"])
    columns["between networks"] = lambda row: _points(row["within_std"])
    columns["distillations"] = _distillations
    if comparison.to is not None:
        columns[f"less row {comparison.to}"] = lambda row: _signed(row["difference"])
        columns["its 95 % interval"] = lambda row: _ends(row["difference_ci95"], "+.1f")
        columns["p (Holm)"] = lambda row: _p_in_words(row["p_holm"])
    return columns


def value_in_words(value: Any) -> str:
    """A setting's value; a dash where a setting has not that field, such as of another method."""
    return NONE if value is None else plain(value)


def _points(fraction: float | None) -> str:
    """A difference of accuracies in points of percent."""
    return NONE if fraction is None else f"{100 * fraction:.2f}"


def _signed(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:+.1f}"


def _ends(ci95: Sequence[float] | None, form: str = ".1f") -> str:
    if ci95 is None:
        return NONE
    low, high = (format(100 * end, form) for end in ci95)
    return f"{low} to {high}"


def _distillations(row: Row) -> str:
    return ONE if row["num_distillations"] == 1 else str(row["num_distillations"])


def _p_in_words(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def table(comparison: Comparison, title: str) -> Table:
    """The table for the terminal, with intervals below what they are of; notes belong below it."""
    columns = _columns(comparison)
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        if name in INTERVALS:
            continue
        words = _is_words(comparison, place, name)
        justify = "left" if words else "right"
        least = min(len(name), WIDEST) if words else None
        shown.add_column(SHORT.get(name, name), justify=justify, no_wrap=not words, min_width=least)
    for row in comparison.rows:
        cells: list[str] = []
        for name, cell in columns.items():
            if name not in INTERVALS:
                cells.append(cell(row))
            elif cell(row) != NONE:
                cells[-1] += f"\n({cell(row)})"
        shown.add_row(*cells)
    return shown


def _is_words(comparison: Comparison, place: int, name: str) -> bool:
    """Whether a column holds settings or networks, and no results."""
    return 1 <= place <= len(comparison.fields) or name == "network"


def csv_text(comparison: Comparison) -> str:
    """Every field that differs by the name of its flag, and every number, fractions in full."""
    stream = io.StringIO()
    records = list(map(_record, comparison.rows))
    writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _record(row: Row) -> dict[str, Any]:
    """What a row says, by the names of columns."""
    record = {"row": row["row"], **row["settings"], "model": row["model"]}
    for name in NUMBERS:
        record[name] = row[name]
    for name in ("ci95", "difference_ci95"):
        low, high = row[name] or (None, None)
        record |= {f"{name}_low": low, f"{name}_high": high}
    return record | {"seeds": _listed(row["seeds"]), "runs": _listed(row["runs"])}


def _listed(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))


def latex_text(comparison: Comparison, caption: str) -> str:
    """A table for LaTeX, with the rules of the package booktabs; the notes are its caption."""
    titles = head(comparison)
    columns = ""
    for place, name in enumerate(titles):
        columns += "l" if _is_words(comparison, place, name) else "r"
    said = ". ".join([caption, *comparison.notes])
    body = [
        r"\begin{table}",
        rf"\caption{{{escaped(said)}.}}",
        r"\centering",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(titles),
        r"\midrule",
        *map(_latex_row, lines(comparison)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(body) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(LATEX)


def of_page(comparison: Comparison) -> Mapping[str, Any]:
    """What the template of a page shows, with the runs of each row among the notes."""
    runs = {row["row"]: ", ".join(row["runs"]) for row in comparison.rows}
    notes = [f"row {number}: {names}" for number, names in runs.items()]
    return {
        "head": head(comparison),
        "rows": lines(comparison),
        "notes": [*comparison.notes, *notes],
    }
