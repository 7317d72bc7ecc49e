"""Which images a set is compared with: draws of members and others, and the control."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.data import Data, RealSet
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

DRAWS = 10  # random halves of equal size, training and held-out, for the balanced comparison
CONTROL_SHARE = 5  # at most one in so many held-out images of a class becomes a control image


@dataclass(frozen=True)
class Sample:
    """The images that are compared; all tensors lie on the CPU."""

    control: Tensor  # indices of the test images that are treated as if they were the set
    held: Tensor  # (H,) indices of the test images that stay held out
    # of each draw the indices of training images, and as many numbers below H of held-out ones of
    # the same classes
    draws: list[tuple[Tensor, Tensor]]

    @property
    def for_membership(self) -> tuple[Tensor, Tensor]:
        """The draw by which membership is inferred."""
        return self.draws[0]


def sample(syn: SyntheticSet, data: Data, test: RealSet, seed: int) -> Sample:
    """Draw the control and the halves.

    Raises UserError where there are no images to compare with.
    """
    num_classes = data.num_classes
    in_set = syn.classes[syn.source].cpu().bincount(minlength=num_classes)
    train_labels, test_labels = data.train.labels.cpu(), test.labels.cpu()
    in_test = test_labels.bincount(minlength=num_classes)
    wanted = torch.minimum(in_set, in_test // CONTROL_SHARE)
    control = _by_class(test_labels, wanted, "control", seed=seed)
    held = (~mask(control, len(test_labels))).nonzero().flatten()
    held_labels = test_labels[held]
    if len(held) == 0:
        raise UserError(
            "The test split is empty, and the privacy picture compares with images that "
            "distillation has not seen; give it some."
        )
    in_train = train_labels.bincount(minlength=num_classes)
    equal = torch.minimum(in_train, held_labels.bincount(minlength=num_classes))
    if equal.sum() == 0:
        raise UserError(
            "No class has both training and test images, so members cannot be compared with "
            "others; check the labels of the splits."
        )
    draws = []
    for i in range(DRAWS):
        members = _by_class(train_labels, equal, "train", i, seed=seed)
        draws.append((members, _by_class(held_labels, equal, "held out", i, seed=seed)))
    return Sample(control, held, draws)


def mask(index: Tensor, size: int) -> Tensor:
    """(size,) bool, true at `index`."""
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[index] = True
    return chosen


def _by_class(labels: Tensor, counts: Tensor, *names: str | int, seed: int) -> Tensor:
    """Random indices of `labels` (N,), `counts[c]` of class c."""
    rng = generator(seed, "privacy", *names)
    chosen = []
    for c, count in enumerate(counts.tolist()):
        members = (labels == c).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=rng)[:count]])
    return torch.cat(chosen)
