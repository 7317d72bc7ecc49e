"""Convolutions of our own are torch's, with all derivatives, and compute no more than is sought."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ddengine.learning.inner import Compiled, inner_gradient
from ddengine.models import convolution
from ddengine.models.convolution import Convolution

F64 = torch.float64
LAYERS = {
    "as in a ConvNet": {"kernel_size": 3, "padding": 1},
    "with strides": {"kernel_size": 3, "stride": (2, 1), "padding": (1, 0), "bias": False},
    "dilated": {"kernel_size": (2, 3), "dilation": (1, 2), "padding": 2},
    "of points": {"kernel_size": 1, "stride": 2},
}
LEFT_OVER = (6, 5)  # of which strides leave rows and columns over


def drawn(*shape, dtype=F64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layers(channels, out, dtype=F64, **how):
    """Ours and torch's, with the same weights."""
    how = how or LAYERS["as in a ConvNet"]
    made = [Convolution(channels, out, **how).to(dtype), nn.Conv2d(channels, out, **how).to(dtype)]
    made[1].load_state_dict(made[0].state_dict())
    return made


def given_of(layer, images):
    """What a gradient is taken in: images, and weights by name."""
    names, tensors = zip(*layer.named_parameters(), strict=True)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (images, *tensors)]

    def value(images, *tensors):
        by_name = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(layer, by_name, images)

    return value, leaves


@pytest.mark.parametrize("folds", [True, False], ids=["folded", "torch's way back"])
@pytest.mark.parametrize("how", LAYERS.values(), ids=LAYERS)
def test_values_and_derivatives_of_three_orders(how, folds, monkeypatch):
    """In images, weights and biases."""
    monkeypatch.setattr(convolution, "_folds", lambda g, w: folds)
    ours, torchs = layers(2, 3, **how)
    value, given = given_of(ours, drawn(2, 2, *LEFT_OVER, seed=1))

    def slope(*given):
        return torch.autograd.grad(value(*given).pow(3).sum(), given, create_graph=True)

    assert torch.equal(value(*given), torchs(given[0]))
    assert torch.autograd.gradcheck(value, given)
    assert torch.autograd.gradgradcheck(value, given)
    assert torch.autograd.gradgradcheck(slope, given, atol=1e-4)


