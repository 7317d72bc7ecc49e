"""Losses of soft and hard labels against torch's own, plain loops and the algebra they are meant to
obey.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from ddengine.learning.augment import CutMix, MixUp
from ddengine.learning.losses import (
    kl,
    logit_mse,
    mixed_logits,
    mixed_loss,
    nkd,
    soft_loss,
    task_loss,
    uskd,
)
from ddengine.recipe import EvalConfig
from ddengine.system.rng import generator

F64 = torch.float64
NUM, CLASSES = 6, 5
HARD = torch.tensor([0, 3, 1, 4, 4, 2])
BOX = CutMix(torch.tensor([2, 0, 1, 5, 3, 4]), (0, 2, 1, 4), 1 - 6 / 16)
MIXUP = MixUp(torch.tensor([1, 2, 3, 4, 5, 0]), 0.7)
each_mix = pytest.mark.parametrize("draw", [BOX, MIXUP], ids=["cutmix", "mixup"])


def logits(seed, num=NUM, classes=CLASSES, scale=2.0):
    """Normal logits."""
    return scale * torch.randn(num, classes, generator=generator(seed, "logits"), dtype=F64)


OUTPUTS, SOFT, WEAK = logits(0), logits(1), logits(2)


def config(loss, **more):
    """A protocol of that loss."""
    return EvalConfig(protocol="test", loss=loss, **more)


# Parts


@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("squared", [False, True])
def test_kl_is_torchs(temperature, squared):
    wanted = functional.kl_div(
        (OUTPUTS / temperature).log_softmax(1),
        (SOFT / temperature).softmax(1),
        reduction="batchmean",
    )
    found = kl(OUTPUTS, SOFT, temperature, squared=squared)
    assert found.item() == pytest.approx(
        wanted.item() * (temperature**2 if squared else 1), rel=1e-10
    )
    assert abs(kl(SOFT, SOFT + 3, temperature).item()) < 1e-12


def test_kl_of_probabilities_as_logits():
    """Logarithms times T, as `mixed_logits` makes them."""
    probabilities = SOFT.softmax(1)
    wanted = (probabilities * (probabilities.log() - (OUTPUTS / 7).log_softmax(1))).sum(1).mean()
    assert kl(OUTPUTS, 7 * probabilities.log(), 7.0).item() == pytest.approx(
        wanted.item(), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hot_kl_is_the_squared_distance_of_centred_logits(dtype):
    """At T = 30 to 0.5 %, in single precision too, where both distributions are nearly uniform."""
    outputs, wanted = logits(3, 64, 10, 1.0).to(dtype), logits(4, 64, 10, 1.0).to(dtype)
    distance = outputs - wanted
    distance = (distance - distance.mean(1, keepdim=True)).square().sum(1).mean()
    assert kl(outputs, wanted, 30.0).item() == pytest.approx(
        distance.item() / (2 * 10 * 30**2), rel=5e-3
    )


def test_mse_is_a_mean_over_batch_and_classes():
    assert logit_mse(OUTPUTS, SOFT).item() == pytest.approx(
        ((OUTPUTS - SOFT) ** 2).sum().item() / (NUM * CLASSES), rel=1e-12
    )


def nkd_by_loops(outputs, wanted, classes, gamma, temperature):
    """Probabilities renormalised without the own class, one example and class at a time."""
    total = 0.0
    for s, z, c in zip(outputs.tolist(), wanted.tolist(), classes.tolist(), strict=True):
        (ps, pz), others = (
            ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (s, z)),
            [i for i in range(len(s)) if i != c],
        )
        total -= pz[c] * math.log(ps[c])
        hot_s, hot_z = ([math.exp(v / temperature) for v in row] for row in (s, z))
        for i in others:
            total -= (
                gamma
                * temperature**2
                * hot_z[i]
                / sum(hot_z[j] for j in others)
                * math.log(hot_s[i] / sum(hot_s[j] for j in others))
            )
    return total / len(classes)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.5, 4.0)])
def test_nkd_is_a_plain_loop(gamma, temperature):
    assert nkd(OUTPUTS, SOFT, HARD, gamma, temperature).item() == pytest.approx(
        nkd_by_loops(OUTPUTS, SOFT, HARD, gamma, temperature), rel=1e-12
    )


def test_nkd_has_nothing_to_say_about_the_other_classes_where_they_agree():
    """Other shares for the own class, equal ratios among the others: the gradient is that of the
    own class's term alone.
    """
    own = functional.one_hot(HARD, CLASSES).to(F64)
    outputs = (
        SOFT + own * torch.tensor([3.0, -2.0, 1.0, 0.5, -4.0, 2.0], dtype=F64)[:, None] + 0.8
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(nkd(outputs, SOFT, HARD, temperature=2.0), outputs)
    (of_own,) = torch.autograd.grad(nkd(outputs, SOFT, HARD, gamma=0.0), outputs)
    assert (gradient - of_own).abs().max() < 1e-12 and of_own.abs().max() > 1e-3
    # which plain distillation does: its gradient in the others does not vanish
    (plain,) = torch.autograd.grad(kl(outputs, SOFT), outputs)
    assert (plain * (1 - own)).abs().max() > 1e-3


def uskd_by_loops(outputs, weak, classes, alpha, beta, mu, smoothing):
    """(target weights, Zipf shares, loss), one example and class at a time."""
    num, total = len(classes), 0.0
    said = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in outputs.tolist()]
    weakly = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in weak.tolist()]
    squares = [row[c] ** 2 for row, c in zip(said, classes.tolist(), strict=True)]
    for n, c in enumerate(classes.tolist()):
        s, w = said[n], weakly[n]
        others = [i for i in range(len(s)) if i != c]
        total -= alpha * (1 + squares[n] - sum(squares) / num) * math.log(s[c])
        ranked = sorted(others, key=lambda i: -(w[i] / (1 - w[c]) + s[i] / (1 - s[c])))
        for rank, i in enumerate(ranked, 1):
            share = (1 / rank) / sum(1 / r for r in range(1, len(others) + 1))
            total -= beta * share * math.log(s[i] / (1 - s[c]))
        for i in range(len(w)):
            total -= mu * ((1 - smoothing) * (i == c) + smoothing / len(w)) * math.log(w[i])
    return total / num


@pytest.mark.parametrize(
    "settings",
    [(1.0, 0.1, 0.005, 0.1), (0.7, 0.9, 0.6, 0.3), (0.0, 1.0, 0.0, 0.1), (1.0, 0.0, 0.0, 0.1)],
)
def test_uskd_is_a_plain_loop(settings):
    assert uskd(OUTPUTS, WEAK, HARD, *settings).item() == pytest.approx(
        uskd_by_loops(OUTPUTS, WEAK, HARD, *settings), rel=1e-12
    )


def test_uskd_defaults_are_the_published_ones():
    assert uskd(OUTPUTS, WEAK, HARD).item() == pytest.approx(
        uskd_by_loops(OUTPUTS, WEAK, HARD, 1.0, 0.1, 0.005, 0.1), rel=1e-12
    )


def test_the_targets_of_uskd_are_constants_to_the_gradient():
    """Softmax less a fixed target in the own class and among the others; what reaches the weak head
    is its cross-entropy's.
    """
    outputs, weak = OUTPUTS.clone().requires_grad_(), WEAK.clone().requires_grad_()
    of_outputs, of_weak = torch.autograd.grad(uskd(outputs, weak, HARD), (outputs, weak))
    own, said = functional.one_hot(HARD, CLASSES).to(F64), OUTPUTS.softmax(1)
    squares = (said * own).sum(1).square()
    weight = (1 + squares - squares.mean())[:, None]
    renormalised = said * (1 - own) / (1 - (said * own).sum(1, keepdim=True))
    rank = renormalised + WEAK.softmax(1) * (1 - own) / (
        1 - (WEAK.softmax(1) * own).sum(1, keepdim=True)
    )
    place = (rank[:, None, :] > rank[:, :, None]).sum(2) + 1.0  # how many are larger, and itself
    zipf = (1 - own) / place
    zipf = zipf / zipf.sum(1, keepdim=True)
    assert torch.allclose(
        of_outputs, (weight * (said - own) + 0.1 * (renormalised - zipf)) / NUM, atol=1e-12
    )
    smoothed = 0.9 * own + 0.1 / CLASSES
    assert torch.allclose(of_weak, 0.005 * (WEAK.softmax(1) - smoothed) / NUM, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_sure_outputs_are_finite(dtype):
    """Where a share is rounded to 1 or 0, renormalising must not divide by 0."""
    outputs = (1000 * functional.one_hot(HARD, CLASSES)).to(dtype).requires_grad_()
    other = (1000 * functional.one_hot((HARD + 1) % CLASSES, CLASSES)).to(dtype)
    for loss in (kl(outputs, other, 2.0), nkd(outputs, other, HARD), nkd(outputs, outputs.detach(), HARD), uskd(outputs, other, HARD),
                 kl(outputs, mixed_logits(other, CutMix(BOX.partner, BOX.box, 1.0), "probabilities", 0.5), 2.0)):  # fmt: skip
        assert loss.isfinite() and torch.autograd.grad(loss, outputs)[0].isfinite().all()


@pytest.mark.parametrize("loss", [
    lambda s: kl(s, SOFT, 3.0, squared=True), lambda s: logit_mse(s, SOFT), lambda s: nkd(s, SOFT, HARD, temperature=2.0),
    lambda s: kl(s, mixed_logits(SOFT, MIXUP, "probabilities", 2.0), 2.0),
])  # fmt: skip
def test_gradients(loss):
    outputs = OUTPUTS.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (outputs,))
    assert torch.autograd.gradgradcheck(loss, (outputs,))


# Mixed labels


@each_mix
def test_logits_are_mixed_before_the_softmax(draw):
    for i, partner in enumerate(draw.partner.tolist()):
        wanted = draw.share * SOFT[i] + (1 - draw.share) * SOFT[partner]
        assert torch.allclose(mixed_logits(SOFT, draw)[i], wanted, atol=1e-12)


@each_mix
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_probabilities_are_mixed_after_the_softmax(draw, temperature):
    own = (SOFT / temperature).softmax(1)
    wanted = draw.share * own + (1 - draw.share) * own[draw.partner]
    assert torch.allclose(
        (mixed_logits(SOFT, draw, "probabilities", temperature) / temperature).softmax(1),
        wanted,
        atol=1e-12,
    )


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_all_is_the_label_of_one_image(kind, share):
    """As a box that is empty or covers everything has."""
    found = mixed_logits(SOFT, CutMix(BOX.partner, BOX.box, share), kind, 3.0).div(3).softmax(1)
    assert torch.allclose(
        found, (SOFT if share else SOFT[BOX.partner]).div(3).softmax(1), atol=1e-12
    )


# The whole loss


def weighed(loss, draw, classes=HARD):
    """By the share of each class in the images, one class at a time."""
    return (
        draw.share * loss(classes) + (1 - draw.share) * loss(classes[draw.partner])
        if draw
        else loss(classes)
    )


@pytest.mark.parametrize("draw", [None, BOX, MIXUP])
@pytest.mark.parametrize("of_mixed", [False, True])
@pytest.mark.parametrize("mix_labels", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("temperature", "squared", "hard_weight"), [(1.0, False, 0.0), (20.0, True, 0.3)]
)
def test_the_loss_kl(draw, of_mixed, mix_labels, temperature, squared, hard_weight):
    settings = config(
        "kl",
        temperature=temperature,
        squared=squared,
        hard_weight=hard_weight,
        mix_labels=mix_labels,
    )
    wanted = SOFT
    if draw and not of_mixed:
        own = (SOFT / temperature).softmax(1)
        logs = (draw.share * own + (1 - draw.share) * own[draw.partner]).log() * temperature
        wanted = (
            logs
            if mix_labels == "probabilities"
            else draw.share * SOFT + (1 - draw.share) * SOFT[draw.partner]
        )
    expected = functional.kl_div(
        (OUTPUTS / temperature).log_softmax(1),
        (wanted / temperature).softmax(1),
        reduction="batchmean",
    )
    expected = expected * (temperature**2 if squared else 1)
    expected = expected + hard_weight * weighed(
        lambda c: functional.cross_entropy(OUTPUTS, c), draw
    )
    assert soft_loss(
        settings, OUTPUTS, SOFT, HARD, draw, of_mixed=of_mixed
    ).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("draw", [None, BOX, MIXUP])
@pytest.mark.parametrize("of_mixed", [False, True])
@pytest.mark.parametrize("hard_weight", [0.0, 0.15])
def test_the_loss_mse(draw, of_mixed, hard_weight):
    """Logits are mixed, whatever mix_labels says of kl."""
    settings = config("mse", hard_weight=hard_weight, mix_labels="probabilities")
    wanted = (
        SOFT if of_mixed or not draw else draw.share * SOFT + (1 - draw.share) * SOFT[draw.partner]
    )
    expected = ((OUTPUTS - wanted) ** 2).mean() + hard_weight * weighed(
        lambda c: functional.cross_entropy(OUTPUTS, c), draw
    )
    assert soft_loss(
        settings, OUTPUTS, SOFT, HARD, draw, of_mixed=of_mixed
    ).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("draw", [None, BOX, MIXUP])
@pytest.mark.parametrize("of_mixed", [False, True])
def test_the_loss_nkd(draw, of_mixed):
    """With a mix, of each class by its share, with the teacher's logits mixed; the cross-entropy
    has weight 1.
    """
    settings = config("nkd", temperature=2.0, mix_labels="probabilities")
    wanted = (
        SOFT if of_mixed or not draw else draw.share * SOFT + (1 - draw.share) * SOFT[draw.partner]
    )
    expected = weighed(
        lambda c: functional.cross_entropy(OUTPUTS, c) + nkd_by_loops(OUTPUTS, wanted, c, 1.5, 2.0),
        draw,
    )
    assert soft_loss(
        settings, OUTPUTS, SOFT, HARD, draw, of_mixed=of_mixed
    ).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("draw", [None, BOX, MIXUP])
@pytest.mark.parametrize("targets", [HARD, SOFT], ids=["hard", "soft"])
def test_the_loss_uskd_knows_classes_only(draw, targets):
    expected = weighed(
        lambda c: (
            functional.cross_entropy(OUTPUTS, c)
            + uskd_by_loops(OUTPUTS, WEAK, c, 1.0, 0.1, 0.005, 0.1)
        ),
        draw,
    )
    found = soft_loss(
        config("uskd"), OUTPUTS, targets, None if targets is HARD else HARD, draw, weak=WEAK
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("draw", [None, BOX, MIXUP])
@pytest.mark.parametrize("loss", ["ce", "kl", "mse", "nkd"])
def test_hard_targets_have_cross_entropy(draw, loss):
    settings = config(loss, hard_weight=0.5, temperature=7.0)
    for classes in (None, HARD):
        assert torch.equal(
            soft_loss(settings, OUTPUTS, HARD, classes, draw), mixed_loss(OUTPUTS, HARD, draw)
        )
    assert soft_loss(settings, OUTPUTS, HARD, None, draw).item() == pytest.approx(
        weighed(lambda c: task_loss(OUTPUTS, c), draw).item(), rel=1e-12
    )


@pytest.mark.parametrize("draw", [None, BOX, MIXUP])
def test_the_loss_ce_of_soft_targets_is_as_ever(draw):
    assert torch.equal(
        soft_loss(config("ce"), OUTPUTS, SOFT, HARD, draw), mixed_loss(OUTPUTS, SOFT, draw)
    )
    assert torch.equal(
        soft_loss(config("ce"), OUTPUTS, SOFT, None, draw, of_mixed=True), task_loss(OUTPUTS, SOFT)
    )


def test_hard_terms_without_classes_are_refused():
    for settings in (
        config("nkd"),
        config("uskd"),
        config("kl", hard_weight=0.1),
        config("mse", hard_weight=0.1),
    ):
        with pytest.raises(AssertionError, match="soft targets without classes have no hard terms"):
            soft_loss(settings, OUTPUTS, SOFT, None, None, weak=WEAK)
    assert soft_loss(config("kl"), OUTPUTS, SOFT, None, None).isfinite()


def test_the_least_loss_of_a_label_is_at_the_label():
    """Steps of gradient descent on the outputs bring every loss down towards what it is with the
    label itself.
    """
    for settings in (config("kl", temperature=4.0, squared=True), config("mse")):
        outputs, seen = OUTPUTS.clone(), []
        for _ in range(50):
            outputs.requires_grad_()
            loss = soft_loss(settings, outputs, SOFT, HARD, None)
            (gradient,) = torch.autograd.grad(loss, outputs)
            outputs = (outputs - 2 * gradient).detach()
            seen.append(loss.item())
        assert all(b < a for a, b in pairwise(seen)) and seen[-1] < 0.1 * seen[0]
