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
    rounds = []
    for number in range(context.config.rounds + 1):
        rounds.append(_statistics([repeat["accuracies"][number] for repeat in repeats]))
    bought = len(repeats[0]["index"])
    right = [repeat["right"] / bought for repeat in repeats]
    return {
        "rule": rule,
        "answers": answers.name,
        "wrong": answers.wrong,
        "bought": bought,
        "errors": context.config.guarded(answers.wrong),  # that rad guards against, of a round
        "wrong_bought": [1 - share for share in right],  # share of the answers, by repeat
        "rounds": rounds,
        "repeats": [_of_repeat(repeat) for repeat in repeats],
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
