"""A results table: runs buffer, distill and evaluate of each recipe, and writes what came out. The same command resumes.

    python benchmarks/table.py NAME RECIPE [RECIPE ...]

Writes docs/results/NAME.md and docs/results/NAME.json (every evaluation.json, with cost, machine, versions and commit). Runs go to runs/NAME.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("recipe", "set", "accuracy % (95 % interval)", "n", "learning rate", "updates", "evaluation", "distillation", "peak memory")


def command(*args: str) -> None:
    """run.py with these arguments, its output shown."""
    subprocess.run([sys.executable, "run.py", *args], cwd=ROOT, check=True)


def collect(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    meta = json.loads((folder / "distilled" / "meta.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    cost = meta["distillation"] | {"machine": meta["machine"], "commit": meta["commit"]}
    return {"recipe": meta["recipe"]["name"], "seed": meta["seed"], "distillation": cost, "evaluation": evaluation}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def markdown(runs: list[dict[str, Any]]) -> str:
    """One line per recipe and set; a distilled set that does not beat a baseline by more than both intervals is marked."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for run in runs:
        rows, cost = run["evaluation"]["rows"], run["distillation"]
        for row in rows:
            low, high = row["ci95"]
            shown = f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            mine = row["set"] == "distilled"
            rivals = [r for r in rows if r["model"] == row["model"] and r["set"] in ("random", "herding")]
            beaten = all(low > r["ci95"][1] for r in rivals)
            mark = "" if not mine or beaten else " **not clearly above the baselines**"
            spent = [f"{cost['seconds'] / 60:.1f} min", f"{cost['peak_memory_bytes'] / 1e9:.2f} GB"] if mine else ["-", "-"]
            evaluation = [str(row["n"]), f"{row['lr']:.4g}", str(row["steps"]), f"{row['seconds'] / 60:.1f} min"]
            lines.append(_line([run["recipe"], row["set"] + mark, shown, *evaluation, *spent]))
    return "".join(lines)


def main(args: list[str]) -> None:
    """Run, collect, write."""
    if len(args) < 2:
        sys.exit("usage: python benchmarks/table.py NAME RECIPE [RECIPE ...]")
    name, *recipes = args
    runs = []
    for recipe in recipes:
        folder = Path("runs") / name / recipe.replace("/", "-")
        command("buffer", recipe)
        command("distill", recipe, "--out", str(folder))
        command("evaluate", str(folder))
        runs.append(collect(ROOT / folder))
        out = ROOT / "docs" / "results"
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps({"command": " ".join(["python benchmarks/table.py", *args]), "runs": runs}, indent=1) + "\n")
        (out / f"{name}.md").write_text(markdown(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
