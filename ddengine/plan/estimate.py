"""What a recipe will cost on this machine: time, peak memory and disk of buffer, distill and
evaluate, from a short calibration of each.

Every part runs for a few steps in a process of its own, on the true images, networks and settings,
so that its peak memory is that of the command. Trainings are counted by running the program itself
with `training.train_networks` replaced by one that only notes what it was asked for; then each kind
of training is timed for a few updates. So there is no second account of an evaluation that could
differ from the first.
"""

import dataclasses
import json
import math
import multiprocessing as mp
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from ddengine import loop, prepare
from ddengine.artefact import folder as folders
from ddengine.data import Data, RealSet, load_data
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.train import validate
from ddengine.learning import training
from ddengine.learning.flat import flatten, flatten_buffers, unflatten_into
from ddengine.learning.teachers import load_all
from ddengine.models import build_model
from ddengine.objective import Objective
from ddengine.pages import figures
from ddengine.recipe import BufferConfig, EvalConfig, Recipe, to_dict
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision, available_memory
from ddengine.types import Experts, TrainingSet

PARTS = ("buffer", "distill", "evaluate")
# seconds of calibration: of experts and outer steps, and of each kind of training in an evaluation
STEPPING, TRAINING = 5.0, 1.0
PATIENCE = 60.0  # seconds after which an outer step is the only one that is timed
TESTED = 2000  # images on which testing is timed
MOST_STAND_INS = 3  # experts that label in a calibration; their time is scaled to all
# bytes of a step's graph, double backward and gradients, for a byte that one forward pass saves: an
# upper bound
PER_STEP = 6.0
FIRST_USE = 10**8  # bytes that libraries take when they are first used
STORES = 60  # bytes of header in a shard, and so many more an epoch for its metrics
STORES_EPOCH = 54


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the process of a part is told; all of it can be pickled."""

    recipe: Recipe
    seed: int = 0
    device: str = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    # seconds that a command line takes to be read, which the process of a part does not repeat
    parsing: float = 0.0
    load: Callable[[torch.device], Data]  # training and validation images, on a device
    # the experts of the recipe; None: they are not all there
    open_store: Callable[[Data], Experts | None] | None = None
    train_expert: Callable[..., Any] | None = None  # buffers.train.train_expert
    # what the evaluate command takes for a distilled folder; None: the recipe's protocol
    protocol_of: Callable[[Path], EvalConfig] | None = None


def job(
    options: Any,
    load_for: Callable[..., Data],
    open_store: Callable[..., Any],
    root: Path,
    **more: Any,
) -> Job:
    """The job of a command line:

    `load_for(options, device, root)` and `open_store(options, data, root)` are what the commands
    call.
    """
    given = dict(
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
    )
    load, open_ = partial(load_for, options, root=root), partial(open_store, options, root=root)
    return Job(recipe=options.recipe, load=load, open_store=open_, **given, **more)


@dataclass(frozen=True)
class Part:
    """What a command will cost."""

    name: str
    seconds: float
    memory: int  # bytes at its peak, of the process (CUDA: allocated on the device)
    disk: int  # bytes of the files it leaves
    what: str  # what the time is made of, in words


# Processes of their own.


def apart(target: Callable[..., Any], *args: Any, limit: int | None = None) -> Any:
    """What `target(*args)` returns, from a new process; `limit` is how many bytes it may take on a
    CPU beyond what importing takes.

    Raises UserError for what went wrong there, in one sentence, and MemoryError where memory did
    not suffice.
    """
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(sender, time.time(), limit, target, args), daemon=True
    )
    process.start()
    sender.close()  # so that a process that dies ends the waiting
    try:
        kind, value = receiver.recv()
    except EOFError:
        kind, value = "died", None
    finally:
        receiver.close()
    process.join()
    # libraries may abort where they get no memory
    if kind == "memory" or (kind == "died" and (process.exitcode == -9 or limit is not None)):
        raise MemoryError(value or "the process was killed")
    if kind == "user":
        raise UserError(value)
    if kind != "result":
        what = value or f"its process ended with code {process.exitcode}"
        raise UserError(
            f"The calibration of {target.__name__.strip('_')} failed ({what}); run the command "
            "itself to see why."
        )
    return value


def _child(
    sender: Connection,
    began: float,
    limit: int | None,
    target: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    log.console.quiet = True
    try:
        if limit is not None and sys.platform == "linux":
            most = max(limit - _status("VmRSS"), 0) + _status("VmData") + FIRST_USE
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        sender.send(("result", target(began, *args)))
    except MemoryError as error:
        sender.send(("memory", str(error)))
    except UserError as error:
        sender.send(("user", str(error)))
    except BaseException as error:
        short = (
            isinstance(error, torch.OutOfMemoryError)
            or "allocate memory" in str(error)
            or "start new thread" in str(error)
        )
        sender.send(
            (
                "memory" if short else "failed",
                (
                    f"{type(error).__name__}: "
                    f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                ),
            )
        )


def _status(name: str) -> int:
    """Bytes that /proc/self/status says (Linux)."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held so far.

    Not the system's own count of it on Linux, which a child has from its parent.
    """
    return (
        _status("VmHWM")
        if device.type == "cpu" and sys.platform == "linux"
        else runtime.peak_memory(device)
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(device: torch.device, action: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    _wait(device)
    start = time.perf_counter()
    result = action()
    _wait(device)
    return time.perf_counter() - start, result


# Trainings: noted, then timed by kind.


@dataclass
class Calls:
    """The trainings and tests that a piece of the program asked for."""

    # arguments of training.train_networks
    trainings: list[dict[str, Any]] = field(default_factory=list)
    tests: list[tuple[nn.Module, RealSet, Precision]] = field(default_factory=list)


@contextmanager
def noting() -> Iterator[Calls]:
    """Within the block networks are neither trained nor tested: what would have been is noted, and
    a half of every class is right.

    Replaces functions of the module `training`, so it belongs into a process of its own, or a
    single thread.
    """
    calls, networks = Calls(), dict[Any, nn.Module]()
    train, test = training.train_networks, training.classified

    def train_networks(
        new_model: Any,
        sets: Sequence[TrainingSet],
        seeds: Sequence[int],
        config: EvalConfig,
        lr: float,
        device: torch.device,
        **options: Any,
    ) -> list[nn.Module]:
        asked = dict(
            new_model=new_model,
            sets=list(sets),
            seeds=list(seeds),
            config=config,
            lr=lr,
            device=device,
            **options,
        )
        calls.trainings.append(asked)
        key = _network_key(new_model)
        # one of a kind stands for all, so that none is built that the timing builds again
        if key not in networks:
            networks[key] = new_model(generator(seeds[0], "network")).to(device).eval()
        return [networks[key]] * len(seeds)

    def classified(
        network: nn.Module, real: RealSet, precision: Precision = "fp32"
    ) -> training.Classified:
        calls.tests.append((network, real, precision))
        images = tuple(len(members) for members in real.members)
        return training.Classified(tuple(num / 2 for num in images), images)

    training.train_networks, training.classified = train_networks, classified  # type: ignore[assignment]
    try:
        yield calls
    finally:
        training.train_networks, training.classified = train, test


def _network_key(new_model: Any) -> Any:
    return (new_model.func, new_model.args) if isinstance(new_model, partial) else new_model


def updates(asked: dict[str, Any]) -> int:
    """Updates of each network of a noted training."""
    steps = asked.get("steps")
    return training.num_updates(len(asked["sets"][0]), asked["config"]) if steps is None else steps


def seconds_of(calls: Calls) -> float:
    """Seconds of everything noted: each kind of training is timed for some updates, each kind of
    network for some images.
    """
    return sum(_training_seconds(kind) for kind in _kinds(calls.trainings)) + _testing_seconds(
        calls
    )


def _kinds(trainings: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Those whose updates cost the same, together: the same network, kind and number of examples,
    protocol, and networks at once.
    """
    found: dict[Any, list[dict[str, Any]]] = {}
    for asked in trainings:
        of = asked["sets"][0]
        key = (
            _network_key(asked["new_model"]), type(of), len(of), asked["config"], asked.get("labels"), asked.get("precision"),
            len(asked.get("teachers", ())), _at_once(asked), asked.get("observe") is not None,
        )  # fmt: skip
        found.setdefault(key, []).append(asked)
    return list(found.values())


