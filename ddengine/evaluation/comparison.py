"""Settings compared: of each the mean over distillations, what it spreads, and its difference.

The mean, its interval and the two spreads are those of `scores.variance_split`. The difference of
two settings is paired by the seed of the distillation: of each seed that both have, the mean
accuracy over networks of one less that of the other, and Student's t of these. p-values of all
differences of a comparison are corrected together (Holm 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddengine.evaluation import scores, settings
from ddengine.evaluation.intervals import counted, interval
from ddengine.evaluation.settings import Evaluated
from ddengine.system.errors import UserError
from ddengine.types import Facts, Json, Row

CONFIDENCE = 0.95
ESTIMATOR = (
    "spread between distillations and between networks on one set: square roots of variance "
    "components, by the mean squares of random effects"
)
PAIRED = "differences are paired by the seed of the distillation, with Student's t"


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
class Distillations:
    """The runs of a setting, one for each seed."""

    values: Json
    runs: list[Evaluated]


def compare(
    runs: Sequence[Evaluated], *, to: Evaluated | int | None = None, across: bool = False
) -> Comparison:
    """Compare runs that may be compared (`settings.groups`), at least one.

    Args:
        runs: with their evaluations.
        to: a run, or the number of a setting from 1, whose setting the others are compared with;
            None: that of the first run, where there are several.
        across: whether runs of different protocols are compared, by the fields that differ.
    """
    of_settings, repeated = _by_setting(runs, across)
    values = [one.values for one in of_settings]
    fields, said = settings.columns(values)
    number = _number(of_settings, to, across)
    models = dict.fromkeys(model for run in runs for model in run.models)
    rows: list[Json] = []
    for model in models:
        rows += _rows_of(model, of_settings, number, [*fields, *said])
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    known = list(dict.fromkeys(name for one in values for name in one))
    return Comparison(
        rows=rows,
        fields=fields,
        said=said,
        short=settings.short_names(fields, known),
        to=number,
        notes=[*_notes(rows, said), *_notes_on_runs(of_settings, repeated)],
    )


def _rows_of(
    model: str, of_settings: Sequence[Distillations], number: int | None, fields: Sequence[str]
) -> list[Json]:
    """The rows of a network: of each setting that was evaluated on it, in their order.

    `number` is that of the setting that the others are compared with.
    """
    reference: dict[int | None, float] = {}
    if number is not None:
        reference = _means(_told(of_settings[number - 1], model))
    rows = []
    for place, one in enumerate(of_settings, start=1):
        told = _told(one, model)
        if told:
            compared = {} if place == number else reference
            row = _row(one, told, place, model, fields)
            rows.append(row | paired(_means(told), compared))
    return rows


def _by_setting(
    runs: Sequence[Evaluated], across: bool
) -> tuple[list[Distillations], list[Evaluated]]:
    """(the runs of each setting, those that repeat the seed of another and do not count)."""
    made: dict[str, Distillations] = {}
    repeated = []
    for run in runs:
        values = settings.setting(run, across=across)
        one = made.setdefault(settings.key(values), Distillations(values, []))
        if run.seed in [other.seed for other in one.runs]:
            repeated.append(run)
        else:
            one.runs.append(run)
    return list(made.values()), repeated


def _number(
    of_settings: Sequence[Distillations], to: Evaluated | int | None, across: bool
) -> int | None:
    """The number of the setting that is compared with; None of a single one."""
    if len(of_settings) == 1:
        return None
    if isinstance(to, Evaluated):
        keys = [settings.key(one.values) for one in of_settings]
        return keys.index(settings.key(settings.setting(to, across=across))) + 1
    if to is not None and not 1 <= to <= len(of_settings):
        raise UserError(
            f"--to {to} names no row: there are {len(of_settings)} settings, counted from 1."
        )
    return 1 if to is None else to


def _told(one: Distillations, model: str) -> list[tuple[Evaluated, Row]]:
    """The runs of a setting that say something of a network, each with its row."""
    told = []
    for run in one.runs:
        row = run.row(model)
        if row is not None and row["accuracy_mean"] is not None and row.get("accuracies"):
            told.append((run, row))
    return told


def _means(told: Sequence[tuple[Evaluated, Row]]) -> dict[int | None, float]:
    """The mean accuracy over networks of each distillation, by its seed."""
    return {run.seed: row["accuracy_mean"] for run, row in told}


def _row(
    one: Distillations,
    told: Sequence[tuple[Evaluated, Row]],
    place: int,
    model: str,
    fields: Sequence[str],
) -> Json:
    """What is told of a setting on a network."""
    rows = [row for _, row in told]
    return {
        "row": place,
        "settings": {name: one.values.get(name) for name in fields},
        "model": model,
        "ipc": one.values.get("ipc"),
        "bytes": _average([row.get("bytes") for row in rows]),
        "seconds": _average([_seconds(run) for run, _ in told]),
        "runs": [run.name for run, _ in told],
        "seeds": [run.seed for run, _ in told],
        "diverged": sum(row.get("diverged") or 0 for row in rows),
        **spread([row["accuracies"] for row in rows]),
    }


def _seconds(run: Evaluated) -> float | None:
    """What a distillation took, all of it where the run says that."""
    took = run.meta.get("distillation") or {}
    return took.get("wall_seconds", took.get("seconds"))


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def spread(told: Sequence[Sequence[Facts]]) -> Json:
    """Mean accuracy over distillations, its 95 % interval, and what it spreads.

    `told` are the networks of each distillation: {"seed", "accuracy"}, None where one diverged. The
    interval of a single distillation is of its networks alone. Spreads that cannot be told apart,
    with one distillation or with one network each, are None.
    """
    accuracies = [counted([network["accuracy"] for network in one]) for one in told]
    nothing = {"between_std": None, "within_std": None}
    numbers = {"num_distillations": len(told), "num_networks": min(map(len, accuracies))}
    if len(told) == 1:
        mean, std, ci95 = interval(accuracies[0])
        apart = nothing | {"within_std": std}
    elif min(map(len, accuracies)) < 2:
        mean, _, ci95 = interval([float(np.mean(one)) for one in accuracies])
        apart = nothing
    else:
        split = scores.split_of(told)
        mean, ci95 = split["mean"], split["ci95"]
        apart = {name: split[name] for name in nothing}
    return {"accuracy_mean": mean, "ci95": ci95 and list(ci95), **apart, **numbers}


def paired(accuracies: Mapping[int | None, float], reference: Mapping[int | None, float]) -> Json:
    """The difference of two settings, {"difference", "difference_ci95", "p", "paired"}.

    Both map seeds of distillations to mean accuracies, fractions. "paired" is how many seeds both
    have; with one of them there is neither interval nor p-value, and where all differences are
    equal no p-value, because nothing says how they vary.
    """
    from scipy import stats  # a second to import

    seeds = [seed for seed in accuracies if seed in reference]
    if not seeds:
        return {"difference": None, "difference_ci95": None, "p": None, "paired": 0}
    mine = np.array([accuracies[seed] for seed in seeds])
    theirs = np.array([reference[seed] for seed in seeds])
    differences = mine - theirs
    made: Json = {
        "difference": float(differences.mean()),
        "difference_ci95": None,
        "p": None,
        "paired": len(seeds),
    }
    # equal up to rounding
    if len(seeds) < 2 or np.ptp(differences) < 1e-12:
        return made
    test = stats.ttest_rel(mine, theirs)
    low, high = test.confidence_interval(CONFIDENCE)
    return made | {"difference_ci95": [float(low), float(high)], "p": float(test.pvalue)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several comparisons, corrected together by Holm's method (1979).

    The smallest of m counts m times, the next m - 1 times, none less than one before it, and none
    more than 1. None stands for no comparison.
    """
    known = [place for place, p in enumerate(p_values) if p is not None]
    known.sort(key=lambda place: p_values[place] or 0.0)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for done, place in enumerate(known):
        times = len(known) - done
        largest = max(largest, min(1.0, times * (p_values[place] or 0.0)))
        corrected[place] = largest
    return corrected


