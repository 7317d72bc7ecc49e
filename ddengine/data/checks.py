"""Warnings of images that were read and look as if something were wrong with them."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddengine.data.preprocess import pieces
from ddengine.data.splits import listed

DIGEST = 16  # bytes of what identifies an image


def untested(
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    names: tuple[str, ...],
) -> list[str]:
    """A warning that names the classes without a test image; none where nothing is tested."""
    if len(test_labels) == 0:
        return []
    num_train = np.bincount(train_labels, minlength=len(names))
    num_test = np.bincount(test_labels, minlength=len(names))
    missing = []
    for c in np.flatnonzero(num_test == 0):
        missing.append(f"{names[c]!r} (training images: {num_train[c]})")
    if not missing:
        return []
    return [
        f"warning: there is no test image of class {listed(missing)}, so test accuracies say "
        "nothing about it"
    ]


@dataclass(frozen=True)
class Looks:
    """What the warnings need to know of each image of a split."""

    flat: np.ndarray  # (N,) bool: whether it has one value in each channel
    digests: np.ndarray  # (N, DIGEST) uint8: what identifies it

    def part(self, images: slice) -> "Looks":
        """Those of some of the images."""
        return Looks(self.flat[images], self.digests[images])


def looks_of(pixels: Tensor) -> Looks:
    """That of images (N, C, H, W) uint8."""
    digests = b"".join(image_digests(pixels))
    return Looks(_is_flat(pixels), np.frombuffer(digests, np.uint8).reshape(-1, DIGEST))


def constant(
    looks: Mapping[str, Looks],
    train_labels: np.ndarray,
    names: tuple[str, ...],
) -> list[str]:
    """Warnings of splits, and classes of the training split, whose images all have one value each.

    Args:
        looks: of the images of each split, by its name; of them "training".
        train_labels: (N,) of the training split.
        names: of the classes.
    """
    splits = []
    for split, look in looks.items():
        if len(look.flat) and look.flat.all():
            splits.append(split)
    if splits:
        return [
            f"warning: every image of the {listed(splits)} split is of a single colour; look at "
            "the files"
        ]
    classes = []
    for c in np.unique(train_labels):
        if looks["training"].flat[train_labels == c].all():
            classes.append(repr(names[c]))
    if not classes:
        return []
    return [
        f"warning: every training image of class {listed(classes)} is of a "
        "single colour; look at the files"
    ]


def _is_flat(images: Tensor) -> np.ndarray:
    """(N,) bool: whether an image (N, C, H, W) has one value in each channel."""
    if not len(images):
        return np.zeros(0, bool)
    flat = []
    for piece in pieces(images):
        values = piece.flatten(2)
        flat.append((values.amax(2) == values.amin(2)).all(1))
    return torch.cat(flat).numpy()


def image_digests(images: Tensor) -> list[bytes]:
    """What identifies each of the images (N, C, H, W) uint8."""
    digests = []
    for image in images.cpu().numpy():
        digests.append(hashlib.blake2b(image.tobytes(), digest_size=DIGEST).digest())
    return digests


def repeated(looks: Mapping[str, Looks]) -> list[str]:
    """Warnings that count the images of a split that are, pixel for pixel, images of one before it.

    `looks` are those of the images of each split, by its name.
    """
    first_split: dict[bytes, str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for split, look in looks.items():
        for digest in map(bytes, look.digests):
            first = first_split.setdefault(digest, split)
            if first != split:
                counts[first, split] += 1
    warnings = []
    for (first, later), num in counts.items():
        some = "1 image" if num == 1 else f"{num} images"
        verb = "is" if num == 1 else "are"
        warnings.append(
            f"warning: {some} of the {later} split {verb} in the {first} split too, pixel for pixel"
        )
    return warnings
