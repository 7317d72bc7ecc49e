"""Generative distillation by the command line: buffer, distill, evaluate, and what does not go."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import run
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None
    or importlib.util.find_spec("transformers") is None,
    reason="the extra `generative` is not installed",
)
ROOT = Path(__file__).resolve().parents[2]
PARTS = [
    "--data.limit", "100", "--data.size", "8", "8", "--ipc", "2", "--model", "convnet-d1-w4-in",
    "--evaluation.models", "convnet-d1-w4-in", "--evaluation.epochs", "2", "--evaluation.full_steps", "4",
    "--evaluation.baselines", "random", "--evaluation.lr_grid", "0.01", "--evaluation.num_networks", "3",
    "--buffer.step.vae.widths", "8", "8", "--buffer.step.vae.epochs", "1",
    "--buffer.step.fusion.width", "8", "--buffer.step.fusion.epochs", "1",
    "--buffer.step.denoiser.width", "16", "--buffer.step.denoiser.layers", "1", "--buffer.step.denoiser.epochs", "2",
]  # fmt: skip
SAMPLING = ["--objective.steps", "4", "--objective.stop", "1"]
RECIPE = "evlf/digits_ipc10_small"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The folder of trained parts."""
    folder = tmp_path_factory.mktemp("generative") / "store"
    assert run("buffer", RECIPE, *PARTS, "--out", str(folder)) == 0
    return folder


def test_parts_are_made_once_and_sets_of_them_sampled(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {path.name for path in store.iterdir()}
    assert {"expert_0000.safetensors", "latents.safetensors", "manifest.json"} <= names
    assert "training" not in names  # checkpoints go once the expert is stored
    assert run("buffer", RECIPE, *PARTS, "--out", str(store)) == 0
    assert "all 1 experts are in" in capsys.readouterr().out
    words = [RECIPE, *PARTS, *SAMPLING, "--experts", str(store)]
    for name, flags in {
        "evlf": [],
        "again": [],
        "mgd3": ["--objective.fused", "False"],
        "unguided": ["--objective.guidance", "0"],
    }.items():
        assert run("distill", *words, *flags, "--out", name) == 0
    sets = {
        name: load_file(f"{name}/distilled/data.safetensors")
        for name in ("evlf", "again", "mgd3", "unguided")
    }
    assert sets["evlf"]["images"].shape == (20, 1, 8, 8)
    assert torch.equal(sets["evlf"]["images"], sets["again"]["images"])
    for other in ("mgd3", "unguided"):
        assert not torch.equal(sets["evlf"]["images"], sets[other]["images"])
    meta = json.loads(Path("evlf/distilled/meta.json").read_text())
    assert meta["experts"]["model"] == "generative-parts"
    assert "cai2026evlf" in meta["bibtex"]
    assert run("evaluate", "evlf") == 0
    rows = json.loads(Path("evlf/evaluation.json").read_text())["rows"]
    assert {row["set"] for row in rows} >= {"distilled", "random"}
    assert run("inspect", "evlf") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--buffer.num_experts", "2"], "Generative parts make one expert"),
        (["--buffer.keep", "all"], "Generative parts have no trajectory"),
        (["--buffer.step.vae.widths", "8", "8", "8"], "too small for an encoder"),
        (["--buffer.step.folder.vae", "nowhere"], "is no folder here, and nothing is fetched"),
        (["--buffer.step.denoiser.labels", "1", "2"], "numbers of a denoiser of others"),
    ],
)
def test_what_does_not_go_is_said_before_anything_is_made(words, sentence, tmp_path, capsys):
    folder = tmp_path / "store"
    assert run("buffer", RECIPE, *PARTS, *words, "--out", str(folder)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert not (folder / "manifest.json").exists()


def test_more_modes_than_images(store, tmp_path, capsys):
    words = [RECIPE, *PARTS, *SAMPLING, "--experts", str(store), "--ipc", "60"]
    assert run("distill", *words, "--out", str(tmp_path / "run")) == 2
    assert "ipc asks for 60 modes of class" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 1.5])
def test_a_killed_buffer_goes_on_to_the_bit(store, tmp_path, seconds):
    """SIGKILL while parts are trained, with checkpoints written after every update."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from ddengine import commands
from synth.generative import stages
stages.SECONDS = -1.0
sys.exit(commands.main(sys.argv[1:]))
"""
    folder = tmp_path / "store"
    words = [sys.executable, "-c", program, "buffer", RECIPE, *PARTS, "--out", str(folder)]
    child = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    training = folder / "training"
    while not training.exists() and child.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "expert_0000.safetensors").exists()
    subprocess.run(words, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    shards = [load_file(place / "expert_0000.safetensors") for place in (store, folder)]
    for name, tensor in shards[0].items():
        assert torch.equal(tensor, shards[1][name]), name
