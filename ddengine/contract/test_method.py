"""What every method must hold. Each test runs for the recipe of every method."""

import itertools
import runpy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from ddengine import loop, turns
from ddengine.artefact import folder
from ddengine.contract import worlds
from ddengine.contract.worlds import IPC, World
from ddengine.data import DATASETS
from ddengine.objective import Objective
from ddengine.recipe import InitConfig, OptimConfig, Recipe, resolved
from ddengine.sets.codec import CODECS
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.configs import digest, to_dict
from synth.cite import bibtex


def assert_same(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], why: str) -> None:
    """Both hold the same tensors, to the bit and of the same types; `why` they would not."""
    missing = set(tensors) ^ set(others)
    assert not missing, f"Only one of both sets holds {sorted(missing)}: {why}"
    for name, tensor in tensors.items():
        other = others[name]
        assert other.dtype == tensor.dtype, (
            f"{name} is {tensor.dtype} in one set and {other.dtype} in the other: {why}"
        )
        assert torch.equal(other, tensor), f"{name} holds other numbers in both sets: {why}"


def assert_useful(gradient: Tensor | None, name: str, where: str = "") -> None:
    """A gradient is there, finite and not zero; `where`, such as "under the codec Pixels, "."""
    assert gradient is not None, (
        f"{where}The loss of the first step has no gradient in {name}, which is learned: take "
        "images from syn.batch(index) of the set that losses() is given, which decodes them, not "
        "from syn.tensors, and detach nothing on the way."
    )
    assert gradient.isfinite().all(), (
        f"{where}The gradient of {name} holds numbers that are not finite in the first step: look "
        "for a division by 0, a logarithm of 0, or a square root at 0, whose slope has no bound."
    )
    assert gradient.abs().sum() > 0, (
        f"{where}The gradient of {name} is zero everywhere: the loss of the first step does not "
        "depend on it, so it would never be learned; use it in the loss, or take it out of "
        "outer.optim of the recipe."
    )


def test_losses_follow_from_their_stream(minimising: Recipe, world: World) -> None:
    """The same stream gives the same losses, another one others.

    Torch's own generator is left alone.
    """
    recipe = worlds.shrunk(minimising)
    objective, syn = worlds.start(recipe, world)
    learned = syn.by_tensor(recipe.outer.optim)
    before = torch.get_rng_state()
    losses, gradients = worlds.one_step(objective, syn, learned)
    assert torch.equal(torch.get_rng_state(), before), (
        "A step drew numbers from torch's own generator, so runs could not be repeated: give every "
        "random function generator=rng, which losses() and init() are given (dropout has none; "
        "make its mask yourself)."
    )
    losses_again, gradients_again = worlds.one_step(objective, syn, learned)
    assert losses == losses_again, (
        f"Two calls of losses() with the same random stream gave {losses} and {losses_again}: draw "
        "everything from rng, and keep what changes between steps in the state that init() returns."
    )
    assert_same_gradients(gradients, gradients_again, learned)
    other_losses, _ = worlds.one_step(objective, syn, learned, seed=1)
    assert other_losses != losses, (
        "Another random stream gave the same losses, so nothing is drawn from rng: draw the real "
        "images of a step from it, such as env.real.draw_each(number, rng)."
    )


def assert_same_gradients(
    gradients: Mapping[str, Tensor | None],
    gradients_again: Mapping[str, Tensor | None],
    learned: Iterable[str],
) -> None:
    """Two calls with the same random stream gave the same gradients of what is learned."""
    for name in learned:
        gradient, again = gradients.get(name), gradients_again.get(name)
        assert_useful(gradient, name)
        assert_useful(again, name)
        assert gradient is not None
        assert again is not None
        assert torch.equal(gradient, again), (
            f"Two calls of losses() with the same random stream gave other gradients of {name}: "
            "something in the backward pass is random, or was kept from the first call."
        )


def test_gradients_lie_where_the_optimiser_wants_them(minimising: Recipe, world: World) -> None:
    """They are finite and not zero in every tensor that the recipe learns, and nowhere else."""
    recipe = worlds.shrunk(minimising)
    objective, syn = worlds.start(recipe, world)
    learned = syn.by_tensor(recipe.outer.optim)
    _, gradients = worlds.one_step(objective, syn, learned)
    unknown = sorted(set(learned) - gradients.keys())
    assert not unknown, (
        f"outer.optim of the recipe learns {', '.join(unknown)}, and the set holds "
        f"{', '.join(gradients)}: correct the name, or return its start in initial() of the "
        "objective's configuration."
    )
    for name, gradient in gradients.items():
        if name in learned:
            assert_useful(gradient, name)
            continue
        assert gradient is None, (
            f"The objective asks for a gradient of {name}, which outer.optim of the recipe does "
            "not learn: leave requires_grad to the loop, or name it there."
        )


