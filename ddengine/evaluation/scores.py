"""What an accuracy says beyond itself:

DD-Ranking's scores, and how much of its spread is the distillation's.

DD-Ranking (Li et al. 2025, arXiv:2505.13300), with every accuracy a fraction, so that both scores
lie in [0, 1]:

    hard-label recovery      HLR = Acc(full data, classes) - Acc(set, classes)         lower is better
    improvement over random  IOR = Acc(set) - Acc(random images), same protocol
    label-robust score       LRS = f(w IOR - (1 - w) HLR),  f(a) = (e^a - 1/e) / (e - 1/e)
    augmentation-robust      ARS = f(g IOR + (1 - g) IOR without augmentation)

The released package takes percentages and the best accuracy over checkpoints, chosen on the test
images; here accuracies are of the last epoch and rates are chosen on the validation split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.special
from rich.table import Table

from ddengine.evaluation.intervals import interval, within
from ddengine.recipe import AugmentConfig, EvalConfig, digest, require
from ddengine.system.errors import UserError

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


def squash(value: float) -> float:
    """DD-Ranking's map from [-1, 1] onto [0, 1]: -1 -> 0, 0 -> 0.2689, 1 -> 1."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


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
            (
                f"A difference of accuracies must lie within -1 and 1, got {value:g}; give "
                "accuracies as fractions."
            ),
        )


def protocols(config: EvalConfig, soft: bool) -> tuple[EvalConfig, EvalConfig]:
    """The two evaluations that the scores are made of: as `config` says beside random and full
    data, and without augmentation and mixing.

    `soft`: whether the set has soft labels; then random images have such labels too, and the set is
    also trained with its classes.
    """
    # uskd uses classes only
    rivals = ("random_soft", "hard_labels") if soft and config.loss != "uskd" else ("random",)
    plain = replace(
        config,
        augment=AugmentConfig(ops=(), always=()),
        cutmix=0.0,
        mixup=0.0,
        baselines=rivals[:1],
    )
    return replace(config, baselines=(*rivals, "full")), plain


def of(
    augmented: Mapping[str, Any], plain: Mapping[str, Any], name: str = "distilled"
) -> list[dict[str, Any]]:
    """The scores of a set on each network, from the evaluations that `protocols` says.

    Each is computed network by network, in the order of their seeds, and averaged: {"model",
    "diverged", "scores": {score: {"mean", "std", "ci95", "n"}}}. Seeds with which a network
    diverged on one of the sets are counted in "diverged" and left out; without any others means are
    None.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in augmented["rows"]):
        values, without = _accuracies(augmented, model), _accuracies(plain, model)
        rival = "random_soft" if "random_soft" in values else "random"
        if not {name, rival, "full"} <= values.keys() or not {name, rival} <= without.keys():
            raise UserError(
                f"The scores of {name} need rows of it, {rival} and full, and the evaluation "
                "lacks one; evaluate with --restart."
            )
        needed = (
            values[name],
            values[rival],
            values["full"],
            values.get(f"{name}_hard", values[name]),
            without[name],
            without[rival],
        )
        finite = [seed for seed in zip(*needed, strict=True) if None not in seed]
        improvement = [own - other for own, other, *_ in finite]
        recovery = [full - hard for _, _, full, hard, *_ in finite]
        bare = [own - other for *_, own, other in finite]
        each = {
            "label_robust_score": [
                label_robust_score(i, r) for i, r in zip(improvement, recovery, strict=True)
            ],
            "augmentation_robust_score": [
                augmentation_robust_score(i, b) for i, b in zip(improvement, bare, strict=True)
            ],
            "hard_label_recovery": recovery,
            "improvement_over_random": improvement,
            "improvement_without_augmentation": bare,
        }
        made = {
            key: summary(numbers, *BOUNDS.get(key, (-1.0, 1.0))) for key, numbers in each.items()
        }
        found.append({"model": model, "diverged": len(needed[0]) - len(finite), "scores": made})
    return found


def _accuracies(evaluation: Mapping[str, Any], model: str) -> dict[str, list[float | None]]:
    """Of each set the accuracies of its networks, None where one diverged."""
    return {
        row["set"]: [a["accuracy"] for a in row["accuracies"]]
        for row in evaluation["rows"]
        if row["model"] == model
    }


def summary(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    """Mean, sample standard deviation and 95 % interval of the mean of values within `low` and
    `high`.
    """
    mean, std, ci95 = interval(values, low, high)
    return {"mean": mean, "std": std, "ci95": ci95 and list(ci95), "n": len(values)}


def table(scores: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The scores for the terminal."""
    several = len(scores) > 1
    of_model = "" if several else f", {scores[0]['model']}"
    shown = Table(
        title=f"{title}{of_model}, n = {scores[0]['scores']['label_robust_score']['n']}",
        title_justify="left",
    )
    for head in ("score", *(["network"] if several else []), "mean", "95 % interval"):
        shown.add_column(
            head, justify="left" if head in ("score", "network") else "right", no_wrap=True
        )
    for entry in scores:
        for key, label in SHOWN.items():
            s = entry["scores"][key]
            low_high = "-" if s["ci95"] is None else f"{s['ci95'][0]:.3f} to {s['ci95'][1]:.3f}"
            mean = "diverged" if s["mean"] is None else f"{s['mean']:.3f}"
            shown.add_row(label, *([entry["model"]] if several else []), mean, low_high)
    return shown


