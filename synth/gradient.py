"""Gradient matching.

DC (Zhao et al., ICLR 2021, arXiv 2006.05929), DSA (2102.08259), DCC (Lee et al., ICML 2022) and
IDC's loss (2205.14959).

The gradient that a network gets from synthetic images should be the one it gets from real images:

    loss = sum over classes c of D(grad l(A(S_c, w_c); theta), grad l(A(B_c, w_c); theta))

(DC eq. 9, DSA eq. 4) with a batch B_c of real images of the class and the same augmentation w_c on
both sides. DCC sums the gradients over classes before the distance. Differs from the released code:
networks and real batches follow from the seed, the gradients of several classes are computed in one
pass, and BatchNorm layers get the statistics of 16 real images per class themselves, not a tenth of
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.inner import eager_gradient
from ddengine.learning.losses import task_loss
from ddengine.objective import VECTORS, Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig, require
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

Metric = Literal["layerwise", "mse", "l1", "cos"]
Tensors = Literal["weights", "convolutions", "all"]
FEWEST_DIMS = {"weights": 2, "convolutions": 3, "all": 0}  # of the parameters that are compared
EPS = 1e-6  # beside the product of norms
NORM_BATCH = 16  # real images per class for the statistics of BatchNorm layers


def distance(
    real: Tensor, syn: Tensor, shapes: Sequence[torch.Size], metric: Metric, tensors: Tensors
) -> Tensor:
    """Distances (G,) between gradients real and syn (G, P), whose parameters have these shapes.

    "layerwise" (DC eq. 10): the sum over rows (output channels, classes) of 1 - cosine. "mse" and
    "l1": sums, not means, of squared and absolute differences. "cos": 1 - cosine of all numbers as
    one vector.
    """
    sizes = [prod(shape) for shape in shapes]
    chosen = [
        (r, s, shape)
        for r, s, shape in zip(real.split(sizes, 1), syn.split(sizes, 1), shapes, strict=True)
        if len(shape) >= FEWEST_DIMS[tensors]
    ]  # fmt: skip
    if metric == "layerwise":
        return torch.stack(
            [
                _rows(r.unflatten(1, (shape[0], -1)), s.unflatten(1, (shape[0], -1))).sum(1)
                for r, s, shape in chosen
            ]
        ).sum(0)
    a, b = torch.cat([r for r, _, _ in chosen], 1), torch.cat([s for _, s, _ in chosen], 1)
    if metric == "cos":
        return _rows(a, b)
    return (a - b).square().sum(1) if metric == "mse" else (a - b).abs().sum(1)


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine over the last dimension."""
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + EPS)


