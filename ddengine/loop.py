"""The outer loop of every method: losses, backward, guard, optimiser step, checkpoint."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Generator, Tensor

from ddengine import contents
from ddengine.learning.optim import joint_norm, updated
from ddengine.objective import Objective, backward
from ddengine.recipe import OuterConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files, log, runtime, signals
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.typed import Count

SMALLEST_LR = 1e-6  # a learned learning rate is held at or above this; SGD has no meaning below
WARN_AFTER = 20  # steps without any update, all above max_loss
MOST_SKIPPED = 10  # non-finite updates in a row after which none is made any more and the run stops
# steps between readings of what they gave: each reading waits for the device
READ_EVERY = {"cpu": 1, "cuda": 10}
CHECKPOINT = Path("checkpoint", "state.safetensors")  # in the folder of a run
KEPT = ("momentum", "square", "count", "norm")  # what optimisers keep, as State calls it
# those of Counters that the guard keeps on the device
COUNTS = ("not_finite_in_a_row", "not_finite", "above_max_loss", "lr_held")

Finish = Callable[[SyntheticSet], SyntheticSet]
# (title, total, done) -> a context whose value counts
Progress = Callable[[str, int, int], AbstractContextManager[log.Counter]]
# (objective, its first state, the set, steps made) -> tensors of the shapes of its state
Kept = Callable[[Objective, dict[str, Tensor], SyntheticSet, int], Mapping[str, Tensor]]


def cites(config: OuterConfig) -> tuple[str, ...]:
    """Works to cite for what is shipped: a running average of the images."""
    return ("du2023ftd",) if "images" in config.ema else ()


@dataclass
class Counters:
    """What the guard had seen, and the cost, up to the step last read; part of the checkpoint."""

    not_finite_in_a_row: int = 0
    not_finite: int = 0
    above_max_loss: int = 0
    lr_held: int = 0
    seconds: float = 0.0  # in outer steps; validation and pictures are not counted
    # of everything, from the start of each session of the run to the last checkpoint of it
    wall_seconds: float = 0.0
    # of the step last validated; None where none was, or the network diverged
    validation_accuracy: float | None = None
    ranks: int = 0  # that the run was begun on; 0: not known, of runs of before
    peak_memory: int = 0  # bytes, of the process (CUDA: allocated on the device)
    log_digest: str | None = None  # of metrics.jsonl


class Said(TypedDict):
    """What a checkpoint says beside its tensors."""

    step: Count
    counters: Counters
    log_bytes: Count


@dataclass
class State:
    """Everything that changes during a run."""

    tensors: dict[str, Tensor]
    momentum: dict[str, Tensor]  # by stored tensor; of Adam the mean gradient
    ema: dict[str, Tensor]
    objective: dict[str, Tensor]
    step: int = 0
    counters: Counters = field(default_factory=Counters)
    square: dict[str, Tensor] = field(default_factory=dict)  # of Adam: the mean squared gradient
    count: dict[str, Tensor] = field(default_factory=dict)  # of Adam: updates made
    norm: dict[str, Tensor] = field(default_factory=dict)  # of clipping: running average of norms
    guard: Tensor = field(init=False)  # COUNTS up to the step last made, int64, on the device

    def __post_init__(self) -> None:
        device = next(iter(self.tensors.values())).device
        self.guard = torch.tensor([getattr(self.counters, name) for name in COUNTS], device=device)

    def optimiser(self, kind: str) -> dict[str, Tensor]:
        """What optimisers keep, of one of KEPT, by stored tensor."""
        return self.groups()[kind]

    def kept_of(self, name: str) -> dict[str, Tensor]:
        """What the optimiser keeps of a stored tensor, by kind."""
        groups = self.groups()
        return {kind: groups[kind][name] for kind in KEPT if name in groups[kind]}

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Its tensors by kind."""
        return {
            "tensors": self.tensors,
            "momentum": self.momentum,
            "square": self.square,
            "count": self.count,
            "norm": self.norm,
            "ema": self.ema,
            "objective": self.objective,
        }