def _at_once(asked: dict[str, Any]) -> int:
    """Networks that may be trained in one computation; of larger batches on a CPU each is trained
    alone, and one is timed for all.
    """
    small = min(asked["config"].batch, len(asked["sets"][0])) < training.BATCHED_BELOW
    return len(asked["seeds"]) if small or asked["device"].type == "cuda" else 1


def _training_seconds(kind: list[dict[str, Any]]) -> float:
    asked, num, device = kind[0], _at_once(kind[0]), kind[0]["device"]
    most = max(map(updates, kind))
    if most == 0:
        return 0.0

    def run(steps: int) -> float:
        some = {
            "sets": asked["sets"][:num],
            "seeds": asked["seeds"][:num],
            "steps": steps,
            "observe": None,
        }
        return _timed(device, lambda: training.train_networks(**(asked | some)))[0]

    building = num * _timed(device, lambda: asked["new_model"](generator(0, "network")))[0]
    first = min(2, most)
    rough = run(first) / first  # with all that happens only once
    steps = max(1, min(most, int(TRAINING / rough)))
    each = max(run(steps) - building, 0.0) / steps if rough * most > TRAINING / 20 else rough
    return sum(len(one["seeds"]) / num * (building + updates(one) * each) for one in kind)


def _testing_seconds(calls: Calls) -> float:
    each: dict[Any, float] = {}
    total = 0.0
    for network, real, precision in calls.tests:
        key = (id(network), precision)
        if key not in each:
            some = RealSet(
                real.pixels[:TESTED], real.labels[:TESTED], real.num_classes, real.preprocess
            )
            training.accuracy(network, some, precision)  # the first time is slower
            each[key] = _timed(real.device, partial(training.accuracy, network, some, precision))[
                0
            ] / len(some)
        total += each[key] * len(real)
    return total