@dataclass(frozen=True, kw_only=True)
class GradientMatching(ObjectiveConfig, Generic[NetworksT]):
    """Gradients of real and synthetic images, class by class or summed over classes."""

    networks: NetworksT  # in which networks gradients are compared
    # layerwise: 1 - cosine, summed over output channels | mse, l1: sums of squared or absolute
    # differences | cos: 1 - cosine of all as one vector
    metric: Metric = "layerwise"
    tensors: Tensors = "weights"  # parameters of at least two dimensions | at least three | all
    real_batch: int = 256  # real images per class and step
    syn_batch: int | None = None  # most decoded images per class and step, drawn anew; None: all
    augment: AugmentConfig = AugmentConfig()
    # a distance for each class, or one between sums over classes (DCC)
    classes: Literal["each", "sum"] = "each"
    warmup_networks: int = 0  # for so many networks `sum` begins with `each` ...
    warmup_steps: int = 0  # ... for so many of their steps
    # classes in one loss; None: as many as pay on the device. 1 with outer.step_after each steps
    # after every class
    classes_at_once: int | None = None

    def __post_init__(self) -> None:
        check_batches(self.real_batch, self.syn_batch, self.classes_at_once)
        warmup = (self.warmup_networks, self.warmup_steps)
        require(
            warmup == (0, 0) or (self.classes == "sum" and min(warmup) >= 1),
            f"objective.warmup_networks {warmup[0]} and warmup_steps {warmup[1]} are for how long "
            "objective.classes sum begins class by class, and "
            f"classes is {self.classes}; set both to at least 1 with sum, or both to 0.",
        )
        require(
            self.metric != "layerwise" or self.tensors != "all",
            (
                "objective.metric layerwise compares the rows of tensors, and objective.tensors "
                "all has tensors without; set objective.tensors weights."
            ),
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite for the parts in use."""
        return ("zhao2021dc", *(("lee2022dcc",) if self.classes == "sum" else ()))

    @property
    def parts_by_device(self) -> bool:
        """Whether it is left to the device into how many losses a step falls."""
        return self.classes_at_once is None and self.classes == "each"

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the classes that are computed together, real and decoded.

        And of a gradient of each.
        """
        num_classes, each = len(syn.class_names), images_per_class(syn, self.syn_batch)
        device = "cuda" if self.classes == "sum" else None
        at_once = min(self.classes_at_once or pays(env, each, device), num_classes)
        real_at_once = min(pays(env, self.real_batch), num_classes)
        images = max(
            at_once * each,
            real_at_once * self.real_batch,
            num_classes * NORM_BATCH if env.model.normed is not None else 0,
            self.networks.images_at_once(syn),
        )
        # real gradients of a block of classes, and the decoded ones with what their distance holds
        vectors = VECTORS + max(at_once, real_at_once) + 4 * at_once
        return network_bytes(env, images=images, vectors=vectors)

    def advice(self, ipc: int) -> str:
        """Look at fewer real images."""
        return f"lower objective.real_batch (now {self.real_batch})"

    def small(self) -> Self:
        """With 8 real images a class."""
        return replace(self, real_batch=8)

    def build(self, env: Env) -> "GradientObjective":
        """The objective. Raises UserError when the network has nothing to compare."""
        say_small_classes(env.real, self.real_batch)
        if not any(len(shape) >= FEWEST_DIMS[self.tensors] for shape in env.model.shapes):
            raise UserError(
                f"objective.tensors {self.tensors} compares parameters of "
                f"{FEWEST_DIMS[self.tensors]} dimensions or more, and the model has none; "
                "set objective.tensors weights."
            )
        return GradientObjective(self, env)


class GradientObjective(Objective):
    """See the module."""

    def __init__(self, config: GradientMatching, env: Env):
        self.config, self.env = config, env
        self.train = training_gradient(env)

        def loss(
            theta: Tensor, images: Tensor, targets: Tensor, statistics: dict[str, Tensor] | None
        ) -> Tensor:
            return task_loss(env.model(theta, images, statistics), targets)

        self.one = eager_gradient(loss)
        several = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, None))
        self.several = torch.compile(several) if env.compile else several

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the networks keep."""
        return self.config.networks.state(self.env)

    def gradients(
        self, theta: Tensor, images: Tensor, targets: Tensor, statistics: dict[str, Tensor] | None
    ) -> Tensor:
        """The gradient of each group (G, P), differentiable in the images.

        Of images (G, B, C, H, W) and targets (G, B) or (G, B, K).
        """
        # batch_norm under vmap wants one type of number, which bfloat16 autocast does not give it
        if len(images) == 1 or (statistics is not None and self.env.model.precision == "bf16"):
            return torch.stack(
                [self.one(theta, *group, statistics) for group in zip(images, targets, strict=True)]
            )
        return self.several(theta, images, targets, statistics)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each part of the classes that is computed together.

        Their sum is the step's.
        """
        config, env = self.config, self.env
        theta = config.networks.next(env, self.train, syn, state, step, config.augment, rng)
        statistics = batch_statistics(env, theta, rng)
        real = env.real.draw_each(config.real_batch, rng)
        members = class_members(syn, config.syn_batch, rng)
        draw = augment.sample(config.augment, 1, rng, groups=len(members), shared=True)
        seen = Seen(syn, theta, statistics, real, members, draw.to(env.device))
        network, steps = config.networks.round(syn, step)
        warming_up = network < config.warmup_networks and steps < config.warmup_steps
        if config.classes == "sum" and not warming_up:
            yield from self._summed(seen)
        else:
            yield from self._class_by_class(seen)

    def _class_by_class(self, seen: "Seen") -> Iterator[Tensor]:
        """A distance for each class, those of some classes in one loss."""
        config, env = self.config, self.env
        at_once = config.classes_at_once or pays(env, seen.members.shape[1])
        # real gradients do not depend on the images, so they are computed for several losses
        # together where that pays
        in_block = at_once * max(1, pays(env, seen.real.shape[1]) // at_once)
        for block in parts(seen.everything, in_block):
            target = torch.cat(list(self._real(seen, block)))
            for classes in parts(block, at_once):
                wanted = target[classes.start - block.start : classes.stop - block.start]
                groups = grouped(len(wanted), *self._decoded(seen, classes))
                ours = self.gradients(seen.theta, *groups, seen.statistics)
                yield distance(wanted, ours, env.model.shapes, config.metric, config.tensors).sum()

    def _decoded(self, seen: "Seen", classes: slice) -> tuple[Tensor, Tensor]:
        """Decoded images of some classes, augmented, and their targets."""
        images, targets = seen.syn.batch(seen.members[classes].flatten())
        return augment.apply(self.config.augment, images, seen.draw.part(classes)), targets

    @torch.no_grad()
    def _real(self, seen: "Seen", classes: slice) -> Iterator[Tensor]:
        """The real gradients (G, P) of some classes, in parts."""
        for part in parts(classes, pays(self.env, seen.real.shape[1])):
            groups = grouped(part.stop - part.start, *self._real_batch(seen, part))
            yield self.gradients(seen.theta, *groups, seen.statistics)

    def _real_batch(self, seen: "Seen", classes: slice) -> tuple[Tensor, Tensor]:
        """Real images of some classes, augmented, and their targets."""
        images, targets = self.env.real.batch(seen.real[classes].flatten())
        return augment.apply(self.config.augment, images, seen.draw.part(classes)), targets

    @torch.no_grad()
    def _real_mean(self, seen: "Seen") -> Tensor:
        """The mean over all classes of the real gradients (P,)."""
        theta, statistics, shares = seen.theta, seen.statistics, []
        for part in parts(seen.everything, pays(self.env, seen.real.shape[1])):
            gradient = self.one(theta, *self._real_batch(seen, part), statistics)
            shares.append(gradient * (part.stop - part.start) / len(seen.real))
        return torch.stack(shares).sum(0)

    def _share(self, seen: "Seen", classes: slice) -> Tensor:
        """What some classes add to the mean of the decoded images' gradients (P,)."""
        gradient = self.one(seen.theta, *self._decoded(seen, classes), seen.statistics)
        return gradient * (classes.stop - classes.start) / len(seen.members)

    def _summed(self, seen: "Seen") -> Iterator[Tensor]:
        """The distance between the means over all classes; one graph alive for each block of them.

        With several blocks: the mean g without a graph first, v = d distance / d g, and then <v,
        the block's share of g>, whose gradients in the images add up to those of the distance;
        constants make the losses add up to the distance itself.
        """
        config, env, target = self.config, self.env, self._real_mean(seen)
        # several blocks cost a pass more, so their number follows from memory alone
        in_block = config.classes_at_once or pays(env, seen.members.shape[1], "cuda")
        blocks = list(parts(seen.everything, in_block))

        def compare(mean: Tensor) -> Tensor:
            real, ours, shapes = target[None], mean[None], env.model.shapes
            return distance(real, ours, shapes, config.metric, config.tensors).sum()

        if len(blocks) == 1:
            yield compare(self._share(seen, blocks[0]))
            return
        with torch.no_grad():
            mean = torch.stack([self._share(seen, block) for block in blocks]).sum(0)
        value = compare(mean.requires_grad_())
        (slope,) = torch.autograd.grad(value, mean)
        constant = (value.detach() - (slope * mean.detach()).sum()) / len(blocks)
        for block in blocks:
            yield (slope * self._share(seen, block)).sum() + constant


@dataclass(frozen=True)
class Seen:
    """What one step compares: K classes of real and of decoded images in one network."""

    syn: SyntheticSet
    theta: Tensor  # (P,) of the network
    statistics: dict[str, Tensor] | None  # of its BatchNorm layers
    real: Tensor  # (K, B) indices of real images
    members: Tensor  # (K, n) indices of decoded ones
    draw: augment.AugmentDraw  # one a class, for both

    @property
    def everything(self) -> slice:
        """All classes."""
        return slice(0, len(self.members))


def grouped(num: int, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Images and targets as (num groups, B, ...)."""
    return images.unflatten(0, (num, -1)), targets.unflatten(0, (num, -1))


def batch_statistics(env: Env, theta: Tensor, rng: Generator) -> dict[str, Tensor] | None:
    """What BatchNorm layers see in real images of all classes.

    None for networks without, for which nothing is drawn.
    """
    if env.model.normed is None:
        return None
    return env.model.statistics(
        theta, env.real.images(env.real.draw_each(NORM_BATCH, rng).flatten())
    )