def save_checkpoint(path: Path, state: State, log_bytes: int, run: str | None = None) -> None:
    """Write the state as one file.

    `log_bytes` is the length of the log, `run` identifies the run.
    """
    tensors: dict[str, Tensor] = {}
    for group, named in state.groups().items():
        for name, tensor in named.items():
            tensors[f"{group}/{name}"] = tensor
    meta = {"step": state.step, "counters": vars(state.counters), "log_bytes": log_bytes}
    of_run = {} if run is None else {"run": run}
    files.write_tensors(path, tensors, {"state": files.to_json(meta), **of_run})


def load_checkpoint(path: Path, device: torch.device, run: str | None = None) -> tuple[State, int]:
    """The state of a checkpoint, and the length the log had then.

    Raises UserError for a damaged file, and for one of another run than `run`; those of before
    do not say theirs.
    """
    tensors, metadata = files.read_tensors(path)
    names = ("tensors", *KEPT, "ema", "objective")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in names}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups:
            raise files.damaged(path, f"it holds {key!r}, which is no part of a checkpoint")
        groups[group][name] = tensor.to(device)
    if "state" not in metadata:
        raise UserError(f"{path} is not a checkpoint of this program; begin anew with --restart.")
    if run is not None and metadata.get("run", run) != run:
        raise UserError(
            f"{path} is the checkpoint of another run; put back the one of this run, or begin anew "
            "with --restart."
        )
    meta = contents.said_in_metadata(path, metadata, "state", Said)
    state = State(**groups, step=meta["step"], counters=Counters(**meta["counters"]))
    return state, meta["log_bytes"]


def must_share(objective: Objective, config: OuterConfig) -> bool:
    """Whether several ranks can only share the work of a draw, and not have a draw each.

    So it is where something is kept between steps, which each draw would advance, and where the
    images move within a step.
    """
    if dist.num_ranks() == 1:
        return False
    return config.step_after == "each" or bool(objective.init(generator(0)))


def check(
    syn: SyntheticSet,
    objective: Objective,
    config: OuterConfig,
    taken: Sequence[str] = (),
    *,
    shared: bool = False,
) -> None:
    """Raise UserError for what `distill` cannot do.

    That is a name that is not stored, several draws for an objective that keeps state, and several
    ranks unless they share its work. `taken` are the parts of other recipes, each as PART=RECIPE.
    """
    config = replace(config, optim=syn.by_tensor(config.optim), ema=syn.by_tensor(config.ema))
    _check_codec(config, syn, taken)
    _check_names("outer.optim", config.optim, syn)
    _check_names("outer.ema", config.ema, syn)
    keeps = bool(objective.init(generator(0)))
    if must_share(objective, config) and not shared:
        raise UserError(
            "This method keeps state between steps or steps after each loss, and cannot share its "
            "work, so it runs in one process; start it without torchrun."
        )
    if keeps and config.draws > 1:
        raise UserError(
            "This method keeps state between steps, which each draw would advance; set "
            f"outer.draws, now {config.draws}, to 1."
        )


def _check_codec(config: OuterConfig, syn: SyntheticSet, taken: Sequence[str]) -> None:
    """Raise UserError for rates of another codec's tensors and none of this one's."""
    groups = syn.codec.parameters(syn.tensors)
    own = {*groups, *(name for names in groups.values() for name in names)}
    foreign = [name for name in config.optim if name not in syn.tensors]
    if not foreign or own & config.optim.keys():
        return
    recipe = dict(part.split("=", 1) for part in taken).get("codec", "RECIPE")
    whose = "the recipe of that codec" if recipe == "RECIPE" else recipe
    raise UserError(
        f"outer.optim has a rate for {foreign[0]!r}, and codec {type(syn.codec).__name__} stores "
        f"{' and '.join(groups)}; take the rates from {whose} too (--take outer.optim={recipe})."
    )


