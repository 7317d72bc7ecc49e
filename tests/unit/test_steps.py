"""Training steps of experts:

GSAM and the smooth step beside plain SGD, written out once more in float64 where it matters.
"""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import CPU, DIGITS, MODEL, tiny_data
from torch import nn
from torch.nn import functional

from buffers import store
from buffers.flat_step import Gsam, perturbation
from buffers.smooth import Smooth, gradient_penalty
from buffers.steps import Sgd, statistics_kept
from buffers.train import train_expert
from ddengine.models import build_model
from ddengine.recipe import BufferConfig
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import autocast

SHAPE, CLASSES = (1, 8, 8), 10
BN = "convnet-d1-w4-bn"
SMOOTH_NETWORK = "convnet-d1-w3-in-sigmoid"  # no kinks, so that finite differences work
HEAVY = Sgd(lr=0.05, momentum=0.9, weight_decay=0.01, decay=0.5)


def network(name=MODEL, dtype=torch.float32, shape=SHAPE):
    """A network in training mode."""
    return build_model(name, shape, CLASSES, generator(0, "network")).to(dtype).train()


def batch(epoch=0, num=12, dtype=torch.float32, shape=SHAPE):
    """(augmented images, labels, images before): noise, other noise for another epoch."""
    rng = generator(1, "batch", epoch)
    images, plain = (torch.randn(num, *shape, generator=rng).to(dtype) for _ in range(2))
    return images, torch.arange(num) % CLASSES, plain


def after(step_config, name=MODEL, epochs=1, total=1, dtype=torch.float32):
    """(network after one step an epoch, losses)."""
    net = network(name, dtype)
    step = step_config.build(net, total)
    return net, [float(step(*batch(epoch, dtype=dtype), epoch)) for epoch in range(epochs)]


def same(a, b):
    """Whether two networks of float64 hold the same, running statistics included, up to the
    rounding of two ways to compute it.
    """
    return all(
        torch.allclose(a.state_dict()[k], b.state_dict()[k], rtol=0, atol=1e-12)
        for k in a.state_dict()
    )


def flat(tensors):
    """One vector of all entries."""
    return torch.cat([t.detach().flatten() for t in tensors])


# Where the steps meet


@pytest.mark.parametrize("name", [MODEL, BN])
@pytest.mark.parametrize("adaptive", [True, False])
def test_gsam_of_no_radius_and_no_alpha_is_sgd(name, adaptive):
    """Over six epochs, with momentum, weight decay and the new optimiser after the drop."""
    ours, losses = after(
        Gsam(sgd=HEAVY, rho=0.0, alpha=0.0, adaptive=adaptive), name, 6, 6, torch.float64
    )
    plain, wanted = after(HEAVY, name, 6, 6, torch.float64)
    assert same(ours, plain) and losses == pytest.approx(wanted, rel=1e-12)
    assert not same(ours, network(name, torch.float64))


def test_without_a_radius_alpha_has_nothing_to_take_away():
    """The gradient there is the one here, so its orthogonal part is zero up to rounding."""
    ours, _ = after(Gsam(sgd=HEAVY, rho=0.0, alpha=1.0), epochs=3, total=3, dtype=torch.float64)
    plain, _ = after(HEAVY, epochs=3, total=3, dtype=torch.float64)
    assert torch.allclose(flat(ours.parameters()), flat(plain.parameters()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [MODEL, BN])
def test_smooth_without_clipping_and_penalty_is_sgd(name):
    """Over six epochs."""
    ours, losses = after(Smooth(sgd=HEAVY, clip=1.0, penalty=0.0), name, 6, 6, torch.float64)
    plain, wanted = after(HEAVY, name, 6, 6, torch.float64)
    assert same(ours, plain) and losses == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Gsam(rho=0.5, alpha=0.0), Gsam(rho=0.5, alpha=0.3)),
        (Gsam(rho=0.5, alpha=0.3), Gsam(rho=0.5, alpha=1.0)),
        (Gsam(rho=0.5), Gsam(rho=0.5, adaptive=False)),
        (Gsam(rho=0.5), Gsam(rho=0.0)),
        (Gsam(rho=0.5), Gsam(rho=0.5, sgd=Sgd(lr=0.02))),
        (Smooth(), Smooth(clip=1.0)),
        (Smooth(), Smooth(penalty=0.0)),
        (Smooth(), Smooth(sgd=Sgd(lr=0.003))),
        (Smooth(clip_epochs=2), Smooth()),
        (Sgd(cosine=True), Sgd()),
    ],
)
def test_every_setting_changes_the_expert_and_the_store(one, other):
    """Its weights by more than rounding, and the fingerprint, so that experts of different settings
    never mix.
    """
    a, b, start = (
        flat(net.parameters())
        for net in (after(one, epochs=2)[0], after(other, epochs=2)[0], network())
    )
    assert (a - b).norm() > 1e-3 * (a - start).norm()
    prints = [
        digest(store.identity("images", DIGITS, BufferConfig(step=step), MODEL, "fp32"))
        for step in (one, other)
    ]
    assert prints[0] != prints[1]


