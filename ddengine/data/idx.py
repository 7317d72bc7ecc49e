"""MNIST and Fashion-MNIST as gzip IDX files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from ddengine.data.source import Part, part_of_array
from ddengine.system.errors import UserError

SPLITS = ("train", "t10k")
IMAGES = "images-idx3-ubyte"
LABELS = "labels-idx1-ubyte"
BYTES = b"\0\0\x08"  # what a file of bytes begins with
HEAD = 4  # bytes before the sizes; the last is their number


def read_idx(path: Path) -> np.ndarray:
    """The values of an IDX file of bytes.

    The format is LeCun's: two zero bytes, type 8, number of dimensions, big-endian sizes, values.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a gzip IDX file ({error}); install the dataset again."
        ) from None
    shape = _shape(content)
    head = HEAD + 4 * len(shape)  # sizes are numbers of 4 bytes
    if content[:3] != BYTES or len(content) != head + int(np.prod(shape)):
        raise UserError(f"{path} is not a complete IDX file of bytes; install the dataset again.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _shape(content: bytes) -> np.ndarray:
    """The sizes that an IDX file says; none where it is too short for them."""
    if len(content) < HEAD:
        return np.empty(0, int)
    num_dims = content[3]
    if len(content) < HEAD + 4 * num_dims:
        return np.empty(0, int)
    return np.frombuffer(content, ">i4", num_dims, HEAD)


def find_idx(folder: Path) -> tuple[Part, Part] | None:
    """(train, test) of a folder with the four files, None when they are not there."""
    for split in SPLITS:
        for kind in (IMAGES, LABELS):
            if not (folder / f"{split}-{kind}.gz").is_file():
                return None
    train, test = SPLITS
    return _part(folder, train), _part(folder, test)


def _part(folder: Path, split: str) -> Part:
    """The images and labels of a split. Raises UserError where they do not fit."""
    of_images = f"{split}-{IMAGES}.gz"
    of_labels = f"{split}-{LABELS}.gz"
    images = read_idx(folder / of_images)
    labels = read_idx(folder / of_labels)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"{folder / of_images} and {of_labels} hold {len(images)} images and {len(labels)} "
            "labels that do not fit; install the dataset again."
        )
    return part_of_array(images[:, None], labels)