def _check_names(setting: str, names: Iterable[str], syn: SyntheticSet) -> None:
    """Raise UserError for a name in a setting of which no tensor is stored."""
    for name in names:
        if name not in syn.tensors:
            stored = ", ".join(sorted(syn.tensors))
            raise UserError(
                f"{setting} names {name!r}, and the stored tensors are {stored}; correct the "
                "name, or take outer from a recipe of this objective (--take outer=RECIPE)."
            )


def _hint(state: State, config: OuterConfig, step: int) -> str:
    rate = f" (the learned rate is {float(state.tensors['lr']):g})" if "lr" in state.tensors else ""
    if rate and step == state.counters.not_finite:  # no update was ever made
        return "lower --objective.lr" + rate
    if state.objective:  # a network that is trained between steps may have diverged
        rate = ", or the learning rate of objective.networks" + rate
    images = config.optim.get("images")
    if images is None:
        return "lower the learning rates in outer.optim" + rate
    return f"lower --outer.optim.images.lr (now {images.lr:g})" + rate


def distill(  # long: arguments, and what they mean
    syn: SyntheticSet,
    objective: Objective,
    config: OuterConfig,
    folder: Path,
    *,
    seed: int,
    finish: Finish = lambda syn: syn,
    validate: Callable[[SyntheticSet], float | None] | None = None,
    picture: Callable[[SyntheticSet, int], None] | None = None,
    board: log.Board | None = None,
    progress: Progress = log.progress,
    began: float | None = None,
    run: str | None = None,
    shared: bool = False,
    kept: Kept | None = None,
) -> tuple[SyntheticSet, Counters]:
    """Minimise the objective over the tensors that `config.optim` names.

    Returns the set that is to be shipped. Writes `folder`/checkpoint/state.safetensors and
    `folder`/metrics.jsonl; continues from the checkpoint when there is one. A resumed run is
    bit-identical to an uninterrupted one on the same device: every random draw follows from (seed,
    step, draw). With running averages, the returned set holds them, and the last iterate as
    `raw.NAME`.

    Args:
        syn: the initial set.
        objective: what is minimised.
        config: steps, optimisers, guard, and how often what is done.
        folder: of the run.
        seed: decides every random draw.
        finish: makes what is validated and shipped of the tensors reached, for example by labelling
            them.
        validate: the accuracy of a finished set on the validation split, None where the network
            diverged.
        picture: draws a set at a step.
        board: where the numbers of metrics.jsonl go too.
        progress: shows how far the run is: (title, steps, steps done) -> a context whose value has
            `advance(note)`.
        began: of time.perf_counter, when the session began; None: now.
        run: identifies the run, whose checkpoints no other one continues.
        shared: whether the objective shares the work of a draw over the ranks; else each rank has
            draws of its own.
        kept: what a checkpoint may hold of an objective's state, as `ObjectiveConfig.kept` says it;
            None: it is not compared.

    Raises:
        UserError: a name in `config.optim` that is not stored; several draws, or ranks that do not
            share, for an objective that keeps state; a loss or gradient that stayed non-finite.
    """
    config = replace(config, optim=syn.by_tensor(config.optim), ema=syn.by_tensor(config.ema))
    check(syn, objective, config, shared=shared)
    began = time.perf_counter() if began is None else began
    state, log_bytes = _begin(syn, objective, config, folder, seed, run, shared, kept)
    began -= state.counters.wall_seconds  # as if the run had never been interrupted
    events = None
    if dist.rank() == 0:
        digest = state.counters.log_digest
        events = log.EventLog(folder / "metrics.jsonl", log_bytes, board, digest)
    else:
        picture = validate = None
    if picture is not None and state.step == 0:
        picture(syn, 0)
    with signals.at_step_ends(), progress("distill", config.steps, state.step) as bar:
        after = _AfterSteps(
            syn, config, state, folder, finish, validate, picture, events, bar, began, run, shared
        )
        while state.step < config.steps:
            _timed_step(syn, objective, after, seed)
            if after.stops:
                dist.meet()  # one that ends before may have the first killed in its checkpoint
                raise signals.stopped(f"at step {state.step} of {config.steps}", after.stops)
    if events is not None:
        events.close()
    final = finish(_current(syn, state))
    if picture is not None:
        picture(final, config.steps)
    for line in warnings(state.counters, config):  # last, where they are seen
        log.say(line)
    shipped = _with_last_iterate(final, syn, state, config, finish)
    _note_memory(state, syn)  # also of a run without steps, whose images are sampled or chosen
    state.counters.wall_seconds = time.perf_counter() - began
    return shipped, state.counters


