"""What the rows say about the published claims, size by size, with paired differences.

Rows are compared within a repeat, in which students have one seed and one teacher. The claims are
those of Ben-Baruch et al. (ICML 2025): with distillation random images do as well as chosen ones;
the best share of distillation rises as less is kept; a larger teacher is worse where little is
kept.
"""

from collections.abc import Sequence

from ddengine.evaluation.comparison import paired
from ddengine.types import Facts, Json
from ddengine.uses.pruning.config import ALL, RANDOM

PLAIN = ("ce", "kd")  # the losses that are cross-entropy, distillation, or between them


def findings(rows: Sequence[Facts], teachers: Sequence[str]) -> Json:
    """{"alphas", "selections", "teachers"}: a list of comparisons for each claim."""
    return {
        "alphas": _alphas(rows, teachers[0]),
        "selections": _selections(rows, teachers[0]),
        "teachers": _teachers(rows, teachers),
    }


def by_repeat(row: Facts) -> dict[int | None, float]:
    """The accuracies of a row by repeat, without those of networks that diverged."""
    accuracies = {}
    for repeat, accuracy in enumerate(row["accuracies"]):
        if accuracy is not None:
            accuracies[repeat] = accuracy
    return accuracies


def _of_teacher(rows: Sequence[Facts], teacher: str) -> list[Facts]:
    """The rows of PLAIN losses with this teacher or with none, but for those that diverged."""
    chosen = []
    for row in rows:
        with_it = row["teacher"] is None or row["teacher"] == teacher
        if row["loss"] in PLAIN and with_it and row["accuracy_mean"] is not None:
            chosen.append(row)
    return chosen


def _sizes(rows: Sequence[Facts]) -> dict[str, list[Facts]]:
    """Rows by the name of their size, the smallest fraction first."""
    by_size: dict[str, list[Facts]] = {}
    for row in sorted(rows, key=lambda row: row["fraction"]):
        by_size.setdefault(row["size"], []).append(row)
    return by_size


def _best(rows: Sequence[Facts]) -> Facts:
    """The row of the highest mean accuracy, of equal ones the first."""
    return max(rows, key=lambda row: row["accuracy_mean"])


def _is_level(compared: Facts) -> bool:
    """Whether a paired difference may be none: its interval holds 0, or there is no interval."""
    ci95 = compared["difference_ci95"]
    return ci95 is None or ci95[0] <= 0 <= ci95[1]


def _alphas(rows: Sequence[Facts], teacher: str) -> list[Json]:
    """Of random images, and of all, the best share of distillation at each size.

    `level` are the shares whose difference from the best one may be none.
    """
    plain = [row for row in _of_teacher(rows, teacher) if row["selection"] in (RANDOM, ALL)]
    told = []
    for size, at_size in _sizes(plain).items():
        best = _best(at_size)
        level = []
        for row in at_size:
            if row is best or _is_level(paired(by_repeat(row), by_repeat(best))):
                level.append(row["alpha"])
        told.append(
            {
                "size": size,
                "fraction": best["fraction"],
                "best": best["alpha"],
                "level": sorted(level),
                "accuracies": {f"{row['alpha']:g}": row["accuracy_mean"] for row in at_size},
            }
        )
    return told


def _selections(rows: Sequence[Facts], teacher: str) -> list[Json]:
    """At each size the best student of random images less the best of every other selection.

    The first with the shares of distillation that both have, so that both choose among as many.
    """
    told = []
    for size, at_size in _sizes(_of_teacher(rows, teacher)).items():
        of_random = [row for row in at_size if row["selection"] == RANDOM]
        others: dict[str, list[Facts]] = {}
        for row in at_size:
            if row["selection"] not in (RANDOM, ALL):
                others.setdefault(row["selection"], []).append(row)
        for selection, own in others.items():
            shared = {row["alpha"] for row in own}
            rivals = [row for row in of_random if row["alpha"] in shared]
            if rivals:
                told.append(_against(size, selection, _best(rivals), _best(own)))
    return told


def _against(size: str, selection: str, of_random: Facts, own: Facts) -> Json:
    compared = paired(by_repeat(of_random), by_repeat(own))
    return {
        "size": size,
        "fraction": own["fraction"],
        "selection": selection,
        "alpha": own["alpha"],
        "random_alpha": of_random["alpha"],
        **compared,
    }


def _teachers(rows: Sequence[Facts], teachers: Sequence[str]) -> list[Json]:
    """At each size the best student of every other teacher less the best of the first one."""
    told = []
    plain = []
    for row in rows:
        if row["selection"] in (RANDOM, ALL) and row["loss"] == "kd" and row["accuracy_mean"]:
            plain.append(row)
    for size, at_size in _sizes(plain).items():
        first = [row for row in at_size if row["teacher"] == teachers[0]]
        for teacher in teachers[1:]:
            own = [row for row in at_size if row["teacher"] == teacher]
            if first and own:
                best, reference = _best(own), _best(first)
                compared = paired(by_repeat(best), by_repeat(reference))
                told.append(
                    {"size": size, "fraction": best["fraction"], "teacher": teacher, **compared}
                )
    return told
