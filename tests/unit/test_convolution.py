"""Convolutions of our own are torch's, with all derivatives, and compute no more than is sought."""

import pytest
import torch
from torch import nn

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


def drawn(*shape, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


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


@pytest.mark.parametrize("channels", [2, 5], ids=["folded", "torch's way back"])
@pytest.mark.parametrize("how", LAYERS.values(), ids=LAYERS)
def test_values_and_derivatives_of_three_orders(how, channels):
    """In images, weights and biases."""
    assert (channels <= convolution.FEW) == (channels == 2)
    ours, torchs = layers(channels, 3, **how)
    value, given = given_of(ours, drawn(2, channels, *LEFT_OVER))

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
    batches, weights = drawn(3, 2, 2, 4, 4), drawn(3, 3, 2, 3, 3)

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
    theta, x = drawn(54).requires_grad_(), drawn(3, 2, 4, 4).requires_grad_()

    def loss(theta, x):
        by_name = {"weight": theta.view(3, 2, 3, 3)}
        return torch.func.functional_call(ours, by_name, x).pow(3).sum()

    compiled = Compiled(loss, compiler=lambda graph: graph).pullback(theta, x, r=drawn(54))
    eager = inner_gradient(loss).pullback(theta, x, r=drawn(54))
    assert torch.allclose(compiled.curvature, eager.curvature)
    assert torch.allclose(compiled.batch[0], eager.batch[0])


@pytest.mark.parametrize("hidden", [False, True], ids=["images", "of a layer before"])
def test_images_whose_gradient_nobody_seeks_cost_nothing(monkeypatch, hidden):
    """Though they have one, as in the first layer where weights alone are sought."""
    asked = []

    def slopes(g, x, w, wanted, how, of=convolution._slopes):
        asked.append(wanted)
        return of(g, x, w, wanted, how)

    monkeypatch.setattr(convolution, "_slopes", slopes)
    ours, _ = layers(2, 3)
    images = drawn(2, 2, 4, 4).requires_grad_()
    before = drawn(1).requires_grad_()
    seen = images * before if hidden else images
    leaves = (images, before) if hidden else (images,)
    torch.autograd.grad(ours(seen).pow(2).sum(), [*ours.parameters()])
    assert asked == [(False, True, True)]
    for leaf in leaves:
        (slope,) = torch.autograd.grad(ours(seen).pow(2).sum(), leaf, retain_graph=True)
        assert asked.pop()[0] and slope.abs().sum() > 0
    ours(seen).pow(2).sum().backward()
    assert asked.pop()[0] and images.grad.abs().sum() > 0


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
