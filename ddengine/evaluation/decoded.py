"""Sets that networks are trained on in an evaluation, made once: decoded, rounded, labelled."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ddengine.learning.teachers import BATCH, ensemble_logits
from ddengine.sets.codec import as_bytes
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.types import Batch, TrainingSet

# a quarter of a step of 8 bits: pixels that lie nearer to the steps are 8-bit already
EIGHT_BIT = 1 / 1020


# values of all decoded images of a set, at most, that are held in memory; more are written into a
# file that is mapped into it
LARGE = 2**30
PART = 2**24  # values that are decoded at a time then


@dataclass(frozen=True)
class Decoded:
    """A distilled set decoded once: training on it then only indexes."""

    images: Tensor  # on the device of the targets, or in a file
    targets: Tensor
    classes: Tensor
    ledger: dict[str, int]  # bytes of what is stored
    # of the labels, where only classes are used; None: as in the ledger
    hard_bytes: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        images = self.images.index_select(0, index.to(self.images.device))
        index = index.to(self.targets.device)
        return Batch(
            images.to(self.targets.device),
            self.targets.index_select(0, index),
            self.classes.index_select(0, index),
        )


def freeze(syn: SyntheticSet, device: torch.device) -> Decoded:
    """The set decoded once, on `device`; the images of a large one in a file."""
    if _is_large(syn):
        return _frozen_in_parts(syn, device)
    with torch.no_grad():
        batch = syn.batch(torch.arange(len(syn)))
    assert batch.classes is not None
    return Decoded(
        images=batch.images.detach().to(device),
        targets=batch.targets.detach().to(device),
        classes=batch.classes.detach().to(device),
        ledger=syn.ledger,
        hard_bytes=syn.classes.nbytes,
    )


def eight_bit(syn: SyntheticSet, distilled: Decoded, device: torch.device) -> Decoded | None:
    """The set as its PNG files say it: pixels within 0 and 1 in 256 steps, its labels as they are.

    None where that changes nothing.
    """
    ledger = distilled.ledger | {"images": distilled.images.numel(), "compensators": 0}
    if _is_large(syn):
        if not any(_moved(syn.pixels(part)) for part in _parts(syn)):
            return None
        images = _in_file(syn, lambda part: syn.preprocess.forward(_rounded(syn.pixels(part))))
        return replace(distilled, images=images, ledger=ledger)
    pixels = syn.pixels()
    if not _moved(pixels):
        return None
    images = syn.preprocess.forward(_rounded(pixels)).to(device)
    return replace(distilled, images=images, ledger=ledger)


def _rounded(pixels: Tensor) -> Tensor:
    return as_bytes(pixels).float() / 255


def _moved(pixels: Tensor) -> bool:
    """Whether rounding to 8 bits changes pixels."""
    return bool((_rounded(pixels) - pixels).abs().max() >= EIGHT_BIT)


# Sets whose decoded images are large.


def _is_large(syn: SyntheticSet) -> bool:
    """Whether the decoded images have more than LARGE values."""
    return len(syn) * _values(syn) > LARGE


def _values(syn: SyntheticSet) -> int:
    """Of a decoded image."""
    return syn.pixels(torch.arange(1)).numel()


def _parts(syn: SyntheticSet) -> Sequence[Tensor]:
    """The indices of all examples, in parts of at most PART values."""
    return torch.arange(len(syn)).split(max(1, PART // _values(syn)))


def _frozen_in_parts(syn: SyntheticSet, device: torch.device) -> Decoded:
    """What `freeze` returns of a large set."""
    targets, classes = [], []

    def decoded(part: Tensor) -> Tensor:
        with torch.no_grad():
            batch = syn.batch(part)
        assert batch.classes is not None
        targets.append(batch.targets.detach().clone())
        classes.append(batch.classes)
        return batch.images

    images = _in_file(syn, decoded)
    return Decoded(
        images=images,
        targets=torch.cat(targets).to(device),
        classes=torch.cat(classes).to(device),
        ledger=syn.ledger,
        hard_bytes=syn.classes.nbytes,
    )


def _in_file(syn: SyntheticSet, decoded: Callable[[Tensor], Tensor]) -> Tensor:
    """The examples (N, C, H, W) in a file without a name, which ends with this process.

    `decoded` gives those at some indices. Raises UserError where the disk has no room for them.
    """
    images: Tensor | None = None
    for part in _parts(syn):
        of_part = decoded(part)
        if images is None:
            images = _mapped((len(syn), *of_part.shape[1:]))
        images[int(part[0]) : int(part[-1]) + 1] = of_part.cpu()
    assert images is not None
    return images


def _mapped(shape: tuple[int, ...]) -> Tensor:
    """Float32 in a file without a name, which is mapped into memory."""
    size = 4 * math.prod(shape)
    with tempfile.TemporaryFile(prefix="ddengine-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise UserError(
                f"The decoded images of the set take {log.size(size)}, and {tempfile.gettempdir()} "
                f"has no room for them ({error.strerror}); name a folder that has with TMPDIR."
            ) from None
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


class Labelled:
    """Images whose targets are the mean logits that teachers give them as they are.

    The teachers are made when they are first needed. `stored` brings the logits into the form in
    which labels are stored.
    """

    def __init__(
        self,
        of: TrainingSet,
        teachers: Callable[[], Sequence[nn.Module]],
        stored: Callable[[Tensor], Tensor],
    ):
        self.of, self.teachers, self.stored = of, teachers, stored

    def __len__(self) -> int:
        return len(self.of)

    @cached_property
    def logits(self) -> Tensor:
        """(N, K)."""
        said = []
        for part in torch.arange(len(self.of)).split(BATCH):
            said.append(ensemble_logits(self.teachers(), self.of.batch(part).images))
        return self.stored(torch.cat(said))

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        images, classes = self.of.batch(index)
        return Batch(images, self.logits[index.to(self.logits.device)], classes)
