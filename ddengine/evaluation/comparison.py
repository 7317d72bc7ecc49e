"""Settings compared: of each the mean over distillations, what it spreads, and its difference.

The mean, its interval and the two spreads are those of `scores.variance_split`. The difference of
two settings is paired by the seed of the distillation: of each seed that both have, the mean
accuracy over networks of one less that of the other, and Student's t of these. p-values of all
differences of a comparison are corrected together (Holm 1979).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddengine.evaluation import scores, settings
from ddengine.evaluation.cautions import QUICK
from ddengine.evaluation.intervals import counted, interval
from ddengine.evaluation.settings import Evaluated
from ddengine.system.errors import UserError
from ddengine.types import Facts, Json, Row

CONFIDENCE = 0.95
EQUAL = 1e-12  # differences that are no further apart are equal up to rounding
ESTIMATOR = (
    "spread between distillations and between networks on one set: square roots of variance "
    "components, by the mean squares of random effects"
)
PAIRED = "differences are paired by the seed of the distillation, with Student's t"
ALONE = (
    "of a setting with one distillation the interval is of its networks alone, and there is no "
    "p-value: distill it with more seeds"
)
OTHER_EXPERTS = (
    "distillations of one setting follow different experts, so the spread between distillations is "
    "that of experts too"
)
Means = Mapping[int | None, float]  # the mean accuracy of each distillation, by its seed


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row for each setting and network, and what to know of them."""

    rows: list[Json]
    fields: list[str]  # in which settings differ; a column each
    said: list[str]  # in which they differ too, as the name of the recipe says
    short: dict[str, str]  # the fields by shorter names
    to: int | None  # the number of the setting that all others are compared with
    notes: list[str]


@dataclass(frozen=True)
class OnNetwork:
    """What the distillations of a setting say of a network."""

    runs: list[Evaluated] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # as many

    @property
    def means(self) -> Means:
        """The mean accuracy over networks of each distillation, by its seed."""
        means = {}
        for run, row in zip(self.runs, self.rows, strict=True):
            means[run.seed] = row["accuracy_mean"]
        return means


@dataclass(frozen=True)
class Distillations:
    """The runs of a setting, one for each seed."""

    values: Json
    runs: list[Evaluated] = field(default_factory=list)

    def has(self, seed: int | None) -> bool:
        """Whether there is a run of that seed."""
        return any(run.seed == seed for run in self.runs)

    def on(self, model: str) -> OnNetwork:
        """What is said of a network; runs on which all networks diverged say nothing."""
        told = OnNetwork()
        for run in self.runs:
            row = run.row(model)
            if row is not None and row["accuracy_mean"] is not None and row.get("accuracies"):
                told.runs.append(run)
                told.rows.append(row)
        return told


def compare(
    runs: Sequence[Evaluated],
    *,
    to: Evaluated | int | None = None,
    across: bool = False,
    always: Sequence[str] = (),
) -> Comparison:
    """Compare runs that may be compared (`settings.groups`), at least one.

    Args:
        runs: with their evaluations.
        to: a run, or the number of a setting from 1, whose setting the others are compared with;
            None: that of the first run, where there are several.
        across: whether runs of different protocols are compared, by the fields that differ.
        always: fields that are columns though no settings differ in them.
    """
    of_settings, repeated = _by_setting(runs, across)
    values = [one.values for one in of_settings]
    known, models = [], []
    for one in values:
        known += one
    for run in runs:
        models += run.models
    differing, said = settings.columns(values)
    fields = _once([*always, *differing])
    number = _number(of_settings, to, across)
    rows: list[Json] = []
    for model in _once(models):
        rows += _rows_of(model, of_settings, number, [*fields, *said])
    for row, p in zip(rows, holm(column(rows, "p")), strict=True):
        row["p_holm"] = p
    return Comparison(
        rows=rows,
        fields=fields,
        said=said,
        short=settings.short_names(fields, _once(known)),
        to=number,
        notes=[*_notes(rows, said), *_notes_on_runs(of_settings, repeated)],
    )


