"""Statistics matching.

SRe2L (Yin, Xing & Shen, NeurIPS 2023, arXiv 2306.13092), and the loss that INFER shares with it.

Images are optimised in batches of one image of every class, in a trained network in evaluation
mode, whose BatchNorm layers l know the mean mu_l and the variance s_l of their inputs on the real
images:

    loss = CE(f(x), y) + alpha sum over l of w_l (|mu_l - mean_l(x)| + r |s_l - var_l(x)|)

with plain Euclidean norms over channels, biased variances over batch and space, w = `first` in the
first layer that a forward pass meets and 1 in the others, r = 1 (DWA: 11). In evaluation mode
batches do not see each other, so any number of them shares a forward pass, with statistics of each
batch alone: the same gradients as one by one. A batch that does not fit is split exactly: a first
pass adds up the statistics of the whole batch, a second one computes gradients part by part, in
which the loss is linear in the parts' sums.

Options: CDA's curriculum of crops (Yin & Shen, TMLR 2024, arXiv 2311.18838), `crop_until`; DWA's
directed weight adjustment (Du et al., NeurIPS 2024, arXiv 2409.17612), `adjust`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.flat import flatten
from ddengine.learning.memory import step_bytes
from ddengine.learning.teachers import load_all
from ddengine.objective import VECTORS, Env, Objective, ObjectiveConfig
from ddengine.recipe import AugmentConfig, require
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.runtime import autocast
from synth.classes import class_members

BATCH_NORM = nn.modules.batchnorm._BatchNorm
# images of 32 x 32 in one forward pass, but a whole batch at least
AT_ONCE = {"cpu": 128, "cuda": 2048}

Group = tuple[int, Tensor]  # a teacher, and decoded examples (G, B) int64: G batches of B


class Batches(Protocol):
    """A frozen dataclass that says which examples are optimised together, and in which network."""

    def groups(self, syn: SyntheticSet, num_teachers: int) -> list[Group]:
        """Every example that is optimised, once."""
        ...


@dataclass(frozen=True, kw_only=True)
class OnePerClass:
    """The j-th image of every class together, in batches of `classes` classes (SRe2L).

    Several teachers take turns.
    """

    classes: int = 100  # most of a batch

    def __post_init__(self) -> None:
        require(
            self.classes >= 1, f"objective.batches.classes must be at least 1, got {self.classes}."
        )

    def groups(self, syn: SyntheticSet, num_teachers: int) -> list[Group]:
        """By the number of the image, then by class."""
        members = class_members(syn, None, Generator()).T  # (examples per class, classes)
        return [
            (m, part)
            for m in range(num_teachers)
            for part in members[m::num_teachers].split(self.classes, 1)
            if len(part)
        ]


BatchesT = TypeVar("BatchesT", bound=Batches)


@dataclass(frozen=True, kw_only=True)
class StatisticsMatching(ObjectiveConfig, Generic[BatchesT]):
    """See the module.

    The step size is that of `outer.optim`; published: Adam with betas 0.5 and 0.9, a cosine.
    """

    batches: BatchesT  # which examples are optimised together
    alpha: float = 0.01  # weight of the statistics
    first: float = 10.0  # weight of the first layer's
    variance: float = 1.0  # weight of variances beside means
    # one draw for a batch; published on CIFAR: cyclic shifts only
    augment: AugmentConfig = AugmentConfig(ops=(), always=("roll",))
    # steps over which the smallest resized crop falls from the whole image to augment.area; 0: no
    # curriculum
    crop_until: int = 0
    curriculum: Literal["cosine", "linear", "step"] = "cosine"  # how it falls
    # how far the weights of the teacher are moved up the loss of each batch before the first step
    # (DWA: 0.015)
    adjust: float = 0.0
    adjust_steps: int = 12  # in so many steps
    # most images in one forward pass: below the size of a batch, it is split exactly; None: as many
    # whole batches as pay on the device
    images_at_once: int | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "first", "variance", "adjust"):
            require(
                0 <= getattr(self, name) < math.inf,
                f"objective.{name} must be finite and not negative, got {getattr(self, name)}.",
            )
        require(
            self.crop_until >= 0,
            (
                f"objective.crop_until must not be negative, got {self.crop_until}; 0 is without "
                "a curriculum."
            ),
        )
        require(
            not self.crop_until or "resized_crop" in self.augment.always,
            (
                "objective.crop_until changes resized crops, and objective.augment.always has "
                "none; add resized_crop or set objective.crop_until 0."
            ),
        )
        for name in ("adjust_steps", "images_at_once"):
            require(
                getattr(self, name) is None or getattr(self, name) >= 1,
                f"objective.{name} must be at least 1, got {getattr(self, name)}.",
            )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite for the options in use."""
        return (
            *(("yin2024cda",) if self.crop_until else ()),
            *(("du2024dwa",) if self.adjust else ()),
        )

    @property
    def reads_experts(self) -> bool:
        """Teachers."""
        return True

    @property
    def reads_labels(self) -> bool:
        """Classes only."""
        return False

    @property
    def parts_by_device(self) -> bool:
        """As many batches share a forward pass as pay."""
        return True

    def check_teacher(self, name: str, teacher: nn.Module) -> None:
        """Raise UserError for a network that cannot be a teacher, before it is trained."""
        if self.alpha:
            check_norms(name, teacher)

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the batches that share a forward pass, in the largest teacher.

        With `adjust` also of the weights of each batch.
        """
        assert env.experts is not None
        num_teachers, last = env.experts.num_experts, env.experts.epochs[-1]
        groups = self.batches.groups(syn, num_teachers)
        images = max(self.images_together(env, index) for _, index in groups)
        most = 0
        for number in range(num_teachers):
            vectors = VECTORS * num_teachers
            if self.adjust:  # the weights of each batch, while they are put together twice
                vectors += 2 * sum(len(index) for m, index in groups if m == number)
            teacher, shape = env.experts.load(number, last), env.real.image_shape
            of_one = step_bytes(teacher, shape, env.device, images=images, vectors=vectors)
            most = max(most, of_one)
        return most

    def images_together(self, env: Env, index: Tensor) -> int:
        """Images of a group (G, B) of batches that share a forward pass."""
        num_batches, batch = index.shape
        together = 1 if self.adjust else max(1, self.at_once(env) // batch)
        part = batch if self.images_at_once is None else min(batch, self.images_at_once)
        return min(together, num_batches) * part

    def at_once(self, env: Env) -> int:
        """Images that share a forward pass where batches allow it."""
        if self.images_at_once is not None:
            return self.images_at_once
        _, height, width = env.real.image_shape
        return AT_ONCE[env.device.type] * 32 * 32 // (height * width)

    def advice(self, ipc: int) -> str:
        """Share forward passes among fewer images."""
        if self.images_at_once is not None:
            return f"lower objective.images_at_once (now {self.images_at_once})"
        return "set objective.images_at_once"

    def build(self, env: Env) -> "StatisticsObjective":
        """The objective.

        Raises UserError without teachers, for one of other classes, and for one without BatchNorm.
        """
        if env.experts is None:
            raise UserError(
                "This objective needs teachers; name their networks with --teachers and take "
                "their training with --take buffer=RECIPE."
            )
        return StatisticsObjective(self, env, load_all(env.experts, env.device))


class StatisticsObjective(Objective):
    """See the module."""

    def __init__(self, config: StatisticsMatching, env: Env, teachers: Sequence[nn.Module]):
        self.config, self.env, self.teachers = config, env, teachers
        check_teachers(teachers, env, statistics=config.alpha > 0)
        self.at_once = config.at_once(env)

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """The weights of each batch's own teacher, once they are adjusted, by teacher.

        At first none.
        """
        if not self.config.adjust:
            return {}
        return {
            f"theta.{m}": torch.zeros(0, device=self.env.device) for m in range(len(self.teachers))
        }

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """The sum over batches of the loss, in as many parts as share a forward pass."""
        config, groups = self.config, self.config.batches.groups(syn, len(self.teachers))
        if config.adjust and step == 0:
            self._adjust_all(syn, groups, state)
        seen_through = crop_at(config, step)
        num_batches = sum(len(index) for _, index in groups)
        draw = augment.sample(seen_through, 1, rng, groups=num_batches, shared=True)
        draw = draw.to(self.env.device)
        first, seen = 0, [0] * len(self.teachers)  # batches so far: of all teachers, of each
        for teacher, index in groups:
            together = 1 if config.adjust else max(1, self.at_once // index.shape[1])
            for rows in index.split(together):
                part = draw.part(slice(first, first + len(rows)))
                theta = state[f"theta.{teacher}"][seen[teacher]] if config.adjust else None
                first, seen[teacher] = first + len(rows), seen[teacher] + len(rows)
                yield from self._of_rows(syn, rows, teacher, theta, (seen_through, part))

    def _of_rows(
        self,
        syn: SyntheticSet,
        rows: Tensor,
        teacher: int,
        theta: Tensor | None,
        augmentation: tuple[AugmentConfig, augment.AugmentDraw],
    ) -> Iterator[Tensor]:
        """The loss of batches (G, B) that share a forward pass, in parts where they do not fit."""

        def apply(images: Tensor) -> Tensor:
            seen_through, draw = augmentation
            return augment.apply(seen_through, images, draw)

        config, network = self.config, self.teachers[teacher]
        forward = self._forward(network, theta)
        parts = rows.split(config.images_at_once or rows.shape[1], 1)
        looks = [partial(_look, syn, part, apply) for part in parts]
        if len(looks) == 1:
            yield batch_losses(forward, network, *looks[0](), len(rows), config).sum()
        else:
            yield from part_losses(forward, network, looks, config)

    def _adjust_all(
        self, syn: SyntheticSet, groups: Sequence[Group], state: dict[str, Tensor]
    ) -> None:
        """Put the weights of each batch's own teacher into the state."""
        for m, teacher in enumerate(self.teachers):
            adjusted: list[Tensor] = []
            for number, index in groups:
                if number == m:
                    adjusted += [self._adjusted(teacher, *_look(syn, row)) for row in index]
            if adjusted:
                state[f"theta.{m}"] = torch.stack(adjusted)

    def _forward(self, teacher: nn.Module, theta: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The network, with weights of its own where there are any."""

        def forward(images: Tensor) -> Tensor:
            with autocast(images.device, self.env.model.precision):
                if theta is None:
                    return teacher(images).to(images.dtype)
                return torch.func.functional_call(teacher, views(teacher, theta), (images,)).to(
                    images.dtype
                )

        return forward

    def _adjusted(self, teacher: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        """The weights (P,) of DWA (its eq. 9).

        Each step goes adjust / adjust_steps along the normalised gradient of the batch's
        cross-entropy.
        """
        theta = flatten(teacher)
        for _ in range(self.config.adjust_steps):
            theta.requires_grad_()
            loss = functional.cross_entropy(self._forward(teacher, theta)(images.detach()), classes)
            (grad,) = torch.autograd.grad(loss, theta)
            theta = (
                theta
                + self.config.adjust
                / self.config.adjust_steps
                * grad
                / grad.norm().clamp(min=1e-12)
            ).detach()
        return theta


def check_teachers(teachers: Sequence[nn.Module], env: Env, *, statistics: bool) -> None:
    """Raise UserError for a teacher of other classes.

    And for one without BatchNorm where its statistics are to be matched.
    """
    for number, teacher in enumerate(teachers):
        images = torch.zeros(
            1, *env.real.image_shape, device=env.device, dtype=next(teacher.parameters()).dtype
        )
        with torch.no_grad():
            classes = teacher(images).shape[1]
        if classes != env.real.num_classes:
            raise UserError(
                f"Teacher {number} tells {classes} classes apart, and the data have "
                f"{env.real.num_classes}; train teachers on these data."
            )
        if statistics:
            check_norms(type(teacher).__name__, teacher)


def check_norms(name: str, teacher: nn.Module) -> None:
    """Raise UserError for a network without BatchNorm statistics."""
    if not any(isinstance(m, BATCH_NORM) and m.track_running_stats for m in teacher.modules()):
        raise UserError(
            f"The teacher {name} has no BatchNorm, whose statistics this objective matches; "
            "name networks with BatchNorm in --teachers, such as convnet-d3-w128-bn, or set "
            "objective.alpha 0."
        )


def crop_at(config: StatisticsMatching, step: int) -> AugmentConfig:
    """The augmentation of a step.

    CDA's curriculum goes from whole images to crops of augment.area (its section 3).
    """
    if not config.crop_until:
        return config.augment
    done = min(1.0, step / config.crop_until)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "step": float(done < 1),
    }[config.curriculum]
    return replace(config.augment, area=config.augment.area + (1 - config.augment.area) * left)


def views(network: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """A flat vector (P,) as the network's parameters."""
    named = dict(network.named_parameters())
    return {
        n: t.view_as(p)
        for (n, p), t in zip(
            named.items(), theta.split([p.numel() for p in named.values()]), strict=True
        )
    }


def _look(
    syn: SyntheticSet, index: Tensor, seen: Callable[[Tensor], Tensor] = lambda images: images
) -> tuple[Tensor, Tensor]:
    """The examples (G, B) as (images (G B, C, H, W), classes (G B,))."""
    batch = syn.batch(index.flatten())
    assert batch.classes is not None
    return seen(batch.images), batch.classes


@contextmanager
def inputs_of_norms(network: nn.Module, see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """While a forward pass runs, `see` gets every BatchNorm layer with its input.

    In the order of the pass.
    """
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORM) and m.track_running_stats]
    hooks = [
        norm.register_forward_pre_hook(lambda module, inputs: see(module, inputs[0]))
        for norm in norms
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def distance(norm: nn.Module, mean: Tensor, var: Tensor, variance: float) -> Tensor:
    """|mu - mean| + variance |s - var|, norms over the last dimension, the channels."""
    known: Any = norm
    means = (known.running_mean - mean).norm(dim=-1)
    return means + variance * (known.running_var - var).norm(dim=-1)


def weighted(terms: Sequence[Tensor], first: float) -> Tensor:
    """Sum over layers, the first times `first`."""
    return (
        first * terms[0] + sum(terms[1:], start=torch.zeros_like(terms[0]))
        if terms
        else torch.zeros(())
    )


def batch_losses(
    forward: Callable[[Tensor], Tensor],
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    num: int,
    config: StatisticsMatching,
) -> Tensor:
    """Losses (G,) of `num` batches in one forward pass of `network`.

    Of images (G B, C, H, W), each batch with statistics of its own.
    """
    terms: list[Tensor] = []

    def see(norm: nn.Module, x: Tensor) -> None:
        x = x.to(images.dtype).unflatten(0, (num, -1))  # (G, B, channels, ...)
        var, mean = torch.var_mean(x, dim=(1, *range(3, x.dim())), correction=0)
        terms.append(distance(norm, mean, var, config.variance))

    with inputs_of_norms(network, see if config.alpha else lambda norm, x: None):
        logits = forward(images)
    losses = functional.cross_entropy(logits, classes, reduction="none").view(num, -1).mean(1)
    return losses + config.alpha * weighted(terms, config.first) if terms else losses


@dataclass
class Sums:
    """Sums over examples and space of the inputs of a BatchNorm layer, about its running mean."""

    norm: Any  # the layer
    total: Tensor  # (channels,) float64
    squares: Tensor  # (channels,) float64, of squares
    count: int  # numbers a channel

    @classmethod
    def of(cls, norm: Any, x: Tensor) -> "Sums":
        """Of inputs (B, channels, ...)."""
        x = x.double().transpose(0, 1).flatten(1) - norm.running_mean.double()[:, None]
        return cls(norm, x.sum(1), x.square().sum(1), x.shape[1])

    def add(self, other: "Sums") -> None:
        """Further examples."""
        self.total = self.total + other.total
        self.squares = self.squares + other.squares
        self.count += other.count


class SumsOfLayers:
    """The sums of a whole batch, of each layer in the order that forward passes meet them."""

    def __init__(self) -> None:
        self.layers: list[Sums] = []
        self._next = 0

    def begin(self) -> None:
        """A forward pass of another part of the batch follows."""
        self._next = 0

    def add(self, norm: nn.Module, x: Tensor) -> None:
        """What the next layer sees."""
        sums = Sums.of(norm, x)
        if self._next == len(self.layers):
            self.layers.append(sums)
        else:
            self.layers[self._next].add(sums)
        self._next += 1


class LinearStatistics:
    """The statistics term of the loss, linear in a part's sums where the batch's are given.

    Since d var = d (squares / count) - 2 shift d (total / count), with the shift of the mean from
    the running one.
    """

    def __init__(self, layers: Sequence[Sums], config: "StatisticsMatching"):
        shifts = [(sums.total / sums.count).requires_grad_() for sums in layers]
        variances, terms = [], []
        for sums, shift in zip(layers, shifts, strict=True):
            variance = sums.squares / sums.count - shift.detach().square()
            variances.append(variance.requires_grad_())
            mean = sums.norm.running_mean.double() + shift
            terms.append(distance(sums.norm, mean, variance, config.variance))
        statistics = config.alpha * weighted(terms, config.first)
        slopes = torch.autograd.grad(statistics, [*shifts, *variances]) if layers else ()
        self.value = statistics.detach()
        self._counts = [sums.count for sums in layers]
        self._shifts = [shift.detach() for shift in shifts]
        self._by_mean, self._by_variance = slopes[: len(layers)], slopes[len(layers) :]
        self._next = 0
        self.part = torch.zeros(())

    def begin(self, device: torch.device) -> None:
        """A forward pass of another part of the batch follows."""
        self._next, self.part = 0, torch.zeros((), dtype=torch.float64, device=device)

    def add(self, norm: nn.Module, x: Tensor) -> None:
        """What the next layer sees, with its graph."""
        sums, layer = Sums.of(norm, x), self._next
        by_mean, by_variance = self._by_mean[layer], self._by_variance[layer]
        by_total = by_mean - 2 * self._shifts[layer] * by_variance
        change = (by_total * sums.total + by_variance * sums.squares).sum()
        self.part = self.part + change / self._counts[layer]
        self._next += 1


def part_losses(
    forward: Callable[[Tensor], Tensor],
    network: nn.Module,
    looks: Sequence[Callable[[], tuple[Tensor, Tensor]]],
    config: StatisticsMatching,
) -> Iterator[Tensor]:
    """The loss of one batch in parts, with one part's graph alive.

    Their gradients add up to the batch's, and so do their values. The statistics of the whole batch
    come from sums over parts, about the running mean, so that nothing is lost to rounding.
    """
    number, sums = 0, SumsOfLayers()
    with torch.no_grad(), inputs_of_norms(network, sums.add):
        for look in looks:
            sums.begin()
            images, _ = look()
            number += len(images)
            forward(images)
    statistics = LinearStatistics(sums.layers, config)
    for look in looks:
        images, classes = look()
        statistics.begin(images.device)
        with inputs_of_norms(network, statistics.add):
            logits = forward(images)
        entropy = functional.cross_entropy(logits, classes, reduction="sum") / number
        part = statistics.part
        matched = part - part.detach() + statistics.value / len(looks)
        yield entropy + matched.to(images.dtype)
