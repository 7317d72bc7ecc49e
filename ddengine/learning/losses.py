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


def task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of outputs (B, K) with classes (B,) int64, or with the softmax of logits
    (B, K) at temperature 1.
    """
    return functional.cross_entropy(
        outputs, targets.softmax(1) if targets.is_floating_point() else targets
    )


def mixed_loss(outputs: Tensor, targets: Tensor, draw: Mix | None) -> Tensor:
    """`task_loss` of a batch that was mixed: with the own targets by the share of own pixels, with
    the partners' by the rest; None: not mixed.
    """
    return _of_both(partial(task_loss, outputs), targets, draw)


def _of_both(loss: Callable[[Tensor], Tensor], targets: Tensor, draw: Mix | None) -> Tensor:
    """`loss` of the own targets and of the partners', by their shares of the images."""
    if draw is None:
        return loss(targets)
    return draw.share * loss(targets) + (1 - draw.share) * loss(
        targets.index_select(0, draw.partner)
    )


def kl(
    outputs: Tensor, logits: Tensor, temperature: float = 1.0, *, squared: bool = False
) -> Tensor:
    """KL(softmax(z / T) || softmax(s / T)), summed over classes, times T^2 if `squared` (Hinton et
    al., arXiv 1503.02531).

    At a high temperature it is nearly |s - z|^2 / (2 K T^2) of centred logits. Probabilities p are
    the logits T log p.
    """
    said, wanted = (outputs / temperature).log_softmax(1), (logits / temperature).log_softmax(1)
    # the target as logarithms, because at a high temperature both are nearly uniform and only their
    # difference says anything
    loss = functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return loss * temperature**2 if squared else loss


def logit_mse(outputs: Tensor, logits: Tensor) -> Tensor:
    """Mean of (s - z)^2 over batch and classes (as G-VBSM; Shao et al., CVPR 2024)."""
    return functional.mse_loss(outputs, logits)


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """(B, K - 1): the logits of all classes but the example's own, in their order."""
    line = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, line + (line >= classes[:, None]))


def nkd(
    outputs: Tensor, logits: Tensor, classes: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Normalised distillation (NKD; Yang et al., ICCV 2023), without the ordinary cross-entropy
    that is trained beside it.

    -softmax(z)_c log softmax(s)_c - gamma T^2 sum over i != c of N(z)_i log N(s)_i, where N is the
    softmax at T of all logits but that of c. So normalised, the second term is least where student
    and teacher agree about the other classes, whatever they give to c.
    """
    own = classes[:, None]
    target = logits.softmax(1).gather(1, own) * outputs.log_softmax(1).gather(1, own)
    others = (_others(logits, classes) / temperature).softmax(1) * (
        _others(outputs, classes) / temperature
    ).log_softmax(1)
    return -(target.sum(1) + gamma * temperature**2 * others.sum(1)).mean()


def uskd(
    outputs: Tensor,
    weak: Tensor,
    classes: Tensor,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    smoothing: float = 0.1,
) -> Tensor:
    """Self-distillation without a teacher (USKD; Yang et al., ICCV 2023), without the ordinary
    cross-entropy; `weak` (B, K): logits w of a weak head.

    -alpha P log S_c - beta sum over i != c of Z_i log N(s)_i + mu CE(w, c smoothed by `smoothing`),
    with S = softmax(s) and N the softmax of all logits but that of c. P = 1 + S_c^2 - the mean of
    S_c^2 over the batch. Z_i is 1 / rank of i, normalised, where the largest of N(w)_i + N(s)_i has
    rank 1. P and Z are constants to the gradient, which reaches what is below the weak head by its
    cross-entropy alone.
    """
    said = outputs.log_softmax(1).gather(1, classes[:, None])[:, 0]
    others = _others(outputs, classes)
    with torch.no_grad():
        squares = said.exp().square()
        weight = 1 + squares - squares.mean()
        order = (_others(weak, classes).softmax(1) + others.softmax(1)).argsort(
            dim=1, descending=True, stable=True
        )
        zipf = 1 / torch.arange(1, others.shape[1] + 1, device=others.device, dtype=others.dtype)
        share = torch.empty_like(others).scatter_(1, order, (zipf / zipf.sum()).expand_as(others))
    target, rest = -(weight * said).mean(), -(share * others.log_softmax(1)).sum(1).mean()
    return (
        alpha * target
        + beta * rest
        + mu * functional.cross_entropy(weak, classes, label_smoothing=smoothing)
    )


def mixed_logits(
    logits: Tensor,
    draw: Mix,
    kind: Literal["logits", "probabilities"] = "logits",
    temperature: float = 1.0,
) -> Tensor:
    """Logits (B, K) of a mixed batch from those of its images: share z + (1 - share) z[partner], or
    those whose softmax at T is mixed so.
    """
    if kind == "logits":
        return draw.share * logits + (1 - draw.share) * logits.index_select(0, draw.partner)
    own = (logits / temperature).log_softmax(1)
    shares = [log(share) if share > 0 else -inf for share in (draw.share, 1 - draw.share)]
    return temperature * torch.logaddexp(
        own + shares[0], own.index_select(0, draw.partner) + shares[1]
    )


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
    """The loss of a batch of a student as `config.loss` says, the ordinary cross-entropy of nkd and
    uskd among it.

    targets: logits (B, K), or classes (B,), whose loss is cross-entropy (or uskd). `classes`: of
    hard terms beside logits. `draw`: how the batch was mixed; then the targets are of its images
    and are mixed here, unless they are what was said of the mixed batch (`of_mixed`). Hard terms
    count by the share of each class either way. `weak`: logits of the weak head of uskd.
    """
    soft = targets.is_floating_point()
    known = classes if soft else targets
    needs_classes = config.loss in ("nkd", "uskd") or (
        soft and config.loss in ("kl", "mse") and config.hard_weight > 0
    )
    assert known is not None or not needs_classes, "soft targets without classes have no hard terms"
    if config.loss == "uskd":
        assert known is not None and weak is not None
        return _of_both(lambda c: task_loss(outputs, c) + uskd(outputs, weak, c), known, draw)
    if not soft or config.loss == "ce":
        return mixed_loss(outputs, targets, None if soft and of_mixed else draw)
    logits = targets
    if draw is not None and not of_mixed:
        logits = mixed_logits(
            targets,
            draw,
            config.mix_labels if config.loss == "kl" else "logits",
            config.temperature,
        )
    if config.loss == "nkd":
        assert known is not None
        return _of_both(
            lambda c: (
                task_loss(outputs, c) + nkd(outputs, logits, c, temperature=config.temperature)
            ),
            known,
            draw,
        )
    loss = (
        kl(outputs, logits, config.temperature, squared=config.squared)
        if config.loss == "kl"
        else logit_mse(outputs, logits)
    )
    if config.hard_weight:
        assert known is not None
        loss = loss + config.hard_weight * _of_both(partial(task_loss, outputs), known, draw)
    return loss
