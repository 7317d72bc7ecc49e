"""What every method must hold. Each test runs for the recipe of every method."""

from collections.abc import Iterator, Mapping
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


def assert_same(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Both hold the same tensors, to the bit and of the same types."""
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        other = others[name]
        assert other.dtype == tensor.dtype, name
        assert torch.equal(other, tensor), name


def assert_useful(gradient: Tensor | None, name: str) -> None:
    """A gradient is there, finite and not zero."""
    assert gradient is not None, f"{name} has no gradient"
    assert gradient.isfinite().all(), f"the gradient of {name}"
    assert gradient.abs().sum() > 0, f"the gradient of {name} is zero"


def test_losses_follow_from_their_stream(minimising: Recipe, world: World) -> None:
    """The same stream gives the same losses, another one others.

    Torch's own generator is left alone.
    """
    recipe = worlds.shrunk(minimising)
    learned = recipe.outer.optim
    objective, syn = worlds.start(recipe, world)
    before = torch.get_rng_state()
    losses, gradients = worlds.one_step(objective, syn, learned)
    assert torch.equal(torch.get_rng_state(), before)
    losses_again, gradients_again = worlds.one_step(objective, syn, learned)
    assert losses
    assert losses == losses_again
    for name in learned:
        gradient = gradients[name]
        again = gradients_again[name]
        assert gradient is not None, name
        assert again is not None, name
        assert torch.equal(gradient, again), name
    other_losses, _ = worlds.one_step(objective, syn, learned, seed=1)
    assert other_losses != losses


def test_gradients_lie_where_the_optimiser_wants_them(minimising: Recipe, world: World) -> None:
    """They are finite and not zero in every tensor that the recipe learns, and nowhere else."""
    recipe = worlds.shrunk(minimising)
    learned = recipe.outer.optim
    objective, syn = worlds.start(recipe, world)
    _, gradients = worlds.one_step(objective, syn, learned)
    assert set(learned) <= gradients.keys()
    for name, gradient in gradients.items():
        if name in learned:
            assert_useful(gradient, name)
        else:
            assert gradient is None, f"{name} is not learned, and has a gradient"


def test_the_loss_falls(minimising: Recipe, world: World, tmp_path: Path) -> None:
    """Thirty steps lower the mean loss of fixed draws."""
    recipe = worlds.shrunk(minimising)
    outer = replace(recipe.outer, steps=30, checkpoint_every=30)
    objective, syn = worlds.start(recipe, world)
    result, counters = loop.distill(syn, objective, outer, tmp_path, seed=0)

    def loss_of_draws(reached: SyntheticSet) -> float:
        total = 0.0
        for seed in range(100, 112):
            losses, _ = worlds.one_step(objective, reached, outer.optim, seed=seed)
            total += sum(losses)
        return total

    assert counters.not_finite == 0
    assert loss_of_draws(result) < 0.99 * loss_of_draws(syn)


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
    interrupted = StopsAt(objective, 5)
    with pytest.raises(KeyboardInterrupt):
        loop.distill(syn, interrupted, outer, tmp_path / "two", seed=0)
    resumed, _ = loop.distill(syn, objective, outer, tmp_path / "two", seed=0)
    assert_same(uninterrupted.tensors, resumed.tensors)


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
    learned = set(recipe.outer.optim) & syn.tensors.keys()
    for names in syn.codec.parameters(syn.tensors).values():
        learned.update(names)
    losses, gradients = worlds.one_step(objective, syn, learned)
    assert torch.tensor(losses).isfinite().all()
    for name in learned:
        assert_useful(gradients[name], name)


def optimisers(recipe: Recipe, syn: SyntheticSet) -> dict[str, OptimConfig]:
    """The optimisers of the tensors that a set has; of its images where the recipe names none."""
    if not recipe.outer.steps:
        return {}
    optim = {}
    for name, config in recipe.outer.optim.items():
        if name in syn.tensors:
            optim[name] = config
    return optim or {"images": OptimConfig(lr=0.1)}


def test_every_codec_ships(method: Recipe, codec_name: str, world: World, tmp_path: Path) -> None:
    """What is shipped after one step, or without one, is read again to the bit, within budget."""
    recipe = with_codec(method, codec_name)
    objective, syn = worlds.start(recipe, world)
    steps = min(1, recipe.outer.steps)
    outer = replace(recipe.outer, steps=steps, optim=optimisers(recipe, syn))
    result, _ = loop.distill(syn, objective, outer, tmp_path, seed=0, finish=SyntheticSet.shipped)
    folder.save(result, tmp_path / "set", {})
    again, meta = folder.load(tmp_path / "set", worlds.CPU)
    assert meta["images_per_class"] <= IPC
    assert again.codec == result.codec
    assert_same(result.tensors, again.tensors)
    assert len(again) == len(syn)
    index = torch.arange(len(syn))
    images = result.batch(index).images
    assert torch.equal(again.batch(index).images, images)
    assert torch.equal(result.shipped().batch(index).images, images), "shipping twice differs"


def test_recipes_are_complete(any_recipe: Recipe) -> None:
    """The window fits the experts, a missing figure has its reason, every work cited is known."""
    recipe = any_recipe
    assert recipe.data.name in DATASETS
    assert recipe.published is not None or "published" in recipe.note
    assert recipe.cites
    assert bibtex(recipe)
    if recipe.teachers:
        assert recipe.buffer is not None
    elif recipe.buffer is not None:
        recipe.objective.check(recipe.buffer.kept_epochs())
    _, items = recipe.codec.fit(recipe.ipc, (3, 32, 32), 1000)
    assert 1 <= items <= recipe.ipc


def test_a_recipe_is_a_value(any_recipe: Recipe) -> None:
    """It can be printed as JSON, and its identity follows from its values alone."""
    assert to_dict(any_recipe)["name"] == any_recipe.name
    assert digest(resolved(any_recipe)) == digest(resolved(replace(any_recipe)))
