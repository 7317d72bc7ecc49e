"""Selections of real images.

Synthetic images start from them, evaluations have them as baselines, and `select` writes them.

All return indices (K * ipc,) int64 on the CPU, class by class, and raise UserError when a class has
fewer than `ipc` images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.learning import training
from ddengine.recipe import AugmentConfig, EvalConfig
from ddengine.sets.pruning import cad_scores, facility_location, similarities
from ddengine.system.errors import UserError
from ddengine.system.rng import seed_from

Embed = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> features (B, D)
NewModel = Callable[[Generator], nn.Module]
Order = Literal["hardest", "easiest"]
# training.train_networks, or what stands in for it
TrainNetworks = Callable[..., list[nn.Module]]

# How the networks that look at images are trained: on the images as they are, as long as `steps`
# says. The rate drops half-way.
LOOKING = EvalConfig(protocol="coreset", epochs=10**9, augment=AugmentConfig(ops=()))
CAD_WINDOWS = 2  # windows of epochs that are averaged, as published


def check_ipc(real: RealSet, ipc: int, class_names: tuple[str, ...], skip: int = 0) -> None:
    """Raise UserError naming the smallest class where it has fewer than `ipc` images.

    And fewer than these beside `skip` that are passed over, of which init.skip is the share.
    """
    fewest, name = min(zip(map(len, real.members), class_names, strict=True))
    if ipc > fewest:
        raise UserError(
            f"ipc {ipc} is more than the {fewest} training images of class {name!r}; lower ipc to "
            f"{fewest}, or give that class more images."
        )
    if ipc + skip > fewest:
        share = (100 * (fewest - ipc) // ipc) / 100  # rounded down, so that it does
        raise UserError(
            f"init.skip passes over {skip} images of each class before ipc {ipc} are taken, and "
            f"class {name!r} has {fewest} training images; lower init.skip to {share:g}, or lower "
            "ipc."
        )


def random_index(real: RealSet, ipc: int, class_names: tuple[str, ...], rng: Generator) -> Tensor:
    """Random real images."""
    check_ipc(real, ipc, class_names)
    return torch.cat([real.draw_index(c, ipc, rng) for c in range(real.num_classes)])


# Selections in an embedding space.


def pixels(images: Tensor) -> Tensor:
    """The embedding of preprocessed images (B, C, H, W) by themselves: (B, C * H * W)."""
    return images.flatten(1)


@torch.no_grad()
def _features(real: RealSet, members: Tensor, embed: Embed, batch: int) -> Tensor:
    """(n, D) float64."""
    return torch.cat([embed(real.images(part)) for part in members.split(batch)]).double()


def herding_index(
    real: RealSet, ipc: int, class_names: tuple[str, ...], embed: Embed, batch: int = 1000
) -> Tensor:
    """The images whose running mean stays nearest the class mean in embedding space.

    Welling (2009); iCaRL (2017).
    """
    check_ipc(real, ipc, class_names)
    chosen = []
    for members in real.members:
        features = _features(real, members, embed, batch)
        chosen.append(members[herding_order(features, ipc)])
    return torch.cat(chosen)


def herding_order(features: Tensor, num: int) -> list[int]:
    """Rows of features (n, D), `num` of them, whose running mean stays nearest the mean of all."""
    mean = features.mean(0)
    total = torch.zeros_like(features[0])
    taken: list[int] = []
    for count in range(1, num + 1):
        means = (total + features) / count  # with each of the images
        distance = (mean - means).norm(dim=1)
        distance[taken] = torch.inf
        nearest = int(distance.argmin())
        taken.append(nearest)
        total = total + features[nearest]
    return taken


def k_centre_index(
    real: RealSet, ipc: int, class_names: tuple[str, ...], embed: Embed, batch: int = 1000
) -> Tensor:
    """Greedy k-centre in embedding space: always the image farthest from those already chosen.

    Distances are those within a class (Sener & Savarese, ICLR 2018; Wolf, 2011). The first one,
    which the algorithm leaves open, is the image nearest to the class mean, so nothing is random.
    """
    check_ipc(real, ipc, class_names)
    chosen = []
    for members in real.members:
        features = _features(real, members, embed, batch)
        chosen.append(members[k_centre_order(features, ipc)])
    return torch.cat(chosen)


def k_centre_order(features: Tensor, num: int) -> list[int]:
    """Rows of features (n, D), `num` of them: the nearest to the mean, then always the farthest."""
    to_mean = _distances(features, features.mean(0))
    taken = [int(to_mean.argmin())]
    nearest = torch.full_like(to_mean, torch.inf)  # distance to the chosen ones
    while len(taken) < num:
        to_last = _distances(features, features[taken[-1]])
        nearest = torch.minimum(nearest, to_last)
        nearest[taken] = -1  # below 0, so that no image is chosen twice where many are equal
        taken.append(int(nearest.argmax()))
    return taken


def _distances(features: Tensor, point: Tensor) -> Tensor:
    """Distances (n,) of features (n, D) from a point (D,)."""
    return (features - point).norm(dim=1)


def near_centres(features: np.ndarray, num: int, clusters: int, rng: Generator) -> list[int]:
    """Rows of `features` (n, D), `num` different ones, nearest to the centres that k-means finds.

    As many rows for each of the `clusters` centres; what does not divide goes to the largest
    clusters.
    """
    from sklearn.cluster import KMeans  # slow to import

    seed = seed_from(rng)
    fit = KMeans(clusters, n_init="auto", random_state=seed).fit(features)
    sizes = np.bincount(fit.predict(features), minlength=clusters)
    largest_first = np.argsort(-sizes, kind="stable")
    distance = fit.transform(features)
    free = np.ones(len(features), bool)
    each, left = divmod(num, clusters)
    taken: list[int] = []
    for rank, centre in enumerate(largest_first):
        share = each + 1 if rank < left else each
        nearest = np.argsort(distance[:, centre], kind="stable")
        nearest_free = nearest[free[nearest]]
        chosen = nearest_free[:share]
        free[chosen] = False
        taken += chosen.tolist()
    return taken


def k_means_index(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    embed: Embed,
    rng: Generator,
    batch: int = 1000,
) -> Tensor:
    """The image nearest to each of the `ipc` centres that k-means finds in a class.

    Those of large clusters come first.
    """
    check_ipc(real, ipc, class_names)
    chosen = []
    for members in real.members:
        features = _features(real, members, embed, batch).cpu().numpy()
        chosen.append(members[torch.tensor(near_centres(features, ipc, ipc, rng))])
    return torch.cat(chosen)


# Selections by a score.


def ranked_index(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    score: Callable[[], Tensor],
    order: Order,
    rng: Generator,
    skip: int = 0,
) -> Tensor:
    """The images of the highest (hardest) or lowest (easiest) of scores (N,).

    `score` makes them, after it is known that each class has enough images.

    The first `skip` of each class are passed over. Among equal ones `rng` draws.
    """
    check_ipc(real, ipc, class_names, skip)
    scores = score()
    chosen = []
    for members in real.members:
        drawn = members[torch.randperm(len(members), generator=rng)]
        chosen.append(drawn[in_order(scores[drawn], ipc, order, skip)])
    return torch.cat(chosen)


def in_order(scores: Tensor, num: int, order: Order = "hardest", skip: int = 0) -> Tensor:
    """Rows (num,) of scores (n,) from the highest (hardest) or lowest on, after the first `skip`.

    Equal ones stay in their order. SelMatch (ICML 2024) passes over the hardest.
    """
    rows = scores.argsort(descending=order == "hardest", stable=True)
    return rows[skip : skip + num]


class Forgetting:
    """Forgetting events of N samples while a network trains: right when last seen, wrong now.

    Toneva et al. (ICLR 2019).
    """

    def __init__(self, num: int):
        self.events = torch.zeros(num, dtype=torch.long)
        self.shown = torch.zeros(num, dtype=torch.long)
        self.right = torch.zeros(num, dtype=torch.bool)  # when last shown
        self.learnt = torch.zeros(num, dtype=torch.bool)  # right at any time

    def see(self, index: Tensor, right: Tensor) -> None:
        """Samples `index` (B,), without repetition, were shown.

        They were classified correctly where `right` (B,) says so.
        """
        self.events[index] += (self.right[index] & ~right).long()
        self.shown[index] += 1
        self.right[index] = right
        self.learnt[index] |= right

    def scores(self) -> Tensor:
        """(N,) float64: the events of each sample.

        Samples that were never right have the most showings of any, which is more than events can
        be.
        """
        return torch.where(self.learnt, self.events, self.shown.max()).double()


def fewest_steps(num: int) -> int:
    """Updates after which each of so many images was shown twice, so that it may be forgotten."""
    return 2 * -(-num // LOOKING.batch)


def forgetting_scores(
    real: RealSet,
    new_model: NewModel,
    rng: Generator,
    *,
    steps: int,
    lr: float,
    networks: int = 1,
    train_networks: TrainNetworks | None = None,
) -> Tensor:
    """(N,) float64: what `Forgetting` counts in the training of networks, their mean.

    Raises UserError when no image is shown twice, so that none can be forgotten.
    """
    needed = fewest_steps(len(real))
    if steps < needed:
        raise UserError(
            f"forgetting counts images that are unlearned between two showings, and {steps} "
            f"updates with {LOOKING.batch} of {len(real)} images "
            "are fewer than two epochs; raise init.steps (evaluation.full_steps for a baseline) "
            f"to {needed} at least."
        )
    total = torch.zeros(len(real), dtype=torch.float64)
    labels = real.labels.cpu()
    for _ in range(networks):
        counter = Forgetting(len(real))

        def see(index: Tensor, logits: Tensor, counter: Forgetting = counter) -> None:
            counter.see(index, logits.argmax(1).cpu() == labels[index])

        train(
            real,
            new_model,
            rng,
            steps=steps,
            lr=lr,
            observe=see,
            train_networks=train_networks,
        )
        total += counter.scores() / networks
    return total


@torch.no_grad()
def el2n_scores(real: RealSet, trained: list[nn.Module], batch: int = 1000) -> Tensor:
    """(N,) float64: the length of softmax(logits) - one-hot(class), the mean over networks.

    Paul et al. (NeurIPS 2021).
    """
    parts = []
    for part in torch.arange(len(real)).split(batch):
        images, labels = real.batch(part)
        one_hot = nn.functional.one_hot(labels, real.num_classes)
        errors = []
        for network in trained:
            said = network(images).double().softmax(1)
            errors.append((said - one_hot).norm(dim=1))
        mean = torch.stack(errors).mean(0)
        parts.append(mean.cpu())
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How networks are trained whose errors score the training images."""

    new_model: NewModel
    rng: Generator
    steps: int  # updates of each
    lr: float
    networks: int = 3  # whose scores are averaged
    train_networks: TrainNetworks | None = None


