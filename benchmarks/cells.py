"""Published cells on this machine beside their published figures, within hours that are said.

    python benchmarks/cells.py --hours 3 --cifar10 FOLDER --fashion_mnist FOLDER
        [--cells random_dsa_ipc1 dsa/cifar10_ipc1]

The same command goes on, to the bit, after the last hour or a kill: what runs when the hours are
over is stopped after its step. Cells are done in the order of CELLS; a whole recipe is run, but
where a row says what was cut. Cells that are cut to the hours have as many outer steps as `run.py
estimate` expects to fit into what is left of them, chosen once; in other folders (--out, --runs)
they are made anew, with those that fit then. Writes published_cells.json and .md into docs/results
(--out) after every cell; runs, and the output of their commands, lie in runs/cells (--runs). Cells
that the JSON holds with a figure are not made again, so that one machine can go on after another;
without the file all are. Two commands for different cells may run at the same time. --rehearse
tries every command at a size that takes seconds, and writes into --runs where no --out is given. No
timings should be taken while this runs.
"""

import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import tyro

from ddengine.artefact import runs
from ddengine.evaluation import intervals
from ddengine.recipe import Published
from ddengine.system import files
from ddengine.system.errors import UserError
from synth.catalogue import find

NAME = "published_cells"
MARK = "cell.json"  # in the folder of a cell: what it is
TOOK = "took.json"  # in the folder of a set: seconds of its commands, of all calls together
CUT = "cut.json"  # there: the outer steps that were chosen
SHARE = 0.8  # of the time left that outer steps may be expected to take
JPEG = b"\xff\xd8"  # what such files begin with
# the folders of an absolute path, before its last name
FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])")
DC = "table 1 of DC's paper"
PAD = "table 1 of PAD's paper"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A published figure, and how it is reproduced."""

    name: str
    recipe: str
    published: Published | None = None  # None: that of the recipe
    kind: str = ""  # the rule that chooses real images; "": they are distilled
    sets: int = 1  # made with seeds 0, 1, ...
    networks: int = 5  # trained on each
    flags: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()  # what these flags cut, in words
    fits: bool = False  # whether outer steps are cut to the hours
    evaluate: tuple[str, ...] = ()  # flags of the evaluation

    @property
    def figure(self) -> Published | None:
        """The published figure."""
        return self.published or find(self.recipe).published


def _selections(ipc: int, dsa: float, dc: tuple[Published, Published]) -> list[Cell]:
    """Real images: random ones under both protocols, and herding under DC's.

    Each network has random images of its own.
    """
    spread = {1: 0.003, 10: 0.005, 50: 0.003}[ipc]
    with_augmentation = Published(accuracy=dsa, std=spread, source=PAD)
    random = partial(Cell, kind="real", sets=5, networks=1)
    return [
        random(
            name=f"random_dsa_ipc{ipc}",
            recipe=f"dsa/cifar10_ipc{ipc}",
            published=with_augmentation,
        ),
        random(name=f"random_dc_ipc{ipc}", recipe=f"dc/cifar10_ipc{ipc}", published=dc[0]),
        Cell(
            name=f"herding_dc_ipc{ipc}",
            recipe=f"dc/cifar10_ipc{ipc}",
            published=dc[1],
            kind="herding",
        ),
    ]


def _figures(*percent: float) -> tuple[Published, Published]:
    """Random and herding of DC's table: mean, deviation, mean, deviation in %."""
    first, second = percent[:2], percent[2:]
    made = [
        Published(accuracy=mean / 100, std=std / 100, source=DC) for mean, std in (first, second)
    ]
    return made[0], made[1]


def _epochs_read(recipe: str) -> int:
    """Of its experts."""
    objective: Any = find(recipe).objective
    return int(objective.epochs()[-1])


def _of_experts(ipc: int, experts: int) -> Cell:
    """MTT with fewer experts, of the epochs it reads, and the outer steps that fit."""
    recipe = f"mtt/cifar10_ipc{ipc}"
    epochs = _epochs_read(recipe)
    buffer = ("--buffer.num_experts", str(experts), "--buffer.epochs", str(epochs))
    cut = f"{experts} experts of {epochs} epochs for 100 of 50"
    return Cell(name=recipe, recipe=recipe, flags=buffer, cut=(cut,), fits=True)


def _whole(recipe: str) -> Cell:
    """A published recipe as it is."""
    return Cell(name=recipe, recipe=recipe)


