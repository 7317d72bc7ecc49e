"""Distribution matching: DM (Zhao & Bilen, WACV 2023, arXiv 2110.04181).

The mean embedding of a class's synthetic images should be that of its real images, in networks of
random weights:

    loss = sum over classes c of | mean of psi(A(B_c, w_c)) - mean of psi(A(S_c, w_c)) |^2  (eq. 6)

with psi the input of the network's last linear layer, a batch B_c of real images and the same
augmentation w_c on both sides. No network is trained; a slot takes other ways of handling it.
Networks with BatchNorm see the images of all classes in one batch, as published: with 100 classes
or more that is a large one, so lower `real_batch` there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.objective import Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from synth.classes import (
    check_batches,
    class_members,
    images_per_class,
    parts,
    pays,
    say_small_classes,
)
from synth.networks import Networks, training_gradient

NetworksT = TypeVar("NetworksT", bound=Networks)


def distance(real: Tensor, syn: Tensor) -> Tensor:
    """Sum over classes of the squared distances of mean embeddings (K, D)."""
    return (real - syn).square().sum()


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(ObjectiveConfig, Generic[NetworksT]):
    """Mean embeddings of real and synthetic images, class by class."""

    networks: NetworksT  # in which networks embeddings are compared
    real_batch: int = 256  # real images per class and step
    syn_batch: int | None = None  # most decoded images per class and step, drawn anew; None: all
    augment: AugmentConfig = AugmentConfig()
    # classes in one loss; None: as many as pay on the device, and with BatchNorm all
    classes_at_once: int | None = None

    def __post_init__(self) -> None:
        check_batches(self.real_batch, self.syn_batch, self.classes_at_once)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("zhao2023dm",)

    @property
    def draws_networks(self) -> bool:
        """As the slot says when."""
        return True

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
        return replace(self, real_batch=8, networks=self.networks.small())

    def build(self, env: Env) -> "DistributionObjective":
        """The objective. Raises UserError when classes are to be parted that BatchNorm joins."""
        say_small_classes(env.real, self.real_batch)
        if env.model.normed is not None and self.classes_at_once is not None:
            raise UserError(
                f"objective.classes_at_once {self.classes_at_once} parts the classes, and the "
                "BatchNorm of the model sees all of them in one batch; "
                "leave objective.classes_at_once out."
            )
        return DistributionObjective(self, env)


class DistributionObjective(Objective):
    """See the module."""

    def __init__(self, config: DistributionMatching, env: Env):
        self.config = config
        self.env = env
        self.train = training_gradient(env)
        self.embed = env.model.embed
        if env.compile:
            self.embed = torch.compile(env.model.embed)

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the networks keep."""
        return self.config.networks.state(self.env)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each part of the classes that is computed together.

        Their sum is the step's.
        """
        config = self.config
        env = self.env
        theta = config.networks.next(env, self.train, syn, state, step, config.augment, rng)
        index = env.real.draw_each(config.real_batch, rng)
        members = class_members(syn, config.syn_batch, rng)
        num_classes, each = members.shape
        real_each = index.shape[1]
        draw = augment.sample(config.augment, 1, rng, groups=num_classes, shared=True)
        draw = draw.to(env.device)
        at_once = config.classes_at_once or pays(env, each)
        real_at_once = pays(env, real_each)
        if env.model.normed is not None:  # BatchNorm normalises with the statistics of all
            at_once = real_at_once = num_classes
        for classes in parts(slice(0, num_classes), at_once):
            means = []
            for part in parts(classes, real_at_once):
                images = env.real.images(index[part].flatten())
                means.append(self._real_means(theta, images, draw.part(part), real_each))
            images = syn.batch(members[classes].flatten()).images
            syn_means = self._means(theta, images, draw.part(classes), each)
            yield distance(torch.cat(means), syn_means)

    def _means(self, theta: Tensor, images: Tensor, draw: augment.AugmentDraw, each: int) -> Tensor:
        """Mean embeddings (G, D) of classes of which there are `each` images in a row."""
        images = augment.apply(self.config.augment, images, draw)
        embedded = self.embed(theta, images)
        return embedded.unflatten(0, (-1, each)).mean(1)

    @torch.no_grad()
    def _real_means(
        self, theta: Tensor, images: Tensor, draw: augment.AugmentDraw, each: int
    ) -> Tensor:
        """The same without a graph."""
        return self._means(theta, images, draw, each)
