"""A table of the terminal as HTML, which a notebook shows in its own style and colours."""

from collections.abc import Iterable, Sequence
from html import escape

from rich.table import Column, Table
from rich.text import Text

TABLE = '<table><caption style="text-align: left">{caption}</caption>{rows}</table>'
NOTE = "<p>{note}</p>"


def html_table(table: Table, notes: Sequence[str] = ()) -> str:
    """The table with its title as caption, and a paragraph for each note below it."""
    heads, lines = cells_of(table)
    rows = [_row("th", heads, table.columns)]
    for line in lines:
        rows.append(_row("td", line, table.columns))
    title = "" if table.title is None else _plain(table.title)
    shown = TABLE.format(caption=escape(title), rows="".join(rows))
    return shown + "".join(NOTE.format(note=escape(note)) for note in notes)


def cells_of(table: Table) -> tuple[list[str], list[tuple[str, ...]]]:
    """(the heads of the columns, the cells of each line), without the marks of rich for colours."""
    heads = []
    columns = []
    for column in table.columns:
        heads.append(_plain(column.header))
        columns.append(list(map(_plain, column.cells)))
    return heads, list(zip(*columns, strict=True))


def _row(tag: str, cells: Iterable[str], columns: Sequence[Column]) -> str:
    """A line of cells, each to the side that its column says."""
    shown = []
    for cell, column in zip(cells, columns, strict=True):
        side = "right" if column.justify == "right" else "left"
        shown.append(f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>')
    return f"<tr>{''.join(shown)}</tr>"


def _plain(cell: object) -> str:
    """What stands in a cell, without the marks of rich for colours."""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
