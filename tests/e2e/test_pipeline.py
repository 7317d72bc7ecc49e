"""The whole path in small: buffer, distill, evaluate, the shipped folder; and the same after kill
-9.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import CPU, TINY, run
from safetensors.torch import load_file

from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.evaluation import bench
from ddengine.pages import figures
from ddengine.recipe import DataConfig
from ddengine.sets import synthetic

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.pictures
RECIPE = "mtt/digits_ipc1"
QUICK = ["--epochs", "5", "--num_networks", "3", "--lr_grid", "0.01", "--full_steps", "5"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The shipped numbers."""
    return load_file(folder / "distilled" / "data.safetensors")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A working directory with a finished tiny run in runs/a and its store."""
    where = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert run("buffer", RECIPE, *TINY) == 0
        assert run("distill", RECIPE, *TINY, "--out", "runs/a") == 0
    return where


def test_distilled_folder_explains_itself(done):
    """Exact tensors, pictures, metadata with recipe, versions, cost and bytes, no path of the
    machine.
    """
    folder = done / "runs/a/distilled"
    meta = json.loads((folder / "meta.json").read_text())
    stored = tensors(done / "runs/a")
    assert stored["images"].shape == (10, 1, 8, 8) and stored["classes"].tolist() == list(range(10))
    assert {"lr", "preprocess.mean", "preprocess.std"} <= stored.keys()
    assert (
        meta["recipe"]["name"] == RECIPE
        and meta["seed"] == 0
        and meta["recipe"]["data"]["root"] is None
    )
    assert (
        meta["bytes"]["images"] == 10 * 64 * 4
        and meta["bytes"]["labels"] == 80
        and meta["images_per_class"] == 1
    )
    assert (
        meta["distillation"]["seconds"] > 0
        and meta["distillation"]["peak_memory_bytes"] > 1e6
        and "torch" in meta["versions"]
    )
    assert len(list((folder / "images").glob("*/*.png"))) == 10
    assert (done / "runs/a/real_vs_distilled.png").stat().st_size > 1000
    assert len(list((done / "runs/a/progress").glob("step_*.png"))) >= 2
    assert str(done) not in (folder / "meta.json").read_text()


def test_load_py_needs_no_engine_and_equals_the_engine(done, tmp_path):
    """Run in an empty directory with the engine out of sight; images, targets and preprocessing to
    1e-6.
    """
    copy = tmp_path / "set"
    subprocess.run(["cp", "-r", str(done / "runs/a/distilled"), str(copy)], check=True)
    program = (
        "import torch, sys; from load import load; images, targets, info = load();"
        "assert not any(m.split('.')[0] in ('ddengine', 'buffers', 'synth') for m in sys.modules);"
        "torch.save([images, targets, info['lr'], info['preprocess'](torch.full((2, 1, 8, 8), "
        "0.25)), info['classes']], 'out.pt')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program], cwd=copy, env=environment, check=True)
    images, targets, lr, quarter, names = torch.load(copy / "out.pt", weights_only=True)
    syn, _ = folders.load(copy, CPU)
    batch = syn.batch(torch.arange(len(syn)))
    assert torch.allclose(images, batch.images, atol=1e-6) and torch.equal(targets, batch.targets)
    assert lr == pytest.approx(syn.lr) and list(names) == list(syn.class_names)
    assert torch.allclose(
        quarter, syn.preprocess.forward(torch.full((2, 1, 8, 8), 0.25)), atol=1e-6
    )


def test_zca_set_round_trip(tmp_path):
    """A whitened set ships its matrix: load.py whitens like the engine, and pictures are pixels
    again.
    """
    data = load_data(DataConfig(name="digits", limit=300, zca=True), CPU)
    images = data.train.images(torch.arange(10))
    from ddengine.sets.codec import Identity

    syn = synthetic.SyntheticSet(
        {"images": images}, torch.arange(10), data.class_names, Identity(), data.train.preprocess
    )
    folders.save(syn, tmp_path / "set", {})
    again, _ = folders.load(tmp_path / "set", CPU)
    assert torch.equal(again.tensors["images"], images)
    assert torch.allclose(again.pixels(), data.train.pixels[:10].float() / 255, atol=1e-4)
    space: dict = {}
    exec(
        (tmp_path / "set" / "load.py")
        .read_text()
        .replace("Path(__file__).resolve().parent", repr(str(tmp_path / "set"))),
        space,
    )
    shipped, _, info = space["load"]()
    assert torch.equal(shipped, images)
    pixels = data.train.pixels[:5].float() / 255
    assert torch.allclose(
        info["preprocess"](pixels), data.train.preprocess.forward(pixels), atol=1e-6
    )


def test_finished_runs_say_so(done, monkeypatch, capsys):
    """The same command does nothing; other settings are refused; --restart makes the same numbers
    again.
    """
    monkeypatch.chdir(done)
    before = tensors(Path("runs/a"))
    assert run("distill", RECIPE, *TINY, "--out", "runs/a") == 0
    assert "is finished" in capsys.readouterr().out
    assert run("distill", RECIPE, *TINY, "--out", "runs/a", "--seed", "1") == 2
    assert "other settings" in capsys.readouterr().err
    assert run("distill", RECIPE, *TINY, "--out", "runs/a", "--restart") == 0
    after = tensors(Path("runs/a"))
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_default_folder_depends_on_recipe_and_seed(done, monkeypatch):
    """runs/<recipe>-<hash>: one per resolved recipe and seed."""
    monkeypatch.chdir(done)
    for extra in ([], ["--outer.optim.images.lr", "3"]):
        assert run("distill", RECIPE, *TINY, *extra) == 0
    assert len(list(Path("runs").glob("mtt-digits_ipc1-*"))) == 2


def test_evaluation_json(done, monkeypatch, capsys):
    """Exactly the documented content, every accuracy with its seed and draw, the table printed."""
    monkeypatch.chdir(done)
    assert run("evaluate", "runs/a", *QUICK, "--models", "convnet-d1-w4-in", "mlp") == 0
    for name in ("real_vs_distilled.png", "heat_map.png"):
        picture = Path("runs/a", name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 1000
    evaluation = json.loads(Path("runs/a/evaluation.json").read_text())
    assert set(evaluation) == {
        "protocol",
        "rows",
        "seconds",
        "machine",
        "versions",
        "commit",
        "seed",
        "precision",
        "raw_bytes",
        "dataset_bytes",
        "labelled_by",
        "teachers",
        "num_images",
        "test_images_per_class",
        "interval",
        "set_digest",
        "at_once",
        "blake2b",
        "threads",
        "processes",
        "full_seconds",
        "command",
        "format",
    }
    assert [(r["set"], r["model"]) for r in evaluation["rows"]] == [
        (s, m)
        for m in ("convnet-d1-w4-in", "mlp")
        for s in ("distilled", "distilled_8bit", "random", "equal_bytes", "herding", "full")
    ]
    keys = {
        "set",
        "model",
        "images",
        "bytes",
        "ledger",
        "accuracy_mean",
        "accuracy_std",
        "ci95",
        "n",
        "lr",
        "steps",
        "seconds",
        "accuracies",
    }
    keys |= {
        "optimiser",
        "examples_seen",
        "training_flops",
        "diverged",
        "balanced_accuracy_mean",
        "balanced_accuracy_std",
        "per_class",
    }
    for row in evaluation["rows"]:
        assert set(row) - {"remembered"} == keys and row["n"] == len(row["accuracies"]) == 3
        values = [a["accuracy"] for a in row["accuracies"]]
        assert all(0 <= v <= 1 for v in values)
        assert row["accuracy_mean"] == pytest.approx(sum(values) / 3)
        assert row["ci95"][0] <= row["accuracy_mean"] <= row["ci95"][1]
        assert [a["seed"] for a in row["accuracies"]] == [0, 1, 2]
        assert [a["draw"] for a in row["accuracies"]] == (
            [0, 1, 2] if row["set"] in ("random", "equal_bytes") else [0, 0, 0]
        )
    assert "herding" in capsys.readouterr().out
    assert not Path("runs/a/evaluation.partial.jsonl").exists()
    assert run("evaluate", "runs/a") == 0  # shows what is there
    assert "--restart evaluates again" in capsys.readouterr().out
    assert run("evaluate", "runs/a", "--epochs", "7") == 2  # but not in place of something else
    assert "made with other settings" in capsys.readouterr().err


def test_shipped_folder_alone_can_be_evaluated(done, tmp_path):
    """Without the run around it, the same accuracies."""
    copy = tmp_path / "set"
    subprocess.run(["cp", "-r", str(done / "runs/a/distilled"), str(copy)], check=True)
    accuracies = []
    for path in (copy, done / "runs/a"):
        assert (
            run(
                "evaluate",
                str(path),
                *QUICK,
                "--baselines",
                "random",
                "--out",
                str(tmp_path / f"of-{path.name}"),
            )
            == 0
        )
        rows = json.loads((tmp_path / f"of-{path.name}" / "evaluation.json").read_text())["rows"]
        accuracies.append([r["accuracies"] for r in rows])
    assert accuracies[0] == accuracies[1]


def test_distillation_never_reads_the_test_split(done, monkeypatch):
    """Only evaluate asks for it."""
    from ddengine.api import inputs

    monkeypatch.chdir(done)
    asked = []
    original = inputs.load_data

    def watching(*args, **kwargs):
        asked.append(kwargs.get("test", False))
        data = original(*args, **kwargs)
        assert kwargs.get("test", False) or data.test is None
        return data

    monkeypatch.setattr(inputs, "load_data", watching)
    assert (
        run(
            "distill",
            RECIPE,
            *TINY,
            "--out",
            "runs/c",
            "--outer.evaluate_every",
            "4",
            "--evaluation.epochs",
            "5",
        )
        == 0
    )
    events = [json.loads(line) for line in Path("runs/c/metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if "validation_accuracy" in e] == [4, 8]
    assert asked and not any(asked)


def test_bfloat16_run(tmp_path, monkeypatch):
    """Autocast in experts and student; a run of its own, with other numbers that are finite."""
    monkeypatch.chdir(tmp_path)
    for precision in ("fp32", "bf16"):
        assert run("buffer", RECIPE, *TINY, "--precision", precision) == 0
        assert run("distill", RECIPE, *TINY, "--precision", precision, "--out", precision) == 0
    exact, rounded = tensors(Path("fp32")), tensors(Path("bf16"))
    assert rounded["images"].isfinite().all()
    change = (rounded["images"] - exact["images"]).norm() / exact["images"].norm()
    assert 0 < change < 0.2


@pytest.mark.slow
def test_compiled_run_equals_eager(done, tmp_path, monkeypatch):
    """--compile through the whole command: the same images up to rounding."""
    monkeypatch.chdir(done)
    assert run("distill", RECIPE, *TINY, "--compile", "--out", str(tmp_path / "compiled")) == 0
    eager, compiled = tensors(Path("runs/a")), tensors(tmp_path / "compiled")
    assert torch.allclose(eager["images"], compiled["images"], atol=1e-3)


def start(where: Path, *args: str) -> subprocess.Popen:
    """run.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *args], cwd=where, stdout=subprocess.DEVNULL
    )


