"""The loss of a training example by the kind of its target.

Outputs and logits (B, K), classes (B,) int64. Losses are means over the batch; s are outputs, z
logits of a teacher, c classes, T a temperature.
"""

from collections.abc import Callable
from functools import partial
from math import inf, log
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ddengine.learning.augment import Mix
from ddengine.recipe import EvalConfig

# (outputs (B, K), targets) -> a scalar
OutputsLoss = Callable[[Tensor, Tensor], Tensor]


def task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of outputs (B, K) with targets.

    These are classes (B,) int64, or logits (B, K) whose softmax at temperature 1 is meant.
    """
    if targets.is_floating_point():
        targets = targets.softmax(1)
    return functional.cross_entropy(outputs, targets)


def weighted_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of the sum of -w_k log softmax(s)_k (Feng et al., ICLR 2024).

    Targets are weights w (B, K) of the classes, or classes (B,) int64.
    """
    return functional.cross_entropy(outputs, targets)


def loss_of(kind: str) -> OutputsLoss:
    """The loss of outputs with targets of a kind, or with classes."""
    return weighted_loss if kind == "weights" else task_loss


def mixed_loss(outputs: Tensor, targets: Tensor, draw: Mix | None) -> Tensor:
    """`task_loss` of a batch that was mixed; None: not mixed.

    Each image counts with its target by the share of its own pixels, with its partner's by the
    rest.
    """
    return _of_both(partial(task_loss, outputs), targets, draw)


def _of_both(loss: Callable[[Tensor], Tensor], targets: Tensor, draw: Mix | None) -> Tensor:
    """`loss` of each image's target and of its partner's, by their shares of the image."""
    if draw is None:
        return loss(targets)
    partners = targets.index_select(0, draw.partner)
    of_images = loss(targets)
    of_partners = loss(partners)
    return draw.share * of_images + (1 - draw.share) * of_partners


def kl(
    outputs: Tensor, logits: Tensor, temperature: float = 1.0, *, squared: bool = False
) -> Tensor:
    """KL(softmax(z / T) || softmax(s / T)), summed over classes (Hinton et al., arXiv 1503.02531).

    It is multiplied by T^2 if `squared`. At a high temperature it is nearly |s - z|^2 / (2 K T^2)
    of centred logits. Probabilities p are the logits T log p.
    """
    said = (outputs / temperature).log_softmax(1)
    wanted = (logits / temperature).log_softmax(1)
    # the target as logarithms, because at a high temperature both are nearly uniform and only their
    # difference says anything
    loss = functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
    if squared:
        loss = loss * temperature**2
    return loss


def logit_mse(outputs: Tensor, logits: Tensor) -> Tensor:
    """Mean of (s - z)^2 over batch and classes (as G-VBSM; Shao et al., CVPR 2024)."""
    return functional.mse_loss(outputs, logits)


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits of all classes but that of the example, in their order: (B, K - 1)."""
    line = torch.arange(logits.shape[1] - 1, device=logits.device)
    after = line >= classes.unsqueeze(1)  # these classes come after that of the example
    return logits.gather(1, line + after)


def nkd(
    outputs: Tensor, logits: Tensor, classes: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Normalised distillation (NKD; Yang et al., ICCV 2023).

    Without the ordinary cross-entropy that is trained beside it. It is
    -softmax(z)_c log softmax(s)_c - gamma T^2 sum over i != c of N(z)_i log N(s)_i, where N is the
    softmax at T of all logits but that of c. So normalised, the second term is least where student
    and teacher agree about the other classes, whatever they give to c.
    """
    column = classes.unsqueeze(1)
    wanted_of_class = logits.softmax(1).gather(1, column)
    said_of_class = outputs.log_softmax(1).gather(1, column)
    target = wanted_of_class * said_of_class
    wanted_logits = _others(logits, classes) / temperature
    said_logits = _others(outputs, classes) / temperature
    others = wanted_logits.softmax(1) * said_logits.log_softmax(1)
    loss = target.sum(1) + gamma * temperature**2 * others.sum(1)
    return -loss.mean()


def uskd(
    outputs: Tensor,
    weak: Tensor,
    classes: Tensor,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    smoothing: float = 0.1,
) -> Tensor:
    """Self-distillation without a teacher (USKD; Yang et al., ICCV 2023).

    Without the ordinary cross-entropy. `weak` (B, K) are logits w of a weak head. It is
    -alpha P log S_c - beta sum over i != c of Z_i log N(s)_i + mu CE(w, c smoothed by `smoothing`),
    with S = softmax(s) and N the softmax of all logits but that of c. P = 1 + S_c^2 - the mean of
    S_c^2 over the batch. Z_i is 1 / rank of i, normalised, where the largest of N(w)_i + N(s)_i has
    rank 1. P and Z are constants to the gradient, which reaches what is below the weak head by its
    cross-entropy alone.
    """
    said = outputs.log_softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1)
    others = _others(outputs, classes)
    with torch.no_grad():
        squares = said.exp().square()
        weight = 1 + squares - squares.mean()
        weak_others = _others(weak, classes)
        wanted = _by_rank(weak_others.softmax(1) + others.softmax(1))
    target = -(weight * said).mean()
    of_others = wanted * others.log_softmax(1)
    rest = -of_others.sum(1).mean()
    of_weak = functional.cross_entropy(weak, classes, label_smoothing=smoothing)
    return alpha * target + beta * rest + mu * of_weak


