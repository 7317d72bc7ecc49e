"""Decoding of image files and bytes into 8-bit pixels: one ground, one scale and one form for all
images of a dataset.
"""

import io
import math
import os
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageFile, ImageOps, TiffImagePlugin

from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

CHUNK = 64  # images a thread takes at a time
THREADS = 8  # at most

ORIENTATION = 0x0112  # the tag of EXIF
SAMPLE = 1000  # images at most whose sizes are looked at to suggest one for all
LARGEST = 64  # pixels; the longest side suggested, which distillation on one machine can afford

# of Pillow, on files that are no images
FAILURES = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

# What white can be where a value has more than 8 bits: 1, and the largest of 8, 10, 12, 14 and 16
# bits.
WHITES = (1, 255, 1023, 4095, 16383, 65535)
OVERSHOOT = 0.02  # of white; how far floats may leave its range, as resampling makes them do

Stored = Path | bytes  # a file, or its content


class Unreadable(UserError):
    """A file that is no image, or a broken one."""

    def __init__(self, name: str, reason: Exception | str):
        """`reason`: Pillow's, or why nothing can be read at all."""
        super().__init__(f"{name} cannot be read as an image ({reason}); repair or remove it.")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Wide:
    """An image whose values are not of 8 bits, which need a scale to become pixels."""

    values: np.ndarray  # (H, W), or (H, W, C) of 3 channels, or of 4 with transparency
    kind: str  # in words


WHOLE, FLOATS = "whole numbers of more than 8 bits", "floats"


def open_image(
    source: Stored,
    name: str,
    *,
    upright: bool = False,
    ground: tuple[int, int, int] = (255, 255, 255),
    on_several: Callable[[str], None] = lambda name: None,
) -> Image.Image | Wide:
    """The first frame of an image: in mode L or RGB, or with values that need a scale.

    What is transparent shows `ground`. `name` is said in the error for an image that cannot be
    read, and to `on_several` where there are more frames or pages. `upright`: turned as its EXIF
    orientation says, as photographs of telephones need; published sets are read without, as their
    papers did.
    """
    with _reading(source, name) as image:
        if _has_more(image):  # to be asked before the pixels are read, as is how they are stored
            on_several(name)
        deep = any(mode.startswith(DEEP) for mode in _raw_modes(image))
        if any(mode.startswith("LA;16") for mode in _raw_modes(image)):
            raise UserError(
                f"{name} has grey values of 16 bits with transparency, of which Pillow reads 8; "
                "save the images of this dataset with 8 bits."
            )
        image.load()
    low = _low_bytes(source, name) if deep else None
    turn = _turn_of(image) if upright else None
    if turn is not None:
        image, low = image.transpose(turn), low and low.transpose(turn)
    if low is not None:
        return Wide(
            _keyed(np.asarray(image).astype(np.uint16) * 256 + np.asarray(low), image), WHOLE
        )
    return plain(image, ground)


def plain(image: Image.Image, ground: tuple[int, int, int] = (255, 255, 255)) -> Image.Image | Wide:
    """A loaded image in mode L or RGB, on `ground` where it is transparent, or with values that
    need a scale.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Wide(_keyed(np.asarray(image), image), FLOATS if image.mode == "F" else WHOLE)
    if image.has_transparency_data:
        return _on_ground(image, ground)
    return image.convert("L" if image.mode == "1" else "RGB")


def _keyed(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Values with a fourth channel, which says what is transparent, where an image has a
    transparent colour.
    """
    key = image.info.get("transparency")
    if not isinstance(key, int | tuple) or values.shape[-1:] == (4,):
        return values
    colour = values if values.ndim == 3 else np.dstack([values] * 3)
    hidden = (colour == np.asarray(key)).all(2)
    return np.dstack([colour, np.where(hidden, 0, OPAQUE)])


OPAQUE = 65535  # white on every scale
DEEP = ("RGB;16", "RGBA;16")  # raw modes of 16 bits a channel
# the raw mode that takes the other byte
LOW = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    """How the pixels of a file that is not loaded yet are stored, tile by tile; empty text where
    Pillow does not say.
    """
    first = [
        tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
        for tile in getattr(image, "tile", [])
    ]
    return [mode if isinstance(mode, str) else "" for mode in first]


def _low_bytes(source: Stored, name: str) -> Image.Image:
    """The low bytes of an image in colour with 16 bits a channel, of which Pillow reads the high
    ones.

    Read with the bytes in the other order, what is the low byte is taken for the high one.
    """
    with _reading(source, name) as image:
        swapped = []
        for tile, mode in zip(image.tile, _raw_modes(image), strict=True):
            other = mode[:-3] + LOW[mode[-3:]]
            swapped.append(
                tile._replace(
                    args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other
                )
            )
        image.tile = swapped
        image.load()
        return image


