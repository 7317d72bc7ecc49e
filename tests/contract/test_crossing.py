"""The parts of trajectory matching are orthogonal: any experts, window, slots, labels and gradient
policy go together.
"""

from dataclasses import replace
from itertools import cycle, product
from typing import Any

import pytest
import torch
from helpers import DIGITS, MODEL, TINY_CROSS, run, tiny_data, tiny_env, tiny_store

from buffers.flat_step import Gsam
from buffers.smooth import Smooth
from buffers.steps import Sgd
from ddengine import loop as outer
from ddengine.recipe import InitConfig, OptimConfig, OuterConfig, Recipe, TargetConfig, resolved
from ddengine.sets import synthetic
from ddengine.sets.labels import label
from ddengine.system.configs import digest
from ddengine.system.rng import generator
from synth.ast import BalancedLoss, IntermediateMatching, WeightNoise
from synth.catalogue import RECIPES, take
from synth.datm import GrowingWindow
from synth.trajectory import TrajectoryMatching, UniformWindow

STEPS: dict[str, Any] = {
    "sgd": Sgd(lr=0.3),
    "gsam": Gsam(sgd=Sgd(lr=0.3)),
    "smooth": Smooth(sgd=Sgd(lr=0.03, momentum=0.9)),
}
WINDOWS: dict[str, Any] = {
    "uniform": UniformWindow(high=2),
    "growing": GrowingWindow(first=1, high=2, grow=2),
}
SLOTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ast": {
        "momentum": 0.9,
        "lr": 0.005,
        "perturb": WeightNoise(),
        "loss_scale": BalancedLoss(),
        "milestones": IntermediateMatching(),
    },
}
# targets, the objective's labels, whether logits are learned
LABELS: dict[str, tuple[TargetConfig, str, bool]] = {
    "class": (TargetConfig(), "stored", False),
    "learned": (TargetConfig(kind="logits", experts="all"), "stored", True),
    "target": (TargetConfig(kind="logits", experts="all", relabel=True), "target", False),
}
CASES = [  # the last two go round in fours and threes, so that they meet every value of the others
    (*case, steps, init)
    for case, steps, init in zip(
        product(WINDOWS, SLOTS, LABELS, ("full", "replay", "detached")),
        cycle((*STEPS, "smooth")),
        cycle(("real", "correct", "representative")),
        strict=False,
    )
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Digits, and a store of each kind of expert."""
    data, stores = tiny_data(), {}
    for name, step in STEPS.items():
        stores[name] = tiny_store(
            tmp_path_factory.mktemp(name), data, epochs=4, step=step, batch=16
        )
    return data, stores


@pytest.mark.parametrize(("window", "slots", "labels", "backprop", "steps", "init"), CASES)
def test_parts_go_together(window, slots, labels, backprop, steps, init, world, tmp_path):
    """Three outer steps: finite, everything learned moves, everything else stays, and the shipped
    set is labelled as it says.
    """
    data, stores = world
    targets, of, learned = LABELS[labels]
    objective = TrajectoryMatching(
        **{
            "inner_steps": 4,
            "expert_epochs": 2,
            "window": WINDOWS[window],
            "batch": 7,
            "lr": 0.02,
            "backprop": backprop,
            "labels": of,
        }
        | SLOTS[slots]
    )
    optim = {"images": OptimConfig(lr=1.0), "lr": OptimConfig(lr=1e-5)} | (
        {"logits": OptimConfig(lr=1.0)} if learned else {}
    )
    config = OuterConfig(steps=3, optim=optim, ema={"images": 0.5})
    store = stores[steps]
    recipe = replace(
        RECIPES["mtt/digits_ipc1"],
        data=DIGITS,
        model=MODEL,
        ipc=2,
        init=InitConfig(kind=init),
        targets=targets,
        objective=objective,
        outer=config,
    )
    syn = synthetic.initial(recipe, data, generator(0), store)
    if targets.kind == "logits":
        syn = label(syn, store, targets)
    result, counters = outer.distill(
        syn,
        objective.build(tiny_env(data, store)),
        config,
        tmp_path,
        seed=0,
        finish=lambda s: label(s, store, targets) if targets.relabel else s,
    )
    assert counters.not_finite == 0
    assert set(result.tensors) == {
        *syn.tensors,
        "raw.images",
        *(["raw.logits"] if targets.relabel else []),
    }
    for name, tensor in result.tensors.items():
        assert tensor.isfinite().all()
        moved = name in ("images", "lr", "raw.images") or (
            name.endswith("logits") and (learned or targets.relabel)
        )
        assert torch.equal(tensor, syn.tensors[name.removeprefix("raw.")]) != moved
    assert result.batch(torch.tensor([0])).targets.is_floating_point() == (targets.kind == "logits")


# A name for each cross, --take and flags, and what the recipe must then have
CROSSES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "DATM with AST's experts": ("datm/cifar10_ipc10", ["buffer=ast/cifar10_ipc10"], {"buffer.step": Smooth()}),
    "DATM's window with AST's intermediate losses": (
        "datm/cifar10_ipc10", ["objective.milestones=ast/cifar10_ipc10"], {"objective.milestones": IntermediateMatching()}
    ),
    "AST with DATM's window and labels": (
        "ast/cifar10_ipc10",
        ["objective.window=datm/cifar10_ipc10", "targets=datm/cifar10_ipc10", "outer.optim=datm/cifar10_ipc10", "init=datm/cifar10_ipc10"],
        {"objective.window": GrowingWindow(first=10, high=20, grow=1000), "objective.momentum": 0.9, "targets.kind": "logits"},
    ),
    "FTD with TESLA's policy": ("ftd/cifar10_ipc10", ["objective.backprop=tesla/cifar10_ipc1"], {"objective.backprop": "detached"}),
    "TESLA with FTD's averages": ("tesla/cifar10_ipc1", ["outer.ema=ftd/cifar10_ipc1"], {"outer.ema": {"images": 0.9999}}),
    "AST without perturbation": ("ast/cifar10_ipc10", ["objective.perturb=mtt/cifar10_ipc10"], {"objective.perturb": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", CROSSES)
def test_crosses_by_configuration(name):
    """--take puts the parts together, and changes nothing else."""
    start, taken, expected = CROSSES[name]
    recipe = take(RECIPES[start], taken)
    for path, value in expected.items():
        part: Any = recipe
        for attribute in path.split("."):
            part = getattr(part, attribute)
        assert part == value
    untouched = {
        "data",
        "init",
        "codec",
        "targets",
        "objective",
        "outer",
        "buffer",
        "evaluation",
    } - {t.split("=")[0].split(".")[0] for t in taken}
    assert all(getattr(recipe, part) == getattr(RECIPES[start], part) for part in untouched)


def test_a_cross_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    """A published recipe with another's experts and losses, at its smallest: buffer, distill,
    evaluate with every baseline.
    """
    monkeypatch.chdir(tmp_path)
    assert run("buffer", *TINY_CROSS) == 0
    assert run("distill", *TINY_CROSS, "--out", "cross") == 0
    assert (
        run(
            "evaluate",
            "cross",
            "--epochs",
            "2",
            "--num_networks",
            "3",
            "--full_steps",
            "5",
            "--lr_grid",
            "0.01",
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("distilled", "random_soft", "herding", "full"))


def test_resolved_recipe_keeps_its_kinds():
    """Every recipe says its parts' kinds, so that two of them never share a run folder or a store
    by accident.
    """
    seen = {}
    for recipe in RECIPES.values():
        assert isinstance(recipe, Recipe)
        key = repr(
            (
                recipe.buffer,
                recipe.codec,
                recipe.objective,
                recipe.data,
                recipe.outer,
                recipe.ipc,
                recipe.init,
                recipe.targets,
            )
        )
        if recipe.teachers:  # cells that share a set differ in how it is evaluated
            key += repr((recipe.teachers, recipe.model, recipe.evaluation))
        assert key not in seen, f"{recipe.name} is {seen.get(key)}"
        seen[key] = recipe.name
    assert len({digest(resolved(recipe)) for recipe in RECIPES.values()}) == len(RECIPES)
