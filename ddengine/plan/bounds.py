"""What `distill` refuses before it begins: a run that would not fit into memory or on the disk.

Bounds first, which are cheap and generous; where a bound does not fit, one real step is tried.
"""

import math
import shutil
from pathlib import Path

import torch

from ddengine import loop
from ddengine.data import Data
from ddengine.learning.memory import PER_STEP, saved_bytes
from ddengine.learning.training import TEST_BATCH
from ddengine.models import build_model
from ddengine.objective import environment
from ddengine.pages import figures
from ddengine.plan.apart import FIRST_USE, apart, held, peak_memory
from ddengine.plan.calibrate import Run, counts, prepared
from ddengine.plan.jobs import Job, experts_of, started, workable
from ddengine.plan.trainings import Calls
from ddengine.recipe import Recipe
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import available_memory
from ddengine.types import Experts


def memory_bound(
    recipe: Recipe, syn: SyntheticSet, data: Data, device: torch.device, experts: Experts | None
) -> int:
    """Bytes that a distillation takes at most beyond what it holds before the first step.

    Far too many for most. What a step holds is what its objective says; a validation beside it
    trains and tests one network.
    """
    env = environment(recipe, data, device, experts)
    most = recipe.objective.cost(env, syn)
    if recipe.outer.evaluate_every:
        most = max(most, _validation_bound(recipe, len(syn), data, device))
    tensors = sum(t.numel() * t.element_size() for t in syn.tensors.values())
    decoded = 8 * len(syn) * math.prod(data.image_shape)
    return FIRST_USE + most + 16 * tensors + decoded


def _validation_bound(recipe: Recipe, num: int, data: Data, device: torch.device) -> int:
    """Bytes of training a network on `num` decoded examples, or of testing it."""
    network = build_model(recipe.model, data.image_shape, data.num_classes, generator(0))
    each = saved_bytes(network, data.image_shape, device)
    params = sum(p.numel() for p in network.parameters())
    training = PER_STEP * each * min(recipe.evaluation.batch, num) + 16 * params
    return int(max(training, each * TEST_BATCH))


def trial(began: float, job: Job) -> int:
    """Bytes that one outer step takes beyond what is held before it."""
    device, data, _ = started(began, job)
    recipe = workable(job.recipe)
    run = Run(job, recipe, data, device, experts_of(job, data, None), Path())
    # networks that choose images need not have learnt anything for this
    syn, objective = prepared(run, recipe, Calls())
    state = loop.first_state(syn, objective, recipe.outer, job.seed)
    before = held(device)
    loop.outer_step(syn, objective, recipe.outer, state, job.seed).tolist()
    return max(0, peak_memory(device) - before)


def disk_bytes(recipe: Recipe, syn: SyntheticSet) -> int:
    """Bytes that a distillation writes at most, two checkpoints while one is replaced.

    Without what its pictures take beyond their pixels.
    """
    tensors = sum(t.numel() * t.element_size() for t in syn.tensors.values())
    pixels = math.prod(syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:])
    images = min(len(syn.class_names), figures.SHOWN_CLASSES) * figures.SHOWN_PER_CLASS
    pictures = counts(recipe)["files"] * images * max(pixels, 64 * 64) // 2
    checkpoints = (4 + len(recipe.outer.ema)) * 2 * tensors
    shipped = len(syn) * (pixels + 500)
    return checkpoints + shipped + pictures + 120 * recipe.outer.steps + 10**6


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` lies or will lie."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def check(job: Job, syn: SyntheticSet, data: Data, folder: Path, device: torch.device) -> None:
    """Raise UserError where a distillation into `folder` would run out of memory or disk.

    With the numbers. Cheap where a generous bound fits; else one step is tried in a process that
    cannot take more than there is. Of several ranks the first checks.
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
    memory = available_memory(device)
    bound = memory_bound(job.recipe, syn, data, device, experts_of(job, data, None))
    if bound > memory:
        _try(job, bound, memory)


def _try(job: Job, bound: int, memory: int) -> None:
    """Raise UserError unless one step fits into `memory`."""
    log.say(
        f"a step may need up to {log.size(bound)} of memory, and {log.size(memory)} are "
        "available: trying one in a process of its own"
    )
    try:
        needed = apart(trial, job, limit=memory)
    except MemoryError:
        needs = f"more than {log.size(memory)}"
    else:
        if needed <= memory:
            return
        needs = f"about {log.size(needed)}"
    recipe = job.recipe
    raise UserError(
        f"A step of {recipe.name} needs {needs} of memory "
        f"beyond what the images take, and {log.size(memory)} "
        f"are available; {recipe.objective.advice(recipe.ipc)} or start with --force."
    )
