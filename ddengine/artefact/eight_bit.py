"""The decoded examples of a set as PNG files, pixels of 8 bits, and how files are named.

All formats but data.safetensors hold these; `Exported` says how far they are from the exact values.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddengine.sets.codec import as_bytes
from ddengine.sets.synthetic import SyntheticSet

AT_ONCE = 2**24  # pixel values that are decoded at a time
LONGEST_NAME = 60  # characters of a class name in the name of a folder


@dataclass(frozen=True)
class Exported:
    """The decoded examples of a set in 8 bits."""

    pngs: list[bytes]  # N files
    classes: list[int]  # N
    # fraction of the pixel values that lie outside [0, 1] by more than half a step, so were clamped
    clamped: float
    largest_error: float  # of any pixel value in [0, 1]-units, clamping included

    @property
    def exact(self) -> bool:
        """Whether 8 bits hold everything, up to float rounding."""
        return self.largest_error < 1e-5


def exported(syn: SyntheticSet) -> Exported:
    """All N decoded examples as PNG files.

    A part at a time is decoded, so that memory holds the files and little else.
    """
    pngs: list[bytes] = []
    outside = 0
    values = 0
    error = 0.0
    at_once = max(1, AT_ONCE // math.prod(syn.image_shape))
    for index in torch.arange(len(syn)).split(at_once):
        pixels = syn.pixels(index).float()
        stored = as_bytes(pixels)
        distance = (pixels - stored.float() / 255).abs()
        outside += int((distance > 0.501 / 255).sum())
        values += pixels.numel()
        error = max(error, float(distance.max()))
        pngs += map(png, stored.cpu())
    classes = syn.classes[syn.source].tolist()
    clamped = outside / max(1, values)
    return Exported(pngs, classes, clamped, error)


def png(image: Tensor) -> bytes:
    """The PNG file of an image (C, H, W) uint8 with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    array = image.cpu().permute(1, 2, 0).numpy()
    if array.shape[2] == 1:
        array = array[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(array))
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def example_targets(syn: SyntheticSet) -> Tensor | None:
    """Soft labels (N, K) or features (N, D), float32, of the decoded examples.

    None for a set with classes, or with another number of labels, which `load` refuses.
    """
    values = syn.targets.values(syn.tensors, len(syn.class_names))
    if values is None:
        return None
    of_decoded = syn.label_of == "decoded"
    wanted = len(syn) if of_decoded else len(syn.classes)
    if len(values) != wanted:
        return None
    if not of_decoded:
        values = values[syn.source]
    return values.detach().float().cpu()


# Names


def padded(number: int, num: int, least: int) -> str:
    """A number of 0 to num - 1 with leading zeros, so that names sort like their numbers.

    It gets as many digits as the last number has, and at least `least`.
    """
    last = str(num - 1)
    return str(number).zfill(max(least, len(last)))


def class_folder(class_names: Sequence[str], label: int) -> str:
    """The folder name of a class: its number, and what of its name is safe in a path.

    Folders sort by the numbers.
    """
    number = padded(label, len(class_names), 4)
    safe = ""
    for letter in class_names[label]:
        safe += letter if letter.isalnum() or letter in "-_" else "_"
    return f"{number}_{safe[:LONGEST_NAME]}"


def example_name(i: int, num: int) -> str:
    """The name of example i of `num` in files, without a suffix.

    It is the number, in six digits or as many as it takes.
    """
    return padded(i, num, 6)
