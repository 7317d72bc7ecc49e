"""What `distill` refuses before it begins: a run that would not fit into memory or on the disk.

Bounds first, which are cheap and generous; where a bound does not fit, one real step is tried.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ddengine import loop, turns
from ddengine.data import Data
from ddengine.learning.memory import PER_STEP, saved_bytes
from ddengine.learning.training import TEST_BATCH
from ddengine.models import build_model
from ddengine.objective import environments
from ddengine.pages import figures
from ddengine.plan.apart import FIRST_USE, apart, held, peak_memory
from ddengine.plan.calibrate import Run, counts, prepared
from ddengine.plan.jobs import Job, experts_of, started, workable
from ddengine.plan.trainings import Calls
from ddengine.recipe import Recipe
from ddengine.sets.synthetic import SyntheticSet, total_bytes
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
    envs = environments(recipe, data, device, experts)
    most = max(recipe.objective.cost(env, syn) for env in envs)
    if recipe.outer.evaluate_every:
        validation = _validation_bound(recipe, len(syn), data, device)
        most = max(most, validation)
    tensors = total_bytes(syn.tensors)
    decoded = 8 * len(syn) * math.prod(data.image_shape)
    return FIRST_USE + most + 16 * tensors + decoded


def _validation_bound(recipe: Recipe, num: int, data: Data, device: torch.device) -> int:
    """Bytes of training a network on `num` decoded examples, or of testing it."""
    network = build_model(recipe.model, data.image_shape, data.num_classes, generator(0))
    of_image = saved_bytes(network, data.image_shape, device)
    params = sum(p.numel() for p in network.parameters())
    batch = min(recipe.evaluation.batch, num)
    training = PER_STEP * of_image * batch + 16 * params
    testing = of_image * TEST_BATCH
    return int(max(training, testing))


def trial(began: float, job: Job) -> int:
    """Bytes that one outer step takes beyond what is held before it.

    Of networks that take turns that of the largest.
    """
    device, data, _ = started(began, job)
    recipe = workable(job.recipe)
    quick, _ = recipe.objective.quick_start()
    recipe = replace(recipe, objective=quick)
    experts = experts_of(job, data, None)
    run = Run(job, recipe, data, device, experts, Path())
    # networks that choose images need not have learnt anything for this
    syn, objective = prepared(run, recipe, Calls())
    before = held(device)
    for one in turns.alone(objective):
        state = loop.first_state(syn, one, recipe.outer, job.seed)
        losses = loop.outer_step(syn, one, recipe.outer, state, job.seed)
        losses.tolist()
    return max(0, peak_memory(device) - before)


def disk_bytes(recipe: Recipe, syn: SyntheticSet) -> int:
    """Bytes that a distillation writes at most, two checkpoints while one is replaced.

    Without what its pictures take beyond their pixels.
    """
    tensors = total_bytes(syn.tensors)
    first = torch.zeros(1, dtype=torch.long)
    image = syn.pixels(first)
    pixels = math.prod(image.shape[1:])
    classes = min(len(syn.class_names), figures.SHOWN_CLASSES)
    shown = classes * figures.SHOWN_PER_CLASS
    files = counts(recipe)["files"]
    pictures = files * shown * max(pixels, 64 * 64) // 2
    averages = len(recipe.outer.ema)
    checkpoints = (4 + averages) * 2 * tensors
    shipped = len(syn) * (pixels + 500)
    log_bytes = 120 * recipe.outer.steps
    return checkpoints + shipped + pictures + log_bytes + 10**6


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` lies or will lie."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check(job: Job, syn: SyntheticSet, data: Data, folder: Path, device: torch.device) -> None:
    """Raise UserError where a distillation into `folder` would run out of memory or disk.

    With the numbers. Cheap where a generous bound fits; else one step is tried in a process that
    cannot take more than there is. Of several ranks the first checks.
    """
    if dist.rank() != 0:
        return
    wanted = disk_bytes(job.recipe, syn)
    free = free_disk(folder)
    if wanted > free:
        raise UserError(
            f"The run needs about {log.size(wanted)} of disk and {log.size(free)} are free "
            f"where {folder} lies; "
            "free space, name another folder with --out, or start with --force."
        )
    memory = available_memory(device)
    experts = experts_of(job, data, None)
    bound = memory_bound(job.recipe, syn, data, device, experts)
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
