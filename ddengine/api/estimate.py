"""What a recipe will cost on this machine."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ddengine.api.checks import check_recipe, check_run
from ddengine.api.evaluate import protocol_of
from ddengine.api.experts import ExpertSource, Given, Growing
from ddengine.api.inputs import Images, dataset_of, pointed_at
from ddengine.api.outcomes import Outcome
from ddengine.api.results import load
from ddengine.artefact.runs import EXPERTS, RUNS
from ddengine.plan import estimate as plan
from ddengine.plan.bounds import free_disk
from ddengine.plan.jobs import Job
from ddengine.prepare import check_networks, reads_experts
from ddengine.recipe import EvalConfig, Recipe
from ddengine.system import log, runtime
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision, available_memory


def estimate(
    data: Images,
    recipe: Recipe,
    experts: ExpertSource | None = None,
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

    Each is run for a few steps, in a process of its own; nothing is kept. A script whose own
    recipe parts or classes it needs calls this below `if __name__ == "__main__":`.

    Args:
        data: as `distill` takes it.
        recipe: what would be done.
        experts: `buffers.stores(recipe)`, for recipes with experts.
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
    check_recipe(recipe)
    check_run(seed, precision)
    if experts is None and recipe.buffer is not None and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts; pass experts=buffers.stores(recipe)."
        )
    with log.shown(progress):
        recipe, source = pointed_at(recipe, dataset_of(data))
        origin = Given(recipe, None, precision) if experts is None else experts
        origin = origin.on(recipe.data)
        where = runtime.setup(device, precision)
        loaded = source.load(torch.device("cpu"), origin.preprocess)
        check_networks(recipe, loaded)
        growing = origin if isinstance(origin, Growing) else None
        missing = {} if growing is None else growing.missing(loaded.train.digest)
        job = Job(
            recipe=recipe,
            seed=seed,
            device=device,
            precision=precision,
            compile=compile,
            load=partial(source.load, stored=origin.preprocess),
            open_store=origin.open,
            train_expert=None if growing is None else growing.trainer,
            protocol_of=_protocol_of,
            parsing=parsing,
        )
        log.say(
            "calibrating: a few updates of experts, outer steps and trainings of the evaluation, "
            "each command in a process of its own; nothing is kept"
        )
        began = time.perf_counter()
        parts = plan.estimate(job, missing)
        seconds = time.perf_counter() - began
        memory, disk = available_memory(where), min(map(free_disk, folders))
    content = plan.as_json(parts, memory=memory, disk=disk, seconds=seconds, device=where)
    machine = runtime.machine(where)["device"]
    title = f"{recipe.name} on {machine}, estimated in {log.duration(seconds)}"
    return Outcome(
        content,
        [dataclasses.asdict(part) for part in parts],
        partial(plan.table, parts, title),
        _notes(parts, memory, disk),
        None,
        title,
    )


def _protocol_of(folder: Path) -> EvalConfig:
    """The protocol by which a distilled set is evaluated."""
    return protocol_of(load(folder))


def _notes(parts: Sequence[plan.Part], memory: int, disk: int) -> tuple[str, ...]:
    """What there is, and what would not suffice."""
    notes = [f"available: about {log.size(memory)} of memory, {log.size(disk)} of disk"]
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
