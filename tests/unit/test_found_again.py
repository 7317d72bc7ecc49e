"""Images of a run are found from any folder; cards call a user's images by their folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import MODEL, run
from PIL import Image

import ddengine
from ddengine.artefact import runs
from ddengine.artefact.card import LICENCES
from ddengine.data.dataset import called
from ddengine.system import files

FLAGS = (
    "--data.name folder --data.root digits --data.size 8 8 --data.limit None --ipc 1 "
    f"--model {MODEL} --objective.real_batch 8 --outer.steps 2 --outer.evaluate_every 0"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images called like a known dataset, and beside it a run that was made of them."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (place / "digits" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "digits" / label / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run("distill", "own/folder", *FLAGS.split(), "--out", "runs/mine") == 0
    return place


def test_a_run_is_evaluated_from_another_folder(made, tmp_path, monkeypatch):
    """Its recipe says the flag as it was given, too."""
    stored = json.loads((made / "runs/mine/recipe.json").read_text())
    assert stored["recipe"]["data"]["root"] == "digits"
    assert stored["data_root"] == str(made / "digits")
    monkeypatch.chdir(tmp_path)
    protocol = {"epochs": 2, "num_networks": 1, "lr_grid": (0.01,)}
    run_of = made / "runs/mine"
    table = ddengine.evaluate(run_of, protocol=protocol, baselines=(), folder=tmp_path / "said")
    assert [row["set"] for row in table.rows] == ["distilled"]


def test_a_run_of_before_finds_its_images_from_where_it_lies(made, tmp_path, monkeypatch):
    """It says no absolute path; images that lie nowhere are called as the run calls them."""
    path = made / "runs/mine/recipe.json"
    before = path.read_text()
    said = json.loads(before)
    del said["data_root"]
    files.write_json(path, said)
    monkeypatch.chdir(tmp_path)
    try:
        assert Path(runs.data_of(made / "runs/mine")["root"]) == made / "digits"
        said["recipe"]["data"]["root"] = "nowhere"
        files.write_json(path, said)
        assert runs.data_of(made / "runs/mine")["root"] == "nowhere"
    finally:
        path.write_text(before)


def test_a_moved_folder_of_images_is_looked_for_where_the_flag_says(made, tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    path = made / "runs/mine/recipe.json"
    before = path.read_text()
    files.write_json(path, json.loads(before) | {"data_root": "/gone/digits"})
    monkeypatch.chdir(tmp_path)
    try:
        assert Path(runs.data_of(Path(made, "runs/mine"))["root"]).resolve() == tmp_path / "digits"
    finally:
        path.write_text(before)


def test_a_card_calls_images_by_the_name_of_their_folder(made):
    """Which is no licence for them, whatever it is called; the place is nobody's business."""
    card = (made / "runs/mine/distilled/README.md").read_text()
    assert "# Distilled digits, 1 image per class" in card
    assert "distilled from the training images of digits" in card and "of folder" not in card
    assert LICENCES["digits"][1] not in card
    meta = (made / "runs/mine/distilled/meta.json").read_text()
    assert str(made) not in card + meta and json.loads(meta)["source"] == "digits"


def test_what_images_are_called():
    assert called("own", None) is None
    assert called("hub", "user/birds") == "user/birds"
    assert called("cifar10", "data") == "cifar10"
    assert called("folder", ".") == Path.cwd().name