def _on_ground(image: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    """A transparent image laid over a colour, so that colours which nobody sees play no role."""
    laid = Image.alpha_composite(
        Image.new("RGBA", image.size, (*ground, 255)), image.convert("RGBA")
    ).convert("RGB")
    grey = image.mode in ("1", "L", "LA", "La") and len(set(ground)) == 1
    return laid.convert("L") if grey else laid


@contextmanager
def _reading(source: Stored, name: str) -> Iterator[ImageFile.ImageFile]:
    """A file whose head has been read. Raises Unreadable for what goes wrong in the block, too."""
    try:
        yield Image.open(source if isinstance(source, Path) else io.BytesIO(source))
    except FAILURES as error:
        raise Unreadable(name, _tiff_of(source) or error) from None


def _tiff_of(source: Stored) -> str | None:
    """What values a TIFF holds that Pillow cannot read, in words; None for another file."""
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            head = file.read(8)
            if head[:4] not in (b"II*\0", b"MM\0*"):
                return None
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
            bits, kinds = directory.get(BITS, (1,)), directory.get(SAMPLES, (1,))
    except (*FAILURES, struct.error, KeyError, TypeError, IndexError):
        return None
    kind = {1: "whole numbers", 2: "whole numbers", 3: "floats"}.get(kinds[0], "values")
    channels = f" in {len(bits)} channels" if len(bits) > 1 else ""
    return f"a TIFF of {kind} of {bits[0]} bits{channels}, of a kind or compression that Pillow does not read, or damaged"


# the tags of TIFF that say how many bits a value has, and of what kind it is
BITS, SAMPLES = 258, 339


def _check(source: Stored, name: str) -> None:
    """Raise Unreadable for a broken file; a JPEG is looked at with an eighth of its sides, which
    finds what is broken sooner.
    """
    with _reading(source, name) as image:
        image.draft("RGB", (1, 1))
        image.load()


def _has_more(image: Image.Image) -> bool:
    """Whether an image has several frames or pages.

    The second picture in a telephone's file (MPO) is no frame of it.
    """
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except (*FAILURES, EOFError):  # the first frame is good all the same
        return False


def _orientation(image: Image.Image) -> int:
    """1 to 8, 1 where there is none that can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*FAILURES, KeyError, TypeError, struct.error):  # the pixels are good all the same
        return 1
    return found if found in range(1, 9) else 1


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What sets an image upright."""
    return TURNS.get(_orientation(image))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Values that are not of 8 bits


class NeedsColour(Exception):
    """An image in colour among what was taken for grey images."""


class NeedsScale(Exception):
    """An image whose values need a scale that is not settled."""


@dataclass
class Scales:
    """What is white, of each kind of values that are not of 8 bits: one number for a dataset,
    settled by the training images.
    """

    white: dict[str, int] = field(default_factory=dict)
    # images with values beyond black or white, and one such value of each
    cut: dict[str, float] = field(default_factory=dict)

    def settle(self, arrays: list[tuple[str, str, np.ndarray]]) -> list[str]:
        """Choose for the kinds among `arrays`, (kind, name, values) each, that have no scale yet;
        returns what to say of it.

        Raises UserError, naming an image, for values that no scale fits.
        """
        kinds: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
        for kind, name, array in arrays:
            if kind not in self.white:
                kinds[kind].append((name, float(array.min()), float(array.max())))
        said = []
        for kind, ranges in kinds.items():
            for name, low, high in ranges:
                if not (math.isfinite(low) and math.isfinite(high)):
                    raise UserError(f"{name} has {kind} that are not finite; repair or remove it.")
            lowest, highest = (
                min(ranges, key=lambda one: one[1]),
                max(ranges, key=lambda one: one[2]),
            )
            slack = OVERSHOOT if kind == "floats" else 0.0
            white = next((white for white in WHITES if highest[2] <= white * (1 + slack)), None)
            if white is None or lowest[1] < -slack * white:
                name, low, high = highest if white is None else lowest
                raise UserError(
                    f"{name} has {kind} from {low:.4g} to {high:.4g}, and pixels go from 0 to one "
                    f"of {', '.join(map(str, WHITES))}; "
                    "save the images of this dataset with 8 bits."
                )
            self.white[kind] = white
            images = "1 image has" if len(ranges) == 1 else f"{len(ranges)} images have"
            said.append(
                f"{images} {kind}, from {lowest[1]:.4g} to {highest[2]:.4g}: {white} is taken as "
                "white in the whole dataset"
            )
        return said

    def applied(
        self, image: Image.Image | Wide, ground: tuple[int, int, int], name: str
    ) -> Image.Image:
        """An image in mode L or RGB; values are cut where they leave the range.

        Raises NeedsScale for a kind that is not settled.
        """
        if not isinstance(image, Wide):
            return image
        if image.kind not in self.white:
            raise NeedsScale
        white, (low, high) = self.white[image.kind], map(float, extremes(image.values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"{name} has {image.kind} that are not finite; repair or remove it.")
        if high > white * (1 + OVERSHOOT) or low < -white * OVERSHOOT:
            self.cut[name] = high if high > white else low
        scaled = image.values.astype(np.float64) * (255 / white)
        if image.values.shape[2:] == (4,):  # what is opaque has a white of its own
            alpha = image.values[..., 3]
            scaled[..., 3] = alpha * (
                255 / next(most for most in WHITES[1:] if most >= min(alpha.max(), OPAQUE))
            )
        pixels = Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
        return _on_ground(pixels, ground) if pixels.mode == "RGBA" else pixels

    def said(self) -> list[str]:
        """A warning of what was cut; none where nothing was."""
        if not self.cut:
            return []
        name = max(self.cut, key=lambda one: abs(self.cut[one]))
        images = "1 image has" if len(self.cut) == 1 else f"{len(self.cut)} images have"
        return [
            f"warning: {images} values outside the range of the training images, such as "
            f"{self.cut[name]:.4g} in {name}, which are cut there"
        ]


def extremes(values: np.ndarray) -> np.ndarray:
    """(lowest, highest) of the values of an image; what is transparent plays no role."""
    seen = (
        values[..., :3][values[..., 3] > 0] if values.ndim == 3 and values.shape[2] == 4 else values
    )
    return np.array([seen.min(), seen.max()] if seen.size else [0, 0])


# Many images


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))


