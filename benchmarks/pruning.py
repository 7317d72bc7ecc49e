"""Distillation on pruned data, on Fashion-MNIST (10,000 images, width 16) and a CPU.

Equal updates in every row. The same command resumes; each part takes at most an hour on one core.

    python benchmarks/pruning.py random      random images: shares 0, 0.5, 0.9, 1 of distillation
    python benchmarks/pruning.py features    herding, k-centre, facility, CAD: shares 0, 0.9
    python benchmarks/pruning.py scores      forgetting, EL2N, easy, middle, hard: shares 0, 0.9
    python benchmarks/pruning.py teachers    teachers of width 8 and 32 beside that of 16
    python benchmarks/pruning.py losses      reshaped logits, NKD, USKD, on random and middle images
    python benchmarks/pruning.py sets        distilled sets (DM) beside selections of as many bytes
    python benchmarks/pruning.py table       what is there, together, with the published claims
    ... --data_root PATH                     where the images lie
    ... --tiny                               the same in a minute, of which no figure says anything

Runs go to runs/pruning; JSON, table, text and picture to docs/results/pruning_small.*.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from table import ROOT, command, files

from ddengine.pages import of_pruning
from ddengine.uses.pruning.findings import findings

RECIPE = "dm/fashion_mnist_ipc10_small"
FRACTIONS = ("--pruning.fractions", "0.01", "0.03", "0.1", "0.3", "1")
# the same in all parts, so that rows of several parts are of the same teachers and seeds
SHARED = (
    "--pruning.steps", "600", "--pruning.teacher_steps", "2000", "--pruning.repeats", "3",
    "--evaluation.batch", "64", "--evaluation.augment.ops", "--evaluation.lr_grid", "0.01", "0.03",
    "--init.networks", "1",
)  # fmt: skip
TINY = (
    "--pruning.steps", "2", "--pruning.teacher_steps", "2", "--pruning.repeats", "2",
    "--evaluation.batch", "64", "--evaluation.augment.ops", "--evaluation.lr_grid", "0.01",
    "--init.networks", "1", "--data.limit", "1500", "--pruning.fractions", "0.1", "1",
)  # fmt: skip
# a distillation looks at its images by training networks on them
TINY_SETS = ("--data.limit", "1500", "--outer.steps", "2", "--evaluation.epochs", "1")
MODEL = "convnet-d3-w16-in"
PARTS = {
    "random": (
        *FRACTIONS, "--pruning.selections", "random", "--pruning.alphas", "0", "0.5", "0.9", "1",
    ),
    "features": (
        "--pruning.fractions", "0.01", "0.03", "0.1", "0.3",
        "--pruning.selections", "herding", "k_centre", "facility", "cad",
    ),
    "scores": (
        "--pruning.fractions", "0.01", "0.03", "0.1", "0.3",
        "--pruning.selections", "forgetting", "el2n", "easy", "middle", "hard",
    ),
    "teachers": (
        *FRACTIONS, "--pruning.selections", "random", "--pruning.alphas", "0.9",
        "--pruning.teachers", MODEL, "convnet-d3-w8-in", "convnet-d3-w32-in",
    ),
    "losses": (
        "--pruning.fractions", "0.01", "0.1", "0.3", "--pruning.selections", "random", "middle",
        "--pruning.alphas", "0.9", "--pruning.other_alphas", "0.9",
        "--pruning.losses", "kd", "reshaped", "nkd", "uskd",
    ),
    "sets": (
        "--pruning.fractions", "1", "--pruning.selections", "random", "herding",
        "--pruning.alphas", "0", "0.9",
    ),
}  # fmt: skip
SETS = {"dm1": "dm/fashion_mnist_ipc1_small", "dm10": RECIPE}


def flags_of(part: str, *, tiny: bool) -> list[str]:
    """The flags of a part. What comes later counts."""
    flags = [*PARTS[part], *SHARED]
    if not tiny:
        return flags
    # a flag may stand once: those of TINY take the place of others
    taken = {word for word in TINY if word.startswith("--")}
    kept = []
    skipping = False
    for word in flags:
        if word.startswith("--"):
            skipping = word in taken
        if not skipping:
            kept.append(word)
    return [*kept, *TINY]


def run_part(part: str, folder: Path, where: Sequence[str], *, tiny: bool) -> None:
    """Do a part, or what is left of it."""
    flags = flags_of(part, tiny=tiny)
    if part == "sets":
        limit = TINY_SETS if tiny else ()
        paths = []
        for name, recipe in SETS.items():
            out = folder / name
            print(command(1, "distill", recipe, "--out", str(out), *limit, *where))
            paths.append(str(out))
        flags += ["--sets", *paths]
    print(command(1, "prune", RECIPE, "--out", str(folder / part), *flags, *where))


def together(folder: Path) -> dict[str, Any]:
    """The rows of all parts that are done, each once, and what they say of the claims.

    Rows of different parts are paired by repeat: their teachers, scores and seeds follow from the
    same seed.
    """
    rows: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    parts, seconds = [], 0.0
    first: dict[str, Any] = {}
    for part in PARTS:
        path = folder / part / "prune.json"
        if not path.is_file():
            continue
        content = json.loads(path.read_text())
        first = first or common.published(content)
        parts.append(part)
        seconds += content["seconds"]
        for row in content["rows"]:
            names = ("selection", "size", "loss", "alpha", "teacher")
            rows.setdefault("/".join(str(row[name]) for name in names), row)
        for teacher in content["teachers"]:
            teachers.setdefault(f"{teacher['teacher']}/{teacher['repeat']}", teacher)
    if not parts:
        sys.exit(f"No part is done in {folder}; run one first.")
    listed = list(teachers.values())
    names = list(dict.fromkeys(teacher["teacher"] for teacher in listed))
    said = findings(list(rows.values()), names)
    told = {"parts": parts, "seconds": seconds, "teachers": listed, "rows": list(rows.values())}
    return {**first, **told, "findings": said}


def lines(result: dict[str, Any]) -> list[str]:
    """A table with a line for each student, then what is said of the claims."""
    made = ["| kept | images | bytes | student | teacher | rate | accuracy % (95 % interval) |"]
    made.append("|" + " --- |" * 7)
    for row in result["rows"]:
        cells = (
            row["selection"],
            row["images"],
            row["bytes"],
            of_pruning.student(row),
            row["teacher"] or "-",
            f"{row['lr']:g}",
            common.shown(row["accuracy_mean"], row["ci95"]),
        )
        made.append(f"| {' | '.join(map(str, cells))} |")
    made.append("")
    made += [f"- {line}" for line in of_pruning.notes(result)]
    return made


def write(folder: Path, out: Path) -> None:
    """Write the table, the text and the picture of what is there."""
    result = together(folder)
    files.make_folder(out)
    name = "pruning_small"
    said = {"command": "python benchmarks/pruning.py PART", "result": result}
    files.write_json(out / f"{name}.json", said)
    files.write_text(out / f"{name}.md", "\n".join(lines(result)) + "\n")
    of_pruning.plot(out / f"{name}.png", result)
    print("\n".join(lines(result)))


def main(args: list[str]) -> None:
    """Run a part, or write the table."""
    tiny = "--tiny" in args
    words = [word for word in args if word != "--tiny"]
    where: tuple[str, ...] = ()
    if "--data_root" in words:
        at = words.index("--data_root")
        where = ("--data.root", *words[at + 1 : at + 2])
        del words[at : at + 2]
    if len(words) != 1 or words[0] not in (*PARTS, "table"):
        sys.exit(f"usage: python benchmarks/pruning.py {' | '.join((*PARTS, 'table'))} [flags]")
    folder = ROOT / "runs" / ("pruning-tiny" if tiny else "pruning")
    if words[0] == "table":
        write(folder, folder if tiny else ROOT / "docs" / "results")
    else:
        run_part(words[0], folder.relative_to(ROOT), where, tiny=tiny)


if __name__ == "__main__":
    main(sys.argv[1:])
