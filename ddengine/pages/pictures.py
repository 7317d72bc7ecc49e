"""The images in a page: real and distilled ones by class, and how they came about."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddengine.data.images import FAILURES
from ddengine.pages.figures import SHOWN_PER_CLASS, learned_by_class
from ddengine.pages.reading import Run
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.types import Json, Row

LARGEST = 96  # pixels; larger images are made smaller
SHOWN_PIXELS = 56  # about how large images are shown
# pixel values that the pictures of real and distilled images of a page may have together, which
# bounds its size
VALUES = 1_500_000
# of the pictures of a run's progress so many are shown, or the next smaller number that fits
FRAMES = 25
FRAME_COUNTS = (FRAMES, 17, 12, 8, 5, 3, 2)
FRAME_BYTES = 900_000  # of the pictures of the progress in a page
PADDING = 2  # pixels around each image of figures.grid


class Frame(NamedTuple):
    """A picture of the progress."""

    content: bytes  # PNG
    width: int  # at which it is shown


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def picture_of(path: Path) -> str:
    """The PNG at `path` as a data URI, nothing where there is none.

    What is no PNG is left out, which is said: it may be any file that a link points to, and a page
    is given away.
    """
    from PIL import Image

    if not path.is_file():
        return ""
    try:
        Image.open(path, formats=("PNG",)).close()
    except FAILURES:
        log.say(f"{path} is no picture, so the page leaves it out")
        return ""
    return data_uri(path.read_bytes())


def _png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _image(pixels: Tensor) -> str:
    """(C, H, W) uint8, grey or colour, as a data URI; not larger than LARGEST."""
    from PIL import Image

    if len(pixels) == 1:
        array = pixels[0].numpy()
    else:
        array = pixels[:3].permute(1, 2, 0).contiguous().numpy()
    if max(array.shape[:2]) > LARGEST:
        small = Image.fromarray(array)
        small.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
        array = np.asarray(small)
    return data_uri(_png(array))


def _image_shape(syn: SyntheticSet) -> tuple[int, int, int]:
    """(C, H, W) of the decoded images."""
    channels, height, width = syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:]
    return channels, height, width


def _bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8 on the CPU."""
    return (pixels.clamp(0, 1) * 255).round().byte().cpu()


def grids(run: Run, values: int) -> Json:
    """Real and distilled images by class, for the template; empty without a set.

    `values` bounds how many pixel values are shown.
    """
    syn = run.syn
    if syn is None:
        return {}
    has_real = "pixels" in run.samples and not syn.targets.regressed  # which lie there by class
    channels, height, width = _image_shape(syn)
    shown_width = min(LARGEST, width)
    members = learned_by_class(syn)
    of_one_per_class = channels * min(height, LARGEST) * shown_width * len(members)
    if has_real:
        of_one_per_class *= 2
    that_fit = values // max(1, of_one_per_class)
    most = max(1, min(SHOWN_PER_CLASS, that_fit))
    rows = []
    for c, index in enumerate(members):
        row = {
            "name": syn.row_names[c],
            "real": list(map(_image, _real_images(run, c, most))),
            "distilled": list(map(_image, _distilled_images(syn, index[:most]))),
            "more": max(0, len(index) - most),
        }
        rows.append(row)
    scale = max(1, round(SHOWN_PIXELS / shown_width))
    return {
        "rows": rows,
        "more": max(0, len(syn.class_names) - len(members)),
        "classes": len(syn.class_names),
        "width": shown_width * scale,
        "columns": f"{_column(rows, 'real')} {_column(rows, 'distilled')}",
        "real": has_real,
        "word": "chosen" if "selected" in run.meta else "distilled",
        "size": f"{height} \N{MULTIPLICATION SIGN} {width} pixels",
        "smaller": max(height, width) > LARGEST,
    }


def _real_images(run: Run, class_number: int, most: int) -> Sequence[Tensor]:
    """At most `most` of the real images of a class that lie beside a run, each (C, H, W) uint8."""
    if "pixels" not in run.samples:
        return ()
    of_class = run.samples["labels"] == class_number
    index = of_class.nonzero().flatten()[:most]
    return tuple(run.samples["pixels"][index])


def _distilled_images(syn: SyntheticSet, index: Tensor) -> Sequence[Tensor]:
    """The decoded images at `index` (B,), each (C, H, W) uint8."""
    if not len(index):
        return ()
    return tuple(_bytes(syn.pixels(index)))


def _column(rows: Sequence[Row], kind: str) -> str:
    """The width of a column of images, in CSS: that of its longest strip."""
    longest = max((len(row[kind]) for row in rows), default=0)
    return f"minmax(0, {max(2, longest)}fr)"


def _spread(num: int, most: int) -> list[int]:
    """At most `most` of num places, evenly spread, the first and the last among them."""
    places = np.linspace(0, num - 1, min(num, most))
    return np.unique(places.round().astype(int)).tolist()


def frames(run: Run, most_bytes: int) -> list[Json]:
    """The pictures of the progress, for the template: step, data URI, width.

    There are as many as stay below `most_bytes` in the page, the first and the last always.
    """
    if not run.progress:
        return []
    tile = None
    if run.syn is not None and len(run.syn):
        _, height, width = _image_shape(run.syn)
        tile = (height, width)

    @cache
    def frame_at(place: int) -> Frame:
        _, path = run.progress[place]
        return _frame(path, tile)

    def fit(places: Sequence[int]) -> bool:
        total = 0
        for place in places:
            total += len(frame_at(place).content) * 4 // 3  # in base 64
            if total > most_bytes:
                return False
        return True

    places: list[int] = []
    for most in FRAME_COUNTS:
        places = _spread(len(run.progress), most)
        if fit(places):
            break
    shown = []
    for place in places:
        step, _ = run.progress[place]
        frame = frame_at(place)
        shown.append({"step": step, "src": data_uri(frame.content), "width": frame.width})
    return shown


def _frame(path: Path, tile: tuple[int, int] | None) -> Frame:
    """A picture of the progress, without the enlargement by figures.grid, which the browser does.

    `tile` is (height, width) of the images in it, None where they are not known.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            array = np.asarray(file.convert("RGB"))
    except FAILURES:
        raise UserError(f"{path} is no picture; delete it, and the page leaves it out.") from None
    width = array.shape[1]
    if tile is not None:
        array = _without_zoom(array, *tile)
    if (array == array[..., :1]).all():
        array = array[..., 0]
    return Frame(_png(np.ascontiguousarray(array)), width)


def _without_zoom(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """A grid (H, W, 3) of images with every image at its own size and a white line between them.

    An array that figures.grid cannot have made of enlarged images stays as it is.
    """
    zoom = max(1, 64 // width)
    large_height = height * zoom
    large_width = width * zoom
    step_y = large_height + PADDING
    step_x = large_width + PADDING
    inner = array[PADDING:, PADDING:]
    rows, left_over_y = divmod(inner.shape[0], step_y)
    columns, left_over_x = divmod(inner.shape[1], step_x)
    if zoom == 1 or left_over_y or left_over_x:
        return array
    tiles = inner.reshape(rows, step_y, columns, step_x, 3)
    small = np.full((rows, height + 1, columns, width + 1, 3), 255, np.uint8)
    small[:, :height, :, :width] = tiles[:, :large_height:zoom, :, :large_width:zoom]
    joined = small.reshape(rows * (height + 1), columns * (width + 1), 3)
    return joined[:-1, :-1]
