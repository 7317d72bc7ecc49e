"""Sets of few bits: learned so, made of finished sets, shipped and read without the engine."""

import json
from pathlib import Path

import pytest
import torch
from helpers import MODEL, run, shipped_loader
from safetensors.torch import load_file

import ddengine
from ddengine.system.errors import UserError

DIGITS = [
    "--data.name", "digits", "--data.limit", "400", "--model", MODEL, "--objective.real_batch", "8", "--outer.steps", "4",
    "--outer.evaluate_every", "0", "--outer.picture_every", "0",
]  # fmt: skip
QUICK = [
    "--epochs",
    "3",
    "--num_networks",
    "3",
    "--lr_grid",
    "0.03",
    "--full_steps",
    "6",
    "--baselines",
    "random",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run whose set was learned in two bits, and a plain one."""
    where = tmp_path_factory.mktemp("quantised")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert run("distill", "dm/fashion_mnist_ipc1_quantised_small", *DIGITS, "--out", "two") == 0
        assert run("distill", "dm/fashion_mnist_ipc1_small", *DIGITS, "--out", "plain") == 0
    return where


def decoded(result):
    return result.batch(torch.arange(len(result))).images


def assert_reads_alike(folder, result):
    """The shipped program gives the same images to the bit."""
    images, _, _ = shipped_loader(folder).load()
    assert torch.equal(images, decoded(result))


def test_a_set_that_was_learned_in_two_bits(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    result = ddengine.load("two")
    assert len(result) == 80  # 32 bytes each: 16 of codes, and four patches
    stored = load_file("two/distilled/data.safetensors")
    assert {"codes", "scales", "zeros"} <= stored.keys() and "images" not in stored
    # within the bytes of one image of float32 a class
    assert result.ledger["images"] + result.ledger["scales"] <= 10 * 64 * 4
    values = decoded(result)[0, 0, :7, :7].unique()
    assert len(values) <= 4
    assert_reads_alike(Path("two/distilled"), result)
    assert run("evaluate", "two", *QUICK) == 0
    rows = {row["set"]: row for row in json.loads(Path("two/evaluation.json").read_text())["rows"]}
    assert list(rows) == ["distilled", "random_coded", "random"]
    distilled, control = rows["distilled"], rows["random_coded"]
    # codes of real images are compressed otherwise, so another number of them has the same bytes
    assert distilled["images"] == 80 and distilled["bytes"] <= 3200
    an_image_more = control["bytes"] * (1 + 10 / control["images"])
    assert control["bytes"] <= distilled["bytes"] < 1.05 * an_image_more
    assert control["steps"] == distilled["steps"]
    assert run("inspect", "two") == 0
    assert "Quantised" in capsys.readouterr().out
    assert run("report", "two") == 0
    assert run("merge", "two", "two", "--out", "both") == 2
    assert "store no images of their own" in capsys.readouterr().err


def test_a_finished_set_in_two_bits(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert run("quantise", "plain", "--bits", "2", "--out", "small") == 0
    said = capsys.readouterr().out
    plain, small = ddengine.load("plain"), ddengine.load("small")
    assert f"{plain.nbytes:,} bytes became {small.nbytes:,} in small" in said
    assert small.nbytes < plain.nbytes / 3 and len(small) == len(plain)
    assert torch.equal(small.classes, plain.classes)
    off = (decoded(small) - decoded(plain)).abs()
    span = decoded(plain).max() - decoded(plain).min()
    assert 0 < off.max() <= span / 6 * 1.01 + 1e-3
    assert_reads_alike(Path("small"), small)
    assert json.loads(Path("small/meta.json").read_text())["quantised"]["bits"] == 2
    assert run("evaluate", "small", *QUICK) == 0
    finer = ddengine.quantise("plain", bits=8)
    assert (decoded(finer) - decoded(plain)).abs().max() < off.max() / 20


def test_groups_are_made_for_a_budget(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    free = ddengine.quantise("plain", bits=2)
    wide = ddengine.quantise("plain", bits=2, budget=10_000)
    assert torch.equal(decoded(free), decoded(wide)) and wide.meta["quantised"]["groups"] is None
    for budget in (300, 220):
        some = ddengine.quantise("plain", bits=2, budget=budget)
        stored = sum(tensor.nbytes for name, tensor in some.tensors.items() if name != "lr")
        groups = some.meta["quantised"]["groups"]
        assert stored <= budget and groups == (budget - 10 * (16 + 4)) // 4
    assert run("quantise", "plain", "--bytes", "150", "--out", "tiny") == 2
    assert "take at least 204" in capsys.readouterr().err and not Path("tiny").exists()


def test_a_finished_set_that_keeps_its_features(made, monkeypatch):
    """Other images of as many bytes at most; the same seed makes the same."""
    monkeypatch.chdir(made)
    assert run("quantise", "plain", "--refine", "3", "--refine_lr", "0.1", "--out", "nearer") == 0
    nearer, plain = ddengine.load("nearer"), ddengine.quantise("plain")
    told = json.loads(Path("nearer/meta.json").read_text())["quantised"]
    assert told["refine"] == 3 and told["refine_lr"] == 0.1 and told["seed"] == 0
    assert "refine" not in plain.meta["quantised"]
    assert decoded(nearer).shape == decoded(plain).shape
    assert not torch.equal(decoded(nearer), decoded(plain))
    again = ddengine.quantise("plain", refine=3, refine_lr=0.1)
    assert torch.equal(decoded(nearer), decoded(again))

    def diverged(*_, **__):
        return (
            torch.nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.weight.fill_(torch.nan))
        )

    monkeypatch.setattr("ddengine.api.quantise.train_one", diverged)
    with pytest.raises(UserError, match="not finite"):
        ddengine.quantise("plain", refine=3)


def test_what_cannot_be_is_one_sentence(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert run("quantise", "plain") == 2
    assert "name it with --out" in capsys.readouterr().err
    assert run("quantise", "plain", "--bits", "5", "--out", "x") == 2
    assert "--bits" in capsys.readouterr().err
    assert run("quantise", "plain", "--out", "plain") == 2
    assert run("quantise", "nothing", "--out", "x") == 2
    assert run("quantise", "plain", "--patch", "0", "--out", "x") == 2
    assert not Path("x").exists()
    for options in ({}, {"refine": 3}):
        with pytest.raises(UserError, match="made of other things"):
            ddengine.quantise("two", **options)
    for wrong in ({"refine": -1}, {"refine": 2.5}, {"refine_lr": 0.0}, {"refine_lr": float("nan")}):
        with pytest.raises(UserError, match="refine"):
            ddengine.quantise("plain", **wrong)
