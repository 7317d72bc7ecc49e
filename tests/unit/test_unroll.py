"""Gradients through inner training: policies against each other, against finite differences and
against `higher`.
"""

import higher
import pytest
import torch
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.flat import FlatModel, flatten
from ddengine.learning.inner import (
    ByAutograd,
    Pullback,
    eager_gradient,
    inner_gradient,
)
from ddengine.learning.unroll import unroll
from ddengine.learning.updates import Adam, HeavyBall, Sgd
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig
from ddengine.system.rng import generator

F64 = torch.float64
SHAPE, CLASSES = (1, 8, 8), 3


def network(name="convnet-d1-w4-in"):
    """A tiny network in float64."""
    return build_model(name, SHAPE, CLASSES, generator(1, "network")).to(F64)


def problem(num_steps, name="convnet-d1-w4-in", augmented=True):
    """(loss, batch, start, inputs): images with labels as logits, augmented with draws that are
    fixed per step.
    """
    rng = generator(2, "problem")
    inputs = {
        "images": torch.randn(6, *SHAPE, generator=rng, dtype=F64),
        "logits": torch.randn(6, CLASSES, generator=rng, dtype=F64),
    }
    config = AugmentConfig() if augmented else AugmentConfig(ops=())
    index = [torch.randperm(6, generator=rng)[:4] for _ in range(num_steps)]
    draws = [augment.sample(config, 4, rng) for _ in range(num_steps)]
    net = network(name)
    model = FlatModel(net)

    def batch(tensors, k):
        return augment.apply(config, tensors["images"][index[k]], draws[k]), tensors["logits"][
            index[k]
        ].softmax(1)

    def loss(theta, images, targets):
        return functional.cross_entropy(model(theta, images), targets)

    return loss, batch, flatten(net), inputs


def stepping(momentum):
    """The update with that momentum: heavy ball, or plain SGD for 0."""
    return HeavyBall(momentum=momentum) if momentum else Sgd()


def gradients(policy, num_steps=5, momentum=0.9, keep=(2, 4), lr=0.05, update=None, **kwargs):
    """Gradients of a function of all returned parameters in start, lr, images and logits."""
    loss, batch, theta, inputs = problem(num_steps, **kwargs)
    theta, rate = theta.requires_grad_(), torch.tensor(lr, dtype=F64, requires_grad=True)
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    out = unroll(
        inner_gradient(loss),
        batch,
        theta,
        leaves,
        num_steps,
        lr=rate,
        update=update or stepping(momentum),
        keep=keep,
        backprop=policy,
    )
    assert out.shape == (len(keep) + 1, theta.numel())
    weights = torch.linspace(-1, 1, out.numel(), dtype=F64).view_as(out)
    return out.detach(), torch.autograd.grad(
        (out * weights).sum() + out.square().sum(), [theta, rate, *leaves.values()]
    )


def relative(ours, theirs):
    """Norm of the difference over the norm."""
    return float(((ours - theirs).norm() / theirs.norm()).detach())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["convnet-d1-w4-in", "convnet-d1-w4-bn", "convnet-d1-w4-nn"])
def test_replay_equals_full(momentum, name):
    """Values and all four gradients to 1e-9."""
    full, exact = gradients("full", momentum=momentum, name=name)
    replay, ours = gradients("replay", momentum=momentum, name=name)
    assert relative(replay, full) < 1e-9
    for a, b in zip(ours, exact, strict=True):
        assert relative(a, b) < 1e-9


