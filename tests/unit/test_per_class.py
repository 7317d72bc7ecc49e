"""Accuracy class by class, and balanced accuracy, which a long tail does not hide."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CPU, DIGITS, MODEL, tiny_set
from rich.console import Console
from torch import nn

from ddengine.data import Preprocess, RealSet, load_data
from ddengine.data.subset import of_classes
from ddengine.evaluation import bench, tables
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.rows import by_class, distinct
from ddengine.learning import training
from ddengine.pages import page
from ddengine.recipe import EvalConfig

SHORT = EvalConfig(
    protocol="fast",
    epochs=2,
    batch=32,
    num_networks=2,
    full_steps=3,
    baselines=("full",),
    lr_grid=(0.01,),
    search_networks=1,
)
PLAIN = Preprocess(mean=torch.zeros(1), std=torch.ones(1))


class Says(nn.Module):
    """Answers what the first pixel, in 255ths, tells."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images):
        return nn.functional.one_hot(
            (images[:, 0, 0, 0] * 255).round().long(), self.num_classes
        ).float()


def answers(*pairs):
    """Images (1, 1) whose network says the first of each pair, and whose class is the second."""
    said, labels = (torch.tensor(part) for part in zip(*pairs, strict=True))
    return RealSet(said.to(torch.uint8).view(-1, 1, 1, 1), labels, 3, PLAIN)


def test_what_is_right_of_each_class():
    """Three classes, one of them without images; more images than a batch of the test."""
    pairs = [(0, 0)] * 1500 + [(1, 0)] * 500 + [(2, 2)] * 3 + [(0, 2)]
    found = training.classified(Says().train(), answers(*pairs))
    assert (found.right, found.images, found.diverged) == ((1500, 0, 3), (2000, 0, 4), False)
    assert found.accuracy == training.accuracy(Says(), answers(*pairs)) == 1503 / 2004


def test_a_row_says_balanced_accuracy_and_each_class():
    """By hand: two networks, classes of 90, 0 and 10 images; the means over networks, and their
    deviation.
    """
    run = {"accuracies": [0.9, 0.74], "right": [[90, 0, 0], [72, 0, 2]]}
    row = by_class(run, [90, 0, 10], ("cat", "dog", "owl"))
    assert row["per_class"] == {"cat": pytest.approx(0.9), "dog": None, "owl": pytest.approx(0.1)}
    assert row["balanced_accuracy_mean"] == pytest.approx(0.5) and row[
        "balanced_accuracy_std"
    ] == pytest.approx(0.0)
    run["right"][1] = [45, 0, 10]
    assert by_class(run, [90, 0, 10], "abc")["balanced_accuracy_std"] == pytest.approx(
        0.25 / 2**0.5
    )
    one = by_class(
        {"accuracies": [None, 0.9], "right": [[1, 2, 3], [81, 0, 9]]}, [90, 0, 10], "abc"
    )
    assert (
        one["per_class"] == {"a": 0.9, "b": None, "c": 0.9} and one["balanced_accuracy_std"] is None
    )
    none = by_class({"accuracies": [None], "right": [[1, 2, 3]]}, [90, 0, 10], "abc")
    assert none == {
        "balanced_accuracy_mean": None,
        "balanced_accuracy_std": None,
        "per_class": {"a": None, "b": None, "c": None},
    }


def test_classes_of_one_name_are_told_apart():
    assert distinct(("crane", "maillot", "crane")) == ["crane (0)", "maillot", "crane (2)"]


@pytest.fixture(scope="module")
def long_tail():
    """Digits whose test split has all zeros, a few ones and twos, and none of the others."""
    data = load_data(DIGITS, CPU, test=True)
    test = of_classes(data.test, [0, 1, 2])
    kept = torch.cat([m[:n] for m, n in zip(test.members[:3], (30, 6, 2), strict=True)])
    tail = RealSet(test.pixels[kept], test.labels[kept], 10, test.preprocess)
    return replace(data, test=tail, num_test=len(tail))