def _timed_step(syn: SyntheticSet, objective: Objective, after: "_AfterSteps", seed: int) -> None:
    """An outer step with its cost, and what is due after it."""
    state = after.state
    start = time.perf_counter()
    try:
        after.pending.append(outer_step(syn, objective, after.config, state, seed, after.shared))
    except BaseException:
        # the log tells of every step that was made, and a stop of the guard explains what came
        # after it
        after.report()
        raise
    state.counters.seconds += time.perf_counter() - start
    if after.is_due():
        _note_memory(state, syn)  # which asks the device, and is no matter before it is written
        after.report()


def _note_memory(state: State, syn: SyntheticSet) -> None:
    """Count the most memory that was held so far, in any session of the run."""
    peak = runtime.peak_memory(syn.classes.device)
    state.counters.peak_memory = max(state.counters.peak_memory, peak)


def _begin(
    syn: SyntheticSet,
    objective: Objective,
    config: OuterConfig,
    folder: Path,
    seed: int,
    run: str | None,
    shared: bool,
    kept: Kept | None,
) -> tuple[State, int]:
    """The state that a run in `folder` starts or continues with, and the length of its log."""
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        state, log_bytes = load_checkpoint(checkpoint, syn.classes.device, run)
        _check_state(checkpoint, state, syn, config)
        if kept is not None:
            _check_kept(checkpoint, state, syn, objective, kept)
        _check_ranks(state, shared)
        log.say(f"continuing at step {state.step} of {config.steps}")
        return state, log_bytes
    state = first_state(syn, objective, config, seed)
    state.counters.ranks = dist.num_ranks()
    _check_ranks(state, shared)
    files.make_folder(checkpoint.parent)
    return state, 0


def _check_state(path: Path, state: State, syn: SyntheticSet, config: OuterConfig) -> None:
    """Raise UserError for a checkpoint that is not one of this set and of these steps."""
    if state.step > config.steps:
        said = f"it is of step {state.step}, and the run has {config.steps}"
        raise files.damaged(path, said)
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in syn.tensors.items()}
    stored = {name: (tensor.shape, tensor.dtype) for name, tensor in state.tensors.items()}
    if stored != wanted:
        raise files.damaged(path, "its tensors are not of the set's names, shapes and types")
    for named in (state.momentum, state.square, state.ema):
        for name, tensor in named.items():
            if name not in wanted or tensor.shape != wanted[name][0]:
                raise files.damaged(path, f"what it keeps of {name!r} has another shape")


def _check_kept(
    path: Path, state: State, syn: SyntheticSet, objective: Objective, kept: Kept
) -> None:
    """Raise UserError for a checkpoint whose objective keeps something else than this one."""
    first = objective.init(generator(0))
    wanted = kept(objective, first, syn, state.step)
    for name in sorted(first.keys() - state.objective.keys()):
        raise _of_another_method(path, f"it lacks {name!r}, which the method keeps between steps")
    for name, tensor in state.objective.items():
        if name not in wanted:
            raise _of_another_method(path, f"it holds {name!r}, which the method does not keep")
        shape, kind = tensor.shape, tensor.dtype.is_floating_point
        if (shape, kind) != (wanted[name].shape, wanted[name].dtype.is_floating_point):
            raise _of_another_method(
                path,
                f"{name!r}, which the method keeps between steps, is {_in_words(tensor)} there, "
                f"and must be {_in_words(wanted[name])}",
            )


