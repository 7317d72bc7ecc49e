"""Kernel ridge regression on features, in closed form.

    prediction = K_ts (K_ss + lambda I)^-1 Y,   K_ab = a b^T,   lambda = ridge * trace(K_ss)

with features a of the examples S, t of the images T, and the targets Y of S. It is the same number
in two forms: with the matrix K_ss of the examples (dual), and with that of the features (primal),
t (a^T a + lambda I)^-1 a^T Y. The smaller matrix is solved, by Cholesky and in float64: lambda is
tiny, which costs float32 all its digits.
"""

import torch
from torch import Tensor

RIDGE = 1e-6  # lambda in units of the trace, as KRR-ST has it


def predictions(real: Tensor, syn: Tensor, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """What the regression on (syn (S, D), targets (S, K)) says of real (T, D): (T, K), float64.

    Differentiable in all three; lambda is a constant.
    """
    if len(syn) <= syn.shape[1]:
        return dual(real, syn, targets, ridge)
    return primal(real, syn, targets, ridge)


def dual(real: Tensor, syn: Tensor, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """The same by the matrix (S, S) of the examples."""
    real, syn, targets = real.double(), syn.double(), targets.double()
    kernel = syn @ syn.T
    return real @ syn.T @ _solved(kernel, targets, ridge)


def primal(real: Tensor, syn: Tensor, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """The same by the matrix (D, D) of the features, whose trace is that of the other."""
    real, syn, targets = real.double(), syn.double(), targets.double()
    return real @ _solved(syn.T @ syn, syn.T @ targets, ridge)


def with_constant(features: Tensor) -> Tensor:
    """Features (B, D) with a constant 1 behind them (B, D + 1), so that a bias is learned too."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def _solved(matrix: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(matrix + ridge * its trace * I)^-1 right, of a positive semi-definite matrix.

    Not a number where the factorisation fails, which the guard of the outer loop sees; raising
    would need the device to be waited for.
    """
    weight = ridge * matrix.detach().trace()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, failure = torch.linalg.cholesky_ex(matrix + weight * identity)
    factor = torch.where(failure == 0, factor, torch.nan)
    return torch.cholesky_solve(right, factor)
