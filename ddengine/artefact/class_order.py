"""In which order a file of another program counts the classes.

A user says it, and networks and images are asked whether they agree. The class k of a file and the
class k of a dataset need not be the same: folders "0" to "11" sorted as words are 0, 1, 10, 11, 2
... An order says for each class of the file which class of the dataset it is.
"""

import math
import re
from collections import Counter
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
    """How well labels fit the data, as they are numbered and in the order that fits far better."""

    as_numbered: float  # share of images, or agreement of class means, 1 at best
    reordered: float | None = None
    # order[k]: the class that is counted as k, among those of the data; None: no order fits far
    # better
    order: tuple[int, ...] | None = None


def with_numbers(names: Sequence[str]) -> str:
    """'NUMBER NAME, ...' of all classes or of the first and the last ones."""
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    if len(numbered) > SHOWN:
        numbered = [*numbered[:EDGE], "...", *numbered[-EDGE:]]
    return ", ".join(numbered)


def resolve(words: Sequence[str], names: Sequence[str], numbers: Sequence[int]) -> tuple[int, ...]:
    """The order that names, or numbers, of classes give.

    It is the positions among `names` (K) in the order of `words`. `numbers` (K) are what the
    dataset counts the classes as. A word is a name first, and a number where no class has it as its
    name, or several have. Raises UserError, naming what is unknown, missing and named twice, unless
    every class is named once.
    """
    positions: list[int] = []
    unknown: list[str] = []
    for word in words:
        position = _position(word, names, numbers)
        if position is None:
            unknown.append(word)
        else:
            positions.append(position)
    complaints = _complaints(positions, unknown, names)
    if complaints:
        raise UserError(
            f"--class_order {complaints}; name each of the {len(names)} classes once, by name or "
            "number, in the order in which the file counts them "
            f"({with_numbers(names)})."
        )
    return tuple(positions)


def _complaints(positions: Sequence[int], unknown: Sequence[str], names: Sequence[str]) -> str:
    """What is wrong with an order, for a sentence; nothing where every class is named once."""
    times = Counter(positions)
    missing = []
    repeated = []
    for position, name in enumerate(names):
        if times[position] == 0:
            missing.append(name)
        elif times[position] > 1:
            repeated.append(name)
    complaints = []
    if unknown:
        complaints.append(f"knows no class {_quoted(unknown)}")
    if missing:
        complaints.append(f"leaves out {_quoted(missing)}")
    if repeated:
        complaints.append(f"names {_quoted(repeated)} more than once")
    return listed(complaints)


def _position(word: str, names: Sequence[str], numbers: Sequence[int]) -> int | None:
    """The position of the class of this name, or else number; None where no class has it."""
    if names.count(word) == 1:
        return names.index(word)
    words = list(map(str, numbers))
    if word in words:
        return words.index(word)
    return None


def _quoted(words: Sequence[str]) -> str:
    return listed(list(map(repr, words)))


def in_order(names: Sequence[str], numbers: Sequence[int], order: Sequence[int]) -> list[str]:
    """The words of --class_order that `resolve` reads as this order.

    They are names, and numbers where a name is not that of one class alone.
    """
    words = []
    for k in order:
        name = names[k]
        if names.count(name) > 1 or name.startswith("-"):
            words.append(str(numbers[k]))
        else:
            words.append(name)
    return words


def likely_orders(names: Sequence[str]) -> list[Ints]:
    """Orders in which programs count classes of these names.

    Sorted as words, without regard to capitals, and with numbers in them as numbers.
    """
    as_numbered = tuple(range(len(names)))
    sort_keys = (str, str.casefold, _with_numbers_as_such)
    orders: dict[tuple[int, ...], None] = {}  # keeps its order, and nothing twice
    for sort_key in sort_keys:
        keys = list(map(sort_key, names))
        order = sorted(as_numbered, key=keys.__getitem__)
        orders[tuple(order)] = None
    orders.pop(as_numbered, None)
    return list(map(np.array, orders))


