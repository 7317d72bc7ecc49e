"""Experts have a seed of their own: one store serves distillations of many seeds, and what was made
when they had the seed of the run goes on with its own.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import MODEL, TINY, run
from safetensors.torch import load_file

import buffers
import ddengine
from ddengine.recipe import resolved
from ddengine.system import digests
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from synth.catalogue import RECIPES, find

RECIPE = "mtt/digits_ipc1"
BEFORE = Path(__file__).resolve().parents[1] / "data" / "before" / "seed1"
OF_BEFORE = "b69b4f36eb81"  # the store of seed 1
FINISHED = "runs/mtt-digits_ipc1-ed228609f997"
UNFINISHED = "runs/unfinished_seed1"
SMALL = {
    "data": {"limit": 200},
    "model": MODEL,
    "buffer": {"num_experts": 2, "epochs": 3},
    "objective": {"window": {"high": 2}, "expert_epochs": 1, "inner_steps": 3},
    "outer": {"steps": 8, "checkpoint_every": 2, "evaluate_every": 0},
}  # the flags of TINY


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of the old files."""
    shutil.copytree(BEFORE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def said_of(capsys) -> str:
    """What was printed, on one line."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def data_of(folder: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of the set of a run."""
    return load_file(Path(folder) / "distilled" / "data.safetensors")


def mark_of(folder: str) -> dict:
    """What a run says of itself, but for its format and how the program was called."""
    mark = json.loads(Path(folder, "recipe.json").read_text())
    mark.pop("command")
    mark.pop("format", None)
    mark.pop(digests.KEY, None)
    return mark


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_one_store_serves_many_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("buffer", RECIPE, *TINY, "--seed", "7") == 0
    assert "--seed 7 is the distillation's" in said_of(capsys)
    stores = list(Path("experts").iterdir())
    for seed in ("0", "7"):
        assert run("distill", RECIPE, *TINY, "--seed", seed, "--out", seed) == 0
    assert not same(data_of("0"), data_of("7"))
    assert list(Path("experts").iterdir()) == stores and len(stores) == 1
    for seed in ("0", "7"):
        meta = json.loads(Path(seed, "distilled/meta.json").read_text())
        assert meta["experts"]["fingerprint"] == stores[0].name and meta["seed"] == int(seed)


def test_experts_of_another_seed_are_other_experts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("buffer", RECIPE, *TINY, "--buffer.seed", "1") == 0
    assert run("distill", RECIPE, *TINY, "--out", "run") == 2
    assert "There is no expert store" in said_of(capsys)
    store = str(next(Path("experts").iterdir()))
    assert run("distill", RECIPE, *TINY, "--experts", store, "--out", "run") == 2
    assert "buffer.seed is 1 there and 0 here" in said_of(capsys)
    assert run("distill", RECIPE, *TINY, "--buffer.seed", "1", "--out", "run") == 0
    assert run("buffer", RECIPE, *TINY, "--restart") == 0
    assert run("distill", RECIPE, *TINY, "--out", "run") == 2
    assert "other settings" in said_of(capsys)


def test_a_seed_below_zero_is_refused(capsys):
    assert run("buffer", RECIPE, "--buffer.seed", "-1") == 2
    assert "buffer.seed must be at least 0, got -1" in said_of(capsys)


def test_a_store_of_before_is_that_of_its_seed(old, capsys):
    """It has the fingerprint of before, and nothing is trained anew."""
    assert run("buffer", RECIPE, *TINY, "--seed", "1", "--buffer.seed", "1") == 0
    assert "all 2 experts are in" in said_of(capsys)
    assert [folder.name for folder in Path("experts").iterdir()] == [OF_BEFORE]


def test_a_finished_run_of_before_is_found(old, capsys):
    """By the same command, in the folder that it named itself, and in one that is named."""
    before = data_of(FINISHED)
    for more in ([], ["--out", FINISHED], ["--buffer.seed", "1"]):
        assert run("distill", RECIPE, *TINY, "--seed", "1", *more) == 0
        assert f"{FINISHED} is finished" in said_of(capsys)
    assert same(data_of(FINISHED), before)
    assert sorted(folder.name for folder in Path("runs").iterdir()) == [
        Path(FINISHED).name,
        Path(UNFINISHED).name,
    ]


def test_an_unfinished_run_of_before_goes_on_with_its_own_experts(old, capsys):
    """Twice interrupted, too: its recipe.json stays that of a run of before."""
    flags = [RECIPE, *TINY, "--seed", "1", "--out", UNFINISHED]
    mark = mark_of(UNFINISHED)
    assert run("distill", *flags) == 0
    assert "was begun when experts had the seed of the run, 1, and has such" in said_of(capsys)
    reached, wanted = data_of(UNFINISHED), data_of(FINISHED)
    assert all(torch.allclose(reached[k], wanted[k], atol=1e-4) for k in wanted)
    mark["recipe"]["objective"]["backprop"] = "auto"  # the way back is a choice of the machine now
    assert mark_of(UNFINISHED) == mark
    meta = json.loads(Path(UNFINISHED, "distilled/meta.json").read_text())
    assert meta["experts"]["fingerprint"] == OF_BEFORE
    assert meta["recipe"]["buffer"]["seed"] == 1
    assert run("distill", *flags) == 0
    assert f"{UNFINISHED} is finished" in said_of(capsys)


def test_a_run_of_before_is_evaluated(old):
    flags = ["--epochs", "5", "--num_networks", "3", "--full_steps", "5", "--lr_grid", "0.01"]
    assert run("evaluate", FINISHED, *flags, "--baselines", "random") == 0
    assert json.loads(Path(FINISHED, "evaluation.json").read_text())["rows"]


def test_the_page_of_a_run_of_before_says_the_seed_of_its_experts(old):
    assert run("report", FINISHED) == 0
    page = " ".join(Path(FINISHED, "report.html").read_text().split())
    assert page.count("--buffer.seed 1") == 2, "the commands of experts and distillation"


def test_a_run_of_before_and_a_new_one_do_not_mix(old, capsys):
    """Experts that are asked for by their seed are no others; --restart begins with those of now."""
    flags = [RECIPE, *TINY, "--seed", "1", "--out", UNFINISHED]
    assert run("distill", *flags, "--buffer.seed", "2") == 2
    assert "other settings" in said_of(capsys)
    assert run("buffer", RECIPE, *TINY) == 0
    assert run("distill", *flags, "--restart") == 0
    assert not same(data_of(UNFINISHED), data_of(FINISHED))
    # a new run with experts of seed 1 is none of before: other settings are refused
    new = [RECIPE, *TINY, "--seed", "1", "--out", "runs/new"]
    assert run("distill", *new, "--buffer.seed", "1") == 0
    assert run("distill", *new) == 2
    assert "other settings" in said_of(capsys)
    reached, wanted = data_of("runs/new"), data_of(FINISHED)
    assert all(torch.allclose(reached[k], wanted[k], atol=1e-4) for k in wanted)


def test_python_is_the_command_line(tmp_path, monkeypatch):
    """Experts handed in, or where they lie: the same runs, whatever named their seed."""
    monkeypatch.chdir(tmp_path)
    recipe = find(RECIPE, **SMALL)
    seeded = replace(recipe, buffer=replace(recipe.buffer, seed=1))
    experts = buffers.generate(None, recipe)
    others = buffers.generate(None, recipe, seed=1)
    assert others.manifest["fingerprint"] == buffers.generate(None, seeded).manifest["fingerprint"]
    assert run("distill", RECIPE, *TINY, "--seed", "3", "--out", "three") == 0
    ddengine.distill(None, recipe, experts, folder="three", seed=3)
    ddengine.distill(None, recipe, buffers.stores(recipe), folder="three", seed=3)
    for given in (others, buffers.stores(recipe, seed=1), buffers.stores(seeded)):
        result = ddengine.distill(None, recipe, given, folder="other", seed=3)
        assert result.meta["recipe"]["buffer"]["seed"] == 1
    assert run("distill", RECIPE, *TINY, "--seed", "3", "--buffer.seed", "1", "--out", "other") == 0
    with pytest.raises(UserError, match="other settings"):
        ddengine.distill(None, recipe, experts, folder="other", seed=3)


def test_python_with_a_run_of_before(old):
    """Experts that were handed in are not replaced by others: one sentence says which it needs."""
    recipe = find(RECIPE, **SMALL)
    stores = buffers.stores(recipe)
    finished = ddengine.distill(None, recipe, stores, folder=FINISHED, seed=1)
    assert torch.equal(finished.set.tensors["images"], data_of(FINISHED)["images"])
    experts = buffers.generate(None, recipe)
    with pytest.raises(UserError, match=r"give experts of buffer\.seed 1"):
        ddengine.distill(None, recipe, experts, folder=UNFINISHED, seed=1)
    others = buffers.generate(None, recipe, seed=1)
    assert others.manifest["fingerprint"] == OF_BEFORE
    ddengine.distill(None, recipe, others, folder=UNFINISHED, seed=1)


def test_teachers_and_selections_follow_the_same_rule(tmp_path, monkeypatch):
    """Their experts are those of buffer.seed, whatever the seed of the selection."""
    monkeypatch.chdir(tmp_path)
    chosen = ["--init.kind", "representative", "--ipc", "2"]
    assert run("buffer", RECIPE, *TINY) == 0
    for seed in ("0", "1"):
        out = ["--seed", seed, "--out", f"chosen{seed}"]
        assert run("select", RECIPE, *TINY, *chosen, *out) == 0
        meta = json.loads(Path(f"chosen{seed}", "distilled/meta.json").read_text())
        assert meta["experts"]["fingerprint"] == next(Path("experts").iterdir()).name


def test_the_seed_of_experts_is_no_part_of_a_resolved_recipe():
    recipe = RECIPES[RECIPE]
    seeded = replace(recipe, buffer=replace(recipe.buffer, seed=1))
    assert digest(resolved(recipe)) == digest(resolved(seeded))
