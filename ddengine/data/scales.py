"""Images whose values are not of 8 bits: what is white in them, one number for a whole dataset."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ddengine.system.errors import UserError

# What white can be where a value has more than 8 bits: 1, and the largest of 8, 10, 12, 14 and 16
# bits.
WHITES = (1, 255, 1023, 4095, 16383, 65535)
OPAQUE = 65535  # white on every scale
OVERSHOOT = 0.02  # of white; how far floats may leave its range, as resampling makes them do
WHOLE_NUMBERS, FLOATS = "whole numbers of more than 8 bits", "floats"  # kinds of values, in words

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Wide:
    """An image whose values are not of 8 bits, which need a scale to become pixels."""

    values: np.ndarray  # (H, W), or (H, W, C) of 3 channels, or of 4 with transparency
    kind: str  # in words

    @property
    def transparent(self) -> bool:
        """Whether its fourth channel says what is transparent."""
        return self.values.shape[2:] == (4,)


class NeedsScale(Exception):
    """An image whose values need a scale that is not settled."""


def extremes(values: np.ndarray) -> np.ndarray:
    """(lowest, highest) of the values of an image; what is transparent plays no role."""
    if values.shape[2:] == (4,):
        values = values[..., :3][values[..., 3] > 0]
    if not values.size:
        return np.array([0, 0])
    return np.array([values.min(), values.max()])


def on_ground(image: Image.Image, ground: Colour) -> Image.Image:
    """A transparent image laid over a colour, so that colours which nobody sees play no role."""
    under = Image.new("RGBA", image.size, (*ground, 255))
    laid = Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")
    if image.mode in ("1", "L", "LA", "La") and len(set(ground)) == 1:
        return laid.convert("L")
    return laid


@dataclass(frozen=True)
class _Range:
    """Between which values an image lies."""

    name: str
    low: float
    high: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def _check_finite(kind: str, image: _Range) -> None:
    """Raise UserError for values that are no numbers."""
    if not image.finite:
        raise UserError(f"{image.name} has {kind} that are not finite; repair or remove it.")


@dataclass
class Scales:
    """What is white, of each kind of values that are not of 8 bits.

    It is one number for a dataset, settled by the training images.
    """

    white: dict[str, int] = field(default_factory=dict)
    # images with values beyond black or white, and one such value of each
    cut: dict[str, float] = field(default_factory=dict)

    def settle(self, arrays: list[tuple[str, str, np.ndarray]]) -> list[str]:
        """Choose for the kinds among `arrays`, (kind, name, values) each, that have no scale yet.

        Returns what to say of it. Raises UserError, naming an image, for values that no scale fits.
        """
        ranges: dict[str, list[_Range]] = defaultdict(list)
        for kind, name, array in arrays:
            if kind not in self.white:
                low = float(array.min())
                high = float(array.max())
                ranges[kind].append(_Range(name, low, high))
        notes = []
        for kind, images in ranges.items():
            lowest, highest, white = _white_of(kind, images)
            self.white[kind] = white
            notes.append(
                f"{_images_have(len(images))} {kind}, from {lowest:.4g} to {highest:.4g}: "
                f"{white} is taken as white in the whole dataset"
            )
        return notes

    def applied(
        self,
        image: Image.Image | Wide,
        ground: Colour,
        name: str,
    ) -> Image.Image:
        """An image in mode L or RGB; values are cut where they leave the range.

        Raises NeedsScale for a kind that is not settled.
        """
        if not isinstance(image, Wide):
            return image
        if image.kind not in self.white:
            raise NeedsScale
        white = self.white[image.kind]
        low, high = map(float, extremes(image.values))
        _check_finite(image.kind, _Range(name, low, high))
        if high > white * (1 + OVERSHOOT) or low < -white * OVERSHOOT:
            self.cut[name] = high if high > white else low
        scaled = image.values.astype(np.float64) * (255 / white)
        if image.transparent:
            alpha = image.values[..., 3]
            scaled[..., 3] = alpha * (255 / _opaque_of(alpha))
        levels = np.rint(scaled).clip(0, 255)
        pixels = Image.fromarray(levels.astype(np.uint8))
        if pixels.mode == "RGBA":
            return on_ground(pixels, ground)
        return pixels

    def said(self) -> list[str]:
        """A warning of what was cut; none where nothing was."""
        if not self.cut:
            return []
        name = max(self.cut, key=lambda one: abs(self.cut[one]))
        return [
            f"warning: {_images_have(len(self.cut))} values outside the range of the training "
            f"images, such as {self.cut[name]:.4g} in {name}, which are cut there"
        ]


def _images_have(num: int) -> str:
    if num == 1:
        return "1 image has"
    return f"{num} images have"


def _white_of(kind: str, images: list[_Range]) -> tuple[float, float, int]:
    """(lowest value, highest value, white) of the images of a kind.

    Raises UserError, naming an image, where no white fits.
    """
    for image in images:
        _check_finite(kind, image)
    lowest = min(images, key=lambda image: image.low)
    highest = max(images, key=lambda image: image.high)
    slack = OVERSHOOT if kind == FLOATS else 0.0
    wrong = highest
    for white in WHITES:
        if highest.high <= white * (1 + slack):
            if lowest.low >= -slack * white:
                return lowest.low, highest.high, white
            wrong = lowest
            break
    raise UserError(
        f"{wrong.name} has {kind} from {wrong.low:.4g} to {wrong.high:.4g}, and pixels go from 0 "
        f"to one of {', '.join(map(str, WHITES))}; "
        "save the images of this dataset with 8 bits."
    )


def _opaque_of(alpha: np.ndarray) -> int:
    """What stands for opaque in a fourth channel, which has a white of its own."""
    most = min(alpha.max(), OPAQUE)
    return next(white for white in WHITES[1:] if white >= most)
