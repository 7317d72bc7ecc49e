"""Parametrisations of the stored tensors: how training examples are made from what is stored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ddengine.data import Preprocess
from ddengine.recipe import require
from ddengine.system.errors import UserError
from ddengine.system.runtime import exact_matmul

Tensors = Mapping[str, Tensor]
Space = Literal["pixel", "model"]


class Codec(Protocol):
    """A frozen dataclass without state: its fields are its configuration, what is learned lies in
    the tensors.
    """

    @property
    def space(self) -> Space:
        """What the stored values are: pixels in [0, 1], preprocessed after decoding, or what
        networks see.
        """
        ...

    @property
    def per_item(self) -> int:
        """Images that one stored item starts from."""
        ...

    def fit(self, ipc: int, num_classes: int) -> "tuple[Codec, int]":
        """(the codec for a budget of `ipc` images per class, items stored per class).

        Raises UserError for a budget below one item.
        """
        ...

    def natural(self, tensors: Tensors) -> int:
        """How many of the decoded examples, the first ones, are images that are stored as they are,
        beside others made of them; 0 where all are.
        """
        ...

    def source(self, tensors: Tensors) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        ...

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) of N, differentiable in the tensors as
        often as wanted.
        """
        ...

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The tensors to start from: "images" (S, C, H, W), made of `per_item` images each, (S *
        per_item, C, H, W), those of an item in a row.

        Raises UserError when the images do not suit the configuration.
        """
        ...

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Move the tensors into their valid range, in place; called after each outer step."""
        ...

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> "tuple[Codec, dict[str, Tensor]]":
        """What is stored in the end, as small as it is meant to be, and the codec that reads it;
        the same again for what is shipped already.
        """
        ...

    def loader(self) -> str:
        """Python source of `decode(tensors)` -> (all N examples (N, C, H, W), their stored items
        (N,)), for the shipped `load.py`.

        Plain torch, which the source may call `torch` and `torch.nn.functional`; no engine.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One stored image is one training example. Values are free, as mostly published, or bounded."""

    # clamp to what pixels can be after each update (SRe2L), and ship bytes; for mean and standard
    # deviation, not for whitened images
    bounded: bool = False

    @property
    def space(self) -> Space:
        """What networks see."""
        return "model"

    @property
    def per_item(self) -> int:
        """One."""
        return 1

    def fit(self, ipc: int, num_classes: int) -> tuple[Codec, int]:
        """`ipc` items."""
        return self, ipc

    def natural(self, tensors: Tensors) -> int:
        """None."""
        return 0

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images themselves."""
        return tensors["images"].index_select(0, index)

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The images themselves. Raises UserError where there are no bounds."""
        if self.bounded and preprocess.std is None:
            raise UserError(
                "codec.bounded clamps normalised pixels, and whitened images have no such bounds; "
                "set data.zca or codec.bounded to False."
            )
        return {"images": images}

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp where asked to."""
        if self.bounded:
            tensors["images"].copy_(preprocess.clamp(tensors["images"]))

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """As they are; bounded ones are pixels, so bytes."""
        if not self.bounded:
            return self, dict(tensors)
        return Pixels().ship(
            {**tensors, "images": preprocess.backward(tensors["images"])}, preprocess
        )

    def loader(self) -> str:
        """The stored images themselves."""
        return 'def decode(tensors):\n    return tensors["images"], torch.arange(len(tensors["images"]))\n'


def as_pixels(images: Tensor) -> Tensor:
    """Stored pixels as values in [0, 1], also where they are bytes."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def as_bytes(images: Tensor) -> Tensor:
    """Pixels, clamped to [0, 1], as bytes, rounded as torchvision.utils.save_image does (halves
    up); bytes as they are.
    """
    if images.dtype == torch.uint8:
        return images
    return images.detach().float().clamp(0, 1).mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One stored image is one training example, in pixels, which are clamped to [0, 1] after each
    update and shipped as bytes.
    """

    @property
    def space(self) -> Space:
        """Pixels."""
        return "pixel"

    @property
    def per_item(self) -> int:
        """One."""
        return 1

    def fit(self, ipc: int, num_classes: int) -> tuple[Codec, int]:
        """`ipc` items."""
        return self, ipc

    def natural(self, tensors: Tensors) -> int:
        """None."""
        return 0

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images."""
        return as_pixels(tensors["images"].index_select(0, index))

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The images, clamped."""
        return {"images": images.clamp(0, 1)}

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes."""
        return self, {**tensors, "images": as_bytes(tensors["images"])}

    def loader(self) -> str:
        """Bytes become values in [0, 1]."""
        return """def decode(tensors):
    images = tensors["images"]
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return images, torch.arange(len(images))
"""


# pixel value of what is missing at the bottom and the right of an image that the tiles do not
# divide
PADDING = 0.5


