"""The distribution over points that gains most whichever answers are wrong, in closed form.

Robust Active Distillation (RAD, Baykal et al., ICLR 2023, arXiv 2210.01213): point i brings the
gain g_i >= 0 where its answer is right and costs as much where it is wrong. An adversary makes m
answers wrong. The distribution p on the simplex maximises the minimum over sets F of at most m
points of the sum over i of s_i p_i g_i, with s_i = -1 in F and 1 elsewhere.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ddengine.system.errors import UserError


@dataclass(frozen=True)
class MaxMin:
    """The best distribution, and what it gains at least."""

    probabilities: Tensor  # (n,) float64, sums to 1
    value: float


def max_min(gains: Tensor, errors: int) -> MaxMin:
    """The distribution over n points for gains (n,) of which `errors` are turned against us.

    On the k points of the largest gains p is proportional to 1 / g, so that all risk the same; with
    H_k = 1 / (sum of 1 / g over them) that gains (k - 2 m) H_k, and k is the best one. Where no k
    gains anything, the least is lost: nothing by points that bring nothing; else, of all n points
    and the one of the smallest gain alone, by what loses less.

    Raises UserError for no point, gains that are negative or not finite, and negative `errors`.
    """
    _check(gains, errors)
    gains = gains.double()
    sorted_gains, order = gains.sort(descending=True, stable=True)
    positive = sorted_gains[sorted_gains > 0]
    probabilities = torch.zeros_like(gains)
    values = _values(positive, errors)
    if len(positive) and float(values.max()) > 0:
        size = int(values.argmax()) + 1
        chosen = order[:size]
        probabilities[chosen] = _inverse(positive[:size])
        return MaxMin(probabilities, float(values.max()))
    worthless = gains == 0
    if worthless.any():
        share = 1 / int(worthless.sum())
        return MaxMin(share * worthless.double(), 0.0)
    of_all, of_least = float(values[-1]), -float(positive[-1])
    if of_all >= of_least:
        probabilities[order] = _inverse(positive)
        return MaxMin(probabilities, of_all)
    probabilities[order[-1]] = 1.0
    return MaxMin(probabilities, of_least)


def _values(gains: Tensor, errors: int) -> Tensor:
    """(k - 2 m) H_k for the k largest of gains (n,), which descend and are positive: (n,)."""
    sizes = torch.arange(1, len(gains) + 1, dtype=torch.float64)
    sums = gains.reciprocal().cumsum(0)
    return (sizes - 2 * errors) / sums


def _inverse(gains: Tensor) -> Tensor:
    """Probabilities proportional to 1 / gain."""
    inverse = gains.reciprocal()
    return inverse / inverse.sum()


def _check(gains: Tensor, errors: int) -> None:
    if gains.dim() != 1 or not len(gains):
        raise UserError("There is no point to choose among; give one gain at least.")
    if not bool(gains.isfinite().all()) or bool((gains < 0).any()):
        raise UserError(
            "The gains of points must be finite and not negative; the network that judges them "
            "may have diverged: lower its learning rate."
        )
    if errors < 0:
        raise UserError(f"{errors} wrong answers cannot be; give 0 or more.")


def inclusion(gains: Tensor, num: int, errors: int) -> Tensor:
    """The probability (n,) with which each point is among the `num` that are bought.

    It is num * p, at most 1, of the max-min distribution p, brought to `num` in all: what lies
    above 1 goes to the others. Where p has fewer points than that, all of these are bought, and the
    rest by the distribution over the other points. Raises UserError for fewer points than `num`.
    """
    if num > len(gains):
        raise UserError(
            f"{num} points are to be bought of {len(gains)} that are left; ask for fewer, or for "
            "fewer rounds."
        )
    included = torch.zeros(len(gains), dtype=torch.float64)
    free = torch.arange(len(gains))
    left = num
    while left:
        probabilities = max_min(gains[free], errors).probabilities
        supported = probabilities > 0
        num_supported = int(supported.sum())
        if num_supported > left:
            included[free] = _capped(probabilities, left)
            return included
        sure = free[supported]
        included[sure] = 1.0
        left -= num_supported
        free = free[~supported]
    return included


def _capped(probabilities: Tensor, num: int) -> Tensor:
    """Min(1, c p) with the c at which they sum to `num`, of more positive p than that."""
    sure = torch.zeros(len(probabilities), dtype=torch.bool)
    while True:
        rest = torch.where(sure, 0.0, probabilities)
        left = num - int(sure.sum())
        scaled = rest * (left / rest.sum())
        above = scaled > 1
        if not above.any():
            return torch.where(sure, 1.0, scaled)
        sure |= above


def drawn(included: Tensor, rng: Generator) -> Tensor:
    """Points drawn with these probabilities (n,), as many as they sum to.

    Systematic sampling (Madow, 1949), of the points in random order: exactly that many, none twice,
    each with its own probability.
    """
    num = round(float(included.sum()))
    order = torch.randperm(len(included), generator=rng)
    ends = included[order].cumsum(0)
    start = torch.rand(1, generator=rng, dtype=torch.float64)
    spacing = float(ends[-1]) / num
    marks = spacing * (start + torch.arange(num))
    places = torch.searchsorted(ends, marks, right=True)
    last = len(order) - 1
    return order[places.clamp(max=last)]
