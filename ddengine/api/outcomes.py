"""What comes of an evaluation, scores, a ranking: rows that print themselves."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ddengine.pages.html_table import html_table
from ddengine.system.errors import UserError

WIDTH = 120  # columns of a table that is printed as text


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """Numbers, and the table that shows them.

    Printing it prints the table, a notebook shows it, its repr is a line. `rows` are plain
    dictionaries and `to_pandas()` makes a DataFrame of them. `content` is what the JSON file of the
    command holds.
    """

    content: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    table: Callable[[], Table]
    notes: tuple[str, ...] = ()  # what to know beside the table
    folder: Path | None = None  # where it was written; None: nowhere
    title: str = ""  # of the table

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame. Raises UserError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError(
                "to_pandas needs the package pandas, which is not installed; pip install pandas."
            ) from None
        return pandas.DataFrame([dict(row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        """What it is of, how many rows it has, and where it was written."""
        rows = "1 row" if len(self) == 1 else f"{len(self)} rows"
        where = "" if self.folder is None else f", in {self.folder}"
        return f"Outcome({self.table().title}: {rows}{where})"

    def __str__(self) -> str:
        """The table as text."""
        stream = io.StringIO()
        console = Console(file=stream, width=WIDTH, highlight=False, force_jupyter=False)
        console.print(self.table())
        for note in self.notes:
            console.print(note, markup=False)
        return stream.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        """The table and its notes as a notebook shows them."""
        return html_table(self.table(), self.notes)
