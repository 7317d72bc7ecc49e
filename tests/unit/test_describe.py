"""What inspect says of stores, runs, sets, evaluations and files."""

import io
import json
import subprocess
import sys

import pytest
import torch
from helpers import DIGITS, MODEL, new_model, tiny_data, tiny_set
from rich.console import Console

from buffers.experts import generate
from buffers.steps import Sgd
from ddengine.artefact import describe as describe_module
from ddengine.artefact import folder as folders
from ddengine.artefact.describe import Part, describe, shown
from ddengine.loop import Counters, State, save_checkpoint
from ddengine.recipe import BufferConfig
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

RECIPE = {
    "name": "dm/digits",
    "model": MODEL,
    "ipc": 2,
    "data": {"name": "digits"},
    "outer": {"steps": 50},
    "objective": {"type": "DM"},
}
ROWS = [
    {
        "set": "distilled",
        "model": MODEL,
        "accuracy_mean": 0.5,
        "accuracy_std": 0.02,
        "ci95": [0.45, 0.55],
        "n": 3,
        "lr": 0.1,
        "steps": 9,
        "seconds": 1,
    },
    {
        "set": "full",
        "model": MODEL,
        "accuracy_mean": 0.9,
        "accuracy_std": None,
        "ci95": None,
        "n": 1,
        "lr": 0.1,
        "steps": 9,
        "seconds": 1.5,
    },
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a store, a finished and an unfinished run, and an imported set."""
    root, data = tmp_path_factory.mktemp("world"), tiny_data()
    config = BufferConfig(step=Sgd(lr=0.05), num_experts=2, epochs=3, batch=64, seed=4)
    generate(data, DIGITS, config, MODEL, new_model(data), root / "experts" / "abc")
    syn = tiny_set(data, lr=0.025)
    meta = {
        "recipe": RECIPE,
        "seed": 7,
        "versions": {"torch": "2.x"},
        "raw_bytes": 12_000,
        "distillation": {"seconds": 200, "peak_memory_bytes": 5e6},
    }
    for name in ("done", "half"):
        run = root / "runs" / name
        run.mkdir(parents=True)
        files.write_json(run / "recipe.json", {"recipe": RECIPE, "seed": 7, "precision": "fp32"})
        lines = [
            {"step": i, "loss": 1 / i} | ({"validation_accuracy": 0.25} if i == 10 else {})
            for i in range(1, 21)
        ]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 21, "lo')
        (run / "checkpoint").mkdir()
        save_checkpoint(
            run / "checkpoint" / "state.safetensors",
            State(dict(syn.tensors), {}, {}, {}, 20, Counters()),
            100,
        )
    soft = syn.with_labels(torch.randn(20, 10, generator=generator(0)))
    folders.save(soft, root / "runs/done/distilled", meta)
    files.write_json(
        root / "runs/done/evaluation.json",
        {"rows": ROWS, "protocol": {"protocol": "fast"}, "seed": 1, "seconds": 5},
    )
    folders.save(
        syn, root / "runs/brought", {"recipe": RECIPE, "imported": {"files": ["images_1.pt"]}}
    )
    return root


def facts(part: Part) -> dict[str, str]:
    """The rows of a part without a head."""
    assert part.head == ()
    return dict(part.rows)  # type: ignore[arg-type]


def drawn(parts) -> str:
    """As on a terminal of 120 columns."""
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(shown(parts))
    return console.export_text()


def test_a_store(world):
    """Experts, epochs, network, dataset, sizes, accuracy after the last epoch."""
    (part,) = describe(world / "experts/abc")
    found = facts(part)
    metrics = [
        describe_module._metrics(p) for p in sorted((world / "experts/abc").glob("expert_*"))
    ]
    last = [100 * m["validation_accuracy"][-1] for m in metrics if m]
    assert (
        found["experts"] == "2"
        and found["network"] == MODEL
        and found["dataset"] == "digits"
        and found["seed"] == "4"
    )
    assert (
        found["epochs of training"] == "3"
        and found["epochs kept"] == "0 to 3"
        and found["training step"] == "Sgd, lr 0.05"
    )
    assert (
        found["validation accuracy %, last epoch"]
        == f"{sum(last) / 2:.1f}, from {min(last):.1f} to {max(last):.1f} (2 experts)"
    )
    stored = sum(p.stat().st_size for p in (world / "experts/abc").iterdir())
    assert found["size on disk"].startswith(f"{stored / 1000:.3g} kB, ") and "damaged" not in found
    manifest = files.read_json(world / "experts/abc/manifest.json")
    assert found["parameters"] == f"{sum(torch.Size(s).numel() for s in manifest['shapes']):,}"


def test_a_damaged_shard_is_named(world, tmp_path):
    """And the rest is described all the same."""
    for p in (world / "experts/abc").iterdir():
        (tmp_path / p.name).write_bytes(
            p.read_bytes()[:100] if p.name == "expert_0001.safetensors" else p.read_bytes()
        )
    found = facts(describe(tmp_path)[0])
    assert (
        found["damaged"] == "expert_0001.safetensors"
        and "(1 experts)" in found["validation accuracy %, last epoch"]
    )


def test_a_finished_run_and_its_set(world):
    """What the run was, then what it made."""
    run, made, tensors = describe(world / "runs/done")
    found = facts(run)
    assert (
        found["state"] == "finished"
        and found["recipe"] == "dm/digits"
        and found["seed"] == "7"
        and found["last loss"] == "0.05 at step 20"
    )
    assert (
        found["last validation accuracy %"] == "25.0 at step 10"
        and found["time of the steps"] == "3 min"
        and found["peak memory"] == "5 MB"
    )
    assert found["files"] == "checkpoint/, distilled/, evaluation.json, metrics.jsonl, recipe.json"
    found = facts(made)
    assert (
        found["stored images"] == "20 of 1x8x8, F32"
        and found["images per class"] == "2"
        and found["labels"] == "soft labels"
    )
    assert (
        found["learned lr"] == "0.025"
        and found["codec"] == "Identity bounded=False"
        and found["space"] == "model"
        and found["versions"] == "torch 2.x"
    )
    assert (
        found["parquet"] == "train-00000-of-00001.parquet"
        and found["accuracy %"] == f"50.0 ± 2.0 with {MODEL}, n = 3"
    )
    assert found["classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" and found["bytes"].startswith(
        "6.08 kB in all: images 5.12 kB, labels 960 B"
    )
    assert ("logits", "20x10", "F32") in tensors.rows and (
        "lr",
        "one number",
        "F32",
    ) in tensors.rows
    assert facts(describe(world / "runs/done/distilled")[0]) == found


def test_an_unfinished_run(world, tmp_path):
    """Says how far it got, and that without a checkpoint too."""
    (part,) = describe(world / "runs/half")
    found = facts(part)
    assert (
        found["state"] == "unfinished, at step 20 of 50"
        and found["checkpoint at step"] == "20"
        and "time of the steps" not in found
    )
    files.write_json(tmp_path / "recipe.json", {"recipe": RECIPE})
    found = facts(describe(tmp_path)[0])
    assert found["state"] == "unfinished, before its first checkpoint" and "last loss" not in found


def test_an_imported_set(world):
    """Which is a folder without a run, and was not evaluated although a neighbour was."""
    found = facts(describe(world / "runs/brought")[0])
    assert (
        found["origin"] == "imported"
        and found["labels"] == "classes"
        and found["accuracy %"] == "not evaluated"
    )


def test_lost_and_old_parts_are_said(world, tmp_path):
    """No parquet of an older version; labels that are gone."""
    for p in (world / "runs/done/distilled").iterdir():
        if p.name in ("data.safetensors", "meta.json"):
            (tmp_path / p.name).write_bytes(p.read_bytes())
    found = facts(describe(tmp_path)[0])
    assert found["missing"] == "labels.safetensors" and found["parquet"].startswith("none")


def test_a_folder_of_runs_and_of_stores(world, tmp_path):
    """A table with a line each; what cannot be read has one too."""
    (part,) = describe(world / "runs")
    rows = {row[0]: row[1:-1] for row in part.rows}
    assert part.title.endswith("runs: 3") and len(part.head) == 7
    assert rows["done"] == ("dm/digits", "digits, 2", "finished", "0.05", "50.0")
    assert rows["half"] == ("dm/digits", "digits, 2", "unfinished, at step 20 of 50", "0.05", "-")
    assert rows["brought"] == ("dm/digits (imported)", "digits, 2", "finished", "-", "-")
    (part,) = describe(world / "experts")
    assert part.rows[0][:5] == ("abc", MODEL, "digits", "2", "3") and "from" in part.rows[0][5]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/recipe.json").write_text("{")
    (tmp_path / ".writing-x").mkdir()
    files.write_json(tmp_path / ".writing-x" / "recipe.json", {})
    assert [row[:2] for row in describe(tmp_path)[0].rows] == [("bad", "cannot be read")]


def test_an_evaluation(world):
    """As the table of evaluate, and its facts."""
    about, rows = describe(world / "runs/done/evaluation.json")
    assert facts(about)["protocol"] == "fast" and rows.title == f"Test accuracy, {MODEL}"
    assert rows.head[:3] == ("set", "accuracy %", "95 % interval")
    assert rows.rows[0][:3] == ("distilled", "50.0 ± 2.0", "45.0 to 55.0") and rows.rows[1][:3] == (
        "full",
        "90.0",
        "-",
    )


def test_a_file_of_tensors(world, tmp_path):
    """Shapes, types, metadata; json files lead to what they belong to."""
    about, tensors = describe(world / "experts/abc/expert_0000.safetensors")
    assert facts(about)["metrics"].endswith("...") and len(facts(about)["fingerprint"]) == 12
    params = files.read_tensors(world / "experts/abc/expert_0000.safetensors")[0]["params"]
    assert tensors.rows == [("params", f"4x{params.shape[1]}", "F32")]
    assert describe(world / "experts/abc/manifest.json") == describe(world / "experts/abc")
    assert describe(world / "runs/done/recipe.json") == describe(world / "runs/done")
    files.write_tensors(
        tmp_path / "many.safetensors", {f"t{i:03d}": torch.zeros(1) for i in range(100)}
    )
    assert describe(tmp_path / "many.safetensors")[1].rows[-1][0] == "... 40 more"


def test_text_out_of_files_is_only_text(tmp_path):
    """No markup, no control characters."""
    files.write_tensors(
        tmp_path / "a.safetensors",
        {"x[red]\x1b[31m": torch.zeros(2)},
        {"[bold]": "[/bold]\x1b]0;t"},
    )
    text = drawn(describe(tmp_path / "a.safetensors"))
    assert (
        "[bold]" in text
        and "[/bold]\\x1b]0;t" in text
        and "x[red]\\x1b[31m" in text
        and "\x1b" not in text
    )


def test_what_is_drawn(world):
    """Titles, names and values are all there."""
    text = drawn(describe(world / "runs/done"))
    assert (
        "Run " in text
        and "Distilled set" in text
        and "unfinished" not in text
        and "learned lr" in text
        and "train-00000-of-00001.parquet" in text
    )
    assert "last loss" in drawn(describe(world / "runs")) and log.console is not None


WRONG = {
    "weights.pt": (b"x", "run.py import RECIPE --files"),
    "picture.png": (b"x", "is not a file that inspect reads"),
    "other.json": (b"{}", "is not a file that inspect reads"),
    "list.json": (b"[1]", "was not written by this program"),
    "evaluation.json": (b'{"rows": [{"set": 1}], "protocol": {}}', "evaluate again"),
    "broken.safetensors": (b"12345678abc", "is damaged"),
    "meta.json": (b'{"a": 1}', "not that of a distilled set"),
    "manifest.json": (b'{"manifest_version": 3}', "not that of an expert store"),
    "half.json": (b"{", "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_of_these(tmp_path, name):
    """One sentence."""
    content, words = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        describe(tmp_path / name)
    assert name in str(error.value)


def test_no_such_folder(tmp_path):
    """Nor an empty one."""
    with pytest.raises(UserError, match="does not exist"):
        describe(tmp_path / "none")
    with pytest.raises(UserError, match="no expert store, run, distilled set"):
        describe(tmp_path)


def test_nothing_slow_is_imported(world):
    """Inspecting takes as long as importing torch."""
    code = (
        "import sys; from pathlib import Path; from ddengine.artefact.describe import describe, "
        "shown; shown(describe(Path(sys.argv[1])));"
        "print([m for m in ('torchvision', 'matplotlib', 'sklearn', 'pyarrow', 'datasets', "
        "'buffers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(world / "runs/done")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
