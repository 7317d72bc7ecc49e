"""Memories of equal bytes compared in class-incremental learning."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddengine.data import Data
from ddengine.evaluation.intervals import NAME
from ddengine.evaluation.rates import adapted, candidates
from ddengine.recipe import EvalConfig, Recipe, resolved
from ddengine.system import log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.memo import Memo
from ddengine.system.runtime import Precision
from ddengine.uses.continual.config import JOINT, ContinualConfig, check, class_order
from ddengine.uses.continual.context import Context, Distill
from ddengine.uses.continual.networks import FOLDER
from ddengine.uses.continual.stages import go_through
from ddengine.uses.continual.summary import summary
from ddengine.uses.pieces import Pieces

WORK = "work"  # the folder beside `memo_path`
NETWORKS = Path(WORK, FOLDER)  # of those that go on, beside `memo_path`
# form of what is remembered of an interrupted run; what an older program left is computed again
MEMO = 2


def run(  # long: half of it says what it takes
    data: Data,
    recipe: Recipe,
    config: ContinualConfig,
    distill: Distill,
    *,
    seed: int,
    device: torch.device,
    precision: Precision = "fp32",
    memo_path: Path | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Compare memories of equal bytes in class-incremental learning.

    Networks are `recipe.model`, trained with hard labels as `recipe.evaluation` says: one for each
    stage, memory and repeat, all memories from equal seeds. The learning rate is chosen anew at
    each stage, from one grid for all memories, by other networks on the validation images of the
    classes seen so far; without a validation split, or with evaluation.rate learned, it is
    evaluation.lr. The row "joint" is trained anew on all real images seen so far, with at most
    `evaluation.full_steps` updates, which also bound the updates of a stage with strategy replay.

    Args:
        data: with its test split.
        recipe: of the distillation and of the evaluation; its ipc follows from the budget.
        config: the stages, the budget, the memories.
        distill: makes a set. It gets the data of a stage's classes (numbered anew, with the
            preprocessing of `data`, without test images), the recipe with the ipc that the budget
            allows, a seed, and a name for the piece.
        seed: decides the orders of the classes and every random draw.
        device: where the data lie.
        precision: in which networks are trained.
        memo_path: remembers finished trainings of an interrupted run; the caller removes it, and
            NETWORKS beside it, once the content is written.
        work: keeps the distilled pieces, which a later run with the same recipe, seed and order
            takes from there, and the networks that go on. None: beside `memo_path`.

    Returns:
        The content of continual.json; accuracies are fractions.

    Raises:
        UserError: what cannot be compared: too many stages, a budget below one image, recipes with
            soft labels or packed images.
    """
    begin = time.perf_counter()
    stages = check(data, recipe, config)
    orders = [class_order(data.num_classes, config, seed, r) for r in range(config.repeats)]
    protocol = adapted(recipe.evaluation, recipe.model)
    facts = [MEMO, to_dict(config), resolved(recipe), seed, precision]
    identity = digest([*facts, data.train.digest, list(data.class_names)])
    if work is None and memo_path is not None:
        work = memo_path.parent / WORK
    memo = Memo(memo_path, identity)
    rates = _rates(data, protocol)
    with log.progress("continual", _num_pieces(config, len(rates))) as bar:
        context = Context(
            data=data,
            recipe=recipe,
            config=config,
            protocol=protocol,
            distill=distill,
            seed=seed,
            device=device,
            precision=precision,
            pieces=Pieces(memo, bar.advance),
            work=work,
            identity=identity,
            rates=rates,
        )
        memories = _compared(context, orders)
    seconds = round(memo.seconds_before + time.perf_counter() - begin, 2)
    return _content(context, stages, orders, memories, seconds)


def _compared(context: Context, orders: list[list[list[int]]]) -> dict[str, Any]:
    """What each memory came to in all repeats, by its name."""
    memories = {}
    for name in (*context.config.memories, JOINT):
        repeats = [go_through(context, name, r, order) for r, order in enumerate(orders)]
        memories[name] = summary(context, name, repeats, orders)
    return memories


def _content(
    context: Context,
    stages: list[int],
    orders: list[list[list[int]]],
    memories: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The content of continual.json; `stages` are the numbers of classes that come."""
    data = context.data
    return {
        "config": to_dict(context.config),
        "protocol": to_dict(context.protocol),
        "recipe": context.recipe.name,
        "model": context.recipe.model,
        "classes": list(data.class_names),
        "interval": NAME,  # of every ci95
        "stages": [_named(order, data) for order in orders],  # of each repeat
        "orders": orders,
        "classes_seen": np.cumsum(stages).tolist(),
        "memories": memories,
        "raw_bytes": data.bytes,
        "seed": context.seed,
        "precision": context.precision,
        "seconds": seconds,
        "machine": runtime.machine(context.device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def _rates(data: Data, protocol: EvalConfig) -> tuple[float, ...]:
    """The learning rates that are tried for every memory; the only one where none is chosen."""
    if data.validation is None:
        log.say(f"no validation split: all networks are trained at rate {protocol.lr:g}")
    elif protocol.rate == "validation":
        return tuple(candidates(protocol, None))
    return (protocol.lr,)


def _num_pieces(config: ContinualConfig, num_rates: int) -> int:
    """How many pieces of work a comparison has: trainings, tried rates, and memories of a stage."""
    trainings = 1 + (num_rates if num_rates > 1 else 0)
    num_memories = len(config.memories)
    return config.repeats * config.stages * ((num_memories + 1) * trainings + num_memories)


def _named(order: list[list[int]], data: Data) -> list[list[str]]:
    """The classes of each stage by their names."""
    named = []
    for classes in order:
        named.append([data.class_names[c] for c in classes])
    return named