CROSS = (
    "--take", "buffer=ast/cifar10_ipc10", "--take", "objective.milestones=ast/cifar10_ipc10",
    "--buffer.num_experts", "4",
)  # fmt: skip
CELLS = [
    *_selections(1, 0.154, _figures(14.4, 2.0, 21.5, 1.2)),
    *_selections(10, 0.31, _figures(26.0, 1.2, 31.6, 0.7)),
    *map(_whole, ("dsa/cifar10_ipc1", "dc/cifar10_ipc1")),
    *map(_whole, ("dc/fashion_mnist_ipc1", "dsa/fashion_mnist_ipc1")),
    _of_experts(1, experts=4),
]
# that only run where they are named: they want more hours, or a GPU
MORE = [
    *_selections(50, 0.506, _figures(43.4, 1.0, 40.4, 0.6)),
    _of_experts(10, experts=4),
    replace(_whole("dm/cifar10_ipc10"), fits=True),
    Cell(
        name="cross/cifar10_ipc10",
        recipe="datm/cifar10_ipc10",
        flags=CROSS,
        cut=("4 experts for 100, which are AST's, and its milestones",),
        fits=True,
    ),
]
TINY = ("--data.zca", "False", "--model", "convnet-d3-w4-in", "--init.steps", "2")
TINY_CLASS = 20  # images of a class, for each of the set
TINY_EXPERTS = ("--buffer.num_experts", "2", "--buffer.batch", "32")
TINY_STEPS = 2


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    hours: float  # of all cells together
    cells: tuple[str, ...] = ()  # by their names; none: those of CELLS
    cifar10: Path | None = None  # a folder of parquet files; None: where torchvision puts it
    fashion_mnist: Path | None = None  # a folder of its four files; None: where torchvision puts it
    device: str = "auto"
    runs: Path = common.ROOT / "runs" / "cells"
    out: Path | None = None  # published_cells.json and .md; None: docs/results, or runs (rehearse)
    rehearse: bool = False  # a size that takes seconds, which reproduces nothing

    @property
    def results(self) -> Path:
        """The folder of published_cells.json and .md."""
        rehearsed = self.runs if self.rehearse else common.ROOT / "docs" / "results"
        return self.out or rehearsed


class OverError(Exception):
    """The hours are over."""


class ShareError(Exception):
    """A cell's share of the hours holds no outer step of it."""


class FailedError(Exception):
    """A command of a cell failed."""

    def __init__(self, said: str, line: str):
        super().__init__(said)
        self.line = line  # the last one of its output, for the results, which name no folder here


@dataclass(frozen=True)
class Session:
    """Commands until the hours are over."""

    settings: Settings
    until: float  # of time.monotonic

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def run(self, folder: Path, part: str, *words: str) -> None:
        """A command of run.py, whose seconds count for a part of the set that `folder` is of.

        Raises OverError where it was stopped, FailedError where it failed.
        """
        if self.left <= 0:
            raise OverError
        words = (*words, "--device", self.settings.device)
        log = folder / f"{part}.log"
        began = time.monotonic()
        command = [sys.executable, "run.py", *words]
        try:
            code = common.stopped_after(command, self.left, log)
        finally:
            _add_seconds(folder, part, time.monotonic() - began)
        if common.was_stopped(code):
            raise OverError
        if code:
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            said = f"run.py {' '.join(words)} ended with {code}: {last} ({log})"
            raise FailedError(said, without_folders(last, self.settings))


def without_folders(line: str, settings: Settings) -> str:
    """A line without the folders of this machine.

    What lies in one that is known here keeps its path from there on, and other paths their last
    name.
    """
    for folder in (
        settings.runs, settings.results, settings.cifar10, settings.fashion_mnist, common.ROOT,
    ):  # fmt: skip
        if folder is not None:  # of these the names may have blanks
            line = line.replace(f"{folder.absolute()}/", "")
    return FOLDERS.sub("", line)


def _add_seconds(folder: Path, part: str, seconds: float) -> None:
    """Count seconds of a part of a set."""
    path = folder / TOOK
    took = files.read_json(path) if path.is_file() else {}
    took[part] = round(took.get(part, 0.0) + seconds, 1)
    files.write_json(path, took)


