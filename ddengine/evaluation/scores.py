"""What an accuracy says beyond itself.

That is DD-Ranking's scores, and how much of its spread is the distillation's. DD-Ranking (Li et al.
2025, arXiv:2505.13300), with every accuracy a fraction, so that both scores lie in [0, 1]:

    hard-label recovery      HLR = Acc(full data, classes) - Acc(set, classes)     lower is better
    improvement over random  IOR = Acc(set) - Acc(random images), same protocol
    label-robust score       LRS = f(w IOR - (1 - w) HLR),  f(a) = (e^a - 1/e) / (e - 1/e)
    augmentation-robust      ARS = f(g IOR + (1 - g) IOR without augmentation)

The released package takes percentages and the best accuracy over checkpoints, chosen on the test
images; here accuracies are of the last epoch and rates are chosen on the validation split.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from rich.table import Table

from ddengine.evaluation.intervals import interval, within
from ddengine.recipe import AugmentConfig, EvalConfig, require
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.types import Evaluation, Facts, Json, Meta, Row

WEIGHT = 0.5  # w and g, as published
# of scores; the others are differences of accuracies
BOUNDS = {"label_robust_score": (0.0, 1.0), "augmentation_robust_score": (0.0, 1.0)}
SHOWN = {
    "label_robust_score": "label-robust score",
    "augmentation_robust_score": "augmentation-robust score",
    "hard_label_recovery": "hard-label recovery",
    "improvement_over_random": "improvement over random",
    "improvement_without_augmentation": "the same without augmentation",
}

Accuracies = Mapping[str, Sequence[float | None]]  # of networks on each set, None: diverged
Networks = Sequence[Facts]  # what a row says of each of its networks: accuracy, seed


def squash(value: float) -> float:
    """DD-Ranking's map from [-1, 1] onto [0, 1]: -1 -> 0, 0 -> 0.2689, 1 -> 1."""
    lowest = math.exp(-1)
    return (math.exp(value) - lowest) / (math.e - lowest)


def label_robust_score(improvement: float, recovery: float, weight: float = WEIGHT) -> float:
    """LRS of IOR and HLR, fractions within -1 and 1.

    Raises UserError for others, percentages for example.
    """
    _check(improvement, recovery)
    return squash(weight * improvement - (1 - weight) * recovery)


def augmentation_robust_score(improvement: float, without: float, weight: float = WEIGHT) -> float:
    """ARS of IOR with and without augmentation, fractions within -1 and 1.

    Raises UserError for others.
    """
    _check(improvement, without)
    return squash(weight * improvement + (1 - weight) * without)


def _check(*differences: float) -> None:
    for value in differences:
        require(
            -1 <= value <= 1,
            f"A difference of accuracies must lie within -1 and 1, got {value:g}; give "
            "accuracies as fractions.",
        )


def protocols(config: EvalConfig, soft: bool) -> tuple[EvalConfig, EvalConfig]:
    """The two evaluations that the scores are made of.

    One is as `config` says beside random and full data, the other without augmentation and mixing.
    `soft`: whether the set has soft labels; then random images have such labels too, and the set is
    also trained with its classes.
    """
    rivals = ("random",)
    if soft and config.loss != "uskd":  # which uses classes only
        rivals = ("random_soft", "hard_labels")
    augmented = replace(config, baselines=(*rivals, "full"))
    plain = replace(
        config,
        augment=AugmentConfig(ops=(), always=()),
        cutmix=0.0,
        mixup=0.0,
        baselines=rivals[:1],
    )
    return augmented, plain


def of(augmented: Evaluation, plain: Evaluation, name: str = "distilled") -> list[Json]:
    """The scores of a set on each network, from the evaluations that `protocols` says.

    Each is computed network by network, in the order of their seeds, and averaged: {"model",
    "diverged", "scores": {score: {"mean", "std", "ci95", "n"}}}. Seeds with which a network
    diverged on one of the sets are counted in "diverged" and left out; without any others means are
    None.
    """
    models = dict.fromkeys(row["model"] for row in augmented["rows"])
    return [_of_model(augmented, plain, model, name) for model in models]


