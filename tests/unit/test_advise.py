"""Which recipe for which images and time: only what was measured is said, and time is obeyed."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import run

import buffers
import ddengine
import synth
from ddengine.api import advise as module
from ddengine.api import estimate as of_estimate
from ddengine.data import Dataset
from ddengine.plan.apart import apart
from ddengine.plan.estimate import Part
from ddengine.system.errors import UserError
from synth.catalogue import find
from synth.measured import measurements

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture
def calibrated(monkeypatch):
    """Every recipe takes 100 s of experts where it reads some, and a second a step."""
    seen = []

    def fake(job, missing, *, evaluates, until):
        assert not evaluates  # which nobody asked about
        seen.append(job.recipe)
        buffer = 100.0 if job.recipe.buffer is not None else 0.0
        return [
            Part("buffer", buffer, 10, 0, ""),
            Part("distill", float(job.recipe.outer.steps), 2 * 10**9, 0, ""),
        ]

    monkeypatch.setattr(of_estimate.plan, "estimate", fake)
    return seen


def grey(num=400, side=28, classes=10):
    """Grey images of some classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 1, side, side), generator=generator, dtype=torch.uint8)
    return images, torch.arange(num) % classes


def advised(data, **options):
    """The rows of the advice by recipe."""
    outcome = ddengine.advise(data, synth.candidates(), progress=False, **options)
    return {row["recipe"]: row for row in outcome.rows}, outcome


def test_the_file_of_what_was_measured_is_made_of_the_tables_of_results():
    import measured

    stored = json.loads((ROOT / "synth/measured.json").read_text())
    assert stored == json.loads(json.dumps(measured.entries())) and len(stored) > 20
    assert all((ROOT / entry["source"]).is_file() for entry in stored)


def test_what_is_comparable_is_quoted_and_nothing_else(calibrated):
    """Images like those of the tables have their figure; photographs have none."""
    similar, outcome = advised(grey(num=2000))
    of_dm = similar["own/folder"]["expect"]
    best = next(row for name, row in measurements() if name == "dm/fashion_mnist_ipc10_small")
    assert of_dm == best.said() and "fashion_mnist" in of_dm and "IPC 10" in of_dm
    assert f"{100 * best.accuracy:.1f}" in of_dm and best.source in of_dm
    assert "random 73.1" in of_dm
    photographs = torch.zeros(300, 3, 64, 64, dtype=torch.uint8)
    other, outcome = advised((photographs, torch.arange(300) % 4))
    assert all(row["expect"] is None for row in other.values())
    assert "nothing comparable was measured" in str(outcome)
    assert all("nothing comparable" in note for note in outcome.notes if "distill" not in note)
    assert sum("nothing comparable" in note for note in outcome.notes) == len(other)


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"shape": (3, 28, 28)}, False),
        ({"shape": (1, 64, 64)}, False),
        ({"classes": 21}, False),
        ({"images": 5000}, False),
        ({"ipc": 50}, False),
        ({"ipc": 50, "data": "own"}, False),
        ({"shape": (3, 64, 64), "data": "own"}, True),
    ],
)
def test_what_is_compared(calibrated, changes, comparable):
    base = replace(measurements()[0][1], images=400, shape=(1, 28, 28), classes=10, ipc=10)
    candidate = module.Candidate(synth.find("own/folder"), (replace(base, **changes),))
    outcome = ddengine.advise(grey(), [candidate], progress=False)
    assert (outcome.rows[0]["expect"] is not None) == comparable


def test_steps_are_cut_to_the_time_and_what_does_not_fit_is_said(calibrated):
    rows, outcome = advised(grey(), minutes=1.0, experts=buffers.stores)
    assert rows["own/folder"]["steps"] == 60 and rows["own/folder"]["seconds"] == 60
    assert "--outer.steps 60" in rows["own/folder"]["command"]
    distilled, evaluated = rows["own/folder"]["command"].split(" && ")
    assert distilled.endswith("--out runs/own-folder")
    assert evaluated.endswith("evaluate runs/own-folder")
    # the experts alone take longer
    assert rows["tesla/fashion_mnist_ipc10_small"]["fits"] is False and "too long" in str(outcome)
    assert not any("tesla/fashion" in note and "distill" in note for note in outcome.notes)
    # in its place comes another that fits, and what fits comes first
    assert [row["fits"] for row in outcome.rows] == [True] * 3 + [False] * 3
    rows, _ = advised(grey(), minutes=1000.0)
    assert rows["own/folder"]["steps"] == 200
    # nobody said where experts lie
    assert "tesla/fashion_mnist_ipc10_small" not in rows