def _notes(rows: Sequence[Row], said: Sequence[str]) -> list[str]:
    """What is to be said of the numbers, and of fields that are no columns."""
    notes = []
    if any(row["between_std"] is not None for row in rows):
        notes.append(ESTIMATOR)
    if any(row["num_distillations"] == 1 for row in rows):
        notes.append(
            "of a setting with one distillation the interval is of its networks alone, and there "
            "is no p-value: distill it with more seeds"
        )
    compared = sum(row["p_holm"] is not None for row in rows)
    if compared == 1:
        notes.append(PAIRED)
    if compared > 1:
        notes.append(f"{PAIRED}; p-values are corrected for {compared} comparisons (Holm)")
    diverged = sum(row["diverged"] for row in rows)
    if diverged:
        notes.append(f"warning: {diverged} networks diverged and do not count")
    if said:
        notes.append(f"recipes differ in {len(said)} more fields: {', '.join(said)}")
    return notes


def _notes_on_runs(
    of_settings: Sequence[Distillations], repeated: Sequence[Evaluated]
) -> list[str]:
    """What is to be said of the runs that settings are made of."""
    notes = []
    if any(len(_experts(one)) > 1 for one in of_settings):
        notes.append(
            "distillations of one setting follow different experts, so the spread between "
            "distillations is that of experts too"
        )
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
