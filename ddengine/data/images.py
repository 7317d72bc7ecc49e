"""Decoding of image files and bytes."""

import io
import math
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ddengine.errors import UserError

CHUNK = 64  # images a thread takes at a time
THREADS = 8  # at most


ORIENTATION = 0x0112  # the tag of EXIF
SAMPLE = 1000  # images at most whose sizes are looked at to suggest one for all
LARGEST = 64  # pixels; the longest side suggested, which distillation on one machine can afford

FAILURES = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # of Pillow, on files that are no images

Sources = Callable[[], list[tuple[Callable[[], Path | bytes], str]]]  # all images of a dataset: what reads the file or its bytes, and its name


class Unreadable(UserError):
    """A file that is no image, or a broken one."""

    def __init__(self, name: str, reason: Exception):
        """`reason`: Pillow's."""
        super().__init__(f"{name} cannot be read as an image ({reason}); repair or remove it.")
        self.name, self.reason = name, reason


def open_image(source: Path | bytes, name: str, *, upright: bool = False) -> Image.Image:
    """A decoded image in mode L or RGB; alpha is dropped. `name` is said in the error for one that cannot be read.

    `upright`: turned as its EXIF orientation says, as photographs of telephones need; published sets are read without, as their papers did.
    """
    image = _opened(source, name)
    if upright:
        image = _turned(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "LA", "F") else "RGB")


def _opened(source: Path | bytes, name: str, *, coarse: bool = False) -> Image.Image:
    """The decoded file; `coarse`: a JPEG at an eighth of its sides, which finds what is broken sooner."""
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
        if coarse:
            image.draft("RGB", (1, 1))
        image.load()
        return image
    except FAILURES as error:
        raise Unreadable(name, error) from None


def _orientation(image: Image.Image) -> int:
    """1 to 8, 1 where there is none that can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*FAILURES, KeyError, TypeError, struct.error):  # the pixels are good all the same
        return 1
    return found if found in range(1, 9) else 1


def _turned(image: Image.Image) -> Image.Image:
    method = TURNS.get(_orientation(image))
    return image if method is None else image.transpose(method)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))


def _all_unreadable(first: Unreadable, sources: Sources) -> UserError:
    """The error that names every image of the dataset that cannot be read, so that all can be mended at once."""

    def check(source: tuple[Callable[[], Path | bytes], str]) -> Unreadable | None:
        try:
            _opened(source[0](), source[1], coarse=True)
        except Unreadable as error:
            return error
        return None

    with _threads() as pool:
        found = [error for error in pool.map(check, sources()) if error is not None]
    names = [error.name for error in found]
    if first.name not in names:  # only decoding in full finds it
        names = [first.name, *names]
    if len(names) == 1:
        return first
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    reason = found[0].reason if names[0] == found[0].name else first.reason
    return UserError(f"{len(names)} files cannot be read as images: {', '.join(names[:3])}{more} (the first: {reason}); repair or remove them.")


def _suggested_size(sources: Sources) -> tuple[int, int] | None:
    """The median height and width, in multiples of 8 up to LARGEST; None where no size can be read. Only the heads of the files are read."""
    every = sources()
    sizes = []
    for read, _ in every[:: max(1, math.ceil(len(every) / SAMPLE))]:
        try:
            source = read()
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
                sizes.append(image.size if _orientation(image) >= 5 else image.size[::-1])  # 5 and up lie on their side
        except FAILURES:
            continue
    if not sizes:
        return None
    height, width = (min(LARGEST, max(8, 8 * round(float(median) / 8))) for median in np.median(sizes, axis=0))
    return height, width


def decoder(
    open_at: Callable[[int], Image.Image],
    name_at: Callable[[int], str],
    size: tuple[int, int] | None,
    sources: Sources | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A `fetch` (indices -> (B, C, H, W) uint8): colour if any of the images is, resized to `size` or refused when sizes differ.

    `open_at` gives image i in mode L or RGB and is called from several threads. The UserError is that of the first image, in the order of
    the indices, that cannot be opened or differs in size. With `sources`, all images of the dataset, it names all that cannot be opened, and a
    size for all.
    """

    def fetch(index: np.ndarray) -> np.ndarray:
        try:
            return read(index)
        except Unreadable as error:
            raise (error if sources is None else _all_unreadable(error, sources)) from None

    def read(index: np.ndarray) -> np.ndarray:
        order = index.tolist()
        height, width = size or open_at(order[0]).size[::-1]
        pixels = np.empty((len(order), 3, height, width), np.uint8)
        grey = np.zeros(len(order), bool)

        def decode(start: int) -> None:
            for k, i in enumerate(order[start : start + CHUNK], start):
                image = open_at(i)
                if size is not None and image.size != (width, height):
                    image = image.resize((width, height), Image.Resampling.BILINEAR)
                if image.size != (width, height):
                    differing = f"{name_at(i)} is {image.height}x{image.width} and others are {height}x{width}"
                    suggested = None if sources is None else _suggested_size(sources)
                    such_as = "" if suggested is None else f", such as --data.size {suggested[0]} {suggested[1]}"
                    raise UserError(f"{differing}; set data.size to a height and width for all{such_as}.")
                grey[k] = image.mode == "L"
                if grey[k]:
                    pixels[k, 0] = np.asarray(image)  # the other channels are filled below, if any image is in colour
                else:
                    pixels[k] = np.asarray(image).transpose(2, 0, 1)

        with _threads() as pool:  # Pillow decodes and resizes without the interpreter lock
            for _ in pool.map(decode, range(0, len(order), CHUNK)):  # in order: the first error is raised, what has not begun is dropped
                pass
        if grey.all():
            return np.ascontiguousarray(pixels[:, :1])
        for k in np.flatnonzero(grey):
            pixels[k, 1:] = pixels[k, 0]
        return pixels

    return fetch
