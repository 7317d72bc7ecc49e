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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, count
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.flat import flatten
from ddengine.learning.memory import step_bytes
from ddengine.learning.teachers import load_all
from ddengine.models.norms import norms_with_statistics
from ddengine.objective import VECTORS, Env, Group, Objective, ObjectiveConfig
from ddengine.recipe import AugmentConfig, OuterConfig, require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist
from ddengine.system.configs import LATE
from ddengine.system.errors import UserError
from ddengine.system.runtime import autocast
from ddengine.types import Facts, Json
from synth.classes import class_members

# images of 32 x 32 in one forward pass, but a whole batch at least
AT_ONCE = {"cpu": 128, "cuda": 2048}

InTeacher = tuple[int, Tensor]  # a teacher, and decoded examples (G, B) int64: G batches of B
# of the memory there is, that the images and what their optimiser keeps may take
SHARE = 0.25
# bytes a value of an image: itself, its gradient, what Adam keeps, and all of it anew in a step
HELD = 32


class Batches(Protocol):
    """A frozen dataclass that says which examples are optimised together, and in which network."""

    def groups(self, syn: SyntheticSet, num_teachers: int) -> list[InTeacher]:
        """Every example that is optimised, once."""
        ...

    @property
    def parts_teachers(self) -> bool:
        """Whether an example belongs to one teacher by design."""
        return False

    @property
    def are_apart(self) -> bool:
        """Whether no two batches share anything that is stored."""
        return False


@dataclass(frozen=True, kw_only=True)
class OnePerClass(Batches):
    """The j-th image of every class together, in batches of `classes` classes (SRe2L).

    Several teachers take turns.
    """

    classes: int = 100  # most of a batch

    @property
    def are_apart(self) -> bool:
        """Each image is in one batch."""
        return True

    def __post_init__(self) -> None:
        require_at_least("objective.batches.classes", self.classes)

    def groups(self, syn: SyntheticSet, num_teachers: int) -> list[InTeacher]:
        """By the number of the image, then by class."""
        members = class_members(syn, None, Generator()).T  # (examples per class, classes)
        groups = []
        for teacher in range(num_teachers):
            of_teacher = members[teacher::num_teachers]
            for part in of_teacher.split(self.classes, 1):
                if len(part):
                    groups.append((teacher, part))
        return groups


BatchesT = TypeVar("BatchesT", bound=Batches)


