"""What `advise` and `recipes` say that recipes reach: synth/measured.json, made of docs/results.

    python benchmarks/measured.py

Nothing is measured here, and nothing is written that no table holds.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddengine.system import files
from synth.catalogue import find

ROOT = Path(__file__).resolve().parent.parent
TABLES = (
    "fashion_mnist_small",
    "matching_small",
    "trajectory_small",
    "compensator_small",
    "bptt_ipc1",
)
CELLS = "docs/results/published_cells.json"
IMAGES_OF = {  # whole training splits, which published recipes see
    "cifar10": {"images": 50_000, "shape": [3, 32, 32], "classes": 10},
    "fashion_mnist": {"images": 60_000, "shape": [1, 28, 28], "classes": 10},
}
KINDS = {"real": "random", "herding": "herding"}  # what rows of real images are called
BESIDE = ("random", "herding", "full")
# the images of all rows of these tables, as their recipes say
IMAGES = {"data": "fashion_mnist", "images": 10_000, "shape": [1, 28, 28], "classes": 10}


def main() -> None:
    """Write the file."""
    files.write_json(ROOT / "synth" / "measured.json", entries())


def entries() -> list[dict[str, Any]]:
    """One entry a distillation, with the baselines of its group."""
    made = []
    for table in TABLES:
        path = f"docs/results/{table}.json"
        runs = json.loads((ROOT / path).read_text(encoding="utf-8"))["runs"]
        for run in runs:
            made.append(_entry(run, runs, path))
    return made + cells(json.loads((ROOT / CELLS).read_text(encoding="utf-8"))["rows"])


def cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each published recipe that was run whole."""
    made = []
    for row in rows:
        if row["set"] != "distilled" or row["cut"] or not row["ours"]:
            continue
        recipe = find(row["recipe"])
        beside = {}
        for other in rows:
            if other["recipe"] == row["recipe"] and other["set"] in KINDS and other["ours"]:
                beside[KINDS[other["set"]]] = other["ours"]["accuracy"]
        made.append(
            {
                "recipe": row["recipe"],
                "row": row["recipe"],
                "flags": [],
                "data": recipe.data.name,
                **IMAGES_OF[recipe.data.name],
                "ipc": recipe.ipc,
                "model": recipe.model,
                "accuracy": row["ours"]["accuracy"],
                "std": row["ours"]["std"],
                "networks": row["ours"]["n"],
                "beside": beside,
                "seconds": row["seconds"]["set"],
                "seconds_of_experts": row["seconds"].get("experts"),
                "peak_memory": row["peak_memory"],
                "device": row["machine"]["device"],
                "source": CELLS,
            }
        )
    return made


def _entry(run: dict[str, Any], runs: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """What a run of a table reached and cost."""
    rows = run["evaluation"]["rows"]
    distilled = next(row for row in rows if row["set"] == "distilled")
    cost = run["distillation"]
    experts = run.get("experts") or {}
    return {
        "recipe": run["recipe"],
        "row": run.get("row") or run["recipe"],
        "flags": run.get("flags") or [],
        **IMAGES,
        "ipc": int(re.search(r"_ipc(\d+)", run["recipe"])[1]),  # type: ignore[index]
        "model": distilled["model"],
        "accuracy": distilled["accuracy_mean"],
        "std": distilled["accuracy_std"],
        "networks": distilled["n"],
        "beside": _beside(run, runs, distilled["model"]),
        "seconds": cost["seconds"] + cost.get("initial_seconds", 0),
        "seconds_of_experts": experts.get("seconds"),
        "peak_memory": cost["peak_memory_bytes"],
        "device": cost["machine"]["device"],
        "source": path,
    }


def _beside(run: dict[str, Any], runs: list[dict[str, Any]], model: str) -> dict[str, float]:
    """Mean accuracies of the baselines that stand in the group of a run."""
    beside: dict[str, float] = {}
    for other in runs:
        same_group = run.get("group") and other.get("group") == run["group"]
        if other is not run and not same_group:
            continue
        for row in other["evaluation"]["rows"]:
            if row["set"] in BESIDE and row["model"] == model:
                beside.setdefault(row["set"], row["accuracy_mean"])
    return beside


if __name__ == "__main__":
    main()
