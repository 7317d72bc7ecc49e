"""Fits through measured costs, and what is predicted of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import scale_fits
from scale_fits import best, fitted

X = [1.0, 2.0, 4.0, 8.0, 16.0]


def test_exact_points_are_met():
    line = best(X, [0.3 + 0.05 * x for x in X])
    assert line.kind == "line" and line.at(64) == pytest.approx(0.3 + 0.05 * 64)
    assert (line.a, line.b) == pytest.approx((0.3, 0.05)) and line.left_out < 1e-9
    power = best(X, [0.2 * x**1.7 for x in X])
    assert power.kind == "power" and power.at(64) == pytest.approx(0.2 * 64**1.7)
    assert (power.a, power.b) == pytest.approx((0.2, 1.7)) and power.b_error < 1e-9


def test_the_error_is_that_of_points_left_out():
    """Of three points by hand: the middle one of a line is predicted by the two others."""
    fit = fitted("line", [1.0, 2.0, 3.0], [1.0, 3.0, 3.0])
    wanted = [(3 - 0) / 1 - 1, 2 / 3 - 1, 5 / 3 - 1]
    assert fit.left_out == pytest.approx(np.sqrt(np.mean(np.square(wanted))))


def test_costs_vary_by_a_part_of_themselves():
    """A large point that is off by a tenth does not move what small ones say."""
    y = [0.1 * x for x in X]
    fit = fitted("line", X, [*y[:-1], 1.1 * y[-1]])
    assert fit.at(1) == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("kind, truth", [("line", (0.4, 0.2)), ("power", (0.4, 1.3))])
def test_intervals_hold_the_truth_as_often_as_they_say(kind, truth):
    rng = np.random.default_rng(0)
    exact = [scale_fits.Fit(kind, *truth, 0, 0, 0).at(x) for x in X]
    held = 0
    for _ in range(300):
        noisy = np.array(exact) * np.exp(rng.normal(0, 0.05, len(X)))
        fit = fitted(kind, X, noisy)
        held += abs(fit.b - truth[1]) <= fit.b_error
    assert 0.91 < held / 300 < 0.985


def test_what_cannot_be_fitted():
    for x, y in (([1, 2], [1, 2]), ([1, 1, 2], [1, 1, 2]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="3 different points"):
            fitted("line", x, y)
    with pytest.raises(ValueError, match="positive"):
        fitted("power", [1, 2, 3], [1, 0, 2])


def test_the_rate_of_a_machine_is_a_median():
    assert scale_fits.rate([1e9, 2e9, 4e9], [1.0, 1.0, 40.0]) == 1e9
