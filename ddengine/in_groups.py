"""The outer loop for sets that do not fit into memory: some items to their last step, then others.

For objectives whose losses are sums over items that do not see each other
(`ObjectiveConfig.groups_apart`). Updates are made item by item, so the numbers are those of all
items together, with two exceptions, which are refused there or said: what looks at all items at
once (clipping by their norm, a largest loss), and a step that is skipped because something is not
finite, which is skipped for its group alone.

Each group has a folder with its checkpoint and its log, groups/0003, until the set is written.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddengine import contents, loop
from ddengine.loop import Counters, Finish, Kept
from ddengine.objective import Group, Objective
from ddengine.recipe import OuterConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import digests, dist, files, log

FOLDER = "groups"  # in the folder of a run
LOG = "metrics.jsonl"


def distill(
    syn: SyntheticSet,
    objective: Objective,
    groups: Sequence[Group],
    config: OuterConfig,
    folder: Path,
    *,
    seed: int,
    finish: Finish = lambda syn: syn,
    validate: Callable[[SyntheticSet], float | None] | None = None,
    picture: Callable[[SyntheticSet, int], None] | None = None,
    board: log.Board | None = None,
    began: float | None = None,
    run: str | None = None,
    shared: bool = False,
    kept: Kept | None = None,
) -> tuple[SyntheticSet, Counters]:
    """What `loop.distill` does, in the groups that the method asks for; without any in one.

    In several there is one validation and one picture, of the set in the end, and metrics.jsonl is
    written then; until then the board shows each group as a run of its own. Arguments and errors
    are those of `loop.distill`.
    """
    if not groups:
        return loop.distill(
            syn,
            objective,
            config,
            folder,
            seed=seed,
            finish=finish,
            validate=validate,
            picture=picture,
            board=board,
            began=began,
            run=run,
            shared=shared,
            kept=kept,
        )
    began = time.perf_counter() if began is None else began
    quiet = replace(config, evaluate_every=0, picture_every=0)
    made, counters, ended = _one_by_one(
        syn, groups, quiet, folder, board, began, seed, run, shared, kept
    )
    result = finish(made)
    if validate is not None and config.evaluate_every and dist.rank() == 0:
        counters.validation_accuracy = validate(result)
    if dist.rank() == 0:
        accuracy = counters.validation_accuracy
        counters.log_digest = _write_log(folder, len(groups), accuracy, board)
        if picture is not None:
            picture(result, config.steps)
    counters.wall_seconds += time.perf_counter() - ended
    return result, counters


def _one_by_one(
    syn: SyntheticSet,
    groups: Sequence[Group],
    config: OuterConfig,
    folder: Path,
    board: log.Board | None,
    began: float,
    seed: int,
    run: str | None,
    shared: bool,
    kept: Kept | None,
) -> tuple[SyntheticSet, Counters, float]:
    """(the set with the items of every group as they come out, what all cost, when the last ended).

    The time of a group, which its checkpoint keeps, begins where that of the one before ended, that
    of the first at `began` of time.perf_counter.
    """
    tensors = {name: tensor.clone() for name, tensor in syn.tensors.items()}
    counters = Counters()
    log.say(f"{len(syn.classes)} images are optimised in {len(groups)} groups, one after another")
    for number, group in enumerate(groups, 1):
        place = _folder_of(folder, number)
        files.make_folder(place)
        part = None if board is None else board.part(f"group_{number:04d}")
        made, cost = loop.distill(
            _part(syn, group.items),
            group.objective,
            config,
            place,
            seed=seed,
            board=part,
            began=began,
            run=None if run is None else f"{run} group {number} of {len(groups)}",
            shared=shared,
            kept=kept,
        )
        for name, tensor in made.tensors.items():
            tensors[name][group.items] = tensor
        _add(counters, cost)
        if part is not None:
            part.close()
        began = time.perf_counter()
        log.say(f"group {number} of {len(groups)} is optimised")
    return syn.with_tensors(tensors), counters, began


def _folder_of(folder: Path, number: int) -> Path:
    """Where a group, counted from 1, keeps its checkpoint and its log."""
    return folder / FOLDER / f"{number:04d}"


def _part(syn: SyntheticSet, items: Tensor) -> SyntheticSet:
    """The set of some stored items."""
    tensors = {name: tensor[items] for name, tensor in syn.tensors.items()}
    return replace(syn, tensors=tensors, classes=syn.classes[items])


def _add(total: Counters, of_group: Counters) -> None:
    """Add the cost and the counts of a group."""
    total.not_finite += of_group.not_finite
    total.above_max_loss += of_group.above_max_loss
    total.lr_held += of_group.lr_held
    total.seconds += of_group.seconds
    total.wall_seconds += of_group.wall_seconds
    total.ranks = of_group.ranks
    total.peak_memory = max(total.peak_memory, of_group.peak_memory)


def _write_log(folder: Path, num: int, accuracy: float | None, board: log.Board | None) -> str:
    """metrics.jsonl of the run, of those of its groups, whose losses are added; its digest.

    The board has what it says.
    """
    logs = []
    for number in range(1, num + 1):
        lines = contents.events(_folder_of(folder, number) / LOG)
        logs.append({event["step"]: event for event in lines})
    events = []
    for step in logs[0]:  # a log that was cut or changed, which was said, lacks some
        if all(step in other for other in logs):
            events.append(_together([one[step] for one in logs]))
    if events and accuracy is not None:
        events[-1]["validation_accuracy"] = accuracy
    text = "".join(files.to_json(event) + "\n" for event in events)
    files.write_text(folder / LOG, text)
    if board is not None:
        for event in events:
            board.event(event)
    return digests.of_bytes(text.encode())


def _together(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The event of a step, of those of its groups."""
    losses = []
    for event in events:
        loss = event.get("loss")
        losses.append(float("nan") if loss is None else loss)
    applied = all(event.get("applied") is True for event in events)
    return {"step": events[0]["step"], "loss": sum(losses), "applied": applied}
