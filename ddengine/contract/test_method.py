"""What every method must hold. Each test runs for the recipe of every method."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from ddengine import loop
from ddengine.artefact import folder
from ddengine.contract import worlds
from ddengine.contract.worlds import IPC, World
from ddengine.data import DATASETS
from ddengine.objective import Objective
from ddengine.recipe import InitConfig, OptimConfig, Recipe, digest, resolved, to_dict
from ddengine.sets.codec import CODECS
from ddengine.sets.synthetic import SyntheticSet
from synth.cite import bibtex


def test_losses_follow_from_their_stream(minimising: Recipe, world: World) -> None:
    """The same stream gives the same losses, another one others.

    Torch's own generator is left alone.
    """
    recipe = worlds.shrunk(minimising)
    objective, syn = worlds.start(recipe, world)
    before = torch.get_rng_state()
    losses, gradients = worlds.one_step(objective, syn, recipe.outer.optim)
    assert torch.equal(torch.get_rng_state(), before)
    again, gradients_again = worlds.one_step(objective, syn, recipe.outer.optim)
    assert losses and losses == again
    for name in recipe.outer.optim:
        first, second = gradients[name], gradients_again[name]
        assert first is not None and second is not None and torch.equal(first, second)
    others, _ = worlds.one_step(objective, syn, recipe.outer.optim, seed=1)
    assert others != losses


def test_gradients_lie_where_the_optimiser_wants_them(minimising: Recipe, world: World) -> None:
    """They are finite and not zero in every tensor that the recipe learns, and nowhere else."""
    recipe = worlds.shrunk(minimising)
    objective, syn = worlds.start(recipe, world)
    _, gradients = worlds.one_step(objective, syn, recipe.outer.optim)
    assert set(recipe.outer.optim) <= gradients.keys()
    for name, gradient in gradients.items():
        if name not in recipe.outer.optim:
            assert gradient is None, f"{name} is not learned, and has a gradient"
            continue
        assert gradient is not None and gradient.isfinite().all(), f"the gradient of {name}"
        assert gradient.abs().sum() > 0, f"the gradient of {name} is zero"


def test_the_loss_falls(minimising: Recipe, world: World, tmp_path: Path) -> None:
    """Thirty steps lower the mean loss of fixed draws."""
    recipe = worlds.shrunk(minimising)
    outer = replace(recipe.outer, steps=30, checkpoint_every=30)
    objective, syn = worlds.start(recipe, world)
    result, counters = loop.distill(syn, objective, outer, tmp_path, seed=0)

    def level(reached: SyntheticSet) -> float:
        total = 0.0
        for seed in range(100, 112):
            total += sum(worlds.one_step(objective, reached, outer.optim, seed=seed)[0])
        return total

    assert counters.not_finite == 0
    assert level(result) < 0.99 * level(syn)


class StopsAt:
    """An objective that is interrupted in a step, as by Ctrl-C."""

    def __init__(self, objective: Objective, step: int):
        self.objective, self.step = objective, step

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """That of the objective."""
        return self.objective.init(rng)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """Those of the objective before the step."""
        if step == self.step:
            raise KeyboardInterrupt
        return self.objective.losses(syn, state, step, rng)


def test_resuming_changes_nothing(minimising: Recipe, world: World, tmp_path: Path) -> None:
    """A run that stopped in step 5 and went on ends at the same numbers, to the bit."""
    recipe = worlds.shrunk(minimising)
    outer = replace(recipe.outer, checkpoint_every=3)
    objective, syn = worlds.start(recipe, world)
    uninterrupted, _ = loop.distill(syn, objective, outer, tmp_path / "one", seed=0)
    with pytest.raises(KeyboardInterrupt):
        loop.distill(syn, StopsAt(objective, 5), outer, tmp_path / "two", seed=0)
    resumed, _ = loop.distill(syn, objective, outer, tmp_path / "two", seed=0)
    assert resumed.tensors.keys() == uninterrupted.tensors.keys()
    for name, tensor in uninterrupted.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


def with_codec(recipe: Recipe, codec_name: str) -> Recipe:
    """A shrunk recipe in another codec, started from real images, labelled by all experts."""
    targets = replace(recipe.targets, experts="all")  # none need be right
    codec = CODECS[codec_name]()
    return replace(worlds.shrunk(recipe), codec=codec, init=InitConfig(), targets=targets)


def test_every_codec_works(minimising: Recipe, codec_name: str, world: World) -> None:
    """Under every codec the loss is finite, and what the codec learns has gradients."""
    recipe = with_codec(minimising, codec_name)
    objective, syn = worlds.start(recipe, world)
    assert syn.images_per_class() <= IPC
    asked = set(recipe.outer.optim) & syn.tensors.keys()
    for names in syn.codec.parameters(syn.tensors).values():
        asked.update(names)
    losses, gradients = worlds.one_step(objective, syn, asked)
    assert torch.tensor(losses).isfinite().all()
    for name in asked:
        gradient = gradients[name]
        assert gradient is not None and gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


def test_every_codec_ships(method: Recipe, codec_name: str, world: World, tmp_path: Path) -> None:
    """What is shipped after one step, or without one, is read again to the bit, within budget."""
    recipe = with_codec(method, codec_name)
    objective, syn = worlds.start(recipe, world)
    optim: dict[str, OptimConfig] = {}
    if recipe.outer.steps:
        for name, config in recipe.outer.optim.items():
            if name in syn.tensors:
                optim[name] = config
        optim = optim or {"images": OptimConfig(lr=0.1)}
    outer = replace(recipe.outer, steps=min(1, recipe.outer.steps), optim=optim)
    result, _ = loop.distill(syn, objective, outer, tmp_path, seed=0, finish=SyntheticSet.shipped)
    folder.save(result, tmp_path / "set", {})
    again, meta = folder.load(tmp_path / "set", worlds.CPU)
    assert again.codec == result.codec and meta["images_per_class"] <= IPC
    assert again.tensors.keys() == result.tensors.keys()
    for name, tensor in result.tensors.items():
        assert again.tensors[name].dtype == tensor.dtype
        assert torch.equal(again.tensors[name], tensor), name
    index = torch.arange(len(result))
    images = result.batch(index).images
    assert len(again) == len(syn) and torch.equal(again.batch(index).images, images)
    assert torch.equal(result.shipped().batch(index).images, images), "shipping twice differs"


def test_recipes_are_complete(any_recipe: Recipe) -> None:
    """The window fits the experts, a missing figure has its reason, every work cited is known."""
    recipe = any_recipe
    assert recipe.data.name in DATASETS
    assert recipe.published is not None or "published" in recipe.note
    assert recipe.cites and bibtex(recipe)
    assert not recipe.teachers or recipe.buffer is not None
    if recipe.buffer is not None and not recipe.teachers:
        recipe.objective.check(recipe.buffer.kept_epochs())
    assert 1 <= recipe.codec.fit(recipe.ipc, (3, 32, 32), 1000)[1] <= recipe.ipc


def test_a_recipe_is_a_value(any_recipe: Recipe) -> None:
    """It can be printed as JSON, and its identity follows from its values alone."""
    assert to_dict(any_recipe)["name"] == any_recipe.name
    assert digest(resolved(any_recipe)) == digest(resolved(replace(any_recipe)))
