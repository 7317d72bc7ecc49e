"""A short calibration of buffer, distill and evaluate, each for a process of its own.

Each runs for a few steps on the true images, networks and settings, so that its peak memory is that
of the command. The trainings of an evaluation are counted by making it with `Calls` in place of
what trains; so there is no second account of an evaluation that could differ from the first.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddengine import loop, prepare
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.artefact.results import add_results
from ddengine.data import Data, RealSet, load_data
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.train import validate
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.learning.teachers import load_all
from ddengine.models import build_model
from ddengine.objective import Objective
from ddengine.pages import figures
from ddengine.pages.writing import write_run
from ddengine.plan.apart import peak_memory, timed
from ddengine.plan.jobs import Job, StandIns, experts_of, started, workable
from ddengine.plan.trainings import Calls, seconds_of, testing_seconds
from ddengine.recipe import BufferConfig, Recipe, to_dict
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.rng import generator
from ddengine.types import Experts

SECONDS = 5.0  # of calibration of experts and of outer steps
PATIENCE = 60.0  # seconds after which an outer step is the only one that is timed
STORES = 60  # bytes of header in a shard, and so many more an epoch for its metrics
STORES_EPOCH = 54
MANIFEST = 1250  # bytes of a store's manifest


def store_bytes(config: BufferConfig, num_params: int, num_buffers: int, experts: int) -> int:
    """Bytes of so many experts of P parameters and Q buffers in a store.

    Without what the store has once.
    """
    kept, wide = len(config.kept_epochs()), 4 if config.dtype == "float32" else 2
    snapshots = kept * (num_params * wide + num_buffers * 4)
    return experts * (snapshots + STORES + STORES_EPOCH * config.epochs)


# Experts.


def buffer(began: float, job: Job, folder: Path, missing: dict[str, int]) -> dict[str, Any]:
    """Train each network of the buffer a little.

    Writes where it started and arrived as INDEX.safetensors into `folder`. `missing` says of each
    network how many experts its store lacks.
    """
    device, data, seconds = started(began, job)
    config = job.recipe.buffer
    assert config is not None and job.train_expert is not None
    preprocess = data.train.preprocess.tensors().values()
    once = sum(t.numel() * t.element_size() for t in preprocess) + MANIFEST
    disk, most, slowest = 0, 0, 0.0
    for number, model in enumerate(prepare.buffer_models(job.recipe)):
        rng = generator(job.seed, "expert", 0, "network")
        network = build_model(model, data.image_shape, data.num_classes, rng).to(device)
        saved = {"start": flatten(network).clone()}
        each = _epoch_seconds(job, network, data, config) if config.step.trains else 0.0
        saved["end"] = flatten(network)
        num_params, num_buffers = saved["end"].numel(), 0
        statistics = flatten_buffers(network)
        if statistics is not None:
            saved["buffers"], num_buffers = statistics, statistics.numel()
        files.write_tensors(folder / f"{number}.safetensors", saved)
        slowest = max(slowest, each)
        most = max(most, len(config.kept_epochs()) * (num_params + num_buffers) * 4)
        seconds += missing[model] * each * config.epochs
        disk += store_bytes(config, num_params, num_buffers, missing[model])
        if missing[model] == config.num_experts:
            disk += once
    # snapshots lie in memory until the expert is done, and twice more while they are written
    snapshots = 3 * most if device.type == "cpu" else 0
    memory = peak_memory(device) + snapshots
    return {"seconds": seconds, "memory": memory, "disk": disk, "epoch": slowest}


def _epoch_seconds(job: Job, network: nn.Module, data: Data, config: BufferConfig) -> float:
    """Seconds of an epoch of an expert, with the test after it.

    Of some whole epochs where these are short, else of some batches.
    """
    per_epoch, train_expert = math.ceil(len(data.train) / config.batch), job.train_expert
    assert train_expert is not None

    def seconds(data: Data, config: BufferConfig) -> float:
        train = partial(train_expert, network, data, config, 0, job.precision)
        return timed(data.train.device, train)[0]

    def of_updates(updates: int) -> float:
        """On the first images, and without validation."""
        num, train = min(updates * config.batch, len(data.train)), data.train
        some = RealSet(train.pixels[:num], train.labels[:num], data.num_classes, train.preprocess)
        short = replace(config, epochs=1, keep="last")
        return seconds(replace(data, train=some, validation=None), short)

    of_updates(1)  # slower than the others
    num = min(3, per_epoch)
    rough = of_updates(num) / num
    if rough * per_epoch > SECONDS / 2:
        num = max(num, min(per_epoch, int(SECONDS / rough)))
        calls = Calls()
        if data.validation is not None:
            calls.classified(network, data.validation, job.precision)
        return of_updates(num) / num * per_epoch + testing_seconds(calls)
    epochs = max(1, min(config.epochs, int(SECONDS / (rough * per_epoch))))
    return seconds(data, replace(config, epochs=epochs, keep="last")) / epochs


# A distillation.


def counts(recipe: Recipe) -> dict[str, int]:
    """How often a distillation does what it does now and then.

    `files` are the pictures that it leaves in progress/.
    """
    outer, steps = recipe.outer, recipe.outer.steps
    pictures = steps // outer.picture_every if outer.picture_every else 0
    # the last picture takes the place of that of the last step
    last_is_one = pictures > 0 and steps % outer.picture_every == 0
    kept = 1 + pictures - int(last_is_one) + int(steps > 0)
    return {
        "validations": steps // outer.evaluate_every if outer.evaluate_every else 0,
        "checkpoints": math.ceil(steps / outer.checkpoint_every),
        "pictures": 2 + pictures,
        "files": kept,
    }


@dataclass(frozen=True)
class Run:
    """A distillation that is calibrated, with what it starts from."""

    job: Job
    recipe: Recipe  # of the job, with which stand-ins can do
    data: Data
    device: torch.device
    experts: Experts | None
    folder: Path

    def timed(self, action: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds, result)."""
        return timed(self.device, action)


