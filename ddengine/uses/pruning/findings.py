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
    told = []
    plain = list(filter(_is_plain, _of_teacher(rows, teacher)))
    for size, at_size in _sizes(plain).items():
        if len({row["alpha"] for row in at_size}) < 2:
            continue  # no share is the best of one
        best = _best(at_size)
        told.append(
            {
                "size": size,
                "fraction": best["fraction"],
                "best": best["alpha"],
                "level": sorted(_level_with(best, at_size)),
            }
        )
    return told


def _level_with(best: Facts, rows: Sequence[Facts]) -> list[float]:
    """The shares of distillation of rows whose difference from the best one may be none."""
    level = []
    for row in rows:
        compared = paired(by_repeat(row), by_repeat(best))
        if row is best or _is_level(compared):
            level.append(row["alpha"])
    return level


def _is_plain(row: Facts) -> bool:
    """Whether nothing chose the images of a row."""
    return row["selection"] in (RANDOM, ALL)


def _selections(rows: Sequence[Facts], teacher: str) -> list[Json]:
    """At each size the best student of random images less the best of every other selection.

    The first with the shares of distillation that both have, so that both choose among as many.
    """
    told = []
    for size, at_size in _sizes(_of_teacher(rows, teacher)).items():
        by_selection: dict[str, list[Facts]] = {}
        for row in at_size:
            by_selection.setdefault(row["selection"], []).append(row)
        of_random = by_selection.get(RANDOM, [])
        for selection, chosen in by_selection.items():
            rivals = _of_alphas(of_random, chosen)
            if not rivals or selection in (RANDOM, ALL):
                continue
            compared = _against(size, selection, _best(rivals), _best(chosen))
            told.append(compared)
    return told


def _of_alphas(rows: Sequence[Facts], others: Sequence[Facts]) -> list[Facts]:
    """The rows with shares of distillation that others have too."""
    shared = {row["alpha"] for row in others}
    return [row for row in rows if row["alpha"] in shared]


def _against(size: str, selection: str, of_random: Facts, chosen: Facts) -> Json:
    compared = paired(by_repeat(of_random), by_repeat(chosen))
    return {
        "size": size,
        "fraction": chosen["fraction"],
        "selection": selection,
        "alpha": chosen["alpha"],
        "random_alpha": of_random["alpha"],
        **compared,
    }


def _teachers(rows: Sequence[Facts], teachers: Sequence[str]) -> list[Json]:
    """At each size the best student of every other teacher less the best of the first one."""
    told = []
    taught = list(filter(_is_taught, rows))
    for size, at_size in _sizes(taught).items():
        first = _with(teachers[0], at_size)
        for teacher in teachers[1:]:
            others = _with(teacher, at_size)
            if not first or not others:
                continue
            best, best_of_first = _best(others), _best(first)
            compared = paired(by_repeat(best), by_repeat(best_of_first))
            told.append(
                {"size": size, "fraction": best["fraction"], "teacher": teacher, **compared}
            )
    return told


def _is_taught(row: Facts) -> bool:
    """Whether a row is of random images, or of all, with distillation, and did not diverge."""
    return _is_plain(row) and row["loss"] == "kd" and row["accuracy_mean"] is not None


def _with(teacher: str, rows: Sequence[Facts]) -> list[Facts]:
    """The rows of a teacher."""
    return [row for row in rows if row["teacher"] == teacher]
