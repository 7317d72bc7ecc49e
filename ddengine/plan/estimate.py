"""What a recipe will cost on this machine, from a short calibration.

Time, peak memory and disk of each of buffer, distill and evaluate.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ddengine import prepare
from ddengine.plan import calibrate
from ddengine.plan.apart import apart
from ddengine.plan.jobs import Job
from ddengine.system import files, log, runtime
from ddengine.system.errors import UserError

PARTS = ("buffer", "distill", "evaluate")


@dataclass(frozen=True)
class Part:
    """What a command will cost."""

    name: str
    seconds: float
    memory: int  # bytes at its peak, of the process (CUDA: allocated on the device)
    disk: int  # bytes of the files it leaves
    what: str  # what the time is made of, in words

    @classmethod
    def of(cls, name: str, cost: dict[str, Any], what: str) -> "Part":
        """Of what a calibration says."""
        return cls(name, cost["seconds"], cost["memory"], cost["disk"], what)


def estimate(
    job: Job,
    missing: dict[str, int],
    *,
    evaluates: bool = True,
    until: float | None = None,
) -> list[Part]:
    """What buffer, distill and evaluate of a recipe will cost. Nothing is left behind.

    Args:
        job: the recipe, its images and experts.
        missing: how many experts the store of each network of the buffer lacks; empty for a recipe
            without experts.
        evaluates: whether the evaluation is calibrated too.
        until: the time of time.monotonic by which the calibration must be done.

    Raises:
        UserError: what fails in a calibration.
        TimeoutError: it was not done in time.
    """
    recipe = job.recipe
    lacking = any(missing.values())
    with tempfile.TemporaryDirectory(prefix="ddengine-") as temporary:
        experts = Path(temporary) / "experts"
        run = Path(temporary) / "run"
        experts.mkdir()
        run.mkdir()
        if lacking:
            buffer = _buffer(job, experts, missing, until)
        else:
            what = "all experts lie in their store" if missing else "no experts are needed"
            buffer = Part("buffer", 0.0, 0, 0, what)
        stand_ins = None
        if lacking and prepare.reads_experts(recipe):
            stand_ins = experts
        parts = [buffer, _distill(job, run, stand_ins, until)]
        if evaluates:
            parts.append(_evaluate(job, run, stand_ins, until))
        return parts


def _buffer(job: Job, experts: Path, missing: dict[str, int], until: float | None) -> Part:
    config = job.recipe.buffer
    assert config is not None
    cost = _calibrated("buffer", calibrate.buffer, until, job, experts, missing)
    what = "published weights, which are read"
    if config.step.trains:
        number = sum(missing.values())
        epoch = _short(cost["epoch"])
        what = f"{number} experts of {config.epochs} epochs of {epoch}"
        if cost["at_once"] > 1:
            what += f", {cost['at_once']} at a time"
    return Part.of("buffer", cost, what)


def _distill(job: Job, run: Path, stand_ins: Path | None, until: float | None) -> Part:
    cost = _calibrated("distill", calibrate.distill, until, job, run, stand_ins)
    initial = _short(cost["initial"])
    step = _short(cost["step"])
    what = f"{initial} for the initial set, {job.recipe.outer.steps} steps of {step}"
    often = calibrate.counts(job.recipe)["validations"]
    if often:
        validation = _short(cost["validation"])
        what += f", {often} validations of {validation}"
    return Part.of("distill", cost, what)


def _evaluate(job: Job, run: Path, stand_ins: Path | None, until: float | None) -> Part:
    cost = _calibrated("evaluate", calibrate.evaluation, until, job, run, stand_ins)
    what = f"{cost['trainings']} networks, {cost['updates']} updates in all"
    return Part.of("evaluate", cost, what)


def _calibrated(
    name: str, target: Callable[..., Any], until: float | None, *args: Any
) -> dict[str, Any]:
    try:
        return apart(target, *args, until=until)
    except MemoryError as error:
        raise UserError(
            f"The calibration of {name} needs more memory than there is ({error}), so {name} will "
            "not do on this machine with these settings."
        ) from None


def _short(seconds: float) -> str:
    """Seconds with two figures, in ms where they are few."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return log.duration(seconds)


# What is shown.


def table(parts: Sequence[Part], title: str) -> Table:
    """The estimate for a terminal."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("part", justify="left", no_wrap=True)
    for name in ("time", "peak memory", "disk"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("of which")
    seconds = 0.0
    memory = 0
    disk = 0
    for part in parts:
        seconds += part.seconds
        memory = max(memory, part.memory)
        disk += part.disk
        cells = ("0 s", "-", "0 B")
        if part.memory > 0:
            time_needed = f"about {log.duration(part.seconds)}"
            cells = (time_needed, log.size(part.memory), log.size(part.disk))
        shown.add_row(part.name, *cells, part.what)
    shown.add_section()
    shown.add_row("in all", f"about {log.duration(seconds)}", log.size(memory), log.size(disk), "")
    return shown


def rows_of_several(parts: Mapping[str, Sequence[Part]]) -> list[dict[str, Any]]:
    """What each recipe will cost: seconds of each part, peak memory and disk in bytes."""
    rows = []
    for name, of_recipe in parts.items():
        row: dict[str, Any] = {"recipe": name}
        for part in of_recipe:
            row[part.name] = part.seconds
        row["memory"] = max(part.memory for part in of_recipe)
        row["disk"] = sum(part.disk for part in of_recipe)
        rows.append(row)
    return rows


def table_of_several(parts: Mapping[str, Sequence[Part]], title: str) -> Table:
    """The estimates of several recipes for a terminal, a row each."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("recipe", justify="left", no_wrap=True)
    for name in (*PARTS, "in all", "peak memory", "disk"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows_of_several(parts):
        seconds = [row[name] for name in PARTS]
        times = [log.duration(value) for value in (*seconds, sum(seconds))]
        shown.add_row(row["recipe"], *times, log.size(row["memory"]), log.size(row["disk"]))
    return shown


def check_path(path: Path) -> None:
    """Raise UserError unless the estimate can be written to `path`.

    That is better known before the calibration.
    """
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; name a file.")
    try:
        files.make_folder(path.parent)
    except UserError as error:
        raise UserError(f"{str(error).split(';')[0]}; name another file with --json.") from None


def as_json(
    parts: Sequence[Part], *, memory: int, disk: int, seconds: float, device: torch.device
) -> dict[str, Any]:
    """The estimate as JSON data; `seconds` is what it took."""
    return {
        "parts": [dataclasses.asdict(part) for part in parts],
        "available_memory": memory,
        "free_disk": disk,
        "calibration_seconds": round(seconds, 2),
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
