"""Whether files are those that were written."""

from functools import partial
from pathlib import Path

from rich.table import Table

from ddengine.api.outcomes import Outcome
from ddengine.artefact import verify as checking
from ddengine.artefact.verify import Checked


def verify(path: Path | str) -> Outcome:
    """Compare all files of a folder with the digests that they, and files beside them, say.

        for row in ddengine.verify("runs/mine").rows:
            print(row["file"], row["state"])

    Args:
        path: a file, or the folder of a store, a run, a set, or of several; all below is checked.

    Returns:
        A row for each file: `file`, `state` ("sound", "says no digest", or a sentence of what is
        wrong) and `damaged`. Damaged and missing experts of a store are trained again, alone and
        with the same numbers, by the buffer command that made it.

    Raises:
        UserError: a path with nothing to check.
    """
    checked = checking.verify(Path(path))
    rows = []
    for one in checked:
        rows.append({"file": str(one.path), "state": one.state, "damaged": one.is_damaged})
    without = sum(one.state == checking.WITHOUT for one in checked)
    notes: tuple[str, ...] = ()
    if without:
        notes = (f"{without} files say no digest, so damage in them would not be noticed",)
    title = f"{len(checked)} files of {path}"
    return Outcome({"files": rows}, rows, partial(_table, checked, title), notes, None, title)


def _table(checked: list[Checked], title: str) -> Table:
    """The files that are not sound, or that all are."""
    table = Table(title=title)
    table.add_column("file", overflow="fold")
    table.add_column("state", overflow="fold")
    others = [one for one in checked if one.state != checking.SOUND]
    for one in others:
        table.add_row(str(one.path), one.state)
    if len(others) < len(checked):
        table.add_row(f"{'all' if not others else 'all others'}", checking.SOUND)
    return table
