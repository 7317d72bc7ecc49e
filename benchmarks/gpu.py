"""What the minutes that one has a GPU are for, in order of worth, in one command.

    python benchmarks/gpu.py --seconds 540 --out DIR [--cifar10 FOLDER]

It installs nothing and runs with the Python that runs it: the tests that need a GPU, what field.py
measures without compiling, published cells; then what compiles: tests, field.py as a whole,
unroll.py; and precision.py. Each part has a box of the seconds; what it leaves is shared by those
after it. A part that its box stops is continued by the next call with the same DIR, where parts
that are done are not run again, nor tests that have passed. Every result lies in DIR as soon as it
is there: parts.json says how far each part is, PART.log what it printed, field-cuda.json and so on
what came out. --rehearse does all of it on a CPU, at a size that takes about ten minutes, where
tests are skipped.
"""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import common
import tyro

from ddengine.system import files, runtime

PARTS = "parts.json"
LEAST = 5.0  # seconds with which no part is begun
CELLS = ("mtt/cifar10_ipc1", "mtt/cifar10_ipc10", "dm/cifar10_ipc10", "cross/cifar10_ipc10")
EAGER = (
    "--no-compiled", "--repeats", "3", "--name", "field_eager", "--cells", "experts_together",
    "mtt_ipc10_t10", "evaluation", "dm_ipc10", "dsa_ipc1", "mtt_ipc1_t10", "expert",
)  # fmt: skip
COMPILES = "compil or cuda_graphs"  # the tests that wait for a compiler
PASSED = re.compile(r"^(tests/\S+::.+?) PASSED", re.MULTILINE)
# the same at a size that takes seconds
FEW = {
    "field_eager": (
        "--width", "4", "--repeats", "1", "--no-compiled", "--name", "field_eager", "--cells",
        "expert", "dm_ipc10", "experts_together", "mtt_ipc1_t10",
    ),
    "field": ("--width", "4", "--repeats", "1", "--cells", "dm_ipc10"),
    "unroll": ("--width", "4", "--batch", "10", "--steps", "2", "--runs", "2", "--ways", "replay"),
    "precision": (
        "--recipes", "dm/digits_ipc1", "--seeds", "1", "--networks", "1", "--steps", "2",
        "--timed", "convnet-d1-w4-in", "--batch", "4", "--repeats", "1",
    ),
}  # fmt: skip
State = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    seconds: float  # of all parts together
    out: Path
    cifar10: Path | None = None  # a folder of parquet files; None: where torchvision puts it
    rehearse: bool = False  # on a CPU, at a size that takes little


@dataclass(frozen=True)
class Part:
    """A command, and its share of the time beside the others."""

    name: str
    share: float
    words: tuple[str, ...]  # in which SECONDS and HOURS stand for its box


def parts(settings: Settings) -> list[Part]:
    """All of them."""
    compiled = [_tests(COMPILES, "tests_compiled", 2.0), _script(settings, "field", 2.0)]
    return [
        _tests(f"not ({COMPILES})", "tests", 1.5),
        _script(settings, "field_eager", 2.5, EAGER),
        *(_cell(settings, name) for name in CELLS),
        *compiled,
        _script(settings, "unroll", 1.0),
        _script(settings, "precision", 1.0),
    ]


def _tests(which: str, name: str, share: float) -> Part:
    """Tests that need a GPU."""
    words = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", "-k", which, "tests/gpu")
    return Part(name, share, (sys.executable, *words))


def _script(settings: Settings, name: str, share: float, how: tuple[str, ...] = ()) -> Part:
    """A benchmark, which writes into the folder."""
    out = settings.out.absolute()
    script = f"benchmarks/{name.removesuffix('_eager')}.py"
    words = [sys.executable, script, "--device", _device(settings), "--out", str(out)]
    if name == "precision":
        words += ["--runs", str(out / name)]
    return Part(name, share, (*words, *(FEW[name] if settings.rehearse else how)))


def _cell(settings: Settings, name: str) -> Part:
    """A published cell."""
    out = settings.out.absolute()
    words = [
        sys.executable, "benchmarks/cells.py", "--hours", "HOURS", "--cells", name, "--device",
        _device(settings), "--out", str(out), "--runs", str(out / "cells"),
    ]  # fmt: skip
    if settings.cifar10 is not None:
        words += ["--cifar10", str(settings.cifar10.resolve())]
    if settings.rehearse:
        words.append("--rehearse")
    return Part(name.replace("/", "_"), 1.5, tuple(words))


def _device(settings: Settings) -> str:
    return "cpu" if settings.rehearse else "cuda"


def in_order(every: Sequence[Part], known: dict[str, Any]) -> list[Part]:
    """The parts that are not done; last those that failed before."""
    left = [part for part in every if _state(known, part) != "done"]
    return sorted(left, key=lambda part: _state(known, part) == "failed")


def _state(known: dict[str, Any], part: Part) -> State | None:
    """How far a part is."""
    return known.get(part.name, {}).get("state")


def box(left: Sequence[Part], seconds: float) -> float:
    """The seconds of the first of the parts that are left."""
    return seconds * left[0].share / sum(part.share for part in left)


def run(part: Part, seconds: float, folder: Path) -> tuple[State, int]:
    """Run a part within its box: how far it is, and its exit code."""
    # so that a part which knows its hours ends by itself, before it is asked to
    hours = str((1 - 2 * common.SPARED) * seconds / 3600)
    words = [hours if word == "HOURS" else word for word in part.words]
    log = folder / f"{part.name}.log"
    for test in PASSED.findall(log.read_text()) if log.is_file() else ():
        words += ["--deselect", test]  # it has passed in a call before
    code = common.stopped_after(words, seconds, log)
    if common.was_stopped(code):
        return "stopped", code
    return ("failed" if code else "done"), code


def main(settings: Settings, every: Sequence[Part] = ()) -> int:
    """Run the parts that are left, write after each; 1 where one failed."""
    began = time.monotonic()
    files.make_folder(settings.out)
    path = settings.out / PARTS
    known: dict[str, Any] = {}
    if path.is_file():
        before = files.read_json(path)
        if before.get("rehearsal") is not settings.rehearse:
            what = "a rehearsal" if before.get("rehearsal", True) else "results of a GPU"
            sys.exit(f"{settings.out} holds {what}; name another folder with --out.")
        known = dict(before["parts"])
    left = in_order(every or parts(settings), known)
    while left:
        remaining = settings.seconds - (time.monotonic() - began)
        if remaining < LEAST:
            print("the seconds are over; the same command goes on", flush=True)
            break
        part, seconds = left[0], box(left, remaining)
        print(f"{part.name}: {seconds:.0f} of {remaining:.0f} seconds", flush=True)
        start = time.monotonic()
        state, code = run(part, seconds, settings.out)
        spent = known.get(part.name, {}).get("seconds", 0.0) + time.monotonic() - start
        known[part.name] = {"state": state, "code": code, "seconds": round(spent, 1)}
        files.write_json(path, {"rehearsal": settings.rehearse, "parts": known})
        print(f"{part.name}: {state} after {spent:.0f} seconds", flush=True)
        left = left[1:]
    return 1 if any(part["state"] == "failed" for part in known.values()) else 0


def called() -> int:
    """As the command line asks. Raises UserError where there is no GPU, but for a rehearsal."""
    settings = tyro.cli(Settings)
    common.check_positive("--seconds", settings.seconds)
    if not settings.rehearse:
        runtime.device_named("cuda")
    return main(settings)


if __name__ == "__main__":
    common.ending(called)
