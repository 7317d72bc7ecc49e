"""What a method must hold where its images are made for several networks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddengine import loop
from ddengine.contract import worlds
from ddengine.contract.test_method import StopsAt
from ddengine.contract.worlds import NETWORK, World
from ddengine.objective import Objective
from ddengine.recipe import Recipe, for_networks, resolved
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

SECOND = "convnet-d2-w4-in"  # of other parameters than NETWORK


def made_for(recipe: Recipe, networks: tuple[str, ...]) -> Recipe:
    """The shrunk recipe for these networks; methods that are of one network are skipped."""
    shrunk = worlds.shrunk(recipe)
    if not shrunk.objective.draws_networks:
        pytest.skip("the method draws no networks")
    return for_networks(shrunk, networks)


def first_losses(objective: Objective, syn: SyntheticSet, step: int) -> list[float]:
    """The losses of one step, of a stream that is the same for all objectives."""
    state = objective.init(generator(0, "objective"))
    images = objective.losses(syn, state, step, generator(0, "losses"))
    return [float(loss.detach()) for loss in images]


def test_what_follows_one_network_says_so(method: Recipe, world: World) -> None:
    """A method that neither draws networks nor has teachers refuses several, in a sentence."""
    recipe = worlds.shrunk(method)
    if recipe.objective.draws_networks or recipe.teachers:
        pytest.skip("the method takes several networks")
    with pytest.raises(UserError, match="at once") as error:
        for_networks(recipe, (NETWORK, SECOND))
    assert str(error.value).count("\n") == 0


def test_one_network_is_the_recipe_as_it_was(method: Recipe) -> None:
    """Naming the recipe's own network changes nothing that decides a result."""
    recipe = worlds.shrunk(method)
    names = recipe.teachers[:1] or (recipe.model,)
    recipe = replace(recipe, model=names[0], teachers=names if recipe.teachers else ())
    assert resolved(for_networks(recipe, names)) == resolved(recipe)


def test_networks_take_turns(minimising: Recipe, world: World) -> None:
    """Each step is that of one network alone, and every network has steps."""
    recipe = made_for(minimising, (NETWORK, SECOND))
    objective, syn = worlds.start(recipe, world)
    alone = []
    for name in (NETWORK, SECOND):
        one, _ = worlds.start(for_networks(worlds.shrunk(minimising), (name,)), world)
        alone.append(one)
    begun = set()
    for step in range(1000):
        number = recipe.objective.network_at(syn, step)
        if number in begun:
            continue  # the network is one of a step before
        begun.add(number)
        losses = first_losses(objective, syn, step)
        assert losses == first_losses(alone[number % 2], syn, step), (
            f"the losses of step {step} are not those of network {number % 2}"
        )
        assert losses != first_losses(alone[1 - number % 2], syn, step)
        if len(begun) == 4:
            break
    assert len(begun) == 4, "the second network has no turn within 1000 steps"


def test_resuming_several_networks_changes_nothing(
    minimising: Recipe, world: World, tmp_path: Path
) -> None:
    """A run that stopped within the turn of the second network ends at the same numbers."""
    recipe = made_for(minimising, (NETWORK, SECOND))
    outer = replace(recipe.outer, checkpoint_every=1)
    objective, syn = worlds.start(recipe, world)
    uninterrupted, counters = loop.distill(syn, objective, outer, tmp_path / "one", seed=0)
    assert counters.not_finite == 0
    for stop in (3, 4):  # turns are of one or two steps here
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            loop.distill(syn, StopsAt(objective, stop), outer, folder, seed=0)
        resumed, _ = loop.distill(syn, objective, outer, folder, seed=0)
        for name, tensor in uninterrupted.tensors.items():
            assert torch.equal(tensor, resumed.tensors[name]), f"{name} differs after step {stop}"


def test_all_teachers_see_every_image(minimising: Recipe, world: World) -> None:
    """Of teachers that are named for a set of one image a class each has its steps."""
    recipe = replace(worlds.shrunk(minimising), ipc=1)
    if not recipe.teachers:
        pytest.skip("the method has no teachers")
    several = for_networks(recipe, worlds.TEACHERS)
    if several.objective == recipe.objective:
        pytest.skip("an example of the method belongs to one teacher by design")
    objective, syn = worlds.start(several, world)
    assert first_losses(objective, syn, 0) != first_losses(objective, syn, 1), (
        "steps 0 and 1 are those of one teacher"
    )
    assert first_losses(objective, syn, 0) == first_losses(objective, syn, 2)