# Experts.


class StandIns:
    """Experts of the right shapes where the true ones are not there yet: a short training, drawn
    out over all epochs.
    """

    def __init__(self, recipe: Recipe, folder: Path, data: Data):
        """`folder` holds what `_buffer` wrote."""
        assert recipe.buffer is not None
        self._data, self.epochs, models = (
            data,
            recipe.buffer.kept_epochs(),
            prepare.buffer_models(recipe),
        )
        each = (
            recipe.buffer.num_experts
            if recipe.teachers
            else min(MOST_STAND_INS, recipe.buffer.num_experts)
        )
        self._models = [model for model in models for _ in range(each)]
        self._saved = {
            model: files.read_tensors(folder / f"{i}.safetensors")[0]
            for i, model in enumerate(models)
        }
        self.num_experts, self.num_params = len(self._models), len(self._saved[models[0]]["start"])

    def snapshots(self, expert: int, epochs: Sequence[int]) -> Tensor:
        """Parameters (len(epochs), P) on the way from the start to the end."""
        saved = self._saved[self._models[expert]]
        return torch.stack(
            [saved["start"].lerp(saved["end"], epoch / max(1, self.epochs[-1])) for epoch in epochs]
        )

    def load(self, expert: int, epoch: int) -> nn.Module:
        """The network of a snapshot, in evaluation mode."""
        model = self._models[expert]
        network = build_model(model, self._data.image_shape, self._data.num_classes, generator(0))
        unflatten_into(
            network, self.snapshots(expert, [epoch])[0], self._saved[model].get("buffers")
        )
        return network.eval()


def _experts(job: Job, data: Data, stand_ins: Path | None) -> Experts | None:
    if not prepare.reads_experts(job.recipe):
        return None
    if stand_ins is not None:
        return StandIns(job.recipe, stand_ins, data)
    assert job.open_store is not None
    return job.open_store(data)


def _workable(recipe: Recipe) -> Recipe:
    """The recipe with which stand-ins can do, who are right about few images."""
    if recipe.init.kind == "correct":
        recipe = replace(recipe, init=replace(recipe.init, kind="real"))
    if recipe.targets.experts == "correct":
        recipe = replace(recipe, targets=replace(recipe.targets, experts="all"))
    return recipe


def store_bytes(config: BufferConfig, num_params: int, num_buffers: int, experts: int) -> int:
    """Bytes of so many experts of P parameters and Q buffers in a store, without what the store has
    once.
    """
    kept, wide = len(config.kept_epochs()), 4 if config.dtype == "float32" else 2
    return experts * (
        kept * (num_params * wide + num_buffers * 4) + STORES + STORES_EPOCH * config.epochs
    )


# The parts. Each runs in a process of its own, and is told when that was started.


