"""In which order a file of another program counts the classes: as a user says, and whether networks
and images agree.

The class k of a file and the class k of a dataset need not be the same: folders "0" to "11" sorted
as words are 0, 1, 10, 11, 2 ... An order says for each class of the file which class of the dataset
it is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddengine.data import RealSet
from ddengine.data.splits import listed
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError

SHOWN = 20  # classes that are listed whole; of more the first and the last
EDGE = 5  # of more classes so many first ones and last ones

# When another order is said to fit far better. Chosen so that images and networks which know
# nothing of the classes, or little, raise no alarm.
# most probability that an order which is no better gains as much, on images that it was not chosen
# by
DOUBT = 1e-3
# standard deviations, of what orders reach by chance, that the agreement of class means must be
# above it
DEVIATIONS = 4.0
CYCLE = 2.0  # classes that change places must fit so many times better in their new ones
# of class means: how far on the way from what any order reaches by chance (0) to a perfect fit (1)
LEAST_FIT = 0.6
FAR = 0.6  # of class means: the order in use fits at most so much of what the other one does
# of the fit of the best order an order must reach that programs are likely to count in, to be named
# in its place
AS_WELL = 0.9
# images a class, and classes, up to which an order is compared with this many draws of chance
FEW, FEW_CLASSES, DRAWS = 4, 100, 5000
FEWEST_MEANS = 5  # classes; of fewer some order always fits their means well

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """How well labels fit the data: as they are numbered, and in the order that fits far better,
    where there is one.
    """

    as_numbered: float  # share of images, or agreement of class means, 1 at best
    reordered: float | None = None
    # order[k]: the class that is counted as k, among those of the data; None: no order fits far
    # better
    order: tuple[int, ...] | None = None


def with_numbers(names: Sequence[str]) -> str:
    """'NUMBER NAME, ...' of all classes or of the first and the last ones."""
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    return ", ".join(
        numbered if len(numbered) <= SHOWN else [*numbered[:EDGE], "...", *numbered[-EDGE:]]
    )


def resolve(words: Sequence[str], names: Sequence[str], numbers: Sequence[int]) -> tuple[int, ...]:
    """The order that names, or numbers, of classes give: positions among `names` (K) in the order
    of `words`.

    `numbers` (K) are what the dataset counts the classes as. A word is a name first, and a number
    where no class has it as its name, or several have. Raises UserError, naming what is unknown,
    missing and named twice, unless every class is there once.
    """
    positions: list[int] = []
    wrong: list[str] = []
    for word in words:
        named = [position for position, name in enumerate(names) if name == word]
        numbered = [position for position, number in enumerate(numbers) if str(number) == word]
        found = named if len(named) == 1 else numbered
        if found:
            positions.append(found[0])
        else:
            wrong.append(word)
    complaints = []
    if wrong:
        complaints.append(f"knows no class {listed(list(map(repr, wrong)))}")
    if missing := [
        names[position] for position in range(len(names)) if position not in set(positions)
    ]:
        complaints.append(f"leaves out {listed(list(map(repr, missing)))}")
    if twice := [
        names[position] for position in sorted(set(positions)) if positions.count(position) > 1
    ]:
        complaints.append(f"names {listed(list(map(repr, twice)))} more than once")
    if complaints:
        joined = " and ".join(
            [", ".join(complaints[:-1]), complaints[-1]] if complaints[1:] else complaints
        )
        raise UserError(
            f"--class_order {joined}; name each of the {len(names)} classes once, by name or "
            "number, in the order in which the file counts them "
            f"({with_numbers(names)})."
        )
    return tuple(positions)


def in_order(names: Sequence[str], numbers: Sequence[int], order: Sequence[int]) -> list[str]:
    """The words of --class_order that `resolve` reads as this order: names, and numbers where a
    name is not that of one class alone.
    """
    return [
        names[k] if names.count(names[k]) == 1 and not names[k].startswith("-") else str(numbers[k])
        for k in order
    ]


def likely_orders(names: Sequence[str]) -> list[Ints]:
    """Orders in which programs count classes of these names: sorted as words, without regard to
    capitals, and with numbers in them as numbers.
    """
    positions = range(len(names))
    numbers_as_such = [
        [
            (0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name)
        ]
        for name in names
    ]
    ways = [names, [name.casefold() for name in names], numbers_as_such]
    orders = [tuple(sorted(positions, key=way.__getitem__)) for way in ways]
    return [np.array(order) for order in dict.fromkeys(orders) if order != tuple(positions)]


# Networks and images that are classified one by one


def fit_of_predictions(
    counted: Ints, found: Ints, num_classes: int, likely: Sequence[Ints] = ()
) -> Fit:
    """How well what the file counts as a class (N,) goes with the class (N,) of the data that each
    image is found to be of.

    Of a network the first is what it predicts, the second the label; of an imported image the first
    is its label, the second the class that it looks like. Images of a class should lie side by
    side: one half of every class chooses an order, which is judged on the other half. Of orders
    that fit about as well as the best one, one that is `likely` is taken.
    """
    right = counted == found
    plain = Fit(float(right.mean()))
    half = np.arange(len(counted)) % 2 == 0
    # whether an order that was not chosen by this image is right about it
    held = np.zeros(len(counted), bool)
    for chosen in (half, ~half):
        order = _better_cycles(_counts(counted[chosen], found[chosen], num_classes))
        held[~chosen] = order[counted[~chosen]] == found[~chosen]
    gained, lost = int((held & ~right).sum()), int((right & ~held).sum())
    chance = 1 / num_classes
    reached = (held.mean() - chance) / (1 - chance)
    # of as many gains among as many changes
    doubt = float(scipy.special.bdtrc(gained - 1, gained + lost, 0.5)) if gained else 1.0
    halves_agree = doubt <= DOUBT and reached >= _least_reached(num_classes)
    if not halves_agree and not _beyond_chance(counted, found, num_classes):
        return plain
    order = _better_cycles(_counts(counted, found, num_classes))
    if (order == np.arange(num_classes)).all():
        return plain
    share, order = _likeliest(order, likely, lambda one: float((one[counted] == found).mean()))
    return Fit(plain.as_numbered, share, tuple(order.tolist()))


def _beyond_chance(counted: Ints, found: Ints, num_classes: int) -> bool:
    """Whether some order fits so few images (N,) that no half can be spared far better than theirs,
    and than any order fits classes found at random.

    With one image a class nothing is left to judge an order by; but that ten images look like ten
    different classes happens in 4 of 10,000 cases.
    """
    if len(counted) > FEW * num_classes or num_classes > FEW_CLASSES:
        return False

    def best(of: Ints) -> float:
        counts = _counts(counted, of, num_classes)
        return float(counts[linear_sum_assignment(-counts)].sum())

    reached = best(found)
    if reached < CYCLE * (counted == found).sum():
        return False
    rng = np.random.default_rng(0)
    as_good = sum(best(rng.integers(num_classes, size=len(found))) >= reached for _ in range(DRAWS))
    return (1 + as_good) / (1 + DRAWS) <= DOUBT


def _likeliest(
    best: Ints, likely: Sequence[Ints], fit: Callable[[Ints], float]
) -> tuple[float, Ints]:
    """(fit, order) of the likely order that fits best, where it fits about as well as the best of
    all orders; else of that one.
    """
    found = [(fit(order), order) for order in likely]
    share, order = max(found, key=lambda pair: pair[0], default=(-1.0, best))
    return (share, order) if share >= AS_WELL * fit(best) else (fit(best), best)


def _least_reached(num_classes: int) -> float:
    """What the better order must reach on the way from chance (0) to all right (1): more than
    untrained networks reach in their best order.
    """
    return min(max(1.6 / num_classes**0.5, 0.1), 0.6)


def _counts(counted: Ints, found: Ints, num_classes: int) -> Floats:
    """(K, K): how often the class of the row is found to be the class of the column."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (counted, found), 1)
    return counts


