"""Stores, runs and sets of an older version open, resume and evaluate as they did then.

tests/data/before holds small ones, made by the command line before the modules moved into rooms;
expected.json beside them says what each must read as.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import CPU, run
from loops import for_each
from safetensors.torch import load_file

from buffers.store import ExpertStore, identity
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.models import build_model
from ddengine.recipe import resolved
from ddengine.system.configs import digest, to_dict
from synth.catalogue import RECIPES
from synth.recipes.protocols import PROTOCOLS

BEFORE = Path(__file__).resolve().parents[1] / "data" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
RESUMED = 1e-3  # of the sum of magnitudes: other processors round otherwise
MTT = "runs/mtt-digits_ipc1-91eaa030f26f"
INFER = "runs/infer-fashion_mnist_ipc10_small-c9e680ea16ca"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of the old files."""
    where = tmp_path / "old"
    shutil.copytree(BEFORE, where)
    monkeypatch.chdir(where)
    return where


def assert_sums(tensors: dict[str, torch.Tensor], expected: dict, tolerance: float = 1e-9) -> None:
    """Each tensor has the kind, the shape and the sums that are written down."""
    assert tensors.keys() == expected.keys()
    for name, wanted in expected.items():
        tensor = tensors[name]
        assert str(tensor.dtype).removeprefix("torch.") == wanted["dtype"], name
        assert list(tensor.shape) == wanted["shape"], name
        allowed = tolerance * max(wanted["abs_sum"], 1e-6)
        assert abs(float(tensor.double().sum()) - wanted["sum"]) <= allowed, name
        assert abs(float(tensor.double().abs().sum()) - wanted["abs_sum"]) <= allowed, name


def accuracies_of(row: dict) -> list[float]:
    """Those of its networks."""
    return [network["accuracy"] for network in row["accuracies"]]


def command_of(path: str) -> list[str]:
    """The words that made a run, after the program's name."""
    words = EXPECTED["runs"][path]["command"]
    return words[words.index("run.py") + 1 :]


@pytest.mark.parametrize("path", EXPECTED["stores"])
def test_a_store_opens(path):
    expected = EXPECTED["stores"][path]

    def new_model(rng):
        return build_model(expected["model"], (1, 8, 8), 10, rng)

    store = ExpertStore(BEFORE / path, new_model, len(expected["shards"]))
    assert store.manifest["fingerprint"] == expected["fingerprint"]
    assert list(store.epochs) == expected["epochs"]
    for expert, shard in enumerate(expected["shards"].values()):
        params = store.snapshots(expert, expected["epochs"])
        wanted = shard["tensors"]["params"]
        assert list(params.shape) == wanted["shape"]
        total = float(params.double().sum())
        assert total == pytest.approx(wanted["sum"], abs=1e-9 * wanted["abs_sum"])
        assert isinstance(store.load(expert, expected["epochs"][-1]), torch.nn.Module)


@pytest.mark.parametrize("path", EXPECTED["sets"])
def test_a_set_opens(path):
    expected = EXPECTED["sets"][path]
    syn, meta = folders.load(BEFORE / path, CPU)
    assert len(syn) == expected["examples"] and len(syn.classes) == expected["stored"]
    assert syn.classes.tolist() == expected["classes"]
    assert list(syn.class_names) == expected["class_names"]
    assert type(syn.codec).__name__ == expected["codec"]
    assert (syn.lr is None) == (expected["lr"] is None)
    assert syn.sizes() == expected["bytes"]
    assert syn.images_per_class() == expected["images_per_class"]
    assert meta["recipe"]["name"] == expected["recipe"] and meta["images"] == expected["images"]
    batch = syn.batch(torch.arange(len(syn)))
    tensors = {"decoded": batch.images, "targets": batch.targets}
    assert_sums(tensors, {name: expected[name] for name in tensors}, 1e-5)


