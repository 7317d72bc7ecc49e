"""The outer loop, the same for every method: losses, backward, guard, optimiser step, checkpoint."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine.objective import Objective
from ddengine.recipe import OptimConfig, OuterConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

SMALLEST_LR = 1e-6  # a learned learning rate is held at or above this; SGD has no meaning below
WARN_AFTER = 20  # steps without any update, all above max_loss
MOST_SKIPPED = 10  # non-finite updates in a row after which none is made any more and the run stops
# steps between readings of what they gave: each reading waits for the device
READ_EVERY = {"cpu": 1, "cuda": 10}
ADAM_EPS = 1e-8
# those of Counters that the guard keeps on the device
COUNTS = ("not_finite_in_a_row", "not_finite", "above_max_loss", "lr_held")


@dataclass
class Counters:
    """What the guard had seen, and the cost, up to the step last read; part of the checkpoint."""

    not_finite_in_a_row: int = 0
    not_finite: int = 0
    above_max_loss: int = 0
    lr_held: int = 0
    seconds: float = 0.0  # in outer steps; validation and pictures are not counted
    peak_memory: int = 0  # bytes, of the process (CUDA: allocated on the device)


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
    guard: Tensor = field(init=False)  # COUNTS up to the step last made, int64, on the device

    def __post_init__(self) -> None:
        device = next(iter(self.tensors.values())).device
        self.guard = torch.tensor([getattr(self.counters, name) for name in COUNTS], device=device)

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Its tensors by kind."""
        return {
            "tensors": self.tensors,
            "momentum": self.momentum,
            "square": self.square,
            "count": self.count,
            "ema": self.ema,
            "objective": self.objective,
        }


def save_checkpoint(path: Path, state: State, log_bytes: int) -> None:
    """Write the state as one file."""
    tensors = {
        f"{group}/{name}": t for group, named in state.groups().items() for name, t in named.items()
    }
    meta = {"step": state.step, "counters": vars(state.counters), "log_bytes": log_bytes}
    files.write_tensors(path, tensors, {"state": files.to_json(meta)})


def load_checkpoint(path: Path, device: torch.device) -> tuple[State, int]:
    """The state of a checkpoint, and the length the log had then.

    Raises UserError for a damaged file.
    """
    tensors, metadata = files.read_tensors(path)
    groups: dict[str, dict[str, Tensor]] = {
        group: {} for group in ("tensors", "momentum", "square", "count", "ema", "objective")
    }
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor.to(device)
    if "state" not in metadata:
        raise UserError(f"{path} is not a checkpoint of this program; begin anew with --restart.")
    meta = json.loads(metadata["state"])
    return State(**groups, step=meta["step"], counters=Counters(**meta["counters"])), meta[
        "log_bytes"
    ]


def sgd_step(
    tensor: Tensor, grad: Tensor, momentum: Tensor, config: OptimConfig, lr: float
) -> tuple[Tensor, Tensor]:
    """One SGD update as torch.optim.SGD does it: the new tensor and the new momentum, which starts
    at zero.
    """
    grad = grad.add(tensor, alpha=config.weight_decay) if config.weight_decay else grad
    momentum = momentum.mul(config.momentum).add_(grad)
    return tensor.sub(momentum, alpha=lr), momentum


