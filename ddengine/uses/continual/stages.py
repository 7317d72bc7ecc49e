"""One repeat with one memory, stage after stage."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ddengine.sets.synthetic import SyntheticSet
from ddengine.uses.continual.config import JOINT
from ddengine.uses.continual.context import Context, Stage
from ddengine.uses.continual.memories import joined, piece
from ddengine.uses.continual.networks import (
    Lesson,
    choose_lr,
    joint_lesson,
    load_network,
    memory_lesson,
    replay_lesson,
    save_network,
    tested,
)

Right = dict[str, float]  # correct test images of each class, by its name


@dataclass(frozen=True)
class Repeat:
    """What one repeat with one memory came to."""

    right: list[Right | None]  # after each stage; None where its network diverged
    rates: list[float]  # learning rate of each stage
    seconds: float
    size: int  # bytes of the memory in the end; 0 of JOINT


def go_through(context: Context, memory: str, repeat: int, order: list[list[int]]) -> Repeat:
    """Go through the stages of a repeat, whose classes come in `order`, with one memory."""
    replay = context.config.strategy == "replay" and memory != JOINT
    so_far: SyntheticSet | None = None
    network: nn.Module | None = None
    right: list[Right | None] = []
    rates: list[float] = []
    seconds, size = 0.0, 0
    for stage in _stages(memory, repeat, order):
        before = so_far
        if memory != JOINT:
            new, took = piece(context, stage)
            so_far = joined(new, stage, before, context.data)
            seconds, size = seconds + took, so_far.nbytes
        if replay:
            lesson = replay_lesson(context, stage, before, network)
        elif so_far is None:
            lesson = joint_lesson(context, stage)
        else:
            lesson = memory_lesson(so_far)
        lr, took = choose_lr(context, stage, lesson)
        result, trained = _trained(context, stage, lesson, lr, keep=replay)
        if replay and stage.number + 1 < len(order):
            network = trained
            if network is None:
                network = _trained_before(context, stage, lesson, lr)
        right.append(result["right"])
        rates.append(lr)
        seconds += took + result["seconds"]
    return Repeat(right, rates, seconds, size)


def _stages(memory: str, repeat: int, order: list[list[int]]) -> list[Stage]:
    stages = []
    seen: list[int] = []
    for number, classes in enumerate(order):
        seen = [*seen, *classes]
        stages.append(Stage(memory, repeat, number, classes, seen))
    return stages


def _trained(
    context: Context, stage: Stage, lesson: Lesson, lr: float, *, keep: bool
) -> tuple[dict[str, Any], nn.Module | None]:
    """(what is remembered of the network of a stage, the network where it was trained just now)."""
    made: list[nn.Module] = []

    def compute() -> dict[str, Any]:
        network, right = tested(context, stage, lesson, lr)
        made.append(network)
        if keep:
            save_network(context, stage, network)
        return {"right": right}

    result = context.pieces.remember(f"final/{stage.key}", stage.label, compute)
    return result, made[0] if made else None


def _trained_before(context: Context, stage: Stage, lesson: Lesson, lr: float) -> nn.Module:
    """The network of a stage that was remembered: out of the work folder, else trained again."""
    network = load_network(context, stage)
    if network is None:
        network, _ = tested(context, stage, lesson, lr)
        save_network(context, stage, network)
    return network
