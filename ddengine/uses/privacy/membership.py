"""Membership inference: can members be told from others by a score?"""

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from ddengine.data import RealSet
from ddengine.types import Json
from ddengine.uses.privacy.spaces import BATCH

QUANTILE = 1.959964  # of the normal distribution, for 95 % intervals


def auc(members: np.ndarray, others: np.ndarray) -> Json:
    """How well scores tell members from others, members meant to have the higher ones.

    Args:
        members: (n,) scores.
        others: (m,) scores.

    Returns:
        {"auc": probability that a member scores higher, ties half; "ci95" by Hanley & McNeil
        (1982), of no width at an AUC of 0 or 1; "tpr_at_1_fpr": share of members above the
        threshold that at most 1 % of the others reach; "n": [n, m]}.
    """
    n = len(members)
    m = len(others)
    ranks = scipy.stats.rankdata(np.concatenate((members, others)))
    pairs_won = ranks[:n].sum() - n * (n + 1) / 2
    area = float(pairs_won / (n * m))
    # probabilities that two members score above one of the others, and one member above two
    two_members = area / (2 - area)
    two_others = 2 * area**2 / (1 + area)
    of_members = (n - 1) * (two_members - area**2)
    of_others = (m - 1) * (two_others - area**2)
    variance = (area * (1 - area) + of_members + of_others) / (n * m)
    half = QUANTILE * max(variance, 0.0) ** 0.5
    # the score that just too many others reach: only what lies above it counts
    highest_first = np.sort(others)[::-1]
    threshold = highest_first[m // 100]
    return {
        "auc": area,
        "ci95": [max(0.0, area - half), min(1.0, area + half)],
        "tpr_at_1_fpr": float((members > threshold).mean()),
        "n": [n, m],
    }


@torch.no_grad()
def losses(network: nn.Module, real: RealSet, index: Tensor) -> np.ndarray:
    """(n,): cross-entropy of a network in evaluation mode on the images at `index` (n,)."""
    training = network.training
    network.eval()
    parts = []
    for few in index.split(BATCH):
        images, labels = real.batch(few)
        logits = network(images).double()
        of_few = nn.functional.cross_entropy(logits, labels, reduction="none")
        parts.append(of_few.cpu())
    network.train(training)
    return torch.cat(parts).numpy()