def _once(values: Iterable[str]) -> list[str]:
    """Each value once, in the order of their first places."""
    return list(dict.fromkeys(values))


def column(rows: Iterable[Row], name: str) -> list[Any]:
    """What each row says under a name; None where it says nothing."""
    return [row.get(name) for row in rows]


def _by_setting(
    runs: Sequence[Evaluated], across: bool
) -> tuple[list[Distillations], list[Evaluated]]:
    """(the runs of each setting, those that repeat the seed of another and do not count)."""
    made: dict[str, Distillations] = {}
    repeated = []
    for run in runs:
        values = settings.setting(run, across=across)
        one = made.setdefault(settings.key(values), Distillations(values))
        if one.has(run.seed):
            repeated.append(run)
        else:
            one.runs.append(run)
    return list(made.values()), repeated


def _number(
    of_settings: Sequence[Distillations], to: Evaluated | int | None, across: bool
) -> int | None:
    """The number of the setting that is compared with; None of a single one."""
    number = 1 if to is None else to
    if isinstance(number, Evaluated):
        wanted = settings.setting(number, across=across)
        number = [one.values for one in of_settings].index(wanted) + 1
    if not 1 <= number <= len(of_settings):
        raise UserError(
            f"--to {number} names no row: of settings, counted from 1, there are "
            f"{len(of_settings)}."
        )
    return number if len(of_settings) > 1 else None


# Rows.


def _rows_of(
    model: str, of_settings: Sequence[Distillations], number: int | None, fields: Sequence[str]
) -> list[Json]:
    """The rows of a network, one for each setting that was evaluated on it.

    `number` is that of the setting that the others are compared with.
    """
    reference: Means = {}
    if number is not None:
        reference = of_settings[number - 1].on(model).means
    rows = []
    for place, one in enumerate(of_settings, start=1):
        told = one.on(model)
        if not told.runs:
            continue
        row = _row(one, told, fields) | {"row": place, "model": model}
        compared_with = reference
        if place == number:
            compared_with = {}
        rows.append(row | paired(told.means, compared_with))
    return rows


def _row(one: Distillations, told: OnNetwork, fields: Sequence[str]) -> Json:
    """What is told of a setting on a network."""
    values = {}
    for name in fields:
        if name in one.values:
            values[name] = one.values[name]
    return {
        "settings": values,
        "ipc": one.values.get("ipc"),
        "bytes": _average(column(told.rows, "bytes")),
        "seconds": _average(map(_seconds, told.runs)),
        "runs": [run.name for run in told.runs],
        "seeds": list(told.means),
        "diverged": sum(filter(None, column(told.rows, "diverged"))),
        **spread(column(told.rows, "accuracies")),
    }


def _seconds(run: Evaluated) -> float | None:
    """What a distillation took, all of it where the run says that."""
    took = run.meta.get("distillation") or {}
    return took.get("wall_seconds", took.get("seconds"))


