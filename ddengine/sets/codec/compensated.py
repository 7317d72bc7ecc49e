"""Natural images and universal feature compensators (INFER)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import Recipe, require
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.values import as_bytes, as_pixels, too_large
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Compensated(Codec):
    """Natural images, and universal feature compensators added to one image of every class.

    This is INFER (Zhang et al., ICLR 2025, section 3). With K compensators over n images of each of
    C classes there are C (n + K) training examples: the natural images, then for each compensator k
    the images of base set k mod n (the image k mod n of every class) plus the compensator. A budget
    of `ipc` images per class holds n + K / C <= ipc; published: K = M n for M teachers, so n =
    floor(ipc C / (M + C)). (The released program computes this in binary fractions and gets one
    image less where ipc C / (M + C) is an integer and M / C has no exact one.)

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

    def budget(self, ipc: int, num_classes: int) -> tuple[int, int, int]:
        """(n, K, N): base images per class, compensators, training examples per class.

        Raises UserError for what the budget does not hold.
        """
        n = self._base(ipc, num_classes)
        count = self._count(n, ipc, num_classes)
        if count < 1:
            raise UserError(
                f"codec.base {n} leaves no compensator within ipc {ipc}; lower them or raise ipc."
            )
        if n * num_classes + count > ipc * num_classes:
            raise UserError(
                f"codec.base {n} and codec.compensators {count} take {n + count / num_classes:.4g} "
                f"images per class, and ipc allows {ipc}; lower them or raise ipc."
            )
        return n, count, n + count

    def _base(self, ipc: int, num_classes: int) -> int:
        """n: what is asked for, or all that the compensators leave.

        Raises UserError where they leave none.
        """
        if self.base is not None:
            return self.base
        if self.compensators is None:
            n = ipc * num_classes // (self.per_set + num_classes)
            count = self.per_set
            flag = "per_set"
        else:
            n = ipc - -(-self.compensators // num_classes)
            count = self.compensators
            flag = "compensators"
        if n >= 1:
            return n
        images = count + num_classes  # of one base image of every class and its compensators
        raise UserError(
            f"ipc {ipc} leaves no whole base image: an image of each of {num_classes} classes "
            f"and {count} compensators take "
            f"{1 + count / num_classes:.3g} images per class; set ipc "
            f"{-(-images // num_classes)}, or fewer compensators with "
            f"codec.{flag}."
        )

    def _count(self, n: int, ipc: int, num_classes: int) -> int:
        """K: what is asked for; else `per_set` times n, or all that n asked for leaves."""
        if self.compensators is not None:
            return self.compensators
        if self.base is None:
            return self.per_set * n
        return num_classes * (ipc - n)

    @property
    def of_all_classes(self) -> str:
        """The compensators."""
        return "compensators"

    def warning(self, recipe: Recipe) -> str | None:
        """Where the sets have not one compensator of each teacher."""
        if not recipe.teachers or self.base is not None or self.compensators is not None:
            return None
        networks = len(recipe.teachers) * (recipe.buffer.num_experts if recipe.buffer else 0)
        if self.per_set == networks:
            return None
        return (
            f"codec.per_set {self.per_set} is not the number of teachers, {networks}, so not every "
            "set has a compensator of each"
        )

    def fit(
        self, ipc: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> tuple[Codec, int]:
        """With the numbers of the budget in it."""
        n, count, _ = self.budget(ipc, num_classes)
        return replace(self, base=n, compensators=count), n

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Bytes of what fits into `items` images per class: images, compensators and their unit."""
        n, count, _ = self.budget(items, num_classes)
        return (n * num_classes + 2 * count) * math.prod(image_shape) + 4 * image_shape[0]

    def within(
        self, num_bytes: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> tuple[Codec, int]:
        """With the largest whole number of images per class that so many bytes hold."""
        compensators = self.compensators or (1 if self.base else self.per_set)
        images = (self.base or 1) + math.ceil(compensators / num_classes)
        needed = self.shipped_bytes(images, image_shape, num_classes)
        if needed > num_bytes:
            raise UserError(
                f"A budget of {num_bytes} bytes holds no image of each of {num_classes} classes "
                f"and its compensators, which take {needed}; set --budget {needed}, or fewer "
                "compensators with codec.per_set."
            )
        if self.base is not None and self.compensators is not None:
            return self.fit(images, image_shape, num_classes)
        while self.shipped_bytes(images + 1, image_shape, num_classes) <= num_bytes:
            images += 1
        return self.fit(images, image_shape, num_classes)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The images, and compensators of 0.

        Whitened pixels have no unit of their own: there a compensator is in pixels.
        """
        if preprocess.std is None:
            unit = torch.ones(images.shape[1], device=images.device, dtype=images.dtype)
        else:
            unit = preprocess.std.to(images).clone()
        return {
            "images": images,
            "compensators": images.new_zeros(self.compensators or 0, *images.shape[1:]),
            "unit": unit,
        }

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images and the compensators."""
        return {"images": ("images",), "compensators": ("compensators",)}

    def natural(self, tensors: Tensors) -> int:
        """The base images."""
        return len(tensors["images"])

    def pairs(self, tensors: Tensors) -> Tensor:
        """Base images under each compensator, one of every class in order: (K, C) int64."""
        assert self.base is not None, "the codec was not fitted to a budget"
        images = tensors["images"]
        number = torch.arange(len(tensors["compensators"]), device=images.device)
        first_of_class = torch.arange(0, len(images), self.base, device=images.device)
        base_set = number % self.base
        return base_set.unsqueeze(1) + first_of_class

    def source(self, tensors: Tensors) -> Tensor:
        """The base image of each."""
        images = tensors["images"]
        natural = torch.arange(len(images), device=images.device)
        return torch.cat([natural, self.pairs(tensors).flatten()])

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Base image plus compensator; bytes become pixels first."""
        images = tensors["images"]
        compensators = tensors["compensators"]
        base_image = self.source(tensors).index_select(0, index)
        chosen = as_pixels(images.index_select(0, base_image))
        if not len(compensators):
            return chosen
        num = len(images)
        num_classes = num // (self.base or 1)
        number = ((index - num) // num_classes).clamp(min=0)  # of the compensator
        added = compensators.to(chosen.dtype).index_select(0, number)
        added = added * tensors["unit"].view(-1, 1, 1)
        compensated = (index >= num).view(-1, 1, 1, 1)
        summed = torch.where(compensated, chosen + added, chosen)
        return summed.clamp(0, 1) if self.clamp else summed

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp the images, where they are learned.

        What is added has no bounds, sums are clamped when they are made.
        """
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes for what are pixels of real images, float16 for compensators.

        Sums are clamped from now on.
        """
        stored = {
            "images": as_bytes(tensors["images"]),
            "compensators": tensors["compensators"].half(),
        }
        return replace(self, clamp=True), {**tensors, **stored}

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Images, compensators and their unit."""
        return {"images": 4, "compensators": 4, "unit": 1}

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has, and units that are not positive."""
        if "unit" in tensors and not bool((tensors["unit"] > 0).all()):
            units = tensors["unit"].tolist()
            return f"says units of {units} for compensators, and units are positive"
        return too_large(tensors["images"])

    def num_images(self, tensors: Tensors) -> float:
        """Base images and compensators."""
        return len(tensors["images"]) + len(tensors["compensators"])

    def loader(self) -> Loader:
        """Base images and sums, clamped where they are shipped so."""
        return compensated_images


# What is shipped: plain torch, see `Codec.loader`.


def compensated_images(tensors, settings):
    """(examples, the stored item of each): the images, and their sums with compensators.

    For each compensator k these are the image k mod n of every class plus the compensator.
    """
    images, n = tensors["images"], settings["base"]
    compensators = tensors["compensators"].float() * tensors["unit"].view(-1, 1, 1)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    first = torch.arange(0, len(images), n)  # of each class
    examples, items = [images], [torch.arange(len(images))]
    for k, compensator in enumerate(compensators):
        examples.append(images[first + k % n] + compensator)
        items.append(first + k % n)
    examples = torch.cat(examples)
    return examples.clamp(0, 1) if settings["clamp"] else examples, torch.cat(items)
