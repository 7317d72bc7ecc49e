"""Whoever names the folder of another run is told in what that differs."""

import json
import shutil

import numpy as np
import pytest
from helpers import MODEL

import ddengine
from ddengine.artefact import runs
from ddengine.changes import changed
from ddengine.system import configs, files
from ddengine.system.errors import UserError
from synth.catalogue import find

TINY = changed(
    find("dm/digits_ipc1"),
    {
        "model": MODEL,
        "data": {"limit": 200},
        "objective": {"real_batch": 8},
        "outer": {"steps": 1, "evaluate_every": 0},
    },
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    ddengine.distill(None, TINY, folder=folder, progress=False)
    return folder


def refused(folder, recipe=TINY, data=None, **options):
    with pytest.raises(
        UserError, match="holds a run of dm/digits_ipc1 with other settings"
    ) as said:
        ddengine.distill(data, recipe, folder=folder, progress=False, **options)
    return str(said.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ipc": 2}, "ipc is 1 there and 2 here"),
        ({"outer": {"steps": 3}}, "outer.steps is 1 there and 3 here"),
        ({"objective": {"real_batch": 9}}, "objective.real_batch is 8 there and 9 here"),
        ({"model": "mlp"}, f"model is {MODEL} there and mlp here"),
        ({"data": {"limit": 100}}, "data.limit is 200 there and 100 here"),
    ],
)
def test_settings_of_the_recipe(made, changes, said):
    assert said in refused(made, changed(TINY, changes))


def test_what_decides_nothing_is_not_named(made):
    """Where another thing differs: prose, and where the images lie."""
    text = refused(made, changed(TINY, {"ipc": 2, "note": "a note", "data": {"download": True}}))
    assert "(ipc is 1 there and 2 here)" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 3}, "(seed is 0 there and 3 here)"),
        ({"compile": True}, "(compile is False there and True here)"),
        ({"compile": "auto"}, "(compile is False there and auto here)"),
        ({"precision": "bf16"}, "(precision is fp32 there and bf16 here)"),
    ],
)
def test_settings_beside_the_recipe(made, options, said):
    assert said in refused(made, **options)


def test_settings_that_one_of_both_leaves_out(made, tmp_path):
    """Fields that came late are not stored while they hold their default."""
    other = changed(TINY, {"evaluation": {"updates": 9}})
    assert "evaluation.updates is not set there and 9 here" in refused(made, other)
    ddengine.distill(None, other, folder=tmp_path / "run", progress=False)
    text = refused(tmp_path / "run", changed(other, {"evaluation": {"updates": None}}))
    assert "(evaluation.updates is 9 there and not set here)" in text


def test_of_selections_only_what_decides_them(tmp_path):
    ddengine.select(None, TINY, folder=tmp_path / "run", progress=False)
    other = changed(TINY, {"outer": {"steps": 7}, "objective": {"real_batch": 9}})
    assert ddengine.select(None, other, folder=tmp_path / "run", progress=False).folder
    with pytest.raises(UserError, match=r"with other settings \(seed is 0 there and 1 here\)"):
        ddengine.select(None, other, folder=tmp_path / "run", seed=1, progress=False)


def test_values_of_strangers_are_shown_in_short(made, tmp_path):
    """A recipe.json may hold anything."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    stored = json.loads((folder / runs.MARK).read_text())
    stored["recipe"]["model"] = "\x1b[31m" + 5000 * "x"
    stored["recipe"]["evaluation"]["lr_grid"] = list(range(1, 501))
    del stored["recipe"]["codec"], stored["recipe"]["name"]
    stored["resolved"] = "another"
    files.write_json(folder / runs.MARK, stored)
    with pytest.raises(UserError) as said:
        ddengine.distill(None, TINY, folder=folder, progress=False)
    text = str(said.value)
    assert len(text) < 700 and "\x1b" not in text and "holds a run of" in text
    assert "model is \\u001b[31mxxx" in text
    assert "evaluation.lr_grid is a list of 500 there and [" in text


def test_of_another_method(made):
    """Of parts of another type these alone."""
    other = changed(find("dd/digits_ipc1"), {"model": MODEL})
    text = refused(made, other)
    assert "name is dm/digits_ipc1 there and dd/digits_ipc1 here" in text
    assert "objective is DistributionMatching there and ThroughTraining here" in text


def test_many_differences_are_counted():
    before = {"a": 1, "b": {"type": "X", "c": 2}, "d": {"e": 1, "f": 2}, "g": 0, "h": 0}
    now = {"a": 2, "b": {"type": "Y", "c": 3}, "d": {"e": 2, "f": 2}, "g": 1, "i": 4}
    said = configs.differences(before, now)
    assert said["b"] == "b is X there and Y here" and said["d.e"] == "d.e is 1 there and 2 here"
    assert said["h"] == "h is 0 there and not set here" and set(said) == {
        "a",
        "b",
        "d.e",
        "g",
        "h",
        "i",
    }
    assert configs.listed(said.values()).endswith("h is 0 there and not set here; and 2 more")
    assert configs.listed([]) == "unknown"


def test_other_images_of_the_same_name(tmp_path):
    """Images that Python holds have no settings by which they differ."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((40, 8, 8), dtype=np.float32), np.arange(40) % 2
    recipe = changed(TINY, {"data": {"limit": None}})
    ddengine.distill((images, labels), recipe, folder=tmp_path / "run", progress=False)
    text = refused(tmp_path / "run", recipe, (1 - images, labels))
    assert "the training images are others" in text