def test_a_quarter_of_the_time_is_for_calibrations(calibrated, monkeypatch):
    """What was not calibrated by then is named without a time, and its command with all steps."""
    deadlines = []

    def late(job, missing, *, evaluates, until):
        deadlines.append(until - time.monotonic())
        raise TimeoutError

    monkeypatch.setattr(of_estimate.plan, "estimate", late)
    rows, outcome = advised(grey(), minutes=2.0)
    assert len(rows) == 3 and all(0 < seconds <= 30 for seconds in deadlines)
    assert rows["own/folder"]["fits"] is None and rows["own/folder"]["seconds"] is None
    assert "--outer.steps 200" in rows["own/folder"]["command"]
    assert "not calibrated" in str(outcome) and "a quarter of the time given, 30 s" in str(outcome)


def test_what_cannot_be_done_here_is_left_out_and_said(calibrated, monkeypatch, capsys):
    """Such as a method whose library is not installed; where nothing can, the reason is told."""
    fake = of_estimate.plan.estimate

    def failing(job, missing, *, evaluates, until):
        if job.recipe.name in broken:
            raise UserError(f"{job.recipe.name} needs a library; install it.")
        return fake(job, missing, evaluates=evaluates, until=until)

    monkeypatch.setattr(of_estimate.plan, "estimate", failing)
    broken = {"own/folder"}
    outcome = ddengine.advise(grey(), synth.candidates(), minutes=1000.0)
    assert len(outcome.rows) == 3 and "own/folder" not in str(outcome.rows)
    said = " ".join(capsys.readouterr().out.split())
    assert "own/folder is left out: own/folder needs a library; install it." in said
    broken = {candidate.recipe.name for candidate in synth.candidates()}
    with pytest.raises(UserError, match="needs a library; install it"):
        ddengine.advise(grey(), synth.candidates(), minutes=1000.0, progress=False)


def test_a_second_of_time_starts_no_process(monkeypatch):
    monkeypatch.setattr("ddengine.plan.apart.mp.get_context", lambda kind: pytest.fail(kind))
    began = time.monotonic()
    rows, _ = advised(grey(num=60), minutes=1e-6)
    assert all(row["seconds"] is None for row in rows.values())
    assert time.monotonic() - began < 5


def test_a_calibration_that_takes_too_long_is_ended():
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        apart(sleeping, until=began + 0.3)
    assert time.monotonic() - began < 3


def sleeping(began):
    """Longer than anybody waits."""
    time.sleep(60)


def test_calibrations_are_remembered(calibrated, tmp_path):
    """Of the same recipe, images and machine, in the folder that is named."""
    first, _ = advised(grey(), calibrations=tmp_path)
    num = len(calibrated)
    second, _ = advised(grey(), calibrations=tmp_path, minutes=1000.0)
    assert len(calibrated) == num == 3
    assert second["own/folder"]["seconds"] == first["own/folder"]["seconds"] == 200
    advised(grey(num=410), calibrations=tmp_path)
    assert len(calibrated) == 6


def test_the_recipes_are_made_for_the_images(calibrated):
    """All of them, a network of their size, no more images per class than there are."""
    advised(grey(num=60, side=40, classes=12))
    for recipe in calibrated:
        assert recipe.model == "convnet-d3-w32-in" and recipe.ipc == (
            1 if "idc" in recipe.name else 5
        )
        assert recipe.data.limit is None
    assert [module.network_for(side) for side in (8, 16, 28, 32, 64, 224)] == [
        f"convnet-d{depth}-w32-in" for depth in (1, 2, 2, 3, 4, 4)
    ]


def test_the_command(calibrated, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where calibrations are kept
    assert run("advise", "--data.name", "digits", "--minutes", "2") == 0
    said = capsys.readouterr().out
    assert "dm/digits_ipc10" in said and "10 classes, 1295 training images" in said
    assert "--data.name digits" in said.replace("\n", " ")
    assert run("advise", "--data.name", "digits", "--minutes", "-1") == 2
    assert "minutes must be positive" in capsys.readouterr().err
    assert run("advise") == 2
    assert "name their folder with --data.root" in capsys.readouterr().err


def test_no_candidates_are_refused(calibrated):
    with pytest.raises(UserError, match="No candidate can be tried"):
        ddengine.advise(Dataset.named("digits"), [], progress=False)


@pytest.mark.parametrize(
    "dataset, first",
    [
        ("digits", "dm/digits_ipc10"),
        ("cifar10", "dm/cifar10_ipc10_small"),
        ("fashion_mnist", "dm/fashion_mnist_ipc10_small"),
        ("mnist", "dm/fashion_mnist_ipc10_small"),
        ("own", "own/folder"),
        ("folder", "own/folder"),
    ],
)
def test_recipes_of_the_dataset_itself_are_tried_where_there_are_any(dataset, first):
    names = [candidate.recipe.name for candidate in synth.candidates(dataset)]
    assert names[0] == first and len(names) == len(set(names))
    # a method that has a small recipe is a choice; kinds of objectives alternate
    assert {name.split("/")[0] for name in names} - {"own"} >= {"mtt", "idc", "rtp", "infer", "at"}
    kinds = [type(find(name).objective) for name in names[:5]]
    assert len(set(kinds)) == 5
    assert not any("krr_st" in name for name in names)  # whose targets are no classes