def adam_step(
    tensor: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    count: Tensor,
    config: OptimConfig,
    lr: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Adam update as torch.optim.Adam does it: the new tensor, the new means, which start at
    zero, and how many updates there were.
    """
    grad = grad.add(tensor, alpha=config.weight_decay) if config.weight_decay else grad
    count = count + 1
    mean = mean.lerp(grad, 1 - config.momentum)
    square = square.mul(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
    step = (lr / (1 - config.momentum**count)).to(tensor)
    return (
        tensor - step * mean / ((square / (1 - config.beta2**count)).sqrt() + ADAM_EPS).to(tensor),
        mean,
        square,
        count,
    )


def check(syn: SyntheticSet, objective: Objective, config: OuterConfig) -> None:
    """Raise UserError for what `distill` cannot do: a name that is not stored, several draws or
    ranks for an objective that keeps state.
    """
    for what, names in (("outer.optim", config.optim), ("outer.ema", config.ema)):
        for name in names:
            if name not in syn.tensors:
                raise UserError(
                    f"{what} names {name!r}, and the stored tensors are "
                    f"{', '.join(sorted(syn.tensors))}; "
                    "correct the name, or take outer from a recipe of this objective (--take "
                    "outer=RECIPE)."
                )
    keeps = bool(objective.init(generator(0)))
    if dist.num_ranks() > 1 and (keeps or config.step_after == "each"):
        raise UserError(
            "This method keeps state between steps or steps after each loss, and so runs in one "
            "process; start it without torchrun."
        )
    if keeps and config.draws > 1:
        raise UserError(
            "This method keeps state between steps, which each draw would advance; set "
            f"outer.draws, now {config.draws}, to 1."
        )


def _hint(state: State, config: OuterConfig, step: int) -> str:
    rate = f" (the learned rate is {float(state.tensors['lr']):g})" if "lr" in state.tensors else ""
    if rate and step == state.counters.not_finite:  # no update was ever made
        return "lower --objective.lr" + rate
    if state.objective:  # a network that is trained between steps may have diverged
        rate = ", or the learning rate of objective.networks" + rate
    images = config.optim.get("images")
    return (
        f"lower --outer.optim.images.lr (now {images.lr:g})" + rate
        if images
        else "lower the learning rates in outer.optim" + rate
    )


def distill(
    syn: SyntheticSet,
    objective: Objective,
    config: OuterConfig,
    folder: Path,
    *,
    seed: int,
    finish: Callable[[SyntheticSet], SyntheticSet] = lambda syn: syn,
    validate: Callable[[SyntheticSet], float | None] | None = None,
    picture: Callable[[SyntheticSet, int], None] | None = None,
    board: log.Board | None = None,
) -> tuple[SyntheticSet, Counters]:
    """Minimise the objective over the tensors that `config.optim` names, and return the set that is
    to be shipped.

    Writes `folder`/checkpoint/state.safetensors and `folder`/metrics.jsonl; continues from the
    checkpoint when there is one. A resumed run is bit-identical to an uninterrupted one on the same
    device: every random draw follows from (seed, step, draw). With running averages, the returned
    set holds them, and the last iterate as `raw.NAME`. `finish` makes what is validated and shipped
    of the tensors reached, for example by labelling them. The numbers of metrics.jsonl go to
    `board` too.

    Raises:
        UserError: a name in `config.optim` that is not stored; several draws or ranks for an
            objective that keeps state; a loss or gradient that stayed non-finite.
    """
    config = replace(config, optim=syn.by_tensor(config.optim), ema=syn.by_tensor(config.ema))
    check(syn, objective, config)
    device = syn.classes.device
    checkpoint = folder / "checkpoint" / "state.safetensors"
    if checkpoint.exists():
        state, log_bytes = load_checkpoint(checkpoint, device)
        log.say(f"continuing at step {state.step} of {config.steps}")
    else:
        tensors = {k: v.detach().clone() for k, v in syn.tensors.items()}
        ema = {k: tensors[k].clone() for k in config.ema}
        state, log_bytes = State(tensors, {}, ema, objective.init(generator(seed, "objective"))), 0
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    first = dist.rank() == 0
    if not first:
        picture = validate = None
    events = log.EventLog(folder / "metrics.jsonl", log_bytes, board) if first else None
    if picture is not None and state.step == 0:
        picture(syn, 0)
    pending: list[Tensor] = []
    # the same on every rank, with and without validation: ranks that stop, stop together
    stops = [
        n
        for n in (
            READ_EVERY[device.type],
            config.checkpoint_every,
            config.evaluate_every,
            config.picture_every,
        )
        if n
    ]
    with log.progress("distill", config.steps, state.step) as bar:
        # a step with validation, picture or checkpoint is always the last of those read
        def report() -> None:
            for event in _read(pending, config, state):
                done = int(event["step"])
                if (
                    validate is not None
                    and config.evaluate_every
                    and done % config.evaluate_every == 0
                ):
                    accuracy = validate(finish(_current(syn, state)))
                    event |= {
                        "validation_accuracy": accuracy,
                        "seconds": round(state.counters.seconds, 2),
                    }
                    if accuracy is None:
                        log.say(
                            f"warning: the network that was trained on the set of step {done} "
                            "diverged, so it has no validation accuracy"
                        )
                if (
                    picture is not None
                    and config.picture_every
                    and done % config.picture_every == 0
                ):
                    picture(_current(syn, state), done)
                if events is not None:
                    events.write(**event)
                if done == WARN_AFTER and state.counters.above_max_loss == done:
                    log.say(
                        f"warning: none of {done} updates was made, all losses were above "
                        f"outer.max_loss {config.max_loss:g}; raise it"
                    )
                bar.advance(
                    f"loss {event['loss']:.4g}"
                    + (f" lr {event['lr']:.4g}" if "lr" in event else "")
                )
                if events is not None and (
                    done % config.checkpoint_every == 0 or done == config.steps
                ):
                    save_checkpoint(checkpoint, state, events.size())

        while state.step < config.steps:
            start = time.perf_counter()
            try:
                pending.append(outer_step(syn, objective, config, state, seed))
            except BaseException:
                # the log tells of every step that was made, and a stop of the guard explains what
                # came after it
                report()
                raise
            state.counters.seconds += time.perf_counter() - start
            state.counters.peak_memory = max(
                state.counters.peak_memory, runtime.peak_memory(device)
            )
            if state.step == config.steps or any(state.step % n == 0 for n in stops):
                report()
    if events is not None:
        events.close()
    final = finish(_current(syn, state))
    if picture is not None:
        picture(final, config.steps)
    for line in skipped(state.counters, config):  # last, where they are seen
        log.say(line)
    if state.counters.lr_held:
        log.say(
            f"warning: the learned learning rate was held at {SMALLEST_LR:g} "
            f"{state.counters.lr_held} times; lower outer.optim.lr.lr"
        )
    if not config.ema:
        return final, state.counters
    last = finish(
        syn.with_tensors({k: v.detach().clone() for k, v in state.tensors.items()})
    ).tensors
    return final.with_tensors(
        {
            f"raw.{k}": v
            for k, v in last.items()
            if k in config.ema or not torch.equal(v, final.tensors[k])
        }
    ), state.counters


def _current(syn: SyntheticSet, state: State) -> SyntheticSet:
    """The set as it would be shipped now."""
    return syn.with_tensors(
        {k: v.detach().clone() for k, v in {**state.tensors, **state.ema}.items()}
    )


def outer_step(
    syn: SyntheticSet, objective: Objective, config: OuterConfig, state: State, seed: int
) -> Tensor:
    """One outer step on `state`, in place, without waiting for the device; returns the loss,
    whether every update was made, COUNTS and the rate.

    The loss of a draw is the sum of what the objective yields. With several draws or ranks, losses
    and gradients are averaged over them.
    """
    leaves = {
        k: v.clone().requires_grad_() if k in config.optim else v for k, v in state.tensors.items()
    }
    learned = {k: v for k, v in leaves.items() if k in config.optim}
    share = syn.with_tensors(leaves)
    losses: list[Tensor] = []
    flags: list[Tensor] = []
    # once false it stays so: nothing changes any more, however late the host reads it
    running = state.guard[0] < MOST_SKIPPED
    for draw in range(dist.rank(), config.draws * dist.num_ranks(), dist.num_ranks()):
        for loss in objective.losses(
            share, state.objective, state.step, generator(seed, "losses", state.step, draw)
        ):
            (loss / config.draws).backward()
            losses.append(loss.detach().double())
            if config.step_after == "each":
                flags.append(_update(config, state, learned, losses[-1], syn, running))
                for name, leaf in learned.items():
                    leaf.data.copy_(state.tensors[name])
                    leaf.grad = None
    total = sum(losses[1:], start=losses[0]) / config.draws
    if config.step_after == "all":
        flags.append(_update(config, state, learned, total, syn, running))
    finite, small, held = torch.stack(flags).unbind(1)
    in_a_row, not_finite, above, lr_held = state.guard
    bad = ~finite.all()
    counts = torch.stack(
        [
            (in_a_row + 1) * bad,
            not_finite + bad,
            above + (~bad & ~small.all()),
            lr_held + held.any(),
        ]
    )
    state.guard = torch.where(running, counts, state.guard)
    state.step += 1
    rate = [state.tensors["lr"]] if "lr" in state.tensors else []
    return torch.stack([total, running & finite.all() & small.all(), *state.guard, *rate])


def _update(
    config: OuterConfig,
    state: State,
    learned: Mapping[str, Tensor],
    loss: Tensor,
    syn: SyntheticSet,
    running: Tensor,
) -> Tensor:
    """The guard, then the optimisers; returns (3,) whether all was finite, the loss not above
    max_loss, the rate held.

    `loss` becomes its mean over the ranks, by which they all decide. The host cannot branch on what
    it has not read, so the update is always computed, and taken where the guard allows it.
    """
    grads = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in learned.items()}
    dist.mean([loss, *grads.values()])
    finite = torch.stack([loss.isfinite(), *(g.isfinite().all() for g in grads.values())]).all()
    small = loss <= config.max_loss
    applied, held = running & finite & small, torch.zeros_like(finite)
    with torch.no_grad():
        for name, grad in grads.items():
            optim, old, lr = (
                config.optim[name],
                state.tensors[name],
                config.optim[name].lr_at(state.step, config.steps),
            )
            mean, square = (
                named.get(name, torch.zeros_like(old)) for named in (state.momentum, state.square)
            )
            if optim.kind == "adam":
                count = state.count.get(
                    name, torch.zeros((), device=old.device, dtype=torch.float64)
                )
                new, *moved = adam_step(old, grad, mean, square, count, optim, lr)
                kept = [(state.momentum, mean), (state.square, square), (state.count, count)]
            else:
                new, *moved = sgd_step(old, grad, mean, optim, lr)
                kept = [(state.momentum, mean)]
            state.tensors[name] = torch.where(applied, new, old)
            for (named, past), present in zip(kept, moved, strict=True):
                named[name] = torch.where(applied, present, past)
        if "lr" in grads:
            held = applied & (state.tensors["lr"].double() < SMALLEST_LR)
            state.tensors["lr"].masked_fill_(held, SMALLEST_LR)
        syn.codec.project(state.tensors, syn.preprocess)
        for name, decay in config.ema.items():
            state.ema[name] = torch.where(
                applied, state.ema[name].lerp(state.tensors[name], 1 - decay), state.ema[name]
            )
    return torch.stack([finite, small, held])


def _read(pending: list[Tensor], config: OuterConfig, state: State) -> Iterator[dict[str, Any]]:
    """What is logged of the steps whose results are `pending`, in order, with `state.counters` as
    after each; waits for the device.

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


def skipped(counters: Counters, config: OuterConfig) -> list[str]:
    """What is to be said of updates that were not made; nothing where all were."""
    bad, high = counters.not_finite, counters.above_max_loss
    lines = []
    if bad:
        lines.append(
            f"warning: {bad} of {config.steps} updates were skipped because the loss or its "
            "gradient was not finite; lower the learning rates"
        )
    if high:
        # a gate that closes now and then does what it is meant to do
        much = 2 * (bad + high) > config.steps
        lines.append(
            ("warning: " if much else "")
            + f"{high} of {config.steps} updates were skipped because the loss was above outer.max_loss {config.max_loss:g}"
            + ("; raise it, or lower the learning rates" if much else "")
        )
    return lines


def summary(counters: Counters) -> dict[str, float | int]:
    """Cost and guard counts of a finished run, for meta.json."""
    return {
        "seconds": round(counters.seconds, 2),
        "peak_memory_bytes": counters.peak_memory,
        "updates_skipped_not_finite": counters.not_finite,
        "updates_skipped_max_loss": counters.above_max_loss,
        "learned_lr_held": counters.lr_held,
    }
