"""Training one part, interrupted and continued to the bit.

Every random number of a step follows from the seed, the part and the number of the step, so a
checkpoint holds the weights, what the optimiser keeps, the running average and the losses.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

SECONDS = 20.0  # between checkpoints; when they are written changes no number
WARM = 10  # updates after which a running average forgets its start, in the usual warm-up


@dataclass
class Stage:
    """The training of a part."""

    name: str
    modules: Mapping[str, nn.Module]  # what is trained
    optimiser: torch.optim.Optimizer
    steps: int
    # the loss of an update by its number, whose gradients it leaves in the parameters
    loss: Callable[[int], Tensor]
    rate: str  # the field that says the learning rate
    clip: float | None = None  # largest norm of the gradient
    average: float | None = None  # decay of the running average that the modules have in the end
    # what `loss` keeps between updates
    memory: dict[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is learned, by name."""
        parameters = {}
        for name, module in self.modules.items():
            for inner, parameter in module.named_parameters():
                parameters[f"{name}.{inner}"] = parameter
        return parameters


@dataclass
class _Progress:
    """How far a stage is."""

    losses: Tensor  # (steps,) of the updates made
    averages: dict[str, Tensor]
    done: int = 0
    finished: bool = False  # the averages are in place


def run(stage: Stage, folder: Path) -> float:
    """Train a part, or go on; its modules are trained then. Returns the mean loss at the end.

    That is the mean over the last tenth of updates. `folder` holds the checkpoint. Raises UserError
    for a loss that is not finite.
    """
    path = folder / f"{stage.name}.safetensors"
    progress = _restored(stage, path)
    saved = time.monotonic()
    with log.progress(stage.name, stage.steps, progress.done) as bar:
        while progress.done < stage.steps:
            loss = _update(stage, progress)
            bar.advance(f"loss {loss:.4g}")
            if time.monotonic() - saved > SECONDS:
                _save(stage, progress, path)
                saved = time.monotonic()
    if not progress.finished:
        _take_averages(stage, progress)
        _save(stage, progress, path)
    return float(progress.losses[-max(1, stage.steps // 10) :].mean())


def _update(stage: Stage, progress: _Progress) -> float:
    """One update, and what is kept of it; returns its loss."""
    stage.optimiser.zero_grad()
    number = progress.done
    loss = stage.loss(number)
    value = float(loss)
    if not torch.isfinite(loss):
        raise UserError(
            f"The loss of the {stage.name} was not finite in update {number + 1}; lower "
            f"{stage.rate}."
        )
    parameters = stage.parameters()
    if stage.clip is not None:
        nn.utils.clip_grad_norm_(parameters.values(), stage.clip)
    stage.optimiser.step()
    if stage.average is not None:
        decay = min(stage.average, (1 + number) / (WARM + number))
        for name, parameter in parameters.items():
            progress.averages[name].lerp_(parameter.detach(), 1 - decay)
    progress.losses[number] = value
    progress.done += 1
    return value


def _take_averages(stage: Stage, progress: _Progress) -> None:
    """Put the running averages in place of the weights."""
    parameters = stage.parameters()
    for name, average in progress.averages.items():
        parameters[name].data.copy_(average)
    progress.finished = True


def _save(stage: Stage, progress: _Progress, path: Path) -> None:
    """Write the checkpoint."""
    tensors = {"losses": progress.losses}
    for name, parameter in stage.parameters().items():
        tensors[f"weights/{name}"] = parameter
    for name, average in progress.averages.items():
        tensors[f"average/{name}"] = average
    for name, tensor in stage.memory.items():
        tensors[f"memory/{name}"] = tensor
    for number, state in stage.optimiser.state_dict()["state"].items():
        for name, tensor in state.items():
            tensors[f"optimiser/{number}/{name}"] = tensor
    metadata = {"done": str(progress.done), "finished": str(int(progress.finished))}
    files.write_tensors(path, tensors, metadata)


def _restored(stage: Stage, path: Path) -> _Progress:
    """The stage as its checkpoint has it, or as it starts."""
    parameters = stage.parameters()
    averages = {}
    if stage.average is not None:
        averages = {name: p.detach().clone() for name, p in parameters.items()}
    progress = _Progress(torch.zeros(stage.steps), averages)
    if not path.is_file():
        return progress
    try:
        _restore(stage, progress, path)
    except UserError:
        raise
    except (KeyError, ValueError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        raise files.damaged(path, f"it is not of these networks: {said}") from None
    return progress


def _restore(stage: Stage, progress: _Progress, path: Path) -> None:
    """Put back what a checkpoint holds.

    Raises KeyError, ValueError and RuntimeError where that is not of the stage.
    """
    parameters, averages = stage.parameters(), progress.averages
    tensors, metadata = files.read_tensors(path)
    progress.losses.copy_(tensors["losses"])
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weights/{name}"])
    for name, average in averages.items():
        average.copy_(tensors[f"average/{name}"])
    for name, tensor in stage.memory.items():
        tensor.copy_(tensors[f"memory/{name}"])
    groups = stage.optimiser.state_dict()["param_groups"]
    kept = {"state": _kept_by_optimiser(tensors), "param_groups": groups}
    stage.optimiser.load_state_dict(kept)
    progress.done = int(metadata["done"])
    progress.finished = metadata["finished"] == "1"


def _kept_by_optimiser(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What the optimiser of a checkpoint keeps of each parameter, by its number."""
    kept: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimiser":
            number, _, what = rest.partition("/")
            of_parameter = kept.setdefault(int(number), {})
            of_parameter[what] = tensor
    return kept


class Batches:
    """The images of each update: random orders of all, one after another."""

    def __init__(self, num: int, batch: int, seed: int, name: str):
        self._num, self._batch = num, batch
        self._stream = (seed, name, "order")
        self.per_epoch = -(-num // batch)
        self._epoch = -1
        self._parts: tuple[Tensor, ...] = ()

    def index(self, number: int) -> Tensor:
        """The indices (B,) of batch `number`, counted over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(self._num, generator=generator(*self._stream, epoch))
            self._parts = order.split(self._batch)
            self._epoch = epoch
        return self._parts[place]
