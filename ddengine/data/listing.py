"""The image files below a folder, without what operating systems and editors leave there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jfif",
    ".jpe",
}
# What Pillow can recognise by content and decode without another program; others it recognises it
# cannot always decode.
FORMATS = ("PNG", "JPEG", "MPO", "JPEG2000", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "AVIF")
# beside all hidden ones
NOT_DATA = {
    "@eaDir",
    "__MACOSX",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
}


def is_data(name: str) -> bool:
    """Whether a file or folder of this name can belong to a dataset."""
    return not name.startswith(".") and name not in NOT_DATA


@dataclass
class LeftOut:
    """Files that are no images, of a whole dataset."""

    paths: list[Path] = field(default_factory=list)

    def said(self, root: Path) -> list[str]:
        """A sentence about them; none without any."""
        if not self.paths:
            return []
        named = ", ".join(os.path.relpath(path, root) for path in self.paths[:3])
        files = f"{len(self.paths)} files that are no images were"
        if len(self.paths) == 1:
            files = "1 file that is no image was"
        more = ", ..." if len(self.paths) > 3 else ""
        return [f"{files} left out ({named}{more})"]


def files_below(folder: str | Path) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a regular file) of everything below a folder but folders.

    It is sorted by name within each folder, at any depth. What `is_data` refuses is left out with
    all below it. Links to files are followed, links to folders are not. Paths are text: of a
    million files Path objects take their time, and the kind of each is read from the folder rather
    than asked for.
    """
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if not is_data(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(entry.path)
        elif not entry.is_dir():
            yield entry.path, entry.is_file()


def images_below(folder: str | Path, left_out: LeftOut) -> list[Path]:
    """The images below a folder, sorted.

    They are files with the suffix of one, and of the others those that are images by content. What
    is none is added to `left_out`. Pipes and sockets are never opened.
    """
    images = []
    for path, regular in files_below(folder):
        if regular and (has_suffix(path) or _is_image(path)):
            images.append(Path(path))
        else:
            left_out.paths.append(Path(path))
    return sorted(images)


def has_suffix(path: str) -> bool:
    """Whether a file is named as an image."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _is_image(path: str) -> bool:
    """Whether the first bytes of a file are those of an image."""
    Image.init()  # Pillow knows most formats only then
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(path, formats=known):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that can belong to a dataset, and links to such, sorted."""
    inner = []
    for path in folder.iterdir():
        if is_data(path.name) and path.is_dir() and not _leads_back(path, folder):
            inner.append(path)
    return sorted(inner)


def _leads_back(path: Path, folder: Path) -> bool:
    """Whether a path is a link to the folder it lies in, or to one above: a loop."""
    return path.is_symlink() and folder.resolve().is_relative_to(path.resolve())


def has_images(folder: Path) -> bool:
    """Whether images lie in a folder itself, not only below it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_data(entry.name) and entry.is_file() and has_suffix(entry.name):
                return True
    return False
