"""Many images as 8-bit pixels: one ground, one scale and one form for all images of a dataset."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageColor, ImageOps, features

from ddengine.data.images import Stored, Unreadable, check, open_image, size_of, stamp_of
from ddengine.data.scales import Colour, NeedsScale, Scales, Wide, extremes
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError
from ddengine.types import Json

CHUNK = 64  # images a thread takes at a time
THREADS = 8  # at most
SAMPLE = 1000  # images at most whose sizes are looked at to suggest one for all
LARGEST = 64  # pixels; the longest side suggested, which distillation on one machine can afford
NAMED = 3  # broken files that an error names
PROBED = 16  # images that tell of what form all are


class NeedsColour(Exception):
    """An image in colour among what was taken for grey images."""


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))


def in_form(
    image: Image.Image,
    size: tuple[int, int],
    fit: str,
    ground: Colour,
) -> Image.Image:
    """An image in mode L or RGB at `size` (height, width).

    It is squashed, cropped around its middle, or padded with `ground`, as `fit` says.
    """
    wanted = (size[1], size[0])
    if image.size == wanted:
        return image
    if fit == "crop":
        return ImageOps.fit(image, wanted, Image.Resampling.BILINEAR)
    if fit == "pad":
        if image.mode == "L" and len(set(ground)) > 1:
            image = image.convert("RGB")
        colour = ground[0] if image.mode == "L" else ground
        return ImageOps.pad(image, wanted, Image.Resampling.BILINEAR, color=colour)
    return image.resize(wanted, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Files:
    """The images of a split: where each is, and what it is called. Called from several threads."""

    source_at: Callable[[int], Stored]  # the file of image i, or its content
    name_at: Callable[[int], str]
    num: int
    # tells image i from any other, and from itself before it was changed, without being decoded
    stamp_of: Callable[[int], str]


@dataclass(frozen=True)
class Form:
    """What the pixels of many images have in common."""

    channels: int
    height: int
    width: int

    @property
    def bytes(self) -> int:
        """Of an image."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class Seen:
    """What was seen in images while they were decoded, of which something is to be said."""

    several: tuple[str, ...] = ()  # names of images with several frames or pages
    cut: Mapping[str, float] = field(default_factory=dict)  # see `Scales.cut`


def files_at(paths: Sequence[str], root: Path) -> Files:
    """Image files below `root`."""
    return Files(
        source_at=lambda i: Path(paths[i]),
        name_at=lambda i: paths[i],
        num=len(paths),
        stamp_of=lambda i: stamp_of(paths[i], root),
    )