@dataclass(frozen=True, kw_only=True)
class StatisticsMatching(ObjectiveConfig, Generic[BatchesT]):
    """See the module.

    Several teachers share the images out, or take turns (`turns`), as backbones do in G-VBSM (Shao
    et al., CVPR 2024, arXiv 2311.17950). The step size is that of `outer.optim`; published: Adam
    with betas 0.5 and 0.9, a cosine.
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
    # of several teachers: each image is made in one of them, or in all, which take turns step by
    # step
    turns: Literal["images", "steps"] = field(default="images", metadata=LATE)
    # most images in one forward pass: below the size of a batch, it is split exactly; None: as many
    # whole batches as pay on the device
    images_at_once: int | None = None
    # images that are optimised to their last step before others begin, in whole forward passes;
    # None: all, or as many as a quarter of the memory holds
    images_in_group: int | None = field(default=None, metadata=LATE)

    def __post_init__(self) -> None:
        for name in ("alpha", "first", "variance", "adjust"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf,
                f"objective.{name} must be finite and not negative, got {value}.",
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
        require(
            not self.adjust or self.turns == "images",
            (
                f"objective.adjust {self.adjust} moves the weights of one teacher for each image, "
                "and objective.turns steps makes every image in all teachers; set one of them back."
            ),
        )
        require_at_least("objective.adjust_steps", self.adjust_steps)
        require_at_least("objective.images_at_once", self.images_at_once)
        require_at_least("objective.images_in_group", self.images_in_group)
        require(
            self.images_in_group is None or self.batches.are_apart,
            "objective.images_in_group parts images that share what is stored of them; leave it "
            "out.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite for the options in use."""
        works = []
        if self.crop_until:
            works.append("yin2024cda")
        if self.adjust:
            works.append("du2024dwa")
        if self.turns == "steps":
            works.append("shao2024gvbsm")
        return tuple(works)

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

    def for_all_teachers(self) -> Self:
        """With teachers that take turns step by step, where an example is not of one by design."""
        if self.batches.parts_teachers or self.adjust:
            return self
        return replace(self, turns="steps")

    def groups(self, syn: SyntheticSet, num_teachers: int, step: int) -> list[InTeacher]:
        """What is optimised together in which teacher, at an outer step."""
        if self.turns == "images":
            return self.batches.groups(syn, num_teachers)
        return [(step % num_teachers, index) for _, index in self.batches.groups(syn, 1)]

    def choices(self, objective: Objective, syn: SyntheticSet, memory: int) -> Json:
        """How many images are optimised at a time, where not all fit."""
        of_image = HELD * max(tensor[0].numel() for tensor in syn.tensors.values() if tensor.dim())
        fitting = int(memory * SHARE) // of_image
        if self.images_in_group is not None or fitting >= len(syn.classes):
            return {}
        return {"images_in_group": max(1, fitting)}

    def groups_apart(
        self, objective: Objective, syn: SyntheticSet, config: OuterConfig
    ) -> Sequence[Group]:
        """Some images of every class, where not all are optimised at a time."""
        if isinstance(objective, StatisticsObjective):
            return objective.groups(syn, config)
        return ()

    def share(self, objective: Objective, moves: bool) -> bool:
        """Forward passes are shared, as no batch sees another."""
        if moves or not isinstance(objective, StatisticsObjective):
            return False
        objective.shared = True
        return True

    def kept(
        self, objective: Objective, first: dict[str, Tensor], syn: SyntheticSet, step: int
    ) -> Mapping[str, Tensor]:
        """The weights of every batch, (batches, P) for a teacher that has any."""
        if not self.adjust or step == 0 or not isinstance(objective, StatisticsObjective):
            return first
        teachers = objective.teachers
        batches = [0] * len(teachers)
        for number, index in self.groups(syn, len(teachers), 0):
            batches[number] += len(index)
        weights = dict(first)
        for number, teacher in enumerate(teachers):
            if batches[number]:
                size = sum(parameter.numel() for parameter in teacher.parameters())
                weights[f"theta.{number}"] = torch.empty(batches[number], size, device="meta")
        return weights

    def choose(self, objective: Objective, choices: Facts) -> None:
        """Optimise so many images at a time."""
        if isinstance(objective, StatisticsObjective):
            objective.in_group = choices.get("images_in_group", self.images_in_group)

    def check_teacher(self, name: str, teacher: nn.Module) -> None:
        """Raise UserError for a network that cannot be a teacher, before it is trained."""
        if self.alpha:
            check_norms(name, teacher)

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the batches that share a forward pass, in the largest teacher.

        With `adjust` also of the weights of each batch.
        """
        experts = env.experts
        assert experts is not None
        num_teachers = experts.num_experts
        groups = self.groups(syn, num_teachers, 0)
        images = max(self.images_together(env, index) for _, index in groups)
        most = 0
        for number in range(num_teachers):
            vectors = VECTORS * num_teachers
            if self.adjust:  # the weights of each batch, while they are put together twice
                vectors += 2 * num_batches(groups, number)
            teacher = experts.load(number, experts.epochs[-1])
            shape = env.real.image_shape
            of_one = step_bytes(teacher, shape, env.device, images=images, vectors=vectors)
            most = max(most, of_one)
        return most

    def images_together(self, env: Env, index: Tensor) -> int:
        """Images of a group (G, B) of batches that share a forward pass."""
        num, batch = index.shape
        together = 1 if self.adjust else max(1, self.at_once(env) // batch)
        part = batch
        if self.images_at_once is not None:
            part = min(batch, self.images_at_once)
        return min(together, num) * part

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
        self.config = config
        self.env = env
        self.teachers = teachers
        check_teachers(teachers, env, statistics=config.alpha > 0)
        self.at_once = config.at_once(env)
        self.in_group = config.images_in_group  # images that are optimised at a time; None: all
        # where this is of a group: the number of its first image in a class, and how many a class
        # has in all
        self.place: tuple[int, int] | None = None
        self.shared = False  # over the ranks

    def groups(self, syn: SyntheticSet, config: OuterConfig) -> Sequence[Group]:
        """Some images of every class, in the batches and forward passes that they have in all."""
        most = self.in_group
        if most is None or not self.config.batches.are_apart:
            return ()
        why = why_together(syn, config)
        if why is not None:
            if self.config.images_in_group is None:
                return ()
            raise UserError(f"objective.images_in_group {most} cannot be: {why}.")
        members = class_members(syn, None, Generator())  # (K, images of a class)
        whole = self._images_that_belong_together(syn)
        each = max(1, most // len(members) // whole) * whole
        per_class = members.shape[1]
        groups = []
        for first in range(0, per_class, each):
            objective = copy(self)
            objective.place = (first, per_class)
            items = members[:, first : first + each].flatten()
            groups.append(Group(torch.sort(items).values, objective))
        return groups if len(groups) > 1 else ()

    def _images_that_belong_together(self, syn: SyntheticSet) -> int:
        """Of a class: as many as have a place in whole forward passes of every teacher."""
        together = 1
        for _, index in self.config.groups(syn, len(self.teachers), 0):
            together = math.lcm(together, self._rows_together(index))
        return together * self._teachers_of_images()

    def _teachers_of_images(self) -> int:
        """The teachers among which the images are shared out."""
        return len(self.teachers) if self.config.turns == "images" else 1

    def _rows_together(self, index: Tensor) -> int:
        """Batches of a group (G, B) that share a forward pass."""
        if self.config.adjust:
            return 1
        return max(1, self.at_once // index.shape[1])

    def _first_batches(self, groups: Sequence[InTeacher]) -> tuple[list[int], int]:
        """(the number of the first batch of each group among those of the set, how many it has)."""
        if self.place is None:
            ends = list(accumulate((len(index) for _, index in groups), initial=0))
            return ends[:-1], ends[-1]
        first, per_class = self.place
        shared = self._teachers_of_images()
        starts, total = [], 0
        of_first = [index for teacher, index in groups if teacher == groups[0][0]]
        here = sum(len(index) for _, index in groups) // len(of_first)  # images of a class
        for teacher in range(shared):
            for _ in of_first:
                if teacher < here:
                    starts.append(total + first // shared)
                total += len(range(teacher, per_class, shared))
        return starts, total

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """The weights of each batch's own teacher, once they are adjusted, by teacher.

        At first none.
        """
        weights: dict[str, Tensor] = {}
        if self.config.adjust:
            for teacher in range(len(self.teachers)):
                weights[f"theta.{teacher}"] = torch.zeros(0, device=self.env.device)
        return weights

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """The sum over batches of the loss, in as many parts as share a forward pass."""
        config = self.config
        groups = config.groups(syn, len(self.teachers), step)
        if config.adjust and step == 0:
            self._adjust_all(syn, groups, state)
            if self.shared:  # ranks need not agree to the last bit
                dist.from_first(state.values())
        seen_through = crop_at(config, step)
        starts, total = self._first_batches(groups)
        draw = augment.sample(seen_through, 1, rng, groups=total, shared=True)
        draw = draw.to(self.env.device)
        first_of = [0] * len(self.teachers)  # batches of each so far
        passes = count()
        for first, (teacher, index) in zip(starts, groups, strict=True):
            for rows in index.split(self._rows_together(index)):
                theta = None
                if config.adjust:
                    weights = state[f"theta.{teacher}"]
                    theta = weights[first_of[teacher]]
                part = draw.part(slice(first, first + len(rows)))
                first += len(rows)
                first_of[teacher] += len(rows)
                if self.shared and next(passes) % dist.num_ranks() != dist.rank():
                    continue
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

        config = self.config
        network = self.teachers[teacher]
        forward = self._forward(network, theta)
        parts = rows.split(config.images_at_once or rows.shape[1], 1)
        if len(parts) == 1:
            images, classes = _look(syn, rows, apply)
            yield batch_losses(forward, network, images, classes, len(rows), config).sum()
        else:
            looks = [partial(_look, syn, part, apply) for part in parts]
            yield from part_losses(forward, network, looks, config)

    def _adjust_all(
        self, syn: SyntheticSet, groups: Sequence[InTeacher], state: dict[str, Tensor]
    ) -> None:
        """Put the weights of each batch's own teacher into the state."""
        for number, teacher in enumerate(self.teachers):
            adjusted: list[Tensor] = []
            for of_group, index in groups:
                if of_group != number:
                    continue
                for row in index:
                    images, classes = _look(syn, row)
                    adjusted.append(self._adjusted(teacher, images, classes))
            if adjusted:
                state[f"theta.{number}"] = torch.stack(adjusted)

    def _forward(self, teacher: nn.Module, theta: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The network, with weights of its own where there are any."""

        def said(images: Tensor) -> Tensor:
            if theta is None:
                return teacher(images)
            weights = views(teacher, theta)
            return torch.func.functional_call(teacher, weights, (images,))

        def forward(images: Tensor) -> Tensor:
            with autocast(images.device, self.env.model.precision):
                return said(images).to(images.dtype)

        return forward

    def _adjusted(self, teacher: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        """The weights (P,) of DWA (its eq. 9).

        Each step goes adjust / adjust_steps along the normalised gradient of the batch's
        cross-entropy.
        """
        theta = flatten(teacher)
        images = images.detach()
        length = self.config.adjust / self.config.adjust_steps
        for _ in range(self.config.adjust_steps):
            theta.requires_grad_()
            forward = self._forward(teacher, theta)
            loss = functional.cross_entropy(forward(images), classes)
            (grad,) = torch.autograd.grad(loss, theta)
            norm = grad.norm().clamp(min=1e-12)
            theta = (theta + length * grad / norm).detach()
        return theta


def why_together(syn: SyntheticSet, config: OuterConfig) -> str | None:
    """Why the items of a set cannot be optimised apart from each other; None where they can."""
    name = type(syn.codec).__name__
    if not syn.codec.items_are_apart:
        return f"the codec {name} has parts, scales or a penalty of all its images together"
    num = len(syn.classes)
    if len(syn) != num or any(not t.dim() or len(t) != num for t in syn.tensors.values()):
        return f"the codec {name} stores more than an image for each example"
    optim = config.optim.values()
    if any(one.clip is not None or one.clip_average is not None for one in optim):
        return "outer.optim clips by the norm of all images; leave the clip out"
    if config.max_loss < math.inf:
        return "outer.max_loss looks at the loss of all images; leave it out"
    if config.ema:
        return "outer.ema keeps averages of all images; leave it out"
    return None


def num_batches(groups: Sequence[InTeacher], teacher: int | None = None) -> int:
    """How many batches there are in groups, of one teacher or of all."""
    num = 0
    for number, index in groups:
        if teacher is None or number == teacher:
            num += len(index)
    return num


def check_teachers(teachers: Sequence[nn.Module], env: Env, *, statistics: bool) -> None:
    """Raise UserError for a teacher of other classes.

    And for one without BatchNorm where its statistics are to be matched.
    """
    for number, teacher in enumerate(teachers):
        dtype = next(teacher.parameters()).dtype
        images = torch.zeros(1, *env.real.image_shape, device=env.device, dtype=dtype)
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
    if not norms_with_statistics(teacher):
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
    left_by_curriculum = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "step": float(done < 1),
    }
    left = left_by_curriculum[config.curriculum]
    smallest = config.augment.area
    return replace(config.augment, area=smallest + (1 - smallest) * left)


def views(network: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """A flat vector (P,) as the network's parameters."""
    named = dict(network.named_parameters())
    parts = theta.split([parameter.numel() for parameter in named.values()])
    weights = {}
    for (name, parameter), part in zip(named.items(), parts, strict=True):
        weights[name] = part.view_as(parameter)
    return weights


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
    hooks = []
    for norm in norms_with_statistics(network):
        hook = norm.register_forward_pre_hook(lambda module, inputs: see(module, inputs[0]))
        hooks.append(hook)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def distance(norm: nn.Module, mean: Tensor, var: Tensor, variance: float) -> Tensor:
    """|mu - mean| + variance |s - var|, norms over the last dimension, the channels."""
    known: Any = norm
    means = (known.running_mean - mean).norm(dim=-1)
    variances = (known.running_var - var).norm(dim=-1)
    return means + variance * variances


def weighted(terms: Sequence[Tensor], first: float) -> Tensor:
    """Sum over layers, the first times `first`."""
    if not terms:
        return torch.zeros(())
    of_first, *others = terms
    return first * of_first + sum(others, start=torch.zeros_like(of_first))


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

    with inputs_of_norms(network, see) if config.alpha else nullcontext():
        logits = forward(images)
    entropies = functional.cross_entropy(logits, classes, reduction="none")
    losses = entropies.view(num, -1).mean(1)
    if terms:
        losses = losses + config.alpha * weighted(terms, config.first)
    return losses


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
        centre = norm.running_mean.double().unsqueeze(1)
        by_channel = x.double().transpose(0, 1).flatten(1)
        x = by_channel - centre
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
        shifts = []
        variances = []
        terms = []
        for sums in layers:
            shift = (sums.total / sums.count).requires_grad_()
            variance = sums.squares / sums.count - shift.detach().square()
            variance.requires_grad_()
            mean = sums.norm.running_mean.double() + shift
            terms.append(distance(sums.norm, mean, variance, config.variance))
            shifts.append(shift)
            variances.append(variance)
        statistics = config.alpha * weighted(terms, config.first)
        slopes: Sequence[Tensor] = ()
        if layers:
            slopes = torch.autograd.grad(statistics, [*shifts, *variances])
        self.value = statistics.detach()
        self._counts = [sums.count for sums in layers]
        self._shifts = [shift.detach() for shift in shifts]
        self._by_mean = slopes[: len(layers)]
        self._by_variance = slopes[len(layers) :]
        self._next = 0
        self.part = torch.zeros(())

    def begin(self, device: torch.device) -> None:
        """A forward pass of another part of the batch follows."""
        self._next = 0
        self.part = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, norm: nn.Module, x: Tensor) -> None:
        """What the next layer sees, with its graph."""
        sums = Sums.of(norm, x)
        layer = self._next
        by_mean = self._by_mean[layer]
        by_variance = self._by_variance[layer]
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
    number = 0
    sums = SumsOfLayers()
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