def chosen(settings: Settings) -> list[Cell]:
    """The cells that are asked for. Raises UserError for a name that is none."""
    by_name = {cell.name: cell for cell in [*CELLS, *MORE]}
    unknown = [name for name in settings.cells if name not in by_name]
    if unknown:
        raise UserError(f"--cells {unknown[0]} is none of {', '.join(by_name)}.")
    asked = [by_name[name] for name in settings.cells] or CELLS
    return [_rehearsed(cell) for cell in asked] if settings.rehearse else asked


def _rehearsed(cell: Cell) -> Cell:
    """The same at a size that takes seconds."""
    recipe = find(cell.recipe)
    limit = 10 * TINY_CLASS * recipe.ipc
    flags = [*cell.flags, *TINY, "--data.limit", str(limit)]
    if recipe.buffer is not None:
        flags += [*TINY_EXPERTS, "--buffer.epochs", str(_epochs_read(cell.recipe))]
        flags += ["--objective.inner_steps", "2"]
    if not cell.kind:
        flags += ["--outer.steps", str(TINY_STEPS), "--outer.picture_every", "0"]
    return replace(
        cell,
        flags=tuple(flags),
        cut=("a rehearsal",),
        networks=min(cell.networks, 2),
        sets=min(cell.sets, 2),
        evaluate=("--epochs", "1"),
    )


def where_images_lie(cell: Cell, settings: Settings) -> tuple[str, ...]:
    """Flags that say where images lie on this machine, which no result names."""
    name = find(cell.recipe).data.name
    if name == "cifar10" and settings.cifar10 is not None:
        return ("--data.name", "parquet", "--data.root", str(settings.cifar10.resolve()))
    if name == "fashion_mnist" and settings.fashion_mnist is not None:
        return ("--data.root", str(settings.fashion_mnist.resolve()))
    return ()


def make(cell: Cell, session: Session, hours: float) -> None:
    """All sets of a cell, and their evaluations; `hours` are its own.

    Raises OverError, ShareError, FailedError and UserError.
    """
    folder = folder_of(cell, session.settings)
    said = json.loads(files.to_json(asdict(replace(cell, published=cell.figure))))
    runs.claim(folder, MARK, {"cell": said})
    for seed in range(cell.sets):
        _make_set(cell, session, hours, folder / f"seed_{seed}", seed)


def folder_of(cell: Cell, settings: Settings) -> Path:
    """Where a cell is kept."""
    return settings.runs.absolute() / cell.name.replace("/", "_")


def _make_set(cell: Cell, session: Session, hours: float, folder: Path, seed: int) -> None:
    """A set and its evaluation."""
    run = folder / "run"
    files.make_folder(folder)
    if (run / "evaluation.json").is_file():
        return
    until = time.monotonic() + 3600 * hours
    flags = (*cell.flags, *where_images_lie(cell, session.settings))
    seeded = ("--seed", str(seed))
    if not (run / "distilled" / "meta.json").is_file():
        if cell.kind:
            kind = ("--init.kind", cell.kind)
            session.run(
                folder, "set", "select", cell.recipe, *flags, *kind, *seeded, "--out", str(run)
            )
        else:
            _distill(cell, session, until, folder, (*flags, *seeded))
    session.run(
        folder, "evaluation", "evaluate", str(run), *seeded, "--baselines", "--num_networks",
        str(cell.networks), *cell.evaluate,
    )  # fmt: skip


def _distill(
    cell: Cell, session: Session, until: float, folder: Path, flags: tuple[str, ...]
) -> None:
    """A distilled set, with its experts."""
    if find(cell.recipe).buffer is not None:
        store = folder / "experts"
        session.run(folder, "experts", "buffer", cell.recipe, *flags, "--out", str(store))
        flags = (*flags, "--experts", str(store))
    if cell.fits and not session.settings.rehearse:
        flags = (*flags, "--outer.steps", str(_steps(cell, session, until, folder, flags)))
    run = str(folder / "run")
    session.run(folder, "set", "distill", cell.recipe, *flags, "--out", run)