def _better_cycles(fit: Floats) -> Ints:
    """The order that fits best, in which classes keep their places unless all that change places
    with each other fit far better there.
    """
    best = linear_sum_assignment(-fit)[1]
    order = np.arange(len(fit))
    seen: set[int] = set()
    for start in range(len(fit)):
        cycle = []
        at = start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = int(best[at])
        if cycle and fit[cycle, best[cycle]].sum() >= max(CYCLE * fit[cycle, cycle].sum(), 1):
            order[cycle] = best[cycle]
    return order


# Class means


def fit_of_means(imported: Floats, real: Floats, likely: Sequence[Ints] = (), seed: int = 0) -> Fit:
    """How well the mean images (K, D) of the classes of a set go with those of the training images
    (K, D), both as networks see them.

    The agreement is the sum of the inner products of each class with its own, both around the mean
    of all classes, over the most that any rotation of the classes among each other could reach:
    about 1 where every difference between classes of the set is that of the training images, about
    0 where the two have nothing to do with each other. What an order reaches by chance is seen from
    sets with the same means, rotated at random, so that they have the same contrast and the same
    redundancy, and nothing to do with the classes.
    """
    num_classes = len(real)
    own = imported - imported.mean(0)
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    products = own @ (real - real.mean(0)).T
    products = products - products.mean(0) - products.mean(1, keepdims=True) + products.mean()
    most = float(np.linalg.svd(products, compute_uv=False).sum())
    if most <= 1e-9 * max(1.0, float(np.abs(real).max())):
        return Fit(0.0)  # all classes of the set look the same
    agreement, (best, order) = float(np.trace(products)) / most, _best(products, most)
    plain = Fit(agreement)
    if num_classes < FEWEST_MEANS or agreement > FAR * best:
        return plain
    from scipy.stats import ortho_group  # a second to import, and rarely needed

    rng = np.random.default_rng(seed)
    # a basis of differences between classes
    centred = np.linalg.svd(np.eye(num_classes) - 1 / num_classes)[0][:, : num_classes - 1]
    small = centred.T @ products
    chance = []
    for _ in range(min(max(6000 // num_classes, 8), 60)):
        rotation = ortho_group.rvs(num_classes - 1, random_state=rng)
        chance.append(_best(centred @ (rotation @ small), most)[0])
    by_chance, deviation = float(np.mean(chance)), float(np.std(chance, ddof=1))
    if best < by_chance + LEAST_FIT * (1 - by_chance) or best < by_chance + DEVIATIONS * deviation:
        return plain
    best, order = _likeliest(
        order, likely, lambda one: float(products[np.arange(num_classes), one].sum()) / most
    )
    return Fit(agreement, best, tuple(order.tolist()))


def _best(products: Floats, most: float) -> tuple[float, Ints]:
    """(agreement, order) of the order that fits best."""
    rows, columns = linear_sum_assignment(-products)
    return float(products[rows, columns].sum()) / most, columns


# On data


# training images, at most, that networks are asked about, unless the classes alone are more
SAMPLE = 2000
NETWORKS = 3  # at most, of which each is asked about its share
MEAN_OF = 200  # training images of a class, at most, that its mean is taken of
MEAN_OF_ALL = 20_000  # ... and of all classes, unless this leaves fewer than
MEAN_OF_LEAST = 20
EXAMPLES = 100  # imported images of a class, at most, that are looked at
BATCH = 256


def sample(real: RealSet, total: int) -> Tensor:
    """Indices (N,) of training images, class by class, spread evenly within each, as many of each
    where there are; N is even.
    """
    each = max(2, total // real.num_classes)
    chosen = torch.cat([_spread(members, each) for members in real.members])
    return chosen[: len(chosen) // 2 * 2]


def _spread(members: Tensor, most: int) -> Tensor:
    """At most so many of the members, spread evenly."""
    return (
        members[torch.arange(min(most, len(members))) * len(members) // min(most, len(members))]
        if len(members)
        else members
    )


@torch.no_grad()
def fit_of_networks(
    networks: Sequence[Callable[[Tensor], Tensor]], real: RealSet, names: Sequence[str]
) -> tuple[Fit, int]:
    """(how well networks, images (B, C, H, W) -> logits (B, K), go with the labels of training
    images, how many images they were asked about).

    `names` are those of the classes. A batch holds images of all classes, because networks may
    normalise by the batch.
    """
    asked = networks[:NETWORKS]
    index = sample(real, SAMPLE // len(asked))
    parts = -(-len(index) // BATCH)
    found = real.labels[index.to(real.device)].cpu().numpy()
    said = []
    for network in asked:
        predicted = np.empty(len(index), np.int64)
        for part in range(parts):
            predicted[part::parts] = (
                network(real.images(index[part::parts])).argmax(1).cpu().numpy()
            )
        said.append(predicted)
    fit = fit_of_predictions(
        np.concatenate(said), np.tile(found, len(asked)), real.num_classes, likely_orders(names)
    )
    return fit, len(index)


@torch.no_grad()
def fit_of_set(syn: SyntheticSet, real: RealSet) -> tuple[Fit, str]:
    """(how well the labels of a set go with those of the training images, what was compared), by
    the means of their classes as networks see them.

    Where the means tell nothing, because there are few classes or all but a few are right, the
    images are compared one by one with the means.
    """
    source = syn.classes[syn.source].cpu()
    num_classes = real.num_classes
    index = torch.cat(
        [_spread((source == c).nonzero().flatten(), EXAMPLES) for c in range(num_classes)]
    )
    images = torch.cat(
        [syn.batch(part).images.flatten(1).double().cpu() for part in index.split(BATCH)]
    ).numpy()
    labels = source[index].numpy()
    most = max(MEAN_OF_LEAST, min(MEAN_OF, MEAN_OF_ALL // num_classes))
    means = torch.stack(
        [
            real.images(_spread(members, most)).double().mean(0).flatten().cpu()
            for members in real.members
        ]
    ).numpy()
    own = np.stack([images[labels == c].mean(0) for c in range(num_classes)])
    likely = likely_orders(syn.class_names)
    by_means = fit_of_means(own, means, likely)
    if by_means.order is not None:
        return (
            by_means,
            "class means of the imported images agree with those of the training images to",
        )
    # one by one, at the contrast of the training images: distilled ones often have more
    spread, theirs = (
        float(np.linalg.norm(part - part.mean(0), axis=1).mean()) for part in (own, means)
    )
    centred = (images - own.mean(0)) * (theirs / max(spread, 1e-12))
    around = means - means.mean(0)
    nearest = (np.square(around).sum(1) - 2 * centred @ around.T).argmin(1)
    by_images = fit_of_predictions(labels, nearest, num_classes, likely)
    if by_images.order is not None:
        return by_images, "imported images are nearest to the mean of their class in"
    return by_means, "class means of the imported images agree with those of the training images to"