def _with_numbers_as_such(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names by their words, and numbers in them by their values."""
    key = []
    for part in re.split(r"(\d+)", name):
        if part.isdecimal():
            key.append((0, int(part), ""))
        else:
            key.append((1, 0, part))
    return key


# Networks and images that are classified one by one


def fit_of_predictions(
    counted: Ints, actual: Ints, num_classes: int, likely: Sequence[Ints] = ()
) -> Fit:
    """How well what a file counts as a class (N,) goes with what each image is found to be (N,).

    Of a network the first is what it predicts, the second the label; of an imported image the first
    is its label, the second the class that it looks like. Of orders that fit about as well as the
    best one, one that is `likely` is taken.
    """
    right = counted == actual
    as_numbered = float(right.mean())
    better = _better_on_other_half(counted, actual, num_classes)
    if not better and not _beyond_chance(counted, actual, num_classes):
        return Fit(as_numbered)
    order = _better_cycles(_counts(counted, actual, num_classes))
    if (order == np.arange(num_classes)).all():
        return Fit(as_numbered)

    def share_right(one: Ints) -> float:
        return float((one[counted] == actual).mean())

    share, order = _likeliest(order, likely, share_right)
    return Fit(as_numbered, share, tuple(order.tolist()))


def _better_on_other_half(counted: Ints, actual: Ints, num_classes: int) -> bool:
    """Whether orders that halves of the images (N,) choose fit the other halves far better.

    Images of a class should lie side by side: one half of every class chooses an order, which is
    judged on the other half.
    """
    half = np.arange(len(counted)) % 2 == 0
    # whether an order that was not chosen by this image is right about it
    reordered_right = np.zeros(len(counted), bool)
    for chosen in (half, ~half):
        judged = ~chosen
        order = _better_cycles(_counts(counted[chosen], actual[chosen], num_classes))
        reordered_right[judged] = order[counted[judged]] == actual[judged]
    right = counted == actual
    gained = int((reordered_right & ~right).sum())
    lost = int((right & ~reordered_right).sum())
    if gained == 0:
        return False
    # of as many gains among as many changes
    doubt = float(scipy.special.bdtrc(gained - 1, gained + lost, 0.5))
    chance = 1 / num_classes
    reached = (reordered_right.mean() - chance) / (1 - chance)
    return doubt <= DOUBT and bool(reached >= _least_reached(num_classes))


def _beyond_chance(counted: Ints, actual: Ints, num_classes: int) -> bool:
    """Whether some order fits images (N,) so few that no half can be spared far better than theirs.

    It must also fit far better than any order fits classes found at random. With one image a class
    nothing is left to judge an order by; but that ten images look like ten different classes
    happens in 4 of 10,000 cases.
    """
    if len(counted) > FEW * num_classes or num_classes > FEW_CLASSES:
        return False

    def most_right(classes: Ints) -> float:
        counts = _counts(counted, classes, num_classes)
        best = linear_sum_assignment(-counts)
        return float(counts[best].sum())

    reached = most_right(actual)
    as_numbered = (counted == actual).sum()
    if reached < CYCLE * as_numbered:
        return False
    rng = np.random.default_rng(0)
    as_good = 0
    for _ in range(DRAWS):
        random_classes = rng.integers(num_classes, size=len(actual))
        if most_right(random_classes) >= reached:
            as_good += 1
    return (1 + as_good) / (1 + DRAWS) <= DOUBT


def _likeliest(
    best: Ints, likely: Sequence[Ints], fit: Callable[[Ints], float]
) -> tuple[float, Ints]:
    """(fit, order) of the likely order that fits best, if it fits about as well as the best of all.

    Else of that one.
    """
    best_fit = fit(best)
    if likely:
        order = max(likely, key=fit)
        share = fit(order)
        if share >= AS_WELL * best_fit:
            return share, order
    return best_fit, best


def _least_reached(num_classes: int) -> float:
    """What the better order must reach on the way from chance (0) to all right (1).

    It is more than untrained networks reach in their best order.
    """
    least = 1.6 / num_classes**0.5
    return min(max(least, 0.1), 0.6)


def _counts(counted: Ints, actual: Ints, num_classes: int) -> Floats:
    """(K, K): how often the class of the row is found to be the class of the column."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (counted, actual), 1)
    return counts


def _better_cycles(fit: Floats) -> Ints:
    """The order that fits best among those in which classes change places for good reason.

    They keep their places unless all that change places with each other fit far better so.
    """
    _, best = linear_sum_assignment(-fit)
    order = np.arange(len(fit))
    seen: set[int] = set()
    for start in range(len(fit)):
        cycle = []
        at = start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = int(best[at])
        if not cycle:
            continue
        in_new_places = fit[cycle, best[cycle]].sum()
        in_their_places = fit[cycle, cycle].sum()
        if in_new_places >= max(CYCLE * in_their_places, 1):
            order[cycle] = best[cycle]
    return order


# Class means


def fit_of_means(imported: Floats, real: Floats, likely: Sequence[Ints] = (), seed: int = 0) -> Fit:
    """How well the mean images (K, D) of classes of a set go with those of the training images.

    Both are as networks see them. The agreement is the sum of the inner products of each class with
    its own, both around the mean of all classes, over the most that any rotation of the classes
    among each other could reach: about 1 where every difference between classes of the set is that
    of the training images, about 0 where the two have nothing to do with each other. What an order
    reaches by chance is seen from sets with the same means, rotated at random, so that they have
    the same contrast and the same redundancy, and nothing to do with the classes.
    """
    num_classes = len(real)
    products = _products(imported, real)
    most = float(np.linalg.svd(products, compute_uv=False).sum())
    largest = float(np.abs(real).max())
    if most <= 1e-9 * max(1.0, largest):
        return Fit(0.0)  # all classes of the set look the same
    agreement = float(np.trace(products)) / most
    best, order = _best(products, most)
    if num_classes < FEWEST_MEANS or agreement > FAR * best:
        return Fit(agreement)
    by_chance, deviation = _by_chance(products, most, seed)
    least = by_chance + LEAST_FIT * (1 - by_chance)
    if best < least or best < by_chance + DEVIATIONS * deviation:
        return Fit(agreement)

    def agreement_of(one: Ints) -> float:
        return float(products[np.arange(num_classes), one].sum()) / most

    best, order = _likeliest(order, likely, agreement_of)
    return Fit(agreement, best, tuple(order.tolist()))


def _products(imported: Floats, real: Floats) -> Floats:
    """(K, K) inner products of the class means of a set, at length 1, with the real ones.

    Both are taken around the mean of all classes, and so are the products.
    """
    centred = imported - imported.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    directions = centred / np.maximum(lengths, 1e-12)
    centred_real = real - real.mean(0)
    products = directions @ centred_real.T
    return products - products.mean(0) - products.mean(1, keepdims=True) + products.mean()


def _by_chance(products: Floats, most: float, seed: int) -> tuple[float, float]:
    """(mean, standard deviation) of what the best order reaches where nothing fits.

    The means of the set are rotated at random.
    """
    from scipy.stats import ortho_group  # a second to import, and rarely needed

    num_classes = len(products)
    rng = np.random.default_rng(seed)
    # a basis of differences between classes
    basis = np.linalg.svd(np.eye(num_classes) - 1 / num_classes)[0]
    differences = basis[:, : num_classes - 1]
    small = differences.T @ products
    rotations = min(max(6000 // num_classes, 8), 60)
    reached = []
    for _ in range(rotations):
        rotation = ortho_group.rvs(num_classes - 1, random_state=rng)
        agreement, _ = _best(differences @ (rotation @ small), most)
        reached.append(agreement)
    return float(np.mean(reached)), float(np.std(reached, ddof=1))


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
# what is compared, for a sentence
OF_MEANS = "class means of the imported images agree with those of the training images to"
OF_IMAGES = "imported images are nearest to the mean of their class in"
EXAMPLES = 100  # imported images of a class, at most, that are looked at
BATCH = 256


def sample(real: RealSet, total: int) -> Tensor:
    """Indices (N,) of training images, class by class, spread evenly within each.

    As many of each class where it has them; N is even.
    """
    each = max(2, total // real.num_classes)
    chosen = torch.cat([_spread(members, each) for members in real.members])
    even = len(chosen) // 2 * 2
    return chosen[:even]


def _spread(members: Tensor, most: int) -> Tensor:
    """At most so many of the members, spread evenly."""
    num = min(most, len(members))
    if num == 0:
        return members
    places = torch.arange(num) * len(members) // num
    return members[places]


@torch.no_grad()
def fit_of_networks(
    networks: Sequence[Callable[[Tensor], Tensor]], real: RealSet, names: Sequence[str]
) -> tuple[Fit, int]:
    """(how well networks go with the labels of training images, how many images they were asked).

    `networks` make logits (B, K) of images (B, C, H, W), `names` are those of the classes.
    """
    asked = networks[:NETWORKS]
    index = sample(real, SAMPLE // len(asked))
    labels = real.labels[index.to(real.device)].cpu().numpy()
    predictions = np.concatenate([_predictions(network, real, index) for network in asked])
    labels = np.tile(labels, len(asked))
    likely = likely_orders(names)
    fit = fit_of_predictions(predictions, labels, real.num_classes, likely)
    return fit, len(index)


def _predictions(network: Callable[[Tensor], Tensor], real: RealSet, index: Tensor) -> Ints:
    """The classes (N,) that a network predicts of training images.

    A batch holds images of all classes, because networks may normalise by the batch.
    """
    predictions = np.empty(len(index), np.int64)
    num_batches = math.ceil(len(index) / BATCH)
    for first in range(num_batches):
        batch = slice(first, None, num_batches)
        logits = network(real.images(index[batch]))
        predictions[batch] = logits.argmax(1).cpu().numpy()
    return predictions


@torch.no_grad()
def fit_of_set(syn: SyntheticSet, real: RealSet) -> tuple[Fit, str]:
    """(how well the labels of a set go with those of the training images, what was compared).

    The means of their classes are compared, as networks see them. Where these tell nothing, because
    there are few classes or all but a few are right, the images are compared one by one with the
    means.
    """
    images, labels = _examples(syn, real.num_classes)
    real_means = _class_means(real)
    means = np.stack([images[labels == c].mean(0) for c in range(real.num_classes)])
    likely = likely_orders(syn.class_names)
    by_means = fit_of_means(means, real_means, likely)
    if by_means.order is not None:
        return by_means, OF_MEANS
    nearest = _nearest(images, means, real_means)
    by_images = fit_of_predictions(labels, nearest, real.num_classes, likely)
    if by_images.order is not None:
        return by_images, OF_IMAGES
    return by_means, OF_MEANS


def _nearest(images: Floats, means: Floats, real_means: Floats) -> Ints:
    """(N,): the classes whose real mean (K, D) is nearest to the images (N, D) of a set.

    The images are compared at the contrast of the training images, because distilled ones often
    have more. `means` (K, D) are those of the set.
    """
    scale = _contrast(real_means) / max(_contrast(means), 1e-12)
    centred = (images - means.mean(0)) * scale
    centred_real = real_means - real_means.mean(0)
    lengths = np.square(centred_real).sum(1)
    distances = lengths - 2 * centred @ centred_real.T
    return distances.argmin(1)


def _examples(syn: SyntheticSet, num_classes: int) -> tuple[Floats, Ints]:
    """(images (N, D) as networks see them, classes (N,)) of at most EXAMPLES images a class."""
    classes = syn.classes[syn.source].cpu()
    chosen = []
    for c in range(num_classes):
        members = (classes == c).nonzero().flatten()
        chosen.append(_spread(members, EXAMPLES))
    index = torch.cat(chosen)
    parts = []
    for part in index.split(BATCH):
        images = syn.batch(part).images
        parts.append(images.flatten(1).double().cpu())
    return torch.cat(parts).numpy(), classes[index].numpy()


def _class_means(real: RealSet) -> Floats:
    """(K, D) means of training images of each class, as networks see them."""
    of_class = min(MEAN_OF, MEAN_OF_ALL // real.num_classes)
    most = max(MEAN_OF_LEAST, of_class)
    means = []
    for members in real.members:
        images = real.images(_spread(members, most)).double()
        means.append(images.mean(0).flatten().cpu())
    return torch.stack(means).numpy()


def _contrast(means: Floats) -> float:
    """The mean distance of class means (K, D) from the mean of all."""
    return float(np.linalg.norm(means - means.mean(0), axis=1).mean())