class Decoder:
    """How the images of all splits of a dataset become pixels.

    What a person should know of them is added to `notes`.
    """

    def __init__(
        self,
        config: DataConfig,
        notes: list[str],
        *,
        published: bool,
    ):
        """`published` stands for the images of a published set, which are read as its papers did.

        Others are turned upright, and an error names all of them that are broken, and a size for
        all.
        """
        self.root = config.root
        self.size = config.size
        self.fit = config.fit
        self.notes = notes
        self.published = published
        self.ground = ImageColor.getrgb(config.background)[:3]
        self.scales = Scales()
        self._several: set[str] = set()  # names of images with several frames
        self._said_several = False
        self._splits: list[Files] = []

    def undecoded(self, images: Files) -> "Undecoded":
        """The images of a split, which are decoded when they are asked for."""
        self._splits.append(images)
        return Undecoded(self, images)

    def settings(self) -> Json:
        """What decides the pixels of an image beside its file."""
        size = None if self.size is None else list(self.size)
        return {
            "size": size,
            "fit": self.fit,
            "ground": list(self.ground),
            "published": self.published,
            "pillow": [PIL.__version__, features.version("jpg")],
        }

    def fetched(self, images: Files, index: np.ndarray) -> np.ndarray:
        """What `Undecoded.fetch` returns."""
        order = index.tolist()
        colour = False
        while True:
            try:
                return self._read(order, images, colour)
            except NeedsColour:
                colour = True
            except NeedsScale:
                self.settle(order, images)
            except Unreadable as error:
                raise self.refusal(error) from None
            finally:
                self.say_what_was_seen()

    def refusal(self, error: Unreadable) -> UserError:
        """What is raised of an image that cannot be read."""
        return error if self.published else self._all_unreadable(error)

    def form_of(self, order: Sequence[int], images: Files) -> Form:
        """The form of the images at `order`, as the first and some spread over all tell.

        Later ones may be in colour all the same.
        """
        probed = order[:: max(1, len(order) // PROBED)]
        opened = []
        for i in probed:
            opened.append(self._open(images, i))
        colour = any(image.mode == "RGB" for image in opened)
        width, height = opened[0].size
        return Form(3 if colour else 1, height, width)

    def size_at(self, i: int, images: Files) -> tuple[int, int] | None:
        """(height, width) of the pixels of image i; None where it cannot be read."""
        if self.size is not None:
            return self.size
        try:
            return size_of(images.source_at(i))
        except UserError:
            return None

    def read_into(
        self, pixels: np.ndarray, order: Sequence[int], images: Files, chunk: int
    ) -> None:
        """Decode the images at `order` into pixels (B, C, H, W), so many by a thread at a time.

        Raises NeedsColour for an image in colour where C is 1, and UserError for one that cannot be
        read or has another size.
        """
        form = Form(*pixels.shape[1:])

        def decode(start: int) -> None:
            for k, i in enumerate(order[start : start + chunk], start):
                self._decode(pixels[k], i, images, form)

        with _threads() as pool:  # Pillow decodes and resizes without the interpreter lock
            # in order: the first error is raised, what has not begun is dropped
            for _ in pool.map(decode, range(0, len(order), chunk)):
                pass

    def _decode(self, pixels: np.ndarray, i: int, images: Files, form: Form) -> None:
        """Decode image i into pixels (C, H, W)."""
        image = self._open(images, i)
        if image.size != (form.width, form.height):
            raise self._differing(
                f"{images.name_at(i)} is {image.height}x{image.width} and others are "
                f"{form.height}x{form.width}"
            )
        if image.mode == "L":
            pixels[:] = np.asarray(image)  # into all channels
        elif form.channels == 3:
            pixels[:] = np.asarray(image).transpose(2, 0, 1)
        else:
            raise NeedsColour

    def take_seen(self) -> Seen:
        """What was seen since it was taken last."""
        seen = Seen(tuple(sorted(self._several)), dict(self.scales.cut))
        self._several.clear()
        self.scales.cut.clear()
        return seen

    def give_seen(self, seen: Seen) -> None:
        """Know what was seen in images that were decoded before."""
        self._several.update(seen.several)
        self.scales.cut.update(seen.cut)

    def _open(self, images: Files, i: int) -> Image.Image:
        """Image i as it will be stacked, in mode L or RGB."""
        image = self.scales.applied(
            self._stored(images, i), self.ground, self._below_root(images.name_at(i))
        )
        if self.size is None:
            return image
        return in_form(image, self.size, self.fit, self.ground)

    def _stored(self, images: Files, i: int) -> Image.Image | Wide:
        """Image i with the values and the size that it has."""
        return open_image(
            images.source_at(i),
            images.name_at(i),
            upright=not self.published,
            ground=self.ground,
            on_several=self._several.add,
        )

    def _below_root(self, name: str) -> str:
        return name.removeprefix(f"{self.root}{os.sep}")

    def _read(
        self,
        order: list[int],
        images: Files,
        colour: bool,
    ) -> np.ndarray:
        """The images at `order`, (B, C, H, W) uint8, allocated once.

        `colour` says that there are images in colour. Raises NeedsColour where it does not and
        there are.
        """
        first = self._open(images, order[0])
        colour = colour or first.mode == "RGB"
        width, height = first.size
        pixels = np.empty((len(order), 3 if colour else 1, height, width), np.uint8)
        self.read_into(pixels, order, images, CHUNK)
        return pixels

    def settle(self, order: Sequence[int], images: Files) -> None:
        """Choose the scale of the kinds of values among the images at `order`."""

        def looked_at(i: int) -> tuple[str, str, np.ndarray] | None:
            image = self._stored(images, i)
            if not isinstance(image, Wide):
                return None
            return image.kind, images.name_at(i), extremes(image.values)

        with _threads() as pool:
            wide = [entry for entry in pool.map(looked_at, order) if entry is not None]
        self.notes += self.scales.settle(wide)

    def say_what_was_seen(self) -> None:
        """Add to the notes what was cut, and images of several frames."""
        for note in self.scales.said():
            if note not in self.notes:
                self.notes.append(note)
        if self._several and not self._said_several:
            self._said_several = True
            count = len(self._several)
            one = self._below_root(min(self._several))
            files = f"{count} images, such as {one}, have"
            if count == 1:
                files = f"{one} has"
            self.notes.append(f"{files} several frames or pages, of which the first is used")

    # What an error says

    def _all_unreadable(self, first: Unreadable) -> UserError:
        """The error that names every image of the dataset that cannot be read."""
        with _threads() as pool:
            looked_at = pool.map(_broken, self._every())
            errors = list(filter(None, looked_at))
        names = [error.name for error in errors]
        reason = errors[0].reason if errors else first.reason
        if first.name not in names:  # only decoding in full finds it
            names = [first.name, *names]
            reason = first.reason
        if len(names) == 1:
            return first
        more = ""
        if len(names) > NAMED:
            more = f" and {len(names) - NAMED} more"
        return UserError(
            f"{len(names)} files cannot be read as images: {', '.join(names[:NAMED])}{more} (the "
            f"first: {reason}); repair or remove them."
        )

    def _every(self) -> list[tuple[Files, int]]:
        """All images of the dataset: the split of each, and its number there."""
        every = []
        for images in self._splits:
            every += [(images, i) for i in range(images.num)]
        return every

    def _differing(self, which: str) -> UserError:
        """The error that says which image differs in size, and what size would suit."""
        suggested = None if self.published else self._suggested_size()
        such_as = ""
        if suggested is not None:
            such_as = f", such as --data.size {suggested[0]} {suggested[1]}"
        return UserError(f"{which}; set data.size to a height and width for all{such_as}.")

    def _suggested_size(self) -> tuple[int, int] | None:
        """A height and a width that suit most images; None where no size can be read."""
        every = self._every()
        sizes = []
        for images, i in every[:: max(1, math.ceil(len(every) / SAMPLE))]:
            try:
                sizes.append(size_of(images.source_at(i)))
            except Unreadable:
                continue
        return _usual_size(filter(None, sizes))


@dataclass(frozen=True)
class Undecoded:
    """The images of a split as they are stored, and what decodes them."""

    decoder: Decoder
    files: Files

    def fetch(self, index: np.ndarray) -> np.ndarray:
        """The images at indices (B,), as (B, C, H, W) uint8.

        They are in colour if any of these images is. Sizes that differ are resized to data.size, or
        refused without one. The UserError is that of the first image, in the order of the indices,
        that cannot be opened or differs in size.
        """
        return self.decoder.fetched(self.files, index)


def _usual_size(sizes: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The medians of heights and widths, in multiples of 8 up to LARGEST; None without any."""
    listed = list(sizes)
    if not listed:
        return None
    height, width = np.median(listed, axis=0)
    return _rounded(height), _rounded(width)


def _rounded(side: float) -> int:
    return min(LARGEST, max(8, 8 * round(float(side) / 8)))


def _broken(image: tuple[Files, int]) -> Unreadable | None:
    """Why image i of a split cannot be read; None where it can."""
    images, i = image
    try:
        check(images.source_at(i), images.name_at(i))
    except Unreadable as error:
        return error
    return None