def test_finished_runs_are_the_same_runs(old, capsys):
    """The same commands find them by the names that they give themselves, and do nothing."""
    for path in (MTT, INFER, "runs/select-herding-4803e3b35d25"):
        assert run(*command_of(path)) == 0, path
        said = capsys.readouterr().out
        assert f"{path} is finished" in " ".join(said.split()), path
    names = {folder.name for folder in (old / "runs").iterdir()}
    assert names == {folder.name for folder in (BEFORE / "runs").iterdir()}
    assert run("buffer", *command_of(MTT)[1:]) == 0
    stores = {folder.name for folder in (old / "experts").iterdir()}
    assert stores == {folder.name for folder in (BEFORE / "experts").iterdir()}


@pytest.mark.parametrize("path", ["runs/unfinished", "runs/unfinished_idc"])
def test_an_unfinished_run_goes_on(path, old):
    expected = EXPECTED["resumed"][path]
    assert run(*expected["command"]) == 0
    assert_sums(
        load_file(old / path / "distilled" / "data.safetensors"), expected["tensors"], RESUMED
    )
    events = (old / path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(event)["loss"] for event in events]
    assert losses == pytest.approx(expected["losses"], rel=RESUMED)


def test_an_unfinished_evaluation_goes_on(old):
    expected = EXPECTED["resumed"]["runs/select-herding-4803e3b35d25"]
    partial = old / "runs/select-herding-4803e3b35d25/evaluation.partial.jsonl"
    assert len(partial.read_text().splitlines()) == expected["partial_lines"]
    assert run(*expected["command"]) == 0
    content = json.loads((partial.parent / "evaluation.json").read_text())
    for row, wanted in zip(content["rows"], expected["rows"], strict=True):
        for name in ("set", "model", "lr", "steps", "n"):
            assert row[name] == wanted[name]
        assert accuracies_of(row) == pytest.approx(wanted["accuracies"], abs=0.05)


def test_an_evaluated_run_is_read(old, capsys):
    """A finished evaluation is shown, inspected and reported without training anything."""
    for path in (MTT, INFER):
        flags = ["--epochs", "40", "--num_networks", "3", "--full_steps", "40"]
        baselines = ["random", "herding", "full", "eight_bit"]
        if path == INFER:
            baselines = ["random", "random_soft"]
        flags += ["--lr_grid", "0.01", "0.03", "--device", "cpu", "--baselines", *baselines]
        assert run("evaluate", path, *flags) == 0
        assert "evaluation.json is there" in " ".join(capsys.readouterr().out.split())
        content = json.loads((old / path / "evaluation.json").read_text())
        accuracies = [accuracies_of(row) for row in content["rows"]]
        assert accuracies == [row["accuracies"] for row in EXPECTED["runs"][path]["rows"]]
        assert run("inspect", path) == 0
        assert run("report", path) == 0 and (old / path / "report.html").is_file()
    assert run("inspect", "experts/ee15d3ce6b60") == 0


def test_old_sets_merge(old):
    assert run("merge", "runs/dm_037", "runs/dm_12", "--out", "again") == 0
    tensors = load_file(old / "again" / "data.safetensors")
    before = load_file(old / "merged" / "data.safetensors")
    assert tensors.keys() == before.keys()
    # images went through pixels and back before, which rounded them; now they stay as they are
    torch.testing.assert_close(tensors.pop("images"), before.pop("images"), rtol=0, atol=1e-6)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_a_run_is_told_by_its_mark():
    assert runs.set_folder(BEFORE / MTT) == BEFORE / MTT / "distilled"


IDENTITIES = json.loads((BEFORE / "identities.json").read_text())


@for_each("name", IDENTITIES["recipes"])
def test_recipes_and_stores_have_the_identities_of_before(name):
    """So a run and a store of before are those that today's commands ask for."""
    recipe = RECIPES[name]
    resolved_before, stores, images = IDENTITIES["recipes"][name]
    assert digest(resolved(recipe)) == resolved_before
    for model, fingerprint in stores.items():
        content = identity(images, recipe.data, recipe.buffer, model, "fp32")
        assert digest(content) == fingerprint


@for_each("name", IDENTITIES["protocols"])
def test_protocols_have_the_values_of_before(name):
    assert digest(to_dict(PROTOCOLS[name])) == IDENTITIES["protocols"][name]
