"""Sets of coarse images from the command line: distilled, shipped, read without the engine, compared."""

import json
from pathlib import Path

import pytest
import torch
from helpers import MODEL, run, shipped_loader

import ddengine
from ddengine.sets import coreset
from synth.recipes.with_codecs import CODED

DIGITS = [
    "--data.name", "digits", "--data.limit", "400", "--model", MODEL, "--objective.real_batch", "8", "--outer.steps", "2",
    "--outer.evaluate_every", "0", "--outer.picture_every", "0",
]  # fmt: skip
SMALLER = {
    "palettes": ["--codec.colours", "4"],
    "gaussians": ["--codec.primitives", "4", "--codec.fit_steps", "5"],
    "siren": ["--codec.width", "3", "--codec.fit_steps", "5"],
    "fred": ["--codec.kept", "8"],
    "speed": ["--codec.tokens", "4", "--codec.dim", "4", "--codec.kept", "4", "--codec.fit_steps", "5"],
    "haba": ["--codec.styles", "2"],
    "linba": ["--codec.bases", "4"],
}  # fmt: skip
QUICK = [
    "--epochs", "2", "--num_networks", "3", "--lr_grid", "0.03", "--full_steps", "6", "--baselines", "random", "herding",
]  # fmt: skip


def distilled(name, *flags):
    recipe = f"dm/fashion_mnist_ipc1_{name}_small"
    return run("distill", recipe, *DIGITS, *SMALLER.get(name, []), *flags, "--out", name)


def examples(result):
    return result.batch(torch.arange(len(result))).images


@pytest.mark.parametrize("name", [name for name, _, _ in CODED])
def test_load_py_reads_the_same_bits(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert distilled(name) == 0
    result = ddengine.load(name)
    images, targets, _ = shipped_loader(Path(name, "distilled")).load()
    assert torch.equal(images, examples(result)) and len(targets) == len(images) > 10
    stored = sum(size for part, size in result.ledger.items() if part != "labels")
    assert 10 * 64 * 4 * 0.4 < stored <= 10 * 64 * 4


def test_real_images_beside_learned_ones(tmp_path, monkeypatch):
    """Behind the hardest image of a class two harder ones stay, and the next is learned."""
    monkeypatch.chdir(tmp_path)
    known = {}

    def dark_is_hard(real, scoring):
        known["images"], known["members"] = real.pixels, real.members
        return -real.pixels.flatten(1).double().mean(1)

    monkeypatch.setitem(coreset.SCORES, "el2n", dark_is_hard)
    flags = ["--ipc", "3", "--init.steps", "20", "--init.networks", "1", "--out", "mixed"]
    assert run("distill", "dm/fashion_mnist_ipc10_mixed_small", *DIGITS, *flags) == 0
    result = ddengine.load("mixed")
    assert len(result.tensors["frozen"]) == 20 and len(result.tensors["images"]) == 10
    images, _, _ = shipped_loader(Path("mixed", "distilled")).load()
    assert torch.equal(images, examples(result))
    frozen = iter(result.tensors["frozen"])
    for members in known["members"]:
        pixels = known["images"][members]
        darkest = pixels.flatten(1).double().mean(1).argsort(stable=True)
        for place in (1, 2):  # behind int(3 * 0.5)
            assert torch.equal(next(frozen), pixels[darkest[place]])


def test_a_set_beside_its_controls(tmp_path, monkeypatch, capsys):
    """Random images and those of a coreset in the same codec, with as many bytes."""
    monkeypatch.chdir(tmp_path)
    assert distilled("gaussians", "--budget", "ipc1:u8") == 0
    assert ddengine.load("gaussians").meta["recipe"]["budget"] == "ipc1:u8"
    assert run("evaluate", "gaussians", *QUICK) == 0
    rows = {
        row["set"]: row for row in json.loads(Path("gaussians/evaluation.json").read_text())["rows"]
    }
    assert list(rows) == ["distilled", "random_coded", "herding_coded", "random", "herding"]
    for name in ("random_coded", "herding_coded"):
        assert rows[name]["images"] == rows["distilled"]["images"] == 10
        assert rows[name]["bytes"] == rows["distilled"]["bytes"] == 10 * (4 * 7 * 2 + 8)
    assert run("inspect", "gaussians") == 0
    assert "Gaussians" in capsys.readouterr().out
    assert run("report", "gaussians") == 0


def test_what_a_budget_cannot_hold_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert distilled("haba", "--budget", "100") == 2
    said = capsys.readouterr().err
    assert "A budget of 100 bytes holds no image" in said and "set --budget 1648" in said
    assert distilled("haba", "--budget", "ipc1") == 2
    assert "ipcN:f32, ipcN:u8 or a number of bytes" in capsys.readouterr().err
    assert not Path("haba", "distilled").exists()
