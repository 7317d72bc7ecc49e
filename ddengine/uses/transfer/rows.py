"""Rows of transfer.json: what networks that start so reached on a dataset, beside new ones."""

from collections.abc import Sequence

from ddengine.evaluation.comparison import paired
from ddengine.evaluation.intervals import counted, interval
from ddengine.evaluation.rates import adapted
from ddengine.evaluation.rows import by_class
from ddengine.types import Json
from ddengine.uses.transfer.context import Context
from ddengine.uses.transfer.downstream import (
    Question,
    Seen,
    choose,
    draw_of,
    finals,
    result_of,
    updates_of,
)

CHOSEN = {"finetune": "lr", "probe": "decay"}  # what is chosen for a row


def row(context: Context, asked: Question, seen: Seen) -> Json:
    """A row. Networks that diverged are counted, and left out of all means."""
    value, seconds = choose(context, asked, seen)
    results = []
    for piece in finals(context, asked, value):
        results.append(result_of(context, piece, seen))
        seconds += results[-1]["seconds"]
    data = asked.data
    run = {}
    for name in ("accuracy", "right"):
        run[name] = [result[name] for result in results]
    accuracies = run["accuracies"] = run.pop("accuracy")
    finite = counted(accuracies)
    mean, std, ci95 = interval(finite)
    tested = list(map(len, data.test.members))
    return {
        "data": data.name,
        "shots": asked.size,
        "images": len(data.chosen(asked.size, context.seed, 0)),
        "way": asked.way,
        "model": asked.model,
        "set": asked.start.name,
        "bytes": asked.start.bytes,
        "accuracy_mean": mean,
        "accuracy_std": std,
        "ci95": ci95 and list(ci95),
        "n": len(finite),
        "diverged": len(accuracies) - len(finite),
        **by_class(run, tested, data.train.class_names),
        CHOSEN[asked.way]: value,
        "updates": updates_of(context, asked),
        "optimiser": _optimiser(context, asked),
        "seconds": round(seconds, 2),
        "accuracies": _networks(context, accuracies),
    }


def _optimiser(context: Context, asked: Question) -> str:
    """What trains a network; the classifier of a probe has its own."""
    if asked.way != "finetune":
        return "lbfgs"
    return adapted(context.config.finetuning, asked.model).optimiser


def _networks(context: Context, accuracies: Sequence[float | None]) -> list[Json]:
    """Of each network its seed, its few-shot draw, and its accuracy."""
    networks = []
    for seed, accuracy in zip(context.seeds, accuracies, strict=True):
        networks.append({"seed": seed, "draw": draw_of(context, seed), "accuracy": accuracy})
    return networks


def compared(rows: Sequence[Json]) -> list[Json]:
    """The rows with their difference to new networks, paired by seed: {"difference", ...}."""
    new = {}
    for row in rows:
        if row["set"] == "none":
            new[_beside(row)] = _by_seed(row)
    told = []
    for row in rows:
        reference = new.get(_beside(row))
        if row["set"] == "none" or reference is None:
            told.append(row)
        else:
            told.append({**row, **paired(_by_seed(row), reference)})
    return told


def _beside(row: Json) -> tuple[object, ...]:
    """What rows have in common that stand beside each other."""
    return row["data"], row["shots"], row["way"], row["model"]


def _by_seed(row: Json) -> dict[int | None, float]:
    """The accuracies of the networks of a row that did not diverge."""
    known: dict[int | None, float] = {}
    for network in row["accuracies"]:
        if network["accuracy"] is not None:
            known[network["seed"]] = network["accuracy"]
    return known
