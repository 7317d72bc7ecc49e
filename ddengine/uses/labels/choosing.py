"""Which points a rule buys, by what the network of the last round says of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ddengine.sets.pruning import facility_location
from ddengine.types import TrainingSet
from ddengine.uses.labels.distribution import drawn, inclusion

BATCH = 1000  # points that a network looks at together
MOST_COMPARED = 4000  # points, drawn at random, that facility compares with each other


@dataclass(frozen=True)
class Judged:
    """What a network says of the points that can be bought."""

    probabilities: Tensor  # (n, K) float64 on the CPU
    features: Tensor  # (n, D) of length 1, float32 on the CPU
    known: Tensor  # (S, D) of the points whose class is known, the same

    @property
    def gains(self) -> Tensor:
        """1 - the margin between the two likeliest classes: (n,) within 0 and 1."""
        first, second = self.probabilities.topk(2, dim=1).values.T
        gains = 1 - (first - second)
        return gains.clamp(0, 1)

    @property
    def entropies(self) -> Tensor:
        """(n,), in nats."""
        terms = torch.xlogy(self.probabilities, self.probabilities)
        return -terms.sum(1)


@torch.no_grad()
def judged(network: nn.Module, points: TrainingSet, free: Tensor, known: Tensor) -> Judged:
    """What a network says of the points `free` (n,), beside the points `known` (S,)."""
    probabilities, features = _looked_at(network, points, free)
    _, of_known = _looked_at(network, points, known)
    return Judged(probabilities, features, of_known)


def _looked_at(network: nn.Module, points: TrainingSet, index: Tensor) -> tuple[Tensor, Tensor]:
    """(probabilities (n, K), features (n, D) of length 1) of the points at `index` (n,)."""
    embed = network.embed
    assert callable(embed), "networks by name embed images"
    said, features = [], []
    for part in index.split(BATCH):
        images = points.batch(part).images
        logits = network(images).double()
        said.append(logits.softmax(1).cpu())
        unit = nn.functional.normalize(embed(images).float(), dim=1)
        features.append(unit.cpu())
    return torch.cat(said), torch.cat(features)


# (what is said of n points, how many to buy, how many answers may be wrong, stream) -> rows (num,)
Rule = Callable[[Judged, int, int, Generator], Tensor]


def rad(of: Judged, num: int, errors: int, rng: Generator) -> Tensor:
    """Robust Active Distillation: drawn from the max-min distribution of the gains."""
    return drawn(inclusion(of.gains, num, errors), rng)


def uniform(of: Judged, num: int, errors: int, rng: Generator) -> Tensor:
    """At random."""
    return torch.randperm(len(of.probabilities), generator=rng)[:num]


def margin(of: Judged, num: int, errors: int, rng: Generator) -> Tensor:
    """Of the smallest margins."""
    return _largest(of.gains, num)


def entropy(of: Judged, num: int, errors: int, rng: Generator) -> Tensor:
    """Of the largest entropies."""
    return _largest(of.entropies, num)


def facility(of: Judged, num: int, errors: int, rng: Generator) -> Tensor:
    """That stand best for all, beside those that are known: facility location on features.

    Of many points some are drawn, and these are compared.
    """
    order = torch.randperm(len(of.features), generator=rng)
    compared = order[: max(MOST_COMPARED, num)]
    features = of.features[compared]
    covered, _ = _likeness(features, of.known).max(1)
    kernel = _likeness(features, features)
    rows, _ = facility_location(kernel, num, covered=covered)
    return compared[rows]


def _likeness(features: Tensor, others: Tensor) -> Tensor:
    """Cosines (n, m) of features (n, D) and (m, D) of length 1, at least 0."""
    cosines = features @ others.T
    return cosines.clamp(min=0)


def _largest(values: Tensor, num: int) -> Tensor:
    """Rows of the `num` largest values, of equal ones the first."""
    return values.argsort(descending=True, stable=True)[:num]


BY_NAME: dict[str, Rule] = {
    "rad": rad,
    "uniform": uniform,
    "margin": margin,
    "entropy": entropy,
    "facility": facility,
}
