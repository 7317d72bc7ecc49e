"""Functions with derivatives of their own cost little Python."""

import inspect

import torch

from ddengine.models import convolution, instance_norm, pooling
from ddengine.models.formula import Formula

MODULES = (convolution, instance_norm, pooling)


def test_the_signature_is_read_once(monkeypatch):
    """Also of a function of more arguments than tensors, and of a second class."""

    class Scaled(Formula):
        @staticmethod
        def forward(x, factor):
            return x * factor

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.factor = inputs[1]

        @staticmethod
        def backward(ctx, grad):
            return Scaled.apply(grad, ctx.factor), None

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.vmap(lambda one: Scaled.apply(one, 3))(x).tolist() == [3.0, 6.0]
    monkeypatch.setattr(inspect, "_signature_from_function", None)  # what reads one
    Scaled.apply(x, 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_the_layers_have_no_other_functions():
    """What the field's ConvNet calls in each update."""
    found = []
    for module in MODULES:
        for one in vars(module).values():
            if isinstance(one, type) and issubclass(one, torch.autograd.Function):
                found.append(one)
    made = set(found) - {Formula}
    assert len(made) == 6 and all(issubclass(one, Formula) for one in made)
