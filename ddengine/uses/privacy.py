"""What a distilled set gives away of the images that it was made from: its nearest real images, and
a simple membership inference.

Real images that nothing was trained on are measured the same way beside it, so that the numbers
have something to be compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.log import say
from ddengine.system.rng import generator

SENTENCE = "Distilled is not anonymous: nothing in distillation limits what a set gives away of the images that it was made from."
CAUTION = (
    "An AUC near 0.5 for attacks as simple as these is no proof of privacy: it is a mean over all "
    "members, in which a few copied ones hardly count; "
    "stronger attacks (many shadow networks, the history of the distillation) may find members "
    "where these do not; and only a formal guarantee such "
    "as differential privacy bounds what any of them finds."
)

# root mean square of the pixel differences, of 1: 5 of 255 grey levels, which eyes hardly see
NEAR_COPY = 0.02
# nearest training image at less than this share of the distance of the nearest held-out one
MUCH_NEARER = 0.5
DRAWS = 10  # random halves of equal size, training and held-out, for the balanced comparison
SAME = 1e-6  # distances that differ by less are equal
CONTROL_SHARE = 5  # at most one in so many held-out images of a class becomes a control image
CELLS = 2**24  # float64 values in a block of distances or rows, 128 MiB
MOST_POINTS = 2**26  # float64 values of the points that are compared at a time, 512 MiB
BATCH = 1000  # images a network looks at at a time

Rows = Callable[[Tensor], Tensor]  # indices (B,) -> points (B, D) float64


# Distances.


@dataclass(frozen=True)
class Near:
    """Nearest pool images of each point, and nearest points of each pool image; all on the CPU,
    distances Euclidean in float64.
    """

    index: Tensor  # (P,) int64
    distance: Tensor  # (P,)
    drawn: Tensor  # (draws, P): distance to the nearest pool image of each draw
    to_own: Tensor  # (N,): from each pool image to the nearest of the first `own` points
    to_rest: Tensor  # (N,): to the nearest of the other points; inf where there are none


@torch.no_grad()
def neighbours(
    points: Rows,
    num: int,
    pool: Rows,
    size: int,
    draws: Tensor,
    own: int,
    *,
    block: int | None = None,
    chunk: int | None = None,
) -> Near:
    """All distances between `num` points and `size` pool images, never more than a block of them in
    memory.

    Distances come from a float64 matrix product, exact to about 1e-7 per root of a value; those of
    the nearest are computed once more from differences, so that a copy is at distance 0.

    Args:
        points: of indices within [0, num) their rows (B, D) float64.
        num: P.
        pool: of indices within [0, size) their rows (B, D) float64.
        size: N.
        draws: (draws, N) bool on the CPU, parts of the pool.
        own: how many of the points, the first ones, are the set; the rest are controls.
        block: pool images at a time; None: as many as suit the memory.
        chunk: points at a time; the pool is gone through once for each chunk.
    """
    dim = points(torch.arange(1)).shape[1]
    chunk = chunk or max(1, MOST_POINTS // dim)
    index, drawn = (
        torch.zeros(num, dtype=torch.long),
        torch.full((len(draws), num), torch.inf, dtype=torch.float64),
    )
    distance, exact = (
        torch.full((num,), torch.inf, dtype=torch.float64),
        torch.zeros(num, dtype=torch.float64),
    )
    to_own, to_rest = (torch.full((size,), torch.inf, dtype=torch.float64) for _ in range(2))
    for part in torch.arange(num).split(chunk):
        here, mine = points(part), int((part < own).sum())
        lengths = here.square().sum(1)
        for place in torch.arange(size).split(
            block or max(1, min(CELLS // max(dim, len(part)), 8192))
        ):
            there = pool(place)
            squared = torch.addmm(lengths[:, None] + there.square().sum(1), here, there.T, alpha=-2)
            found = squared.clamp_(min=0).sqrt_().cpu()
            if mine:
                to_own[place] = torch.minimum(to_own[place], found[:mine].amin(0))
            if mine < len(part):
                to_rest[place] = torch.minimum(to_rest[place], found[mine:].amin(0))
            for row, members in zip(drawn, draws, strict=True):
                if (within := members[place]).any():
                    row[part] = torch.minimum(row[part], found[:, within].amin(1))
            nearest, at = found.min(1)
            nearer = nearest < distance[part]
            distance[part] = torch.where(nearer, nearest, distance[part])
            index[part] = torch.where(nearer, place[at], index[part])
        for few in part.split(max(1, CELLS // dim)):
            exact[few] = (points(few) - pool(index[few])).norm(dim=1).cpu()
    return Near(index, exact, drawn, to_own, to_rest)


def _unit(features: Tensor) -> Tensor:
    """(B, D) float64 of length 1; a vector of zeros stays one."""
    return nn.functional.normalize(features.flatten(1).double(), dim=1)


def _finite(features: Tensor) -> Tensor:
    """The features.

    Raises UserError where they are not finite, because distances between such say nothing.
    """
    if not features.isfinite().all():
        raise UserError(
            "The network that embeds the images says nothing finite of some, because its training "
            "diverged; choose another with --model, "
            "or fewer updates with --full_steps."
        )
    return features


def _spaces(
    syn: SyntheticSet, data: Data, test: RealSet, control: Tensor, embed: Callable[[Tensor], Tensor]
) -> dict[str, tuple[Rows, Rows, Rows]]:
    """Of "pixels" and "embedding" the rows of points (the set, then control images of `test`), of
    training images, and of test images.

    Pixels are divided by the root of their number, so that distances are root mean squares; set
    pixels are clamped to what an image can be, which moves them away from no real image. Embeddings
    have length 1: distances are the root of 2 - 2 cos, 0 to 2.
    """
    num, device = len(syn), data.train.device

    def of_set(of_syn: Rows, of_test: Rows) -> Rows:
        def rows(index: Tensor) -> Tensor:
            mine, rest = index[index < num], index[index >= num]
            parts = [of_syn(mine)] if len(mine) else []
            return torch.cat([*parts, of_test(control[rest - num])] if len(rest) else parts)

        return rows

    def pixel_rows(values: Tensor) -> Tensor:
        return values.to(device).flatten(1).double() / values[0].numel() ** 0.5

    def of_real_pixels(real: RealSet) -> Rows:
        return lambda index: pixel_rows(
            real.pixels.index_select(0, index.to(real.device)).double() / 255
        )

    def features(images: Rows) -> Rows:
        return lambda index: torch.cat(
            [_unit(_finite(embed(images(few)))) for few in index.split(BATCH)]
        )

    set_features = features(lambda index: syn.batch(index).images.to(device))
    return {
        "pixels": (
            of_set(lambda index: pixel_rows(syn.pixels(index).clamp(0, 1)), of_real_pixels(test)), of_real_pixels(data.train), of_real_pixels(test),
        ),
        "embedding": (of_set(set_features, features(test.images)), features(data.train.images), features(test.images)),
    }  # fmt: skip


# Which images are compared.


def _by_class(
    labels: Tensor, counts: list[int], among: Tensor, *names: str | int, seed: int
) -> Tensor:
    """Random indices of `labels` (N,), `counts[c]` of class c, from where `among` (N,) is true."""
    rng = generator(seed, "privacy", *names)
    chosen = []
    for c, count in enumerate(counts):
        members = ((labels == c) & among).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=rng)[:count]])
    return torch.cat(chosen)


def _mask(index: Tensor, size: int) -> Tensor:
    found = torch.zeros(size, dtype=torch.bool)
    found[index] = True
    return found


# Membership inference.


def auc(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """How well scores tell members from others, members meant to have the higher ones.

    Args:
        members: (n,) scores.
        others: (m,) scores.

    Returns:
        {"auc": probability that a member scores higher, ties half; "ci95" by Hanley & McNeil
        (1982), of no width at an AUC of 0 or 1; "tpr_at_1_fpr": share of members above the
        threshold that at most 1 % of the others reach; "n": [n, m]}.
    """
    n, m = len(members), len(others)
    ranks = scipy.stats.rankdata(np.concatenate((members, others)))
    area = float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    half = 1.959964 * max(variance, 0.0) ** 0.5
    # the score that just too many others reach: only what lies above it counts
    threshold = np.sort(others)[::-1][m // 100]
    tpr = float((members > threshold).mean())
    return {
        "auc": area,
        "ci95": [max(0.0, area - half), min(1.0, area + half)],
        "tpr_at_1_fpr": tpr,
        "n": [n, m],
    }


@torch.no_grad()
def _losses(network: nn.Module, real: RealSet, index: Tensor) -> np.ndarray:
    """Cross-entropy of the network, in evaluation mode, with the classes of images at `index`:
    (n,).
    """
    training = network.training
    network.eval()
    parts = []
    for few in index.split(BATCH):
        images, labels = real.batch(few)
        parts.append(
            nn.functional.cross_entropy(network(images).double(), labels, reduction="none").cpu()
        )
    network.train(training)
    return torch.cat(parts).numpy()


# The whole.


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ratio(train: Tensor, held: Tensor) -> Tensor:
    """Distances to training images over those to held-out ones: 1 where both are copies."""
    return torch.where((train <= SAME) & (held <= SAME), 1.0, train / held)


def _statistics(
    train: Near,
    held: Near,
    which: slice,
    expected: float,
    rng: np.random.Generator,
    *,
    pixels: bool,
) -> dict[str, Any]:
    """Medians and counts of the points `which`."""
    near, far = train.distance[which], held.distance[which]
    ratio = _ratio(near, far)
    first = torch.where((near - far).abs() <= SAME, 0.5, (near < far).double())
    draws = train.drawn[:, which] - held.drawn[:, which]
    # of each point, over the draws
    each = torch.where(draws.abs() <= SAME, 0.5, (draws < 0).double()).mean(0).numpy()
    means = np.array([each[rng.integers(len(each), size=len(each))].mean() for _ in range(1000)])
    found: dict[str, Any] = {
        "images": len(near),
        "median_train": float(near.median()),
        "median_held_out": float(far.median()),
        "median_ratio": _number(float(ratio.median())),
        "much_nearer": int((ratio < MUCH_NEARER).sum()),
        "nearest_in_train": float(first.mean()),
        "nearest_in_train_by_chance": expected,
        "balanced_nearest_in_train": float(each.mean()),
        "balanced_ci95": [float(v) for v in np.quantile(means, (0.025, 0.975))],
        "balanced_by_chance": 0.5,
    }
    return found | ({"near_copies": int((near < NEAR_COPY).sum())} if pixels else {})


def measure(
    syn: SyntheticSet,
    data: Data,
    embed: Callable[[Tensor], Tensor],
    network_on_set: nn.Module | None,
    *,
    seed: int,
    shown: int = 20,
    block: int | None = None,
    chunk: int | None = None,
) -> dict[str, Any]:
    """How near a set is to the images it was made from, and how well members can be told from
    others by it; the content of privacy.json.

    Members are the images of `data.train`; held out are those of `data.test`, which neither
    distillation nor `embed` may have seen (the validation split is left alone). Some held-out
    images, as many as the set has of each class but at most one in 5, are taken out and treated as
    if they were the set: the control. What its numbers differ from chance by is not the doing of
    the set: the two splits differ, or `embed` remembers its own training images.

    Nearest images: distances in pixels are root mean squares of differences of values in [0, 1];
    those in the embedding are between vectors of length 1, the root of 2 - 2 cos. A near copy is a
    distilled image at less than 0.02 from a training image; it is "much nearer" when its nearest
    training image is at less than half the distance of the nearest held-out one. The share of
    images whose nearest real image is a training image is given among all, where chance is the
    share of training images, and balanced: among equally many training and held-out images of each
    class, the mean over 10 random draws, with a 95 % bootstrap interval over the distilled images.
    Equal distances count half. Where there are fewer held-out images than members, draws leave most
    copied members out: the share among all is then the one that shows copies.

    Membership inference: the negative distance to the nearest distilled image, in pixels and in the
    embedding, and the negative loss of `network_on_set` (Yeom et al., CSF 2018), on equally many
    members and others of each class; 0.5 is chance. The control attack is the same one by the
    distance to control images.

    Args:
        syn: the set, for images of the shape of the data.
        data: with its test split, on one device with the set.
        embed: preprocessed images (B, C, H, W) -> features (B, D), of a network in evaluation mode
            trained on `data.train`.
        network_on_set: a network trained on the set, as it came out; None leaves out that attack,
            as does one that diverged.
        seed: decides all draws.
        shown: distilled images that are listed one by one, those nearest to a training image first.
        block: real images compared at a time; None: as many as suit the memory.
        chunk: distilled images compared at a time.

    Raises:
        UserError: no test split, images of another shape or number of classes, or an embedding that
            is not finite.
    """
    test = data.test
    if test is None:
        raise UserError(
            "The privacy picture compares with images that distillation has not seen, and no test "
            "split is loaded; load the data with it."
        )
    shape = tuple(syn.pixels(torch.arange(1)).shape[1:])
    if shape != data.image_shape or len(syn.class_names) != data.num_classes:
        raise UserError(
            f"The set has images of {shape} in {len(syn.class_names)} classes and the data have "
            f"{data.image_shape} in {data.num_classes}; "
            "name the data that the set was distilled from."
        )
    num, classes = len(syn), syn.classes[syn.source].cpu()
    train_labels, test_labels = data.train.labels.cpu(), test.labels.cpu()
    every, in_test = (
        torch.ones(len(train_labels), dtype=torch.bool),
        test_labels.bincount(minlength=data.num_classes).tolist(),
    )
    wanted = [
        min(w, t // CONTROL_SHARE)
        for w, t in zip(classes.bincount(minlength=data.num_classes).tolist(), in_test, strict=True)
    ]
    control = _by_class(
        test_labels, wanted, torch.ones(len(test_labels), dtype=torch.bool), "control", seed=seed
    )
    held = (~_mask(control, len(test_labels))).nonzero().flatten()  # indices of what stays held out
    free, held_labels = torch.ones(len(held), dtype=torch.bool), test_labels[held]
    if len(held) == 0:
        raise UserError(
            "The test split is empty, and the privacy picture compares with images that "
            "distillation has not seen; give it some."
        )

    pairs = zip(
        train_labels.bincount(minlength=data.num_classes),
        held_labels.bincount(minlength=data.num_classes),
        strict=True,
    )
    equal = [int(min(a, b)) for a, b in pairs]
    if sum(equal) == 0:
        raise UserError(
            "No class has both training and test images, so members cannot be compared with "
            "others; check the labels of the splits."
        )
    draws = [
        (
            _by_class(train_labels, equal, every, "train", i, seed=seed),
            _by_class(held_labels, equal, free, "held out", i, seed=seed),
        )
        for i in range(DRAWS)
    ]
    members, others = draws[0]  # of membership inference
    in_train = torch.stack([_mask(a, len(train_labels)) for a, _ in draws])
    in_held = torch.stack([_mask(b, len(held)) for _, b in draws])

    expected = len(train_labels) / (len(train_labels) + len(held))
    groups = {"distilled": slice(0, num)} | ({"control": slice(num, None)} if len(control) else {})
    near: dict[str, tuple[Near, Near]] = {}
    statistics: dict[str, dict[str, Any]] = {}
    membership: list[dict[str, Any]] = []
    for space, (points, of_train, of_test) in _spaces(syn, data, test, control, embed).items():
        total = num + len(control)
        a = neighbours(
            points, total, of_train, len(train_labels), in_train, num, block=block, chunk=chunk
        )
        b = neighbours(
            points,
            total,
            lambda index, rows=of_test: rows(held[index]),
            len(held),
            in_held,
            num,
            block=block,
            chunk=chunk,
        )
        near[space] = a, b
        rng = np.random.default_rng(
            int(
                torch.randint(2**62, (1,), generator=generator(seed, "privacy", "bootstrap", space))
            )
        )
        statistics[space] = {
            name: _statistics(a, b, which, expected, rng, pixels=space == "pixels")
            for name, which in groups.items()
        }
        attack: dict[str, Any] = {
            "score": f"distance, {space}",
            **auc(-a.to_own[members].numpy(), -b.to_own[others].numpy()),
            "control": None,
        }
        if len(control):
            attack["control"] = auc(-a.to_rest[members].numpy(), -b.to_rest[others].numpy())
        membership.append(attack)
    if network_on_set is not None:
        of_members, of_others = (
            _losses(network_on_set, data.train, members),
            _losses(network_on_set, test, held[others]),
        )
        if np.isfinite(of_members).all() and np.isfinite(of_others).all():
            membership.append(
                {"score": "loss of the network", **auc(-of_members, -of_others), "control": None}
            )
        else:
            say(
                "warning: the network that was trained on the set diverged, so the attack by its "
                "loss is left out"
            )

    def listed(i: int) -> dict[str, Any]:
        found: dict[str, Any] = {"image": i, "class": int(classes[i])}
        for space, (a, b) in near.items():
            at, away = int(a.index[i]), int(held[b.index[i]])
            found[space] = {
                "train": {
                    "index": at,
                    "class": int(train_labels[at]),
                    "distance": float(a.distance[i]),
                },
                "held_out": {
                    "index": away,
                    "class": int(test_labels[away]),
                    "distance": float(b.distance[i]),
                },
                "ratio": _number(float(_ratio(a.distance[i], b.distance[i]))),
            }
        return found

    order = near["pixels"][0].distance[:num].argsort(stable=True)[:shown].tolist()
    return {
        "images": num,
        "train": len(train_labels),
        "held_out": len(held),
        "control": len(control),
        "near_copy_rms": NEAR_COPY,
        "much_nearer_ratio": MUCH_NEARER,
        "draws": DRAWS,
        "seed": seed,
        "neighbours": statistics,
        "shown": [listed(i) for i in order],
        "membership": membership,
        "note": f"{SENTENCE} {CAUTION}",
    }
