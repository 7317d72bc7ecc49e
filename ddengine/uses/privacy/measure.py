"""How near a set is to the images it was made from, in numbers: the content of privacy.json."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.log import say
from ddengine.system.rng import generator
from ddengine.types import Json
from ddengine.uses.privacy.membership import auc, losses
from ddengine.uses.privacy.neighbours import Near, neighbours
from ddengine.uses.privacy.sampling import DRAWS, Sample, mask, sample
from ddengine.uses.privacy.spaces import Embed, Space, embedding_space, pixel_space

SENTENCE = (
    "Distilled is not anonymous: nothing in distillation limits what a set gives away of the "
    "images that it was made from."
)
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
SAME = 1e-6  # distances that differ by less are equal
RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Pair:
    """The neighbours of the same points among training images and among held-out ones."""

    train: Near
    held: Near


def measure(  # long: most of it says what the numbers mean
    syn: SyntheticSet,
    data: Data,
    embed: Embed,
    network_on_set: nn.Module | None,
    *,
    seed: int,
    shown: int = 20,
    block: int | None = None,
    chunk: int | None = None,
) -> Json:
    """Measure how near a set is to its images, and whether members can be told from others by it.

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
    test = _checked_test(syn, data)
    drawn = sample(syn, data, test, seed)
    spaces = {
        "pixels": pixel_space(syn, data, test),
        "embedding": embedding_space(syn, data, test, embed),
    }
    pairs: dict[str, Pair] = {}
    statistics: dict[str, Json] = {}
    membership: list[Json] = []
    for name, space in spaces.items():
        pair = _pair(space, drawn, block, chunk)
        pairs[name] = pair
        statistics[name] = _statistics_by_group(name, pair, space, drawn, seed)
        membership.append(_attack_by_distance(name, pair, drawn))
    if network_on_set is not None:
        membership += _attack_by_loss(network_on_set, data.train, test, drawn)
    order = pairs["pixels"].train.distance[: len(syn)].argsort(stable=True)[:shown]
    return {
        "images": len(syn),
        "train": len(data.train),
        "held_out": len(drawn.held),
        "control": len(drawn.control),
        "near_copy_rms": NEAR_COPY,
        "much_nearer_ratio": MUCH_NEARER,
        "draws": DRAWS,
        "seed": seed,
        "neighbours": statistics,
        "shown": [_listed(i, syn, data.train, test, pairs, drawn) for i in order.tolist()],
        "membership": membership,
        "note": f"{SENTENCE} {CAUTION}",
    }


def _checked_test(syn: SyntheticSet, data: Data) -> RealSet:
    """The test split; raises UserError without one, and for a set of other data."""
    if data.test is None:
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
    return data.test


def _pair(space: Space, drawn: Sample, block: int | None, chunk: int | None) -> Pair:
    """The neighbours of the set and of the control images in a space."""
    points = space.distilled.then(space.test.at(drawn.control))
    num_set = space.distilled.num
    held = space.test.at(drawn.held)
    in_train = torch.stack([mask(index, space.train.num) for index, _ in drawn.draws])
    in_held = torch.stack([mask(index, held.num) for _, index in drawn.draws])
    of_train = neighbours(points, space.train, in_train, num_set, block=block, chunk=chunk)
    of_held = neighbours(points, held, in_held, num_set, block=block, chunk=chunk)
    return Pair(of_train, of_held)


def _statistics_by_group(name: str, pair: Pair, space: Space, drawn: Sample, seed: int) -> Json:
    """The statistics of the set and, where there is one, of the control."""
    expected = space.train.num / (space.train.num + len(drawn.held))
    stream = generator(seed, "privacy", "bootstrap", name)
    number = torch.randint(2**62, (1,), generator=stream)
    rng = np.random.default_rng(int(number))
    num_set = space.distilled.num
    pixels = name == "pixels"
    of_set = slice(0, num_set)
    groups = {"distilled": _statistics(pair, of_set, expected, rng, pixels=pixels)}
    if len(drawn.control):
        of_control = slice(num_set, None)
        groups["control"] = _statistics(pair, of_control, expected, rng, pixels=pixels)
    return groups


