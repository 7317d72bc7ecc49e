"""Images as combinations of bases that all classes share (RTP)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require_at_least
from ddengine.sets.codec.protocol import Codec, Loader, Space, Tensors, inseparable
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import exact_matmul

BYTES = 4  # of a float32


@dataclass(frozen=True, kw_only=True)
class LinearBases(Codec):
    """Every image is a combination of small bases, enlarged (Deng & Russakovsky, NeurIPS 2022).

    Stored: "bases" (K, c, H / shrink, W / shrink), which all classes share, and "coefficients" (C
    rows, K), the rows of a class one after another. The image of a row a is the sum over k of a_k
    times basis k, enlarged bilinearly; its values are what networks see. Of a budget of `ipc`
    images per class the bases take K / shrink^2 images, and coefficients the rest: a class has
    floor((ipc c H W C - K c H W / shrink^2) / (C K)) rows.
    """

    bases: int = 16  # K, of all classes together
    shrink: int = 2  # how much smaller than an image a basis is, along each side
    # xavier: small random numbers, as published | images: the principal components of real images
    start: Literal["xavier", "images"] = "xavier"
    rows: int | None = None  # rows of coefficients of a class; None: as many as the budget holds
    # images per class that the budget is counted in, which follow from `ipc`; None: these
    items: int | None = None

    def __post_init__(self) -> None:
        require_at_least("codec.bases", self.bases)
        require_at_least("codec.shrink", self.shrink)
        require_at_least("codec.rows", self.rows)
        require_at_least("codec.items", self.items)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("deng2022rtp",)

    @property
    def space(self) -> Space:
        """What networks see."""
        return "model"

    @property
    def per_item(self) -> int:
        """Images that the rows of an item start from; of random ones one, whose shape is all."""
        if self.start == "xavier" or self.rows is None or self.items is None:
            return 1
        return math.ceil(self.rows / self.items)

    @property
    def approximates(self) -> bool:
        """Few bases make up no image exactly."""
        return True

    @property
    def of_all_classes(self) -> str:
        """The bases."""
        return "bases"

    def small(self) -> Codec:
        """With eight bases at most."""
        return replace(self, bases=min(self.bases, 8))

    def most_rows(self, numbers: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Rows of coefficients of a class that so many numbers leave beside the bases."""
        of_bases = self.bases * math.prod(image_shape) // self.shrink**2
        return max(0, (numbers - of_bases) // (num_classes * self.bases))

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError for images that bases do not make up."""
        _, height, width = image_shape
        if height % self.shrink or width % self.shrink:
            raise UserError(
                f"codec.shrink {self.shrink} does not divide images of {height} x {width} pixels; "
                "set codec.shrink to a divisor of both sides."
            )

    def fit(
        self, ipc: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> tuple[Codec, int]:
        """With the rows that the budget holds, shared out among `ipc` items of each class."""
        self.check_shape(image_shape)
        numbers = ipc * math.prod(image_shape) * num_classes
        most = self.most_rows(numbers, image_shape, num_classes)
        if most < 1:
            needed = self.shipped_bytes(1, image_shape, num_classes) // BYTES
            least = -(-needed // (math.prod(image_shape) * num_classes))
            raise UserError(
                f"codec.bases {self.bases} leave no coefficients within ipc {ipc} of {num_classes} "
                f"classes; set ipc {least} or more, or lower codec.bases or raise codec.shrink."
            )
        return self.of_rows(most, ipc, f"ipc {ipc}")

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Bases, and so many rows of coefficients of each class, in float32."""
        bases = self.bases * math.prod(image_shape) // self.shrink**2
        return BYTES * (bases + items * num_classes * self.bases)

    def within(
        self, num_bytes: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> tuple[Codec, int]:
        """With the rows that so many bytes hold, each an item of its own."""
        self.check_shape(image_shape)
        most = self.most_items(num_bytes, image_shape, num_classes)
        return self.of_rows(most, self.rows or most, f"{num_bytes} bytes")

    def of_rows(self, most: int, items: int, held_by: str) -> tuple[Codec, int]:
        """With `most` rows of a class, or those asked for, shared out among so many items.

        Raises UserError for more than `held_by` holds.
        """
        if self.rows is not None and self.rows > most:
            raise UserError(
                f"codec.rows {self.rows} do not fit into {held_by}, which holds {most} beside "
                f"codec.bases {self.bases}; lower codec.rows or leave it out."
            )
        rows = self.rows or most
        items = min(items, rows)
        if self.items not in (None, items):
            raise UserError(
                f"codec.items {self.items} is no choice: of {held_by} and {rows} rows it is "
                f"{items}; leave it out."
            )
        return replace(self, rows=rows, items=items), items

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Random numbers, or what is nearest to the images with K bases."""
        assert self.rows is not None, "the codec was not fitted to a budget"
        assert self.items is not None
        rng = rng or generator(0, "linear bases")
        _, channels, height, width = images.shape
        shape = (channels, height // self.shrink, width // self.shrink)
        bases = xavier(self.bases, math.prod(shape), rng).to(images)
        if self.start == "images":
            in_order = images.view(num_classes, self.items, -1, channels, height, width)
            by_row = in_order.transpose(1, 2).flatten(1, 2)[:, : self.rows].flatten(0, 1)
            small = torch.nn.functional.avg_pool2d(by_row, self.shrink)
            bases, coefficients = principal(small.flatten(1), bases)
        else:
            of_classes = [xavier(self.rows, self.bases, rng) for _ in range(num_classes)]
            coefficients = torch.cat(of_classes).to(images)
        return {"bases": bases.view(self.bases, *shape), "coefficients": coefficients}

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The bases and the coefficients."""
        return {"bases": ("bases",), "coefficients": ("coefficients",)}

    def source(self, tensors: Tensors) -> Tensor:
        """The rows of a class belong to its items in turn.

        Raises UserError where the codec was not fitted to a budget, or its file says so.
        """
        if self.rows is None or self.items is None:
            raise UserError(
                "The codec LinearBases does not say how many rows and items a class has, because "
                "it was not fitted to a budget; set codec.rows and codec.items."
            )
        coefficients = tensors["coefficients"]
        row = torch.arange(len(coefficients), device=coefficients.device)
        return item_of(row, self.rows, self.items)

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> tuple[Codec, dict[str, Tensor]]:
        """The rows of these items, where each has one; bases stay."""
        if self.rows != self.items:
            raise inseparable(self)
        num = len(items) // num_classes
        rows = tensors["coefficients"].index_select(0, items)
        return replace(self, rows=num, items=num), {**tensors, "coefficients": rows}

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The images of some rows."""
        coefficients = tensors["coefficients"].index_select(0, index)
        with exact_matmul():
            return combined(tensors["bases"], coefficients, self.shrink)

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Bases, and rows of coefficients."""
        return {"bases": 4, "coefficients": 2}

    def memory(self, tensors: Tensors) -> int:
        """Whose each row is, and the image of one, with the matrices that enlarge it."""
        _, channels, height, width = tensors["bases"].shape
        enlarged = channels * height * width * self.shrink**2
        matrices = self.shrink * (height**2 + width**2)
        return 8 * len(tensors["coefficients"]) + 4 * (enlarged + matrices)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """As they are; what is packed anew in this codec starts from images."""
        return replace(self, start="images"), dict(tensors)

    def loader(self) -> Loader:
        """All rows."""
        return images_of_bases


def xavier(rows: int, columns: int, rng: Generator) -> Tensor:
    """Random numbers (rows, columns), uniform as torch.nn.init.xavier_uniform_ has them."""
    bound = math.sqrt(6 / (rows + columns))
    return (2 * torch.rand(rows, columns, generator=rng) - 1) * bound


def principal(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """(bases (K, D), coefficients (n, K) of deviation 1) nearest to images (n, D).

    Where there are fewer components than `others` (K, D) has rows, the rest are these, unused.
    """
    left, lengths, right = torch.linalg.svd(images, full_matrices=False)
    num = min(len(others), len(lengths))
    scale = math.sqrt(len(images))
    bases = others.clone()
    bases[:num] = lengths[:num, None] / scale * right[:num]
    coefficients = images.new_zeros(len(images), len(others))
    coefficients[:, :num] = left[:, :num] * scale
    return bases, coefficients


# What is shipped: plain torch, see `Codec.loader`.


def images_of_bases(tensors, settings):
    """(examples, the stored item of each): a combination of the bases for each row."""
    coefficients = tensors["coefficients"]
    examples = combined(tensors["bases"], coefficients, settings["shrink"])
    row = torch.arange(len(coefficients))
    return examples, item_of(row, settings["rows"], settings["items"])


def combined(bases, coefficients, shrink):
    """Images (B, c, H, W) of rows (B, K) of coefficients: combined bases, enlarged."""
    small = (coefficients @ bases.flatten(1)).view(-1, *bases.shape[1:])
    rows = enlarging(bases.shape[2], shrink, bases)
    columns = enlarging(bases.shape[3], shrink, bases)
    return rows @ small @ columns.mT


def enlarging(side, times, like):
    """The matrix (times side, side) of linear interpolation along one side."""
    line = torch.arange(times * side, device=like.device, dtype=like.dtype)
    at = ((line + 0.5) / times - 0.5).clamp(0, side - 1)
    old = torch.arange(side, device=like.device)
    return (1 - (at[:, None] - old).abs()).clamp(min=0)


def item_of(row, rows, items):
    """The stored item of each row (N,) of coefficients, of which a class has `rows`."""
    return row // rows * items + row % rows % items
