"""A sweep: all runs, in processes, once; the same from Python; killed and continued; failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import MODEL, TINY, run
from safetensors.torch import load_file

import buffers
import ddengine
from ddengine.commands.sweep import evaluate_words, grid_of
from ddengine.system.errors import UserError
from synth.catalogue import find

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "mtt/digits_ipc1"
CHANGES = {
    "data": {"limit": 200},
    "model": MODEL,
    "buffer": {"num_experts": 2, "epochs": 3},
    "objective": {"window": {"high": 2}, "expert_epochs": 1, "inner_steps": 3},
    "outer": {"steps": 8, "checkpoint_every": 2, "evaluate_every": 0},
}  # the flags of TINY
# flags of evaluate alone, and what they are in Python
QUICK = ["--epochs", "5", "--num_networks", "3", "--lr_grid", "0.01", "--baselines", "random"]
PROTOCOL = {"epochs": 5, "num_networks": 3, "lr_grid": (0.01,), "baselines": ("random",)}
GRID = {"outer.optim.images.lr": [1.0, 50.0]}
SEEDS = [0, 1]
NAMES = [f"images.lr={lr},seed={seed}" for seed in SEEDS for lr in (1, 50)]
DM = [
    "dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200", "--model", MODEL,
    "--outer.checkpoint_every", "1", "--outer.evaluate_every", "0", *QUICK, "--jobs", "1",
]  # fmt: skip
# what is left to the machine: whether the inner training is compiled, which 8 steps do not pay for
CHOSEN = ["--compile", "auto"]


def sweep(*flags: str) -> int:
    """The exit code of a sweep by the command line."""
    return run("sweep", RECIPE, *TINY, *QUICK, *CHOSEN, "--jobs", "2", *flags)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a sweep of two settings over two seeds; (folder, what was said).

    Processes that share the tests make it once, and each has a copy.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # which they have in common
    original = place / "sweep of all"
    with FileLock(place / "sweep.lock"):
        if not (original / "said").is_file():
            original.mkdir(exist_ok=True)
            (original / "said").write_text(swept_in(original))
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copytree(original, folder, dirs_exist_ok=True)
    return folder, (folder / "said").read_text()


def swept_in(folder: Path) -> str:
    """What a sweep said that was made in a folder."""
    command = [sys.executable, str(ROOT / "run.py"), "sweep", RECIPE, *TINY, *QUICK, *CHOSEN]
    command += ["--grid", "outer.optim.images.lr=1,50", "--seeds", "0,1", "--out", "swept"]
    made = subprocess.run([*command, "--jobs", "2"], cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the set of a run."""
    return load_file(folder / "distilled" / "data.safetensors")


def same_run(first: Path, second: Path) -> bool:
    """Whether two runs have the same set, to the bit, and the same accuracies."""
    one, other = tensors(first), tensors(second)
    equal = all(torch.equal(one[name], other[name]) for name in one)
    return equal and accuracies(first) == accuracies(second)


def accuracies(folder: Path) -> list:
    """Those of all networks of an evaluation."""
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    return [network["accuracy"] for row in rows for network in row["accuracies"]]