def variance_split(groups: Sequence[Sequence[float]], *, paired: bool = False) -> dict[str, Any]:
    """How much of the spread of accuracies lies between distillations and how much between networks
    trained on one of them.

    `groups`: of each distillation (the same recipe, another seed) the accuracies of its networks;
    at least two of two each. By the mean squares of random effects, 0 where these would be
    negative: `between_std` is the standard deviation of the sets' true means, `within_std` that of
    networks on one set. `paired`: network j has the same seed on every set, as evaluations of one
    seed have it, and so shares its initialisation and order; then sets and networks are crossed,
    and `network_std` is the part of `within_std` that a network takes from set to set. The 95 %
    interval is that of the mean over sets and networks: by Student's t of the sets' means, or where
    paired of the mean squares of both (Satterthwaite 1946), on the logit scale, which keeps it
    within 0 and 1.
    """
    if len(groups) < 2 or min(map(len, groups)) < 2:
        raise UserError(
            f"The spread of {len(groups)} distillations with at least "
            f"{min(map(len, groups), default=0)} networks each cannot be split; "
            "give two distillations with two networks each, or more."
        )
    if paired:
        return _crossed(np.array(groups, float))
    means, sizes = [float(np.mean(g)) for g in groups], [len(g) for g in groups]
    total = sum(sizes)
    grand = sum(m * n for m, n in zip(means, sizes, strict=True)) / total
    within = sum(float(np.var(g)) * len(g) for g in groups) / (total - len(groups))
    between = sum(n * (m - grand) ** 2 for m, n in zip(means, sizes, strict=True)) / (
        len(groups) - 1
    )
    # networks a set, where numbers differ their weighted mean
    per_group = (total - sum(n * n for n in sizes) / total) / (len(groups) - 1)
    mean, _, ci95 = interval(means)
    return {
        "mean": mean,
        "ci95": ci95 and list(ci95),
        "between_std": math.sqrt(max(0.0, (between - within) / per_group)),
        "within_std": math.sqrt(within),
        "num_distillations": len(groups),
        "num_networks": sizes if len(set(sizes)) > 1 else sizes[0],
    }


def _crossed(y: np.ndarray) -> dict[str, Any]:
    """`variance_split` of (sets, networks)."""
    sets, networks = y.shape
    mean = float(y.mean())
    of_sets, of_networks = y.mean(1) - mean, y.mean(0) - mean
    ms_sets = networks * float((of_sets**2).sum()) / (sets - 1)
    ms_networks = sets * float((of_networks**2).sum()) / (networks - 1)
    rest = y - mean - of_sets[:, None] - of_networks[None]
    freedom = (sets - 1) * (networks - 1)
    ms_rest = float((rest**2).sum()) / freedom
    network = max(0.0, (ms_networks - ms_rest) / sets)
    # of the mean; not below what either alone gives
    square = max(ms_sets + ms_networks - ms_rest, ms_sets, ms_networks)
    degrees = (
        square**2
        / (ms_sets**2 / (sets - 1) + ms_networks**2 / (networks - 1) + ms_rest**2 / freedom)
        if square
        else 1.0
    )
    half = float(scipy.special.stdtrit(max(1.0, degrees), 0.975)) * math.sqrt(square / y.size)
    return {
        "mean": mean,
        "ci95": list(within(mean, half)),
        "between_std": math.sqrt(max(0.0, (ms_sets - ms_rest) / networks)),
        "within_std": math.sqrt(network + ms_rest),
        "network_std": math.sqrt(network),
        "num_distillations": sets,
        "num_networks": networks,
    }