def _of_model(augmented: Evaluation, plain: Evaluation, model: str, name: str) -> Json:
    """The scores of a set on one network."""
    seeds = _needed(_accuracies(augmented, model), _accuracies(plain, model), name)
    finite = [seed for seed in seeds if None not in seed]
    summaries = {}
    for key, numbers in _scores(finite).items():
        low, high = BOUNDS.get(key, (-1.0, 1.0))
        summaries[key] = summary(numbers, low, high)
    diverged = len(seeds) - len(finite)
    return {"model": model, "diverged": diverged, "scores": summaries}


class _Seed(NamedTuple):
    """Accuracies of the networks of one seed, None where one diverged."""

    distilled: Any
    random: Any
    full: Any
    hard: Any  # on the set with its classes
    distilled_plain: Any  # without augmentation
    random_plain: Any


def _needed(values: Accuracies, without: Accuracies, name: str) -> list[_Seed]:
    """What the scores of a set are made of, from its accuracies with and without augmentation."""
    random = "random"
    if "random_soft" in values:
        random = "random_soft"
    needed = {name, random}
    if not needed <= without.keys() or not needed | {"full"} <= values.keys():
        raise UserError(
            f"The scores of {name} need rows of it, {random} and full, and the evaluation "
            "lacks one; evaluate with --restart."
        )
    columns = (
        values[name],
        values[random],
        values["full"],
        values.get(f"{name}_hard", values[name]),
        without[name],
        without[random],
    )
    seeds = zip(*columns, strict=True)
    return list(itertools.starmap(_Seed, seeds))


def _scores(seeds: Sequence[_Seed]) -> dict[str, list[float]]:
    """Every score, seed by seed."""
    made: dict[str, list[float]] = {key: [] for key in SHOWN}
    for seed in seeds:
        improvement = seed.distilled - seed.random
        recovery = seed.full - seed.hard
        bare = seed.distilled_plain - seed.random_plain
        made["label_robust_score"].append(label_robust_score(improvement, recovery))
        made["augmentation_robust_score"].append(augmentation_robust_score(improvement, bare))
        made["hard_label_recovery"].append(recovery)
        made["improvement_over_random"].append(improvement)
        made["improvement_without_augmentation"].append(bare)
    return made


def _accuracies(evaluation: Evaluation, model: str) -> Accuracies:
    """The accuracies of networks of a kind on each set."""
    accuracies = {}
    for row in evaluation["rows"]:
        if row["model"] == model:
            accuracies[row["set"]] = [network["accuracy"] for network in row["accuracies"]]
    return accuracies


