"""MNIST and Fashion-MNIST as gzip IDX files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from ddengine.data.source import Part, part_of_array
from ddengine.system.errors import UserError


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes (LeCun's format: two zero bytes, type 8, number of dimensions,
    big-endian sizes, values).
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a gzip IDX file ({error}); install the dataset again."
        ) from None
    dims = content[3] if len(content) > 3 else 0
    shape = (
        np.frombuffer(content, ">i4", dims, 4) if len(content) >= 4 + 4 * dims else np.empty(0, int)
    )
    if content[:3] != b"\0\0\x08" or len(content) != 4 + 4 * dims + int(np.prod(shape)):
        raise UserError(f"{path} is not a complete IDX file of bytes; install the dataset again.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def find_idx(folder: Path) -> tuple[Part, Part] | None:
    """(train, test) of a folder with the four files, None when they are not there."""
    names = [
        f"{split}-{kind}.gz"
        for split in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    if not all((folder / name).is_file() for name in names):
        return None
    images, labels, test_images, test_labels = (read_idx(folder / name) for name in names)
    for some, of, at in ((images, labels, 0), (test_images, test_labels, 2)):
        if some.ndim != 3 or of.ndim != 1 or len(some) != len(of):
            raise UserError(
                f"{folder / names[at]} and {names[at + 1]} hold {len(some)} images and {len(of)} "
                "labels that do not fit; install the dataset again."
            )
    return part_of_array(images[:, None], labels), part_of_array(test_images[:, None], test_labels)
