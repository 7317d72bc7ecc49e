"""What labels.json says of a rule, and how far rad is from the others."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddengine.evaluation.comparison import paired
from ddengine.evaluation.intervals import counted, interval
from ddengine.types import Facts, Json
from ddengine.uses.labels.answers import Answers
from ddengine.uses.labels.context import Context


def row_of(context: Context, rule: str, answers: Answers, repeats: Sequence[Facts]) -> Json:
    """A rule with what answered: accuracies after each round, and what was bought.

    Accuracies are fractions, of the points known from the start first; those of networks that
    diverged are None and do not count.
    """
    bought = len(repeats[0]["index"])
    by_repeat = []
    wrong = []
    for repeat in repeats:
        by_repeat.append(repeat["accuracies"])
        wrong.append(1 - repeat["right"] / bought)
    rounds = list(map(_statistics, zip(*by_repeat, strict=True)))
    return {
        "rule": rule,
        "answers": answers.name,
        "wrong": answers.wrong,
        "bought": bought,
        "errors": context.config.guarded(answers.wrong),  # that rad guards against, of a round
        "wrong_bought": wrong,  # share of the answers, by repeat
        "rounds": rounds,
        "repeats": list(map(_of_repeat, repeats)),
    }


def _statistics(accuracies: Sequence[float | None]) -> Json:
    finite = counted(accuracies)
    mean, std, ci95 = interval(finite)
    return {
        "mean": mean,
        "std": std,
        "ci95": ci95 and list(ci95),
        "values": list(accuracies),
        "diverged": len(accuracies) - len(finite),
    }


def _of_repeat(repeat: Facts) -> Json:
    return {
        "index": repeat["index"],
        "answers": repeat["answers"],
        "lr": repeat["lr"],
        "seconds": round(repeat["seconds"], 2),
    }


def differences(rows: Sequence[Facts]) -> list[Json]:
    """Rad less every other rule after the last round, paired by repeat, for each that answers."""
    told = []
    for row in rows:
        if row["rule"] != "rad":
            continue
        for other in rows:
            if other["answers"] == row["answers"] and other["rule"] != "rad":
                compared: Mapping[str, Any] = paired(_last(row), _last(other))
                told.append({"answers": row["answers"], "rule": other["rule"], **compared})
    return told


def _last(row: Facts) -> dict[int | None, float]:
    """The accuracies after the last round by repeat, without those of networks that diverged."""
    accuracies = {}
    for repeat, accuracy in enumerate(row["rounds"][-1]["values"]):
        if accuracy is not None:
            accuracies[repeat] = accuracy
    return accuracies