def summary(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> Json:
    """Mean, sample standard deviation and 95 % interval of the mean of values.

    They lie within `low` and `high`.
    """
    mean, std, ci95 = interval(values, low, high)
    if ci95 is not None:
        ci95 = list(ci95)
    return {"mean": mean, "std": std, "ci95": ci95, "n": len(values)}


def table(scores: Sequence[Facts], title: str) -> Table:
    """The scores for the terminal."""
    first = scores[0]
    several = len(scores) > 1
    if not several:
        title += f", {first['model']}"
    networks = first["scores"]["label_robust_score"]["n"]
    shown = Table(title=f"{title}, n = {networks}", title_justify="left")
    shown.add_column("score", no_wrap=True)
    if several:
        shown.add_column("network", no_wrap=True)
    shown.add_column("mean", justify="right", no_wrap=True)
    shown.add_column("95 % interval", justify="right", no_wrap=True)
    for entry in scores:
        for key, label in SHOWN.items():
            cells = [label]
            if several:
                cells.append(entry["model"])
            cells += _cells(entry["scores"][key])
            shown.add_row(*cells)
    return shown


def _cells(score: Facts) -> tuple[str, str]:
    """Mean and interval in words."""
    mean = "diverged"
    if score["mean"] is not None:
        mean = f"{score['mean']:.3f}"
    if score["ci95"] is None:
        return mean, "-"
    low, high = score["ci95"]
    return mean, f"{low:.3f} to {high:.3f}"


def variance_split(groups: Sequence[Sequence[float]], *, paired: bool = False) -> Json:
    """How much of the spread of accuracies lies between distillations.

    The rest lies between networks trained on one of them. It is split by the mean squares of random
    effects, 0 where these would be negative: `between_std` is the standard deviation of the sets'
    true means, `within_std` that of networks on one set. The 95 % interval is that of the mean over
    sets and networks: by Student's t of the sets' means, or where paired of the mean squares of
    both (Satterthwaite 1946), on the logit scale, which keeps it within 0 and 1.

    Args:
        groups: of each distillation (the same recipe, another seed) the accuracies of its networks;
            at least two of two each.
        paired: network j has the same seed on every set, as evaluations of one seed have it, and so
            shares its initialisation and order. Then sets and networks are crossed, and
            `network_std` is the part of `within_std` that a network takes from set to set.
    """
    fewest = min(map(len, groups), default=0)
    if len(groups) < 2 or fewest < 2:
        raise UserError(
            f"The spread of {len(groups)} distillations with at least "
            f"{fewest} networks each cannot be split; "
            "give two distillations with two networks each, or more."
        )
    if paired:
        return _crossed(np.array(groups, float))
    return _nested(groups)


def _nested(groups: Sequence[Sequence[float]]) -> Json:
    """`variance_split` of sets that each have networks of their own."""
    sizes = list(map(len, groups))
    total = sum(sizes)
    means = [float(np.mean(group)) for group in groups]
    grand = sum(map(operator.mul, means, sizes)) / total
    squares_within = squares_between = squared_sizes = 0.0
    for group, mean, size in zip(groups, means, sizes, strict=True):
        squares_within += float(np.var(group)) * size
        squares_between += size * (mean - grand) ** 2
        squared_sizes += size * size
    freedom = len(groups) - 1
    ms_within = squares_within / (total - len(groups))
    ms_between = squares_between / freedom
    # networks a set, where numbers differ their weighted mean
    per_group = (total - squared_sizes / total) / freedom
    between = max(0.0, (ms_between - ms_within) / per_group)
    of_means = summary(means)
    networks = sizes[0]
    if len(set(sizes)) > 1:
        networks = sizes
    return {
        "mean": of_means["mean"],
        "ci95": of_means["ci95"],
        "between_std": math.sqrt(between),
        "within_std": math.sqrt(ms_within),
        "num_distillations": len(groups),
        "num_networks": networks,
    }


def _crossed(y: np.ndarray) -> Json:
    """`variance_split` of (sets, networks)."""
    sets, networks = y.shape
    freedom = (sets - 1) * (networks - 1)
    mean = float(y.mean())
    of_sets = y.mean(1) - mean
    of_networks = y.mean(0) - mean
    rest = y - mean - of_sets[:, None] - of_networks[None]
    ms_sets = networks * float((of_sets**2).sum()) / (sets - 1)
    ms_networks = sets * float((of_networks**2).sum()) / (networks - 1)
    ms_rest = float((rest**2).sum()) / freedom
    between = max(0.0, (ms_sets - ms_rest) / networks)
    network = max(0.0, (ms_networks - ms_rest) / sets)
    # of the mean; not below what either alone gives
    square = max(ms_sets + ms_networks - ms_rest, ms_sets, ms_networks)
    degrees = 1.0
    if square:
        parts = ms_sets**2 / (sets - 1) + ms_networks**2 / (networks - 1) + ms_rest**2 / freedom
        degrees = max(1.0, square**2 / parts)
    quantile = float(scipy.special.stdtrit(degrees, 0.975))
    half = quantile * math.sqrt(square / y.size)
    return {
        "mean": mean,
        "ci95": list(within(mean, half)),
        "between_std": math.sqrt(between),
        "within_std": math.sqrt(network + ms_rest),
        "network_std": math.sqrt(network),
        "num_distillations": sets,
        "num_networks": networks,
    }


class _Run(NamedTuple):
    """A run that was evaluated: its name, meta.json and evaluation.json."""

    name: str
    meta: Facts
    evaluation: Facts


def splits(runs: Sequence[tuple[str, Meta, Evaluation]]) -> list[Json]:
    """`variance_split` of the runs that are one recipe with several seeds, on each network.

    Runs are (name, meta.json, evaluation.json). Recipe (but for its evaluation and prose),
    precision, training images and protocol (but for its networks) must be equal; of runs with one
    seed the first counts, and networks that diverged do not. Each entry says "recipe", "model",
    "runs" (names) and "split"; groups without two such runs with two networks each are left out.
    """
    entries = []
    for group in _groups(itertools.starmap(_Run, runs)):
        first = group[0]
        rows = first.evaluation["rows"]
        models = dict.fromkeys(row["model"] for row in rows)
        for model in models:
            names, measured = _measured(group, model, rows[0]["set"])
            if len(names) < 2:
                continue
            entry = {
                "recipe": first.meta["recipe"].get("name", ""),
                "model": model,
                "runs": names,
                "split": split_of(measured),
            }
            entries.append(entry)
    return entries


def split_of(rows: Sequence[Networks]) -> Json:
    """`variance_split` of distillations by the networks that their rows tell of.

    At least two networks of each did not diverge.
    """
    accuracies, paired = _comparable(rows)
    return variance_split(accuracies, paired=paired)


def _groups(runs: Iterable[_Run]) -> Iterable[list[_Run]]:
    """Runs that differ in their seed alone, one a seed."""
    groups: dict[str, dict[int, _Run]] = {}
    for run in runs:
        if not _counts(run):
            continue
        of_recipe = groups.setdefault(_but_for_the_seed(run), {})
        of_recipe.setdefault(run.meta["seed"], run)
    return [list(of_recipe.values()) for of_recipe in groups.values()]


def _counts(run: _Run) -> bool:
    """Whether a run was distilled by a recipe with a seed, and has accuracies."""
    if run.meta.get("seed") is None or "selected" in run.meta:
        return False
    return bool(run.meta.get("recipe")) and bool(run.evaluation.get("rows"))


def _but_for_the_seed(run: _Run) -> str:
    """What identifies runs that may be compared."""
    recipe = dict(run.meta["recipe"])
    for name in ("cites", "note", "published", "evaluation"):
        recipe.pop(name, None)
    protocol = dict(run.evaluation.get("protocol") or {})
    for name in ("models", "baselines"):
        protocol.pop(name, None)
    precision = run.meta.get("precision")
    images = run.meta.get("images")
    of_evaluation = run.evaluation.get("precision")
    is_quick = bool(run.evaluation.get("quick"))
    return digest([recipe, precision, images, protocol, of_evaluation, is_quick])


def _measured(group: Sequence[_Run], model: str, of_set: str) -> tuple[list[str], list[Networks]]:
    """(names of runs, what each says of its networks on a set), where at least two count."""
    names: list[str] = []
    rows: list[Networks] = []
    for run in group:
        row = _row_of(run.evaluation, model, of_set)
        networks = row.get("accuracies", ())
        if np.isfinite(_values(networks)).sum() >= 2:
            names.append(run.name)
            rows.append(networks)
    return names, rows


def _row_of(evaluation: Evaluation, model: str, of_set: str) -> Row:
    """The first row of networks of a kind on a set; an empty one where there is none."""
    for row in evaluation["rows"]:
        if row["model"] == model and row["set"] == of_set:
            return row
    return {}


def _values(networks: Networks) -> np.ndarray:
    """The accuracies of a row, NaN where a network diverged."""
    return np.array([network["accuracy"] for network in networks], float)


def _comparable(rows: Sequence[Networks]) -> tuple[list[list[float]], bool]:
    """(the accuracies of several rows, whether they are paired), of networks that did not diverge.

    Where they are paired, a network that diverged on one set counts for none.
    """
    accuracies = list(map(_values, rows))
    seeds = list(map(_seeds, rows))
    if seeds.count(seeds[0]) == len(seeds):
        paired = np.stack(accuracies)
        counts = np.isfinite(paired).all(0)
        if counts.sum() >= 2:
            return paired[:, counts].tolist(), True
    return [values[np.isfinite(values)].tolist() for values in accuracies], False


def _seeds(networks: Networks) -> list[int | None]:
    """The seeds of the networks of a row, None where none is known."""
    return [network.get("seed") for network in networks]


def said(entry: Facts) -> str:
    """An entry of `splits` in words."""
    split = entry["split"]
    low, high = split["ci95"]
    return (
        f"{entry['model']}, {split['num_distillations']} distillations: {100 * split['mean']:.1f} "
        f"% ({100 * low:.1f} to {100 * high:.1f}); "
        f"standard deviation {100 * split['between_std']:.2f} between distillations, "
        f"{100 * split['within_std']:.2f} between networks on one"
    )