def prepared(run: Run, recipe: Recipe, calls: Calls) -> tuple[SyntheticSet, Objective]:
    """The initial set and the objective of a recipe.

    Networks that choose images are noted in `calls` and not trained.
    """
    job = run.job
    return prepare.prepare(
        recipe,
        run.data,
        run.device,
        run.experts,
        seed=job.seed,
        precision=job.precision,
        compile=job.compile,
        train_networks=calls.train_networks,
    )


def distill(began: float, job: Job, folder: Path, stand_ins: Path | None) -> dict[str, Any]:
    """Some outer steps, one of everything else; leaves the folder of a run in `folder`."""
    device, data, start = started(began, job)
    recipe = job.recipe if stand_ins is None else workable(job.recipe)
    run = Run(job, recipe, data, device, experts_of(job, data, stand_ins), folder)
    often, labelling = counts(recipe), _labelling(run)
    calls = Calls()
    initial, (syn, objective) = run.timed(lambda: prepared(run, recipe, calls))
    initial = labelling * initial + seconds_of(calls)
    state = loop.first_state(syn, objective, recipe.outer, job.seed)
    step = _step_seconds(run, syn, objective, state)
    path = _made(folder / "checkpoint") / "state.safetensors"
    checkpoint, _ = run.timed(lambda: loop.save_checkpoint(path, state, 0))
    ending, result = _ending(run, syn, objective, state)
    if recipe.targets.relabel:
        ending *= labelling
    validation = _validation_seconds(run, result) if often["validations"] else 0.0
    written = _written_seconds(run, result)
    seconds = start + initial + recipe.outer.steps * step + ending + written
    seconds += often["checkpoints"] * checkpoint + often["validations"] * validation
    return {
        "seconds": seconds,
        "memory": peak_memory(device),
        "disk": _run_bytes(run, syn),
        "step": step,
        "initial": initial,
        "validation": validation,
    }


def _labelling(run: Run) -> float:
    """How many times more experts label than here, where few stand in for all."""
    recipe, experts = run.recipe, run.experts
    asks_all = recipe.targets.kind == "logits" and recipe.targets.experts != "first"
    if recipe.teachers or not asks_all or not isinstance(experts, StandIns):
        return 1.0
    assert recipe.buffer is not None
    return recipe.buffer.num_experts / experts.num_experts


def _step_seconds(run: Run, syn: SyntheticSet, objective: Objective, state: loop.State) -> float:
    """Seconds of an outer step, of some that change `state`."""
    config, times = run.recipe.outer, list[float]()

    def step() -> None:
        loop.outer_step(syn, objective, config, state, run.job.seed).tolist()

    while state.step < config.steps and sum(times) < PATIENCE:
        if len(times) >= 3 and sum(times[1:]) >= SECONDS:
            break
        times.append(run.timed(step)[0])
    if len(times) > 1:
        return sum(times[1:]) / (len(times) - 1)  # the first is slower
    return sum(times)


