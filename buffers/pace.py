"""How the processor is shared out among the experts that stores lack."""

import math
from collections.abc import Sequence

import torch

from buffers import beside, together
from buffers.beside import Task
from buffers.filling import Making
from buffers.train import seconds_of_batches
from ddengine.evaluation.pace import HELD, PROCESS_BYTES, TOLD, WORTH
from ddengine.experts import AtOnce, OwnTraining
from ddengine.learning.memory import saved_bytes
from ddengine.system import dist, runtime
from ddengine.system.rng import generator
from ddengine.system.workers import Hands, num_for


def threads_for(makings: Sequence[Making]) -> int | None:
    """On which each expert of new stores is trained, of the threads that this process is allowed.

    Several experts at a time share them: on several threads a network is trained hardly faster than
    on one while anything else runs. It follows from numbers alone, and not from what pays, so that
    the numbers of short trainings are the same wherever they are made. None: they are no matter.
    """
    allowed = torch.get_num_threads()
    trains = all(making.config.step.trains for making in makings)
    alone = any(isinstance(making.config.step, OwnTraining) for making in makings)
    if alone or not trains or makings[0].data.train.device.type != "cpu":
        return None
    at_a_time = min(allowed, sum(len(making.unfinished) for making in makings))
    if at_a_time < 2 or dist.num_ranks() > 1 or not beside.can_go(makings):
        return allowed
    return allowed // max(1, min(at_a_time, _in_memory(makings)))


def hands_for(makings: Sequence[Making], tasks: Sequence[Task], of_new: int | None = None) -> Hands:
    """The processes that train experts, one at a time each; one: this one alone.

    Stores of before do not say on how many threads their experts are trained, and get all. Those of
    stores that are not there yet are trained on `of_new`.
    """
    if len(tasks) < 2 or dist.num_ranks() > 1 or not beside.can_go(makings):
        return Hands()
    threads = [_threads_of(making, of_new) for making in makings]
    told = [of_expert for number, _ in tasks if (of_expert := threads[number]) is not None]
    if len(told) < len(tasks):
        return Hands()
    cores = torch.get_num_threads() // max(told)
    if min(len(tasks), cores) < 2 or not _is_worth_it(makings, tasks, threads):
        return Hands()
    return Hands(num_for(len(tasks), cores, _in_memory(makings)), cores)


def at_once(makings: Sequence[Making]) -> AtOnce:
    """How the experts that stores lack would be trained by this process, which opens none."""
    tasks = []
    for number, making in enumerate(makings):
        tasks += [(number, expert) for expert in making.unfinished]
    if not tasks:
        return AtOnce()
    of_new = threads_for(makings)
    first, _ = tasks[0]
    if len({number for number, _ in tasks}) == 1:  # of several stores: one expert after another
        as_one = together.at_once(makings[first])
        if as_one.experts > 1:
            return as_one
    hands = hands_for(makings, tasks, of_new)
    cores = hands.cores if hands.take_turns else None
    return AtOnce(hands.num, _threads_of(makings[first], of_new), cores)


def _threads_of(making: Making, of_new: int | None) -> int | None:
    """On which each expert is trained, as its store says, or is to say once it is there."""
    return making.threads if making.is_there else of_new


def _is_worth_it(
    makings: Sequence[Making], tasks: Sequence[Task], threads: Sequence[int | None]
) -> bool:
    """Whether experts take so long, one after another, that processes are worth their start."""
    seconds = 0.0
    for number, making in enumerate(makings):
        experts = sum(of == number for of, _ in tasks)
        if experts and seconds < WORTH:
            seconds += experts * _seconds_of(making, threads[number])
    return seconds >= WORTH


def _seconds_of(making: Making, threads: int | None) -> float:
    """What an expert takes on so many threads, roughly; it is not trained."""
    config, train = making.config, making.data.train
    network = making.new_model(generator(config.seed, "shapes"))
    with runtime.on_threads(threads or torch.get_num_threads()):
        of_batch = seconds_of_batches([network], making.data, config, making.precision)
    return of_batch * math.ceil(len(train) / config.batch) * config.epochs


def _in_memory(makings: Sequence[Making]) -> int:
    """Processes that have the memory to train an expert each at once."""
    data = makings[0].data
    images = len(data.train) + (0 if data.validation is None else len(data.validation))
    of_images = images * data.train.pixels[0].numel()
    if of_images > TOLD:  # each process would hold a copy of what is mapped into this one
        return 1
    most = 0
    for making in makings:
        config = making.config
        network = making.new_model(generator(config.seed, "shapes"))
        saved = saved_bytes(network, data.image_shape, data.train.device)
        at_once = config.step.views * min(config.batch, len(data.train))
        kept = sum(p.nbytes for p in network.parameters()) * len(config.kept_epochs())
        most = max(most, int(HELD * saved * at_once) + kept)
    each = PROCESS_BYTES + of_images + most
    return runtime.available_memory(data.train.device) // each