def _average(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None without any."""
    known = counted(list(values))
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def spread(networks: Sequence[Sequence[Facts]]) -> Json:
    """Mean accuracy over distillations, its 95 % interval, and what it spreads.

    `networks` are those of each distillation: {"seed", "accuracy"}, None where one diverged. The
    interval of a single distillation is of its networks alone. Spreads that cannot be told apart,
    with one distillation or with one network each, are None.
    """
    accuracies = list(map(_accuracies, networks))
    fewest = min(map(len, accuracies))
    between = within = None
    if len(networks) == 1:
        mean, within, ci95 = interval(accuracies[0])
    elif fewest < 2:
        mean, _, ci95 = interval(list(map(_mean, accuracies)))
    else:
        split = scores.split_of(networks)
        mean, ci95 = split["mean"], split["ci95"]
        between, within = split["between_std"], split["within_std"]
    return {
        "accuracy_mean": mean,
        "ci95": ci95 and list(ci95),
        "between_std": between,
        "within_std": within,
        "num_distillations": len(networks),
        "num_networks": fewest,
    }


def _accuracies(networks: Sequence[Facts]) -> list[float]:
    """Those of the networks of a distillation that did not diverge."""
    return counted(column(networks, "accuracy"))


def paired(accuracies: Means, reference: Means) -> Json:
    """The difference of two settings, {"difference", "difference_ci95", "p", "paired"}.

    Both map seeds of distillations to mean accuracies, fractions. "paired" is how many seeds both
    have; with one of them there is neither interval nor p-value, and where all differences are
    equal neither, because nothing says how they vary.
    """
    from scipy import stats  # a second to import

    mine, theirs = [], []
    for seed, accuracy in accuracies.items():
        if seed in reference:
            mine.append(accuracy)
            theirs.append(reference[seed])
    made: Json = {"difference": None, "difference_ci95": None, "p": None, "paired": len(mine)}
    if not mine:
        return made
    differences = np.array(mine) - np.array(theirs)
    made["difference"] = float(differences.mean())
    if len(mine) > 1 and np.ptp(differences) > EQUAL:
        test = stats.ttest_rel(mine, theirs)
        low, high = test.confidence_interval(CONFIDENCE)
        made["difference_ci95"] = [float(low), float(high)]
        made["p"] = float(test.pvalue)
    return made


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several comparisons, corrected together by Holm's method (1979).

    The smallest of m counts m times, the next m - 1 times, none less than one before it, and none
    more than 1. None stands for no comparison.
    """
    known = []
    for place, p in enumerate(p_values):
        if p is not None:
            known.append((p, place))
    corrected: list[float | None] = [None] * len(p_values)
    times = len(known)
    largest = 0.0
    for p, place in sorted(known):
        largest = max(largest, min(1.0, times * p))
        corrected[place] = largest
        times -= 1
    return corrected


# Notes.


def _notes(rows: Sequence[Row], said: Sequence[str]) -> list[str]:
    """What is to be said of the numbers, and of fields that are no columns."""
    notes = []
    num_compared = len(counted(column(rows, "p_holm")))
    num_diverged = sum(column(rows, "diverged"))
    if counted(column(rows, "between_std")):
        notes.append(ESTIMATOR)
    if 1 in column(rows, "num_distillations"):
        notes.append(ALONE)
    if num_compared == 1:
        notes.append(PAIRED)
    if num_compared > 1:
        notes.append(f"{PAIRED}; p-values are corrected for {num_compared} comparisons (Holm)")
    if num_diverged:
        notes.append(f"warning: {num_diverged} networks diverged and do not count")
    if said:
        notes.append(f"recipes differ in {len(said)} more fields: {', '.join(said)}")
    return notes


def _notes_on_runs(
    of_settings: Sequence[Distillations], repeated: Sequence[Evaluated]
) -> list[str]:
    """What is to be said of the runs that settings are made of."""
    notes = []
    lost = []
    quick = False
    for one in of_settings:
        lost += [run.name for run in one.runs if run.has_diverged]
        quick = quick or any("quick" in run.evaluation for run in one.runs)
    if quick:
        notes.append(QUICK)
    if any(len(_experts(one)) > 1 for one in of_settings):
        notes.append(OTHER_EXPERTS)
    if lost:
        notes.append(f"warning: all networks diverged on {', '.join(lost)}, which do not count")
    if repeated:
        names = ", ".join(run.name for run in repeated)
        notes.append(f"{names}: the same setting and seed as a run before, so not counted")
    return notes


def _experts(one: Distillations) -> set[str]:
    """The fingerprints of the experts of each distillation of a setting."""
    prints = set()
    for run in one.runs:
        experts = run.meta.get("experts") or {}
        stores = experts.get("stores") or [experts]
        prints.add(", ".join(str(store.get("fingerprint")) for store in stores))
    return prints