def _steps(cell: Cell, session: Session, until: float, folder: Path, flags: tuple[str, ...]) -> int:
    """Outer steps that fit into the time until then, chosen once. ShareError for none."""
    path = folder / CUT
    if path.is_file():
        return int(files.read_json(path, "steps")["steps"])
    said = folder / "estimate.json"
    # of the networks that are trained, and no baselines
    evaluated = ("--evaluation.baselines", "--evaluation.num_networks", str(cell.networks))
    session.run(
        folder, "estimate", "estimate", cell.recipe, *flags, *evaluated, "--json", str(said)
    )
    seconds = {part["name"]: part["seconds"] for part in files.read_json(said, "parts")["parts"]}
    of_recipe = find(cell.recipe).outer.steps
    steps = fitting(of_recipe, seconds, min(until - time.monotonic(), session.left))
    if not steps:
        raise ShareError
    files.write_json(path, {"steps": steps, "of": of_recipe, "expected": seconds})
    return steps


def fitting(steps: int, seconds: dict[str, float], left: float) -> int:
    """How many of so many outer steps fit into `left` seconds, beside the evaluation.

    `seconds` are those expected of all steps ("distill") and of the evaluation ("evaluate").
    """
    of_step = seconds["distill"] / steps
    return max(0, min(steps, math.floor(SHARE * (left - seconds["evaluate"]) / of_step)))


# What came out.