def _statistics(
    pair: Pair, which: slice, expected: float, rng: np.random.Generator, *, pixels: bool
) -> Json:
    """Medians and counts of the points `which`, and the shares whose nearest image is in train."""
    near = pair.train.distance[which]
    far = pair.held.distance[which]
    ratio = _ratio(near, far)
    # of each point, over the draws
    differences = pair.train.drawn[:, which] - pair.held.drawn[:, which]
    balanced = _nearer(differences).mean(0).numpy()
    num = len(balanced)
    means = [balanced[rng.integers(num, size=num)].mean() for _ in range(RESAMPLES)]
    statistics: Json = {
        "images": len(near),
        "median_train": float(near.median()),
        "median_held_out": float(far.median()),
        "median_ratio": _finite(float(ratio.median())),
        "much_nearer": int((ratio < MUCH_NEARER).sum()),
        "nearest_in_train": float(_nearer(near - far).mean()),
        "nearest_in_train_by_chance": expected,
        "balanced_nearest_in_train": float(balanced.mean()),
        "balanced_ci95": np.quantile(np.array(means), (0.025, 0.975)).tolist(),
        "balanced_by_chance": 0.5,
    }
    if pixels:
        statistics["near_copies"] = int((near < NEAR_COPY).sum())
    return statistics


def _nearer(difference: Tensor) -> Tensor:
    """1 where a difference of distances says that training images are nearer, 0.5 where equal."""
    equal = difference.abs() <= SAME
    return torch.where(equal, 0.5, (difference < 0).double())


def _ratio(train: Tensor, held: Tensor) -> Tensor:
    """Distances to training images over those to held-out ones: 1 where both are copies."""
    both_copies = (train <= SAME) & (held <= SAME)
    return torch.where(both_copies, 1.0, train / held)


def _finite(value: float) -> float | None:
    if not np.isfinite(value):
        return None
    return float(value)


def _attack_by_distance(name: str, pair: Pair, drawn: Sample) -> Json:
    """Membership by the distance to the nearest image of the set, and to the nearest control."""
    members, others = drawn.for_membership
    of_members = pair.train.to_set[members]
    of_others = pair.held.to_set[others]
    attack = auc(-of_members.numpy(), -of_others.numpy())
    control = None
    if len(drawn.control):
        of_members = pair.train.to_control[members]
        of_others = pair.held.to_control[others]
        control = auc(-of_members.numpy(), -of_others.numpy())
    return {"score": f"distance, {name}", **attack, "control": control}


def _attack_by_loss(network: nn.Module, train: RealSet, test: RealSet, drawn: Sample) -> list[Json]:
    """Membership by the loss of a network; nothing of one that diverged, which is said."""
    members, others = drawn.for_membership
    of_members = losses(network, train, members)
    of_others = losses(network, test, drawn.held[others])
    if np.isfinite(of_members).all() and np.isfinite(of_others).all():
        attack = auc(-of_members, -of_others)
        return [{"score": "loss of the network", **attack, "control": None}]
    say(
        "warning: the network that was trained on the set diverged, so the attack by its "
        "loss is left out"
    )
    return []


def _listed(
    i: int,
    syn: SyntheticSet,
    train: RealSet,
    test: RealSet,
    pairs: dict[str, Pair],
    drawn: Sample,
) -> Json:
    """Image `i` of the set with its nearest real images in each space."""
    classes = syn.classes[syn.source]
    entry: Json = {"image": i, "class": int(classes[i])}
    for name, pair in pairs.items():
        near = pair.train.distance[i]
        far = pair.held.distance[i]
        in_train = int(pair.train.index[i])
        in_test = int(drawn.held[pair.held.index[i]])
        entry[name] = {
            "train": _real_image(train, in_train, near),
            "held_out": _real_image(test, in_test, far),
            "ratio": _finite(float(_ratio(near, far))),
        }
    return entry


def _real_image(real: RealSet, index: int, distance: Tensor) -> Json:
    return {"index": index, "class": int(real.labels[index]), "distance": float(distance)}