def _start(began: float, job: Job) -> tuple[torch.device, Data, float]:
    """(device, images, seconds since the process was started)."""
    device = runtime.setup(job.device, job.precision)
    data = job.load(device)
    _wait(device)
    return device, data, job.parsing + time.time() - began


def _buffer(began: float, job: Job, folder: Path, missing: dict[str, int]) -> dict[str, Any]:
    """Train each network of the buffer a little; writes where it started and arrived as
    INDEX.safetensors into `folder`.
    """
    device, data, start = _start(began, job)
    config = job.recipe.buffer
    assert config is not None and job.train_expert is not None
    seconds, disk, most, epoch_seconds = start, 0, 0, 0.0
    for i, model in enumerate(prepare.buffer_models(job.recipe)):
        network = build_model(
            model, data.image_shape, data.num_classes, generator(job.seed, "expert", 0, "network")
        ).to(device)
        num_params, num_buffers = (
            flatten(network).numel(),
            0 if (flat := flatten_buffers(network)) is None else flat.numel(),
        )
        saved = {"start": flatten(network).clone()}
        if not config.step.trains:  # published weights are read, nothing is trained
            each = 0.0
        else:
            each = _epoch_seconds(job, network, data, config)
        saved |= {"end": flatten(network)} | (
            {} if num_buffers == 0 else {"buffers": flatten_buffers(network)}
        )
        files.write_tensors(
            folder / f"{i}.safetensors", {k: v for k, v in saved.items() if v is not None}
        )
        epoch_seconds = max(epoch_seconds, each)
        kept = len(config.kept_epochs()) * (num_params + num_buffers) * 4
        most = max(most, kept)
        seconds += missing[model] * each * config.epochs
        # preprocessing and manifest
        once = (
            sum(t.numel() * t.element_size() for t in data.train.preprocess.tensors().values())
            + 1250
        )
        disk += store_bytes(config, num_params, num_buffers, missing[model]) + (
            once if missing[model] == config.num_experts else 0
        )
    # snapshots lie in memory until the expert is done, and twice more while they are written
    return {
        "seconds": seconds,
        "memory": peak_memory(device) + (3 * most if device.type == "cpu" else 0),
        "disk": disk,
        "epoch": epoch_seconds,
    }


def _epoch_seconds(job: Job, network: nn.Module, data: Data, config: BufferConfig) -> float:
    """Seconds of an epoch of an expert, with the test after it: of some whole epochs where these
    are short, else of some batches.
    """
    device, per_epoch = data.train.device, math.ceil(len(data.train) / config.batch)
    train_expert = job.train_expert
    assert train_expert is not None

    def run(updates: int) -> float:
        """Seconds of so many updates on the first images; without validation."""
        num = min(updates * config.batch, len(data.train))
        some = RealSet(
            data.train.pixels[:num],
            data.train.labels[:num],
            data.num_classes,
            data.train.preprocess,
        )
        short = replace(config, epochs=1, keep="last")
        return _timed(
            device,
            lambda: train_expert(
                network,
                replace(data, train=some, validation=None),
                short,
                job.seed,
                0,
                job.precision,
            ),
        )[0]

    run(1)  # slower than the others
    num = min(3, per_epoch)
    rough = run(num) / num
    if rough * per_epoch > STEPPING / 2:
        num = max(num, min(per_epoch, int(STEPPING / rough)))
        calls = Calls(
            tests=[(network, data.validation, job.precision)] if data.validation is not None else []
        )
        return run(num) / num * per_epoch + _testing_seconds(calls)
    epochs = max(1, min(config.epochs, int(STEPPING / (rough * per_epoch))))
    some = replace(config, epochs=epochs, keep="last")
    return (
        _timed(device, lambda: train_expert(network, data, some, job.seed, 0, job.precision))[0]
        / epochs
    )


def counts(recipe: Recipe) -> dict[str, int]:
    """How often a distillation does what it does now and then; `files` are the pictures that it
    leaves in progress/.
    """
    steps, every = recipe.outer.steps, recipe.outer
    often = steps // every.picture_every if every.picture_every else 0
    # the last picture takes the place of that of the last step
    between = often - (1 if often and steps % every.picture_every == 0 else 0)
    return {
        "validations": steps // every.evaluate_every if every.evaluate_every else 0,
        "checkpoints": math.ceil(steps / every.checkpoint_every),
        "pictures": 2 + often,
        "files": 1 + between + (1 if steps else 0),
    }


