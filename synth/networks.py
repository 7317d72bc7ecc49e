"""The networks in which real and synthetic images are compared.

They are never trained, trained on the synthetic images, or trained on real ones.

What a network has become lies in the objective's state, so that it is checkpointed. All training
happens on one flat parameter vector in one loop: batches are indexed on the device, nothing is read
back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.flat import flatten
from ddengine.learning.inner import eager_gradient, inner_gradient
from ddengine.learning.losses import mixed_loss
from ddengine.learning.optim import sgd_step
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig, OptimConfig, require
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.rng import on_device
from ddengine.system.runtime import sent

Gradient = Callable[..., Tensor]  # (theta (P,), images, targets, CutMix draw or None) -> (P,)
State = dict[str, Tensor]


@dataclass(frozen=True)
class OuterStep:
    """What an outer step gives to the networks that it asks for."""

    env: Env
    gradient: Gradient  # by which they are trained
    syn: SyntheticSet
    state: State  # of the objective, in which they keep what they have become
    number: int  # from 0
    augment: AugmentConfig  # of the objective
    rng: Generator


class Networks(Protocol):
    """A frozen dataclass that subclasses this and says which network an outer step sees."""

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ()

    @property
    def reads_experts(self) -> bool:
        """Whether they are snapshots of experts."""
        return False

    @property
    def judges(self) -> bool:
        """Whether `with_judge` gives a second network that can judge the images."""
        return False

    def check(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless experts with these epochs stored, ascending, will do."""

    def state(self, env: Env) -> State:
        """What is kept between steps, before the first; nothing by default."""
        return {}

    def images_at_once(self, syn: SyntheticSet) -> int:
        """Images in an update of the network; 0 where it is not trained."""
        return 0

    def small(self) -> Self:
        """The same at the size of a test, of few steps for each network."""
        return self

    def next(self, at: OuterStep) -> Tensor:
        """The parameters (P,) for an outer step; updates its state."""
        ...

    def with_judge(self, at: OuterStep) -> tuple[Tensor, Tensor | None]:
        """What `next` gives, and the parameters (P,) of a network that says what class it sees.

        None, by default, where there is no such network.
        """
        return self.next(at), None

    def round(self, syn: SyntheticSet, step: int) -> tuple[int, int]:
        """(which network, how many steps it has seen) at an outer step."""
        ...


def training_gradient(env: Env) -> Gradient:
    """The gradient that networks are trained with, compiled where the run asks for it.

    But for mixed batches, each of which has other constants.
    """

    def loss(
        theta: Tensor, images: Tensor, targets: Tensor, mix: augment.CutMix | None = None
    ) -> Tensor:
        return mixed_loss(env.model(theta, images), targets, mix)

    plain, mixed = inner_gradient(loss, env.compile), eager_gradient(loss)

    def gradient(
        theta: Tensor, images: Tensor, targets: Tensor, mix: augment.CutMix | None = None
    ) -> Tensor:
        if mix is not None:
            return mixed(theta, images, targets, mix)
        return plain.gradient(theta, images, targets)

    return gradient


def fresh(env: Env, rng: Generator) -> Tensor:
    """The parameters (P,) of a new network."""
    theta = flatten(env.new_model(rng))
    if env.device.type == "cuda":
        theta = theta.pin_memory()
    return sent(theta, env.device)


@dataclass(frozen=True, kw_only=True)
class Untrained(Networks):
    """A new random network at each outer step (DM)."""

    def next(self, at: OuterStep) -> Tensor:
        """A new network."""
        return fresh(at.env, at.rng)

    def round(self, syn: SyntheticSet, step: int) -> tuple[int, int]:
        """(step, 0)."""
        return step, 0


# Images per class -> epochs on the synthetic images between two outer steps, as published; outer
# steps per network are the images per class
PUBLISHED_EPOCHS = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10}


def loop_counts(ipc: int) -> tuple[int, int]:
    """(outer steps per network, epochs of its training between them) for any images per class.

    The published table where it has an entry (1, 10, 20, 30, 40, 50; the released code refuses all
    others). Elsewhere as many steps as images, at most 50, and epochs by linear interpolation of
    the table, rounded; above 50 as at 50.
    """
    return min(ipc, 50), round(
        float(np.interp(ipc, list(PUBLISHED_EPOCHS), list(PUBLISHED_EPOCHS.values())))
    )


