"""Labels bought from a teacher that errs, on Fashion-MNIST (10,000 images, width 16) and a CPU.

0 to 40 % of the answers are wrong. The same command resumes; each takes at most an hour on a core.

    python benchmarks/bought_labels.py real    9,000 real images are the pool
    python benchmarks/bought_labels.py set     the images of a distilled set (DM, IPC 50) are
    ... --data_root PATH                       where the images lie
    ... --tiny                                 the same in a minute, to try it

Runs go to runs/bought_labels; JSON, table, text and picture to docs/results/bought_labels_POOL.*.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import common
from table import ROOT, command, files

from ddengine.pages import of_labels

RECIPE = "dm/fashion_mnist_ipc10_small"
SHARED = (
    "--labels.wrong", "0", "0.1", "0.2", "0.3", "0.4", "--labels.repeats", "3",
    "--labels.rounds", "3", "--labels.steps", "400", "--evaluation.batch", "64",
    "--evaluation.augment.ops", "--evaluation.lr_grid", "0.01", "0.03",
)  # fmt: skip
POOLS = {
    "real": ("--labels.points", "100", "--labels.first_per_class", "5"),
    "set": ("--labels.points", "50", "--labels.first_per_class", "2"),
}
TINY = (
    "--labels.rules", "rad", "uniform", "--labels.wrong", "0.3", "--labels.repeats", "2",
    "--labels.steps", "2", "--labels.rounds", "1",
    "--evaluation.batch", "64", "--evaluation.augment.ops", "--evaluation.lr_grid", "0.01",
    "--data.limit", "1500",
)  # fmt: skip
# of the set that is the pool; a distillation looks at its images by training networks on them
SET = ("--ipc", "50")
TINY_SET = (
    "--ipc", "10", "--outer.steps", "2", "--evaluation.epochs", "1", "--data.limit", "1500",
)  # fmt: skip


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each rule and share of wrong answers, then how rad compares."""
    rounds = range(1, result["config"]["rounds"] + 1)
    heads = ["answers", "rule", "known alone", *(f"round {number}" for number in rounds)]
    made = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in result["rows"]:
        rounds_said = [common.shown(one["mean"], one["ci95"]) for one in row["rounds"]]
        cells = [row["answers"], row["rule"], *rounds_said]
        made.append(f"| {' | '.join(cells)} |")
    made.append("")
    made += [f"- {line}" for line in of_labels.notes(result)]
    return made


def main(args: list[str]) -> None:
    """Run, and write what came of it."""
    tiny = "--tiny" in args
    words = [word for word in args if word != "--tiny"]
    where: tuple[str, ...] = ()
    if "--data_root" in words:
        at = words.index("--data_root")
        where = ("--data.root", *words[at + 1 : at + 2])
        del words[at : at + 2]
    if len(words) != 1 or words[0] not in POOLS:
        sys.exit(f"usage: python benchmarks/bought_labels.py {' | '.join(POOLS)} [flags]")
    (pool,) = words
    folder = Path("runs") / ("bought_labels-tiny" if tiny else "bought_labels")
    flags = [*POOLS[pool], *(TINY if tiny else SHARED)]
    if pool == "set":
        of_set = TINY_SET if tiny else SET
        print(command(1, "distill", RECIPE, "--out", str(folder / "dm50"), *of_set, *where))
        flags += ["--pool", str(folder / "dm50")]
    print(command(1, "buy_labels", RECIPE, "--out", str(folder / pool), *flags, *where))
    made = ROOT / folder / pool
    result = json.loads((made / "labels.json").read_text())
    out = made if tiny else ROOT / "docs" / "results"
    name = f"bought_labels_{pool}"
    said = {"command": f"python benchmarks/bought_labels.py {pool}", "result": result}
    files.write_json(out / f"{name}.json", said)
    files.write_text(out / f"{name}.md", "\n".join(lines(result)) + "\n")
    shutil.copy(made / "labels.png", out / f"{name}.png")
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main(sys.argv[1:])
