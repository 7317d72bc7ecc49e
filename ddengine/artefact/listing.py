"""What a set or an export has written beside its tensors, with the digest of every file.

That is pictures, cards, tars, parquet and load.py.

Such files cannot say a digest of themselves. The list is hidden, `.digests.json`, so that programs
that read the folder as one of images pass over it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ddengine import contents
from ddengine.system import digests, files
from ddengine.system.errors import UserError

LISTING = ".digests.json"
AGAIN = "restore it, or make the set or its export again"
BLOCK = 2**20  # bytes that are read at a time


def write(folder: Path, written: Sequence[Path]) -> None:
    """Add files below a folder to its list; of folders all that they hold."""
    path = folder / LISTING
    listed = _listed(path) if path.is_file() else {}
    for one in written:
        for file in _files(one):
            if file != path and file.name != files.LOCK:
                listed[file.relative_to(folder).as_posix()] = _digest(file)
    files.write_json(path, {"files": listed})


def wrong(path: Path) -> Iterator[tuple[Path, str | None]]:
    """Each file of a list, and what is wrong with it in a sentence; None where it is sound.

    Raises UserError for a list that cannot be read.
    """
    for name, digest in _listed(path).items():
        file = path.parent / name
        if not _lies_below(path.parent, name):
            raise UserError(f"{path} lists {name!r}, which lies elsewhere; {AGAIN}.")
        if not file.is_file():
            yield file, f"{file} is missing; {AGAIN}."
        elif _digest(file) != digest:
            yield file, f"{file} is not as it was written; {AGAIN}."
        else:
            yield file, None


def _lies_below(folder: Path, name: str) -> bool:
    """Whether a name, which a stranger may have written, is that of a file below a folder."""
    if "\0" in name:
        return False
    return files.without_links(folder / name).is_relative_to(files.without_links(folder))


def _listed(path: Path) -> dict[str, str]:
    """The digests by the names of files. Raises UserError for a list that cannot be read."""
    return dict(contents.checked(path, files.read_json(path))["files"])


def _files(path: Path) -> Iterator[Path]:
    """A file, or those below a folder."""
    if path.is_file():
        yield path
    else:
        yield from sorted(below for below in path.rglob("*") if below.is_file())


def _digest(path: Path) -> str:
    """That of the bytes of a file. Raises UserError where it cannot be read."""
    state = digests.running()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                state.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    return state.hexdigest()