def in_form(
    image: Image.Image, size: tuple[int, int], fit: str, ground: tuple[int, int, int]
) -> Image.Image:
    """An image in mode L or RGB at `size` (height, width): squashed, cropped around its middle, or
    padded with `ground`.
    """
    wanted = (size[1], size[0])
    if image.size == wanted:
        return image
    if fit == "crop":
        return ImageOps.fit(image, wanted, Image.Resampling.BILINEAR)
    if fit == "pad":
        if image.mode == "L" and len(set(ground)) > 1:
            image = image.convert("RGB")
        return ImageOps.pad(
            image,
            wanted,
            Image.Resampling.BILINEAR,
            color=ground[0] if image.mode == "L" else ground,
        )
    return image.resize(wanted, Image.Resampling.BILINEAR)


class Decoder:
    """How the images of all splits of a dataset become pixels.

    What a person should know of them is added to `notes`.
    """

    def __init__(self, config: DataConfig, notes: list[str], *, own: bool):
        """`own`: images of a user's own, which are turned upright, and of which an error names all
        that are broken, and a size for all.
        """
        self.root, self.size, self.fit, self.notes, self.own = (
            config.root,
            config.size,
            config.fit,
            notes,
            own,
        )
        self.ground = ImageColor.getrgb(config.background)[:3]
        self.scales = Scales()
        self._several: set[str] = set()  # names of images with several frames
        self._said_several = False
        self._parts: list[tuple[Callable[[int], Stored], Callable[[int], str], int]] = []

    def fetch_of(
        self, source_at: Callable[[int], Stored], name_at: Callable[[int], str], num: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        """The `fetch` of a split of `num` images: indices (B,) -> (B, C, H, W) uint8, in colour if
        any of these images is.

        `source_at` gives the file of image i or its content, and is called from several threads.
        Sizes that differ are resized to data.size, or refused without one. The UserError is that of
        the first image, in the order of the indices, that cannot be opened or differs in size.
        """
        self._parts.append((source_at, name_at, num))

        def fetch(index: np.ndarray) -> np.ndarray:
            order, colour = index.tolist(), False
            while True:
                try:
                    return self._read(
                        order, partial(self._open, source_at, name_at), name_at, colour
                    )
                except NeedsColour:
                    colour = True
                except NeedsScale:
                    self._settle(order, source_at, name_at)
                except Unreadable as error:
                    raise (self._all_unreadable(error) if self.own else error) from None
                finally:
                    self._say_found()

        return fetch

    def _open(
        self, source_at: Callable[[int], Stored], name_at: Callable[[int], str], i: int
    ) -> Image.Image:
        """Image i as it will be stacked, in mode L or RGB."""
        image = self.scales.applied(
            self._stored(source_at, name_at, i),
            self.ground,
            name_at(i).removeprefix(f"{self.root}{os.sep}"),
        )
        return image if self.size is None else in_form(image, self.size, self.fit, self.ground)

    def _stored(
        self, source_at: Callable[[int], Stored], name_at: Callable[[int], str], i: int
    ) -> Image.Image | Wide:
        """Image i with the values and the size that it has."""
        return open_image(
            source_at(i),
            name_at(i),
            upright=self.own,
            ground=self.ground,
            on_several=self._several.add,
        )

    def _read(
        self,
        order: list[int],
        open_at: Callable[[int], Image.Image],
        name_at: Callable[[int], str],
        colour: bool,
    ) -> np.ndarray:
        """(B, C, H, W) uint8, allocated once; `colour`: whether it is known that there are images
        in colour.
        """
        first = open_at(order[0])
        colour = colour or first.mode == "RGB"
        width, height = first.size
        pixels = np.empty((len(order), 3 if colour else 1, height, width), np.uint8)

        def decode(start: int) -> None:
            for k, i in enumerate(order[start : start + CHUNK], start):
                image = open_at(i)
                if image.size != (width, height):
                    raise self._differing(
                        f"{name_at(i)} is {image.height}x{image.width} and others are "
                        f"{height}x{width}"
                    )
                if image.mode == "L":
                    pixels[k] = np.asarray(image)  # into all channels
                elif colour:
                    pixels[k] = np.asarray(image).transpose(2, 0, 1)
                else:
                    raise NeedsColour

        with _threads() as pool:  # Pillow decodes and resizes without the interpreter lock
            # in order: the first error is raised, what has not begun is dropped
            for _ in pool.map(decode, range(0, len(order), CHUNK)):
                pass
        return pixels

    def _settle(
        self, order: list[int], source_at: Callable[[int], Stored], name_at: Callable[[int], str]
    ) -> None:
        """Choose the scale of the kinds of values among these images."""

        def looked_at(i: int) -> list[tuple[str, str, np.ndarray]]:
            image = self._stored(source_at, name_at, i)
            return (
                [(image.kind, name_at(i), extremes(image.values))]
                if isinstance(image, Wide)
                else []
            )

        with _threads() as pool:
            found = [entry for entries in pool.map(looked_at, order) for entry in entries]
        self.notes += self.scales.settle(found)

    def _say_found(self) -> None:
        self.notes += [note for note in self.scales.said() if note not in self.notes]
        if self._several and not self._said_several:
            self._said_several = True
            count = len(self._several)
            one = min(self._several).removeprefix(f"{self.root}{os.sep}")
            files = f"{one} has" if count == 1 else f"{count} images, such as {one}, have"
            self.notes.append(f"{files} several frames or pages, of which the first is used")

    def _all_unreadable(self, first: Unreadable) -> UserError:
        """The error that names every image of the dataset that cannot be read, so that all can be
        mended at once.
        """

        def check(
            image: tuple[Callable[[int], Stored], Callable[[int], str], int],
        ) -> Unreadable | None:
            source_at, name_at, i = image
            try:
                _check(source_at(i), name_at(i))
            except Unreadable as error:
                return error
            return None

        with _threads() as pool:
            found = [error for error in pool.map(check, self._every()) if error is not None]
        names = [error.name for error in found]
        if first.name not in names:  # only decoding in full finds it
            names = [first.name, *names]
        if len(names) == 1:
            return first
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        reason = found[0].reason if names[0] == found[0].name else first.reason
        return UserError(
            f"{len(names)} files cannot be read as images: {', '.join(names[:3])}{more} (the "
            f"first: {reason}); repair or remove them."
        )

    def _every(self) -> list[tuple[Callable[[int], Stored], Callable[[int], str], int]]:
        """All images of the dataset: what gives their sources and names, and which."""
        return [
            (source_at, name_at, i) for source_at, name_at, num in self._parts for i in range(num)
        ]

    def _differing(self, which: str) -> UserError:
        suggested = self._suggested_size() if self.own else None
        such_as = (
            "" if suggested is None else f", such as --data.size {suggested[0]} {suggested[1]}"
        )
        return UserError(f"{which}; set data.size to a height and width for all{such_as}.")

    def _suggested_size(self) -> tuple[int, int] | None:
        """The median height and width, in multiples of 8 up to LARGEST; None where no size can be
        read. Only the heads of the files are read.
        """
        every = self._every()
        sizes = []
        for source_at, _, i in every[:: max(1, math.ceil(len(every) / SAMPLE))]:
            try:
                source = source_at(i)
                with Image.open(
                    source if isinstance(source, Path) else io.BytesIO(source)
                ) as image:
                    # 5 and up lie on their side
                    sizes.append(image.size if _orientation(image) >= 5 else image.size[::-1])
            except (*FAILURES, Unreadable):
                continue
        if not sizes:
            return None
        height, width = (
            min(LARGEST, max(8, 8 * round(float(median) / 8)))
            for median in np.median(sizes, axis=0)
        )
        return height, width
