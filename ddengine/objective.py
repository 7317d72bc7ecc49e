"""What a method is to the engine: its configuration, and the objective that it builds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import torch
from torch import Generator, Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.learning.flat import FlatModel
from ddengine.learning.losses import OutputsLoss, loss_of, task_loss
from ddengine.learning.memory import step_bytes
from ddengine.learning.teachers import features, target_network
from ddengine.models import build_model
from ddengine.recipe import OuterConfig, Recipe, StudentTraining
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Experts, Facts, Json, Method

VECTORS = 13  # of the size of the parameters, that a step holds at most beside its graph


@dataclass(frozen=True)
class Env:
    """Everything an objective may touch. There is no validation and no test split in it."""

    real: RealSet
    new_model: Callable[[Generator], nn.Module]
    model: FlatModel
    experts: Experts | None
    device: torch.device
    compile: bool = False
    loss: OutputsLoss = task_loss  # of outputs (B, K) and the targets of a set (B,) or (B, K)


def environments(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    experts: Experts | None,
    *,
    precision: Precision = "fp32",
    compile: bool = False,
) -> list[Env]:
    """What the objective of a recipe may touch, for each of its networks.

    Where the targets are features, networks have as many outputs as these are wide.
    """
    outputs = _num_outputs(recipe, data, experts)
    environments = []
    for name in recipe.networks:
        new_model = partial(build_model, name, data.image_shape, outputs)
        model = FlatModel(new_model(generator(0)), precision).to(device)
        loss = loss_of(recipe.targets.kind)
        environments.append(Env(data.train, new_model, model, experts, device, compile, loss))
    return environments


def _num_outputs(recipe: Recipe, data: Data, experts: Experts | None) -> int:
    """How many outputs the networks have that an objective trains."""
    if recipe.targets.kind != "features" or experts is None:
        return data.num_classes
    network = target_network(experts, torch.device("cpu"))
    image = torch.zeros(1, *data.image_shape)
    return features(network, image).shape[1]


@dataclass(frozen=True)
class Group:
    """Some items of a set, which are optimised to their last step before others begin."""

    items: Tensor  # (n,) int64, of the stored items
    objective: "Objective"  # theirs


class Objective(Protocol):
    """A synthesizer: what the stored tensors should minimise."""

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """Everything kept between steps (a network, a pool), which is checkpointed.

        For most {}, the default.
        """
        return {}

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """Scalar losses of one step.

        The loop calls backward() on each at once, so only one graph is alive.
        """
        ...


def backward(loss: Tensor, draws: int = 1) -> None:
    """Back-propagate a loss that an objective yielded, of one of so many draws.

    Raises UserError for what the losses of a step cannot be.
    """
    if loss.dim() or not loss.requires_grad:
        raise UserError(
            f"The objective yielded a loss of shape {tuple(loss.shape)} that "
            f"{'has' if loss.requires_grad else 'has no'} gradient; yield scalars that are "
            "computed of the images of `syn.batch`."
        )
    try:
        (loss / draws).backward()
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise UserError(
            "Two losses of a step are computed of the same decoded images or features, and what "
            "the first needed is freed after it; yield their sum as one loss."
        ) from error


class ObjectiveConfig(Method, Protocol):
    """A method's frozen dataclass of options, which subclasses this and overrides what differs.

    Only `build` has no default.
    """

    def small(self) -> Self:
        """The same method at the size of a test; itself where nothing is large.

        Batches of 8 images, few inner steps, segments within four epochs.
        """
        return self

    def groups_apart(
        self, objective: Objective, syn: SyntheticSet, config: OuterConfig
    ) -> Sequence[Group]:
        """The groups in which the items of a set are optimised, one after another.

        The sum of their losses is the loss of the set, and no item sees one of another group. None,
        the default: all together. Raises UserError for settings that need all at once.
        """
        return ()

    def build(self, env: Env) -> Objective:
        """The objective. Raises UserError for what it cannot work with."""
        ...

    def initial(self) -> Mapping[str, float | Sequence[float]]:
        """Numbers that are learned beside the images, with their start; {} for none."""
        return {}

    def make_images(self, env: Env, number: int, rng: Generator) -> Tensor | None:
        """The images that the set starts as, in place of recipe.init, where the method makes them.

        They are pixels in [0, 1], `number` of each class, all those of a class in a row
        (K * number, C, H, W). None, as of most methods: they start as recipe.init says. Raises
        UserError for what it cannot make.
        """
        return None

    def students(self, syn: SyntheticSet) -> StudentTraining | None:
        """How students are trained on a set while it is made, which an evaluation can do too.

        None, the default, where there are no students.
        """
        return None

    def check(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless experts with these epochs stored, ascending, will do."""

    def check_teacher(self, name: str, teacher: nn.Module) -> None:
        """Raise UserError for a network, called `name`, that cannot be a teacher.

        It is not trained yet.
        """

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes that one step holds at most, beyond the set and the networks that lie there anyway.

        By default of gradients through gradients of all decoded images, in the network of `env`.
        """
        return network_bytes(env, images=len(syn))

    def choices(self, objective: Objective, syn: SyntheticSet, memory: int) -> Json:
        """What is left to the machine, as it is to be where so many bytes of memory are available.

        `objective` is one that this method built. It is chosen once for a run, and stored with it;
        for most {}, the default.
        """
        return {}

    def choose(self, objective: Objective, choices: Facts) -> None:
        """Have an objective do as `choices` says, here or when the run began."""

    def share(self, objective: Objective, moves: bool) -> bool:
        """Have an objective that this method built share the work of a step over the ranks.

        From then on each rank yields losses of its part of the classes, which add up to those of
        one rank. Where the images move after each loss (`moves`), every rank yields all losses,
        and they share what does not depend on the images. False, the default: it cannot be shared,
        and is refused on several ranks where it keeps anything between steps.
        """
        return False

    def kept(
        self, objective: Objective, first: dict[str, Tensor], syn: SyntheticSet, step: int
    ) -> Mapping[str, Tensor]:
        """What a checkpoint of so many steps may hold of the objective's state, by shapes.

        `first` is what its `init` returned, whose names must all be there. By default nothing else
        is, and shapes stay; a method whose state changes shape, or grows, says here how.
        """
        return first

    def network_at(self, syn: SyntheticSet, step: int) -> int:
        """Which of the networks that it draws an outer step sees, counted from 0.

        By default each step draws one.
        """
        return step

    def quick_start(self) -> tuple[Self, float]:
        """The method with little to do within its first step, and how often it does that itself.

        For trying a step. By default it has nothing to do there but the step: itself, and 0.
        """
        return self, 0.0

    def advice(self, ipc: int) -> str:
        """What to do where a step does not fit into memory; `ipc` is that of the recipe."""
        return f"lower ipc (now {ipc})"


class StatelessConfig(ObjectiveConfig, Protocol):
    """The options of a method that keeps nothing between steps; it needs no other class.

    Only `step_losses` has no default.
    """

    def step_losses(self, env: Env, syn: SyntheticSet, rng: Generator) -> Iterator[Tensor]:
        """Scalar losses of one step, as `Objective.losses` yields them; `rng` is for all draws."""
        ...

    def build(self, env: Env) -> Objective:
        """An objective that yields `step_losses`."""
        return Stateless(self, env)


@dataclass(frozen=True)
class Stateless(Objective):
    """The objective of a StatelessConfig."""

    config: StatelessConfig
    env: Env

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """Those of the configuration."""
        return self.config.step_losses(self.env, syn, rng)


def network_bytes(env: Env, *, images: int, vectors: int = VECTORS, seen: int = 0) -> int:
    """Bytes that gradients of gradients hold at most, of so many images in the network of `env`.

    `vectors` of the size of its parameters are alive beside; of images `seen`, such as real ones,
    only a plain gradient is computed, at another time.
    """
    network, shape = env.new_model(generator(0)), env.real.image_shape
    return step_bytes(network, shape, env.device, images=images, vectors=vectors, seen=seen)
