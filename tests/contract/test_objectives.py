"""What every objective, codec and recipe must hold, found by walking the recipes: a new one is covered by being there."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import CPU, MODEL, tiny_data, tiny_store

from buffers.steps import Sgd
from ddengine import distill as outer
from ddengine.codec import Codec
from ddengine.data import DATASETS
from ddengine.flat import FlatModel
from ddengine.labels import label
from ddengine.models import build_model
from ddengine.recipe import InitConfig, Recipe
from ddengine.rng import generator
from ddengine.synthetic import CODECS, initial
from ddengine.types import Env
from synth.datm import GrowingWindow
from synth.recipes import RECIPES
from synth.trajectory import UniformWindow

METHODS: dict[str, Recipe] = {}
for _recipe in RECIPES.values():
    METHODS.setdefault(_recipe.name.split("/")[0], _recipe)  # the first recipe of each method: a small one, with all of its parts


def shrunk(recipe: Recipe, **objective) -> Recipe:
    """The recipe at two images per class, eight steps, for trajectories short segments, else small batches; the method's own settings stay."""
    if hasattr(recipe.objective, "window"):
        window = UniformWindow(high=2) if isinstance(recipe.objective.window, UniformWindow) else GrowingWindow(first=1, high=2, grow=4)
        objective = {"inner_steps": 4, "expert_epochs": 2, "window": window, "batch": 8} | objective
        objective = {"lr": 0.3 * (1 - recipe.objective.momentum)} | objective  # that of the experts
    if hasattr(recipe.objective, "real_batch"):
        objective = {"real_batch": 8} | objective
    optim = {k: replace(v, lr=min(v.lr, 20.0)) for k, v in recipe.outer.optim.items()}
    return replace(recipe, model=MODEL, ipc=2, objective=replace(recipe.objective, **objective), outer=replace(recipe.outer, steps=8, optim=optim))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Digits and a store of two short experts."""
    data = tiny_data()
    return data, tiny_store(tmp_path_factory.mktemp("store"), data, epochs=4, step=Sgd(lr=0.3), batch=16)


def build(recipe: Recipe, world):
    """(objective, synthetic set) of a shrunk recipe."""
    data, store = world

    def new_model(rng):
        return build_model(recipe.model, data.image_shape, data.num_classes, rng)

    env = Env(data.train, new_model, FlatModel(new_model(generator(0))), store if recipe.buffer else None, CPU)
    syn = initial(recipe, data, generator(0, "init"), env.experts)
    return recipe.objective.build(env), label(syn, env.experts, recipe.targets) if recipe.targets.kind == "logits" else syn


def one_step(objective, syn, recipe, seed=0):
    """(losses, gradients by tensor) of step 0."""
    leaves = {k: v.clone().requires_grad_(k in recipe.outer.optim) for k, v in syn.tensors.items()}
    state = objective.init(generator(seed, "objective"))
    losses = []
    for loss in objective.losses(syn.with_tensors(leaves), state, 0, generator(seed, "losses")):
        assert loss.shape == ()
        loss.backward()
        losses.append(float(loss.detach()))
    return losses, {k: v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("method", METHODS)
def test_objective_contract(method, world):
    """Same stream, same losses; another stream, others; global generator untouched; finite gradients exactly where the optimiser wants them."""
    recipe = shrunk(METHODS[method])
    objective, syn = build(recipe, world)
    before = torch.get_rng_state()
    losses, grads = one_step(objective, syn, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    again, grads_again = one_step(objective, syn, recipe)
    assert losses == again and len(losses) >= 1
    assert one_step(objective, syn, recipe, seed=1)[0] != losses
    for name, grad in grads.items():
        if name in recipe.outer.optim:
            assert grad is not None and grad.isfinite().all() and grad.abs().sum() > 0
            assert torch.equal(grad, grads_again[name])
        else:
            assert grad is None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", METHODS)
def test_every_codec_works_under_every_objective(method, codec, world):
    """A finite loss, and gradients in every stored image."""
    recipe = shrunk(METHODS[method])
    recipe = replace(recipe, codec=CODECS[codec](), init=InitConfig(), targets=replace(recipe.targets, experts="all"))  # no expert need be right
    objective, syn = build(recipe, world)
    losses, grads = one_step(objective, syn, recipe)
    assert torch.tensor(losses).isfinite().all()
    moved = grads["images"].flatten(1).abs().sum(1) > 0
    assert syn.tensors["images"].shape == (20, 1, 8, 8) and (moved.all() if getattr(recipe.objective, "batch", None) is None else moved.any())


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
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
    assert losses == pytest.approx(wanted, rel=1e-5)
    for name in recipe.outer.optim:
        assert torch.allclose(grads[name], exact[name], rtol=1e-3, atol=1e-5 * float(exact[name].abs().max()))


@pytest.mark.parametrize("name", CODECS)
def test_codec_contract(name):
    """Packing and decoding fit; decoding a part equals the part of decoding all; gradients reach the images; the shipped source does the same."""
    codec: Codec = CODECS[name]()
    packed = codec.pack(torch.rand(6 * codec.per_item, 3, 8, 8))
    assert packed.shape == (6, 3, 8, 8) and len(codec.source({"images": packed})) == 6 * codec.per_item
    tensors = {"images": torch.rand(6, 3, 8, 8, requires_grad=True)}
    source = codec.source(tensors)
    everything = codec.decode(tensors, torch.arange(len(source)))
    index = torch.tensor([len(source) - 1, 0])
    assert torch.allclose(codec.decode(tensors, index), everything[index])
    assert source.dtype == torch.int64 and 0 <= int(source.min()) and int(source.max()) < 6
    everything.sum().backward()
    assert tensors["images"].grad is not None and (tensors["images"].grad != 0).any()
    space: dict = {}
    exec("import torch\n" + codec.loader(), space)
    images, item = space["decode"](tensors)
    assert torch.allclose(images, everything, atol=1e-6) and torch.equal(item, source)
    with torch.no_grad():
        codec.project(tensors)


# what all published cells of a method have in common: outer steps, epochs of the experts, protocol
COMMON = {"mtt": (5000, 50, "mtt"), "ftd": (5000, 50, "mtt"), "tesla": (10000, 50, "mtt"), "datm": (10000, 100, "datm"), "ast": (5000, 50, "ast")}
# those without experts: networks that the images meet, protocol
MATCHING = {
    "dc": (1000, "dc"), "dsa": (1000, "dsa"), "dcc": (1000, "dc"), "dsac": (1000, "dsa"), "dm": (20000, "dsa"),
    "idc": (2000, "idc"), "idc_i": (2000, "idc"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name):
    """The window fits the experts, a missing figure has its reason; paper cells train on all images and do not select."""
    recipe, method = RECIPES[name], name.split("/")[0]
    if recipe.buffer is not None:
        recipe.objective.check(recipe.buffer.kept_epochs())
    assert recipe.published is not None or "published" in recipe.note
    assert recipe.cites and recipe.data.name in DATASETS
    if "-w128" not in recipe.model:
        return
    assert recipe.data.validation == 0 and recipe.data.limit is None and recipe.outer.evaluate_every == 0
    momenta = {k: v.momentum for k, v in recipe.outer.optim.items()}
    if recipe.buffer is None:
        networks, protocol = MATCHING[method]
        syn: Any = SimpleNamespace(images_per_class=lambda: recipe.ipc)
        assert recipe.objective.networks.round(syn, recipe.outer.steps) == (networks, 0)  # the last one is finished
        assert recipe.evaluation.protocol == protocol and momenta == {"images": 0.5}
    else:
        assert (recipe.outer.steps, recipe.buffer.epochs, recipe.evaluation.protocol) == COMMON[method]
        assert recipe.buffer.num_experts == (50 if recipe.data.name == "imagenet" else 100)
        assert momenta == {"images": 0.5, "lr": 0.5} | ({"logits": 0.9} if method == "datm" else {})
