"""Images as a few frequencies, which those of a class share (FreD)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require_at_least
from ddengine.sets.codec.packed import bit_packed, bit_unpacked
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.values import other_shape
from ddengine.sets.codec.within_bytes import WithinBytes
from ddengine.system.errors import UserError

BYTES = 4  # of a float32


@dataclass(frozen=True, kw_only=True)
class Spectra(WithinBytes):
    """An image is some frequencies of its cosine transform (FreD, Shin et al., NeurIPS 2023).

    Stored: "spectra" (S, C, kept) in float32, the values at the positions that the mask of the
    class keeps, row by row, and "masks", a bit for each position and class. The spectrum of a
    channel is M x M^T with M[k, n] = 2 cos(pi (2 n + 1) k / 2 N). Of each class the positions are
    kept whose values, averaged over channels, vary most among the images that it starts from (the
    paper: among all images of the class).
    """

    WORKS: ClassVar[tuple[str, ...]] = ("shin2023fred",)
    MAIN: ClassVar[str] = "spectra"

    kept: int = 64  # frequencies of an image, the same for all channels

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("codec.kept", self.kept)

    def small(self) -> Codec:
        """With few frequencies."""
        return replace(self, kept=min(self.kept, 8), items=2)

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError for images of fewer frequencies."""
        positions = math.prod(image_shape[1:])
        if self.kept > positions:
            raise UserError(
                f"codec.kept {self.kept} is more than the {positions} frequencies of an image; "
                f"lower it to {positions}."
            )

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Four bytes a value, and a bit for each position and class."""
        values = items * num_classes * image_shape[0] * self.kept
        return BYTES * values + math.ceil(num_classes * math.prod(image_shape[1:]) / 8)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The spectra of the images where they vary most."""
        spectra = spectrum(images)
        by_class = spectra.view(num_classes, -1, *images.shape[1:])
        masks = varying(by_class, self.kept)
        of_item = masks.repeat_interleave(by_class.shape[1], 0)
        kept = spectra.flatten(2).masked_select(of_item.flatten(1)[:, None])
        return {"spectra": kept.view(len(images), images.shape[1], -1), "masks": masks}

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The values."""
        return {"spectra": ("spectra",)}

    def bytes_by_part(self, tensors: Tensors) -> dict[str, int]:
        """Values and masks."""
        return {"spectra": tensors["spectra"].nbytes, "masks": tensors["masks"].nbytes}

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """What the inverse transform makes of the values at their positions."""
        chosen = tensors["spectra"].index_select(0, index)
        masks = unpacked_masks(tensors, self.image_shape)
        positions = kept_positions(masks).index_select(0, index // self.held)
        return images_of_values(chosen, positions, self.image_shape)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Masks as bits."""
        if tensors["masks"].dtype != torch.bool:
            return self, dict(tensors)
        return self, {**tensors, "masks": bit_packed(tensors["masks"].flatten().long(), 1)}

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Values and masks, which are packed when they are shipped."""
        unpacked = "masks" in tensors and tensors["masks"].dtype == torch.bool
        return {"spectra": 3, "masks": 3 if unpacked else 1}

    def memory(self, tensors: Tensors) -> int:
        """The masks, unpacked, a spectrum and the matrices that undo it."""
        channels, height, width = self.image_shape
        transforms = height**2 + width**2 + 2 * channels * height * width
        return 100 * tensors["masks"].numel() + 8 * transforms

    def flaw(self, tensors: Tensors) -> str | None:
        """Masks that do not keep as many positions as there are values."""
        spectra = tensors["spectra"]
        wrong = other_shape(tensors, {"spectra": (None, self.image_shape[0], self.kept)})
        if wrong is not None:
            return wrong
        bits = len(spectra) // self.held * math.prod(self.image_shape[1:])
        num = tensors["masks"].numel() * (1 if tensors["masks"].dtype == torch.bool else 8)
        said = f"holds 'masks' that do not keep {spectra.shape[-1]} positions of each class"
        if len(spectra) % self.held or not bits <= num < bits + 8:
            return said
        masks = unpacked_masks(tensors, self.image_shape)
        return None if bool((masks.flatten(1).sum(1) == self.kept).all()) else said

    def loader(self) -> Loader:
        """All images."""
        return images_of_spectra


def spectrum(images: Tensor) -> Tensor:
    """The cosine transform of each channel of images (B, C, H, W)."""
    rows = cosines(images.shape[2], images)
    columns = cosines(images.shape[3], images)
    return 2 * rows @ images @ (2 * columns).mT


def variances(spectra: Tensor) -> Tensor:
    """(K, H, W): how much the spectra (K, n, C, H, W) of each class vary, averaged over channels.

    One spectrum alone does not, and counts by its square.
    """
    averaged = spectra.mean(2)
    if averaged.shape[1] == 1:
        return averaged[:, 0].square()
    return averaged.var(1)


def varying(spectra: Tensor, kept: int) -> Tensor:
    """(K, H, W) bool: the `kept` positions where the spectra of each class vary most."""
    variance = variances(spectra).flatten(1)
    largest = variance.topk(kept, 1).indices
    masks = torch.zeros_like(variance, dtype=torch.bool).scatter(1, largest, True)
    return masks.view(len(spectra), *spectra.shape[3:])


# What is shipped: plain torch, see `Codec.loader`.


def images_of_spectra(tensors, settings):
    """(examples, the stored item of each): what its values at its positions are."""
    spectra, shape = tensors["spectra"], settings["shape"]
    index = torch.arange(len(spectra))
    masks = unpacked_masks(tensors, shape)
    positions = kept_positions(masks)[index // settings["items"]]
    return images_of_values(spectra, positions, shape), index


def unpacked_masks(tensors, shape):
    """Masks (K, H, W) bool, which are shipped as bits."""
    masks = tensors["masks"]
    if masks.dtype == torch.bool:
        return masks
    num_classes = len(masks) * 8 // (shape[1] * shape[2])
    bits = bit_unpacked(masks, 1, num_classes * shape[1] * shape[2])
    return bits.bool().view(num_classes, *shape[1:])


def kept_positions(masks):
    """(K, kept) int64: the positions of each class that masks (K, H, W) keep, row by row."""
    return masks.flatten(1).nonzero()[:, 1].view(len(masks), -1)


def images_of_values(values, positions, shape):
    """Images (B, C, H, W) of values (B, C, kept) at the positions (B, kept) of their spectra."""
    channels, height, width = shape
    everywhere = positions[:, None].expand(-1, channels, -1)
    empty = values.new_zeros(len(values), channels, height * width)
    spectra = empty.scatter(2, everywhere, values).view(-1, channels, height, width)
    return undone(height, values) @ spectra @ undone(width, values).mT


def cosines(side, like):
    """(side, side): cos(pi (2 n + 1) k / 2 side) in row k and column n."""
    line = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.cos(math.pi * (2 * line + 1) * line[:, None] / (2 * side))


def undone(side, like):
    """The inverse (side, side) of the transform of a side."""
    inverse = cosines(side, like).mT / side
    half = torch.ones(side, device=like.device, dtype=like.dtype)
    half[0] = 0.5
    return inverse * half
