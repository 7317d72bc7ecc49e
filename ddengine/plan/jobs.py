"""What the calibration of a command is told, and what it works with."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddengine import prepare
from ddengine.data import Data
from ddengine.experts import AtOnce, OwnTraining
from ddengine.learning.flat import unflatten_into
from ddengine.models import build_model
from ddengine.plan.apart import wait
from ddengine.recipe import EvalConfig, Recipe
from ddengine.system import files, runtime
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Experts

MOST_STAND_INS = 3  # experts that label in a calibration; their time is scaled to all


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
    # training and validation images on a device; with test=True those of the test split too, and
    # with stored= seen through a preprocessing of before
    load: Callable[..., Data]
    # the experts of the recipe; None: they are not all there
    open_store: Callable[[Data], Experts | None] | None = None
    train_expert: Callable[..., Any] | None = None  # buffers.train.train_expert
    at_once: Callable[[Data], AtOnce] | None = None  # None: one expert after another
    # the protocol by which the evaluate command looks at a distilled folder; None: the recipe's
    protocol_of: Callable[[Path], EvalConfig] | None = None


def started(began: float, job: Job) -> tuple[torch.device, Data, float]:
    """(device, images, seconds since the process was started)."""
    device = runtime.setup(job.device, job.precision)
    data = job.load(device)
    wait(device)
    return device, data, job.parsing + time.time() - began


class StandIns:
    """Experts of the right shapes where the true ones are not there yet.

    A short training is drawn out over all epochs.
    """

    def __init__(self, recipe: Recipe, folder: Path, data: Data):
        """`folder` holds what the calibration of experts wrote."""
        buffer = recipe.buffer
        assert buffer is not None
        models = prepare.buffer_models(recipe)
        each = buffer.num_experts
        if not recipe.teachers:
            each = min(MOST_STAND_INS, each)
        self.epochs = buffer.kept_epochs()
        self._data = data
        self._step = buffer.step
        self._models: list[str] = []
        self._saved: dict[str, dict[str, Tensor]] = {}
        for number, model in enumerate(models):
            self._models += [model] * each
            self._saved[model], _ = files.read_tensors(folder / f"{number}.safetensors")
        self.num_experts = len(self._models)
        self.num_params = len(self._saved[models[0]]["start"])

    def snapshots(self, expert: int, epochs: Sequence[float]) -> Tensor:
        """Parameters (len(epochs), P) on the way from the start to the end."""
        saved = self._saved[self._models[expert]]
        start = saved["start"]
        end = saved["end"]
        last = max(1, self.epochs[-1])
        return torch.stack([start.lerp(end, epoch / last) for epoch in epochs])

    def load(self, expert: int, epoch: int) -> nn.Module:
        """The network of a snapshot, in evaluation mode."""
        model = self._models[expert]
        if isinstance(self._step, OwnTraining):
            network = self._step.new_model(self._data, generator(0))
        else:
            data = self._data
            network = build_model(model, data.image_shape, data.num_classes, generator(0))
        (theta,) = self.snapshots(expert, [epoch])
        buffers = self._saved[model].get("buffers")
        unflatten_into(network, theta, buffers)
        return network.eval()


def experts_of(job: Job, data: Data, stand_ins: Path | None) -> Experts | None:
    """The experts that a distillation reads: those of the store, or stand-ins from a folder."""
    if not prepare.reads_experts(job.recipe):
        return None
    if stand_ins is not None:
        return StandIns(job.recipe, stand_ins, data)
    assert job.open_store is not None
    return job.open_store(data)


def workable(recipe: Recipe) -> Recipe:
    """The recipe with which stand-ins can do, who are right about few images."""
    if recipe.init.kind == "correct":
        recipe = replace(recipe, init=replace(recipe.init, kind="real"))
    if recipe.targets.experts == "correct":
        recipe = replace(recipe, targets=replace(recipe.targets, experts="all"))
    return recipe
