"""What three users do, as docs/examples has it: how many lines they write and how long they wait.

    python benchmarks/trials.py FOLDER [--out NAME]      with CIFAR-10 as the Hub's parquet files

An engineer has 600 photographs in four unequal classes (CIFAR-10, enlarged to 64 pixels) and runs
photographs.py, then the usual evaluation; a student runs own_objective.py, a practitioner
three_clients.py. Each starts in an empty folder. Writes docs/results/NAME.json and .md.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import tokenize
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from ddengine.data import load_data
from ddengine.recipe import DataConfig
from ddengine.system import files, runtime

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
CLASSES = {"airplane": (0, 240), "car": (1, 180), "bird": (2, 120), "cat": (3, 60)}
SIDE = 64
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}


def lines_of_code(path: Path) -> int:
    """Lines that hold anything but comments and docstrings."""
    lines: set[int] = set()
    before = tokenize.NEWLINE
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            docstring = token.type == tokenize.STRING and before in LAYOUT
            if token.type not in LAYOUT | {tokenize.ENDMARKER} and not docstring:
                lines.update(range(token.start[0], token.end[0] + 1))
            before = token.type
    return len(lines)


def photographs(cifar10: str, folder: Path) -> None:
    """The first training images of four classes as JPEG files, in a folder for each."""
    # the engine makes torchvision importable beside any torch, so it is imported first
    from torchvision.transforms.functional import to_pil_image

    config = DataConfig(name="cifar10", root=cifar10, validation=0.0)
    train = load_data(config, torch.device("cpu")).train
    for name, (label, num) in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in train.members[label][:num].tolist():
            image = to_pil_image(train.pixels[i]).resize((SIDE, SIDE))
            image.save(folder / name / f"{i:05d}.jpg", quality=95)


def waited(folder: Path, *words: str) -> float:
    """Seconds until a program of Python has ended, in a folder."""
    began = time.perf_counter()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words], cwd=folder, env=env, check=True)
    return time.perf_counter() - began


def trial(what: str, seconds: float, evaluation: Path | None, lines: int | None) -> dict[str, Any]:
    """What came of one."""
    told = None if evaluation is None else json.loads(evaluation.read_text())
    return {"what": what, "seconds": round(seconds, 1), "lines": lines, "evaluation": told}


def trials(cifar10: str, folder: Path) -> list[dict[str, Any]]:
    """All of them, one after another."""
    photographs(cifar10, folder / "photos")
    program = str(ROOT / "run.py")
    run = Path("runs", "photographs")
    name = "photographs.py"
    path = EXAMPLES / name
    seconds = waited(folder, str(path), "photos")
    evaluation = folder / run / "evaluation.json"
    done = [trial(name, seconds, evaluation, lines_of_code(path))]
    quick = waited(folder, program, "evaluate", str(run), "--quick", "--restart")
    done.append(trial("evaluate --quick", quick, None, None))
    usual = waited(folder, program, "evaluate", str(run), "--restart")
    done.append(trial("evaluate", usual, evaluation, None))
    for name in ("own_objective.py", "three_clients.py"):
        path = EXAMPLES / name
        done.append(trial(name, waited(folder, str(path)), None, lines_of_code(path)))
    return done


def table(done: list[dict[str, Any]]) -> str:
    """Lines, minutes, and what was reached where there is one evaluation."""
    lines = ["| program | lines | minutes | test accuracy % |", "| --- | --- | --- | --- |"]
    for one in done:
        reached = []
        for row in (one["evaluation"] or {"rows": []})["rows"]:
            cut = " (cut)" if row.get("cut") and row["set"] == "full" else ""
            accuracy, spread = 100 * row["accuracy_mean"], 100 * row["accuracy_std"]
            reached.append(f"{row['set']}{cut} {accuracy:.1f} ± {spread:.1f}")
        written = "-" if one["lines"] is None else one["lines"]
        minutes = one["seconds"] / 60
        lines.append(f"| `{one['what']}` | {written} | {minutes:.1f} | {', '.join(reached)} |")
    return "\n".join(lines) + "\n"


def main(cifar10: str, *options: str) -> None:
    """Run, and write what came out."""
    name = options[1] if options else "trials"
    with tempfile.TemporaryDirectory() as folder:
        done = trials(str(Path(cifar10).resolve()), Path(folder))
    machine, commit = runtime.machine(torch.device("cpu")), runtime.commit()
    content = {
        "trials": done, "machine": machine, "versions": runtime.versions(), "commit": commit,
    }  # fmt: skip
    files.write_json(ROOT / "docs" / "results" / f"{name}.json", content)
    (ROOT / "docs" / "results" / f"{name}.md").write_text(table(done))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4) or (len(sys.argv) == 4 and sys.argv[2] != "--out"):
        sys.exit("usage: python benchmarks/trials.py FOLDER [--out NAME]")
    main(*sys.argv[1:])
