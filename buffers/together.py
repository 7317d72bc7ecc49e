"""How many experts of a store are trained as one computation, where that pays.

A device that waits for its host has time for several networks. How many pay depends on network,
batch and device, so it is measured when a store is begun. It decides how numbers are rounded: the
store says it, and whoever goes on obeys.
"""

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from buffers.filling import Making
from buffers.train import seconds_of_batches
from ddengine.evaluation.pace import HELD
from ddengine.experts import AtOnce, OwnTraining
from ddengine.learning.memory import KEPT_SHARE, saved_bytes
from ddengine.models.dropout import is_dropout
from ddengine.system import dist, log, runtime
from ddengine.system.rng import generator

WORTH = 0.05  # part of the time that more experts together have to save
UNTIMED = 2  # steps before those that are timed, in which a device prepares
COPIES = 5  # of its parameters that a network holds: stacked, gradients, momentum and in between
SNAPSHOTS = 3  # times that snapshots lie in the host's memory while they are written

Timer = Callable[[Making, int], float]  # seconds of a step of so many experts together


def chosen(making: Making) -> int:
    """How many experts of a store are trained together: as it says, and of a new one what pays.

    On a CPU it is one, because there processes train them.
    """
    if making.is_there:
        return making.together
    if making.data.train.device.type == "cpu":
        return 1
    return fastest(measured(making), making.config.num_experts, dist.num_ranks())


def at_once(making: Making) -> AtOnce:
    """How the experts that a store lacks would be trained together; the store is not opened.

    It takes as long as the choice does.
    """
    num = making.together
    if making.is_there and num > 1:
        seconds = {size: seconds_together(making, size) for size in (1, num)}
    elif making.is_there or making.data.train.device.type == "cpu":
        return AtOnce()
    else:
        seconds = measured(making)
        num = fastest(seconds, making.config.num_experts, dist.num_ranks())
        if num > 1:  # once more, so that the peak of memory is that of as many
            runtime.forget_peak(making.data.train.device)
            seconds[num] = seconds_together(making, num)
    if num == 1:
        return AtOnce()
    groups = len({expert // num for expert in making.unfinished})
    return AtOnce(num, as_one=groups * seconds[num] / seconds[1])


def fastest(seconds: Mapping[int, float], experts: int, ranks: int = 1) -> int:
    """With how many together so many experts are done first; of about equals with the fewest.

    Args:
        seconds: of a step, by how many experts are trained together.
        experts: that are wanted; the last ones are trained with others that are not.
        ranks: which share groups of experts.
    """

    def in_all(num: int) -> float:
        rounds = math.ceil(math.ceil(experts / num) / ranks)
        return rounds * seconds[num]

    best = min(seconds)
    for num in sorted(seconds):
        if in_all(num) < (1 - WORTH) * in_all(best):
            best = num
    return best


def measured(making: Making, timer: Timer | None = None) -> dict[int, float]:
    """Seconds of a step of 1, 2, 4, ... and all experts of a store together, on any device.

    All are those that a rank trains, or as many as memory holds. Where they have to be trained one
    by one nothing is timed, and one takes 1.
    """
    timer = timer or seconds_together
    most = _most(making)
    if most == 1:
        return {1: 1.0}
    seconds: dict[int, float] = {}
    for num in [*(2**power for power in range(most.bit_length())), most]:
        if num in seconds:  # `most` is one of the others
            continue
        try:
            seconds[num] = timer(making, num)
        except RuntimeError as error:  # memory is short, or a library has no way for several
            if not seconds:
                raise
            said = str(error).strip().partition("\n")[0]
            log.say(f"{num} experts together could not be tried: {said}")
            break
    return seconds


def seconds_together(making: Making, num: int) -> float:
    """Seconds that a training step of so many experts together takes; none is trained."""
    config, data = making.config, making.data
    network = _network(making)
    networks = [network, *(copy.deepcopy(network) for _ in range(num - 1))]
    return seconds_of_batches(networks, data, config, making.precision, untimed=UNTIMED)


def _most(making: Making) -> int:
    """How many experts of a store could be trained together, at least 1."""
    config, step = making.config, making.config.step
    experts = math.ceil(config.num_experts / dist.num_ranks())
    # of networks and steps of the user nobody knows whether they can
    if experts < 2 or isinstance(step, OwnTraining) or not making.is_named:
        return 1
    if not step.trains or not step.is_for_several:
        return 1
    network = _network(making)
    if any(map(is_dropout, network.modules())):  # masks of several would be of one stream
        return 1
    return max(1, min(experts, _in_memory(making, network)))


def _in_memory(making: Making, network: nn.Module) -> int:
    """How many experts a quarter of the memory holds, of the device and of its host."""
    config, train = making.config, making.data.train
    parameters = sum(p.nbytes for p in network.parameters())
    saved = saved_bytes(network, making.data.image_shape, train.device)
    of_step = HELD * saved * min(config.batch, len(train)) + COPIES * parameters
    of_snapshots = SNAPSHOTS * parameters * len(config.kept_epochs())
    on_device = KEPT_SHARE * dist.share_of_memory(train.device) / of_step
    on_host = KEPT_SHARE * dist.share_of_memory(torch.device("cpu")) / of_snapshots
    return int(min(on_device, on_host))


def _network(making: Making) -> nn.Module:
    """A network of the store, on the device of the images."""
    network = making.new_model(generator(making.config.seed, "shapes"))
    return network.to(making.data.train.device)
