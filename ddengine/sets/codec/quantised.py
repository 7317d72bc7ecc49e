"""Images of a few bits a value, with a scale for each patch, channel or image."""

import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal, Self

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require, require_at_least
from ddengine.sets.codec.packed import bit_packed, bit_unpacked
from ddengine.sets.codec.protocol import BYTES_OF_VALUE, Codec, Loader, Tensors, inseparable
from ddengine.sets.codec.values import other_shape, too_large
from ddengine.sets.codec.within_bytes import WithinBytes
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, seed_from

BYTES_OF_RANGE = 4  # a scale in float16, a zero in int16
MOST_GROUPS = 256  # that one byte tells apart


@dataclass(frozen=True, kw_only=True)
class Quantised(WithinBytes):
    """Every value is one of 2^b, evenly spaced between the smallest and the largest of its region.

    While a set is learned its "images" (S, C, H, W) are real numbers, and what networks see are the
    quantised ones; the gradient passes straight through. What is shipped are the codes, packed bit
    by bit or compressed, whichever is smaller, with a scale and a zero for each region, or with
    `groups` for each group of regions. After Tran & Bae (AAAI 2026), with the quantiser also
    inside the distillation.

    A budget of `ipc` images per class, of 4 bytes a value (or 1, `budget`), holds as many images as
    their packed codes, scales and zeros leave room for; compressing makes the file smaller still.
    """

    WORKS: ClassVar[tuple[str, ...]] = ("tran2026ptq",)

    bits: Literal[2, 3, 4, 8] = 2  # b
    region: Literal["patch", "channel", "image"] = "patch"  # what has a scale and a zero
    patch: int = 5  # side of a patch, of all channels; those at the right and below are cut
    # of regions, by k-means, that share a scale and a zero; None: each region has its own
    groups: int | None = None
    packing: Literal["bits", "lzma"] = "bits"  # of the codes; shipping takes the smaller stream

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("codec.patch", self.patch)
        require_at_least("codec.groups", self.groups)
        require(
            self.groups is None or self.groups <= MOST_GROUPS,
            f"codec.groups is {self.groups}, and a byte tells {MOST_GROUPS} apart; lower it.",
        )

    @property
    def items_are_apart(self) -> bool:
        """Without groups, whose scales span the regions of all images."""
        return self.groups is None

    def holding(self, items: int) -> Self:
        """With so many images; codes of real ones are compressed further than distilled ones."""
        return replace(self, items=items)

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError for patches that are larger than an image."""
        _, height, width = image_shape
        if self.region == "patch" and self.patch > max(height, width):
            raise UserError(
                f"codec.patch {self.patch} is larger than images of {height} x {width} pixels; "
                f"set {max(height, width)} at most, or codec.region image."
            )

    def bytes_of(self, num: int, image_shape: tuple[int, ...]) -> int:
        """Bytes of `num` images at most: packed codes, and what their regions need."""
        regions = num * num_regions(image_shape, self.region, self.patch)
        codes = math.ceil(math.prod(image_shape) * self.bits / 8)
        if self.groups is None:
            return num * codes + regions * BYTES_OF_RANGE
        return num * codes + regions + min(self.groups, regions) * BYTES_OF_RANGE

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Packed codes, and what their regions need."""
        return self.bytes_of(items * num_classes, image_shape)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The images themselves, and with groups that of each region."""
        packed = {"images": images}
        if self.groups is not None:
            low, high = extremes(images, to_dict(self))
            packed["groups"] = grouped(low, high, self.bits, self.groups, rng)
        return packed

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images; of what is shipped the codes, and what brings these back."""
        if "images" in tensors:
            return {"images": ("images",)}
        others = [name for name in ("scales", "zeros", "groups") if name in tensors]
        return {"images": ("codes",), "scales": tuple(others)}

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        by_image = tensors["images"] if "images" in tensors else regions_of(tensors)
        return torch.arange(len(by_image), device=by_image.device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The quantised images, with the gradients of the real ones where codes are in range."""
        settings = to_dict(self)
        if "images" not in tensors:
            scales, zeros = stored_ranges(tensors)
            codes = _unpacked(bytes(tensors["codes"].tolist()), self, len(scales)).to(scales.device)
            codes, scales, zeros = codes[index], scales[index], zeros[index]
            return dequantised(codes, scales, zeros, settings)
        images, groups = tensors["images"], tensors.get("groups")
        chosen = images.index_select(0, index)
        if groups is None:
            scales, zeros = current_ranges(chosen.detach(), None, settings)
        else:  # whose ranges are of all images
            scales, zeros = current_ranges(images.detach(), groups, settings)
            scales, zeros = scales[index], zeros[index]
        codes, in_range = codes_of(chosen.detach(), scales, zeros, settings)
        learned = torch.where(in_range, chosen, chosen.detach())
        # what is added is exactly 0
        return dequantised(codes, scales, zeros, settings) + (learned - learned.detach())

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Codes as one stream of bytes, float16 scales and int16 zeros; groups as bytes."""
        if "images" not in tensors:
            return self, dict(tensors)
        shipped = dict(tensors)
        images = shipped.pop("images").detach()
        groups = tensors.get("groups")
        settings = to_dict(self)
        low, high = extremes(images, settings)
        scales, zeros = current_ranges(images, groups, settings)
        codes, _ = codes_of(images, scales, zeros, settings)
        if groups is not None:
            scales, zeros = storable(*extremes_of_groups(low, high, groups), self.bits)
        packing, stream = smallest(codes.cpu(), self.bits)
        stored = torch.frombuffer(bytearray(stream), dtype=torch.uint8).to(images.device)
        shipped |= {"codes": stored, "scales": scales, "zeros": zeros}
        return replace(self, packing=packing, shape=tuple(images.shape[1:])), shipped

    @property
    def by_item(self) -> tuple[str, ...]:
        """Images and their groups; scales and zeros where these are not of groups."""
        if self.groups is None:
            return ("images", "scales", "zeros")
        return ("images", "groups")

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> tuple[Self, dict[str, Tensor]]:
        """These images; codes that are shipped are packed anew. Refuses groups while learning."""
        if self.groups is not None and "images" in tensors:
            raise inseparable(self)  # scales of a group follow from all its images
        codec, left = super().only(tensors, items, num_classes)
        if "images" in tensors:
            return codec, left
        codes = unpacked(tensors["codes"], to_dict(self), len(regions_of(tensors)))
        packing, stream = smallest(codes[items].cpu(), self.bits)
        left["codes"] = torch.frombuffer(bytearray(stream), dtype=torch.uint8).to(codes.device)
        return replace(codec, packing=packing), left

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The images, or what is shipped of them."""
        if "images" in tensors:
            return {"images": 4}
        if "groups" in tensors:
            return {"codes": 1, "scales": 1, "zeros": 1, "groups": 2}
        return {"codes": 1, "scales": 2, "zeros": 2}

    def memory(self, tensors: Tensors) -> int:
        """All codes, which are unpacked together: of packed bits eight numbers a byte."""
        if "images" in tensors:
            return 0
        values = len(regions_of(tensors)) * math.prod(self.shape or ())
        return 8 * self.bits * values + 64 * len(tensors["codes"])

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has, and ranges and codes that do not belong to each other."""
        if "images" in tensors:
            return too_large(tensors["images"])
        if "groups" in tensors and int(tensors["groups"].max()) >= len(tensors["scales"]):
            return "holds 'groups' of which there are no 'scales'"
        num = len(regions_of(tensors))
        regions = num_regions(self.image_shape, self.region, self.patch)
        ranges = tuple(tensors["scales"].shape) if "groups" in tensors else (num, regions)
        sizes = {"groups": (num, regions), "scales": ranges, "zeros": ranges}
        wrong = other_shape(tensors, sizes)
        if wrong is not None:
            return wrong
        if not self._are_codes(tensors["codes"], num):
            return f"holds 'codes' that are not those of {num} images of shape {self.shape}"
        return None

    def _are_codes(self, stream: Tensor, num: int) -> bool:
        """Whether a stream of bytes is as long as that of so many images, and of these bits."""
        values = num * math.prod(self.image_shape)
        if self.packing == "bits":
            return len(stream) == math.ceil(values * self.bits / 8)
        try:
            codes = _unpacked(bytes(stream.tolist()), self, num)
        except (lzma.LZMAError, RuntimeError):
            return False
        return int(codes.max()) < 2**self.bits

    def num_images(self, tensors: Tensors) -> float:
        """How many images have as many bytes, at those of a value in `budget`."""
        if "images" in tensors:
            images = tensors["images"]
            shape = tuple(images.shape[1:])
            size = self.bytes_of(len(images), shape)
        else:
            assert self.shape is not None, "shipping says the shape"
            shape = self.shape
            size = sum(self.bytes_by_part(tensors).values())
        return size / math.prod(shape) / BYTES_OF_VALUE[self.budget]

    def loader(self) -> Loader:
        """The quantised images, of what is shipped or of real ones."""
        return quantised_images


@lru_cache(maxsize=8)
def _unpacked(stream: bytes, codec: Quantised, num: int) -> Tensor:
    """The codes of `num` images, remembered from batch to batch."""
    codes = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    return unpacked(codes, to_dict(codec), num)


def num_regions(shape: tuple[int, ...], region: str, patch: int) -> int:
    """Regions of an image (C, H, W)."""
    channels, height, width = shape
    if region == "image":
        return 1
    if region == "channel":
        return channels
    return math.ceil(height / patch) * math.ceil(width / patch)


def grouped(low: Tensor, high: Tensor, bits: int, num: int, rng: Generator | None) -> Tensor:
    """(S, R) uint8: a group for each region, by k-means of their scales and zeros."""
    from sklearn.cluster import KMeans  # slow to import

    scales = scale_of(low, high, bits)
    zeros = zero_of(low, high, scales)
    points = torch.stack([scales.flatten(), zeros.flatten()], 1).double().cpu()
    points = points / points.std(0).clamp(min=1e-12)
    clusters = min(num, len(points.unique(dim=0)))
    seed = seed_from(rng or generator(0, "quantised"))
    means = KMeans(clusters, n_init="auto", random_state=seed).fit(points.numpy())
    _, group = torch.from_numpy(means.labels_).unique(return_inverse=True)
    return group.view(low.shape).to(low.device, torch.uint8)


def smallest(codes: Tensor, bits: int) -> tuple[Literal["bits", "lzma"], bytes]:
    """(how it is packed, the smaller stream of the two) of codes (S, C, H, W).

    LZMA, of Python itself, made smaller files of codes of real images than zlib, zstandard and a
    coder of the frequencies alone (constriction's ANS).
    """
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    plain = bytes(codes.flatten().tolist())
    compressed = lzma.compress(plain, lzma.FORMAT_RAW, filters=filters)
    in_bits = bytes(bit_packed(codes.flatten(), bits).tolist())
    if len(compressed) < len(in_bits):
        return "lzma", compressed
    return "bits", in_bits


# What is shipped: plain torch, see `Codec.loader`.


def quantised_images(tensors, settings):
    """(examples, the stored item of each): each image from its codes, scales and zeros."""
    if "images" in tensors:
        images = tensors["images"]
        scales, zeros = current_ranges(images, tensors.get("groups"), settings)
        codes, _ = codes_of(images, scales, zeros, settings)
    else:
        scales, zeros = stored_ranges(tensors)
        codes = unpacked(tensors["codes"], settings, len(scales))
    return dequantised(codes, scales, zeros, settings), torch.arange(len(codes))


def regions_of(tensors):
    """A tensor (S, R) of what is shipped, with a row for each image."""
    return tensors["groups"] if "groups" in tensors else tensors["scales"]


def stored_ranges(tensors):
    """Scales and zeros (S, R) of what is shipped."""
    if "groups" not in tensors:
        return tensors["scales"], tensors["zeros"]
    groups = tensors["groups"].long()
    return tensors["scales"][groups], tensors["zeros"][groups]


def current_ranges(images, groups, settings):
    """Scales and zeros (S, R), as they are stored, of real images (S, C, H, W)."""
    low, high = extremes(images, settings)
    if groups is None:
        return storable(low, high, settings["bits"])
    low, high = extremes_of_groups(low, high, groups)
    scales, zeros = storable(low, high, settings["bits"])
    return scales[groups.long()], zeros[groups.long()]


def extremes(images, settings):
    """The smallest and the largest value (S, R) of each region of images (S, C, H, W)."""
    if settings["region"] == "image":
        values = images.flatten(1)[:, None]
    elif settings["region"] == "channel":
        values = images.flatten(2)
    else:
        return extremes_of_patches(images, settings["patch"])
    return values.amin(2), values.amax(2)


def extremes_of_patches(images, side):
    """The same of patches, row by row; those at the right and below are what is left."""
    num, channels, height, width = images.shape
    right, below = -width % side, -height % side
    grid = (num, channels, (height + below) // side, side, (width + right) // side, side)
    found = []
    for filling in (torch.inf, -torch.inf):
        padded = torch.nn.functional.pad(images, (0, right, 0, below), value=filling).view(grid)
        by = padded.amin((1, 3, 5)) if filling > 0 else padded.amax((1, 3, 5))
        found.append(by.flatten(1))
    return found


def extremes_of_groups(low, high, groups):
    """The smallest and the largest value (G,) of all regions of each group."""
    group = groups.flatten().long()
    start = low.new_zeros(int(group.max()) + 1)
    lowest = start.scatter_reduce(0, group, low.flatten(), "amin", include_self=False)
    highest = start.scatter_reduce(0, group, high.flatten(), "amax", include_self=False)
    return lowest, highest


def scale_of(low, high, bits):
    """The distance of two codes; of a region of one value that value, without its sign."""
    return torch.where(low == high, low.abs(), (high - low) / (2**bits - 1))


def zero_of(low, high, scale):
    """The code, a whole number, that stands for 0, which may lie outside of those in use.

    In a region of one value the code 0 stands for that value.
    """
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.where(low == high, -low.sign(), (-low / safe).round())


def storable(low, high, bits):
    """Scales in float16 and zeros in int16 of regions from `low` to `high`."""
    # so that no zero is beyond 16 bits
    least = torch.maximum(low.abs(), high.abs()) / 30000
    scale = torch.maximum(scale_of(low, high, bits), least).clamp(max=65504).half()
    zero = zero_of(low, high, scale.to(low.dtype)).clamp(-32767, 32767)
    return scale, zero.to(torch.int16)


def codes_of(images, scales, zeros, settings):
    """Codes (S, C, H, W) uint8, and whether each was in range before it was cut to it."""
    scale = spread(scales.to(images.dtype), images.shape, settings)
    zero = spread(zeros.to(images.dtype), images.shape, settings)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (images / safe + zero).round()
    last = 2 ** settings["bits"] - 1
    return codes.clamp(0, last).to(torch.uint8), (codes >= 0) & (codes <= last)


def dequantised(codes, scales, zeros, settings):
    """Images (S, C, H, W) of their codes: (code - zero) scale, in float32 or float64."""
    kind = torch.float64 if scales.dtype == torch.float64 else torch.float32
    scale = spread(scales.to(kind), codes.shape, settings)
    zero = spread(zeros.to(kind), codes.shape, settings)
    return (codes.to(kind) - zero) * scale


def spread(values, shape, settings):
    """Values of regions (S, R) at the pixels of images (S, C, H, W), or what broadcasts to them."""
    num, channels, height, width = shape
    if settings["region"] == "image":
        return values.view(num, 1, 1, 1)
    if settings["region"] == "channel":
        return values.view(num, channels, 1, 1)
    side = settings["patch"]
    rows, columns = -(-height // side), -(-width // side)
    grid = values.view(num, 1, rows, columns)
    grid = grid.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return grid[:, :, :height, :width]


def unpacked(stream, settings, num):
    """Codes (num, C, H, W) uint8 of a stream of bytes (n,)."""
    shape = (num, *settings["shape"])
    if settings["packing"] == "lzma":
        filters = [{"id": lzma.FILTER_LZMA2}]
        reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        # a short stream may say very many bytes
        plain = reader.decompress(bytes(stream.tolist()), max_length=math.prod(shape) + 1)
        return torch.frombuffer(bytearray(plain), dtype=torch.uint8).view(shape)
    codes = bit_unpacked(stream, settings["bits"], math.prod(shape))
    return codes.to(torch.uint8).view(shape)