@pytest.mark.parametrize("policy", ["full", "replay"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_gradients_equal_finite_differences(policy, momentum):
    """torch's gradcheck in float64, in start, lr, images and label logits, with intermediate
    results.
    """
    loss, batch, theta, inputs = problem(3)

    def function(start, rate, images, logits):
        out = unroll(
            inner_gradient(loss),
            batch,
            start,
            {"images": images, "logits": logits},
            3,
            lr=rate,
            update=stepping(momentum),
            keep=(1,),
            backprop=policy,
        )
        return out.square().sum(1)

    leaves = [theta, torch.tensor(0.1, dtype=F64), inputs["images"], inputs["logits"]]
    assert torch.autograd.gradcheck(
        function,
        [t.requires_grad_() for t in leaves],
        eps=1e-6,
        atol=1e-6,
        rtol=1e-4,
        fast_mode=True,
    )


@pytest.mark.parametrize("policy", ["full", "replay"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_equal_higher(policy, momentum):
    """The differentiable SGD of `higher` is an independent oracle for values and gradients."""
    num_steps, lr = 5, 0.05
    out, ours = gradients(policy, num_steps, momentum, keep=(), lr=lr)
    _, batch, _, inputs = problem(num_steps)
    net = network()
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    rate = torch.tensor(lr, dtype=F64, requires_grad=True)
    with higher.innerloop_ctx(
        net, torch.optim.SGD(net.parameters(), lr, momentum=momentum), override={"lr": [rate]}
    ) as (stepped, optimiser):
        for k in range(num_steps):
            images, targets = batch(leaves, k)
            optimiser.step(functional.cross_entropy(stepped(images), targets))
        theirs = torch.cat([p.flatten() for p in stepped.parameters()])[None]
        weights = torch.linspace(-1, 1, theirs.numel(), dtype=F64).view_as(theirs)
        objective = (theirs * weights).sum() + theirs.square().sum()
        start = list(stepped.parameters(time=0))
        wanted = torch.autograd.grad(objective, [*start, rate, *leaves.values()])
    assert relative(out - flatten(network()), theirs.detach() - flatten(network())) < 1e-9
    oracle = [torch.cat([g.flatten() for g in wanted[: len(start)]]), *wanted[len(start) :]]
    for a, b in zip(ours, oracle, strict=True):
        assert relative(a, b) < 1e-9


def test_detached_is_biased_and_the_bias_grows_with_the_step_size():
    """TESLA's form equals the exact gradient only as lr goes to 0."""
    errors = []
    for lr in (0.001, 0.01, 0.1):
        exact, ours = (
            gradients("full", lr=lr, momentum=0.0)[1],
            gradients("detached", lr=lr, momentum=0.0)[1],
        )
        errors.append(relative(ours[2], exact[2]))
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.05 < errors[2]


def test_detached_is_exact_for_one_step():
    """With one step there is nothing to detach, for images, labels and lr."""
    exact, ours = gradients("full", 1, keep=())[1], gradients("detached", 1, keep=())[1]
    for a, b in zip(ours[1:], exact[1:], strict=True):
        assert relative(a, b) < 1e-12


def test_inner_sgd_equals_torch_optim():
    """Changes of the parameters, not parameters, so that doing nothing cannot pass."""
    loss, batch, theta, inputs = problem(6)
    ours = unroll(
        inner_gradient(loss),
        batch,
        theta,
        inputs,
        6,
        lr=0.05,
        update=HeavyBall(momentum=0.9),
        backprop="full",
    )[0]
    net = network()
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for k in range(6):
        images, targets = batch(inputs, k)
        optimiser.zero_grad()
        functional.cross_entropy(net(images), targets).backward()
        optimiser.step()
    assert relative(ours - theta, flatten(net) - theta) < 1e-12


def test_inputs_that_do_not_require_gradients_cost_nothing():
    """A fixed input gets no gradient, the others keep theirs."""
    loss, batch, theta, inputs = problem(3)
    images = inputs["images"].requires_grad_()
    out = unroll(inner_gradient(loss), batch, theta, inputs, 3, lr=0.1, backprop="replay")
    out.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert inputs["logits"].grad is None


@pytest.mark.parametrize(
    ("change", "words"),
    [({"backprop": "exact"}, "backprop"), ({"keep": (3, 2)}, "keep"), ({"keep": (9,)}, "keep")],
)
def test_refuses(change, words):
    """Unknown policies and impossible intermediate steps."""
    loss, batch, theta, inputs = problem(4)
    with pytest.raises(ValueError, match=words):
        unroll(inner_gradient(loss), batch, theta, inputs, 4, lr=0.1, **change)
    with pytest.raises(ValueError, match="num_steps"):
        unroll(inner_gradient(loss), batch, theta, inputs, 0, lr=0.1)


# Updates and the inner gradient as parts.


@pytest.mark.parametrize("policy", ["full", "replay"])
def test_gradients_through_adam_equal_finite_differences(policy):
    """The states of Adam are differentiated exactly, in start, lr, images and label logits."""
    loss, batch, theta, inputs = problem(3)

    def function(start, rate, images, logits):
        leaves = {"images": images, "logits": logits}
        update = Adam(beta1=0.8, beta2=0.9, eps=1e-3)
        out = unroll(
            inner_gradient(loss), batch, start, leaves, 3,
            lr=rate, update=update, keep=(1,), backprop=policy,
        )  # fmt: skip
        return out.square().sum(1)

    leaves = [theta, torch.tensor(0.1, dtype=F64), inputs["images"], inputs["logits"]]
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(
        function, leaves, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("name", ["convnet-d1-w4-in", "convnet-d1-w4-nn"])
def test_adam_replayed_equals_adam_kept(name):
    """Values and gradients; without a norm some weights have no gradient at all, of which the root
    has no derivative.
    """
    update = Adam(beta1=0.9, beta2=0.99)
    full, exact = gradients("full", update=update, name=name)
    replay, ours = gradients("replay", update=update, name=name)
    assert relative(replay, full) < 1e-9
    for a, b in zip(ours, exact, strict=True):
        assert b.isfinite().all() and relative(a, b) < 1e-6


def test_inner_adam_equals_torch_optim():
    """Changes of the parameters, with torch's place of eps, which is large enough to tell."""
    loss, batch, theta, inputs = problem(6)
    update = Adam(beta1=0.8, beta2=0.9, eps=0.1)
    ours = unroll(inner_gradient(loss), batch, theta, inputs, 6, lr=0.05, update=update)[0]
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), 0.05, betas=(0.8, 0.9), eps=0.1)
    for k in range(6):
        images, targets = batch(inputs, k)
        optimiser.zero_grad()
        functional.cross_entropy(net(images), targets).backward()
        optimiser.step()
    assert relative(ours - theta, flatten(net) - theta) < 1e-10


@pytest.mark.parametrize("policy", ["full", "replay"])
def test_gradients_through_adam_equal_higher(policy):
    """The differentiable Adam of `higher`, which has eps beside the root that is not yet corrected:
    with eps next to nothing both are one. Without a norm, whose biases have gradients of rounding.
    """
    num_steps, lr, eps, name = 4, 0.02, 1e-14, "convnet-d1-w4-nn"
    update = Adam(beta1=0.8, beta2=0.9, eps=eps)
    out, ours = gradients(policy, num_steps, keep=(), lr=lr, update=update, name=name)
    _, batch, _, inputs = problem(num_steps, name)
    net = network(name)
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    rate = torch.tensor(lr, dtype=F64, requires_grad=True)
    adam = torch.optim.Adam(net.parameters(), lr, betas=(0.8, 0.9), eps=eps)
    with higher.innerloop_ctx(net, adam, override={"lr": [rate]}) as (stepped, optimiser):
        for k in range(num_steps):
            images, targets = batch(leaves, k)
            optimiser.step(functional.cross_entropy(stepped(images), targets))
        theirs = torch.cat([p.flatten() for p in stepped.parameters()])[None]
        weights = torch.linspace(-1, 1, theirs.numel(), dtype=F64).view_as(theirs)
        objective = (theirs * weights).sum() + theirs.square().sum()
        wanted = torch.autograd.grad(objective, [rate, *leaves.values()])
    assert relative(out - flatten(network(name)), theirs.detach() - flatten(network(name))) < 1e-6
    for a, b in zip(ours[1:], wanted, strict=True):
        assert relative(a, b) < 1e-5


def test_a_pullback_is_that_of_the_graph():
    """<r, g>, H r and the gradients of the batch, and None of what needs none."""
    loss, batch, theta, inputs = problem(1)
    images, targets = batch({k: v.requires_grad_() for k, v in inputs.items()}, 0)
    inner, r = inner_gradient(loss), torch.linspace(-1, 1, theta.numel(), dtype=F64)
    start = theta.clone().requires_grad_()
    g = inner.differentiable(start, images, targets)
    wanted = torch.autograd.grad((g * r).sum(), [start, images, targets], retain_graph=True)
    pulled = inner.pullback(theta, images, targets, r=r)
    assert relative(inner.gradient(theta, images, targets), g.detach()) < 1e-12
    assert not inner.gradient(theta, images, targets).requires_grad
    assert torch.allclose(pulled.product, (g * r).sum().detach(), rtol=1e-12)
    for ours, theirs in zip((pulled.curvature, *pulled.batch), wanted, strict=True):
        assert relative(ours, theirs) < 1e-12
    fixed = inner.pullback(theta, images.detach(), targets, r=r, curvature=False)
    assert fixed.curvature is None and fixed.batch[0] is None
    assert torch.equal(fixed.batch[1], pulled.batch[1])


def test_another_pullback_takes_the_place_of_autograds():
    """`unroll` asks an inner gradient for nothing but its three methods."""

    class Doubled(ByAutograd):
        """Says twice what is true, so that the result shows who was asked."""

        def pullback(self, theta, *batch, r, curvature=True):
            """Twice the gradients of the batch."""
            product, by_theta, by_batch = super().pullback(theta, *batch, r=r, curvature=curvature)
            return Pullback(
                product, by_theta, tuple(None if g is None else 2 * g for g in by_batch)
            )

    loss, batch, theta, inputs = problem(1)
    results = []
    for inner in (inner_gradient(loss), Doubled(eager_gradient(loss))):
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        unroll(inner, batch, theta, leaves, 1, lr=0.1).square().sum().backward()
        results.append(leaves["images"].grad)
    assert torch.allclose(2 * results[0], results[1], rtol=1e-12)