@pytest.mark.parametrize("sought", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("first", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_gradients_of_gradients_in_some_of_all(first, sought):
    """What nothing flows back into, or nobody seeks, is left out."""
    by_layer = []
    for layer in layers(2, 3):
        value, given = given_of(layer, drawn(2, 2, 5, 5))
        made = value(*given).pow(3).sum()
        slopes = torch.autograd.grad(made, [given[i] for i in first], create_graph=True)
        total = torch.stack([slope.pow(2).sum() for slope in slopes]).sum()
        by_layer.append(torch.autograd.grad(total, [given[i] for i in sought]))
    for made, wanted in zip(*by_layer, strict=True):
        assert torch.allclose(made, wanted, rtol=1e-10)


def test_gradients_apart_for_several_networks_and_images():
    """As objectives take them: of one network for several batches, and of several networks."""
    ours, torchs = layers(2, 3)
    batches, weights = drawn(3, 2, 2, 4, 4), drawn(3, 3, 2, 3, 3, seed=1)

    def slope(layer):
        def loss(weight, images):
            made = torch.func.functional_call(layer, {"weight": weight}, images.square())
            return made.pow(3).sum()

        def of_slope(weight, images):
            return torch.func.grad(loss)(weight, images).pow(2).sum()

        for order in (loss, of_slope):
            one = torch.func.grad(order, argnums=(0, 1))
            yield from torch.vmap(one, (None, 0))(weights[0], batches)
            yield from torch.vmap(one)(weights, batches)

    for made, wanted in zip(slope(ours), slope(torchs), strict=True):
        assert torch.allclose(made, wanted, rtol=1e-10)


def test_second_order_in_one_graph():
    """As the compiled inner gradient traces it."""
    ours, _ = layers(2, 3)
    theta, x = drawn(54).requires_grad_(), drawn(3, 2, 4, 4, seed=1).requires_grad_()

    def loss(theta, x):
        by_name = {"weight": theta.view(3, 2, 3, 3)}
        return torch.func.functional_call(ours, by_name, x).pow(3).sum()

    compiled = Compiled(loss, compiler=lambda graph: graph).pullback(theta, x, r=drawn(54, seed=2))
    eager = inner_gradient(loss).pullback(theta, x, r=drawn(54, seed=2))
    assert torch.allclose(compiled.curvature, eager.curvature)
    assert torch.allclose(compiled.batch[0], eager.batch[0])


@pytest.fixture
def asked(monkeypatch):
    """Which of the gradients in images, weights and biases were computed, call by call."""
    calls = []

    def slopes(g, x, w, wanted, how, of=convolution._slopes):
        calls.append(wanted)
        return of(g, x, w, wanted, how)

    monkeypatch.setattr(convolution, "_slopes", slopes)
    return calls


def test_gradients_that_nobody_seeks_are_not_computed(asked):
    """Though images and weights have them, as leaves and as what comes from others."""
    ours, _ = layers(2, 3)
    for is_leaf in (True, False):
        leaves = [drawn(2, 2, 4, 4), *(p.detach().clone() for p in ours.parameters())]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        seen, weight, bias = leaves if is_leaf else [leaf * 2 for leaf in leaves]
        made = torch.func.functional_call(ours, {"weight": weight, "bias": bias}, seen)
        for sought in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
            asked.clear()
            torch.autograd.grad(
                made.pow(2).sum(), [leaves[place] for place in sought], retain_graph=True
            )
            assert asked == [tuple(place in sought for place in range(3))]
        asked.clear()
        made.pow(2).sum().backward()
        assert asked == [(True, True, True)]
        assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_second_gradients_that_nobody_seeks_are_not_computed(asked):
    """Of a step whose gradient in the weights is pulled back to the images alone."""
    ours, _ = layers(2, 3)
    images = drawn(2, 2, 4, 4).requires_grad_()
    weights = [*ours.parameters()]
    slopes = torch.autograd.grad(ours(images).pow(2).sum(), weights, create_graph=True)
    assert asked == [(False, True, True)]
    asked.clear()
    torch.autograd.grad(sum(slope.sum() for slope in slopes), images)
    # back(g, v), and through the layer itself
    assert asked == [(True, False, False), (True, False, False)]


def test_only_columns_that_are_small_are_folded_and_never_for_a_compiler():
    few, many = drawn(27, 3, 3, 3), drawn(26, 3, 3, 3)
    assert convolution._folds(drawn(1), few) and not convolution._folds(drawn(1), many)
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolution._folds(drawn(1), few)
    seen = []
    make_fx(lambda g: seen.append(convolution._folds(g, few)) or g)(drawn(1))
    assert seen == [False]


def test_what_it_is_not_for_is_left_to_torch(monkeypatch):
    """Groups, other paddings, narrow types, given or by autocast; and a shape alone."""
    monkeypatch.setattr(convolution._Convolved, "apply", None)
    images = drawn(1, 2, 4, 4)
    for how in ({"groups": 2}, {"padding": 1, "padding_mode": "circular"}, {"padding": "same"}):
        ours, torchs = layers(2, 4, kernel_size=3, **how)
        assert torch.equal(ours(images), torchs(images))
    ours, torchs = layers(2, 3, torch.bfloat16)
    assert torch.equal(ours(images.bfloat16()), torchs(images.bfloat16()))
    ours, torchs = layers(2, 3, torch.float32)
    assert torch.equal(ours(images[0].float()), torchs(images[0].float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(images.float()), torchs(images.float()))
    monkeypatch.undo()
    assert ours.to("meta")(images.float().to("meta")).shape == (1, 3, 4, 4)
