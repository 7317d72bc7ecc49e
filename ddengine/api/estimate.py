"""What a recipe will cost on this machine."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddengine.api.checks import check_recipe, check_run, say_slow_precision
from ddengine.api.evaluate import protocol_of
from ddengine.api.experts import Given
from ddengine.api.inputs import Images, dataset_of, pointed_at
from ddengine.api.outcomes import Outcome
from ddengine.api.results import load
from ddengine.artefact.runs import EXPERTS, RUNS
from ddengine.data import Dataset
from ddengine.experts import ExpertSource
from ddengine.plan import estimate as plan
from ddengine.plan.bounds import free_disk
from ddengine.plan.jobs import Job
from ddengine.prepare import check_networks, reads_experts
from ddengine.recipe import EvalConfig, Recipe, resolved
from ddengine.system import log, runtime
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision, available_memory
from ddengine.system.shared import Shared


def estimate(
    data: Images,
    recipe: Recipe | Sequence[Recipe],
    experts: ExpertSource | Sequence[ExpertSource | None] | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
    progress: log.Progress = True,
    folders: Sequence[Path] = (EXPERTS, RUNS),
    parsing: float = 0.0,
) -> Outcome:  # long: its arguments are explained
    """Time, peak memory and disk that experts, distillation and evaluation of a recipe will take.

        print(ddengine.estimate(data, recipe, buffers.stores(recipe)))
        print(ddengine.estimate(data, [one, other]))

    Each is run for a few steps, in a process of its own; nothing is kept. A script whose own
    recipe parts or classes it needs calls this below `if __name__ == "__main__":`.

    Args:
        data: as `distill` takes it.
        recipe: what would be done; several give one table, a row each.
        experts: `buffers.stores(recipe)`, for recipes with experts; of several recipes a list.
        seed: of the run.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        compile: whether the inner training step would be compiled.
        progress: as `distill` takes it.
        folders: that would be written, for the free disk there.
        parsing: seconds that a command line takes to be read.

    Raises:
        UserError: what fails in a calibration, experts that are not named.
    """
    check_run(seed, precision)
    several = isinstance(recipe, list | tuple)
    recipes: list[Any] = list(recipe) if several else [recipe]
    sources: list[Any] = [experts] * len(recipes)
    if isinstance(experts, list | tuple):
        sources = list(experts)
    if not recipes or len(sources) != len(recipes):
        raise UserError(
            f"estimate was given {len(recipes)} recipes and {len(sources)} experts; give at least "
            "one recipe, and experts (or None) for each."
        )
    for each, source in zip(recipes, sources, strict=True):
        _check_one(each, source)
    machine = _Machine(seed, device, precision, compile, tuple(folders), parsing)
    with log.shown(progress):
        log.say(
            "calibrating: a few updates of experts, outer steps and trainings of the evaluation, "
            "each command in a process of its own; nothing is kept"
        )
        made = []
        for each, source in zip(recipes, sources, strict=True):
            made.append(_estimated(dataset_of(data), each, source, machine))
    return _of_several(made) if several else _of_one(made[0])


def _check_one(recipe: Recipe, experts: ExpertSource | None) -> None:
    """Raise UserError for what is no recipe, and for experts that it needs and nobody names."""
    check_recipe(recipe)
    if experts is None and recipe.buffer is not None and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts; pass experts=buffers.stores(recipe)."
        )


@dataclasses.dataclass(frozen=True)
class _Machine:
    """What recipes are calibrated on, and how."""

    seed: int
    device: str
    precision: Precision
    compile: bool
    folders: tuple[Path, ...]
    parsing: float


@dataclasses.dataclass(frozen=True)
class _Estimated:
    """What one recipe will cost."""

    recipe: Recipe
    parts: Sequence[plan.Part]
    memory: int  # available, bytes
    disk: int  # free, bytes
    seconds: float  # that the calibration took
    where: torch.device

    @property
    def content(self) -> dict[str, Any]:
        """The estimate as JSON data."""
        return plan.as_json(
            self.parts,
            memory=self.memory,
            disk=self.disk,
            seconds=self.seconds,
            device=self.where,
        )


def _estimated(
    dataset: Dataset | None, recipe: Recipe, experts: ExpertSource | None, machine: _Machine
) -> _Estimated:
    """What a recipe will cost on these images. Raises UserError for what fails."""
    job, missing, _ = _job(dataset, recipe, experts, machine)
    where = runtime.setup(machine.device, machine.precision)
    say_slow_precision(machine.precision, where)
    began = time.perf_counter()
    parts = plan.estimate(job, missing)
    seconds = time.perf_counter() - began
    disk = min(map(free_disk, machine.folders))
    return _Estimated(job.recipe, parts, available_memory(where), disk, seconds, where)


def _job(
    dataset: Dataset | None, recipe: Recipe, experts: ExpertSource | None, machine: _Machine
) -> tuple[Job, dict[str, int], str]:
    """(what is calibrated, missing experts of each network, digest of the training images)."""
    recipe, source = pointed_at(recipe, dataset)
    origin = Given(recipe, None, machine.precision) if experts is None else experts
    origin = origin.on(recipe.data)
    loaded = source.load(torch.device("cpu"), origin.preprocess)
    check_networks(recipe, loaded)
    job = Job(
        recipe=recipe,
        seed=machine.seed,
        device=machine.device,
        precision=machine.precision,
        compile=machine.compile,
        load=partial(source.load, stored=origin.preprocess),
        open_store=origin.open,
        train_expert=origin.trainer,
        at_once=origin.at_once,
        protocol_of=_protocol_of,
        parsing=machine.parsing,
    )
    digest_of_images = loaded.train.digest
    return job, origin.missing(digest_of_images), digest_of_images


@dataclasses.dataclass(frozen=True)
class Costs:
    """What experts and distillation of a recipe take."""

    buffer: float  # seconds
    distill: float
    memory: int  # bytes at their peak


def costs(
    dataset: Dataset | None,
    recipe: Recipe,
    experts: ExpertSource | None,
    *,
    device: str,
    kept: Shared = Shared(),
    until: float | None = None,
) -> Costs | None:
    """What experts and distillation of a recipe will take on these images.

    What an equal calibration has found is read from `kept`, and let others know. None where there
    is none and a calibration was not done until that time of time.monotonic. Raises UserError for
    what fails.
    """
    machine = _Machine(0, device, "fp32", False, (), 0.0)
    job, missing, images = _job(dataset, recipe, experts, machine)
    facts = {
        "recipe": digest(resolved(job.recipe)),
        "images": images,
        "missing": missing,
        "threads": torch.get_num_threads(),
        "machine": runtime.machine(runtime.setup(device, "fp32")),
        "versions": runtime.versions(),
    }
    said = kept.get(facts)
    if said is None:
        try:
            parts = plan.estimate(job, missing, evaluates=False, until=until)
        except TimeoutError:
            return None
        buffer, distill = parts
        said = [buffer.seconds, distill.seconds, max(buffer.memory, distill.memory)]
        kept.put(facts, said)
    return Costs(*said)


def _of_one(made: _Estimated) -> Outcome:
    """The estimate of one recipe, part by part."""
    machine = runtime.machine(made.where)["device"]
    title = f"{made.recipe.name} on {machine}, estimated in {log.duration(made.seconds)}"
    return Outcome(
        made.content,
        [dataclasses.asdict(part) for part in made.parts],
        partial(plan.table, made.parts, title),
        _notes(made.parts, made.memory, made.disk),
        None,
        title,
    )


def _of_several(estimates: Sequence[_Estimated]) -> Outcome:
    """The estimates of several recipes, a row each."""
    parts = {}
    for made in estimates:
        name = made.recipe.name
        while name in parts:  # the same recipe with other settings
            name += "'"
        parts[name] = made.parts
    machine = runtime.machine(estimates[0].where)["device"]
    seconds = sum(made.seconds for made in estimates)
    title = f"{len(parts)} recipes on {machine}, estimated in {log.duration(seconds)}"
    notes = list(_notes((), estimates[0].memory, estimates[0].disk))
    for name, made in zip(parts, estimates, strict=True):
        for note in _notes(made.parts, made.memory, made.disk)[1:]:
            notes.append(note.replace("warning: ", f"warning: {name}: "))
    content = [{"recipe": name} | made.content for name, made in zip(parts, estimates, strict=True)]
    return Outcome(
        {"recipes": content},
        plan.rows_of_several(parts),
        partial(plan.table_of_several, parts, title),
        tuple(notes),
        None,
        title,
    )


def _protocol_of(folder: Path) -> EvalConfig:
    """The protocol by which a distilled set is evaluated."""
    return protocol_of(load(folder))


def _notes(parts: Sequence[plan.Part], memory: int, disk: int) -> tuple[str, ...]:
    """What there is, and what would not suffice."""
    notes = [f"available: about {log.size(memory)} of memory, {log.size(disk)} of disk"]
    if not parts:
        return tuple(notes)
    largest = max(parts, key=lambda part: part.memory)
    if largest.memory > memory:
        notes.append(
            f"warning: {largest.name} needs about {log.size(largest.memory)} of memory, which is "
            "more than there is"
        )
    needed = sum(part.disk for part in parts)
    if needed > disk:
        notes.append(
            f"warning: about {log.size(needed)} of disk are needed, which is more than there is"
        )
    return tuple(notes)
