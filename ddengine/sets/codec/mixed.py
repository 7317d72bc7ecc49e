"""Real images that stay as they are, beside learned ones (SelMatch)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.values import as_bytes, as_pixels, other_shape, too_large
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mixed(Codec):
    """Of each class the first images stay real, and the others are learned (SelMatch, ICML 2024).

    Stored: "frozen" (C rows, C, H, W), bytes; "images", the others, in pixels, which are clamped to
    [0, 1] after each update and shipped as bytes. A class has int(ipc learned) of the latter. Which
    images these are, `init` says, in its order: with `forgetting` or `el2n` the hardest first, so
    that the easiest of those chosen are learned.
    """

    learned: float = 0.5  # share of the images of a class; published: 0.1 to 0.8
    items: int | None = None  # images per class; None: as ipc says

    def __post_init__(self) -> None:
        require(
            0 < self.learned < 1,
            f"codec.learned is a share between 0 and 1, got {self.learned:g}; for all or none of "
            "the images take another codec or `select`.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("lee2024selmatch",)

    @property
    def num_learned(self) -> int:
        """Learned images of a class."""
        assert self.items is not None, "the codec was not fitted to a budget"
        return int(self.items * self.learned)

    @property
    def least_items(self) -> int:
        """As many that one is learned; the others stay."""
        least = math.floor(1 / self.learned)
        return least if int(least * self.learned) else least + 1

    def small(self) -> Codec:
        """Half of them learned."""
        return replace(self, learned=0.5, items=None)

    def fit(
        self, ipc: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> tuple[Codec, int]:
        """With the number of images in it."""
        mixed = replace(self, items=ipc)
        if ipc < self.least_items:
            raise UserError(
                f"codec.learned {self.learned:g} of ipc {ipc} leaves no image of a class to learn; "
                f"set ipc {self.least_items} or more."
            )
        return mixed, ipc

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """A byte a value."""
        return items * num_classes * math.prod(image_shape)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The images, those that stay as bytes."""
        by_class = images.view(num_classes, -1, *images.shape[1:])
        kept = by_class.shape[1] - self.num_learned
        return {
            "frozen": as_bytes(by_class[:, :kept].flatten(0, 1)),
            "images": by_class[:, kept:].flatten(0, 1).clamp(0, 1),
        }

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images that do not stay."""
        return {"images": ("images",)}

    def bytes_by_part(self, tensors: Tensors) -> dict[str, int]:
        """Both."""
        return {"images": tensors["images"].nbytes, "frozen": tensors["frozen"].nbytes}

    def num_images(self, tensors: Tensors) -> float:
        """Of both."""
        return len(tensors["images"]) + len(tensors["frozen"])

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        num = len(tensors["images"]) + len(tensors["frozen"])
        return torch.arange(num, device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Both, class by class."""
        images = as_pixels(tensors["images"])
        frozen = as_pixels(tensors["frozen"]).to(images.dtype)
        return in_turn(frozen, images, self.num_learned).index_select(0, index)

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes."""
        return self, {**tensors, "images": as_bytes(tensors["images"])}

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Both."""
        return {"frozen": 4, "images": 4}

    def memory(self, tensors: Tensors) -> int:
        """All images as floats, twice."""
        return 8 * (tensors["frozen"].numel() + tensors["images"].numel())

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has, and numbers of images that make no classes."""
        if self.items is None:
            return "belongs to a codec that does not say how many images a class has (items)"
        shape = tuple(tensors["images"].shape[1:])
        wrong = other_shape(tensors, {"frozen": (None, *shape)})
        if wrong is not None:
            return wrong
        num_classes, left = divmod(len(tensors["images"]), self.num_learned)
        if (
            self.items is None
            or left
            or len(tensors["frozen"]) != num_classes * (self.items - self.num_learned)
        ):
            return f"holds {len(tensors['frozen'])} 'frozen' beside {len(tensors['images'])} images"
        return too_large(tensors["images"])

    def loader(self) -> Loader:
        """Both, class by class."""
        return mixed_images


# What is shipped: plain torch, see `Codec.loader`.


def mixed_images(tensors, settings):
    """(examples, the stored item of each): kept and learned images, class by class."""
    frozen, images = tensors["frozen"].float() / 255, tensors["images"]
    if images.dtype == torch.uint8:
        images = images.float() / 255
    examples = in_turn(frozen, images, int(settings["items"] * settings["learned"]))
    return examples, torch.arange(len(examples))


def in_turn(frozen, images, num_learned):
    """Of each class its frozen images and then its others, of which it has so many."""
    num_classes = len(images) // num_learned
    of_classes = frozen.view(num_classes, -1, *frozen.shape[1:])
    learned = images.view(num_classes, -1, *images.shape[1:])
    return torch.cat([of_classes, learned], 1).flatten(0, 1)
