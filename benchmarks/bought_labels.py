"""Labels bought from a teacher that errs, on Fashion-MNIST (10,000 images, width 16) and a CPU.

None, 20 or 40 % of the answers are wrong. The same command resumes; each takes half an hour on a
core.

    python benchmarks/bought_labels.py real    9,000 real images are the pool
    python benchmarks/bought_labels.py set     the images of a distilled set (DM, IPC 50) are
    ... --data_root PATH                       where the images lie
    ... --tiny                                 the same in a minute, to try it

Runs go to runs/bought_labels; JSON, table, text and picture to docs/results/bought_labels_POOL.*.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from table import ROOT, command, files

from ddengine.pages import of_labels

RECIPE = "dm/fashion_mnist_ipc10_small"
POOLS = {
    "real": ("--labels.points", "100", "--labels.first_per_class", "5"),
    "set": ("--labels.points", "50", "--labels.first_per_class", "2"),
}


@dataclass(frozen=True)
class Size:
    """How much is done."""

    folder: Path  # of the runs
    results: Path | None  # where the table goes; None: beside the run
    labels: tuple[str, ...]  # flags of buy_labels
    of_set: tuple[str, ...]  # flags of the distillation of the set that is a pool


FULL = Size(
    folder=Path("runs/bought_labels"),
    results=ROOT / "docs" / "results",
    labels=(
        "--labels.wrong", "0", "0.2", "0.4", "--labels.repeats", "3",
        "--labels.rounds", "3", "--labels.steps", "400", "--evaluation.batch", "64",
        "--evaluation.augment.ops", "--evaluation.lr_grid", "0.01", "0.03",
    ),
    of_set=("--ipc", "50"),
)  # fmt: skip
TINY = Size(
    folder=Path("runs/bought_labels-tiny"),
    results=None,
    labels=(
        "--labels.rules", "rad", "uniform", "--labels.wrong", "0.3", "--labels.repeats", "2",
        "--labels.steps", "2", "--labels.rounds", "1", "--evaluation.batch", "64",
        "--evaluation.augment.ops", "--evaluation.lr_grid", "0.01", "--data.limit", "1500",
    ),
    # a distillation looks at its images by training networks on them
    of_set=(
        "--ipc", "10", "--outer.steps", "2", "--evaluation.epochs", "1", "--data.limit", "1500",
    ),
)  # fmt: skip


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each rule and share of wrong answers, then how rad compares."""
    heads = ["answers", "rule", "known alone"]
    for number in range(result["config"]["rounds"]):
        heads.append(f"round {number + 1}")
    made = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in result["rows"]:
        cells = [row["answers"], row["rule"]]
        for one in row["rounds"]:
            cells.append(common.shown(one["mean"], one["ci95"]))
        made.append(f"| {' | '.join(cells)} |")
    made.append("")
    for note in of_labels.notes(result):
        made.append(f"- {note}")
    return made


def taken(words: list[str], flag: str) -> list[str]:
    """Take a flag and its value out of words; returns the value, or nothing."""
    if flag not in words:
        return []
    at = words.index(flag)
    value = words[at + 1 : at + 2]
    del words[at : at + 2]
    return value


def bought(pool: str, size: Size, where: Sequence[str]) -> Path:
    """Buy labels of a pool, or go on; returns the folder. `where` says where the images lie."""
    flags = [*POOLS[pool], *size.labels]
    if pool == "set":
        of_set = size.folder / "dm50"
        print(command(1, "distill", RECIPE, "--out", str(of_set), *size.of_set, *where))
        flags += ["--pool", str(of_set)]
    folder = size.folder / pool
    print(command(1, "buy_labels", RECIPE, "--out", str(folder), *flags, *where))
    return ROOT / folder


def main(args: list[str]) -> None:
    """Run, and write what came of it."""
    words = list(args)
    size = FULL
    if "--tiny" in words:
        size = TINY
        words.remove("--tiny")
    where: list[str] = []
    for root in taken(words, "--data_root"):
        where = ["--data.root", root]
    if len(words) != 1 or words[0] not in POOLS:
        sys.exit(f"usage: python benchmarks/bought_labels.py {' | '.join(POOLS)} [flags]")
    (pool,) = words
    folder = bought(pool, size, where)
    result = json.loads((folder / "labels.json").read_text())
    out = size.results or folder
    name = f"bought_labels_{pool}"
    said = {
        "command": f"python benchmarks/bought_labels.py {pool}",
        "result": common.published(result),
    }
    files.write_json(out / f"{name}.json", said)
    files.write_text(out / f"{name}.md", "\n".join(lines(result)) + "\n")
    shutil.copy(folder / "labels.png", out / f"{name}.png")
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main(sys.argv[1:])
