"""Several recipes in one estimate: a table with a row each, from Python and the command line."""

import json

import pytest
from helpers import run

import ddengine
import synth
from ddengine.api import estimate as module
from ddengine.data import Dataset
from ddengine.plan.estimate import Part
from ddengine.system.errors import UserError

NAMES = ("dm/fashion_mnist_ipc1_small", "dm/fashion_mnist_ipc10_small")
FLAGS = ["--data.name", "digits", "--data.limit", "200", "--model", "convnet-d1-w4-in"]


@pytest.fixture
def calibrated(monkeypatch):
    """What the calibration of a recipe says; a list of the recipes that were calibrated."""
    seen = []

    def fake(job, missing):
        seen.append(job.recipe)
        memory = 10**15 if job.recipe.ipc == 10 else 10**6
        return [
            Part("buffer", 0.0, 0, 0, "no experts are needed"),
            Part("distill", 10.0 * job.recipe.ipc, memory, 100, "steps"),
            Part("evaluate", 5.0, 10, 7, "networks"),
        ]

    monkeypatch.setattr(module.plan, "estimate", fake)
    return seen


def small(name):
    """A recipe on digits."""
    return synth.find(name, data={"name": "digits", "limit": 200}, model="convnet-d1-w4-in")


def test_several_recipes_have_one_table(calibrated):
    recipes = [small(name) for name in NAMES]
    outcome = ddengine.estimate(Dataset.named("digits"), recipes, progress=False)
    assert calibrated == recipes
    assert [row["recipe"] for row in outcome.rows] == list(NAMES)
    assert [row["distill"] for row in outcome.rows] == [10.0, 100.0]
    printed = str(outcome)
    assert all(name in printed for name in NAMES) and "15 s" in printed
    # what does not fit names the recipe
    assert any(f"warning: {NAMES[1]}: distill needs about" in note for note in outcome.notes)
    assert not any(NAMES[0] in note for note in outcome.notes)


def test_one_recipe_has_its_parts(calibrated):
    outcome = ddengine.estimate(Dataset.named("digits"), small(NAMES[0]), progress=False)
    assert [row["name"] for row in outcome.rows] == ["buffer", "distill", "evaluate"]


def test_the_command_takes_several_and_flags_are_for_all(calibrated, tmp_path, capsys):
    path = tmp_path / "estimate.json"
    assert run("estimate", *NAMES, *FLAGS, "--json", str(path)) == 0
    assert [recipe.data.name for recipe in calibrated] == ["digits"] * 2
    said = json.loads(path.read_text())
    assert [each["recipe"] for each in said["recipes"]] == list(NAMES)
    assert NAMES[1] in capsys.readouterr().out
    assert run("estimate", *FLAGS, NAMES[0], "--json", str(path)) == 0
    assert len(calibrated) == 3 and json.loads(path.read_text())["recipe"]["name"] == NAMES[0]
    assert run("estimate", NAMES[0], "dm/nothing", *FLAGS) == 2
    assert "Unknown recipe 'dm/nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipes", "experts", "message"),
    [
        ([], None, "0 recipes and 0 experts"),
        ([small(NAMES[0])], [None, None], "1 recipes and 2 experts"),
        (NAMES[0], None, "The recipe is a str"),
        ([small(NAMES[0]), NAMES[1]], None, "The recipe is a str"),
        ([synth.find("mtt/digits_ipc1")], None, "needs experts"),
    ],
)
def test_what_is_no_recipe_is_refused_before_any_work(calibrated, recipes, experts, message):
    with pytest.raises(UserError, match=message):
        ddengine.estimate(Dataset.named("digits"), recipes, experts, progress=False)
    assert not calibrated
