"""Average pooling in fewer passes is torch's, with all derivatives."""

import torch
from torch import nn

from ddengine.learning.inner import Compiled, inner_gradient
from ddengine.models.pooling import AveragePool, _Mean, _Spread

F64 = torch.float64
OURS, TORCHS = AveragePool(), nn.AvgPool2d(2, 2)


def images(*shape, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)


def test_values_and_derivatives_of_two_orders():
    """Also where gradients are taken apart for each of several, and of images without a batch."""
    for shape in ((3, 2, 6, 4), (2, 4, 8)):
        assert torch.allclose(OURS(images(*shape)), TORCHS(images(*shape)), rtol=1e-14)
    one = images(2, 2, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(OURS, one) and torch.autograd.gradgradcheck(OURS, one)

    def slope(pool, each):
        return torch.vmap(torch.func.grad(lambda x: pool(x.square()).pow(3).sum()))(each)

    each = images(3, 2, 2, 4, 4)
    assert torch.allclose(slope(OURS, each), slope(TORCHS, each), rtol=1e-12)


def test_gradients_are_repeated_to_the_bit():
    """Of any numbers, with and without a batch, also where they do not lie one after another."""
    for dtype in (torch.float32, F64):
        given = images(3, 2, 5, 4, dtype=dtype)
        given[0, 0, 0] = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0])
        for values in (given, given[0], given.mT, given[:, :, ::2], given[:0]):
            quarters = values * 0.25
            plain = quarters.repeat_interleave(2, -1).repeat_interleave(2, -2)
            spread = _Spread.apply(values)
            assert torch.equal(spread.view(torch.uint8), plain.view(torch.uint8))
            assert spread.is_contiguous()


def test_second_order_in_one_graph():
    """As the compiled inner gradient traces it."""
    theta, x = images(8).requires_grad_(), images(1, 2, 4, 4)

    def loss(theta, x):
        return OURS((theta[:2, None, None] * x).square()).pow(2).sum() * theta[2:].sum()

    x = x.requires_grad_()
    compiled = Compiled(loss, compiler=lambda graph: graph).pullback(theta, x, r=images(8))
    eager = inner_gradient(loss).pullback(theta, x, r=images(8))
    assert torch.allclose(compiled.curvature, eager.curvature)
    assert torch.allclose(compiled.batch[0], eager.batch[0])


def test_what_it_is_not_for_is_left_to_torch(monkeypatch):
    """Sides that are odd, and types whose sums would be rounded."""
    monkeypatch.setattr(_Mean, "apply", None)
    for given in (images(1, 2, 5, 4), images(1, 2, 4, 7), images(1, 1, 4, 4, dtype=torch.bfloat16)):
        assert torch.equal(OURS(given), TORCHS(given))
