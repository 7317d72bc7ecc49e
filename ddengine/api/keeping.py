"""The folder that a use of a dataset keeps its results in.

What it needs to go on after a kill lies there until the results do, and only then is it removed.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddengine.api.inputs import AUTO, default_folder
from ddengine.artefact import runs
from ddengine.recipe import Recipe, to_dict
from ddengine.system import claims
from ddengine.types import Json


@contextmanager
def kept_in(
    folder: Path | str | None,
    recipe: Recipe,
    identity: Json,
    *,
    command: str,
    use: str,
    mark: str,
    restart: bool,
) -> Iterator[Path | None]:
    """Within the block the folder is this command's, and says what it is of.

    Args:
        folder: where; AUTO is the one below runs/ that `use`, the recipe's name and the identity
            name; None keeps nothing.
        recipe: what is done.
        identity: what makes two such folders the same, beside the recipe.
        command: what works there, in words of the command line.
        use: what AUTO calls it.
        mark: name of the file that says what the folder is of.
        restart: delete first what the folder holds.

    Raises:
        UserError: where another command works there, or the folder is of something else.
    """
    path = None if folder is None else Path(folder)
    if folder == AUTO:
        path = default_folder(f"{use}-{recipe.name}", identity)
    with claims.claimed(path, command):
        if path is not None:
            if restart:
                runs.delete(path, mark)
            runs.claim(path, mark, {"recipe": to_dict(recipe), **identity})
        yield path


def forget(*unfinished: Path) -> None:
    """Remove files and folders that kept the work going on, once its results are written."""
    for path in unfinished:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