def test_an_evaluation_of_a_long_tail(long_tail, tmp_path):
    """Rows, table, notes and page; the accuracy is the mean over images, the balanced one over the
    classes that have any.
    """
    memo = tmp_path / "memo.jsonl"
    found = evaluate(
        tiny_set(long_tail), long_tail, SHORT, MODEL, seed=0, device=CPU, memo_path=memo
    )
    counts = found["test_images_per_class"]
    assert [counts[name] for name in long_tail.class_names[:4]] == [30, 6, 2, 0] and sum(
        counts.values()
    ) == 38
    for row in found["rows"]:
        shares = [row["per_class"][name] for name in long_tail.class_names]
        assert shares[3:] == [None] * 7
        assert row["accuracy_mean"] == pytest.approx(np.dot(shares[:3], [30, 6, 2]) / 38)
        assert (
            row["balanced_accuracy_mean"] == pytest.approx(np.mean(shares[:3]))
            and row["balanced_accuracy_std"] is not None
        )
    assert tables.uneven(found)
    console = Console(width=80, file=io.StringIO())
    console.print(tables.table(found, "digits"))
    shown = console.file.getvalue()
    assert (
        "balanced %" in shown and f"{100 * found['rows'][0]['balanced_accuracy_mean']:.1f}" in shown
    )
    assert all(len(line) <= 80 for line in shown.splitlines())
    worst = min(
        (share, name) for name, share in found["rows"][0]["per_class"].items() if share is not None
    )
    line = next(line for line in tables.notes(found) if line.startswith("worst class of distilled"))
    assert f"{100 * worst[0]:.1f} % of its" in line and any(
        repr(n) in line for n in long_tail.class_names[:3]
    )
    (tmp_path / "evaluation.json").write_text(json.dumps(found, allow_nan=False))
    text = page.write([tmp_path], tmp_path / "report.html").read_text()
    assert (
        "<details><summary>Accuracy on each class</summary>" in text
        and '<th scope="col">Balanced %</th>' in text
    )
    assert (
        '<th scope="row">0</th><td>30</td>' in text
        and '<th scope="row">9</th><td>0</td><td>\N{EN DASH}</td>' in text
    )


def test_balanced_classes_have_no_column_and_old_files_are_shown(long_tail):
    """Up to a tenth more images of one class than of another; an evaluation without the fields."""
    even = {"rows": [], "test_images_per_class": {"a": 100, "b": 110}}
    assert not tables.uneven(even) and tables.uneven(
        {"test_images_per_class": {"a": 100, "b": 111}}
    )
    old = {
        "set": "distilled",
        "model": "mlp",
        "accuracy_mean": 0.5,
        "accuracy_std": None,
        "ci95": None,
        "n": 1,
        "lr": 0.1,
        "steps": 1,
        "seconds": 1.0,
    }
    drawn = tables.table({"rows": [old]}, "")
    assert [column.header for column in drawn.columns] == [
        "set",
        "accuracy %",
        "95 % interval",
        "lr",
        "n",
        "updates",
        "time",
    ]
    assert tables.notes({"rows": [old]}) == []


def test_an_interrupted_evaluation_keeps_the_classes(long_tail, tmp_path, monkeypatch):
    """What an older program left is computed again; what this one left is taken as it is."""
    syn, memo = tiny_set(long_tail), tmp_path / "memo.jsonl"
    whole = evaluate(syn, long_tail, SHORT, MODEL, seed=0, device=CPU)["rows"]
    original, left = bench.Bench.accuracies, []

    def stopping(self, *args):
        if len(left) == 2:
            raise KeyboardInterrupt
        left.append(args[0].who.name)
        return original(self, *args)

    old = {
        "identity": "of an older program",
        "key": "final/distilled",
        "value": {"accuracies": [0.1, 0.2], "seconds": 1.0},
    }
    memo.write_text(json.dumps(old) + "\n")
    monkeypatch.setattr(bench.Bench, "accuracies", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(syn, long_tail, SHORT, MODEL, seed=0, device=CPU, memo_path=memo)
    monkeypatch.setattr(bench.Bench, "accuracies", original)
    again = evaluate(syn, long_tail, SHORT, MODEL, seed=0, device=CPU, memo_path=memo)["rows"]
    for a, b in zip(again, whole, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }
