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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.flat import FlatModel
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


def judged(model: FlatModel, theta: Tensor, images: Tensor, each: int, first: int) -> Tensor:
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
        """Parts of the classes are shared, unless images or the distance move after each."""
        assert isinstance(objective, DistributionObjective)
        if moves or self.distance.learns:
            return False
        objective.shared = True
        if objective.env.model.normed is not None:
            log.say_once(
                "the BatchNorm of the model joins all classes in one batch, so the first rank "
                "computes them and the others wait; use a model without"
            )
        return True


class DistributionObjective(Objective):
    """See the module."""

    def __init__(self, config: DistributionMatching, env: Env):
        self.config = config
        self.env = env
        self.shared = False  # over the ranks
        self.width = feature_width(env)
        self.train = training_gradient(env)
        self.embed = env.model.embed
        if env.compile:
            self.embed = torch.compile(env.model.embed)

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the networks and the distance keep."""
        return self.config.networks.state(self.env) | self.config.distance.state(self.env, rng)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each part of the classes that is computed together.

        Their sum is the step's.
        """
        config = self.config
        env = self.env
        at = OuterStep(env, self.train, syn, state, step, config.augment, rng)
        theta, judge = config.networks.with_judge(at)
        if self.shared:  # ranks need not agree to the last bit
            dist.from_first([theta, *state.values()])
        index = env.real.draw_each(config.real_batch, rng)
        members = class_members(syn, config.syn_batch, rng)
        num_classes, each = members.shape
        real_each = index.shape[1]
        draw = augment.sample(config.augment, 1, rng, groups=num_classes, shared=True)
        draw = draw.to(env.device)
        at_once, real_at_once = self._at_once(num_classes, each, real_each)
        for number, classes in enumerate(parts(slice(0, num_classes), at_once)):
            # drawn for every part on every rank, so that all have the draws of one rank
            comparison = Comparison(
                self, theta, config.distance.draw(state, theta, self.width, rng)
            )
            if self.shared and number % dist.num_ranks() != dist.rank():
                continue
            summaries = []
            for part in parts(classes, real_at_once):
                images = env.real.images(index[part].flatten())
                summaries.append(comparison.real(images, draw.part(part), real_each))
            real = torch.cat(summaries)
            images = self._seen(syn, members[classes], draw.part(classes))
            loss = comparison.loss(real, comparison.syn(images, each))
            if judge is not None and config.judge:
                of_judge = judged(env.model, judge, images, each, classes.start)
                loss = loss + config.judge * of_judge
            yield loss
            if config.distance.learns:
                with torch.no_grad():
                    images = self._seen(syn, members[classes], draw.part(classes))
                    comparison.learn(state, real, comparison.syn(images, each))

    def _at_once(self, num_classes: int, each: int, real_each: int) -> tuple[int, int]:
        """(classes of a part, those of them whose real images are computed together).

        Of a class there are `each` synthetic and `real_each` real images.
        """
        if self.env.model.normed is not None:  # BatchNorm normalises with the statistics of all
            return num_classes, num_classes
        at_once = self.config.classes_at_once or pays(self.env, each)
        if self.shared and self.config.classes_at_once is None:
            at_once = min(at_once, -(-num_classes // dist.num_ranks()))
        return at_once, pays(self.env, real_each)

    def _seen(self, syn: SyntheticSet, members: Tensor, draw: augment.AugmentDraw) -> Tensor:
        """The augmented images (G * n, C, H, W) of examples (G, n) of G classes."""
        images = syn.batch(members.flatten()).images
        return augment.apply(self.config.augment, images, draw)


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
    def real(self, images: Tensor, draw: augment.AugmentDraw, each: int) -> Tensor:
        """The same of real images, which are augmented first, without a graph."""
        return self.syn(augment.apply(self.objective.config.augment, images, draw), each)

    def loss(self, real: Tensor, syn: Tensor) -> Tensor:
        """The distance of two summaries."""
        return self.objective.config.distance.between(real, syn, self.draw)

    def learn(self, state: dict[str, Tensor], real: Tensor, syn: Tensor) -> None:
        """Train what the distance keeps."""
        self.objective.config.distance.learn(state, real, syn, self.draw)