def _prepared(
    job: Job, recipe: Recipe, data: Data, device: torch.device, experts: Experts | None
) -> tuple[SyntheticSet, Objective]:
    return prepare.prepare(
        recipe, data, device, experts, seed=job.seed, precision=job.precision, compile=job.compile
    )


def _state(syn: SyntheticSet, objective: Objective, recipe: Recipe, seed: int) -> loop.State:
    """What a distillation starts with."""
    tensors = {k: v.detach().clone() for k, v in syn.tensors.items()}
    return loop.State(
        tensors,
        {},
        {k: tensors[k].clone() for k in recipe.outer.ema},
        objective.init(generator(seed, "objective")),
    )


def _distill(began: float, job: Job, folder: Path, stand_ins: Path | None) -> dict[str, Any]:
    """Some outer steps, one of everything else; leaves the folder of a run in `folder`."""
    device, data, start = _start(began, job)
    recipe = job.recipe if stand_ins is None else _workable(job.recipe)
    experts, config, often = _experts(job, data, stand_ins), recipe.outer, counts(recipe)
    labelling = 1.0  # how many times more experts label than here
    if (
        isinstance(experts, StandIns)
        and not recipe.teachers
        and recipe.targets.kind == "logits"
        and recipe.targets.experts != "first"
    ):
        assert recipe.buffer is not None
        labelling = recipe.buffer.num_experts / experts.num_experts
    with noting() as calls:
        initial, (syn, objective) = _timed(
            device, lambda: _prepared(job, recipe, data, device, experts)
        )
    initial = labelling * initial + seconds_of(calls)
    state, times = _state(syn, objective, recipe, job.seed), list[float]()
    while (
        state.step < config.steps
        and (len(times) < 3 or sum(times[1:]) < STEPPING)
        and sum(times) < PATIENCE
    ):
        times.append(
            _timed(
                device, lambda: loop.outer_step(syn, objective, config, state, job.seed).tolist()
            )[0]
        )
    each = sum(times[1:]) / (len(times) - 1) if len(times) > 1 else sum(times)
    checkpoint, _ = _timed(
        device,
        lambda: loop.save_checkpoint(
            _folder(folder / "checkpoint") / "state.safetensors", state, 0
        ),
    )
    finish = partial(prepare.shipped, recipe=recipe, experts=experts)
    # from a checkpoint of its last step a distillation goes straight to its end
    ending, (result, _) = _timed(
        device,
        lambda: loop.distill(
            syn,
            objective,
            replace(config, steps=state.step, evaluate_every=0),
            folder,
            seed=job.seed,
            finish=finish,
        ),
    )
    ending *= labelling if recipe.targets.relabel else 1.0
    validation = 0.0
    if often["validations"]:
        teachers = (
            []
            if recipe.evaluation.labels != "dynamic" or experts is None
            else load_all(experts, device)
        )
        with noting() as calls:
            options: dict[str, Any] = dict(
                seed=job.seed, device=device, precision=job.precision, teachers=teachers
            )
            validation, _ = _timed(
                device, lambda: validate(result, data, recipe.evaluation, recipe.model, **options)
            )
        validation += seconds_of(calls)
    picture = partial(figures.grid, _folder(folder / "progress") / "step.png", result)
    first, again = (_timed(device, picture)[0] for _ in range(2))  # the first waits for an import
    drawing = first + (often["pictures"] - 1) * again
    written, _ = _timed(
        device,
        lambda: figures.real_vs_distilled(
            folder / "real_vs_distilled.png", data.train, result, None
        ),
    )
    figures.save_samples(folder / "samples.safetensors", data.train)
    facts = replace(job.recipe, data=replace(job.recipe.data, root=None))
    meta = {
        "recipe": to_dict(facts),
        "seed": job.seed,
        "precision": job.precision,
        "images": data.train.digest,
        "raw_bytes": data.bytes,
    }
    more = {
        "dataset_bytes": data.dataset_bytes,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    saving, _ = _timed(device, lambda: folders.save(result, folder / "distilled", meta | more))
    line = (
        len(
            json.dumps(
                {"step": config.steps, "loss": math.pi, "applied": True}
                | ({"lr": math.pi / 100} if "lr" in syn.tensors else {})
            )
        )
        + 1
    )
    kept = [
        tree_bytes(folder / name)
        for name in ("checkpoint", "distilled", "real_vs_distilled.png", "samples.safetensors")
    ]
    # metrics and recipe.json
    log_bytes = (
        line * config.steps
        + 60 * often["validations"]
        + len(json.dumps(to_dict(job.recipe), indent=1))
    )
    seconds = start + initial + config.steps * each + ending + often["checkpoints"] * checkpoint
    return {
        "seconds": seconds + often["validations"] * validation + drawing + written + saving,
        "memory": peak_memory(device),
        "disk": sum(kept) + log_bytes + often["files"] * tree_bytes(folder / "progress"),
        "step": each,
        "initial": initial,
        "validation": validation,
    }


def _evaluate(began: float, job: Job, folder: Path, stand_ins: Path | None) -> dict[str, Any]:
    """The evaluation of the set in `folder`/distilled, whose trainings are noted and then timed."""
    recipe = job.recipe
    device = runtime.setup(job.device, job.precision)
    syn, _ = folders.load(folder / "distilled", device)
    data = load_data(recipe.data, device, test=True, stored=lambda images: syn.preprocess)
    experts = _experts(job, data, stand_ins) if recipe.teachers else None
    teachers = [] if experts is None else load_all(experts, device)
    start, before = job.parsing + time.time() - began, tree_bytes(folder)
    config = recipe.evaluation if job.protocol_of is None else job.protocol_of(folder / "distilled")
    options: dict[str, Any] = dict(
        seed=job.seed, device=device, precision=job.precision, teachers=teachers
    )
    with noting() as calls:
        beside, evaluation = _timed(
            device, lambda: evaluate(syn, data, config, recipe.model, **options)
        )
    trained = seconds_of(calls)
    drawing, _ = _timed(
        device,
        lambda: figures.real_vs_distilled(
            folder / "real_vs_distilled.png", data.train, syn, evaluation
        ),
    )
    files.write_json(folder / "evaluation.json", evaluation)
    return {
        "seconds": start + beside + trained + drawing,
        "memory": peak_memory(device),
        "disk": max(0, tree_bytes(folder) - before),  # the picture of the run grows
        "trainings": sum(len(asked["seeds"]) for asked in calls.trainings),
        "updates": sum(len(asked["seeds"]) * updates(asked) for asked in calls.trainings),
    }


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(
        p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()
    )


def estimate(job: Job, missing: dict[str, int]) -> list[Part]:
    """What buffer, distill and evaluate of a recipe will cost. Nothing is left behind.

    `missing` says of each network of the buffer how many experts its store lacks; empty for a
    recipe without experts. Raises UserError for what fails in a calibration.
    """
    recipe, found = job.recipe, list[Part]()
    lacking = any(missing.values())
    with tempfile.TemporaryDirectory(prefix="ddengine-") as temporary:
        experts, run = (_folder(Path(temporary) / name) for name in ("experts", "run"))
        if lacking:
            cost = _of("buffer", _buffer, job, experts, missing)
            assert recipe.buffer is not None
            what = f"{sum(missing.values())} experts of {recipe.buffer.epochs} epochs of {_short(cost['epoch'])}"
            if not recipe.buffer.step.trains:
                what = "published weights, which are read"
            found.append(Part("buffer", cost["seconds"], cost["memory"], cost["disk"], what))
        else:
            found.append(
                Part(
                    "buffer",
                    0.0,
                    0,
                    0,
                    "all experts lie in their store" if missing else "no experts are needed",
                )
            )
        stand_ins = experts if lacking and prepare.reads_experts(recipe) else None
        cost = _of("distill", _distill, job, run, stand_ins)
        often = counts(recipe)["validations"]
        what = f"{_short(cost['initial'])} for the initial set, {recipe.outer.steps} steps of {_short(cost['step'])}"
        what += f", {often} validations of {_short(cost['validation'])}" if often else ""
        found.append(Part("distill", cost["seconds"], cost["memory"], cost["disk"], what))
        cost = _of("evaluate", _evaluate, job, run, stand_ins)
        what = f"{cost['trainings']} networks, {cost['updates']} updates in all"
        found.append(Part("evaluate", cost["seconds"], cost["memory"], cost["disk"], what))
    return found


def _of(name: str, target: Callable[..., Any], *args: Any) -> dict[str, Any]:
    try:
        return apart(target, *args)
    except MemoryError as error:
        raise UserError(
            f"The calibration of {name} needs more memory than there is ({error}), so {name} will "
            "not do on this machine with these settings."
        ) from None


def _short(seconds: float) -> str:
    """Seconds with two figures, in ms where they are few."""
    return (
        f"{1000 * seconds:.2g} ms"
        if seconds < 0.1
        else f"{seconds:.2g} s"
        if seconds < 100
        else log.duration(seconds)
    )


# What there is, and the report.


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` lies or will lie."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def table(parts: Sequence[Part], title: str) -> Table:
    """The estimate for a terminal."""
    shown = Table(title=title, title_justify="left")
    for name in ("part", "time", "peak memory", "disk"):
        shown.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    shown.add_column("of which")
    for part in parts:
        needed = part.memory > 0
        cells = (
            (
                f"about {log.duration(part.seconds)}",
                log.size(part.memory),
                log.size(part.disk),
            )
            if needed
            else ("0 s", "-", "0 B")
        )
        shown.add_row(part.name, *cells, part.what)
    total = sum(part.seconds for part in parts)
    shown.add_section()
    shown.add_row(
        "in all",
        f"about {log.duration(total)}",
        log.size(max(p.memory for p in parts)),
        log.size(sum(p.disk for p in parts)),
        "",
    )
    return shown


def show(
    job: Job,
    missing: dict[str, int],
    recipe: Recipe,
    device: torch.device,
    *,
    experts: Path,
    run: Path,
    path: Path | None,
) -> None:
    """Estimate, print it beside what there is, and write it to `path`; `experts` and `run` are the
    folders that would be written.
    """
    log.say(
        "calibrating: a few updates of experts, outer steps and trainings of the evaluation, each "
        "command in a process of its own; nothing is kept"
    )
    start, parts = time.perf_counter(), estimate(job, missing)
    seconds, memory, free = (
        time.perf_counter() - start,
        available_memory(device),
        {folder: free_disk(folder) for folder in (experts, run)},
    )
    log.console.print(
        table(
            parts,
            (
                f"{recipe.name} on {runtime.machine(device)['device']}, estimated in "
                f"{log.duration(seconds)}"
            ),
        )
    )
    log.say(
        f"available: about {log.size(memory)} of memory, {log.size(min(free.values()))} of disk"
    )
    if (most := max(parts, key=lambda part: part.memory)).memory > memory:
        log.say(
            f"warning: {most.name} needs about {log.size(most.memory)} of memory, which is "
            "more than there is"
        )
    if (needed := sum(part.disk for part in parts)) > min(free.values()):
        log.say(
            f"warning: about {log.size(needed)} of disk are needed, which is more than there is"
        )
    if path is not None:
        files.make_folder(path.parent)
        files.write_json(
            path,
            {"recipe": to_dict(recipe)}
            | as_json(
                parts, memory=memory, disk=min(free.values()), seconds=seconds, device=device
            ),
        )


def check_path(path: Path) -> None:
    """Raise UserError unless the estimate can be written to `path`, which is better known before
    the calibration.
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
    rows = [dataclasses.asdict(part) for part in parts]
    there = {
        "available_memory": memory,
        "free_disk": disk,
        "calibration_seconds": round(seconds, 2),
    }
    return {
        "parts": rows,
        **there,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


# The check before a distillation.


def saved_bytes(
    network: nn.Module, image_shape: tuple[int, int, int], device: torch.device
) -> float:
    """Bytes that one forward pass keeps for the backward pass, an image."""
    own = {p.data_ptr() for p in network.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(2, *image_shape, device=device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.to(device).train()(images).sum()
    return sum(seen.values()) / 2


def memory_bound(recipe: Recipe, syn: SyntheticSet, data: Data, device: torch.device) -> int:
    """Bytes that a distillation takes at most beyond what it holds before the first step; far too
    many for most.

    By the fields that objectives have in common: `batch` images a step, `real_batch` and
    `syn_batch` a class, all decoded ones where none is set.
    """
    objective, config, num = recipe.objective, recipe.evaluation, len(syn)
    per_class = [
        getattr(objective, name, None) or 0 for name in ("real_batch", "syn_batch", "images")
    ]
    nets = [getattr(getattr(objective, "networks", None), "batch", 0)]
    images = max(
        getattr(objective, "batch", None) or num,
        data.num_classes * max(per_class),
        *nets,
        *(n for n in (getattr(objective, "images_at_once", 0),) if n),
    )
    steps = getattr(objective, "inner_steps", 1)
    names = prepare.buffer_models(recipe) if recipe.teachers else (recipe.model,)
    networks = [
        build_model(name, data.image_shape, data.num_classes, generator(0)) for name in names
    ]
    each = max(saved_bytes(network, data.image_shape, device) for network in networks)
    params = max(sum(p.numel() for p in network.parameters()) for network in networks)
    step = PER_STEP * each * images * (
        steps if getattr(objective, "backprop", "") == "full" else 1
    ) + 4 * params * (3 * steps + 10) * len(names)
    training_ = (
        PER_STEP * each * min(config.batch, num) + 16 * params if recipe.outer.evaluate_every else 0
    )
    testing = each * training.TEST_BATCH if recipe.outer.evaluate_every else 0
    tensors = sum(t.numel() * t.element_size() for t in syn.tensors.values())
    return int(
        FIRST_USE
        + max(step, training_, testing)
        + 16 * tensors
        + 8 * num * math.prod(data.image_shape)
    )


def _trial(began: float, job: Job) -> int:
    """Bytes that one outer step takes beyond what is held before it."""
    device, data, _ = _start(began, job)
    with noting():  # networks of the initial set need not have learnt anything for this
        syn, objective = _prepared(
            job, _workable(job.recipe), data, device, _experts(job, data, None)
        )
    state = _state(syn, objective, job.recipe, job.seed)
    before = _held(device)
    loop.outer_step(syn, objective, job.recipe.outer, state, job.seed).tolist()
    return max(0, peak_memory(device) - before)


def _held(device: torch.device) -> int:
    """Bytes that this process holds now; a new high-water mark starts here where the system has one
    to start.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return runtime.peak_memory(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def disk_bytes(recipe: Recipe, syn: SyntheticSet) -> int:
    """Bytes that a distillation writes at most, two checkpoints while one is replaced, without what
    its pictures take beyond their pixels.
    """
    tensors = sum(t.numel() * t.element_size() for t in syn.tensors.values())
    pixels = math.prod(syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:])
    shown = (
        min(len(syn.class_names), figures.SHOWN_CLASSES)
        * figures.SHOWN_PER_CLASS
        * max(pixels, 64 * 64)
    )
    return (
        (4 + len(recipe.outer.ema)) * 2 * tensors
        + len(syn) * (pixels + 500)
        + counts(recipe)["files"] * shown // 2
        + 120 * recipe.outer.steps
        + 10**6
    )


def check(job: Job, syn: SyntheticSet, data: Data, folder: Path, device: torch.device) -> None:
    """Raise UserError, with the numbers, where a distillation into `folder` would run out of memory
    or disk.

    Cheap where a generous bound fits; else one step is tried in a process that cannot take more
    than there is. Of several ranks the first checks.
    """
    if dist.rank() != 0:
        return
    wanted, free = disk_bytes(job.recipe, syn), free_disk(folder)
    if wanted > free:
        raise UserError(
            f"The run needs about {log.size(wanted)} of disk and {log.size(free)} are free "
            f"where {folder} lies; "
            "free space, name another folder with --out, or start with --force."
        )
    there, bound = available_memory(device), memory_bound(job.recipe, syn, data, device)
    if bound <= there:
        return
    log.say(
        f"a step may need up to {log.size(bound)} of memory, and {log.size(there)} are "
        "available: trying one in a process of its own"
    )
    try:
        needed = apart(_trial, job, limit=there)
    except MemoryError:
        needed, about = 0, "more than "
    else:
        about = "about "
        if needed <= there:
            return
    raise UserError(
        f"A step of {job.recipe.name} needs {about}{log.size(needed or there)} of memory "
        f"beyond what the images take, and {log.size(there)} "
        f"are available; {_advice(job.recipe)} or start with --force."
    )


def _advice(recipe: Recipe) -> str:
    """What to lower."""
    objective = recipe.objective
    if getattr(objective, "backprop", "") == "full":
        return "set objective.backprop replay"
    for name in ("batch", "real_batch", "images_at_once"):
        if getattr(objective, name, None):
            return f"lower objective.{name} (now {getattr(objective, name)})"
    return f"lower ipc (now {recipe.ipc})" + (
        " or set objective.batch" if hasattr(objective, "batch") else ""
    )
