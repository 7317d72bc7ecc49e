"""One image file, or the bytes of one, as an image of grey or of colour values."""

import io
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from ddengine.data.scales import FLOATS, OPAQUE, WHOLE_NUMBERS, Colour, Wide, on_ground
from ddengine.system.errors import UserError

# of Pillow, on files that are no images
FAILURES = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
ORIENTATION = 0x0112  # the tag of EXIF
# the tags of TIFF that say how many bits a value has, and of what kind it is
BITS = 258
SAMPLES = 339
SAMPLE_KINDS = {1: "whole numbers", 2: "whole numbers", 3: "floats"}  # values of the tag SAMPLES
DEEP = ("RGB;16", "RGBA;16")  # raw modes of 16 bits a channel
# the raw mode that takes the other byte
LOW = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Stored = Path | bytes  # a file, or its content


class Unreadable(UserError):
    """A file that is no image, or a broken one."""

    def __init__(self, name: str, reason: Exception | str):
        """`reason`: Pillow's, or why nothing can be read at all."""
        super().__init__(f"{name} cannot be read as an image ({reason}); repair or remove it.")
        self.name = name
        self.reason = reason


def open_image(
    source: Stored,
    name: str,
    *,
    upright: bool = False,
    ground: Colour = (255, 255, 255),
    on_several: Callable[[str], None] = lambda name: None,
) -> Image.Image | Wide:
    """The first frame of an image: in mode L or RGB, or with values that need a scale.

    Args:
        source: the file, or its content.
        name: what it is called in the error for an image that cannot be read.
        upright: whether it is turned as its EXIF orientation says, as photographs of telephones
            need; published sets are read without, as their papers did.
        ground: the colour under what is transparent.
        on_several: is told the name where there are more frames or pages.

    Raises:
        UserError: no image, a broken one, or grey values of 16 bits with transparency.
    """
    with reading(source, name) as image:
        if _has_more(image):  # to be asked before the pixels are read, as is how they are stored
            on_several(name)
        modes = _raw_modes(image)
        if _begins(modes, "LA;16"):
            raise UserError(
                f"{name} has grey values of 16 bits with transparency, of which Pillow reads 8; "
                "save the images of this dataset with 8 bits."
            )
        image.load()
    turn = None
    if upright:
        turn = TURNS.get(orientation(image))
    if _begins(modes, *DEEP):
        return _deep(image, _low_bytes(source, name), turn)
    if turn is not None:
        return plain(image.transpose(turn), ground)
    return plain(image, ground)


def stamp_of(path: Path | str, below: Path | str) -> str:
    """What tells a file from any other below a folder, and from itself before it was changed.

    That is its name, its size and the time of its last change. Raises UserError where it is gone.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        raise Unreadable(str(path), error) from None
    return f"{os.path.relpath(path, below)} {facts.st_size} {facts.st_mtime_ns}"


def plain(image: Image.Image, ground: Colour = (255, 255, 255)) -> Image.Image | Wide:
    """A loaded image in mode L or RGB, or with values that need a scale.

    Where it is transparent it shows `ground`.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "F":
        return Wide(_keyed(np.asarray(image), image), FLOATS)
    if image.mode.startswith("I"):
        return Wide(_keyed(np.asarray(image), image), WHOLE_NUMBERS)
    if image.has_transparency_data:
        return on_ground(image, ground)
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGB")


def _deep(
    image: Image.Image,
    low: Image.Image,
    turn: Image.Transpose | None,
) -> Wide:
    """An image in colour of 16 bits, of its high bytes and its low bytes."""
    if turn is not None:
        image = image.transpose(turn)
        low = low.transpose(turn)
    values = np.asarray(image).astype(np.uint16) * 256 + np.asarray(low)
    return Wide(_keyed(values, image), WHOLE_NUMBERS)


