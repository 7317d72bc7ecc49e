"""A comparison of settings as a table for the terminal, for a page, for LaTeX, and as CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.table import Table

from ddengine.evaluation.comparison import Comparison, column
from ddengine.evaluation.intervals import counted
from ddengine.pages.words import NONE, cell, plain
from ddengine.types import Row

Cell = Callable[[Row], str]  # what a column says of a row
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
    columns = _columns(comparison).values()
    cells = []
    for row in comparison.rows:
        cells.append([cell(row) for cell in columns])
    return cells


def _columns(comparison: Comparison) -> dict[str, Cell]:
    """What stands in each column."""
    rows = comparison.rows
    columns: dict[str, Cell] = {"row": partial(cell, key="row")}
    for name in comparison.fields:
        title = TITLES.get(name, comparison.short[name])
        columns[title] = partial(_setting, name=name)
    if len(set(column(rows, "model"))) > 1:
        columns["network"] = partial(cell, key="model")
    columns["accuracy %"] = partial(_percent, key="accuracy_mean", form=".1f")
    columns["95 % interval"] = partial(_ends, key="ci95", form=".1f")
    if counted(column(rows, "between_std")):
        columns["between distillations"] = partial(_percent, key="between_std", form=".2f")
    columns["between networks"] = partial(_percent, key="within_std", form=".2f")
    columns["distillations"] = _distillations
    if comparison.to is not None:
        columns[f"less row {comparison.to}"] = partial(_percent, key="difference", form="+.1f")
        columns["its 95 % interval"] = partial(_ends, key="difference_ci95", form="+.1f")
        columns["p (Holm)"] = _p_value
    return columns


def settings_in_words(row: Row, fields: Sequence[str]) -> list[str]:
    """The values that the settings of a row have."""
    return [_setting(row, name) for name in fields]


def _setting(row: Row, name: str) -> str:
    """A setting's value; a dash where a setting has not that field, such as of another method."""
    if name not in row["settings"]:
        return NONE
    return plain(row["settings"][name])


def _percent(row: Row, key: str, form: str) -> str:
    """A fraction in percent; a dash where there is none."""
    if row[key] is None:
        return NONE
    return format(100 * row[key], form)


def _ends(row: Row, key: str, form: str) -> str:
    """The ends of an interval of fractions in percent; a dash where there is none."""
    if row[key] is None:
        return NONE
    low, high = row[key]
    return f"{100 * low:{form}} to {100 * high:{form}}"


def _distillations(row: Row) -> str:
    number = row["num_distillations"]
    return ONE if number == 1 else str(number)


def _p_value(row: Row) -> str:
    p = row["p_holm"]
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def table(comparison: Comparison, title: str) -> Table:
    """The table for the terminal, with intervals below what they are of; notes belong below it."""
    columns = _columns(comparison)
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        if _is_words(comparison, place, name):
            shown.add_column(name, min_width=min(len(name), WIDEST))
        elif name not in INTERVALS:
            shown.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    for row in comparison.rows:
        cells: list[str] = []
        for name, cell_of in columns.items():
            text = cell_of(row)
            if name not in INTERVALS:
                cells.append(text)
            elif text != NONE:
                cells[-1] += f"\n({text})"
        shown.add_row(*cells)
    return shown


def _is_words(comparison: Comparison, place: int, name: str) -> bool:
    """Whether a column holds settings or networks, and no results."""
    return 1 <= place <= len(comparison.fields) or name == "network"


def csv_text(comparison: Comparison) -> str:
    """Every field that differs by the name of its flag, and every number, fractions in full."""
    stream = io.StringIO()
    fields = [*comparison.fields, *comparison.said]
    records = [_record(row, fields) for row in comparison.rows]
    writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _record(row: Row, fields: Sequence[str]) -> dict[str, Any]:
    """What a row says, by the names of columns."""
    record = {"row": row["row"]}
    for name in fields:
        record[name] = row["settings"].get(name)
    for name in ("model", *NUMBERS):
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
        words = _is_words(comparison, place, name)
        columns += "l" if words else "r"
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
    notes = list(comparison.notes)
    for row in comparison.rows:
        line = f"row {row['row']}: {', '.join(row['runs'])}"
        if line not in notes:
            notes.append(line)
    return {"head": head(comparison), "rows": lines(comparison), "notes": notes}