def forgetting_of(real: RealSet, scoring: Scoring) -> Tensor:
    """(N,) float64: how often networks forget an image.

    Toneva et al. (ICLR 2019). Images that are never learnt count as forgotten most often. Many are
    forgotten equally often.
    """
    return forgetting_scores(
        real,
        scoring.new_model,
        scoring.rng,
        steps=scoring.steps,
        lr=scoring.lr,
        networks=scoring.networks,
        train_networks=scoring.train_networks,
    )


def el2n_of(real: RealSet, scoring: Scoring) -> Tensor:
    """(N,) float64: the error after updates that are meant to be few.

    Paul et al. (NeurIPS 2021). A tenth of `scoring.steps`, one at least.
    """
    trained = []
    for _ in range(scoring.networks):
        network = train(
            real,
            scoring.new_model,
            scoring.rng,
            steps=max(1, scoring.steps // 10),
            lr=scoring.lr,
            train_networks=scoring.train_networks,
        )
        trained.append(network)
    return el2n_scores(real, trained)


@dataclass(frozen=True)
class Watched:
    """What a network made of all training images while it was trained on them."""

    forgetting: Tensor  # scores (N,) float64
    el2n: Tensor  # (N, E) float64, after each epoch


def watched(
    real: RealSet,
    new_model: NewModel,
    rng: Generator,
    *,
    epochs: int,
    lr: float,
    train_networks: TrainNetworks | None = None,
) -> Watched:
    """The training of one network for so many epochs. Raises UserError where it is not finite."""
    per_epoch = math.ceil(len(real) / LOOKING.batch)
    counter = Forgetting(len(real))
    labels = real.labels.cpu()
    networks: list[nn.Module] = []
    norms: list[Tensor] = []  # EL2N (N,) after each epoch
    updates = 0

    def built(of_network: Generator) -> nn.Module:
        networks.append(new_model(of_network))
        return networks[0]

    def see(index: Tensor, logits: Tensor) -> None:
        nonlocal updates
        if updates and updates % per_epoch == 0:  # an epoch is over, and its last update done
            norms.append(_norms(real, networks[0]))
        updates += 1
        counter.see(index, logits.argmax(1).cpu() == labels[index])

    steps = per_epoch * epochs
    network = train(
        real, built, rng, steps=steps, lr=lr, observe=see, train_networks=train_networks
    )
    last = _norms(real, network)
    # what stands in for a training, to count it, shows no batches
    norms += [last] * (epochs - len(norms))
    return Watched(counter.scores(), torch.stack(norms, 1))


def _norms(real: RealSet, network: nn.Module) -> Tensor:
    """EL2N (N,) of a network as it is now, which goes on training as it did."""
    training = network.training
    network.eval()
    norms = el2n_scores(real, [network])
    network.train(training)
    return norms


def fewest_steps_of_cad(num: int) -> int:
    """Updates with which the last epoch begins that CAD needs, of so many images."""
    return (CAD_WINDOWS + 1) * math.ceil(num / LOOKING.batch) + 1


def cad_of(real: RealSet, scoring: Scoring) -> Tensor:
    """(N,) float64: how much the error varies from epoch to epoch (CAD-Prune, CVPR 2026).

    Networks are trained for as many whole epochs as `scoring.steps` updates begin. CAD_WINDOWS
    windows before the last are averaged, which are as long as fits, as published. Raises UserError
    for fewer epochs than have such windows.
    """
    steps = scoring.steps
    epochs = math.ceil(steps / math.ceil(len(real) / LOOKING.batch))
    length = epochs - CAD_WINDOWS
    needed = fewest_steps_of_cad(len(real))
    if steps < needed:
        raise UserError(
            f"cad looks at {CAD_WINDOWS + 2} epochs at least, and {steps} updates with "
            f"{LOOKING.batch} of {len(real)} images are fewer; raise init.steps "
            f"(evaluation.full_steps for a baseline) to {needed} at least."
        )
    scores = torch.zeros(len(real), dtype=torch.float64)
    for _ in range(scoring.networks):
        seen = watched(
            real,
            scoring.new_model,
            scoring.rng,
            epochs=epochs,
            lr=scoring.lr,
            train_networks=scoring.train_networks,
        )
        scores += cad_scores(seen.el2n, length, CAD_WINDOWS) / scoring.networks
    return scores


def facility_index(
    real: RealSet, ipc: int, class_names: tuple[str, ...], embed: Embed, batch: int = 1000
) -> Tensor:
    """The images of each class that stand for all others, by the cosines of their features.

    Greedy facility location (Nemhauser et al., 1978), in the order of choice.
    """
    check_ipc(real, ipc, class_names)
    chosen = []
    for members in real.members:
        kernel = similarities(_features(real, members, embed, batch))
        rows, _ = facility_location(kernel, ipc)
        chosen.append(members[rows])
    return torch.cat(chosen)


# kinds that rank images by a score, and what scores them
SCORES: dict[str, Callable[[RealSet, Scoring], Tensor]] = {
    "forgetting": forgetting_of,
    "el2n": el2n_of,
    "cad": cad_of,
}
KINDS = ("herding", "k_centre", "k_means", *SCORES, "facility")


def choose(
    kind: str,
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    rng: Generator,
    *,
    embed: Callable[[], Embed],
    new_model: NewModel | None,
    steps: int,
    lr: float,
    networks: int = 3,
    order: Order = "hardest",
    skip: int = 0,
    train_networks: TrainNetworks | None = None,
) -> Tensor:
    """Indices (K * ipc,) of the images that one of KINDS chooses.

    `embed` makes the embedding, for kinds that need one. For kinds that score, networks of
    `new_model` have `steps` updates at rate `lr`, and a tenth of them for el2n, which looks early;
    of these kinds the first `skip` of each class in the order are passed over.
    """
    if kind == "herding":
        return herding_index(real, ipc, class_names, embed())
    if kind == "k_centre":
        return k_centre_index(real, ipc, class_names, embed())
    if kind == "k_means":
        return k_means_index(real, ipc, class_names, embed(), rng)
    if kind == "facility":
        return facility_index(real, ipc, class_names, embed())
    assert new_model is not None, "a network is needed for this kind"
    scoring = Scoring(
        new_model=new_model,
        rng=rng,
        steps=steps,
        lr=lr,
        networks=networks,
        train_networks=train_networks,
    )
    score = partial(SCORES[kind], real, scoring)
    return ranked_index(real, ipc, class_names, score, order, rng, skip)


def train(
    real: RealSet,
    new_model: NewModel,
    rng: Generator,
    *,
    steps: int,
    lr: float,
    observe: Callable[[Tensor, Tensor], None] | None = None,
    train_networks: TrainNetworks | None = None,
) -> nn.Module:
    """A network after `steps` updates on the training images as they are, in evaluation mode.

    `observe` gets the indices (B,) and logits (B, K) of every update; `train_networks` stands in
    for that of `training`. Raises UserError when the network is not finite in the end.
    """
    seed = seed_from(rng)
    made = training.train_networks if train_networks is None else train_networks
    (network,) = made(
        new_model, [real], [seed], LOOKING, lr, real.device, steps=steps, observe=observe
    )
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise UserError(
            f"The network that looks at the training images is not finite after {steps} updates "
            f"at rate {lr:g}; lower init.lr."
        )
    return network
