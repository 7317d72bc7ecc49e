"""Decoding of image files and bytes."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ddengine.errors import UserError


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """A decoded image in mode L or RGB; `name` is said in the error for one that cannot be read."""
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name} cannot be read as an image ({error}); repair or remove it.") from None
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "LA", "F") else "RGB")


def decoder(open_at: Callable[[int], Image.Image], name_at: Callable[[int], str], size: tuple[int, int] | None) -> Callable[[np.ndarray], np.ndarray]:
    """A `fetch` (indices -> (B, C, H, W) uint8): colour if any of the images is, resized to `size` or refused when sizes differ."""

    def fetch(index: np.ndarray) -> np.ndarray:
        images, shape = [], size
        for i in index.tolist():
            image = open_at(i)
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            if shape is None:
                shape = (image.height, image.width)
            if (image.height, image.width) != shape:
                raise UserError(
                    f"{name_at(i)} is {image.height}x{image.width} and others are {shape[0]}x{shape[1]}; set data.size to a height and width for all."
                )
            images.append(image)
        mode = "RGB" if any(image.mode == "RGB" for image in images) else "L"
        pixels = np.stack([np.asarray(image.convert(mode)) for image in images])
        return pixels[:, None] if mode == "L" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    return fetch
