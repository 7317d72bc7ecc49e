"""Which real images are kept of a dataset: how hard each one is, and how far it stands for others.

Scores are (N,) float64, one of each image; logits (N, K), classes (N,) int64. Whatever is kept is
kept class by class, and lists of indices are int64 on the CPU, those of a class together.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.system.errors import UserError

Difficulty = Literal["easy", "middle", "hard"]  # which end of a score is kept, or what lies between


def number_kept(num: int, num_classes: int, fraction: float) -> int:
    """How many images of each class a fraction of a dataset is, by the average size of a class.

    As in MDSLR (Chen et al., ICLR 2025), and to the rounding of its code, which counts in percent.
    Classes that have fewer are kept whole.
    """
    percent = round(100 * fraction, 9)
    return int(num / num_classes * percent / 100)


# How hard an image is.


def error_norms(logits: Tensor, classes: Tensor) -> Tensor:
    """EL2N: the length of softmax(logits) - one-hot(class) (Paul et al., NeurIPS 2021).

    Logits (..., N, K) give (..., N).
    """
    wanted = functional.one_hot(classes, logits.shape[-1])
    errors = logits.softmax(-1) - wanted
    return errors.norm(dim=-1)


def teacher_losses(logits: Tensor, classes: Tensor) -> Tensor:
    """The cross-entropy of what a teacher says of each image with its class."""
    return functional.cross_entropy(logits, classes, reduction="none")


def window_deviations(scores: Tensor, length: int) -> Tensor:
    """How far the scores of an image vary within each `length` epochs in a row.

    Scores (N, E), one of each epoch, give (N, E - length + 1): sample standard deviations.
    """
    return scores.unfold(1, length, 1).std(-1, correction=1)


def check_windows(epochs: int, length: int, windows: int) -> None:
    """Raise UserError where so many epochs have no such windows before the last one."""
    if length < 2:
        raise UserError(
            f"CAD looks at how scores vary within {length} epoch; give a window 2 epochs at least."
        )
    if windows < 1:
        raise UserError(f"CAD averages over {windows} windows; give it 1 at least.")
    if length + windows > epochs:
        raise UserError(
            f"CAD averages {windows} windows of {length} epochs before the last one, and the "
            f"network is trained for {epochs}; train it for {length + windows} at least, or take "
            "shorter windows."
        )


def cad_scores(scores: Tensor, length: int, windows: int) -> Tensor:
    """CAD: the mean of the deviations of `windows` windows before the last (CAD-Prune, CVPR 2026).

    The last window is not used, so that the scores of the last epoch count for nothing. Images of a
    high score are those that the network still changes its mind about. Raises UserError for fewer
    epochs than that.

    Args:
        scores: EL2N (N, E) after each epoch.
        length: J, epochs in a window.
        windows: W.
    """
    epochs = scores.shape[1]
    check_windows(epochs, length, windows)
    last = epochs - length
    deviations = window_deviations(scores, length)
    return deviations[:, last - windows : last].mean(1)


# Which of a class are kept.

Members = Sequence[Tensor]  # indices of the images of each class, as RealSet has them
# (features (n, D) of a class, how many) -> rows in the order in which they are chosen
OrderOf = Callable[[Tensor, int], list[int]]


def ranked(members: Members, scores: Tensor, num: int, kept: Difficulty) -> list[Tensor]:
    """Of each class the `num` of the lowest scores (easy), of the highest (hard), or of the middle.

    Of the n images of a class in ascending order the middle are those from n // 2 - ceil(num / 2)
    on (MDSLR, Chen et al., ICLR 2025). Among equal scores the first come first. A class of fewer
    images is kept whole. The images come in the order of their scores, the hardest first for hard.
    """
    chosen = []
    for of_class in members:
        of_images = scores[of_class]
        order = of_images.argsort(stable=True, descending=kept == "hard")
        first = 0
        if kept == "middle":
            first = _first_of_the_middle(len(of_class), num)
        rows = order[first : first + num]
        chosen.append(of_class[rows])
    return chosen


def _first_of_the_middle(size: int, num: int) -> int:
    """Where the `num` images in the middle of `size` begin; 0 where these are all."""
    if num >= size:
        return 0
    before = (num + 1) // 2
    return size // 2 - before


def shuffled(members: Members, rng: Generator) -> list[Tensor]:
    """The images of each class in random order."""
    orders = []
    for of_class in members:
        order = torch.randperm(len(of_class), generator=rng)
        orders.append(of_class[order])
    return orders


def by_features(members: Members, features: Tensor, num: int, order_of: OrderOf) -> list[Tensor]:
    """Of each class the first `num` images in an order of their features, which are (N, D).

    A class of fewer images is kept whole.
    """
    chosen = []
    for of_class in members:
        fitting = min(num, len(of_class))
        rows = order_of(features[of_class], fitting) if fitting else []
        chosen.append(of_class[rows])
    return chosen


# Facility location.


def similarities(features: Tensor) -> Tensor:
    """The kernel of facility location: the cosine of each two rows of features, at least 0.

    Features (n, D) give (n, n). A row of zeros is like no other.
    """
    unit = functional.normalize(features, dim=1, eps=torch.finfo(features.dtype).tiny)
    cosines = unit @ unit.T
    return cosines.clamp(min=0)


def facility_location(
    kernel: Tensor, num: int, weights: Tensor | None = None, covered: Tensor | None = None
) -> tuple[list[int], list[float]]:
    """Points that stand for all others: (points in the order of choice, the gain of each).

    Greedily maximises the sum over i of weights_i max over chosen j of kernel_ij, which comes
    within 1 - 1/e of the best (Nemhauser et al., 1978). Of equal gains the smallest index is
    taken. Gains only shrink as points are chosen, so most are not computed again (Minoux, 1978).

    Args:
        kernel: (n, m), not negative: how well point j of m stands for i.
        num: of the points to choose, at most m.
        weights: (n,), not negative; None: 1 for each.
        covered: (n,), what i has from points that were chosen before; None: nothing.
    """
    if weights is None:
        weights = kernel.new_ones(len(kernel))
    if covered is None:
        covered = torch.zeros_like(weights)
    of_points = kernel.T.contiguous()  # a row of each point, because rows are read one by one
    queue: list[tuple[float, int]] = []  # what each point adds at most, negative, and its index
    for point, of_point in enumerate(of_points):
        gain = _gain(of_point, covered, weights)
        heapq.heappush(queue, (-gain, point))
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < num:
        _, point = heapq.heappop(queue)
        gain = _gain(of_points[point], covered, weights)
        if queue and (-gain, point) > queue[0]:  # another one may be better
            heapq.heappush(queue, (-gain, point))
            continue
        chosen.append(point)
        gains.append(gain)
        covered = torch.maximum(covered, of_points[point])
    return chosen, gains


def _gain(of_point: Tensor, covered: Tensor, weights: Tensor) -> float:
    """What a point would add."""
    added = (of_point - covered).clamp(min=0)
    return float(weights @ added)