@dataclass(frozen=True, kw_only=True)
class OnSynthetic(Networks):
    """A network that is trained on the synthetic images between outer steps (DC, DSA, DCC).

    A new one replaces it after `steps`. SGD without momentum or weight decay, with the augmentation
    of the objective. The released code seeds networks by the clock.
    """

    steps: int | None = None  # outer steps per network; None: the images per class, at most 50
    # passes over the synthetic images between outer steps; None: by the images per class, as
    # published
    epochs: int | None = None
    batch: int = 256  # synthetic examples per update
    lr: float = 0.01  # of the network

    def __post_init__(self) -> None:
        for name in ("steps", "epochs"):
            require(
                getattr(self, name) is None or getattr(self, name) >= 1,
                f"objective.networks.{name} must be at least 1, got {getattr(self, name)}.",
            )
        require(self.batch >= 1, f"objective.networks.batch must be at least 1, got {self.batch}.")
        require(
            0 < self.lr < float("inf"),
            f"objective.networks.lr must be positive and finite, got {self.lr}.",
        )

    def images_at_once(self, syn: SyntheticSet) -> int:
        """A batch of decoded examples."""
        return min(self.batch, len(syn))

    def counts(self, syn: SyntheticSet) -> tuple[int, int]:
        """(outer steps per network, epochs between them)."""
        steps, epochs = loop_counts(max(1, round(syn.images_per_class())))
        return self.steps or steps, self.epochs or epochs

    def state(self, env: Env) -> State:
        """The network, unless `steps` says that each serves a single one."""
        if self.steps == 1:
            return {}
        return {"theta": torch.zeros(env.model.num_params, device=env.device)}

    def round(self, syn: SyntheticSet, step: int) -> tuple[int, int]:
        """(which network, how many steps it has seen)."""
        steps, _ = self.counts(syn)
        return divmod(step, steps)

    def next(self, at: OuterStep) -> Tensor:
        """A new network, or the last step's after its training on what the images have become."""
        steps, epochs = self.counts(at.syn)
        if at.number % steps == 0:
            theta = fresh(at.env, at.rng)
        else:
            theta = self._trained(at, epochs)
        if steps > 1:
            at.state["theta"] = theta
        return theta

    @torch.no_grad()
    def _trained(self, at: OuterStep, epochs: int) -> Tensor:
        """The parameters (P,) after so many epochs on what the images have become."""
        device = at.env.device
        theta = at.state["theta"]
        num = len(at.syn)
        images, targets = at.syn.batch(torch.arange(num, device=device))
        source = on_device(at.rng, device)
        for _ in range(epochs):
            order = torch.randperm(num, generator=source, device=device)
            for index in order.split(self.batch):
                draw = augment.sample(at.augment, len(index), at.rng).to(device)
                seen = augment.apply(at.augment, images[index], draw)
                theta = theta - self.lr * at.gradient(theta, seen, targets[index])
        return theta


@dataclass(frozen=True, kw_only=True)
class OnReal(Networks):
    """A network that is trained on real images between outer steps (IDC).

    A new one replaces it after `steps`.
    """

    steps: int = 100  # outer steps per network
    images: int = 500  # real images it is trained on between two of them
    batch: int = 64  # real images per update
    optim: OptimConfig = OptimConfig(lr=0.01, momentum=0.9, weight_decay=5e-4)  # of the network
    augment: AugmentConfig = AugmentConfig(always=("color", "crop"), ops=())
    cutmix: float = 0.5  # probability of mixing a batch

    def __post_init__(self) -> None:
        for name in ("steps", "images", "batch"):
            require(
                getattr(self, name) >= 1,
                f"objective.networks.{name} must be at least 1, got {getattr(self, name)}.",
            )
        require(
            self.optim.schedule == "constant",
            (
                f"objective.networks.optim.schedule {self.optim.schedule} has no end to fall to, "
                "as networks come and go; set it to constant."
            ),
        )
        require(
            0 <= self.cutmix <= 1,
            f"objective.networks.cutmix is a probability, got {self.cutmix}; set it to 0..1.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        if self.cutmix:
            return ("kim2022idc", "yun2019cutmix")
        return ("kim2022idc",)

    def images_at_once(self, syn: SyntheticSet) -> int:
        """A batch of real images."""
        return min(self.batch, self.images)

    def state(self, env: Env) -> State:
        """The network and the momentum of its training."""
        if self.steps == 1:
            return {}
        num = env.model.num_params
        return {
            "theta": torch.zeros(num, device=env.device),
            "momentum": torch.zeros(num, device=env.device),
        }

    def small(self) -> Self:
        """With a new network after every second step."""
        return replace(self, steps=min(2, self.steps))

    def round(self, syn: SyntheticSet, step: int) -> tuple[int, int]:
        """(which network, how many steps it has seen)."""
        return divmod(step, self.steps)

    def next(self, at: OuterStep) -> Tensor:
        """A new network, or the last step's after its training on real images."""
        if at.number % self.steps == 0:
            theta = fresh(at.env, at.rng)
            if self.steps > 1:
                at.state["momentum"] = torch.zeros_like(theta)
        else:
            theta = self._trained(at)
        if self.steps > 1:
            at.state["theta"] = theta
        return theta

    @torch.no_grad()
    def _trained(self, at: OuterStep) -> Tensor:
        """The parameters (P,) after a pass over some real images; the momentum is kept."""
        device = at.env.device
        theta = at.state["theta"]
        momentum = at.state["momentum"]
        source = on_device(at.rng, device)
        order = torch.randperm(len(at.env.real), generator=source, device=device)
        chosen = order[: self.images]
        for index in chosen.split(self.batch):
            grad = self._gradient(at, theta, index)
            theta, momentum = sgd_step(theta, grad, momentum, self.optim, self.optim.lr)
        at.state["momentum"] = momentum
        return theta

    def _gradient(self, at: OuterStep, theta: Tensor, index: Tensor) -> Tensor:
        """The gradient (P,) of one batch."""
        device = at.env.device
        images, targets = at.env.real.batch(index)
        num, _, height, width = images.shape
        draw = augment.sample(self.augment, num, at.rng).to(device)
        images = augment.apply(self.augment, images, draw)
        mix = augment.sample_cutmix(self.cutmix, num, (height, width), at.rng)
        if mix is not None:
            mix = mix.to(device)
            images = augment.cutmix(images, mix)
        return at.gradient(theta, images, targets, mix)
