"""What every objective, codec and recipe must hold, found by walking the recipes: a new one is
covered by being there.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import CPU, MODEL, tiny_data, tiny_store
from loops import for_each

from buffers.steps import Sgd
from buffers.store import StoreGroup
from ddengine import loop as outer
from ddengine.artefact import folder as folders
from ddengine.artefact.folder import load
from ddengine.data import DATASETS, Preprocess
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import InitConfig, OptimConfig, Recipe, to_dict
from ddengine.sets.codec import CODECS, Codec
from ddengine.sets.labels import label
from ddengine.sets.synthetic import initial
from ddengine.system.rng import generator
from synth.datm import GrowingWindow
from synth.recipes import RECIPES
from synth.trajectory import UniformWindow

METHODS: dict[str, Recipe] = {}
for _recipe in RECIPES.values():
    # the first recipe of each method: a small one, with all of its parts
    METHODS.setdefault(_recipe.name.split("/")[0], _recipe)
# the others choose images, and have no losses
MINIMISING = [name for name, recipe in METHODS.items() if recipe.outer.steps]
TEACHERS = ("convnet-d1-w4-bn", "convnet-d1-w8-bn")
IPC = 2
PLAIN = Preprocess(mean=torch.full((3,), 0.5), std=torch.tensor([0.25, 0.3, 0.2]))


def shrunk(recipe: Recipe, **objective) -> Recipe:
    """The recipe at two images per class, eight steps, for trajectories short segments, else small
    batches; the method's own settings stay.
    """
    if hasattr(recipe.objective, "window"):
        window = (
            UniformWindow(high=2)
            if isinstance(recipe.objective.window, UniformWindow)
            else GrowingWindow(first=1, high=2, grow=4)
        )
        objective = {"inner_steps": 4, "expert_epochs": 2, "window": window, "batch": 8} | objective
        objective = {"lr": 0.3 * (1 - recipe.objective.momentum)} | objective  # that of the experts
    if hasattr(recipe.objective, "real_batch"):
        objective = {"real_batch": 8} | objective
    optim = {k: replace(v, lr=min(v.lr, 20.0)) for k, v in recipe.outer.optim.items()}
    recipe = replace(recipe, teachers=TEACHERS if recipe.teachers else ())
    return replace(
        recipe,
        model=MODEL,
        ipc=IPC,
        objective=replace(recipe.objective, **objective),
        outer=replace(recipe.outer, steps=min(8, recipe.outer.steps), optim=optim),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Digits, a store of two short experts, and two teachers of different kinds, each with a store
    of its own.
    """
    data, fields = tiny_data(), {"epochs": 4, "step": Sgd(lr=0.3), "batch": 16}
    stores = [
        tiny_store(
            tmp_path_factory.mktemp(name), data, model=name, num_experts=1, keep="last", **fields
        )
        for name in TEACHERS
    ]
    return data, tiny_store(tmp_path_factory.mktemp("store"), data, **fields), StoreGroup(stores)


def build(recipe: Recipe, world):
    """(objective, synthetic set) of a shrunk recipe."""
    data, store, teachers = world

    def new_model(rng):
        return build_model(recipe.model, data.image_shape, data.num_classes, rng)

    experts = (teachers if recipe.teachers else store) if recipe.buffer else None
    env = Env(data.train, new_model, FlatModel(new_model(generator(0))), experts, CPU)
    syn = initial(recipe, data, generator(0, "init"), env.experts)
    return recipe.objective.build(env), label(
        syn, env.experts, recipe.targets
    ) if recipe.targets.kind == "logits" else syn