@dataclass(frozen=True, kw_only=True)
class MultiFormation:
    """Every stored image holds factor x factor tiles, each resized to a whole training example
    (IDC; Kim et al., ICML 2022, section 4).

    Where the factor does not divide the image, it is padded at the bottom and the right. Tiles are
    resized bilinearly, with half-pixel centres, the edge repeated. Decoded examples come in the
    order tile (0, 0) of all items, tile (0, 1) of all items, ..., row by row. The released code
    clamps once per network; here the stored values are clamped to [0, 1] after each update.
    """

    # tiles along each side; published: 2 for images of up to 32 pixels, 3 for larger ones
    factor: int = 2

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("kim2022idc",)

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"codec.factor must be at least 1, got {self.factor}.")

    @property
    def space(self) -> Space:
        """Pixels."""
        return "pixel"

    @property
    def per_item(self) -> int:
        """The tiles of an image."""
        return self.factor**2

    def fit(self, ipc: int, num_classes: int) -> tuple[Codec, int]:
        """`ipc` items."""
        return self, ipc

    def natural(self, tensors: Tensors) -> int:
        """None."""
        return 0

    def _tile(self, images: Tensor) -> tuple[int, int]:
        """Height and width of a tile."""
        return -(-images.shape[2] // self.factor), -(-images.shape[3] // self.factor)

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1, once for each tile."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device).repeat(
            self.per_item
        )

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The tiles at `index`, resized."""
        images, n = tensors["images"], self.factor
        (num, channels, height, width), (rows, columns) = images.shape, self._tile(images)
        padded = functional.pad(
            images, (0, n * columns - width, 0, n * rows - height), value=PADDING
        )
        tiles = (
            padded.view(num, channels, n, rows, n, columns)
            .permute(2, 4, 0, 1, 3, 5)
            .reshape(n * n * num, channels, rows, columns)
        )
        return resize(tiles.index_select(0, index), (height, width))

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """Each image becomes a tile, shrunk by taking the nearest pixels (as published)."""
        n, (total, channels, height, width) = self.factor, images.shape
        if n > min(height, width):
            raise UserError(
                f"codec.factor {n} is more than the {min(height, width)} pixels of an image's "
                "side; lower codec.factor."
            )
        rows, columns = self._tile(images)
        if (n - 1) * rows >= height or (n - 1) * columns >= width:
            raise UserError(
                f"codec.factor {n} cuts images of {height} x {width} pixels into tiles of {rows} "
                f"x {columns}, the last of which hold nothing but "
                "padding; set codec.factor to a divisor of the side."
            )
        tiles = functional.interpolate(images, size=(rows, columns), mode="nearest").view(
            total // n**2, n, n, channels, rows, columns
        )
        packed = (
            tiles.permute(0, 3, 1, 4, 2, 5)
            .reshape(-1, channels, n * rows, n * columns)[:, :, :height, :width]
            .contiguous()
        )
        return {"images": packed.clamp(0, 1)}

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """As they are."""
        return self, dict(tensors)

    def loader(self) -> str:
        """The same in one function."""
        return f"""def decode(tensors, n={self.factor}):
    images = tensors["images"]
    num, channels, height, width = images.shape
    rows, columns = -(-height // n), -(-width // n)
    padded = torch.nn.functional.pad(images, (0, n * columns - width, 0, n * rows - height), value={PADDING})
    tiles = padded.view(num, channels, n, rows, n, columns).permute(2, 4, 0, 1, 3, 5).reshape(-1, channels, rows, columns)
    examples = torch.nn.functional.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)
    return examples, torch.arange(num).repeat(n * n)
