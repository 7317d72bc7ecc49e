"""What cells would cost, of operations and assumptions, and the page that says so."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import scale_page
import scale_predicted
from scale_predicted import Cell, Gpu, Work

from ddengine.system import files

GPU = Gpu(flops=1e12, efficiency=0.5, overhead=0.1, within_node=1e9, between_nodes=1e8, latency=0)
WORK = Work(
    expert=1e12,
    experts=100,
    step=5e11,
    steps=1000,
    draws=1,
    training=2e12,
    tried=5,
    networks=5,
    set_bytes=1e9,
)
PASSES = {"step": 10.0, "sgd": 3.0, "gsam": 6.0}


def seconds(work, gpus):
    told = scale_predicted.days(work, GPU, gpus)
    return {name: days * scale_predicted.DAY for name, days in told.items()}


def test_one_gpu_does_all_after_one_another():
    assert seconds(WORK, 1) == pytest.approx({"buffer": 200, "distill": 1100, "evaluate": 40})
    assert WORK.total == pytest.approx(100e12 + 500e12 + 20e12)


def test_more_gpus_share_experts_and_networks_and_no_single_draw():
    """13 rounds of 8 experts; the rates' networks before those that are reported."""
    assert seconds(WORK, 8) == pytest.approx({"buffer": 26, "distill": 1100, "evaluate": 8})
    assert seconds(WORK, 64) == pytest.approx({"buffer": 4, "distill": 1100, "evaluate": 8})


def test_draws_are_shared_and_exchanged():
    """Within a machine, and at the slower speed between machines."""
    work = replace(WORK, draws=16)
    assert seconds(work, 1)["distill"] == pytest.approx(1000 * (16 + 0.1))
    assert seconds(work, 8)["distill"] == pytest.approx(1000 * (2 + 0.1 + 2 * 7 / 8))
    assert seconds(work, 64)["distill"] == pytest.approx(1000 * (1 + 0.1 + 2 * 15 / 16 * 10))


def test_the_work_of_recipes():
    """By hand, of forward passes through the network."""
    small = Cell("mtt/cifar10_ipc10", (3, 32, 32), 10, 50_000)
    work = scale_predicted.work(small, PASSES)
    recipe = scale_predicted.find(small.recipe)
    forward = scale_predicted.forward_flops(recipe.model, small.shape, 10)
    inner = recipe.objective.inner_steps * (recipe.objective.batch or 100)
    assert work.step == pytest.approx(10 * inner * forward)
    assert work.expert == pytest.approx(3 * recipe.buffer.epochs * 50_000 * forward)
    assert work.training == pytest.approx(3 * forward * 100 * recipe.evaluation.epochs)
    assert (work.experts, work.tried, work.networks) == (100, 5, 5)


def test_published_weights_cost_nothing_and_teachers_label_every_batch():
    cell = scale_predicted.CELLS["ImageNet-1K, IPC 10"]
    small = replace(cell, shape=(3, 32, 32))  # the network is the same
    work = scale_predicted.work(small, PASSES)
    recipe = scale_predicted.find(cell.recipe)
    forward = scale_predicted.forward_flops(recipe.model, small.shape, 1000)
    assert work.expert == 0 and work.step == pytest.approx(2 * 10_000 * forward)
    assert work.training == pytest.approx(4 * forward * 10_000 * recipe.evaluation.epochs)


# The page.


def results():
    """As scale.py writes them, of costs that are lines and power laws."""
    base = {"ipc": 4, "classes": 10, "size": 32, "inner_steps": 5}
    rows = []

    def step(axis, held_out, **more):
        point = base | more
        amount = point["ipc"] * point["classes"] * point["inner_steps"] * point["size"] ** 2
        rows.append(
            {"what": "step", "axis": axis, "held_out": held_out, "point": point, "passes": 10.0}
            | {"seconds": 1e-6 * amount, "peak_bytes": 1e6 + 10 * amount, "flops": 1e3 * amount}
        )

    step("base", False)
    for axis, values in {"ipc": (1, 8, 32), "size": (16, 48, 64)}.items():
        for value in values:
            step(axis, value == values[-1], **{axis: value})
    step("all", True, ipc=8, classes=20, size=48, inner_steps=10)
    rows.append({"what": "ranks", "ranks": 1, "seconds": 0.25})
    for recipe, passes in (("mtt/x", 3.0), ("datm/x", 6.0)):
        rows.append({"what": "counts", "recipe": recipe, "passes": passes})
    where = {"machine": {"device": "CPU x", "cores": 2}, "commit": "abc"}
    return {"rows": rows, **where}


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path, monkeypatch):
    page = tmp_path / "scaling.md"
    marks = "\n".join((*scale_page.MEASURED, "between", *scale_page.PREDICTED))
    page.write_text(f"before\n{marks}\nafter\n")
    monkeypatch.setattr(scale_page, "PAGE", page)
    scale_page.write(tmp_path / "none.json")
    assert page.read_text().count("Not run yet") == 2
    files.write_json(tmp_path / "results.json", results())
    scale_page.write(tmp_path / "results.json", GPU)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nbetween\n" in text
    assert "Not run yet" not in text and "CPU x, 2 cores, commit abc" in text
    assert "| images per class | 1, 8 | time |" in text and "| +0 % |" in text
    assert "| inner steps |  | time | not run" in text
    assert "| 2 ranks, one thread each | not run" in text
    for name in scale_predicted.CELLS:
        assert f"| {name} (" in text
    assert "**Predicted, not run.**" in text and text.count("| not run |\n") >= 9
    before = page.read_text()
    scale_page.write(tmp_path / "results.json", GPU)
    assert page.read_text() == before
