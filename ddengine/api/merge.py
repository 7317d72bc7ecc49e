"""Several sets as one."""

from collections.abc import Sequence
from pathlib import Path

from ddengine.api.results import Distilled, path_of
from ddengine.artefact import folder as folders
from ddengine.artefact import merging
from ddengine.system import files, log
from ddengine.system.errors import UserError


def merge(
    sets: Sequence[Distilled | Path | str],
    folder: Path | str | None = None,
    *,
    progress: log.Progress = True,
) -> Distilled:
    """Sets of some classes each, or of the same classes, as one; classes are matched by name.

        both = ddengine.merge(["runs/animals", "runs/vehicles"], "sets/both")

    Args:
        sets: folders of runs or of distilled sets, or sets that lie in one.
        folder: a new folder to write; None: the set stays in memory.
        progress: as `distill` takes it.

    Raises:
        UserError: sets that do not belong together, a folder that is there.
    """
    where = None if folder is None else Path(folder)
    if where is not None and where.exists() and (where.is_file() or any(where.iterdir())):
        raise UserError(f"{where} exists already; name another folder with --out.")
    with log.shown(progress):
        paths = [path_of(of) if isinstance(of, Distilled) else Path(of) for of in sets]
        merged = merging.merge_folders(paths)
        if where is not None:
            files.make_folder(where.parent)
            folders.save(merged.syn, where, merged.meta)
    return Distilled(merged.syn, merged.meta, where)