"""


@dataclass(frozen=True, kw_only=True)
class Compensated:
    """Natural images, and universal feature compensators that each are added to one image of every
    class (INFER; Zhang et al., ICLR 2025, section 3).

    With K compensators over n images of each of C classes there are C (n + K) training examples:
    the natural images, then for each compensator k the images of base set k mod n (the image k mod
    n of every class) plus the compensator. A budget of `ipc` images per class holds n + K / C <=
    ipc; published: K = M n for M teachers, so n = floor(ipc C / (M + C)). (The released program
    computes this in binary fractions and gets one image less where ipc C / (M + C) is whole and M /
    C has no exact one.)

    Stored: "images" (n C, C, H, W), pixels in [0, 1]; "compensators" (K, C, H, W), in units of
    normalised pixels; "unit" (C,), how much of a pixel that is. What is shipped are bytes and
    float16, and sums are clamped to [0, 1]: the sum is made when it is needed.
    """

    per_set: int = 4  # compensators for each set of base images, M; published: one for each teacher
    # base images per class, n; None: as many as the budget holds with per_set compensators each
    base: int | None = None
    # K; None: per_set times n, or with base all that the budget holds
    compensators: int | None = None
    # clamp the sum also while compensators are optimised; without, only in the end (as the released
    # program does)
    clamp: bool = False

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("zhang2025infer",)

    def __post_init__(self) -> None:
        require(self.per_set >= 1, f"codec.per_set must be at least 1, got {self.per_set}.")
        require(
            self.base is None or self.base >= 1,
            (
                f"codec.base must be at least 1, got {self.base}; leave it out for the published "
                "number."
            ),
        )
        require(
            self.compensators is None or self.compensators >= 1,
            f"codec.compensators must be at least 1, got {self.compensators}.",
        )

    @property
    def space(self) -> Space:
        """Pixels."""
        return "pixel"

    @property
    def per_item(self) -> int:
        """One."""
        return 1

    def budget(self, ipc: int, num_classes: int) -> tuple[int, int, int]:
        """(n, K, N): base images per class, compensators, training examples per class.

        Raises UserError for what the budget does not hold.
        """
        free, n = self.compensators, self.base
        if n is None:
            # what the compensators leave
            n = (
                ipc * num_classes // (self.per_set + num_classes)
                if free is None
                else ipc - -(-free // num_classes)
            )
        if n < 1:
            count = self.per_set if free is None else free
            raise UserError(
                f"ipc {ipc} leaves no whole base image: an image of each of {num_classes} classes "
                f"and {count} compensators take "
                f"{1 + count / num_classes:.3g} images per class; set ipc "
                f"{-(-(count + num_classes) // num_classes)}, or fewer compensators with "
                f"codec.{'per_set' if free is None else 'compensators'}."
            )
        count = free or (self.per_set * n if self.base is None else num_classes * (ipc - n))
        if count < 1 or n * num_classes + count > ipc * num_classes:
            taken = f"codec.base {n} and codec.compensators {count} take {n + count / num_classes:.4g} images per class, and ipc allows {ipc}"
            full = f"codec.base {n} leaves no compensator within ipc {ipc}"
            raise UserError(f"{taken if count > 0 else full}; lower them or raise ipc.")
        return n, count, n + count

    def fit(self, ipc: int, num_classes: int) -> tuple[Codec, int]:
        """With the numbers of the budget in it."""
        n, count, _ = self.budget(ipc, num_classes)
        return replace(self, base=n, compensators=count), n

    def natural(self, tensors: Tensors) -> int:
        """The base images."""
        return len(tensors["images"])

    def pairs(self, tensors: Tensors) -> Tensor:
        """Base images under each compensator, one of every class in order: (K, C) int64."""
        assert self.base is not None, "the codec was not fitted to a budget"
        device = tensors["images"].device
        sets = torch.arange(len(tensors["compensators"]), device=device) % self.base
        return sets[:, None] + torch.arange(0, len(tensors["images"]), self.base, device=device)

    def source(self, tensors: Tensors) -> Tensor:
        """The base image of each."""
        return torch.cat(
            [
                torch.arange(len(tensors["images"]), device=tensors["images"].device),
                self.pairs(tensors).flatten(),
            ]
        )

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Base image plus compensator; bytes become pixels first."""
        images, compensators, unit = (
            tensors["images"],
            tensors["compensators"],
            tensors["unit"].view(-1, 1, 1),
        )
        num, num_classes = len(images), len(images) // (self.base or 1)
        chosen = as_pixels(images.index_select(0, self.source(tensors).index_select(0, index)))
        if not len(compensators):
            return chosen
        added = (
            compensators.to(chosen.dtype).index_select(
                0, ((index - num) // num_classes).clamp(min=0)
            )
            * unit
        )
        summed = torch.where((index >= num).view(-1, 1, 1, 1), chosen + added, chosen)
        return summed.clamp(0, 1) if self.clamp else summed

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The images, and compensators of 0.

        Whitened pixels have no unit of their own: there a compensator is in pixels.
        """
        unit = (
            torch.ones(images.shape[1], device=images.device, dtype=images.dtype)
            if preprocess.std is None
            else preprocess.std.to(images).clone()
        )
        return {
            "images": images,
            "compensators": images.new_zeros(self.compensators or 0, *images.shape[1:]),
            "unit": unit,
        }

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp the images, where they are learned; what is added has no bounds, sums are clamped
        when they are made.
        """
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes for what are pixels of real images, float16 for compensators; sums are clamped from
        now on.
        """
        stored = {
            "images": as_bytes(tensors["images"]),
            "compensators": tensors["compensators"].half(),
        }
        return replace(self, clamp=True), {**tensors, **stored}

    def loader(self) -> str:
        """The sums, clamped where they are shipped so."""
        clamped = ".clamp(0, 1)" if self.clamp else ""
        return f"""def decode(tensors, n={self.base}):
    images, compensators = tensors["images"], tensors["compensators"].float() * tensors["unit"].view(-1, 1, 1)
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    first = torch.arange(0, len(images), n)  # of each class
    item = [torch.arange(len(images)), *(first + k % n for k in range(len(compensators)))]
    examples = [images, *(images[first + k % n] + compensator for k, compensator in enumerate(compensators))]
    return torch.cat(examples){clamped}, torch.cat(item)
"""


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size): half-pixel centres, the edge repeated, no
    antialiasing.

    Two matrix products instead of functional.interpolate, whose backward has no deterministic
    kernel on CUDA.
    """
    rows, columns = (
        _weights(old, new, images) for old, new in zip(images.shape[2:], size, strict=True)
    )
    with exact_matmul():
        return rows @ images @ columns.T


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) of linear interpolation along one side."""
    at = (
        (torch.arange(new, device=like.device, dtype=like.dtype) + 0.5) * (old / new) - 0.5
    ).clamp(0, old - 1)
    return (1 - (at[:, None] - torch.arange(old, device=like.device)).abs()).clamp(min=0)