def test_all_runs_are_made_and_experts_once(done):
    folder, said = done
    names = [path.name for path in (folder / "swept/runs").iterdir()]
    assert sorted({*names} - {".baselines", ".compiled"}) == sorted(NAMES)
    assert len(list((folder / "experts").iterdir())) == 1
    assert "4 runs; 2 at a time, each on one thread (--jobs)" in said
    assert "experts: 1 of the stores that the runs follow lack some" in said
    for number, name in enumerate(NAMES):
        meta = json.loads((folder / "swept/runs" / name / "distilled/meta.json").read_text())
        assert meta["seed"] == SEEDS[number // 2]
        rate = meta["recipe"]["outer"]["optim"]["images"]["lr"]
        assert rate == GRID["outer.optim.images.lr"][number % 2]
        assert f"{name}: " in said
    assert "(4/4)" in said and "images.lr" in said
    for name in ("comparison.csv", "comparison.tex", "comparison.png", "sweep.json"):
        assert (folder / "swept" / name).stat().st_size > 0


def test_finished_runs_are_not_made_again(done, monkeypatch, capsys):
    folder, _ = done
    monkeypatch.chdir(folder)
    times = {path: path.stat().st_mtime_ns for path in Path("swept/runs").rglob("*")}
    flags = ["--grid", "outer.optim.images.lr=1,50", "--seeds", "0,1", "--out", "swept"]
    assert sweep(*flags) == 0
    assert "all 4 runs are finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("swept/runs").rglob("*")} == times
    # some of them are a sweep too, and the folder still knows all
    assert sweep("--grid", "outer.optim.images.lr=1", "--out", "swept") == 0
    assert "all 1 runs are finished" in capsys.readouterr().out
    assert sorted(json.loads(Path("swept/sweep.json").read_text())["runs"]) == sorted(NAMES)


def test_a_run_is_what_distill_and_evaluate_make(done, tmp_path, monkeypatch):
    """To the bit, and it says the command that makes it."""
    folder, _ = done
    monkeypatch.chdir(folder)
    of_sweep = folder / "swept/runs" / NAMES[3]
    out = str(tmp_path / "alone")
    flags = ["--outer.optim.images.lr", "50.0", "--seed", "1"]
    assert run("distill", RECIPE, *TINY, *flags, "--out", out) == 0
    assert run("evaluate", out, *QUICK) == 0
    assert same_run(of_sweep, Path(out))
    shipped = of_sweep / "distilled" / "evaluation.json"
    assert json.loads(shipped.read_text())["rows"], "the set says what it is worth"
    command = json.loads((of_sweep / "recipe.json").read_text())["command"]
    words = command[command.index("distill") :]
    flags = [*TINY, *CHOSEN, *flags]
    assert words == ["distill", RECIPE, *flags, "--out", f"swept/runs/{NAMES[3]}"]
    assert run(*words) == 0, "the command finds its run"
    content = json.loads((of_sweep / "evaluation.json").read_text())
    assert content["command"][-len(QUICK) - 1 :] == [f"swept/runs/{NAMES[3]}", *QUICK]


@pytest.mark.slow
def test_python_makes_the_same(done, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder)
    outcome = ddengine.sweep(
        None,
        find(RECIPE, **CHANGES),
        grid=GRID,
        seeds=SEEDS,
        folder="again",
        jobs=2,
        experts=buffers.ExpertMaker(),
        evaluation={"protocol": PROTOCOL},
        progress=False,
    )
    for name in NAMES:
        assert same_run(folder / "swept/runs" / name, folder / "again/runs" / name)
    assert not outcome.content["failed"] and len(outcome) == 2
    numbers = ("accuracy_mean", "ci95", "between_std", "within_std", "difference", "p", "seeds")
    by_command = ddengine.compare(["swept"])  # as the command line made them
    for row, wanted in zip(outcome.rows, by_command.rows, strict=True):
        assert {name: row[name] for name in numbers} == {name: wanted[name] for name in numbers}
    assert "less row 1" in str(outcome)
    page = ddengine.report("again")
    assert page == Path("again/report.html")
    assert page.read_text().count("Settings over distillations") == 1


def linear(shape, num_classes):
    """A network of a user, which a process that is given it imports."""
    channels, height, width = shape
    flat = channels * height * width
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(flat, num_classes))


