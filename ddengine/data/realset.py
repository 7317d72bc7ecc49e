"""Real images on the device."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor

from ddengine.data.preprocess import Preprocess
from ddengine.system.errors import UserError
from ddengine.system.files import tensor_digest
from ddengine.system.rng import on_device
from ddengine.system.runtime import available_memory, sent
from ddengine.types import Batch

SHARE = 0.5  # of a GPU's memory that is free; images that take more stay where they are


def images_digest(pixels: Tensor, labels: Tensor) -> str:
    """12 hexadecimal digits that identify images and labels."""
    return tensor_digest({"pixels": pixels, "labels": labels})


def placed(pixels: Tensor, device: torch.device) -> Tensor:
    """Images where their set will have them: on the device, or where they are if it has no room."""
    if device.type == "cuda" and pixels.numel() > SHARE * available_memory(device):
        return pixels
    return pixels.to(device)


class RealSet:
    """A whole split as uint8, preprocessed on the device when drawn.

    It lies on the device, or in memory or in a file where it is too large. Nothing is done image by
    image in Python.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        digest: str | None = None,
        class_names: Sequence[str] = (),
    ):
        """Pixels (N, C, H, W) uint8, and labels (N,) int64 on the device of the set.

        `digest` is given when it is known already, `class_names` for messages.
        """
        self.pixels = pixels
        self.labels = labels
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.preprocess = preprocess
        self._digest = digest

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where images are when they have been drawn."""
        return self.labels.device

    def stored(self, index: Tensor) -> Tensor:
        """(B,) -> (B, C, H, W) uint8 on the device."""
        pixels = self.pixels.index_select(0, sent(index, self.pixels.device))
        return sent(pixels, self.device)

    def images(self, index: Tensor) -> Tensor:
        """(B,) -> (B, C, H, W), preprocessed."""
        return self.preprocess.forward(self.stored(index).float() / 255)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        there = sent(index, self.device)
        images = self.images(there if self.pixels.device == self.device else index)
        return Batch(images, self.labels.index_select(0, there))

    def called(self, class_: int) -> str:
        """A class in a message: its name, or its number where nobody gave it one."""
        return repr(self.class_names[class_]) if self.class_names else str(class_)

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """Indices of the images of each class, ascending, on the CPU."""
        labels = self.labels.cpu()
        return tuple((labels == c).nonzero().flatten() for c in range(self.num_classes))

    def draw_index(
        self,
        class_: int,
        num: int,
        rng: Generator,
    ) -> Tensor:
        """Indices (num,) of random images of a class, without repetition.

        Raises UserError when it has fewer.
        """
        members = self.members[class_]
        if num > len(members):
            raise UserError(
                f"{num} images of class {self.called(class_)} were asked for, which has "
                f"{len(members)} training images; ask for fewer."
            )
        return members[torch.randperm(len(members), generator=rng)[:num]]

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """(members of all classes (K, longest) on the device, which places are filled up)."""
        table = torch.nn.utils.rnn.pad_sequence(
            list(self.members), batch_first=True, padding_value=-1
        )
        table = table.to(self.device)
        return table, table < 0

    def draw_each(self, num: int, rng: Generator) -> Tensor:
        """Indices (K, n) of random images of every class, drawn on the device and lying on it.

        n is `num`, or the size of the largest class if that is smaller. No image comes twice, but
        in classes of fewer than n images: of these all come equally often, up to one. The draw
        follows from `rng`, and differs between kinds of device and models of GPU.
        """
        table, missing = self._table
        source = on_device(rng, self.device)
        keys = torch.rand(table.shape, generator=source, device=self.device, dtype=torch.float64)
        keys.masked_fill_(missing, 2.0)
        num = min(num, table.shape[1])
        # where a class has fewer than num, its images come before what the row is filled up with
        order = keys.topk(num, largest=False).indices
        counts = (~missing).sum(1, keepdim=True)
        repeating = torch.arange(num, device=self.device) % counts
        places = order.gather(1, repeating)
        return table.gather(1, places)

    def draw(
        self,
        class_: int,
        num: int,
        rng: Generator,
    ) -> Tensor:
        """Random preprocessed images (num, C, H, W) of a class, without repetition.

        All of a class that has fewer.
        """
        most = min(num, len(self.members[class_]))
        return self.images(self.draw_index(class_, most, rng))

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that identify images and labels."""
        if self._digest is None:
            self._digest = images_digest(self.pixels, self.labels)
        return self._digest


class Subset:
    """Some images of a RealSet as a training set: a random draw, a coreset."""

    def __init__(self, real: RealSet, index: Tensor):
        """Index (N,): the chosen images."""
        self.real = real
        self.index = index

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,) of the subset."""
        return self.real.batch(self.index[index])