def splits(
    runs: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """`variance_split` of the runs, (name, meta.json, evaluation.json), that are one recipe with
    several seeds, on each network.

    Recipe (but for its evaluation and prose), precision, training images and protocol (but for its
    networks) must be equal; of runs with one seed the first counts, and networks that diverged do
    not. Each entry says "recipe", "model", "runs" (names) and "split"; groups without two such runs
    with two networks each are left out.
    """
    groups: dict[str, list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]] = {}
    for run in runs:
        _, meta, evaluation = run
        recipe = meta.get("recipe")
        if (
            recipe
            and evaluation.get("rows")
            and meta.get("seed") is not None
            and "selected" not in meta
        ):
            parts = {
                k: v
                for k, v in recipe.items()
                if k not in ("cites", "note", "published", "evaluation")
            }
            protocol = {
                k: v
                for k, v in (evaluation.get("protocol") or {}).items()
                if k not in ("models", "baselines")
            }
            group = groups.setdefault(
                digest(
                    [
                        parts,
                        meta.get("precision"),
                        meta.get("images"),
                        protocol,
                        evaluation.get("precision"),
                    ]
                ),
                [],
            )
            group += [] if any(other[1]["seed"] == meta["seed"] for other in group) else [run]
    found = []
    for group in groups.values():
        own = group[0][2]["rows"][0]["set"]
        for model in dict.fromkeys(row["model"] for row in group[0][2]["rows"]):
            rows = [
                next((r for r in e["rows"] if (r["model"], r["set"]) == (model, own)), {})
                for _, _, e in group
            ]
            known = [
                (run, row["accuracies"])
                for run, row in zip(group, rows, strict=True)
                if len(_finite(row.get("accuracies", ()))) >= 2
            ]
            if len(known) >= 2:
                accuracies, paired = _comparable([told for _, told in known])
                split = variance_split(accuracies, paired=paired)
                names = [name for (name, _, _), _ in known]
                found.append(
                    {
                        "recipe": group[0][1]["recipe"].get("name", ""),
                        "model": model,
                        "runs": names,
                        "split": split,
                    }
                )
    return found


def _finite(told: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of "accuracies" in a row whose networks did not diverge."""
    return [entry for entry in told if entry["accuracy"] is not None]


def _comparable(told: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[list[float]], bool]:
    """(the accuracies of several rows, whether they are paired), of networks that did not diverge:
    where paired, not with any of the sets.
    """
    finite = [_finite(row) for row in told]
    paired = all(
        [entry.get("seed") for entry in row] == [entry.get("seed") for entry in told[0]]
        for row in told
    )
    if paired:
        shared = [
            place
            for place in range(len(told[0]))
            if all(row[place]["accuracy"] is not None for row in told)
        ]
        if len(shared) >= 2:
            return [[row[place]["accuracy"] for place in shared] for row in told], True
    return [[entry["accuracy"] for entry in row] for row in finite], paired and all(
        len(f) == len(r) for f, r in zip(finite, told, strict=True)
    )


def said(entry: Mapping[str, Any]) -> str:
    """An entry of `splits` in words."""
    split = entry["split"]
    low, high = split["ci95"]
    return (
        f"{entry['model']}, {split['num_distillations']} distillations: {100 * split['mean']:.1f} "
        f"% ({100 * low:.1f} to {100 * high:.1f}); "
        f"standard deviation {100 * split['between_std']:.2f} between distillations, "
        f"{100 * split['within_std']:.2f} between networks on one"
    )
