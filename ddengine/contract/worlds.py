"""Small complete set-ups for the tests of the contract: data, experts, recipes made small."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from buffers.experts import generate
from buffers.steps import Sgd
from buffers.store import ExpertStore, StoreGroup
from ddengine.data import Data, load_data
from ddengine.models import build_model
from ddengine.objective import Objective, environments
from ddengine.recipe import BufferConfig, DataConfig, Recipe
from ddengine.sets.codec import CODECS
from ddengine.sets.labels import labelled
from ddengine.sets.synthetic import SyntheticSet, initial
from ddengine.system.rng import generator
from ddengine.turns import objective_of
from ddengine.types import Json
from synth.catalogue import RECIPES, find

CPU = torch.device("cpu")
DIGITS = DataConfig(name="digits", limit=200)
NETWORK = "convnet-d1-w4-in"
TEACHERS = ("convnet-d1-w4-bn", "convnet-d1-w8-bn")
IPC = 2  # images per class of every set
STEPS = 8  # outer steps at most


@dataclass(frozen=True)
class World:
    """What the methods are tried on: 200 digits of 8 x 8 pixels, and networks trained on them."""

    data: Data
    experts: ExpertStore  # two trajectories of four epochs
    convex: ExpertStore  # the same, of which two waypoints are stored
    teachers: StoreGroup  # two networks of different widths, the last epoch of each


def make(folder: Path) -> World:
    """A world whose stores lie in `folder`; seconds on one core."""
    data = load_data(DIGITS, CPU)
    config = BufferConfig(step=Sgd(lr=0.3), num_experts=2, epochs=4, batch=16)
    experts = _store(data, config, NETWORK, folder / "experts")
    of_teachers = replace(config, num_experts=1, keep="last")
    stores = []
    for name in TEACHERS:
        stores.append(_store(data, of_teachers, name, folder / name))
    of_lines = replace(config, store="convex")
    convex = _store(data, of_lines, NETWORK, folder / "convex")
    return World(data, experts, convex, StoreGroup(stores))


def _store(data: Data, config: BufferConfig, network: str, folder: Path) -> ExpertStore:
    """A store of experts, trained here."""

    def new_model(rng: Generator) -> nn.Module:
        return build_model(network, data.image_shape, data.num_classes, rng)

    generate(data, DIGITS, config, network, new_model, folder)
    return ExpertStore(folder, new_model, config.num_experts)


def all_recipes() -> list[Recipe]:
    """Every recipe of this program."""
    return list(RECIPES.values())


def recipes_of_methods(names: Sequence[str]) -> list[Recipe]:
    """The recipes of these names; without names one of each method of this program.

    It is the first of plain images, where there is one: a method in another codec is a pair.
    """
    if names:
        return [find(name) for name in names]
    of_method: dict[str, list[Recipe]] = {}
    for recipe in RECIPES.values():
        of_method.setdefault(recipe.name.split("/")[0], []).append(recipe)
    return [min(recipes, key=_is_coded) for recipes in of_method.values()]


def _is_coded(recipe: Recipe) -> bool:
    """Whether a recipe's images are in a form that is the subject of a paper of its own."""
    return bool(recipe.codec.cites)


def codec_names() -> list[str]:
    """The names of all codecs."""
    return list(CODECS)


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe at the size of a test.

    It has two images per class, a tiny network, few steps, and the own small sizes of objective and
    codec; everything else that makes the method stays.
    """
    optim = {}
    for name, config in recipe.outer.optim.items():
        optim[name] = replace(config, lr=min(config.lr, 20.0))
    outer = replace(recipe.outer, steps=min(STEPS, recipe.outer.steps), optim=optim)
    return replace(
        recipe,
        model=NETWORK,
        ipc=IPC,
        teachers=TEACHERS if recipe.teachers else (),
        codec=recipe.codec.small(),
        objective=recipe.objective.small(),
        outer=outer,
    )


def start(recipe: Recipe, world: World) -> tuple[Objective, SyntheticSet]:
    """The objective of a shrunk recipe, and its set before the first step."""
    experts = None
    if recipe.buffer is not None:
        trajectories = world.convex if recipe.buffer.store == "convex" else world.experts
        experts = world.teachers if recipe.teachers else trajectories
    envs = environments(recipe, world.data, CPU, experts)
    syn = initial(recipe, world.data, generator(0, "init"), experts)
    syn = labelled(syn, experts, recipe.targets)
    return objective_of(recipe.objective, envs), syn


def _check_loss(loss: Tensor) -> None:
    """Say it where what `losses` yields cannot be minimised."""
    assert loss.shape == (), (
        f"losses() yielded a loss of shape {tuple(loss.shape)}: a loss is a scalar; take the sum "
        "or the mean."
    )
    assert loss.requires_grad, (
        "losses() yielded a loss that depends on nothing that is learned: make it of "
        "syn.batch(index), of the set that losses() is given, and detach nothing on the way."
    )


@contextmanager
def told(syn: SyntheticSet) -> Iterator[None]:
    """Tell an objective that looks at stored tensors as if they were images what to do."""
    do = "take images from syn.batch(index), which decodes them."
    codec = type(syn.codec).__name__
    try:
        yield
    except KeyError as error:
        if not error.args or error.args[0] in syn.tensors:
            raise
        raise AssertionError(
            f"losses() asked for {error}, and a set in the codec {codec} holds "
            f"{', '.join(syn.tensors)}: {do}"
        ) from error
    except RuntimeError as error:
        stored = syn.tensors.get("images")
        if stored is None or tuple(stored.shape[1:]) == tuple(syn.image_shape):
            raise
        raise AssertionError(
            f"losses() failed ({error}), and a set in the codec {codec} holds images of shape "
            f"{tuple(stored.shape[1:])} where decoded ones have {tuple(syn.image_shape)}: {do}"
        ) from error


def one_step(
    objective: Objective,
    syn: SyntheticSet,
    learned: Iterable[str],
    *,
    seed: int = 0,
    backward: bool = True,
) -> tuple[list[float], Mapping[str, Tensor | None]]:
    """The losses of step 0, and the gradients of all stored tensors; those `learned` want one.

    Without `backward` there are no gradients, which take longer than the losses.
    """
    leaves = {name: tensor.clone() for name, tensor in syn.tensors.items()}
    for name in set(learned) & leaves.keys():
        leaves[name].requires_grad_()
    state = objective.init(generator(seed, "objective"))
    losses: list[float] = []
    with told(syn):
        for loss in objective.losses(syn.with_tensors(leaves), state, 0, generator(seed, "losses")):
            _check_loss(loss)
            if backward:
                loss.backward()
            losses.append(float(loss.detach()))
    assert losses, "losses() yielded nothing in the first step: yield at least one scalar loss."
    gradients: Json = {name: leaf.grad for name, leaf in leaves.items()}
    return losses, gradients
