"""KRR-ST and FRePo through the command line, at their smallest."""

import json

import pytest
import torch
from helpers import CPU, run

import ddengine
from ddengine.artefact import folder as folders
from ddengine.sets.targets import Features

KRR = [
    "krr_st/digits_ipc5_small", "--data.limit", "200", "--model", "convnet-d1-w4-bn", "--ipc", "2",
    "--buffer.model", "convnet-d1-w6-bn", "--buffer.epochs", "2", "--buffer.batch", "64", "--buffer.step.widths", "16", "8",
    "--objective.pool.size", "2", "--objective.pool.steps", "3", "--objective.real_batch", "32",
    "--outer.steps", "6", "--outer.checkpoint_every", "2", "--outer.picture_every", "0",
]  # fmt: skip
FREPO = [
    "frepo/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200", "--model", "convnet-d1-w4-bn",
    "--objective.pool.size", "2", "--objective.pool.steps", "3", "--objective.real_batch", "32",
    "--outer.steps", "6", "--outer.evaluate_every", "3", "--outer.picture_every", "0", "--evaluation.epochs", "5",
    "--evaluation.num_networks", "1", "--evaluation.baselines", "full", "--evaluation.full_steps", "5", "--evaluation.lr_grid", "0.001",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, in which stores lie."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_set_of_features_is_made_validated_saved_and_loaded(here):
    """Features are learned, of the target network's width; a validation is a linear probe."""
    assert run("buffer", *KRR) == 0
    validated = ["--outer.evaluate_every", "3", "--evaluation.epochs", "5"]
    assert run("distill", *KRR, *validated, "--out", "run") == 0
    syn, meta = folders.load(here / "run/distilled", CPU)
    assert syn.targets == Features("stored") and syn.tensors["features"].shape == (20, 96)
    assert meta["target_kind"] == "features" and meta["distillation"]["validation_accuracy"] > 0
    loaded = ddengine.load(here / "run")
    loaded.save(here / "copy")
    again = ddengine.load(here / "copy")
    for name in ("images", "features"):
        assert torch.equal(again.tensors[name], syn.tensors[name])
    lines = (here / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6 and all(json.loads(line)["applied"] for line in lines)


def test_a_missing_target_network_is_a_sentence(here, capsys):
    """What to do is said, and nothing is written."""
    assert run("distill", *KRR, "--out", "run") == 2
    assert "make it with the buffer command" in capsys.readouterr().err
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--targets.kind", "class"], "targets.kind class is nothing that this objective can"),
        (["--objective.pool.steps", "1"], "objective.pool.steps must be at least 2"),
        (["--ipc", "19"], "starts from 190 images, and there are 180"),
    ],
)
def test_bad_settings_are_a_sentence(here, capsys, flags, sentence):
    """Before the first step, with exit code 2."""
    assert run("buffer", *KRR) == 0
    assert run("distill", *KRR, *flags, "--out", "run") == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (here / "run").exists()


def test_frepo_is_distilled_and_evaluated(here):
    """Labels are learned, and students are fitted to them by squared error."""
    assert run("distill", *FREPO, "--out", "run") == 0
    syn, _ = folders.load(here / "run/distilled", CPU)
    labels = syn.tensors["logits"]
    start = torch.eye(10) - 0.1
    assert labels.shape == (10, 10) and not torch.equal(labels, start)
    assert torch.allclose(labels, start, atol=0.1)
    assert run("evaluate", "run") == 0
    evaluation = json.loads((here / "run/distilled/evaluation.json").read_text())
    assert evaluation["protocol"]["loss"] == "mse"
    assert {row["set"] for row in evaluation["rows"]} == {"distilled", "full"}
