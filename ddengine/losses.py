"""The loss of a training example by the kind of its target."""

from torch import Tensor
from torch.nn import functional

from ddengine.augment import CutMix


def task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of outputs (B, K) with classes (B,) int64, or with the softmax of logits (B, K) at temperature 1."""
    return functional.cross_entropy(outputs, targets.softmax(1) if targets.is_floating_point() else targets)


def mixed_loss(outputs: Tensor, targets: Tensor, draw: CutMix | None) -> Tensor:
    """`task_loss` of a batch that was mixed: with the own targets by the share of own pixels, with the partners' by the rest; None: not mixed."""
    if draw is None:
        return task_loss(outputs, targets)
    return draw.share * task_loss(outputs, targets) + (1 - draw.share) * task_loss(outputs, targets.index_select(0, draw.partner))