# GSAM


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("name", [MODEL, BN])
def test_gsam_by_its_equations(name, adaptive):
    """Gradient, perturbed gradient (BatchNorm on the batch), orthogonal part, step: in float64,
    with functional calls instead of moved weights.
    """
    rho, alpha, lr = 0.3, 0.7, 0.1
    images, labels, plain = batch(dtype=torch.float64)
    net = network(name, torch.float64)
    params = {k: v.detach().clone() for k, v in net.named_parameters()}
    buffers = {k: v.clone() for k, v in net.named_buffers()}

    def gradient(weights):
        leaves = {k: v.clone().requires_grad_() for k, v in weights.items()}
        out = torch.func.functional_call(
            net, leaves | {k: v.clone() for k, v in buffers.items()}, (images,)
        )
        value = functional.cross_entropy(out, labels)
        return value, dict(
            zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
        )

    value, g = gradient(params)
    if adaptive:
        size = math.sqrt(sum(float(((params[k].abs() * g[k]) ** 2).sum()) for k in g))
        e = {k: rho * params[k] ** 2 * g[k] / size for k in g}
    else:
        size = math.sqrt(sum(float((g[k] ** 2).sum()) for k in g))
        e = {k: rho * g[k] / size for k in g}
        assert float(flat(e.values()).norm()) == pytest.approx(rho)
    _, p = gradient({k: params[k] + e[k] for k in g})
    a, b = flat(g.values()), flat(p.values())
    orthogonal = a - (a @ b) / (b @ b) * b
    assert (
        abs(float(orthogonal @ b)) < 1e-10 * float(a.norm() * b.norm())
        and orthogonal.norm() > 1e-3 * a.norm()
    )
    step = Gsam(sgd=Sgd(lr=lr), rho=rho, alpha=alpha, adaptive=adaptive).build(net, 5)
    loss = step(images, labels, plain, 0)
    # of the weights before the step
    assert float(loss) == pytest.approx(float(value.detach()), rel=1e-12)
    assert torch.allclose(
        flat(net.parameters()),
        flat(params.values()) - lr * (b - alpha * orthogonal),
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.parametrize("adaptive", [True, False])
def test_gsam_steps_from_the_weights_it_left(adaptive):
    """A radius at which w + e - e is far from w in float32: the step is the old weights minus rate
    times direction, to the bit.
    """
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    Gsam(sgd=Sgd(lr=0.01), rho=1e4, alpha=0.3, adaptive=adaptive).build(net, 5)(*batch(), 0)
    for p, w in zip(net.parameters(), before, strict=True):
        assert p.grad is not None and p.grad.isfinite().all()
        assert torch.equal(p.detach(), w.add(p.grad, alpha=-0.01))


def test_gsam_of_a_zero_gradient_is_finite():
    """No direction to move to, so no move; with zero weights the adaptive neighbourhood is a point."""
    zeros, ones = torch.zeros(7), torch.ones(7)
    for adaptive in (True, False):
        assert torch.equal(perturbation(ones, zeros, 0.5, adaptive), zeros)
    assert torch.equal(perturbation(zeros, ones, 0.5, True), zeros)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    for p in net.parameters():
        nn.init.zeros_(p)
    images, labels, _ = batch(num=CLASSES)
    # balanced classes, no image: every gradient is zero
    Gsam(rho=0.5, alpha=1.0).build(net, 5)(torch.zeros_like(images), labels, images, 0)
    assert flat(net.parameters()).isfinite().all()


def test_gsam_perturbs_under_autocast_too():
    """Experts in bfloat16: the second gradient belongs to the moved weights, and is not that of
    remembered casts of the old ones.
    """
    reached = []
    for rho in (0.0, 0.5):
        net = network("mlp")
        step = Gsam(sgd=Sgd(lr=0.1), rho=rho, alpha=0.0).build(net, 5)
        with autocast(CPU, "bf16"):
            step(*batch(), 0)
        reached.append(flat(net.parameters()))
    moved = (reached[0] - flat(network("mlp").parameters())).norm()
    assert (reached[1] - reached[0]).norm() > 0.02 * moved


def test_smooth_under_autocast_is_near_the_exact_step():
    """The penalty is a second derivative; in bfloat16 its direction still is that of float32."""
    moves = []
    for precision in ("fp32", "bf16"):
        net = network(SMOOTH_NETWORK)
        step = Smooth(sgd=Sgd(lr=0.1)).build(net, 5)
        with autocast(CPU, precision):
            loss = step(*batch(), 0)
        assert loss.isfinite()
        moves.append(flat(net.parameters()) - flat(network(SMOOTH_NETWORK).parameters()))
    assert functional.cosine_similarity(*moves, dim=0) > 0.99 and not torch.equal(*moves)


# BatchNorm


@pytest.mark.parametrize("step", [Sgd(), Gsam(rho=0.5), Smooth()])
def test_running_statistics_follow_one_forward(step):
    """Of the augmented images, whatever else the step looks at; and the layers go on counting."""
    net, reference = network(BN, torch.float64), network(BN, torch.float64)
    built = step.build(net, 5)
    for epoch in range(2):
        before = {k: v.clone() for k, v in net.named_buffers()}
        reference.load_state_dict(net.state_dict())
        built(*batch(epoch, dtype=torch.float64), epoch)
        reference(batch(epoch, dtype=torch.float64)[0])
        found, wanted = dict(net.named_buffers()), dict(reference.named_buffers())
        assert {k for k in found if torch.equal(found[k], before[k])} == set()
        assert all(torch.allclose(found[k], wanted[k], rtol=0, atol=1e-12) for k in found)
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_statistics_kept_restores_and_leaves_others_alone():
    """After an error too; a layer that never tracked does not begin to."""
    tracking, never = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
    both = nn.Sequential(tracking, never)
    before = copy.deepcopy(tracking.state_dict())
    with pytest.raises(KeyboardInterrupt), statistics_kept(both):
        both(torch.randn(4, 3, 2, 2, generator=generator(0)))
        out = tracking(5 + torch.randn(4, 3, 2, 2, generator=generator(0)))
        assert float(out.detach().mean()) == pytest.approx(0, abs=1e-5)  # normalised with the batch
        raise KeyboardInterrupt
    assert tracking.track_running_stats and not never.track_running_stats
    assert all(torch.equal(tracking.state_dict()[k], before[k]) for k in before)
    both(torch.randn(4, 3, 2, 2, generator=generator(1)))
    assert int(tracking.num_batches_tracked) == 1


# The gradient penalty


def linear(shape, weights):
    """A network whose gradient in the images is known: the sum of its rows."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), len(weights))).to(weights.dtype)
    net[1].weight.data = weights.flatten(1).clone()
    return net


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 5)])
def test_penalty_of_a_linear_network(shape):
    """The norm is over the channels of a pixel: with one channel it is the absolute value."""
    weights = torch.randn(CLASSES, *shape, generator=generator(0), dtype=torch.float64)
    q = weights.sum(0)
    by_pixel = [
        (math.sqrt(sum(float(q[c, h, w]) ** 2 for c in range(shape[0]))) - 1) ** 2
        for h in range(4)
        for w in range(5)
    ]
    images = torch.randn(6, *shape, generator=generator(1), dtype=torch.float64)
    for weight in (2.0, 0.5):
        assert float(
            gradient_penalty(linear(shape, weights), images, weight).detach()
        ) == pytest.approx(weight * sum(by_pixel) / 20, rel=1e-12)
    assert not images.requires_grad and images.grad is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_gradient_of_the_penalty_by_finite_differences(shape):
    """Along three random directions in the parameters, in float64."""
    net = network(SMOOTH_NETWORK, torch.float64, shape)
    images = torch.randn(5, *shape, generator=generator(2), dtype=torch.float64)
    params = list(net.parameters())
    grads = torch.autograd.grad(
        gradient_penalty(net, images, 2.0), params, allow_unused=True, materialize_grads=True
    )
    assert flat(grads).norm() > 1e-3
    h = 1e-5
    for seed in range(3):
        v = [
            torch.randn(p.shape, generator=generator(seed, "direction"), dtype=torch.float64)
            for p in params
        ]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(params, v, strict=True):
                    p.add_(d, alpha=sign * h)
            values.append(float(gradient_penalty(net, images, 2.0).detach()))
            with torch.no_grad():
                for p, d in zip(params, v, strict=True):
                    p.sub_(d, alpha=sign * h)
        found = sum(float((g * d).sum()) for g, d in zip(grads, v, strict=True))
        assert found == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_penalty_of_a_network_that_ignores_its_images():
    """Zero gradients in the images: the penalty is its weight, and neither it nor its gradient is
    NaN; the same for some pixels only.
    """
    net = linear((3, 4, 4), torch.zeros(CLASSES, 3, 4, 4))
    penalty = gradient_penalty(net, torch.ones(2, 3, 4, 4), 2.0)
    assert float(penalty.detach()) == pytest.approx(2.0)
    grads = torch.autograd.grad(
        penalty, list(net.parameters()), allow_unused=True, materialize_grads=True
    )
    assert all(g.isfinite().all() for g in grads)
    dead = network(MODEL)
    with torch.no_grad():
        dead.features[1].bias.fill_(-1e3)  # behind it ReLU lets nothing through
    Smooth().build(dead, 5)(*batch(), 0)
    assert flat(dead.parameters()).isfinite().all()


def test_smooth_penalises_the_images_before_augmentation():
    """Its loss and its update, by hand: c CE(augmented) + 2 penalty(plain)."""
    net, reference = network(SMOOTH_NETWORK, torch.float64), network(SMOOTH_NETWORK, torch.float64)
    images, labels, plain = batch(dtype=torch.float64)
    total = 0.75 * functional.cross_entropy(reference(images), labels) + gradient_penalty(
        reference, plain, 2.0
    )
    grads = torch.autograd.grad(total, list(reference.parameters()))
    loss = Smooth(sgd=Sgd(lr=0.1)).build(net, 50)(images, labels, plain, 5)
    assert float(loss) == pytest.approx(float(total.detach()), rel=1e-12)
    expected = flat(reference.parameters()) - 0.1 * flat(grads)
    assert torch.allclose(flat(net.parameters()), expected, rtol=0, atol=1e-12)
    assert float(gradient_penalty(reference, images, 2.0).detach()) != pytest.approx(
        float(gradient_penalty(reference, plain, 2.0).detach()), rel=1e-6
    )


def test_clipping_rises_linearly_and_ends():
    """0.5 first, then up to 1 in epoch `clip_epochs`, and 1 for good."""
    smooth = Smooth()
    assert [smooth.coefficient(e) for e in (0, 1, 9)] == pytest.approx([0.5, 0.55, 0.95])
    assert [smooth.coefficient(e) for e in (10, 11, 49)] == [1.0] * 3
    assert [Smooth(clip=0.2, clip_epochs=1).coefficient(e) for e in (0, 1)] == [0.2, 1.0]


# The drop of the rate


@pytest.mark.parametrize(
    "make",
    [
        lambda sgd: sgd,
        lambda sgd: Gsam(sgd=sgd, rho=0.0, alpha=0.0),
        lambda sgd: Smooth(sgd=sgd, clip=1.0, penalty=0.0),
    ],
)
@pytest.mark.parametrize(
    ("total", "first_low"), [(2, None), (3, None), (4, None), (5, 4), (6, 5), (7, 5)]
)
def test_rate_and_momentum_after_the_drop(make, total, first_low):
    """After epoch E // 2 + 1 the rate is multiplied once and the momentum starts again; trainings
    of up to four epochs never get there.
    """
    sgd = Sgd(lr=0.05, momentum=0.9, weight_decay=0.01, decay=0.5)
    ours, _ = after(make(sgd), epochs=total, total=total, dtype=torch.float64)
    reference = network(dtype=torch.float64)
    optimiser = torch.optim.SGD(reference.parameters(), 0.05, 0.9, weight_decay=0.01)
    rates = []
    for epoch in range(total):
        rates.append(optimiser.param_groups[0]["lr"])
        images, labels, _ = batch(epoch, dtype=torch.float64)
        optimiser.zero_grad()
        functional.cross_entropy(reference(images), labels).backward()
        optimiser.step()
        if epoch == total // 2 + 1:
            optimiser = torch.optim.SGD(reference.parameters(), 0.05 * 0.5, 0.9, weight_decay=0.01)
    assert rates == [0.05 if first_low is None or e < first_low else 0.025 for e in range(total)]
    assert torch.allclose(flat(ours.parameters()), flat(reference.parameters()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda sgd: sgd,
        lambda sgd: Gsam(sgd=sgd, rho=0.0, alpha=0.0),
        lambda sgd: Smooth(sgd=sgd, clip=1.0, penalty=0.0),
    ],
)
def test_cosine_is_torchs_schedule(make):
    """Rate by epoch, two updates each; the momentum is kept, and the last epoch still has a rate
    above 0.
    """
    epochs = 5
    ours = network(dtype=torch.float64)
    step = make(Sgd(lr=0.05, momentum=0.9, weight_decay=0.01, cosine=True)).build(ours, epochs)
    theirs = network(dtype=torch.float64)
    optimiser = torch.optim.SGD(theirs.parameters(), 0.05, 0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
    for epoch in range(epochs):
        before = flat(ours.parameters())
        for part in range(2):
            images, labels, plain = batch(2 * epoch + part, dtype=torch.float64)
            step(images, labels, plain, epoch)
            optimiser.zero_grad()
            functional.cross_entropy(theirs(images), labels).backward()
            optimiser.step()
        schedule.step()
        assert torch.allclose(
            flat(ours.parameters()), flat(theirs.parameters()), rtol=0, atol=1e-12
        )
        assert (flat(ours.parameters()) - before).norm() > 1e-4
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


# Whole experts, and what is refused


@pytest.mark.parametrize(
    "step", [Gsam(sgd=Sgd(lr=0.05)), Smooth(sgd=replace(Smooth().sgd, lr=0.02), clip_epochs=1)]
)
@pytest.mark.parametrize("name", [MODEL, BN])
def test_experts_of_every_step_learn(step, name):
    """Finite, different after every epoch, the same again from the same seed, and better than
    guessing.
    """
    data = tiny_data()
    config = BufferConfig(step=step, num_experts=1, epochs=4, batch=16)
    ours, again = (
        train_expert(build_model(name, data.image_shape, 10, generator(0)), data, config, 0)
        for _ in range(2)
    )
    assert ours.params.isfinite().all() and torch.equal(ours.params, again.params)
    assert all((a - b).norm() > 1e-3 for a, b in pairwise(ours.params))
    assert ours.metrics["validation_accuracy"][-1] > 0.3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gsam(rho=-0.1), r"buffer\.step\.rho.*-0\.1"),
        (lambda: Gsam(rho=math.nan), r"buffer\.step\.rho.*nan"),
        (lambda: Gsam(alpha=math.inf), r"buffer\.step\.alpha.*inf"),
        (lambda: Gsam(alpha=-1.0), r"buffer\.step\.alpha.*-1"),
        (lambda: Smooth(clip=0.0), r"buffer\.step\.clip .*0\.0"),
        (lambda: Smooth(clip=1.5), r"buffer\.step\.clip .*1\.5"),
        (lambda: Smooth(clip_epochs=0), r"buffer\.step\.clip_epochs.*0"),
        (lambda: Smooth(penalty=-2.0), r"buffer\.step\.penalty.*-2"),
        (lambda: Smooth(penalty=math.nan), r"buffer\.step\.penalty.*nan"),
        (lambda: Sgd(decay=0.0), r"buffer\.step\.decay.*0\.0"),
        (lambda: Sgd(decay=2.0), r"buffer\.step\.decay.*2\.0"),
        (lambda: Sgd(cosine=True, decay=0.1), r"buffer\.step\.cosine.*buffer\.step\.decay 0\.1"),
        (lambda: Sgd(lr=math.nan), r"buffer\.step\.lr.*nan"),
        (lambda: Sgd(weight_decay=math.nan), r"buffer\.step\.weight_decay.*nan"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, says):
    """With the flag and the value."""
    with pytest.raises(UserError, match=says):
        make()
