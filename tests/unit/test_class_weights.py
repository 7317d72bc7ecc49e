"""Labels that are weights of the classes and need not add up to one (RaT-BPTT)."""

from dataclasses import replace

import pytest
import torch
from helpers import CPU, MODEL, shipped_loader, tiny_data, tiny_set

import ddengine
import synth
from ddengine import loop
from ddengine.api.results import Distilled
from ddengine.artefact import folder as folders
from ddengine.learning.losses import task_loss, weighted_loss
from ddengine.learning.updates import Sgd
from ddengine.objective import environments
from ddengine.recipe import AugmentConfig, EvalConfig, OptimConfig, OuterConfig, TargetConfig
from ddengine.sets.labels import labelled
from ddengine.sets.merge import merge
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import RECIPES

SHORT = EvalConfig(
    protocol="own", epochs=3, num_networks=3, lr=0.1, rate="learned", full_steps=5,
    augment=AugmentConfig(ops=()), baselines=("random",), schedule="thirds", weight_decay=0.0,
)  # fmt: skip


def by_formula(outputs, weights):
    """Mean over the batch of the sum of -w_k log softmax(s)_k."""
    return -(weights * outputs.log_softmax(1)).sum(1).mean()


def test_the_loss_is_not_normalised():
    """Twice the weights are twice the loss; classes are one-hot weights; logits are another loss."""
    rng = generator(0)
    outputs, weights = torch.randn(5, 3, generator=rng), torch.rand(5, 3, generator=rng)
    assert torch.allclose(weighted_loss(outputs, weights), by_formula(outputs, weights))
    assert torch.allclose(weighted_loss(outputs, 2 * weights), 2 * by_formula(outputs, weights))
    classes = torch.tensor([0, 2, 1, 1, 0])
    hot = torch.nn.functional.one_hot(classes, 3).float()
    assert torch.allclose(weighted_loss(outputs, classes), weighted_loss(outputs, hot))
    assert not torch.allclose(weighted_loss(outputs, weights), task_loss(outputs, weights))


def learning(data, optim):
    """The objective and the labelled set of the small recipe, on these data."""
    recipe = synth.find("rat/digits_ipc1_weights", model=MODEL, ipc=2)
    of = replace(recipe.objective.small(), update=recipe.objective.update)
    recipe = replace(recipe, objective=of)
    (env,) = environments(recipe, data, CPU, None)
    syn = labelled(tiny_set(data), None, recipe.targets)
    return of.build(env), syn, OuterConfig(steps=3, optim=optim, checkpoint_every=1)


def test_they_are_learned_and_stay_above_zero(tmp_path):
    """They start at one for the class; gradients move them, and none falls below zero."""
    data = tiny_data()
    optim = {"weights": OptimConfig(lr=2.0, kind="adam")}
    objective, syn, outer = learning(data, optim)
    hot = torch.nn.functional.one_hot(syn.classes, data.num_classes).float()
    assert torch.equal(syn.tensors["weights"], hot)
    reached, _ = loop.distill(syn, objective, outer, tmp_path, seed=0)
    weights = reached.tensors["weights"]
    assert weights.min() == 0 and (weights > 0).sum() > 20
    assert not torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=0.1)


@pytest.mark.parametrize("inner", ["unroll", "higher"])
def test_a_student_sees_their_size(inner):
    """A student steps further where weights are larger."""
    data = tiny_data()
    objective, syn, _ = learning(data, {})
    # Adam does not see the size of a gradient
    config = replace(objective.config, inner=inner, update=Sgd(), lr=0.3)
    (env,) = environments(synth.find("rat/digits_ipc1_weights", model=MODEL), data, CPU, None)
    losses = []
    for factor in (1.0, 3.0):
        heavy = syn.with_weights(factor * syn.tensors["weights"])
        built = config.build(env)
        (loss,) = built.losses(heavy, built.init(generator(0)), 0, generator(1))
        losses.append(float(loss.detach()))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def weighted_set(data):
    """A set with drawn weights of another size for each image."""
    syn = tiny_set(data)
    weights = torch.rand(len(syn), data.num_classes, generator=generator(3))
    return syn.with_weights(4 * weights)


def shipped(data, tmp_path):
    """The folder of such a set, and the set in memory."""
    recipe = synth.find("rat/digits_ipc1_weights", model=MODEL, evaluation=SHORT, ipc=2)
    recipe = replace(recipe, data=replace(recipe.data, limit=200))
    meta = {"recipe": to_dict(recipe), "images": data.train.digest}
    folders.save(weighted_set(data), tmp_path / "set", meta)
    return tmp_path / "set", Distilled(weighted_set(data), meta)


def test_networks_are_trained_towards_them_here_and_by_load_py(tmp_path):
    """Both come to the same network, which is not that of the normalised labels."""
    data = tiny_data()
    folder, of = shipped(data, tmp_path)
    ours = ddengine.train(of, seed=0, device="cpu")
    network = ddengine.train(of, seed=0, device="cpu", protocol={"epochs": 1, "lr": 1e-30})
    theirs = shipped_loader(folder).train(network)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    even = of.set.tensors["weights"]
    normalised = replace(of, set=of.set.with_weights(even / even.sum(1, keepdim=True)))
    other = ddengine.train(normalised, seed=0, device="cpu")
    pairs = zip(ours.parameters(), other.parameters(), strict=True)
    assert any(not torch.allclose(one, two, atol=1e-4) for one, two in pairs)
    assert "which need not add up to one" in (folder / "README.md").read_text()


def test_an_evaluation_has_the_control_that_they_ask_for(tmp_path):
    """The set with its classes alone."""
    data = tiny_data()
    folder, _ = shipped(data, tmp_path)
    table = ddengine.evaluate(folder, data=None, device="cpu", folder=tmp_path / "out")
    rows = {row["set"]: row for row in table.rows}
    saved = rows["distilled"]["bytes"] - rows["distilled_hard"]["bytes"]
    assert saved == 4 * 20 * data.num_classes and "random_soft" not in rows


def test_sets_with_weights_are_merged():
    """Other classes have the weight 0."""
    data = tiny_data()
    syn = weighted_set(data)
    names = [*syn.class_names, "another"]
    merged = merge([syn, syn], [range(10), range(1, 11)], names)
    weights = merged.tensors["weights"]
    assert merged.targets.kind == "weights" and weights.shape == (40, 11)
    assert torch.equal(weights[:20, :10], syn.tensors["weights"])
    assert torch.equal(weights[20:, 1:], syn.tensors["weights"])
    assert not weights[:20, 10].any() and not weights[20:, 0].any()


def test_what_does_not_go_together_is_said():
    """A rate for weights that are not there, and a method that knows none."""
    recipe = RECIPES["rat/digits_ipc1_weights"]
    with pytest.raises(UserError, match=r"rate for 'weights'.*--take targets"):
        replace(recipe, targets=TargetConfig())
    with pytest.raises(UserError, match=r"targets.kind weights is nothing that this objective"):
        replace(RECIPES["dm/fashion_mnist_ipc1_small"], targets=TargetConfig(kind="weights"))
