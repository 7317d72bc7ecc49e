"""How far is `run.py estimate` from the truth?

Time, peak memory and disk of each command, estimated and then measured, for several recipes.

    python benchmarks/estimate.py [--whole]

Each case runs estimate and then buffer, distill and evaluate as commands, in an empty folder, one
after another. Timings are only as good as the machine is quiet; where `cpu_seconds` of the truth
lie far below its seconds on one thread, it was not. Without --whole the Fashion-MNIST cases are cut
short, the same for both sides.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch
import tyro

SHORT = [
    "--buffer.num_experts",
    "2",
    "--buffer.epochs",
    "5",
    "--outer.steps",
    "60",
    "--evaluation.num_networks",
    "3",
    "--evaluation.epochs",
    "100",
]
SHORT_MATCHING = [
    "--outer.steps",
    "120",
    "--evaluation.num_networks",
    "3",
    "--evaluation.epochs",
    "100",
]


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    recipes: tuple[str, ...] = (
        "mtt/digits_ipc1",
        "mtt/fashion_mnist_ipc1_small",
        "dm/fashion_mnist_ipc1_small",
    )
    whole: bool = False  # run the Fashion-MNIST recipes as they are


def command(where: Path, *words: str) -> dict[str, float]:
    """Seconds and peak memory of a command of run.py, run in the folder `where`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(common.ROOT / "run.py"), *words], cwd=where, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"run.py {' '.join(words)} failed")
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": time.perf_counter() - start,
        "memory": memory,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def size(path: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def case(recipe: str, flags: list[str]) -> list[dict[str, Any]]:
    """Estimate and truth of each command of a recipe."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        took = command(where, "estimate", recipe, *flags, "--json", "estimate.json")["seconds"]
        content = json.loads((where / "estimate.json").read_text())
        rows, before = [], 0
        for part in content["parts"]:
            if part["memory"] == 0:  # nothing is done
                continue
            words = {
                "buffer": ["buffer", recipe, *flags],
                "distill": ["distill", recipe, *flags, "--out", "runs/a"],
                "evaluate": ["evaluate", "runs/a"],
            }
            truth = command(where, *words[part["name"]])
            after = size(where / "experts") + size(where / "runs")
            truth["disk"], before = after - before, after
            ratios = {
                key: round(part[key] / truth[key], 3) for key in ("seconds", "memory", "disk")
            }
            estimated = {key: part[key] for key in ratios}
            rows.append(
                {
                    "recipe": recipe,
                    "flags": flags,
                    "part": part["name"],
                    "estimated": estimated,
                    "measured": truth,
                    "ratio": ratios,
                }
            )
            print(
                f"{recipe} {part['name']}: "
                + ", ".join(
                    f"{k} {estimated[k]:.4g} for {truth[k]:.4g} ({r:.2f})"
                    for k, r in ratios.items()
                ),
                flush=True,
            )
    whole = {side: sum(row[side]["seconds"] for row in rows) for side in ("estimated", "measured")}
    ratio = whole["estimated"] / whole["measured"]
    print(
        (
            f"{recipe} in all: {whole['estimated']:.0f} s for {whole['measured']:.0f} s "
            f"({ratio:.2f}); estimated in {took:.0f} s"
        ),
        flush=True,
    )
    return [
        *rows,
        {
            "recipe": recipe,
            "in_all": whole,
            "ratio": round(ratio, 3),
            "estimate_took": round(took, 1),
        },
    ]


def main(settings: Settings) -> None:
    """Measure, print, write the JSON."""
    rows = []
    for recipe in settings.recipes:
        short = (
            []
            if settings.whole or "fashion" not in recipe
            else SHORT
            if recipe.startswith("mtt")
            else SHORT_MATCHING
        )
        rows += case(recipe, short)
    common.write(
        "estimate",
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        asdict(settings),
        rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
