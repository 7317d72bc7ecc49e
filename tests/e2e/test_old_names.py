"""What was made when torchvision/NAME had a stem for small images is read as NAME-small.

tests/data/before_names holds runs and the manifest of a store of that time.
"""

import json
import shutil
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from helpers import CPU, run
from loops import for_each
from safetensors.torch import load_file

import ddengine
from buffers import store
from ddengine.artefact import folder as folders
from ddengine.models import build_model, timm_models
from ddengine.recipe import resolved
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find

BEFORE = Path(__file__).resolve().parents[1] / "data" / "before_names"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
OWN, SMALL = "torchvision/shufflenet_v2_x0_5", "torchvision/shufflenet_v2_x0_5-small"
FINISHED = "runs/dm-fashion_mnist_ipc1_small-637f7834fe65"
OF_TEACHERS = "runs/rded-fashion_mnist_ipc10_small-cc87cb06752b"
STORE = "experts/2c55f2991ef4"
DATA = "--data.name digits --data.limit None --data.classes 3 7 --device cpu".split()
DM = (
    "dm/fashion_mnist_ipc1_small --outer.optim.images.lr 1 --objective.real_batch 4 --seed 1 "
    "--outer.picture_every 0"
).split() + DATA
RDED = "rded/fashion_mnist_ipc10_small --ipc 1 --buffer.epochs 1".split() + DATA
RESUMED = 1e-3  # of the sum of magnitudes: other processors round otherwise


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of the old files."""
    where = tmp_path / "old"
    shutil.copytree(BEFORE, where)
    monkeypatch.chdir(where)
    return where


def said(capsys) -> str:
    """What was printed, in one line."""
    return " ".join("".join(capsys.readouterr()).split())


def test_a_finished_run_is_the_run_of_the_small_network_and_of_no_other(old, capsys):
    assert run("distill", *DM, "--model", SMALL, "--outer.steps", "2") == 0
    assert f"{FINISHED} is finished" in said(capsys)
    assert run("distill", *DM, "--model", OWN, "--outer.steps", "2", "--out", FINISHED) == 2
    assert "with other settings" in said(capsys)
    assert run("distill", *DM, "--model", OWN, "--outer.steps", "0") == 0
    assert "is finished" not in said(capsys)


@pytest.mark.slow
def test_an_unfinished_run_goes_on_with_the_small_network(old):
    path, expected = "runs/unfinished_vision", EXPECTED["resumed"]
    flags = ["--model", SMALL, "--outer.steps", "8", "--outer.checkpoint_every", "3"]
    assert run("distill", *DM, *flags, "--out", path) == 0
    events = (old / path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(event)["loss"] for event in events]
    assert losses == pytest.approx(expected["losses"], rel=RESUMED)
    tensors = load_file(old / path / "distilled" / "data.safetensors")
    assert tensors.keys() == expected["tensors"].keys()
    for name, wanted in expected["tensors"].items():
        allowed = RESUMED * max(wanted["abs_sum"], 1e-6)
        assert list(tensors[name].shape) == wanted["shape"]
        assert abs(float(tensors[name].double().sum()) - wanted["sum"]) <= allowed, name
    content = json.loads((old / path / "recipe.json").read_text())
    assert content["recipe"]["model"] == SMALL and content["format"] == 3


def test_a_run_says_the_small_network_and_is_evaluated_on_it(old, capsys):
    _, meta = folders.load(old / FINISHED / "distilled", CPU)
    assert meta["recipe"]["model"] == meta["protocol"]["network"] == SMALL
    assert ddengine.load(FINISHED).meta["format"] == 3
    flags = "--epochs 3 --num_networks 3 --full_steps 3 --lr_grid 0.01 --baselines random"
    asked = ["evaluate", FINISHED, *flags.split(), "--device", "cpu", "--models"]
    assert run(*asked, SMALL, "convnet-d1-w4-in") == 0
    shown = said(capsys)
    assert "evaluation.json is there" in shown
    assert f"{SMALL}: torchvision's network with a stem for images of up to 64 pixels" in shown
    assert run(*asked, OWN, "convnet-d1-w4-in") == 2
    assert "other settings" in said(capsys)
    for command in ("report", "inspect"):
        assert run(command, FINISHED) == 0
    shown = said(capsys)
    assert SMALL in shown and OWN not in shown.replace(SMALL, "")
    page = (old / FINISHED / "report.html").read_text()
    assert SMALL in page and OWN not in page.replace(SMALL, "")


def test_evaluated_again_every_file_says_the_small_network(old):
    before = json.loads((old / FINISHED / "evaluation.json").read_text())
    flags = "--epochs 3 --num_networks 3 --full_steps 3 --lr_grid 0.01 --baselines random --restart"
    assert run("evaluate", FINISHED, *flags.split(), "--device", "cpu", "--models", SMALL) == 0
    again = json.loads((old / FINISHED / "evaluation.json").read_text())
    assert again["format"] == 3 and [row["model"] for row in again["rows"]] == [SMALL, SMALL]
    for row, wanted in zip(again["rows"], before["rows"], strict=False):
        reached = [network["accuracy"] for network in row["accuracies"]]
        assert reached == pytest.approx([n["accuracy"] for n in wanted["accuracies"]], abs=0.05)
    for name in ("meta.json", "evaluation.json"):
        text = (old / FINISHED / "distilled" / name).read_text()
        assert SMALL in text and OWN not in text.replace(SMALL, "")


def rded(model):
    """The recipe of the old teacher."""
    recipe = find("rded/fashion_mnist_ipc10_small", ipc=1, model=model, teachers=[model])
    data = replace(recipe.data, name="digits", limit=None, classes=(3, 7))
    return replace(recipe, data=data, buffer=replace(recipe.buffer, epochs=1))


def test_a_store_is_that_of_the_small_network_and_of_no_other(old):
    recipe = rded(SMALL)
    manifest = store.read_manifest(old / STORE)
    assert manifest["model"] == SMALL

    def identity(model):
        images = manifest["identity"]["images"]
        return store.identity(images, recipe.data, recipe.buffer, model, "fp32")

    assert f"experts/{digest(identity(SMALL))}" == STORE
    store.check_identity(old / STORE, identity(SMALL))
    with pytest.raises(UserError, match=f"model is {SMALL} there and {OWN} here"):
        store.check_identity(old / STORE, identity(OWN))
    # in a folder that the user named
    named = old / "mine" / "torchvision-shufflenet_v2_x0_5"
    shutil.copytree(old / STORE, named)
    assert (
        store.teacher_folder(old / "mine", SMALL)
        == named
        == store.teacher_folder(old / "mine", OWN)
    )


def test_a_set_of_teachers_says_the_small_ones(old, capsys):
    meta = ddengine.load(OF_TEACHERS).meta
    assert meta["recipe"]["teachers"] == [SMALL]
    assert [facts["model"] for facts in meta["experts"]["stores"]] == [SMALL]
    assert run("distill", *RDED, "--model", SMALL, "--teachers", SMALL) == 0
    assert f"{OF_TEACHERS} is finished" in said(capsys)


def test_a_store_of_today_says_the_network_and_keeps_its_fingerprint(old, capsys):
    """The same command makes a store under the name of then."""
    shutil.rmtree(old / STORE)
    assert run("buffer", *RDED, "--model", SMALL, "--teachers", SMALL) == 0
    manifest = json.loads((old / STORE / "manifest.json").read_text())
    assert manifest["model"] == SMALL and manifest["format"] == 3
    assert manifest["identity"]["model"] == OWN
    opened = store.ExpertStore(old / STORE)
    assert opened.summary()["model"] == opened.identities()[0]["model"] == SMALL
    assert opened.origin(rded(SMALL), manifest["identity"]["images"], "fp32") is None
    assert run("inspect", STORE) == 0 and SMALL in said(capsys)


@for_each("key", EXPECTED["networks"])
def test_a_small_network_is_the_network_of_before(key):
    if key.startswith("timm/") and not timm_models.installed():
        pytest.skip("timm is optional")
    name, sides = key.split()
    shape = tuple(map(int, sides.split("x")))
    wanted = EXPECTED["networks"][key]
    network = build_model(f"{name}-small", shape, 7, generator(5, "network")).eval()
    theta = torch.cat([p.detach().flatten() for p in network.parameters()]).double()
    assert len(theta) == wanted["parameters"]
    assert float(theta.sum()) == pytest.approx(wanted["sum"], abs=1e-6 * wanted["abs_sum"])
    assert float(theta.abs().sum()) == pytest.approx(wanted["abs_sum"], rel=1e-6)
    images = torch.linspace(-1, 1, 2 * prod(shape)).reshape(2, *shape)
    with torch.no_grad():
        features = network.embed(images).double().abs().sum()
    assert float(features) == pytest.approx(wanted["features"], rel=1e-3)


@pytest.mark.parametrize("name", ["sre2l/imagenet_ipc10", "rded/imagenette_ipc10"])
def test_recipes_of_large_images_name_the_network_that_they_always_had(name):
    """The same network under both names: 224 pixels are too many for the small stem."""
    recipe = find(name)
    assert recipe.model == "torchvision/resnet18" and recipe.data.size == (224, 224)
    small = replace(recipe, model=f"{recipe.model}-small")
    assert digest(resolved(small)) == digest(resolved(recipe))