def test_the_loss_falls(minimising: Recipe, world: World, tmp_path: Path) -> None:
    """Thirty steps lower the mean loss of fixed draws."""
    recipe = worlds.shrunk(minimising)
    outer = replace(recipe.outer, steps=30, checkpoint_every=30)
    objective, syn = worlds.start(recipe, world)

    def loss_of_draws(reached: SyntheticSet) -> float:
        total = 0.0
        for seed in range(100, 112):
            losses, _ = worlds.one_step(objective, reached, outer.optim, seed=seed, backward=False)
            total += sum(losses)
        return total

    before = loss_of_draws(syn)
    result, counters = loop.distill(syn, objective, outer, tmp_path, seed=0)
    assert counters.not_finite == 0, (
        f"In {counters.not_finite} of 30 steps the loss or a gradient was not finite: look for "
        "divisions and roots at 0, or lower the rates in outer.optim of the recipe."
    )
    after = loss_of_draws(result)
    assert after < 0.99 * before, (
        f"Thirty steps did not lower the loss, which was {before:.5g} and is {after:.5g} on the "
        "same draws: its gradient is that of something else (look for what was detached), the "
        "rates in outer.optim of the recipe are far off, or small() of the objective leaves too "
        "little to learn from."
    )


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
    worlds.one_step(objective, syn, outer.optim)  # says what is wrong with a single step
    uninterrupted, _ = loop.distill(syn, objective, outer, tmp_path / "one", seed=0)
    interrupted = StopsAt(objective, 5)
    with pytest.raises(KeyboardInterrupt):
        loop.distill(syn, interrupted, outer, tmp_path / "two", seed=0)
    kept = partial(turns.kept, recipe.objective)
    resumed, _ = loop.distill(syn, objective, outer, tmp_path / "two", seed=0, kept=kept)
    why = (
        "a run that stopped in step 5 and went on did not end where one ends that was not stopped. "
        "Keep what changes between steps in the state that init() returns, as tensors, because "
        "nothing else is in a checkpoint, and draw everything from rng."
    )
    assert_same(uninterrupted.tensors, resumed.tensors, why)


def with_codec(recipe: Recipe, codec_name: str) -> Recipe:
    """A shrunk recipe in another codec, started from real images, labelled by all experts."""
    targets = replace(recipe.targets, experts="all")  # none need be right
    codec = CODECS[codec_name]().small()
    return replace(worlds.shrunk(recipe), codec=codec, init=InitConfig(), targets=targets)


def test_every_codec_works(minimising: Recipe, codec_name: str, world: World) -> None:
    """Under every codec the loss is finite, and what the codec learns has gradients."""
    recipe = with_codec(minimising, codec_name)
    objective, syn = worlds.start(recipe, world)
    assert_within_budget(syn.images_per_class(), codec_name)
    learned = set(recipe.outer.optim) & syn.tensors.keys()
    for names in syn.codec.parameters(syn.tensors).values():
        learned.update(names)
    losses, gradients = worlds.one_step(objective, syn, learned)
    where = f"Under the codec {codec_name}: "
    assert torch.tensor(losses).isfinite().all(), (
        f"{where}The losses of the first step are {losses}, which are not all finite: look for "
        "divisions by 0 and roots at 0."
    )
    for name in learned:
        assert_useful(gradients[name], name, where)


def test_every_codec_resumes(
    minimising: Recipe, codec_name: str, world: World, tmp_path: Path
) -> None:
    """Two steps under every codec, the second after an interruption, end at the same bits."""
    recipe = with_codec(minimising, codec_name)
    objective, syn = worlds.start(recipe, world)
    optim = optimisers(recipe, syn)
    outer = replace(recipe.outer, steps=2, optim=optim, ema={}, checkpoint_every=1)
    with worlds.told(syn):
        uninterrupted, _ = loop.distill(syn, objective, outer, tmp_path / "one", seed=0)
    _, again = worlds.start(recipe, world)
    assert_same(syn.tensors, again.tensors, "packing the same images twice gave two starts.")
    learned = itertools.chain(*syn.codec.parameters(syn.tensors).values())
    assert any(not torch.equal(uninterrupted.tensors[n], syn.tensors[n]) for n in learned), (
        f"Two steps change nothing that the codec {codec_name} learns: let losses be of the images "
        "that syn.batch() gives."
    )
    with pytest.raises(KeyboardInterrupt):
        loop.distill(syn, StopsAt(objective, 1), outer, tmp_path / "two", seed=0)
    resumed, _ = loop.distill(again, objective, outer, tmp_path / "two", seed=0)
    why = "a run that stopped after a step and went on did not end where one ends that did not."
    assert_same(uninterrupted.tensors, resumed.tensors, why)


