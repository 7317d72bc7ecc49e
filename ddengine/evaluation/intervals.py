"""95 % intervals of mean accuracies that stay within 0 and 1."""

from collections.abc import Sequence

import numpy as np
import scipy.special

NAME = "Student's t on the logit scale"  # for captions
FORMER = "Student's t"  # of files that name none

Ends = tuple[float, float]  # of an interval


def interval(
    values: Sequence[float], low: float = 0.0, high: float = 1.0
) -> tuple[float | None, float | None, Ends | None]:
    """Mean, sample standard deviation, and the 95 % interval of the mean of values.

    They lie within `low` and `high`. The interval is Student's t on the logit scale: the half width
    t s / sqrt(n) is carried to the logit of the mean by the derivative there (the delta method),
    and both ends are carried back. In the middle, and where values scatter little, that is the
    plain interval; near the bounds it is longer on the side where accuracies have room to differ.
    Cut at the bounds instead, the plain one covers the true mean of skewed accuracies far less
    often than it says (benchmarks/intervals.py). Equal values have an interval of no width. One
    value has neither deviation nor interval, and no value not even a mean.
    """
    num = len(values)
    if num == 0:
        return None, None, None
    mean = float(np.mean(values))
    if num == 1:
        return mean, None, None
    std = float(np.std(values, ddof=1))
    quantile = float(scipy.special.stdtrit(num - 1, 0.975))
    half = quantile * std / num**0.5
    return mean, std, within(mean, half, low, high)


def within(mean: float, half: float, low: float = 0.0, high: float = 1.0) -> Ends:
    """The interval mean - half to mean + half, carried to the logit scale and back.

    The scale lies between `low` and `high`. The interval contains the mean.
    """
    span = high - low
    share = (mean - low) / span
    slope = (mean - low) * (high - mean) / span
    if half == 0 or slope <= 0:  # a mean at a bound is that of equal values
        return mean, mean
    logits = scipy.special.logit(share) + np.array([-half, half]) / slope
    ends = low + span * scipy.special.expit(logits)
    lower, upper = ends.tolist()
    return min(lower, mean), max(upper, mean)


def counted(accuracies: Sequence[float | None]) -> list[float]:
    """The accuracies without those of networks that diverged, which are None."""
    return [a for a in accuracies if a is not None]
