"""The folder that a use of a dataset or of a set keeps its results in."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddengine import contents, naming
from ddengine.api.checks import check_folder
from ddengine.api.inputs import AUTO, default_folder
from ddengine.api.results import Distilled
from ddengine.artefact import runs
from ddengine.recipe import Recipe
from ddengine.system import claims, files, log, program
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
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
            files.clean_below(path)
        yield path


@contextmanager
def kept_beside(
    of: Distilled, folder: Path | str | None, command: str, *, told: bool = True
) -> Iterator[Path | None]:
    """Within the block a folder is this command's: the given one, else that of the set's run.

    A set in memory has none, so nothing is kept. Raises UserError where another command works
    there.

    Args:
        of: the set that is used.
        folder: where; None: as above.
        command: what works there, in words of the command line.
        told: whether what is asked for can be told from anything else; what cannot, such as a
            function of the user, is kept only in a folder that is given.
    """
    path = of.run if told else None
    if folder is not None:
        path = Path(folder)
    with claims.claimed(path, command):
        yield path


def content_of(
    folder: Path | None,
    name: str,
    make: Callable[[Path], Mapping[str, Any]],
    *,
    keys: Sequence[str] = ("rows", "identity"),
    identity: str | None = None,
    restart: bool = False,
    command: Sequence[str] = (),
    unfinished: Sequence[Path | str] = (),
) -> Mapping[str, Any]:
    """The content of the file that a use writes, made where it is not there.

    Args:
        folder: where the file lies; None keeps nothing.
        name: of the file, such as prune.json.
        make: makes the content; it is given the folder in which finished work may be remembered.
        keys: what the file must hold.
        identity: what the file must say that it is of; None: the folder says it.
        restart: make it anew although the file is there.
        command: the words by which a command line asked for it.
        unfinished: names of files and folders in `folder` by which `make` goes on after a kill;
            they are removed once the content is written.

    Raises:
        UserError: a file of another identity, or one that cannot be read.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ddengine-") as temporary:
            return make(Path(temporary))
    file = folder / name
    if file.is_file() and not restart:
        content = contents.read_json(file, *keys)
        _check_identity(file, content, identity)
        _forget(folder, unfinished)  # a kill may have left them
        log.say(f"{file} is there; --restart begins anew")
        return content
    files.make_folder(folder)
    content = {"format": naming.FORMAT, **make(folder)}
    if command:
        content["command"] = [*program.stored(), *command]
    files.write_json(file, content)
    _forget(folder, unfinished)
    return content


def _forget(folder: Path, names: Sequence[Path | str]) -> None:
    """Remove files and folders."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_identity(file: Path, content: Mapping[str, Any], identity: str | None) -> None:
    """Raise UserError where a file says that it is of something else."""
    if identity is not None and content["identity"] != identity:
        raise UserError(
            f"{file} was made with other settings, images or experts; begin anew with "
            "--restart, or name another folder with --out."
        )


@contextmanager
def new_folder(folder: Any, command: str) -> Iterator[Path | None]:
    """A folder that a command writes a set into, claimed for it; None where nothing is kept.

    Raises UserError for what is no folder, and one that holds something, also where another command
    has written it while it was waited for.
    """
    check_folder(folder)
    place = None if folder is None else Path(folder)
    if place is None:
        yield None
        return
    files.refuse_full(place)
    with claims.claimed(place, command):
        files.refuse_full(place)
        yield place