def _ending(
    run: Run, syn: SyntheticSet, objective: Objective, state: loop.State
) -> tuple[float, SyntheticSet]:
    """Seconds of the end of a distillation, and what it gives.

    From a checkpoint of its last step it goes straight there.
    """
    config = replace(run.recipe.outer, steps=state.step, evaluate_every=0)
    finish = partial(prepare.shipped, recipe=run.recipe, experts=run.experts)
    end = partial(
        loop.distill, syn, objective, config, run.folder, seed=run.job.seed, finish=finish
    )
    seconds, (result, _) = run.timed(end)
    return seconds, result


def _validation_seconds(run: Run, result: SyntheticSet) -> float:
    job, recipe, calls = run.job, run.recipe, Calls()
    asked = recipe.evaluation.labels == "dynamic" and run.experts is not None
    teachers = load_all(run.experts, run.device) if asked and run.experts is not None else []
    make = partial(
        validate,
        result,
        run.data,
        recipe.evaluation,
        recipe.model,
        seed=job.seed,
        device=run.device,
        precision=job.precision,
        teachers=teachers,
        means=calls.means,
    )
    return run.timed(make)[0] + seconds_of(calls)


def _written_seconds(run: Run, result: SyntheticSet) -> float:
    """Seconds of everything that a distillation writes beside checkpoints; writes one of each."""
    job, folder = run.job, run.folder
    picture = partial(figures.grid, _made(folder / "progress") / "step.png", result)
    first, again = (run.timed(picture)[0] for _ in range(2))  # the first waits for an import
    meta = runs.meta_of(
        job.recipe, run.data, None, run.device, seed=job.seed, precision=job.precision
    )
    writing, _ = run.timed(lambda: write_run(folder, result, run.data, meta))
    return first + (counts(run.recipe)["pictures"] - 1) * again + writing


def _run_bytes(run: Run, syn: SyntheticSet) -> int:
    """Bytes of the folder of the run: of its files, and of what a whole run adds to its log."""
    recipe, often = run.job.recipe, counts(run.recipe)
    event: dict[str, Any] = {"step": recipe.outer.steps, "loss": math.pi, "applied": True}
    if "lr" in syn.tensors:
        event["lr"] = math.pi / 100
    events = recipe.outer.steps * (len(json.dumps(event)) + 1) + 60 * often["validations"]
    once = ("checkpoint", "distilled", "real_vs_distilled.png", "samples.safetensors")
    kept = sum(tree_bytes(run.folder / name) for name in once)
    pictures = often["files"] * tree_bytes(run.folder / "progress")
    return kept + pictures + events + len(json.dumps(to_dict(recipe), indent=1))


# An evaluation.


def evaluation(began: float, job: Job, folder: Path, stand_ins: Path | None) -> dict[str, Any]:
    """The evaluation of the set in `folder`/distilled, whose trainings are noted and then timed."""
    recipe = job.recipe

    def load(device: torch.device) -> Data:
        syn, _ = folders.load(folder / "distilled", device)
        return load_data(recipe.data, device, test=True, stored=lambda images: syn.preprocess)

    device, data, start = started(began, replace(job, load=load))
    syn, _ = folders.load(folder / "distilled", device)
    experts = experts_of(job, data, stand_ins) if recipe.teachers else None
    teachers = [] if experts is None else load_all(experts, device)
    before = tree_bytes(folder)
    config = recipe.evaluation
    if job.protocol_of is not None:
        config = job.protocol_of(folder / "distilled")
    calls = Calls()
    make = partial(
        evaluate,
        syn,
        data,
        config,
        recipe.model,
        seed=job.seed,
        device=device,
        precision=job.precision,
        teachers=teachers,
        means=calls.means,
    )
    beside, result = timed(device, make)
    trained = seconds_of(calls)
    shown = folder / "real_vs_distilled.png"
    drawing, _ = timed(device, lambda: figures.real_vs_distilled(shown, data.train, syn, result))
    files.write_json(folder / "evaluation.json", result)
    add_results(folder / "distilled", result)
    return {
        "seconds": start + beside + trained + drawing,
        "memory": peak_memory(device),
        "disk": max(0, tree_bytes(folder) - before),  # the picture of the run grows
        "trainings": calls.num_networks(),
        "updates": calls.num_updates(),
    }


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
