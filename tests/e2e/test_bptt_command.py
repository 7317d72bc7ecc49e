"""DD, RTP, RaT-BPTT and AT-BPTT through the command line, from the recipe to the shipped folder."""

import json

import pytest
import torch
from helpers import MODEL, run, shipped_loader

from ddengine.artefact import folder as folders

TINY = [
    "--data.limit", "200", "--model", MODEL, "--outer.steps", "3", "--outer.evaluate_every", "0",
    "--outer.picture_every", "0", "--objective.real_batch", "32",
]  # fmt: skip
QUICK = ["--updates", "4", "--num_networks", "3", "--baselines", "random"]
# the optimiser of students by its name in torch, and its step size
STUDENTS = {
    "dd": ("SGD", None),
    "rtp": ("SGD", 0.02),
    "rat": ("Adam", 0.005),
    "at": ("Adam", 0.005),
}
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
    optimiser, lr = STUDENTS[method]
    assert distilled["set"] == "distilled" and distilled["steps"] == 4
    meta = json.loads((out / "distilled" / "meta.json").read_text())
    assert meta["protocol"]["optimiser"] == optimiser and meta["protocol"]["updates"] == 4
    rates = meta["protocol"]["rates"]
    assert distilled["lr"] == (lr or pytest.approx(sum(rates) / len(rates)))
    assert len(rates) == (10 if method == "dd" else 0)
    syn, _ = folders.load(out / "distilled", torch.device("cpu"))
    images, targets, _ = shipped_loader(out / "distilled").load(out / "distilled")
    ours = syn.batch(torch.arange(len(syn)))
    assert torch.equal(images, ours.images) and torch.equal(targets, ours.targets)
    assert syn.images_per_class() <= 1
    assert run("report", str(out)) == 0
    assert f"which train as {len(syn)} examples" in (out / "report.html").read_text()
    assert run("inspect", str(out)) == 0
    merged = run("merge", str(out), str(out), "--out", str(tmp_path / "both"))
    assert merged == (2 if method in ("rtp", "dd") else 0)
    if method == "rtp":
        assert len(syn) == 60 and {"bases", "coefficients"} <= syn.tensors.keys()
    if method == "dd":
        assert syn.tensors["rates"].shape == (10,)


def test_flags_that_students_decide_are_refused(tmp_path, capsys):
    """In a sentence that names those that they do not; without students they hold."""
    out = str(tmp_path / "run")
    assert run("distill", "rat/digits_ipc1", *TINY, *WINDOWS["rat"], "--out", out) == 0
    evaluate = ["evaluate", out, "--protocol", "bptt", "--num_networks", "3", "--baselines"]
    assert run(*evaluate, "random", "--epochs", "4") == 2
    assert "evaluation.epochs says nothing here" in capsys.readouterr().err
    plain = ["random", "--epochs", "4", "--as_students", "False"]
    assert run(*evaluate, *plain) == 0
    said = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "students" not in said["protocol"] and said["protocol"]["lr"] == 0.001
    assert said["rows"][0]["steps"] == 4


def test_what_does_not_fit_is_said_before_anything_is_made(tmp_path, capsys):
    """A window that is longer than the training."""
    distill = ["distill", "rat/digits_ipc1", "--out", str(tmp_path / "run")]
    assert run(*distill, "--objective.inner_steps", "5") == 2
    assert "objective.window may take 10 steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "method, flag, value, words",
    [
        ("rat", "update.beta1", "1.5", "beta1 of Adam"),
        ("rat", "update.eps", "-1", "eps of Adam"),
        ("rtp", "update.momentum", "1", "momentum of HeavyBall"),
        ("at", "window.early_gain", "nan", "objective.window.early_gain"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, capsys, method, flag, value, words):
    distill = ["distill", f"{method}/digits_ipc1", "--out", str(tmp_path / "run")]
    assert run(*distill, f"--objective.{flag}", value) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("codec", ["rtp/digits_ipc1", "idc/fashion_mnist_ipc1_small"])
def test_a_codec_of_another_recipe_says_which_rates_it_needs(tmp_path, capsys, codec):
    """And with these it goes; a codec with the same tensors needs none."""
    distill = ["distill", "rat/digits_ipc1", *TINY, *WINDOWS["rat"], "--outer.steps", "1"]
    distill += ["--out", str(tmp_path / "run"), "--take", f"codec={codec}"]
    if codec.startswith("rtp"):
        assert run(*distill) == 2
        advice = f"--take outer.optim={codec}"
        assert f"take the rates from {codec} too ({advice})" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        distill += advice.split()
    assert run(*distill) == 0


@pytest.mark.parametrize("name", ["AdamW", "NAdam"])
def test_an_optimiser_that_higher_refuses_is_said_at_once(tmp_path, capsys, name):
    """With what to do; an optimiser that it knows is a flag away."""
    distill = ["distill", "rat/digits_ipc1_adagrad", *TINY, *WINDOWS["rat"]]
    distill += ["--out", str(tmp_path / "run"), "--objective.update.name"]
    assert run(*distill, name) == 2
    said = capsys.readouterr().err
    assert f"cannot differentiate torch's {name}" in said and "objective.inner unroll" in said
    assert not (tmp_path / "run").exists()
    if name == "NAdam":
        assert run(*distill, "Adamax") == 0
        with pytest.raises(SystemExit):
            run("distill", "rat/digits_ipc1_adagrad", "--help")
        _, _, offered = capsys.readouterr().out.partition("--objective.update.name")
        assert "Adamax" in offered[:300] and "AdamW" not in offered[:300]


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