def _of_another_method(path: Path, why: str) -> UserError:
    """The error for a sound checkpoint of a method that has kept something else than it does now.

    The bytes of the checkpoint were compared with their digest when it was read.
    """
    return UserError(
        f"{path} is of another version of the method ({why}); go on with the version of the "
        "program or plugin that wrote it, or begin anew with --restart."
    )


def _in_words(tensor: Tensor) -> str:
    """Shape and type of a tensor."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check_ranks(state: State, shared: bool) -> None:
    """Raise an error where ranks read different checkpoints, or others would be averaged over.

    Those that share a draw are as many as there are, and come to the same.
    """
    first = dist.told(state.step)
    if first != state.step:
        raise dist.Lost(
            f"Rank {dist.rank()} reads a checkpoint of step {state.step} and the first one that of "
            f"step {first}; all must see the same files, so wait until the shared folder has "
            "settled, and start the command again."
        )
    begun, now = state.counters.ranks, dist.num_ranks()
    if begun not in (0, now) and not shared:
        raise UserError(
            f"The run was begun on {begun} ranks, each of which adds a draw to every step, and "
            f"this is {now}; start it on {begun} (torchrun --nproc_per_node {begun}), or begin "
            "anew with --restart."
        )


def first_state(syn: SyntheticSet, objective: Objective, config: OuterConfig, seed: int) -> State:
    """What a run starts with."""
    tensors = {name: tensor.detach().clone() for name, tensor in syn.tensors.items()}
    ema = {name: tensors[name].clone() for name in config.ema}
    return State(tensors, {}, ema, objective.init(generator(seed, "objective")))


@dataclass
class _AfterSteps:
    """What is done of steps once their results are read: validation, picture, log, checkpoint.

    A step with any of these but the log is always the last of those read.
    """

    syn: SyntheticSet
    config: OuterConfig
    state: State
    folder: Path
    finish: Finish
    validate: Callable[[SyntheticSet], float | None] | None
    picture: Callable[[SyntheticSet, int], None] | None
    events: log.EventLog | None  # None on other ranks than the first
    bar: log.Counter
    began: float  # when the run would have begun, had it never been interrupted
    run: str | None  # what identifies it
    shared: bool  # whether the ranks share the work of a draw
    pending: list[Tensor] = field(default_factory=list)  # results of steps that are not read yet
    stops: int = 0  # the signal that ends the run after the step last read; 0: none does

    def is_due(self) -> bool:
        """Whether results are read now, and whether the run `stops` then.

        The same on every rank, with and without validation: ranks that stop, stop together.
        """
        due = self._is_due_anyway()
        if dist.num_ranks() > 1:
            self.stops = dist.most(signals.asked()) if due else 0
            return due
        self.stops = signals.asked()
        return due or self.stops > 0

    def _is_due_anyway(self) -> bool:
        """Whether results are read now, asked to stop or not."""
        config, step = self.config, self.state.step
        device = self.syn.classes.device
        every = (
            READ_EVERY[device.type],
            config.checkpoint_every,
            config.evaluate_every,
            config.picture_every,
        )
        return step == config.steps or any(falls_on(step, n) for n in every)

    def report(self) -> None:
        """Read the results of all pending steps, and do what is due at each."""
        for event in _read(self.pending, self.config, self.state):
            done = int(event["step"])
            if self.validate is not None and self._is_validated(done):
                event |= self._validation(self.validate, done)
            if self.picture is not None and falls_on(done, self.config.picture_every):
                self.picture(_current(self.syn, self.state), done)
            if self.events is not None:
                self.events.write(**event)
            self._warn_of_no_update(done)
            rate = f" lr {event['lr']:.4g}" if "lr" in event else ""
            self.bar.advance(f"loss {event['loss']:.4g}{rate}")
            if self.events is not None and self._is_checkpoint(done):
                self.state.counters.wall_seconds = time.perf_counter() - self.began
                self.state.counters.log_digest = self.events.digest()
                checkpoint = self.folder / CHECKPOINT
                save_checkpoint(checkpoint, self.state, self.events.size(), self.run)

    def _is_checkpoint(self, done: int) -> bool:
        if self.stops and done == self.state.step:
            return True
        return done == self.config.steps or falls_on(done, self.config.checkpoint_every)

    def _is_validated(self, done: int) -> bool:
        """Whether a step is: where any are, the last one too, so that what comes out is."""
        every = self.config.evaluate_every
        return every > 0 and (done == self.config.steps or falls_on(done, every))

    def _validation(
        self, validate: Callable[[SyntheticSet], float | None], done: int
    ) -> dict[str, Any]:
        """What the log says of a validation."""
        accuracy = validate(self.finish(_current(self.syn, self.state)))
        self.state.counters.validation_accuracy = accuracy
        if accuracy is None:
            log.say(
                f"warning: the network that was trained on the set of step {done} "
                "diverged, so it has no validation accuracy"
            )
        seconds = round(self.state.counters.seconds, 2)
        return {"validation_accuracy": accuracy, "seconds": seconds}

    def _warn_of_no_update(self, done: int) -> None:
        if done == WARN_AFTER and self.state.counters.above_max_loss == done:
            log.say(
                f"warning: none of {done} updates was made, all losses were above "
                f"outer.max_loss {self.config.max_loss:g}; raise it"
            )


def falls_on(step: int, every: int) -> bool:
    """Whether something happens at a step that happens every so many; 0 is never."""
    return every > 0 and step % every == 0


def _with_last_iterate(
    final: SyntheticSet, syn: SyntheticSet, state: State, config: OuterConfig, finish: Finish
) -> SyntheticSet:
    """The set that is shipped; where it holds running averages, with the last iterate beside them.

    So also what follows from the iterate, such as labels, where it differs.
    """
    if not config.ema:
        return final
    tensors = {name: tensor.detach().clone() for name, tensor in state.tensors.items()}
    last = finish(syn.with_tensors(tensors)).tensors
    raw: dict[str, Tensor] = {}
    for name, tensor in last.items():
        if name in config.ema or not torch.equal(tensor, final.tensors[name]):
            raw[f"raw.{name}"] = tensor
    return final.with_tensors(raw)


def _current(syn: SyntheticSet, state: State) -> SyntheticSet:
    """The set as it would be shipped now."""
    current = {**state.tensors, **state.ema}
    return syn.with_tensors({name: tensor.detach().clone() for name, tensor in current.items()})


def _losses(
    syn: SyntheticSet,
    objective: Objective,
    config: OuterConfig,
    state: State,
    rng: Generator,
    shared: bool,
) -> Iterator[Tensor]:
    """Those of the objective, with the penalty of the codec where it has one of what is learned.

    The penalty is a loss of its own, on the first rank alone where ranks add up those of a draw.
    Where the images move after each loss it is part of the first, because in an update of its own
    most optimisers would not heed its weight.
    """
    losses = objective.losses(syn, state.objective, state.step, rng)
    if config.step_after == "each":
        for number, loss in enumerate(losses):
            penalty = _penalty(syn) if number == 0 else None
            yield loss if penalty is None else loss + penalty
        return
    yield from losses
    penalty = _penalty(syn)
    if penalty is not None and (dist.rank() == 0 or not shared):
        yield penalty


def _penalty(syn: SyntheticSet) -> Tensor | None:
    """That of the codec, where it has one of what is learned."""
    penalty = syn.codec.penalty(syn.tensors)
    return penalty if penalty is not None and penalty.requires_grad else None


def outer_step(
    syn: SyntheticSet,
    objective: Objective,
    config: OuterConfig,
    state: State,
    seed: int,
    shared: bool = False,
) -> Tensor:
    """One outer step on `state`, in place, without waiting for the device.

    Returns the loss, whether every update was made, COUNTS and, where it is learned, the rate.
    The loss of a draw is the sum of what the objective yields. With several draws or ranks, losses
    and gradients are averaged over them; ranks that share a draw add theirs, and where the images
    move after each loss all have the same.
    """
    learned: dict[str, Tensor] = {}
    for name, tensor in state.tensors.items():
        if name in config.optim:
            learned[name] = tensor.clone().requires_grad_()
    share = syn.with_tensors(state.tensors | learned)
    losses: list[Tensor] = []
    flags: list[Tensor] = []
    # once false it stays so: nothing changes any more, however late the host reads it
    running = state.guard[0] < MOST_SKIPPED
    draws, unite = _on_ranks(config, shared)
    for draw in draws:
        rng = generator(seed, "losses", state.step, draw)
        for loss in _losses(share, objective, config, state, rng, shared):
            backward(loss, config.draws)
            losses.append(loss.detach().double())
            if config.step_after == "each":
                flags.append(_update(config, state, learned, losses[-1], syn, running, unite))
                for name, leaf in learned.items():
                    leaf.data.copy_(state.tensors[name])
                    leaf.grad = None
    if not losses:  # there are fewer classes than ranks
        losses.append(torch.zeros((), dtype=torch.float64, device=syn.classes.device))
    total = sum(losses[1:], start=losses[0]) / config.draws
    if config.step_after == "all":
        flags.append(_update(config, state, learned, total, syn, running, unite))
    finite, small, held = torch.stack(flags).unbind(1)
    in_a_row, not_finite, above, lr_held = state.guard
    bad = ~finite.all()
    is_above = ~bad & ~small.all()
    counts = [(in_a_row + 1) * bad, not_finite + bad, above + is_above, lr_held + held.any()]
    state.guard = torch.where(running, torch.stack(counts), state.guard)
    state.step += 1
    applied = running & finite.all() & small.all()
    result = [total, applied, *state.guard]
    if "lr" in state.tensors:
        result.append(state.tensors["lr"])
    return torch.stack(result)


Unite = Callable[[Iterable[Tensor]], None]  # makes tensors the same on all ranks


def _on_ranks(config: OuterConfig, shared: bool) -> tuple[Sequence[int], Unite]:
    """(the draws of this rank, how its losses and gradients become those of all ranks)."""
    if not shared:
        return dist.my_share(range(config.draws * dist.num_ranks())), dist.mean
    if config.step_after == "each":
        return range(config.draws), dist.from_first
    return range(config.draws), dist.total


def _update(
    config: OuterConfig,
    state: State,
    learned: Mapping[str, Tensor],
    loss: Tensor,
    syn: SyntheticSet,
    running: Tensor,
    unite: Unite,
) -> Tensor:
    """The guard, then the optimisers.

    Returns (3,) whether all was finite, the loss not above max_loss, the rate held.
    `loss` becomes what it is over all ranks, by which they all decide. The host cannot
    branch on what it has not read, so the update is always computed, and taken where the guard
    allows it.
    """
    grads: dict[str, Tensor] = {}
    for name, leaf in learned.items():
        grads[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    unite([loss, *grads.values()])
    finite = torch.stack([part.isfinite().all() for part in (loss, *grads.values())]).all()
    small = loss <= config.max_loss
    applied = running & finite & small
    held = torch.zeros_like(finite)
    with torch.no_grad():
        together = joint_norm(grads, config.optim)
        for name, grad in grads.items():
            norm = together if config.optim[name].clip_together else None
            _apply(config, state, name, grad, applied, norm)
        if "lr" in grads:
            held = applied & (state.tensors["lr"].double() < SMALLEST_LR)
            state.tensors["lr"].masked_fill_(held, SMALLEST_LR)
        syn.codec.project(state.tensors, syn.preprocess)
        syn.targets.project(state.tensors)
        for name, decay in config.ema.items():
            average = state.ema[name]
            moved = average.lerp(state.tensors[name], 1 - decay)
            state.ema[name] = torch.where(applied, moved, average)
    return torch.stack([finite, small, held])


def _apply(
    config: OuterConfig,
    state: State,
    name: str,
    grad: Tensor,
    applied: Tensor,
    norm: Tensor | None,
) -> None:
    """One update of a stored tensor and of what its optimiser keeps, where it is `applied`.

    `norm` is that of all gradients that are clipped with this one.
    """
    optim = config.optim[name]
    old = state.tensors[name]
    kept = state.kept_of(name)
    new = updated(old, grad, kept, optim, optim.lr_at(state.step, config.steps), norm)
    state.tensors[name] = torch.where(applied, new.tensor, old)
    for kind, present in new.kept.items():
        past = kept.get(kind, torch.zeros_like(present))
        state.optimiser(kind)[name] = torch.where(applied, present, past)


def _read(pending: list[Tensor], config: OuterConfig, state: State) -> Iterator[dict[str, Any]]:
    """What is logged of the steps whose results are `pending`, in order.

    At each, `state.counters` is as after it. Waits for the device.

    Raises:
        UserError: at the step at which the guard stopped.
    """
    start = time.perf_counter()
    rows = torch.stack(pending).tolist() if pending else []
    pending.clear()
    state.counters.seconds += time.perf_counter() - start
    for step, (loss, applied, *rest) in enumerate(rows, state.step - len(rows) + 1):
        for name, count in zip(COUNTS, rest, strict=False):
            setattr(state.counters, name, int(count))
        if state.counters.not_finite_in_a_row >= MOST_SKIPPED:
            hint = _hint(state, config, step)
            raise UserError(
                f"The loss or its gradient was not finite for {MOST_SKIPPED} steps in a row, up "
                f"to step {step}; {hint}."
            )
        event: dict[str, Any] = {"step": step, "loss": loss, "applied": bool(applied)}
        if "lr" in state.tensors:
            event["lr"] = rest[-1]
        yield event


def warnings(counters: Counters, config: OuterConfig) -> list[str]:
    """What is to be said of updates that were not made, and of a rate that was held.

    Nothing where all went well.
    """
    bad, high = counters.not_finite, counters.above_max_loss
    lines = []
    if bad:
        lines.append(
            f"warning: {bad} of {config.steps} updates were skipped because the loss or its "
            "gradient was not finite; lower the learning rates"
        )
    if high:
        line = (
            f"{high} of {config.steps} updates were skipped because the loss was above "
            f"outer.max_loss {config.max_loss:g}"
        )
        # a gate that closes now and then does what it is meant to do
        if 2 * (bad + high) > config.steps:
            line = f"warning: {line}; raise it, or lower the learning rates"
        lines.append(line)
    if counters.lr_held:
        lines.append(
            f"warning: the learned learning rate was held at {SMALLEST_LR:g} "
            f"{counters.lr_held} times; lower outer.optim.lr.lr"
        )
    return lines


def summary(counters: Counters) -> dict[str, float | int | str | None]:
    """Cost and guard counts of a finished run, for meta.json; on how many ranks, where several."""
    ranks = {"ranks": counters.ranks} if counters.ranks > 1 else {}
    return {
        **ranks,
        "seconds": round(counters.seconds, 2),
        "wall_seconds": round(counters.wall_seconds, 2),
        "validation_accuracy": counters.validation_accuracy,
        "peak_memory_bytes": counters.peak_memory,
        "updates_skipped_not_finite": counters.not_finite,
        "updates_skipped_max_loss": counters.above_max_loss,
        "learned_lr_held": counters.lr_held,
        "log_digest": counters.log_digest,
    }
