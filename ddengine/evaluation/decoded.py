"""Sets that networks are trained on in an evaluation, made once: decoded, rounded, labelled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ddengine.learning.teachers import BATCH, ensemble_logits
from ddengine.sets.codec import as_bytes
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Batch, TrainingSet

# a quarter of a step of 8 bits: pixels that lie nearer to the steps are 8-bit already
EIGHT_BIT = 1 / 1020


@dataclass(frozen=True)
class Decoded:
    """A distilled set decoded once: training on it then only indexes."""

    images: Tensor
    targets: Tensor
    classes: Tensor
    ledger: dict[str, int]  # bytes of what is stored
    # of the labels, where only classes are used; None: as in the ledger
    hard_bytes: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        index = index.to(self.images.device)
        return Batch(
            self.images.index_select(0, index),
            self.targets.index_select(0, index),
            self.classes.index_select(0, index),
        )


def freeze(syn: SyntheticSet, device: torch.device) -> Decoded:
    """The set decoded once, on `device`."""
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
    pixels = syn.pixels()
    rounded = as_bytes(pixels).float() / 255
    if (rounded - pixels).abs().max() < EIGHT_BIT:
        return None
    ledger = distilled.ledger | {"images": pixels.numel(), "compensators": 0}
    return replace(distilled, images=syn.preprocess.forward(rounded).to(device), ledger=ledger)


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
