"""What small sets are used for, on Fashion-MNIST and a CPU. The same command resumes.

    python benchmarks/uses.py continual     class-incremental learning with memories of equal bytes
    python benchmarks/uses.py ranking       do networks come in the order that the full data give?
    python benchmarks/uses.py privacy       which real images are near, and whether membership shows

Runs go to runs/uses; JSON, table and picture to docs/results/NAME_small.*.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from table import ROOT, command, files

FOLDER = ROOT / "runs" / "uses"
DM = "dm/fashion_mnist_ipc10_small"
STEPS = {
    "continual": (
        ("continual", DM, "--out", "{folder}/continual",
         "--evaluation.epochs", "100", "--evaluation.lr_grid", "0.01", "0.03",
         "--evaluation.full_steps", "60", "--outer.steps", "100"),
    ),
    "ranking": (
        ("distill", DM, "--out", "{folder}/dm"),
        ("rank", "{folder}/dm", "--rate", "learned",
         "--epochs", "100", "--num_networks", "3", "--full_steps", "100"),
    ),
    "privacy": (
        ("distill", DM, "--out", "{folder}/dm"),
        ("privacy", "{folder}/dm", "--full_steps", "300"),
        ("select", DM, "--out", "{folder}/random"),
        ("privacy", "{folder}/random", "--full_steps", "300"),
    ),
}  # fmt: skip
WRITTEN = {
    "continual": ("continual/continual",),
    "ranking": ("dm/ranking",),
    "privacy": ("dm/privacy", "random/privacy"),
}


def continual(result: dict[str, Any]) -> list[str]:
    """One line for each memory."""
    seen = result["classes_seen"]
    lines = [
        (
            f"| memory | images per class | bytes | {' | '.join(f'{n} classes' for n in seen)} | "
            "forgetting |"
        ),
        "|" + " --- |" * (len(seen) + 4),
    ]
    for name, memory in result["memories"].items():
        cells = [shown(stage) for stage in memory["accuracy"]]
        lines.append(
            f"| {name} | {memory['images_per_class'] or '-'} | {memory['bytes'] or '-'} | "
            f"{' | '.join(cells)} | {shown(memory['forgetting'])} |"
        )
    return lines


def ranking(result: dict[str, Any]) -> list[str]:
    """One line for each set."""
    lines = [
        (
            "| set | Kendall's tau (95 % interval) | Spearman's rho | tau of the better half | "
            "accuracy lost by its choice, points |"
        ),
        "|" + " --- |" * 5,
    ]
    for s in result["sets"]:
        low, high = s["kendall_ci95"]
        top = "-" if s["top_kendall"] is None else f"{s['top_kendall']:.2f}"
        lines.append(
            f"| {s['set']} | {s['kendall']:.2f} ({low:.2f} to {high:.2f}) | {s['spearman']:.2f} | "
            f"{top} | {100 * s['regret']:.1f} |"
        )
    return [*lines, "", result["note"]]


def shown(value: dict[str, Any]) -> str:
    """Mean and 95 % interval, in points."""
    if value["mean"] is None:
        return "diverged"
    between = (
        ""
        if value["ci95"] is None
        else f" ({100 * value['ci95'][0]:.1f} to {100 * value['ci95'][1]:.1f})"
    )
    return f"{100 * value['mean']:.1f}{between}"


def main(args: list[str]) -> None:
    """Run, collect, write."""
    if len(args) != 1 or args[0] not in STEPS:
        sys.exit(f"usage: python benchmarks/uses.py {' | '.join(STEPS)}")
    (name,) = args
    for step in STEPS[name]:
        print(command(1, *(word.format(folder=FOLDER.relative_to(ROOT)) for word in step)))
    out = ROOT / "docs" / "results"
    for path in WRITTEN[name]:
        made = FOLDER / path
        label = f"{name}_small" if len(WRITTEN[name]) == 1 else f"{name}_{Path(path).parent}_small"
        result = json.loads(made.with_suffix(".json").read_text())
        files.write_json(
            out / f"{label}.json",
            {"command": f"python benchmarks/uses.py {name}", "result": result},
        )
        shutil.copy(made.with_suffix(".png"), out / f"{label}.png")
        if name in ("continual", "ranking"):
            (out / f"{label}.md").write_text(
                "\n".join({"continual": continual, "ranking": ranking}[name](result)) + "\n"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
