"""Lines and power laws through measured costs, with their errors, and which of the two predicts.

A cost varies by a part of itself, so both fits are of relative deviations: the line a + b x by
least squares with weights 1 / y^2, the power law c x^p by least squares of logarithms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST = 3  # points of a fit, so that each can be left out
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """A curve through points: "line" a + b x, or "power" a x^b."""

    kind: str
    a: float
    b: float
    a_error: float  # half of the 95 % interval, of a power law that of the logarithm of a
    b_error: float
    left_out: float  # root mean square relative error at points that are left out, one at a time

    def at(self, x: float) -> float:
        """What it predicts."""
        if self.kind == "line":
            return self.a + self.b * x
        return self.a * x**self.b


def best(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The line or the power law, whichever is nearer to points that are left out.

    Args:
        x: positive numbers, three different ones at least.
        y: costs, positive.
    """
    return min((fitted(kind, x, y) for kind in KINDS), key=lambda fit: fit.left_out)


def fitted(kind: str, x: Sequence[float], y: Sequence[float]) -> Fit:
    """A fit of a kind. Raises ValueError for too few points, and for costs that are none."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(set(x)) < FEWEST or len(xs) != len(ys):
        raise ValueError(f"a fit needs {FEWEST} different points with a cost each")
    if min(xs.min(), ys.min()) <= 0:
        raise ValueError("points and costs must be positive")
    (a, b), (a_error, b_error) = KINDS[kind](xs, ys)
    errors = []
    for number in range(len(xs)):
        kept = np.arange(len(xs)) != number
        part, _ = KINDS[kind](xs[kept], ys[kept])
        predicted = Fit(kind, *part, 0.0, 0.0, 0.0).at(xs[number])
        errors.append(predicted / ys[number] - 1)
    left_out = float(np.sqrt(np.mean(np.square(errors))))
    return Fit(kind, a, b, a_error, b_error, left_out)


Solved = tuple[tuple[float, float], tuple[float, float]]  # the coefficients, and their errors


def _line(x: np.ndarray, y: np.ndarray) -> Solved:
    return _solved(np.stack([1 / y, x / y], 1), np.ones_like(y))


def _power(x: np.ndarray, y: np.ndarray) -> Solved:
    (log_a, b), errors = _solved(np.stack([np.ones_like(x), np.log(x)], 1), np.log(y))
    return (float(np.exp(log_a)), b), errors


KINDS: dict[str, Callable[[np.ndarray, np.ndarray], Solved]] = {"line": _line, "power": _power}


def _solved(design: np.ndarray, wanted: np.ndarray) -> Solved:
    """Ordinary least squares with halves of 95 % intervals; infinite ones without a spare point."""
    found, *_ = np.linalg.lstsq(design, wanted)
    spare = len(wanted) - len(found)
    errors = np.full(2, np.inf)
    if spare > 0:
        residual = wanted - design @ found
        variance = residual @ residual / spare
        covariance = variance * np.linalg.inv(design.T @ design)
        errors = stats.t.ppf(0.5 + CONFIDENCE / 2, spare) * np.sqrt(np.diag(covariance))
    return (float(found[0]), float(found[1])), (float(errors[0]), float(errors[1]))


def rate(flops: Sequence[float], seconds: Sequence[float]) -> float:
    """Floating-point operations a second, of which costs are made: the median over points.

    Points whose time is overhead pull a mean down, and single disturbed ones do not move a median.
    """
    return float(np.median(np.asarray(flops, float) / np.asarray(seconds, float)))