def _by_rank(values: Tensor) -> Tensor:
    """1 / rank of each value in its row, normalised; the largest has rank 1. (B, K) of (B, K)."""
    order = values.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=values.dtype)
    zipf = 1 / ranks
    by_rank = (zipf / zipf.sum()).expand_as(values)
    return torch.empty_like(values).scatter_(1, order, by_rank)


def mixed_logits(
    logits: Tensor,
    draw: Mix,
    kind: Literal["logits", "probabilities"] = "logits",
    temperature: float = 1.0,
) -> Tensor:
    """Logits (B, K) of a mixed batch from those of its images.

    They are share z + (1 - share) z[partner], or those whose softmax at T is mixed so.
    """
    if kind == "logits":
        partners = logits.index_select(0, draw.partner)
        return draw.share * logits + (1 - draw.share) * partners
    said = (logits / temperature).log_softmax(1)
    partners = said.index_select(0, draw.partner)
    of_image = said + _log(draw.share)
    of_partner = partners + _log(1 - draw.share)
    return temperature * torch.logaddexp(of_image, of_partner)


def class_deviations(logits: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """How far a teacher's logits (N, outputs) of the images of each class spread: (K,).

    It is the mean over the images of a class of the sample standard deviation of their logits; NaN
    of a class without images.
    """
    spreads = logits.std(1, correction=1)
    counts = torch.bincount(classes, minlength=num_classes)
    sums = torch.zeros(num_classes, dtype=spreads.dtype, device=spreads.device)
    return sums.index_add(0, classes, spreads) / counts


def reshaped(logits: Tensor, classes: Tensor, deviations: Tensor) -> Tensor:
    """Logits (B, K) of a teacher, brought to the spread of their class (MDSLR, ICLR 2025).

    They are z / std(z) times the deviation of the class, as `class_deviations` has it. So soft
    labels of images that were picked by difficulty are no sharper and no flatter than those of all.
    """
    wanted = deviations.index_select(0, classes)
    return logits / logits.std(1, correction=1, keepdim=True) * wanted.unsqueeze(1)


def _log(share: float) -> float:
    if share <= 0:
        return -inf
    return log(share)


def soft_loss(
    config: EvalConfig,
    outputs: Tensor,
    targets: Tensor,
    classes: Tensor | None,
    draw: Mix | None,
    *,
    of_mixed: bool = False,
    weak: Tensor | None = None,
) -> Tensor:
    """The loss of a batch of a student as `config.loss` says.

    The ordinary cross-entropy of nkd and uskd is part of it.

    Args:
        config: the protocol.
        outputs: (B, K) of the student.
        targets: logits or weights (B, K), or classes (B,), whose loss is cross-entropy (or uskd).
        classes: (B,), of hard terms beside logits.
        draw: how the batch was mixed. The targets are of its images and are mixed here, unless they
            are what was said of the mixed batch. Hard terms count by the share of each class
            either way.
        of_mixed: the targets were said of the mixed batch.
        weak: logits (B, K) of the weak head of uskd.
    """
    soft = targets.is_floating_point()
    hard = partial(_hard_terms, classes if soft else targets, draw)
    if config.loss == "uskd":
        assert weak is not None
        return hard(lambda c: task_loss(outputs, c) + uskd(outputs, weak, c))
    if not soft:
        return mixed_loss(outputs, targets, draw)
    if config.loss == "ce":
        return mixed_loss(outputs, targets, None if of_mixed else draw)
    if config.loss == "weighted":
        return _of_both(partial(weighted_loss, outputs), targets, draw)
    logits = targets
    if draw is not None and not of_mixed:
        kind = config.mix_labels if config.loss == "kl" else "logits"
        logits = mixed_logits(targets, draw, kind, config.temperature)
    return _of_logits(config, outputs, logits, hard)


def _of_logits(
    config: EvalConfig,
    outputs: Tensor,
    logits: Tensor,
    hard: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> Tensor:
    """The loss with the logits of the batch as it was mixed; `hard` gives it the classes."""
    if config.loss == "nkd":
        beside = partial(nkd, outputs, logits, temperature=config.temperature)
        return hard(lambda c: task_loss(outputs, c) + beside(c))
    if config.loss == "kl":
        loss = kl(outputs, logits, config.temperature, squared=config.squared)
    else:
        loss = logit_mse(outputs, logits)
    loss = config.soft_weight * loss
    if config.hard_weight:
        loss = loss + config.hard_weight * hard(partial(task_loss, outputs))
    return loss


def _hard_terms(
    classes: Tensor | None, draw: Mix | None, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """What a loss says of the classes."""
    assert classes is not None, "soft targets without classes have no hard terms"
    return _of_both(loss, classes, draw)
