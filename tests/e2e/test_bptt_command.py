"""DD, RTP, RaT-BPTT and AT-BPTT through the command line, from the recipe to the shipped folder."""

import json

import pytest
import torch
from helpers import MODEL, run, shipped_loader

from ddengine.artefact import folder as folders

pytestmark = pytest.mark.usefixtures("no_chart")

TINY = [
    "--data.limit", "200", "--model", MODEL, "--outer.steps", "3", "--outer.evaluate_every", "0",
    "--outer.picture_every", "0", "--objective.real_batch", "32",
]  # fmt: skip
QUICK = ["--epochs", "4", "--num_networks", "3", "--baselines", "random"]
WINDOWS = {
    "dd": [],
    "rtp": ["--objective.inner_steps", "4", "--objective.window.size", "4"],
    "rat": ["--objective.inner_steps", "6", "--objective.window.size", "2"],
    "at": [
        "--objective.inner_steps", "6", "--objective.window.size", "2",
        "--objective.window.spread", "1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", WINDOWS)
def test_from_the_recipe_to_the_folder(method, tmp_path):
    """Distilled, trained on by the protocol of the students, and read by load.py to the bit."""
    out = tmp_path / method
    assert run("distill", f"{method}/digits_ipc1", *TINY, *WINDOWS[method], "--out", str(out)) == 0
    assert run("evaluate", str(out), "--protocol", "bptt", *QUICK) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    distilled = evaluation["rows"][0]
    assert distilled["set"] == "distilled" and distilled["lr"] == 0.001
    meta = json.loads((out / "distilled" / "meta.json").read_text())
    assert meta["protocol"]["drops"] == [] or all(
        not drop["optimiser_restarts"] and drop["lr_factor"] == 1.0
        for drop in meta["protocol"]["drops"]
    )
    syn, _ = folders.load(out / "distilled", torch.device("cpu"))
    images, targets, _ = shipped_loader(out / "distilled").load(out / "distilled")
    ours = syn.batch(torch.arange(len(syn)))
    assert torch.equal(images, ours.images) and torch.equal(targets, ours.targets)
    assert syn.images_per_class() <= 1
    if method == "rtp":
        assert len(syn) == 60 and {"bases", "coefficients"} <= syn.tensors.keys()
    if method == "dd":
        assert syn.tensors["rates"].shape == (10,)


def test_what_does_not_fit_is_said_before_anything_is_made(tmp_path, capsys):
    """A window that is longer than the training."""
    distill = ["distill", "rat/digits_ipc1", "--out", str(tmp_path / "run")]
    assert run(*distill, "--objective.inner_steps", "5") == 2
    assert "objective.window may take 10 steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_higher_differentiates_the_same_training(tmp_path):
    """The images move as by our own way back, up to rounding."""
    moved = []
    for inner in ("unroll", "higher"):
        out = tmp_path / inner
        flags = [*TINY, *WINDOWS["rat"], "--outer.steps", "1", "--objective.inner", inner]
        assert run("distill", "rat/digits_ipc1", *flags, "--out", str(out)) == 0
        syn, _ = folders.load(out / "distilled", torch.device("cpu"))
        moved.append(syn.tensors["images"])
    assert torch.allclose(*moved, atol=1e-3)
    assert not torch.equal(*moved)