def kill_when(process: subprocess.Popen, happened) -> None:
    """kill -9 as soon as `happened()` holds."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, (
            "the process ended before it could be killed"
        )
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_buffer_and_distill_end_bit_identical(tmp_path, monkeypatch):
    """kill -9 between experts and between checkpoints; the same commands again; equal to a run that
    was left alone.

    What is killed runs in a process of its own, all else in this one, with as many threads.
    """

    def finish(where, *args):
        monkeypatch.chdir(where)
        assert run(*args) == 0

    longer = [
        *TINY,
        "--buffer.num_experts",
        "4",
        "--buffer.epochs",
        "12",
        "--outer.steps",
        "60",
        "--outer.checkpoint_every",
        "5",
    ]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for where in (alone, killed):
        where.mkdir()
    finish(alone, "buffer", RECIPE, *longer)
    finish(alone, "distill", RECIPE, *longer, "--out", "run")

    process = start(killed, "buffer", RECIPE, *longer)
    kill_when(process, lambda: len(list(killed.glob("experts/*/expert_*.safetensors"))) >= 1)
    left = list(killed.glob("experts/*/expert_*.safetensors"))
    times = {p: p.stat().st_mtime_ns for p in left}
    assert 1 <= len(left) < 4
    finish(killed, "buffer", RECIPE, *longer)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items()), (
        "finished experts were trained again"
    )
    shards = [sorted(where.glob("experts/*/expert_*.safetensors")) for where in (alone, killed)]
    assert [p.name for p in shards[0]] == [p.name for p in shards[1]]
    for a, b in zip(*shards, strict=True):
        assert torch.equal(load_file(a)["params"], load_file(b)["params"])

    for steps in (10, 30):
        process = start(killed, "distill", RECIPE, *longer, "--out", "run")
        log = killed / "run" / "metrics.jsonl"
        kill_when(
            process,
            lambda log=log, steps=steps: log.exists() and log.read_bytes().count(b"\n") >= steps,
        )
        assert not (killed / "run" / "distilled").exists()
    finish(killed, "distill", RECIPE, *longer, "--out", "run")
    first, second = tensors(alone / "run"), tensors(killed / "run")
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert (alone / "run/metrics.jsonl").read_text() == (killed / "run/metrics.jsonl").read_text()
    assert not list(killed.rglob(".writing-*"))


def test_interrupted_evaluation_goes_on(done, tmp_path, monkeypatch):
    """The trainings that were finished are not repeated, and the result is that of an uninterrupted
    evaluation.
    """

    args = ["evaluate", str(done / "runs/a"), *QUICK, "--lr_grid", "0.01", "0.03"]
    args += ["--no-reuse_baselines"]
    assert run(*args, "--out", str(tmp_path / "whole")) == 0
    calls, original = [], bench.Bench.accuracies

    def stop_at(limit):
        def accuracies(self, asked):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append((asked.who.name, asked.lr, asked.seeds))
            return original(self, asked)

        return accuracies

    monkeypatch.setattr(bench.Bench, "accuracies", stop_at(5))
    assert run(*args, "--out", str(tmp_path / "broken")) == 130
    monkeypatch.setattr(bench.Bench, "accuracies", stop_at(-1))
    assert run(*args, "--out", str(tmp_path / "broken")) == 0
    assert len(calls) == len(set(calls)), "a finished training was repeated"
    rows = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["rows"]
        for name in ("whole", "broken")
    ]
    assert [r["accuracies"] for r in rows[0]] == [r["accuracies"] for r in rows[1]]


def test_pictures_of_colour_and_many_images(tmp_path):
    """Grids and comparison for colour images, several per class, more classes than are shown."""
    from ddengine.data import Preprocess, RealSet
    from ddengine.sets.codec import Identity

    preprocess = Preprocess(mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))
    names = tuple(f"class {i}" for i in range(25))
    labels = torch.arange(25).repeat_interleave(4)
    syn = synthetic.SyntheticSet(
        {"images": torch.randn(100, 3, 6, 9)}, labels, names, Identity(), preprocess
    )
    real = RealSet(torch.randint(0, 256, (100, 3, 6, 9), dtype=torch.uint8), labels, 25, preprocess)
    figures.grid(tmp_path / "grid.png", syn)
    figures.real_vs_distilled(tmp_path / "both.png", real, syn, None)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("grid.png", "both.png"))
