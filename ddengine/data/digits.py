"""scikit-learn's digits: 1,797 real 8x8 scans.

They lie inside the wheel, so that everything can be tried without a download.
"""

from typing import Any

import numpy as np

from ddengine.data.source import Source, part_of_array
from ddengine.recipe import DataConfig


def read(config: DataConfig) -> Source:
    """All images, no official test split."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # stored as 0..16
    return Source(part_of_array(pixels, digits.target), None, tuple(map(str, range(10))))