def test_networks_of_the_user_are_kept_in_the_runs_and_not_in_their_sets(tmp_path, monkeypatch):
    """So a run is finished with them, and its card says nothing of what nobody else has."""
    monkeypatch.chdir(tmp_path)
    outer = {"steps": 2, "evaluate_every": 0}
    data = {"name": "digits", "limit": 200}
    recipe = find("dm/fashion_mnist_ipc1_small", model=MODEL, data=data, outer=outer)
    asked = {"models": [linear], "protocol": PROTOCOL}
    outcome = ddengine.sweep(None, recipe, folder="swept", jobs=1, evaluation=asked, progress=False)
    assert not outcome.content["failed"]
    (made,) = Path("swept/runs").glob("[!.]*")
    rows = json.loads((made / "evaluation.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"linear"}
    assert not (made / "distilled" / "evaluation.json").exists()


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path):
    """Killed in the middle of its second run: the first is left, the second goes on to the bit."""
    flags = ["sweep", *DM, "--outer.steps", "30", "--seeds", "0,1", "--out", "killed"]
    command = [sys.executable, str(ROOT / "run.py"), *flags]
    first, second = (tmp_path / "killed/runs" / f"seed={seed}" for seed in (0, 1))
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        wait_for(
            lambda: (second / "checkpoint").is_dir() and any((second / "checkpoint").iterdir())
        )
        started.send_signal(signal.SIGKILL)
        started.wait()
    assert (first / "evaluation.json").is_file()
    assert not (second / "evaluation.json").is_file()
    steps = (second / "metrics.jsonl").read_text().count("\n")
    time.sleep(3)
    assert (second / "metrics.jsonl").read_text().count("\n") <= steps + 2, "the run has ended too"
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 of them finished; 1 at a time" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    whole = [*DM, "--outer.steps", "30", "--seeds", "1", "--out", "whole"]
    assert in_folder(tmp_path, "sweep", *whole) == 0
    assert same_run(second, tmp_path / "whole/runs/seed=1")


def in_folder(folder: Path, *args: str) -> int:
    """The exit code of a command line in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(*args)


def wait_for(condition, seconds=400):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(tmp_path, monkeypatch, capsys):
    """It is told while it fails, in the table and in the exit code; the same command tries again."""
    monkeypatch.chdir(tmp_path)
    flags = ["--outer.steps", "12", "--grid", "outer.optim.images.lr=1e38,1", "--out", "failing"]
    assert run("sweep", *DM, *flags) == 2
    captured = capsys.readouterr()
    assert "images.lr=1e+38,seed=0 failed: " in captured.out
    assert "seed 0 failed" in captured.out, "the table says it"
    assert "1 runs failed, as the table says" in captured.err
    assert Path("failing/runs/images.lr=1,seed=0/evaluation.json").is_file()
    assert len(Path("failing/comparison.csv").read_text().splitlines()) == 2
    assert run("sweep", *DM, *flags) == 2
    assert "2 runs, 1 of them finished" in capsys.readouterr().out


REFUSED = {
    "no such field": (["--grid", "outer.stepz=1,2"], "Unknown field 'outer.stepz'"),
    "no such tensor": (
        ["--grid", "outer.optim.image.lr=1"],
        "Unknown field 'outer.optim.image.lr'",
    ),
    "a part": (["--grid", "outer.optim=1,2"], "outer.optim is a part and no value"),
    "no number": (
        ["--grid", "outer.steps=1,x"],
        "--grid outer.steps takes a whole number, and got x",
    ),
    "no form": (["--grid", "outer.steps"], "must have the form FIELD=VALUE,VALUE"),
    "twice": (["--grid", "ipc=1", "--grid", "ipc=2"], "--grid names ipc twice"),
    "a value twice": (["--grid", "ipc=1,1"], "names a value of ipc twice"),
    "no value that goes": (["--grid", "ipc=1,0"], "ipc must be at least 1, got 0"),
    "settings that do not go together": (
        ["--grid", "targets.kind=class,logits", "--grid", "targets.relabel=False,True"],
        "targets.relabel makes logits anew, and targets.kind is class",
    ),
    "an optimiser of nothing": (
        ["--take", "outer=mtt/digits_ipc1", "--outer.evaluate_every", "0"],
        "outer.optim names 'lr'",
    ),
    "the test split": (["--grid", "data.split_seed=0,1"], "decides which images are tested on"),
    "prose": (["--grid", "note=a,b"], "note decides nothing of a set"),
    "a network": (["--grid", "model=mlp,nolp"], "nolp"),
    "seeds": (["--seeds", "0,x"], "--seeds '0,x' must be whole numbers"),
    "a seed twice": (["--seeds", "1,1"], "give different whole numbers"),
    "no jobs": (["--jobs", "0"], "jobs is 0; give a whole number, 1 at least"),
    "a protocol": (["--protocol", "mttt"], "Unknown protocol 'mttt'"),
    "a network of the evaluation": (["--models", "nolp"], "nolp"),
    "a row": (
        ["--grid", "ipc=1,2", "--to", "3"],
        "--to 3 names no row: there are 2 settings, counted",
    ),
    "an axis": (["--grid", "ipc=1,2", "--x", "bites"], "Unknown axis in --x 'bites'"),
    "another folder": (["--out", "other"], "other is not empty and not the folder of a sweep"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_are_checked_before_the_first_run(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    flags, says = REFUSED[what]
    assert run("sweep", *DM, "--outer.steps", "3", "--out", "refused", *flags) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1, said
    assert not Path("refused").exists() and os.listdir("other") == ["mine.txt"]


def test_runs_choose_whether_they_are_compiled(done):
    """Eight steps do not pay for it; the choice is kept in each run, and nothing else is."""
    folder, _ = done
    runs = json.loads((folder / "swept/sweep.json").read_text())["runs"]
    assert sorted(runs) == sorted(NAMES)
    for name in runs:
        choices = json.loads((folder / "swept/runs" / name / "choices.json").read_text())
        assert choices["compile"] is False
    with pytest.raises(UserError, match="compile is 'on'; give True, False or 'auto'"):
        ddengine.sweep(None, find(RECIPE), grid=GRID, compile="on", progress=False)


def test_a_folder_of_another_sweep_is_refused(done, monkeypatch, capsys):
    folder, _ = done
    monkeypatch.chdir(folder)
    for flags, what in (
        (["--outer.steps", "9"], "another recipe"),
        (["--epochs", "6"], "another evaluation"),
        (["--seed", "5"], "another seed"),
    ):
        assert sweep("--out", "swept", *flags) == 2
        assert f"swept holds a sweep of {what}" in capsys.readouterr().err


def test_recipes_with_experts_need_who_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pass experts=buffers\.ExpertMaker\(\)"):
        ddengine.sweep(None, find(RECIPE, **CHANGES), folder="none", progress=False)
    with pytest.raises(UserError, match=r"Unknown argument in evaluation 'modells'"):
        ddengine.sweep(None, find(RECIPE), folder="none", evaluation={"modells": []})
    assert not Path("none").exists()


def test_flags_of_evaluate_are_told_from_those_of_distill():
    words = ["--epochs", "5", "--grid", "ipc=1,2", "--lr_grid", "0.1", "0.2", "--outer.steps", "3"]
    words += ["--labels=hard", "--evaluation.batch", "7"]
    of_evaluate, others = evaluate_words(words)
    assert of_evaluate == ["--epochs", "5", "--lr_grid", "0.1", "0.2", "--labels=hard"]
    assert others == ["--grid", "ipc=1,2", "--outer.steps", "3", "--evaluation.batch", "7"]


def test_values_have_the_types_of_their_fields():
    recipe = find(RECIPE)
    texts = ["outer.optim.images.lr=10,100", "data.limit=None,50", "data.size=8 8,16 16"]
    texts += ["data.zca=True,False", "outer.step_after=all,each"]
    assert grid_of(texts, recipe) == {
        "outer.optim.images.lr": [10.0, 100.0],
        "data.limit": [None, 50],
        "data.size": [(8, 8), (16, 16)],
        "data.zca": [True, False],
        "outer.step_after": ["all", "each"],
    }
