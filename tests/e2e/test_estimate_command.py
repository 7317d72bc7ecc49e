"""`run.py estimate` beside the commands it speaks of, and the check of `distill`."""

import json
import tempfile
from pathlib import Path

import pytest
from helpers import MODEL, TINY, run

from ddengine.plan import bounds, calibrate, estimate

RECIPE = "mtt/digits_ipc1"
FLAGS = [
    *TINY,
    "--outer.evaluate_every",
    "4",
    "--evaluation.epochs",
    "5",
    "--evaluation.num_networks",
    "3",
    "--evaluation.full_steps",
    "5",
]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder to work in, and one for temporary files."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.mark.slow
def test_estimate_and_truth(work, capsys, monkeypatch):
    """Nothing is left behind; the disk is right to a tenth; then distill checks before it writes,
    and --force does not.
    """
    assert run("estimate", RECIPE, *FLAGS, "--json", "said/estimate.json") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "about" in shown
        and "2 experts of 3 epochs" in shown
        and "8 steps" in shown
        and "2 validations" in shown
        and "available" in shown
    )
    assert [p.name for p in Path().iterdir()] == ["said"] and list(
        (work / "temporary").iterdir()
    ) == []
    said = {
        part["name"]: part for part in json.loads(Path("said/estimate.json").read_text())["parts"]
    }
    assert list(said) == ["buffer", "distill", "evaluate"]
    assert all(
        0 < part["seconds"] < 600 and 10**8 < part["memory"] < 10**10 for part in said.values()
    )

    assert run("buffer", RECIPE, *FLAGS) == 0
    assert said["buffer"]["disk"] == pytest.approx(calibrate.tree_bytes(Path("experts")), rel=0.1)

    with monkeypatch.context() as patch:
        patch.setattr(bounds, "free_disk", lambda path: 1000)
        assert run("distill", RECIPE, *FLAGS, "--out", "runs/a") == 2
    error = capsys.readouterr().err
    assert (
        "of disk and 1 kB are free where runs/a lies" in error
        and "--force" in error
        and error.count("\n") == 1
    )
    assert not Path("runs").exists()
    monkeypatch.setattr(bounds, "available_memory", lambda device: 1000)
    # a step is tried, in a process that gets nothing
    assert run("distill", RECIPE, *FLAGS, "--out", "runs/a") == 2
    error = capsys.readouterr().err
    assert (
        "of memory beyond what the images take, and 1 kB are available" in error
        and "--force" in error
        and error.count("\n") == 1
    )
    assert not Path("runs").exists()
    assert run("distill", RECIPE, *FLAGS, "--out", "runs/a", "--force") == 0
    assert said["distill"]["disk"] == pytest.approx(calibrate.tree_bytes(Path("runs")), rel=0.1)

    before = calibrate.tree_bytes(Path("runs"))
    assert run("evaluate", "runs/a") == 0
    # the card's lines are not counted
    assert said["evaluate"]["disk"] == pytest.approx(
        calibrate.tree_bytes(Path("runs")) - before, rel=0.25
    )


def test_estimate_refuses_in_a_sentence(work, capsys, monkeypatch):
    assert run("estimate", RECIPE, *TINY, "--json") == 2
    assert "Missing value for argument '--json'" in capsys.readouterr().err
    (work / "full").mkdir()
    (work / "full" / "letter.txt").write_text("dear")
    for path, words in (("full", "is a folder"), ("full/letter.txt/x.json", "cannot be written")):
        with monkeypatch.context() as patch:
            patch.setattr(estimate, "estimate", lambda *args: pytest.fail("calibrated before"))
            assert run("estimate", RECIPE, *TINY, "--json", str(work / path)) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and "--json" in error
    assert (work / "full" / "letter.txt").read_text() == "dear"
    plain = [
        "dm/fashion_mnist_ipc1_small",
        "--data.name",
        "digits",
        "--data.limit",
        "200",
        "--model",
        MODEL,
        "--objective.real_batch",
        "8",
    ]
    assert run("estimate", *plain, "--ipc", "500") == 2
    error = capsys.readouterr().err
    assert "ipc 500 is more than" in error and error.count("\n") == 1
    assert list(Path().iterdir()) == [] and list((work / "temporary").iterdir()) == []
