"""A short calibration of buffer, distill and evaluate, each for a process of its own.

Each runs for a few steps on the true images, networks and settings, so that its peak memory is that
of the command. The trainings of an evaluation are counted by making it with `Calls` in place of
what trains; so there is no second account of an evaluation that could differ from the first.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddengine import loop, prepare, turns
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.artefact.results import add_results
from ddengine.data import Data
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.pace import FULL_SECONDS, WORTH
from ddengine.evaluation.train import validate_on_each
from ddengine.experts import AtOnce, OwnTraining
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.learning.teachers import load_all
from ddengine.models import build_model
from ddengine.objective import Objective
from ddengine.pages import figures
from ddengine.pages.writing import write_run
from ddengine.plan.apart import peak_memory, timed
from ddengine.plan.jobs import Job, StandIns, experts_of, started, workable
from ddengine.plan.trainings import Calls, first_images, seconds_of, testing_seconds
from ddengine.recipe import BufferConfig, Recipe, as_students
from ddengine.sets.synthetic import SyntheticSet, total_bytes
from ddengine.system import dist, files, runtime
from ddengine.system.configs import to_dict
from ddengine.system.rng import generator
from ddengine.types import Experts, Facts

SECONDS = 5.0  # of calibration of experts and of outer steps
PATIENCE = 60.0  # seconds after which an outer step is the only one that is timed
STORES = 60  # bytes of header in a shard, and so many more an epoch for its metrics
STORES_EPOCH = 54
MANIFEST = 1250  # bytes of a store's manifest


def store_bytes(config: BufferConfig, num_params: int, num_buffers: int, experts: int) -> int:
    """Bytes of so many experts of P parameters and Q buffers in a store.

    Without what the store has once.
    """
    kept = config.num_snapshots()
    bytes_of_number = 4 if config.dtype == "float32" else 2
    snapshot = num_params * bytes_of_number + num_buffers * 4
    header = STORES + STORES_EPOCH * config.epochs
    return experts * (kept * snapshot + header)


# Experts.


def buffer(began: float, job: Job, folder: Path, missing: dict[str, int]) -> dict[str, Any]:
    """Train each network of the buffer a little.

    Writes where it started and arrived as INDEX.safetensors into `folder`. `missing` says of each
    network how many experts its store lacks.
    """
    device, data, seconds = started(began, job)
    config = job.recipe.buffer
    assert config is not None
    once = total_bytes(data.train.preprocess.tensors()) + MANIFEST
    kept = len(config.kept_epochs())
    at_once = AtOnce() if job.at_once is None else job.at_once(data)
    disk = 0
    of_experts: list[float] = []  # seconds of each
    most = 0  # bytes of an expert's snapshots
    slowest = 0.0
    for number, model in enumerate(prepare.buffer_models(job.recipe)):
        with runtime.on_threads(at_once.threads or torch.get_num_threads()):
            trained = _a_little_trained(job, model, data, config)
        trained.write(folder / f"{number}.safetensors")
        slowest = max(slowest, trained.epoch_seconds)
        numbers = trained.num_params + trained.num_buffers
        most = max(most, kept * numbers * 4)
        lacking = missing[model]
        of_experts += lacking * [trained.epoch_seconds * config.epochs]
        disk += store_bytes(config, trained.num_params, trained.num_buffers, lacking)
        if lacking == config.num_experts:
            disk += once + trained.bytes_beside
    memory = peak_memory(device)
    if device.type == "cpu":
        # snapshots lie in memory until the expert is done, and twice more while they are written
        memory += 3 * most * (1 if at_once.as_one is None else at_once.experts)
    if at_once.as_one is None:
        memory *= at_once.experts  # each process has the images
    return {
        "seconds": seconds + _until_all(of_experts, at_once),
        "memory": memory,  # of one computation, what it took when it was timed for `at_once`
        "disk": disk,
        "epoch": slowest,
        "at_once": at_once.experts,
    }


def _until_all(seconds: Sequence[float], at_once: AtOnce) -> float:
    """Until all experts are done, of which each takes so long alone."""
    if at_once.as_one is None:
        if at_once.cores is not None:
            return max(*seconds, sum(seconds) / at_once.cores)
        return _side_by_side(seconds, at_once.experts)
    return at_once.as_one * max(seconds)


def _side_by_side(seconds: Sequence[float], at_once: int) -> float:
    """Until all is done where so many are done at a time, each next one by who has time first."""
    lanes = [0.0] * at_once
    for each in seconds:
        lanes[lanes.index(min(lanes))] += each
    return max(lanes)


@dataclass(frozen=True)
class Trained:
    """An expert that was trained a little."""

    start: Tensor  # (P,) its parameters before ...
    end: Tensor  # ... and after it
    buffers: Tensor | None  # (Q,) of BatchNorm layers, after it
    epoch_seconds: float
    bytes_beside: int = 0  # of the files that the store has beside it

    @property
    def num_params(self) -> int:
        """P."""
        return self.end.numel()

    @property
    def num_buffers(self) -> int:
        """Q."""
        return 0 if self.buffers is None else self.buffers.numel()

    def write(self, path: Path) -> None:
        """Write where it started and arrived, for stand-ins."""
        tensors = {"start": self.start, "end": self.end}
        if self.buffers is not None:
            tensors["buffers"] = self.buffers
        files.write_tensors(path, tensors)


def _a_little_trained(job: Job, model: str, data: Data, config: BufferConfig) -> Trained:
    """An expert of this network, which published weights are not trained for."""
    rng = generator(job.seed, "expert", 0, "network")
    if isinstance(config.step, OwnTraining):
        own = config.step.new_model(data, rng).to(data.train.device)
        seconds = config.step.seconds(own, data) / config.epochs
        beside = config.step.bytes_beside(own, data)
        return Trained(flatten(own), flatten(own), flatten_buffers(own), seconds, beside)
    network = build_model(model, data.image_shape, data.num_classes, rng).to(data.train.device)
    start = flatten(network).clone()
    seconds = 0.0
    if config.step.trains:
        seconds = _epoch_seconds(job, network, data, config)
    return Trained(start, flatten(network), flatten_buffers(network), seconds)


def _epoch_seconds(job: Job, network: nn.Module, data: Data, config: BufferConfig) -> float:
    """Seconds of an epoch of an expert, with the test after it.

    Of some whole epochs where these are short, else of some batches.
    """
    train_expert = job.train_expert
    assert train_expert is not None
    num_images = len(data.train)
    per_epoch = math.ceil(num_images / config.batch)

    def seconds(data: Data, config: BufferConfig) -> float:
        train = partial(train_expert, network, data, config, 0, job.precision)
        needed, _ = timed(data.train.device, train)
        return needed

    def of_updates(updates: int) -> float:
        """On the first images, and without validation."""
        num = min(updates * config.batch, num_images)
        short = replace(config, epochs=1, keep="last")
        some = first_images(data.train, num)
        return seconds(replace(data, train=some, validation=None), short)

    of_updates(1)  # slower than the others
    num = min(3, per_epoch)
    rough = of_updates(num) / num
    if rough * per_epoch > SECONDS / 2:
        within = min(per_epoch, int(SECONDS / rough))
        num = max(num, within)
        calls = Calls()
        if data.validation is not None:
            calls.classified(network, data.validation, job.precision)
        update = of_updates(num) / num
        return update * per_epoch + testing_seconds(calls)
    within = min(config.epochs, int(SECONDS / (rough * per_epoch)))
    epochs = max(1, within)
    return seconds(data, replace(config, epochs=epochs, keep="last")) / epochs


# A distillation.


def counts(recipe: Recipe) -> dict[str, int]:
    """How often a distillation does what it does now and then.

    `files` are the pictures that it leaves in progress/.
    """
    outer = recipe.outer
    steps = outer.steps
    pictures = 0
    last_is_one = False  # a picture of the last step is the last picture
    if outer.picture_every:
        pictures, after = divmod(steps, outer.picture_every)
        last_is_one = pictures > 0 and after == 0
    validations = 0
    if outer.evaluate_every:
        validations = math.ceil(steps / outer.evaluate_every)
    kept = 1 + pictures - int(last_is_one) + int(steps > 0)
    return {
        "validations": validations,
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
    recipe = job.recipe
    if stand_ins is not None:
        recipe = workable(recipe)
    quick, start_more = recipe.objective.quick_start()
    recipe = replace(recipe, objective=quick)
    run = Run(job, recipe, data, device, experts_of(job, data, stand_ins), folder)
    often = counts(recipe)
    labelling = _labelling(run)
    calls = Calls()
    initial, (syn, objective) = run.timed(lambda: prepared(run, recipe, calls))
    for one in turns.alone(objective):
        chosen = quick.choices(one, syn, dist.share_of_memory(device))
        quick.choose(one, chosen)
    initial = labelling * initial + seconds_of(calls)
    step, first, state = _steps(run, syn, objective)
    initial += start_more * first
    path = _made(folder / "checkpoint") / "state.safetensors"
    checkpoint, _ = run.timed(lambda: loop.save_checkpoint(path, state, 0))
    ending, result = _ending(run, syn, objective, state)
    if recipe.targets.relabel:
        ending *= labelling
    validation = 0.0
    if often["validations"]:
        validation = _validation_seconds(run, result)
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
    recipe = run.recipe
    experts = run.experts
    asks_all = recipe.targets.kind == "logits" and recipe.targets.experts != "first"
    if recipe.teachers or not asks_all or not isinstance(experts, StandIns):
        return 1.0
    assert recipe.buffer is not None
    return recipe.buffer.num_experts / experts.num_experts


def _steps(run: Run, syn: SyntheticSet, objective: Objective) -> tuple[float, float, loop.State]:
    """(seconds of an outer step, what the first takes more, the state after some).

    Of networks that take turns the seconds are the mean, and the state that of the last.
    """
    alone = turns.alone(objective)
    state = loop.first_state(syn, objective, run.recipe.outer, run.job.seed)
    seconds = 0.0
    more = 0.0
    for one in alone:
        state = loop.first_state(syn, one, run.recipe.outer, run.job.seed)
        of_step, of_first = _step_seconds(run, syn, one, state, SECONDS / len(alone))
        seconds += of_step
        more += of_first
    return seconds / len(alone), more, state


def _step_seconds(
    run: Run, syn: SyntheticSet, objective: Objective, state: loop.State, enough: float
) -> tuple[float, float]:
    """Seconds of an outer step, of some that change `state` and take `enough` seconds together.

    And how many more the first takes.
    """
    config = run.recipe.outer
    times: list[float] = []

    def step() -> None:
        loop.outer_step(syn, objective, config, state, run.job.seed).tolist()

    while state.step < config.steps and sum(times) < PATIENCE:
        later = times[1:]  # the first is slower
        if len(later) >= 2 and sum(later) >= enough:
            break
        seconds, _ = run.timed(step)
        times.append(seconds)
    later = times[1:]
    if not later:
        return sum(times), 0.0
    mean = sum(later) / len(later)
    return mean, max(0.0, times[0] - mean)


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
    job = run.job
    recipe = run.recipe
    calls = Calls()
    teachers: list[nn.Module] = []
    if recipe.evaluation.labels == "dynamic" and run.experts is not None:
        teachers = load_all(run.experts, run.device)
    make = partial(
        validate_on_each,
        result,
        run.data,
        as_students(recipe.evaluation, recipe.objective.students(result)),
        recipe.validated_on,
        seed=job.seed,
        device=run.device,
        precision=job.precision,
        teachers=teachers,
        means=calls.means,
    )
    beside, _ = run.timed(make)
    return beside + seconds_of(calls)


def _written_seconds(run: Run, result: SyntheticSet) -> float:
    """Seconds of everything that a distillation writes beside checkpoints; writes one of each."""
    job = run.job
    folder = run.folder
    path = _made(folder / "progress") / "step.png"
    picture = partial(figures.grid, path, result)
    first, _ = run.timed(picture)  # waits for an import
    again, _ = run.timed(picture)
    meta = runs.meta_of(
        job.recipe, run.data, None, run.device, seed=job.seed, precision=job.precision
    )
    writing, _ = run.timed(lambda: write_run(folder, result, run.data, meta))
    others = counts(run.recipe)["pictures"] - 1
    return first + others * again + writing


def _run_bytes(run: Run, syn: SyntheticSet) -> int:
    """Bytes of the folder of the run: of its files, and of what a whole run adds to its log."""
    recipe = run.job.recipe
    steps = recipe.outer.steps
    often = counts(run.recipe)
    event: dict[str, Any] = {"step": steps, "loss": math.pi, "applied": True}
    if "lr" in syn.tensors:
        event["lr"] = math.pi / 100
    line = len(json.dumps(event)) + 1
    log_bytes = steps * line + 60 * often["validations"]
    kept = 0
    for name in ("checkpoint", "distilled", "real_vs_distilled.png", "samples.safetensors"):
        kept += tree_bytes(run.folder / name)
    pictures = often["files"] * tree_bytes(run.folder / "progress")
    recipe_json = json.dumps(to_dict(recipe), indent=1)
    return kept + pictures + log_bytes + len(recipe_json)


# An evaluation.


def evaluation(began: float, job: Job, folder: Path, stand_ins: Path | None) -> dict[str, Any]:
    """The evaluation of the set in `folder`/distilled, whose trainings are noted and then timed."""
    recipe = job.recipe

    def load(device: torch.device) -> Data:
        syn, _ = folders.load(folder / "distilled", device)
        return job.load(device, test=True, stored=lambda images: syn.preprocess)

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
    trained = _trained_seconds(calls, data, result)
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


def _trained_seconds(calls: Calls, data: Data, result: Facts) -> float:
    """Seconds of the trainings that an evaluation notes, which says its `result`.

    They are shared out to processes as the command shares them, and full data are cut to the time
    that it gives them.
    """
    num_models = len({row["model"] for row in result["rows"]})
    allowed = torch.get_num_threads()
    full = [asked for asked in calls.trainings if asked.sets[0] is data.train]
    others = [asked for asked in calls.trainings if asked.sets[0] is not data.train]
    with runtime.on_threads(result["threads"]):
        seconds = seconds_of(Calls(others, calls.tests))
        of_full = seconds_of(Calls(full))
    processes = 1
    if data.train.device.type == "cpu" and seconds + of_full > WORTH:
        processes = min(allowed // result["threads"], result["protocol"]["num_networks"])
    return seconds / processes + min(of_full / processes, num_models * FULL_SECONDS)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    size = 0
    for below in path.rglob("*"):
        if below.is_file():
            size += below.stat().st_size
    return size
