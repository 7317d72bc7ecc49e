"""Images of fewer pixels, and of few colours: the cheap codecs that others must beat."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.data import Preprocess
from ddengine.recipe import require, require_at_least
from ddengine.sets.codec.packed import bit_packed, bit_unpacked
from ddengine.sets.codec.protocol import Codec, Loader, Space, Tensors
from ddengine.sets.codec.values import as_bytes, other_shape, too_large
from ddengine.sets.codec.within_bytes import WithinBytes
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, seed_from

TAPS = 4  # pixels along a side that an enlarged pixel is made of
MOST_COLOURS = 256  # that one byte tells apart


@dataclass(frozen=True, kw_only=True)
class Reduced(WithinBytes):
    """Pixels are fewer by `shrink` along each side, and of `colours` colours where it says so.

    The smaller images are enlarged by interpolation over four pixels along each side, which is
    bicubic or learned from there on. Where `shrink` does not divide a side, the last row or column
    is of repeated pixels, which are cut. Values are bytes, also while they are learned: the
    gradient passes straight through the rounding.

    With colours, each image has a palette of so many. A pixel is the colour that is nearest to a
    real-valued one, through which the gradient passes, and the colours have theirs. What is shipped
    are the palettes and, packed bit by bit, the number of the colour of each pixel.
    """

    shrink: int = 2  # how much smaller than an image a stored one is, along each side
    enlarging: Literal["bicubic", "learned"] = "bicubic"  # learned: from bicubic on
    colours: int | None = None  # of the palette of each image; None: all

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("codec.shrink", self.shrink)
        require(
            self.colours is None or 2 <= self.colours <= MOST_COLOURS,
            f"codec.colours must be 2 to {MOST_COLOURS}, got {self.colours}; leave it out for all.",
        )

    @property
    def space(self) -> Space:
        """Pixels."""
        return "pixel"

    @property
    def bits(self) -> int:
        """Of the number of a colour."""
        assert self.colours is not None
        return (self.colours - 1).bit_length()

    def small_size(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a stored image."""
        return -(-image_shape[1] // self.shrink), -(-image_shape[2] // self.shrink)

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError for images that have not so many pixels along a side."""
        if self.shrink > min(image_shape[1:]):
            raise UserError(
                f"codec.shrink {self.shrink} is more than the {min(image_shape[1:])} pixels of an "
                "image's side; lower codec.shrink."
            )

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """A byte a value, or palettes and packed numbers; and the taps, where they are learned."""
        num, pixels = items * num_classes, math.prod(self.small_size(image_shape))
        taps = 4 * 2 * self.shrink * TAPS if self.enlarging == "learned" else 0
        if self.colours is None:
            return taps + num * image_shape[0] * pixels
        palettes = num * self.colours * image_shape[0]
        return taps + palettes + math.ceil(num * pixels * self.bits / 8)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Means of squares of pixels, and the palettes that k-means finds in each image."""
        right, below = -images.shape[3] % self.shrink, -images.shape[2] % self.shrink
        padded = functional.pad(images, (0, right, 0, below), mode="replicate")
        packed = {"images": functional.avg_pool2d(padded, self.shrink).clamp(0, 1)}
        if self.enlarging == "learned":
            packed["taps"] = bicubic_taps(self.shrink, images).repeat(2, 1, 1)
        if self.colours is not None:
            seeds = rng or generator(0, "palettes")
            packed["palettes"] = palettes_of(packed["images"], self.colours, seeds)
        return packed

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images, the taps and the palettes, where there are any."""
        groups = {"images": ("numbers" if "numbers" in tensors else "images",)}
        for name in ("taps", "palettes"):
            if name in tensors:
                groups[name] = (name,)
        return groups

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        rows = tensors["palettes" if "numbers" in tensors else "images"]
        return torch.arange(len(rows), device=rows.device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Small images in their bytes and colours, enlarged."""
        small = small_images(tensors, to_dict(self), index)
        return enlarged(small, taps_of(tensors, self.shrink, small), self.image_shape)

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp pixels and colours to [0, 1]."""
        for name in ("images", "palettes"):
            if name in tensors:
                tensors[name].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes, or palettes in bytes and the packed numbers of colours."""
        if "images" not in tensors or tensors["images"].dtype == torch.uint8:
            return self, dict(tensors)
        shipped = dict(tensors)
        images = shipped.pop("images").detach()
        if "palettes" not in tensors:
            return self, shipped | {"images": as_bytes(images)}
        palettes = as_bytes(tensors["palettes"])
        numbers = nearest(images, in_bytes(palettes)).flatten()
        stream = bit_packed(numbers, self.bits)
        return self, shipped | {"numbers": stream, "palettes": palettes}

    @property
    def by_item(self) -> tuple[str, ...]:
        """Images and palettes."""
        return ("images", "palettes")

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> tuple[Self, dict[str, Tensor]]:
        """These images; of what is shipped the numbers of their colours are packed anew."""
        codec, left = super().only(tensors, items, num_classes)
        if "numbers" in left:
            num, pixels = len(tensors["palettes"]), math.prod(self.small_size(self.image_shape))
            numbers = bit_unpacked(tensors["numbers"], self.bits, num * pixels).view(num, pixels)
            left["numbers"] = bit_packed(numbers[items].flatten(), self.bits)
        return codec, left

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Images, or palettes and the numbers of their colours; taps, where they are learned."""
        known = {"numbers": 1, "images": 4, "palettes": 3, "taps": 3}
        needed = {"images"} if self.colours is None else {"palettes"}
        if "numbers" not in tensors:
            needed.add("images")
        if self.enlarging == "learned":
            needed.add("taps")
        return {name: dims for name, dims in known.items() if name in {*needed, *tensors}}

    def memory(self, tensors: Tensors) -> int:
        """The matrices that enlarge an image and one image; all numbers of colours, unpacked."""
        channels, height, width = self.image_shape
        rows, columns = self.small_size(self.image_shape)
        unpacked = 100 * len(tensors["numbers"]) if "numbers" in tensors else 0
        return unpacked + 64 * (height * rows + width * columns) + 4 * channels * height * width

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has, and numbers that are not of the palettes."""
        channels = self.image_shape[0]
        sizes: dict[str, tuple[int | None, ...]] = {
            "images": (None, channels, *self.small_size(self.image_shape)),
            "palettes": (None, self.colours, channels),
            "taps": (2, self.shrink, TAPS),
        }
        wrong = other_shape(tensors, sizes)
        if wrong is not None:
            return wrong
        if "numbers" not in tensors:
            return too_large(tensors["images"])
        num = len(tensors["palettes"]) * math.prod(self.small_size(self.image_shape))
        if len(tensors["numbers"]) != math.ceil(num * self.bits / 8):
            return f"holds 'numbers' that are not those of {len(tensors['palettes'])} images"
        numbers = bit_unpacked(tensors["numbers"], self.bits, num)
        if int(numbers.max()) >= (self.colours or 0):
            return f"holds 'numbers' of colours of which there are {self.colours}"
        return None

    def loader(self) -> Loader:
        """All images, enlarged."""
        return enlarged_images


def palettes_of(images: Tensor, num: int, rng: Generator) -> Tensor:
    """(S, k, C): centres of the colours of each image (S, C, h, w), by k-means.

    An image of fewer colours has the first of them several times.
    """
    from sklearn.cluster import KMeans  # slow to import

    seed = seed_from(rng)
    palettes = []
    for pixels in images.flatten(2).mT.double().cpu():
        clusters = min(num, len(pixels.unique(dim=0)))
        means = KMeans(clusters, n_init="auto", random_state=seed).fit(pixels.numpy())
        centres = torch.from_numpy(means.cluster_centers_)
        repeated = centres[:1].expand(num - clusters, -1)
        palettes.append(torch.cat([centres, repeated]))
    return torch.stack(palettes).to(images).clamp(0, 1)


# What is shipped: plain torch, see `Codec.loader`.


def enlarged_images(tensors, settings):
    """(examples, the stored item of each): every small image, enlarged."""
    num = len(tensors["palettes" if "numbers" in tensors else "images"])
    index = torch.arange(num)
    small = small_images(tensors, settings, index)
    taps = taps_of(tensors, settings["shrink"], small)
    return enlarged(small, taps, settings["shape"]), index


def small_images(tensors, settings, index):
    """Images (B, C, h, w) in their bytes and colours, before they are enlarged."""
    if "numbers" in tensors:
        return of_palettes(tensors, settings).index_select(0, index)
    images = tensors["images"].index_select(0, index)
    if "palettes" not in tensors:
        return in_bytes(images)
    return in_colours(images, in_bytes(tensors["palettes"].index_select(0, index)))


def in_bytes(pixels):
    """Pixels as bytes say them, with the gradient of the real numbers."""
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    levels = (pixels.detach().clamp(0, 1) * 255 + 0.5).floor()
    return levels / 255 + (pixels - pixels.detach())


def in_colours(images, palettes):
    """Images (B, C, h, w) in the colours of palettes (B, k, C); both have gradients."""
    numbers = nearest(images.detach(), palettes.detach())[:, :, None]
    chosen = torch.gather(palettes, 1, numbers.expand(-1, -1, palettes.shape[2]))
    return chosen.mT.reshape(images.shape) + (images - images.detach())


def nearest(images, palettes):
    """(B, h w) int64: the colour, of palettes (B, k, C), nearest to each pixel of (B, C, h, w)."""
    pixels = images.flatten(2).mT[:, :, None]
    return (pixels - palettes[:, None]).square().sum(3).argmin(2)


def of_palettes(tensors, settings):
    """Small images (S, C, h, w) of the numbers of their colours."""
    palettes = tensors["palettes"].float() / 255
    times = settings["shrink"]
    rows, columns = (-(-side // times) for side in settings["shape"][1:])
    bits = (settings["colours"] - 1).bit_length()
    numbers = bit_unpacked(tensors["numbers"], bits, len(palettes) * rows * columns)
    numbers = numbers.view(len(palettes), -1, 1).expand(-1, -1, palettes.shape[2])
    return torch.gather(palettes, 1, numbers).mT.reshape(len(palettes), -1, rows, columns)


def taps_of(tensors, times, like):
    """What each pixel is made of: (2, times, 4) for rows and columns, learned or bicubic."""
    if "taps" in tensors:
        return tensors["taps"]
    return bicubic_taps(times, like).repeat(2, 1, 1)


def bicubic_taps(times, like):
    """(1, times, 4): weights of four pixels, for each of the pixels that one becomes."""
    line = torch.arange(times, device=like.device, dtype=like.dtype)
    at = (line + 0.5) / times - 0.5
    offset = at - at.floor()
    far = torch.stack([1 + offset, 2 - offset], 1)
    near = torch.stack([offset, 1 - offset], 1)
    outer = -0.75 * (((far - 5) * far + 8) * far - 4)
    inner = (1.25 * near - 2.25) * near * near + 1
    return torch.cat([outer[:, :1], inner, outer[:, 1:]], 1)[None]


def enlarged(small, taps, shape):
    """Images (B, C, H, W) of small ones (B, C, h, w): what is over at the edges is cut."""
    rows = enlarging(taps[0], small.shape[2], shape[1])
    columns = enlarging(taps[1], small.shape[3], shape[2])
    return rows @ small @ columns.mT


def enlarging(taps, side, larger):
    """The matrix (larger, side) of interpolation along one side; the edge is repeated."""
    times = len(taps)
    line = torch.arange(larger, device=taps.device)
    first = torch.div(2 * line + 1 - times, 2 * times, rounding_mode="floor") - 1
    read = (first[:, None] + torch.arange(4, device=taps.device)).clamp(0, side - 1)
    weights = taps.repeat(side, 1)[:larger]
    return (torch.nn.functional.one_hot(read, side) * weights[:, :, None]).sum(1)
