"""Kernel ridge regression: both forms against a plain solution, gradients, what fails."""

import pytest
import torch

from ddengine.learning.kernel_ridge import _solved, dual, predictions, primal, with_constant
from ddengine.system.rng import generator

F64 = torch.float64
SHAPES = [(5, 12), (12, 5), (7, 7)]  # examples, features


def drawn(examples: int, width: int, dtype=F64):
    """(real, syn, targets)."""
    rng = generator(0, "features", examples)
    return tuple(
        torch.randn(*shape, generator=rng, dtype=F64).to(dtype)
        for shape in ((6, width), (examples, width), (examples, 3))
    )


@pytest.mark.parametrize("form", [dual, primal, predictions])
@pytest.mark.parametrize("shape", SHAPES)
def test_forms_say_what_ridge_regression_says(form, shape):
    """The weights that minimise |syn W - Y|^2 + lambda |W|^2, by another solver."""
    real, syn, targets = drawn(*shape)
    ridge = 1e-3
    weight = ridge * syn.square().sum()
    rows = torch.cat([syn, weight.sqrt() * torch.eye(shape[1], dtype=F64)])
    wanted = torch.cat([targets, torch.zeros(shape[1], 3, dtype=F64)])
    weights = torch.linalg.lstsq(rows, wanted).solution
    assert torch.allclose(form(real, syn, targets, ridge), real @ weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [dual, primal])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_slopes(form, shape):
    """With lambda held, as finite differences of the formula have it."""
    real, syn, targets = drawn(*shape)
    held = 1e-2 * syn.square().sum()

    def formula(real, syn, targets):
        kernel = syn @ syn.T + held * torch.eye(len(syn), dtype=F64)
        return (real @ syn.T @ torch.linalg.solve(kernel, targets)).sin().sum()

    leaves = [tensor.clone().requires_grad_() for tensor in (real, syn, targets)]
    slopes = torch.autograd.grad(form(*leaves, 1e-2).sin().sum(), leaves)
    for place, slope in enumerate(slopes):
        for entry in (0, slope.numel() - 1):
            ends = []
            for sign in (1, -1):
                moved = [leaf.detach().clone() for leaf in leaves]
                moved[place].view(-1)[entry] += sign * 1e-6
                ends.append(formula(*moved))
            assert slope.flatten()[entry] == pytest.approx(
                float(ends[0] - ends[1]) / 2e-6, rel=1e-5
            )


@pytest.mark.parametrize("form", [dual, primal])
def test_single_precision_is_solved_in_double(form):
    """At the usual lambda, where float32 would lose its digits."""
    real, syn, targets = drawn(7, 7, torch.float32)
    said = form(real, syn, targets)
    assert said.dtype == F64
    exact = form(real.double(), syn.double(), targets.double())
    assert torch.equal(said, exact)


def test_a_constant_learns_a_bias():
    """A constant behind the features lets targets far from zero be said."""
    real, syn, targets = drawn(12, 5)
    far = targets + 100
    said = predictions(with_constant(real), with_constant(syn), far)
    assert said.mean() == pytest.approx(100, abs=10)
    assert abs(float(predictions(real, syn, far).mean()) - 100) > 10


def test_what_cannot_be_solved_is_not_a_number():
    """Features that are all zero, or not finite: nothing is raised, and the guard sees it."""
    real, syn, targets = drawn(4, 6)
    assert predictions(real, 0 * syn, targets).isnan().all()
    syn[0, 0] = torch.nan
    assert predictions(real, syn, targets).isnan().all()
    indefinite = torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=F64))
    assert _solved(indefinite, targets[:3], 1e-6).isnan().all()
