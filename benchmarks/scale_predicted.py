"""What whole cells would cost on GPUs that are not here: operations, over what is assumed of a GPU.

Nothing of this was run. Operations are counted: those of an image through the network
(`forward_flops`), and how often each image of a step passes through it, which `scale.py` counts on
small steps of the same kind. What a GPU makes of them is assumed (`Gpu`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddengine.evaluation.ledger import forward_flops
from ddengine.recipe import Recipe
from synth.catalogue import find

GPUS = (1, 8, 64)
# passes of an image through a network, as parts of a forward pass, which are not counted by a run
TRAINING_PASSES = 3.0  # forward, and backward to the images and to the parameters
IMAGE_PASSES = 2.0  # forward, and backward to the images alone: SRe2L's teacher is not trained
BYTES_OF_VALUE = 4
DAY = 24 * 3600  # seconds


@dataclass(frozen=True)
class Gpu:
    """What is assumed of GPUs and of what lies between them."""

    name: str = "A100 (assumed)"
    flops: float = 19.5e12  # a second at its peak in float32, without tensor cores (data sheet)
    efficiency: float = 0.3  # of the peak that convolutions of this size reach
    overhead: float = 0.02  # seconds of an outer step that no operation explains
    per_node: int = 8
    within_node: float = 3e11  # bytes a second between GPUs of a machine
    between_nodes: float = 2.5e10  # bytes a second from machine to machine
    latency: float = 5e-5  # seconds of each exchange, times the logarithm of the number of GPUs

    def seconds(self, flops: float) -> float:
        """How long so many operations take on one of them."""
        return flops / (self.flops * self.efficiency)

    def exchange(self, size: float, gpus: int) -> float:
        """Seconds in which so many of them add up `size` bytes (a ring)."""
        if gpus == 1:
            return 0.0
        speed = self.within_node if gpus <= self.per_node else self.between_nodes
        return 2 * (gpus - 1) / gpus * size / speed + self.latency * math.log2(gpus)


@dataclass(frozen=True)
class Cell:
    """A recipe on a dataset, of which only sizes matter."""

    recipe: str
    shape: tuple[int, int, int]
    classes: int
    images: int  # of the training split


CELLS: Mapping[str, Cell] = {
    "CIFAR-100, IPC 50": Cell("mtt/cifar100_ipc50", (3, 32, 32), 100, 50_000),
    "Tiny ImageNet, IPC 50": Cell("datm/tiny_imagenet_ipc50", (3, 64, 64), 200, 100_000),
    "ImageNet-1K, IPC 10": Cell("sre2l/imagenet_ipc10", (3, 224, 224), 1000, 1_281_167),
}


@dataclass(frozen=True)
class Work:
    """Operations of the parts of a cell, and into how many pieces each can be shared out."""

    expert: float  # of one
    experts: int
    step: float  # of one outer step of one draw
    steps: int
    draws: int
    training: float  # of one network of the evaluation, on the distilled set alone
    tried: int  # networks that choose the rate
    networks: int  # that are reported
    set_bytes: float

    @property
    def total(self) -> float:
        """All operations."""
        distill = self.steps * self.draws * self.step
        return self.experts * self.expert + distill + (self.tried + self.networks) * self.training


def work(cell: Cell, passes: Mapping[str, float]) -> Work:
    """The work of a cell; `passes` are counted: those of a "step", and of experts by "sgd", "gsam".

    A step of trajectory matching sees a batch in each of its inner steps, one of SRe2L every image
    of the set once. Experts that are published weights cost nothing.
    """
    recipe = find(cell.recipe)
    forward = forward_flops(recipe.model, cell.shape, cell.classes)
    size = recipe.ipc * cell.classes
    protocol = recipe.evaluation
    each = TRAINING_PASSES + (protocol.labels == "dynamic")  # which the teacher makes in a forward
    tried = len(protocol.lr_grid) * protocol.search_networks
    return Work(
        expert=_expert(recipe, cell, passes) * forward,
        experts=recipe.buffer.num_experts if recipe.buffer else 0,
        step=_step(recipe, size, passes) * forward,
        steps=recipe.outer.steps,
        draws=recipe.outer.draws,
        training=each * forward * size * protocol.epochs,
        tried=tried if protocol.rate == "validation" else 0,
        networks=protocol.num_networks,
        set_bytes=BYTES_OF_VALUE * size * math.prod(cell.shape),
    )


def _expert(recipe: Recipe, cell: Cell, passes: Mapping[str, float]) -> float:
    """Images that pass through the network in the training of an expert, as forward passes."""
    buffer = recipe.buffer
    if buffer is None or not buffer.step.trains:
        return 0.0
    kind = "gsam" if type(buffer.step).__name__ == "Gsam" else "sgd"
    return passes[kind] * buffer.epochs * cell.images


def _step(recipe: Recipe, size: int, passes: Mapping[str, float]) -> float:
    """The same of an outer step of one draw."""
    objective: Any = recipe.objective
    if type(objective).__name__ == "TrajectoryMatching":
        return passes["step"] * objective.inner_steps * (objective.batch or size)
    return IMAGE_PASSES * size


def days(of: Work, gpu: Gpu, gpus: int) -> dict[str, float]:
    """Days of buffer, distill and evaluate on so many GPUs.

    Each has experts and networks of its own, and draws of a step where there are several. Of one
    draw more GPUs make the step no shorter, so the others wait.
    """
    expert = gpu.seconds(of.expert) * math.ceil(of.experts / gpus)
    together = min(gpus, of.draws)
    step = gpu.seconds(of.step) * math.ceil(of.draws / together)
    step += gpu.overhead + gpu.exchange(of.set_bytes, together)
    rounds = math.ceil(of.tried / gpus) + math.ceil(of.networks / gpus)
    return {
        "buffer": expert / DAY,
        "distill": of.steps * step / DAY,
        "evaluate": rounds * gpu.seconds(of.training) / DAY,
    }