def assert_within_budget(images_per_class: float, codec_name: str) -> None:
    """A set of a codec stores no more than it may."""
    assert images_per_class <= IPC, (
        f"A set in the codec {codec_name} holds {images_per_class:.4g} images per class where ipc "
        f"is {IPC}: fit() of the codec must return a codec and a number of items that stay within."
    )


def optimisers(recipe: Recipe, syn: SyntheticSet) -> dict[str, OptimConfig]:
    """The optimisers of all that the codec of a set learns, and of what else the recipe learns."""
    if not recipe.outer.steps:
        return {}
    learned = itertools.chain(*syn.codec.parameters(syn.tensors).values())
    optim = dict.fromkeys(learned, OptimConfig(lr=0.1))
    for name, config in recipe.outer.optim.items():
        if name in syn.tensors:
            optim[name] = config
    return optim


def test_every_codec_ships(method: Recipe, codec_name: str, world: World, tmp_path: Path) -> None:
    """What is shipped after one step, or without one, is read again to the bit, within budget."""
    recipe = with_codec(method, codec_name)
    objective, syn = worlds.start(recipe, world)
    steps = min(1, recipe.outer.steps)
    ema = {name: decay for name, decay in recipe.outer.ema.items() if name in syn.tensors}
    outer = replace(recipe.outer, steps=steps, optim=optimisers(recipe, syn), ema=ema)
    result, _ = loop.distill(syn, objective, outer, tmp_path, seed=0, finish=SyntheticSet.shipped)
    folder.save(result, tmp_path / "set", {})
    again, meta = folder.load(tmp_path / "set", worlds.CPU)
    assert_within_budget(meta["images_per_class"], codec_name)
    assert again.codec == result.codec, (
        f"A set in {result.codec} was written, and one in {again.codec} was read: make every "
        "option of the codec a field of its dataclass."
    )
    assert_same(result.tensors, again.tensors, "a set was written, and another one read.")
    num = len(syn)
    assert len(again) == num, (
        f"The set decodes to {num} examples before it is shipped and to {len(again)} after: ship() "
        f"of the codec {codec_name} must keep them."
    )
    images = result.batch(torch.arange(num)).images
    assert torch.equal(again.batch(torch.arange(num)).images, images), (
        f"A set in the codec {codec_name} that was written and read decodes to other images: "
        "decode() must depend on the stored tensors and the fields of the codec alone."
    )
    without = runpy.run_path(str(tmp_path / "set" / "load.py"))["load"]()[0]
    assert torch.equal(without, images), (
        f"load.py of a set in the codec {codec_name} gives other images than the engine: the "
        "function that loader() returns must compute what decode() does, to the bit."
    )
    shipped_again = result.shipped().batch(torch.arange(num)).images
    assert torch.equal(shipped_again, images), (
        f"A set in the codec {codec_name} that is shipped twice decodes to other images: ship() of "
        "the codec that it returns must change nothing."
    )


def test_recipes_are_complete(any_recipe: Recipe) -> None:
    """The window fits the experts, a missing figure has its reason, every work cited is known."""
    recipe = any_recipe
    assert recipe.data.name in DATASETS, (
        f"data.name of the recipe is {recipe.data.name!r}, which the program cannot read: name one "
        f"of {', '.join(DATASETS)}."
    )
    assert recipe.published is not None or "published" in recipe.note, (
        "The recipe has no published figure and does not say why: set published=Published(...), "
        'or say in note that nothing is published for it ("... nothing is published ...").'
    )
    assert recipe.cites, (
        "The recipe cites nothing: name the keys of the works that it follows in cites, and put "
        "their entries into BIBTEX of its module."
    )
    assert bibtex(recipe), "Of the works that the recipe cites there is no BibTeX."
    if recipe.teachers:
        assert recipe.buffer is not None, (
            "The recipe names teachers and has no buffer, which says how they are trained."
        )
    elif recipe.buffer is not None:
        recipe.objective.check(recipe.buffer.kept_epochs())
    shape = (3, *(recipe.data.size or (32, 32)))
    _, items = recipe.codec.fit(recipe.ipc, shape, 1000)
    # coarser images may be more than `ipc`, within its bytes: the contract of codecs counts them
    assert items >= 1 and (items <= recipe.ipc or recipe.codec.approximates), (
        f"fit() of the recipe's codec makes {items} items per class where ipc is {recipe.ipc}: "
        "at least 1, and no more than the budget holds."
    )


def test_a_recipe_is_a_value(any_recipe: Recipe) -> None:
    """It can be printed as JSON, and its identity follows from its values alone."""
    assert to_dict(any_recipe)["name"] == any_recipe.name
    assert digest(resolved(any_recipe)) == digest(resolved(replace(any_recipe))), (
        "A copy of the recipe has another identity: make every option of the objective and the "
        "codec a field of a frozen dataclass, with values that JSON can hold."
    )