def _keyed(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Values with a fourth channel where an image has a transparent colour.

    The channel says what is transparent.
    """
    key = image.info.get("transparency")
    if not isinstance(key, int | tuple) or values.shape[-1:] == (4,):
        return values
    colour = values
    if values.ndim == 2:
        colour = np.dstack([values, values, values])
    hidden = (colour == np.asarray(key)).all(2)
    alpha = np.where(hidden, 0, OPAQUE)
    return np.dstack([colour, alpha])


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    """How the pixels of a file that is not loaded yet are stored, tile by tile.

    An empty text stands for what Pillow does not say.
    """
    modes = []
    for tile in getattr(image, "tile", []):  # probe: not every format of Pillow has tiles
        mode = tile.args
        if isinstance(mode, tuple) and mode:
            mode = mode[0]
        if not isinstance(mode, str):
            mode = ""
        modes.append(mode)
    return modes


def _begins(modes: list[str], *beginnings: str) -> bool:
    """Whether one of the modes begins so."""
    return any(mode.startswith(beginnings) for mode in modes)


def _low_bytes(source: Stored, name: str) -> Image.Image:
    """The low bytes of an image in colour with 16 bits a channel.

    Pillow reads the high ones. Read with the bytes in the other order, what is the low byte is
    taken for the high one.
    """
    with reading(source, name) as image:
        swapped = []
        for tile, mode in zip(image.tile, _raw_modes(image), strict=True):
            other = mode[:-3] + LOW[mode[-3:]]
            args = other
            if isinstance(tile.args, tuple):
                args = (other, *tile.args[1:])
            swapped.append(tile._replace(args=args))
        image.tile = swapped
        image.load()
        return image


@contextmanager
def reading(source: Stored, name: str) -> Iterator[ImageFile.ImageFile]:
    """A file whose head has been read. Raises Unreadable for what goes wrong in the block, too."""
    try:
        yield Image.open(_file(source))
    except FAILURES as error:
        raise Unreadable(name, _tiff_of(source) or error) from None


def _file(source: Stored) -> Path | io.BytesIO:
    if isinstance(source, Path):
        return source
    return io.BytesIO(source)


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
            bits = directory.get(BITS, (1,))
            kinds = directory.get(SAMPLES, (1,))
    except (*FAILURES, struct.error, KeyError, TypeError, IndexError):
        return None
    kind = SAMPLE_KINDS.get(kinds[0], "values")
    channels = ""
    if len(bits) > 1:
        channels = f" in {len(bits)} channels"
    return (
        f"a TIFF of {kind} of {bits[0]} bits{channels}, of a kind or compression that Pillow does "
        "not read, or damaged"
    )


def check(source: Stored, name: str) -> None:
    """Raise Unreadable for a broken file.

    A JPEG is looked at with an eighth of its sides, which finds what is broken sooner.
    """
    with reading(source, name) as image:
        image.draft("RGB", (1, 1))
        image.load()


def size_of(source: Stored) -> tuple[int, int] | None:
    """(height, width) of an image that is set upright; None where it cannot be read.

    Only the head of the file is read.
    """
    try:
        with Image.open(_file(source)) as image:
            width, height = image.size
            lies = orientation(image) >= 5  # such images lie on their side
    except FAILURES:
        return None
    if lies:
        return width, height
    return height, width


def _has_more(image: Image.Image) -> bool:
    """Whether an image has several frames or pages.

    The second picture in a telephone's file (MPO) is no frame of it.
    """
    try:
        # probe: only formats of several frames have it
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except (*FAILURES, EOFError):  # the first frame is good all the same
        return False


def orientation(image: Image.Image) -> int:
    """How an image lies, 1 to 8 by EXIF; 1, upright, where it does not say so legibly."""
    try:
        stored = image.getexif().get(ORIENTATION, 1)
    except (*FAILURES, KeyError, TypeError, struct.error):  # the pixels are good all the same
        return 1
    return stored if stored in range(1, 9) else 1
