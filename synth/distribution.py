"""Distribution matching: DM (Zhao & Bilen, WACV 2023, arXiv 2110.04181).

The mean embedding of a class's synthetic images should be that of its real images, in networks of
random weights:

    loss = sum over classes c of | mean of psi(A(B_c, w_c)) - mean of psi(A(S_c, w_c)) |^2  (eq. 6)

with psi the input of the network's last linear layer, a batch B_c of real images and the same
augmentation w_c on both sides. No network is trained; a slot takes other ways of handling it, and
another says how the embeddings are compared. Networks with BatchNorm see the images of all classes
in one batch, as published: with 100 classes or more that is a large one, so lower `real_batch`
there.

TGDD (AAAI 2026) and NCFM (CVPR 2025) are this with networks of experts, a judge that should see the
class in the images, and NCFM with another distance:

    loss = sum over classes c of d(psi(A(B_c, w_c)), psi(A(S_c, w_c)))
           + judge * cross-entropy(judging network(A(S_c, w_c)), c)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, Self, TypeVar

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.flat import FlatModel
from ddengine.learning.graphs import computation
from ddengine.learning.losses import task_loss
from ddengine.objective import Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig, require
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, log
from ddengine.system.configs import LATE
from ddengine.system.errors import UserError
from synth.classes import (
    check_batches,
    class_members,
    images_per_class,
    parts,
    pays,
    say_small_classes,
)
from synth.distances import Distance, Draw, Means, feature_width
from synth.expert_networks import experts_of
from synth.networks import Networks, OuterStep, training_gradient

NetworksT = TypeVar("NetworksT", bound=Networks)
DistanceT = TypeVar("DistanceT", bound=Distance)


def judged(
    model: FlatModel, theta: Tensor, images: Tensor, each: int, first: int | Tensor
) -> Tensor:
    """The sum over classes of the cross-entropy of a network with parameters `theta` (P,).

    Of images (G * each, C, H, W), of which `each` in a row are of one class; the first class is
    number `first`.
    """
    num_classes = len(images) // each
    classes = first + torch.arange(num_classes, device=images.device)
    return num_classes * task_loss(model(theta, images), classes.repeat_interleave(each))


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(ObjectiveConfig, Generic[NetworksT, DistanceT]):
    """Embeddings of real and synthetic images, class by class."""

    networks: NetworksT  # in which networks embeddings are compared
    real_batch: int = 256  # real images per class and step
    syn_batch: int | None = None  # most decoded images per class and step, drawn anew; None: all
    augment: AugmentConfig = AugmentConfig()
    # classes in one loss; None: as many as pay on the device, and with BatchNorm all
    classes_at_once: int | None = None
    # how embeddings are compared
    distance: DistanceT = field(default=Means(), metadata=LATE)  # type: ignore[assignment]
    # weight of the cross-entropy of the network that judges, where networks have one
    judge: float = field(default=0.0, metadata=LATE)

    def __post_init__(self) -> None:
        check_batches(self.real_batch, self.syn_batch, self.classes_at_once)
        require(
            0 <= self.judge < math.inf,
            f"objective.judge must be finite and not negative, got {self.judge}.",
        )
        require(
            self.judge == 0 or self.networks.judges,
            f"objective.judge {self.judge} weighs what a judging network says, and "
            f"{type(self.networks).__name__} has none; set it to 0, or take objective.networks of "
            "tgdd or ncfm.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("zhao2023dm", *self.distance.cites)

    @property
    def reads_experts(self) -> bool:
        """As the slot says."""
        return self.networks.reads_experts

    @property
    def follows_experts(self) -> bool:
        """Several epochs of each are read."""
        return self.networks.reads_experts

    def check(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless experts with these epochs stored, ascending, will do."""
        self.networks.check(epochs)

    @property
    def draws_networks(self) -> bool:
        """As the slot says when; what a distance learns is of one network's width."""
        return not (self.networks.reads_experts or self.distance.learns)

    def network_at(self, syn: SyntheticSet, step: int) -> int:
        """Which of the networks that it draws an outer step sees, counted from 0."""
        number, _ = self.networks.round(syn, step)
        return number

    @property
    def parts_by_device(self) -> bool:
        """Whether it is left to the device into how many losses a step falls."""
        return self.classes_at_once is None

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the classes that are computed together, real and decoded."""
        num_classes = len(syn.class_names)
        if env.model.normed is not None:
            at_once = real_at_once = num_classes
        else:
            at_once = self.classes_at_once or pays(env, self.images_per_class(syn))
            real_at_once = pays(env, self.real_batch)
        decoded = min(at_once, num_classes) * self.images_per_class(syn)
        if self.judge:
            decoded *= 2
        real = min(real_at_once, num_classes) * self.real_batch
        seen = max(real, self.networks.images_at_once(syn))
        return network_bytes(env, images=decoded, seen=seen)

    def images_per_class(self, syn: SyntheticSet) -> int:
        """Decoded images of a class in a step."""
        return images_per_class(syn, self.syn_batch)

    def advice(self, ipc: int) -> str:
        """Look at fewer real images."""
        return f"lower objective.real_batch (now {self.real_batch})"

    def small(self) -> Self:
        """With 8 real images a class."""
        networks, distance = self.networks.small(), self.distance.small()
        return replace(self, real_batch=8, networks=networks, distance=distance)

    def build(self, env: Env) -> "DistributionObjective":
        """The objective.

        Raises UserError when classes are to be parted that BatchNorm joins, or experts are missing.
        """
        say_small_classes(env.real, self.real_batch)
        if self.networks.reads_experts:
            self.check(experts_of(env).epochs)
        if env.model.normed is not None and self.classes_at_once is not None:
            raise UserError(
                f"objective.classes_at_once {self.classes_at_once} parts the classes, and the "
                "BatchNorm of the model sees all of them in one batch; "
                "leave objective.classes_at_once out."
            )
        return DistributionObjective(self, env)

    def share(self, objective: Objective, moves: bool) -> bool:
        """Parts of the classes are shared.

        Where images or the distance move after each, so are the features of real images instead,
        which depend on neither, and every rank does the rest.
        """
        assert isinstance(objective, DistributionObjective)
        joined = objective.env.model.normed is not None
        objective.shares_losses = not moves
        objective.shares_real = (moves or self.distance.learns) and not joined
        if joined:
            log.say_once(
                "the BatchNorm of the model joins all classes in one batch, so the ranks do not "
                "share them and are no faster than one; use a model without"
            )
        return True


class DistributionObjective(Objective):
    """See the module."""

    def __init__(self, config: DistributionMatching, env: Env):
        self.config = config
        self.env = env
        self.shares_losses = False  # over the ranks
        self.shares_real = False
        self.width = feature_width(env)
        self.train = training_gradient(env)
        self.embed = env.model.embed
        self.computed = computation(env.compile)

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the networks and the distance keep."""
        return self.config.networks.state(self.env) | self.config.distance.state(self.env, rng)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each part of the classes that is computed together.

        Their sum is the step's.
        """
        distance = self.config.distance
        seen = self._seen(syn, state, step, rng)
        features = self._features_of_ranks(seen)
        for number, (classes, comparison) in enumerate(self._parts(seen, state, rng)):
            mine = not self.shares_losses or number % dist.num_ranks() == dist.rank()
            if not (mine or distance.learns):
                continue
            real = comparison.real(
                next(features).split(seen.real_at_once)
                if self.shares_real
                else self._features(seen, classes)
            )
            if mine:
                yield self._loss(seen, classes, comparison, real)
            if distance.learns:
                with torch.no_grad():
                    images = self._images(seen, classes)
                    comparison.learn(state, real, comparison.syn(images, seen.each))

    def _seen(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> "Seen":
        """What is drawn for a step."""
        config, env = self.config, self.env
        at = OuterStep(env, self.train, syn, state, step, config.augment, rng)
        theta, judge = config.networks.with_judge(at)
        if self.shares_losses or self.shares_real:  # ranks need not agree to the last bit
            dist.from_first([theta, *state.values()])
        index = env.real.draw_each(config.real_batch, rng)
        members = class_members(syn, config.syn_batch, rng)
        draw = augment.sample(config.augment, 1, rng, groups=len(members), shared=True)
        draw = draw.to(env.device)
        at_once, real_at_once = len(members), len(members)
        if env.model.normed is None:  # else BatchNorm normalises with the statistics of all
            at_once = config.classes_at_once or pays(env, members.shape[1])
            real_at_once = pays(env, index.shape[1])
        return Seen(syn, theta, judge, index, members, draw, at_once, real_at_once)

    def _parts(
        self, seen: "Seen", state: dict[str, Tensor], rng: Generator
    ) -> Iterator[tuple[slice, "Comparison"]]:
        """The classes of each loss with what compares them, which is drawn as on one rank.

        Where ranks share losses, the classes that one draw is for are cut so that each has some.
        """
        most = seen.at_once
        shared = self.shares_losses and not self.shares_real and self.env.model.normed is None
        if shared and self.config.classes_at_once is None:
            most = min(most, -(-len(seen.members) // dist.num_ranks()))
        for classes in parts(seen.everything, seen.at_once):
            draw = self.config.distance.draw(state, seen.theta, self.width, rng)
            for part in parts(classes, most):
                yield part, Comparison(self, seen.theta, draw)

    @torch.no_grad()
    def _features(self, seen: "Seen", classes: slice) -> Iterator[Tensor]:
        """The features (G, n, D) of real images of some classes, in parts."""
        for part in parts(classes, seen.real_at_once):
            images = self.env.real.images(seen.real[part].flatten())
            images = augment.apply(self.config.augment, images, seen.draw.part(part))
            embedded = self.computed("features", self._embedded, seen.theta, images)
            yield embedded.unflatten(0, (-1, seen.real.shape[1]))

    @torch.no_grad()
    def _features_of_ranks(self, seen: "Seen") -> Iterator[Tensor]:
        """The features (G, n, D) of real images for each loss, those of each from one rank."""
        for block in parts(seen.everything, seen.at_once * dist.num_ranks()):
            of_block = seen.real[block]
            features = seen.theta.new_zeros(*of_block.shape, self.width)
            for classes in dist.my_share(list(parts(block, seen.at_once))):
                mine = slice(classes.start - block.start, classes.stop - block.start)
                features[mine] = torch.cat(list(self._features(seen, classes)))
            dist.total([features])
            yield from features.split(seen.at_once)

    def _embedded(self, theta: Tensor, images: Tensor) -> Tensor:
        """The features (N, D) of images."""
        return self.embed(theta, images)

    def _loss(self, seen: "Seen", classes: slice, comparison: "Comparison", real: Tensor) -> Tensor:
        """That of some classes, of whose real images `real` is the summary."""
        images, each = self._images(seen, classes), seen.each
        names = tuple(comparison.draw)
        given = (real, seen.theta, images, *comparison.draw.values())
        apart = partial(self._apart, each, names)
        loss = self.computed.loss(("distance", each, names), apart, *given)
        if seen.judge is None or not self.config.judge:
            return loss
        first = torch.full((), classes.start, device=images.device)
        given = (seen.judge, images, first)
        of_judge = self.computed.loss(("judge", each), partial(self._judged, each), *given)
        return loss + self.config.judge * of_judge

    # Functions of tensors alone, which are computed eagerly or as graphs.

    def _apart(
        self, each: int, names: Sequence[str], real: Tensor, theta: Tensor, images: Tensor,
        *drawn: Tensor,
    ) -> Tensor:  # fmt: skip
        """The distance of images, of which `each` in a row are of one class, from a summary.

        `names` are those of what the distance drew.
        """
        comparison = Comparison(self, theta, dict(zip(names, drawn, strict=True)))
        return comparison.loss(real, comparison.syn(images, each))

    def _judged(self, each: int, theta: Tensor, images: Tensor, first: Tensor) -> Tensor:
        """See `judged`."""
        return judged(self.env.model, theta, images, each, first)

    def _images(self, seen: "Seen", classes: slice) -> Tensor:
        """The augmented decoded images of some classes, all those of a class in a row."""
        images = seen.syn.batch(seen.members[classes].flatten()).images
        return augment.apply(self.config.augment, images, seen.draw.part(classes))


@dataclass(frozen=True)
class Seen:
    """What a step looks at, of K classes."""

    syn: SyntheticSet
    theta: Tensor  # (P,) of the network in which features are compared
    judge: Tensor | None  # (P,) of the one that judges
    real: Tensor  # (K, n) indices of real images
    members: Tensor  # (K, m) indices of decoded examples
    draw: augment.AugmentDraw  # of each class
    at_once: int  # classes of a loss
    real_at_once: int  # those of them whose real images are computed together

    @property
    def everything(self) -> slice:
        """All classes."""
        return slice(0, len(self.members))

    @property
    def each(self) -> int:
        """Decoded images of a class."""
        return self.members.shape[1]


@dataclass(frozen=True)
class Comparison:
    """Real and synthetic images of some classes in one network, with what a distance drew."""

    objective: DistributionObjective
    theta: Tensor  # (P,)
    draw: Draw

    def syn(self, images: Tensor, each: int) -> Tensor:
        """The summary (G, ...) of augmented images, of which `each` in a row are of one class."""
        features = self.objective.embed(self.theta, images).unflatten(0, (-1, each))
        return self.objective.config.distance.summary(features, self.draw)

    @torch.no_grad()
    def real(self, features: Iterable[Tensor]) -> Tensor:
        """The same of real images, whose features (G, n, D) come in parts, without a graph."""
        distance = self.objective.config.distance
        return torch.cat([distance.summary(part, self.draw) for part in features])

    def loss(self, real: Tensor, syn: Tensor) -> Tensor:
        """The distance of two summaries."""
        return self.objective.config.distance.between(real, syn, self.draw)

    def learn(self, state: dict[str, Tensor], real: Tensor, syn: Tensor) -> None:
        """Train what the distance keeps."""
        self.objective.config.distance.learn(state, real, syn, self.draw)