def row_of(cell: Cell, settings: Settings) -> dict[str, Any]:
    """What is known of a cell: its figures where it is finished."""
    folder = folder_of(cell, settings)
    figure = cell.figure
    assert figure is not None
    row: dict[str, Any] = {
        "cell": cell.name,
        "recipe": cell.recipe,
        "set": cell.kind or "distilled",
        "images": _images(cell, settings),
        "sets": cell.sets,
        "networks": cell.networks,
        "published": asdict(figure),
        "cut": list(cell.cut),
        "seconds": {},
    }
    accuracies: list[float | None] = []
    finished = True
    for seed in range(cell.sets):
        of_set = folder / f"seed_{seed}"
        cost = _read(of_set / "run" / "distilled" / "meta.json").get("distillation") or {}
        took = _read(of_set / TOOK)
        if "set" in took:  # a run counts its steps through kills of this program, too
            took["set"] = max(took["set"], cost.get("wall_seconds", 0.0))
        for part, seconds in took.items():
            row["seconds"][part] = round(row["seconds"].get(part, 0.0) + seconds, 1)
        for steps in [_read(of_set / CUT)] if (of_set / CUT).is_file() else []:
            if steps["steps"] < steps["of"]:
                row["cut"].append(f"{steps['steps']} outer steps for {steps['of']}")
        evaluation = _read(of_set / "run" / "evaluation.json")
        finished = finished and bool(evaluation)
        for of_one in evaluation.get("rows", [{"accuracies": []}])[0]["accuracies"]:
            accuracies.append(of_one["accuracy"])
        row |= {key: evaluation[key] for key in ("machine", "versions", "commit") if evaluation}
        peak = max(row.get("peak_memory") or 0, cost.get("peak_memory_bytes") or 0)
        row["peak_memory"] = peak or None  # of the distillation, in bytes
    return row | {"ours": _ours(accuracies, figure) if finished else None}


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where there is none."""
    return files.read_json(path) if path.is_file() else {}


def _images(cell: Cell, settings: Settings) -> str:
    """What the images are called."""
    name = find(cell.recipe).data.name
    if name != "cifar10" or settings.cifar10 is None:
        return name
    return f"{name} (JPEG copy)" if _are_jpeg(settings.cifar10) else f"{name} (copy)"


def _are_jpeg(folder: Path) -> bool:
    """Whether the first image of a folder of parquet files is stored as JPEG."""
    from pyarrow import parquet

    first = next(folder.rglob("*.parquet"), None)
    if first is None:
        return False
    rows = next(parquet.ParquetFile(first).iter_batches(1)).to_pylist()
    stored = [value["bytes"] for value in rows[0].values() if isinstance(value, dict)]
    return any(image.startswith(JPEG) for image in stored)


def _ours(accuracies: Sequence[float | None], figure: Published) -> dict[str, Any]:
    """Our figure, and whether its mean lies within the published deviation of the published one."""
    counted = intervals.counted(accuracies)
    mean, std, ends = intervals.interval(counted)
    inside = None
    if mean is not None and figure.std is not None:
        inside = abs(mean - figure.accuracy) <= figure.std
    return {
        "accuracy": mean,
        "std": std,
        "ci95": ends,
        "n": len(counted),
        "accuracies": list(accuracies),
        "within_1_std": inside,
    }


COLUMNS = ("cell", "set", "images", "published %", "ours % (95 % interval)", "n", "within 1 std",
           "minutes", "cut")  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells_of, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    ours, published = row["ours"], row["published"]
    shown, number, inside = "not finished", "", ""
    if ours is not None:
        shown = _percent(ours["accuracy"], ours["std"])
        if ours["ci95"] is not None:
            low, high = ours["ci95"]
            shown += f" ({100 * low:.1f} to {100 * high:.1f})"
        sets = row["sets"]
        number = f"{ours['n']} networks, {sets} set{'s' if sets > 1 else ''}"
        inside = {True: "yes", False: "no", None: "-"}[ours["within_1_std"]]
    minutes = f"{sum(row['seconds'].values()) / 60:.1f}"
    figure = _percent(published["accuracy"], published["std"])
    return (row["cell"], row["set"], row["images"], figure, shown, number, inside, minutes,
            "; ".join(row["cut"]) or "nothing")  # fmt: skip


def _percent(mean: float | None, std: float | None) -> str:
    """A mean and its deviation in %."""
    if mean is None:
        return "diverged"
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def held(settings: Settings) -> dict[str, dict[str, Any]]:
    """The rows of the JSON, by the names of their cells."""
    path = settings.results / f"{NAME}.json"
    if not path.is_file():
        return {}
    content = files.read_json(path, "rows", "rehearsal")
    same = content["rehearsal"] == settings.rehearse
    return {row["cell"]: row for row in content["rows"]} if same else {}


def is_finished(row: dict[str, Any] | None, cell: Cell) -> bool:
    """Whether a row of the JSON has a figure of this cell, as it is now."""
    if row is None or row["ours"] is None:
        return False
    return (row["recipe"], row["sets"], row["networks"]) == (cell.recipe, cell.sets, cell.networks)


def write(settings: Settings, failed: dict[str, str]) -> None:
    """The rows of all cells that were begun here, or before elsewhere, in the order of the list."""
    known = [_rehearsed(cell) if settings.rehearse else cell for cell in [*CELLS, *MORE]]
    before = held(settings)
    rows = []
    for cell in known:
        row = before.get(cell.name)
        if (folder_of(cell, settings) / MARK).is_file():
            here = row_of(cell, settings) | {"failed": failed.get(cell.name)}
            row = here if here["ours"] or not is_finished(row, cell) else row
        if row is not None:
            rows.append(row)
    files.make_folder(settings.results)
    content = {
        "command": "python benchmarks/cells.py",
        "rehearsal": settings.rehearse,
        "rows": rows,
    }
    files.write_json(settings.results / f"{NAME}.json", content)
    files.write_text(settings.results / f"{NAME}.md", markdown(rows))


def shares(cells: Sequence[Cell], session: Session) -> Iterator[tuple[Cell, float]]:
    """Each cell with the hours it may take: those that are cut share what is left."""
    for number, cell in enumerate(cells):
        others = sum(later.fits for later in cells[number + 1 :])
        parts = 1 + others if cell.fits else 1
        yield cell, session.left / 3600 / parts


def main(settings: Settings) -> int:
    """Run, collect, write.

    The exit code is 1 where a cell failed, UNFINISHED where the hours, or a cell's share of them,
    were over.
    """
    session = Session(settings, time.monotonic() + 3600 * settings.hours)
    failed: dict[str, str] = {}
    code = 0
    before = held(settings)
    left = []
    for cell in chosen(settings):
        if is_finished(before.get(cell.name), cell):
            print(f"{cell.name}: the results have it", flush=True)
        else:
            left.append(cell)
    for cell, hours in shares(left, session):
        print(f"{cell.name}: {session.left / 60:.1f} minutes are left", flush=True)
        try:
            make(cell, session, hours)
        except OverError:
            print("the hours are over; the same command goes on", flush=True)
            code = common.UNFINISHED
            break
        except ShareError:
            print("its share of the hours holds no outer step; it wants more hours", flush=True)
            code = common.UNFINISHED
        except FailedError as error:
            failed[cell.name] = error.line
            print(error, flush=True)
        write(settings, failed)
    write(settings, failed)
    print((settings.results / f"{NAME}.md").read_text())
    return code or bool(failed)


def called() -> int:
    """As the command line asks."""
    settings = tyro.cli(Settings)
    common.check_positive("--hours", settings.hours)
    return main(settings)


if __name__ == "__main__":
    common.ending(called)
