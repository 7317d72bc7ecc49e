"""scikit-learn's digits: 1,797 real 8x8 scans.

They lie inside the wheel, so that everything can be tried without a download.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ddengine.data.source import Source, part_of_array
from ddengine.recipe import DataConfig


def read(config: DataConfig) -> Source:
    """All images, no official test split."""
    rows = _rows()
    pixels = np.round(rows[:, :64] * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = rows[:, 64].astype(np.int64)
    return Source(part_of_array(pixels.reshape(-1, 1, 8, 8), labels), None, tuple("0123456789"))


def _rows() -> np.ndarray:
    """(1797, 65): the pixels of every scan, and its digit.

    The file is read as it lies in the wheel, because to import the library takes a second.
    """
    found = find_spec("sklearn")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt", encoding="ascii") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # where the file lies elsewhere

    bunch: Any = load_digits()
    return np.column_stack([bunch.data, bunch.target])
