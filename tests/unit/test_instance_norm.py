"""Instance normalisation of our own is torch's, with all derivatives."""

import torch
from torch import nn

from ddengine.learning.inner import Compiled, inner_gradient
from ddengine.models.instance_norm import InstanceNorm, _Normed

F64 = torch.float64


def drawn(*shape, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def layers(channels, dtype=F64):
    """Ours and torch's, with the same weights."""
    made = [InstanceNorm(channels).to(dtype), nn.GroupNorm(channels, channels).to(dtype)]
    for layer in made:
        layer.weight.data, layer.bias.data = drawn(channels, dtype=dtype), drawn(1, dtype=dtype)[0]
        layer.bias.data = layer.bias.data.expand(channels).clone()
    return made


def test_values_and_derivatives_of_three_orders():
    """In images, weights and biases, of sides that differ."""
    ours, torchs = layers(3)
    given = (drawn(2, 3, 3, 2), ours.weight.detach(), ours.bias.detach())
    given = tuple(tensor.requires_grad_() for tensor in given)

    def value(images, weight, bias):
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, images)

    def slope(*given):
        made = value(*given).pow(3).sum()
        return torch.autograd.grad(made, given, create_graph=True)

    assert torch.allclose(value(*given), torchs(given[0]), rtol=1e-13)
    assert torch.autograd.gradcheck(value, given)
    assert torch.autograd.gradgradcheck(value, given)
    assert torch.autograd.gradgradcheck(slope, given, atol=1e-4)


def test_gradients_apart_for_several_networks_and_images():
    """As objectives take them: of one network for several batches, and of several networks."""
    ours, torchs = layers(2)
    batches, weights = drawn(3, 2, 2, 4, 4), drawn(3, 2)

    def slope(layer):
        def loss(weight, images):
            made = torch.func.functional_call(layer, {"weight": weight}, images.square())
            return made.pow(3).sum()

        one = torch.func.grad(loss, argnums=(0, 1))
        return [
            *torch.vmap(one, (None, 0))(weights[0], batches),
            *torch.vmap(one)(weights, batches),
        ]

    for made, wanted in zip(slope(ours), slope(torchs), strict=True):
        assert torch.allclose(made, wanted, rtol=1e-10)


def test_second_order_in_one_graph():
    """As the compiled inner gradient traces it."""
    ours, _ = layers(2)
    theta, x = drawn(4).requires_grad_(), drawn(3, 2, 4, 4).requires_grad_()

    def loss(theta, x):
        names = {"weight": theta[:2], "bias": theta[2:]}
        return torch.func.functional_call(ours, names, x).pow(3).sum()

    compiled = Compiled(loss, compiler=lambda graph: graph).pullback(theta, x, r=drawn(4))
    eager = inner_gradient(loss).pullback(theta, x, r=drawn(4))
    assert torch.allclose(compiled.curvature, eager.curvature)
    assert torch.allclose(compiled.batch[0], eager.batch[0])


def test_what_it_is_not_for_is_left_to_torch(monkeypatch):
    """Narrow types, given or by autocast; and a shape alone is told as torch tells it."""
    monkeypatch.setattr(_Normed, "apply", None)
    ours, torchs = layers(2, torch.bfloat16)
    images = drawn(1, 2, 4, 4)
    assert torch.equal(ours(images.bfloat16()), torchs(images.bfloat16()))
    ours, torchs = layers(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(images.float()), torchs(images.float()))
    monkeypatch.undo()
    assert ours.to("meta")(images.float().to("meta")).shape == images.shape