def one_step(objective, syn, recipe, seed=0, also=()):
    """(losses, gradients by tensor) of step 0, of the tensors that the recipe learns and `also`
    others.
    """
    leaves = {k: v.clone() for k, v in syn.tensors.items()}
    for name in {*recipe.outer.optim, *also} & leaves.keys():
        leaves[name].requires_grad_()
    state = objective.init(generator(seed, "objective"))
    losses = []
    for loss in objective.losses(syn.with_tensors(leaves), state, 0, generator(seed, "losses")):
        assert loss.shape == ()
        loss.backward()
        losses.append(float(loss.detach()))
    return losses, {k: v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("method", MINIMISING)
def test_objective_contract(method, world):
    """Same stream, same losses; another stream, others; global generator untouched; finite
    gradients exactly where the optimiser wants them.
    """
    recipe = shrunk(METHODS[method])
    objective, syn = build(recipe, world)
    before = torch.get_rng_state()
    losses, grads = one_step(objective, syn, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    again, grads_again = one_step(objective, syn, recipe)
    assert losses == again and len(losses) >= 1
    assert one_step(objective, syn, recipe, seed=1)[0] != losses
    assert recipe.outer.optim.keys() <= grads.keys()
    for name, grad in grads.items():
        if name in recipe.outer.optim:
            assert grad is not None and grad.isfinite().all() and grad.abs().sum() > 0
            assert torch.equal(grad, grads_again[name])
        else:
            assert grad is None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", MINIMISING)
def test_every_codec_works_under_every_objective(method, codec, world):
    """A finite loss, and gradients in every stored image and in what else the recipe learns;
    compensators take their share of the budget.
    """
    recipe = shrunk(METHODS[method])
    # no expert need be right
    recipe = replace(
        recipe,
        codec=CODECS[codec](),
        init=InitConfig(),
        targets=replace(recipe.targets, experts="all"),
    )
    objective, syn = build(recipe, world)
    losses, grads = one_step(objective, syn, recipe, also=("images", "compensators"))
    assert torch.tensor(losses).isfinite().all()
    compensators = len(syn.tensors.get("compensators", ()))
    assert compensators == 4 * (codec == "Compensated")
    assert (
        syn.tensors["images"].shape == (10 if compensators else 20, 1, 8, 8)
        and syn.images_per_class() <= IPC
    )
    learned = {
        "images",
        *(["compensators"] if compensators else []),
        *recipe.outer.optim,
    } & grads.keys()
    assert recipe.outer.optim.keys() - learned <= {"compensators"}  # which only one codec has
    for name in learned:
        grad = grads[name]
        assert grad is not None and grad.isfinite().all()
        moved = grad.reshape(len(grad) if grad.dim() else 1, -1).abs().sum(1) > 0
        assert moved.all() if getattr(recipe.objective, "batch", None) is None else moved.any(), (
            name
        )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", METHODS)
def test_every_codec_ships_under_every_method(method, codec, world, tmp_path):
    """What is shipped after one step, of a set that is only chosen without one, is read again to
    the bit, and its budget holds.
    """
    recipe = shrunk(METHODS[method])
    recipe = replace(
        recipe,
        codec=CODECS[codec](),
        init=InitConfig(),
        targets=replace(recipe.targets, experts="all"),
    )
    objective, syn = build(recipe, world)
    known = {k: v for k, v in recipe.outer.optim.items() if k in syn.tensors} or dict.fromkeys(
        ["images"], OptimConfig(lr=0.1)
    )
    config = replace(
        recipe.outer, steps=min(1, recipe.outer.steps), optim=known if recipe.outer.steps else {}
    )
    result, _ = outer.distill(
        syn, objective, config, tmp_path, seed=0, finish=lambda s: s.shipped()
    )
    folders.save(result, tmp_path / "set", {})
    again, meta = load(tmp_path / "set", CPU)
    assert (
        again.codec == result.codec
        and again.tensors.keys() == result.tensors.keys()
        and meta["images_per_class"] <= IPC
    )
    assert all(
        torch.equal(again.tensors[k], v) and again.tensors[k].dtype == v.dtype
        for k, v in result.tensors.items()
    )
    index = torch.arange(len(result))
    assert len(again) == len(syn) and torch.equal(
        again.batch(index).images, result.batch(index).images
    )
    # again the same
    assert torch.equal(result.shipped().batch(index).images, result.batch(index).images)


@pytest.mark.parametrize("method", MINIMISING)
def test_objective_falls(method, world, tmp_path):
    """Thirty steps lower the loss of fixed segments."""
    recipe = shrunk(METHODS[method])
    recipe = replace(recipe, outer=replace(recipe.outer, steps=30, checkpoint_every=30))
    objective, syn = build(recipe, world)
    result, counters = outer.distill(syn, objective, recipe.outer, tmp_path, seed=0)

    def level(s):
        return sum(sum(one_step(objective, s, recipe, seed)[0]) for seed in range(100, 112))

    assert counters.not_finite == 0
    assert level(result) < 0.99 * level(syn)


@pytest.mark.parametrize("method", MINIMISING)
def test_resume_is_bit_identical_for_every_method(method, world, tmp_path):
    """Stopping at step 5 of 8 changes nothing."""
    recipe = shrunk(METHODS[method])
    config = replace(recipe.outer, checkpoint_every=3)
    objective, syn = build(recipe, world)
    whole, _ = outer.distill(syn, objective, config, tmp_path / "whole", seed=0)

    class Stop:
        init = staticmethod(objective.init)

        @staticmethod
        def losses(s, state, step, rng):
            if step == 5:
                raise KeyboardInterrupt
            return objective.losses(s, state, step, rng)

    with pytest.raises(KeyboardInterrupt):
        outer.distill(syn, Stop(), config, tmp_path / "broken", seed=0)
    again, _ = outer.distill(syn, objective, config, tmp_path / "broken", seed=0)
    assert all(torch.equal(whole.tensors[k], again.tensors[k]) for k in whole.tensors)


def test_backprop_policies_agree_on_the_objective(world):
    """The whole objective with augmentation and batches, exact either way."""
    recipe = shrunk(METHODS["mtt"], backprop="replay")
    reference = shrunk(METHODS["mtt"], backprop="full")
    (losses, grads), (wanted, exact) = (one_step(*build(r, world), r) for r in (recipe, reference))
    assert losses == pytest.approx(wanted, rel=1e-4)
    for name in recipe.outer.optim:
        assert (grads[name] - exact[name]).norm() <= 1e-2 * exact[name].norm()


@pytest.mark.parametrize("name", CODECS)
def test_codec_contract(name):
    """Packing and decoding fit; decoding a part equals the part of decoding all; gradients reach
    the images; the shipped source does the same.
    """
    unfitted: Codec = CODECS[name]()
    codec, items = unfitted.fit(6, (3, 8, 8), 2)  # of two classes
    stored = 2 * items
    packed = codec.pack(torch.rand(stored * codec.per_item, 3, 8, 8), 2, PLAIN)
    others = packed.get("compensators", torch.zeros(0, 3, 8, 8))
    assert (
        packed["images"].shape == (stored, 3, 8, 8)
        and 2 <= stored + len(others) <= 12
        and (items == 6 or len(others))
    )
    assert len(codec.source(packed)) == (stored + 2 * len(others)) * codec.per_item
    tensors = packed | {
        "images": torch.rand(stored, 3, 8, 8),
        "compensators": torch.randn(others.shape),
    }
    tensors = {k: v.requires_grad_() for k, v in tensors.items() if k in packed}
    source = codec.source(tensors)
    everything = codec.decode(tensors, torch.arange(len(source)))
    index = torch.tensor([len(source) - 1, 0])
    assert torch.allclose(codec.decode(tensors, index), everything[index])
    assert source.dtype == torch.int64 and source.unique().tolist() == list(range(stored))
    natural = codec.natural(tensors)
    assert natural == (stored if len(others) else 0) and torch.equal(
        source[:natural], torch.arange(natural)
    )
    assert torch.allclose(everything[:natural], tensors["images"][:natural])
    everything.sum().backward()
    for learned in {"images", "compensators"} & tensors.keys():
        grad = tensors[learned].grad
        assert grad is not None and (grad != 0).any()
    images, item = codec.loader()(tensors, to_dict(codec))
    assert torch.allclose(images, everything, atol=1e-6) and torch.equal(item, source)
    with torch.no_grad():
        codec.project(tensors, PLAIN)
        reader, shipped = codec.ship(tensors, PLAIN)
        images, item = reader.decode(shipped, torch.arange(len(source))), reader.source(shipped)
        loaded, item_loaded = reader.loader()(shipped, to_dict(reader))
    assert (
        torch.allclose(images, loaded, atol=1e-6)
        and torch.equal(item, item_loaded)
        and torch.equal(item, source)
    )
    again, once_more = reader.ship(shipped, PLAIN)
    assert again == reader and all(
        torch.equal(once_more[k], v) and once_more[k].dtype == v.dtype for k, v in shipped.items()
    )


@for_each("name", RECIPES)
def test_recipes_are_complete(name):
    """The window fits the experts, a missing figure has its reason; paper cells train on all images
    and do not select.

    Their values stand beside the published tables in the unit tests of the recipes.
    """
    recipe = RECIPES[name]
    if recipe.buffer is not None and not recipe.teachers:
        recipe.objective.check(recipe.buffer.kept_epochs())
    assert recipe.published is not None or "published" in recipe.note
    assert recipe.cites and recipe.data.name in DATASETS
    assert not recipe.teachers or recipe.buffer is not None
    if name.endswith("_small") or ("-w128" not in recipe.model and not recipe.teachers):
        return
    assert recipe.data.validation == 0 and recipe.outer.evaluate_every == 0
    assert recipe.data.limit is None or (recipe.teachers and recipe.data.name == "imagenet")
    assert all(0 < v.momentum < 1 for v in recipe.outer.optim.values())
    items = recipe.codec.fit(recipe.ipc, (3, 32, 32), 1000)[1]
    assert 1 <= items <= recipe.ipc
    if recipe.buffer is None:
        syn: Any = SimpleNamespace(images_per_class=lambda: recipe.ipc)
        networks, begun = recipe.objective.networks.round(syn, recipe.outer.steps)
        assert networks >= 1000 and begun == 0  # the last one is finished
