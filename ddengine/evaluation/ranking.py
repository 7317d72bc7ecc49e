"""Do networks come in the same order on a small set as on the full data?

Rank correlations of an evaluation of many networks.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from rich.table import Table

from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

# Small networks whose accuracies on the full data differ: depth, width, normalisation, pooling,
# activation, and two other families.
GRID: tuple[str, ...] = (
    "mlp", "lenet", "convnet-d1-w8-in", "convnet-d1-w32-nn", "convnet-d2-w8-bn", "convnet-d2-w8-nn-sigmoid", "convnet-d2-w16-in-mp",
    "convnet-d2-w32-gn", "convnet-d3-w8-nn", "convnet-d3-w8-in", "convnet-d3-w16-bn", "convnet-d3-w32-in",
)  # fmt: skip

FEWEST = 3  # networks that have a correlation at all
# networks from which on it is more than chance: 3 are in one order by chance once in 6 times
TELLING = 5
SPLITS = 200  # random halvings of the seeds of the full data
CELLS = 2**22  # comparisons of pairs at a time
# means are rounded to so many, so that equal ones are equal whatever the order they were summed in
DECIMALS = 12

CAUTION = (
    "Ranking architectures by networks trained on a small set often does not work: they differ "
    "there in how they cope with few images, "
    "which says little about how they learn from many, and few networks and seeds leave wide "
    "intervals."
)


def grid(image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The networks of `GRID` that images (C, H, W) can be given to: a depth d halves the sides d
    times. Raises UserError for less than 4 pixels.
    """
    side = min(image_shape[1:])
    if side < 4:
        raise UserError(
            f"The images are {image_shape[1]} x {image_shape[2]}, too small for networks of "
            "different depth; set data.size to 8 8 or more."
        )
    return tuple(
        name
        for name in GRID
        if not name.startswith("convnet-d") or 2 ** int(name[len("convnet-d")]) <= side
    )


# Rank correlation of many pairs of rows.


def kendall_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each pair of rows of x and y (R, m): (R,), NaN where a row is constant."""
    found = np.empty(len(x))
    step = max(1, CELLS // x.shape[1] ** 2)
    for start in range(0, len(x), step):
        a, b = (
            np.sign(v[start : start + step, :, None] - v[start : start + step, None, :])
            for v in (x, y)
        )
        both, left, right = (a * b).sum((1, 2)), np.square(a).sum((1, 2)), np.square(b).sum((1, 2))
        with np.errstate(invalid="ignore"):
            found[start : start + step] = both / np.sqrt(left * right)
    return found


def spearman_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho of each pair of rows of x and y (R, m): (R,), NaN where a row is constant."""
    a, b = (scipy.stats.rankdata(v, axis=1) - (x.shape[1] + 1) / 2 for v in (x, y))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))


# Resampling.


def _stream(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng(
        int(torch.randint(2**62, (1,), generator=generator(seed, "ranking", *names)))
    )


def _resampled(
    accuracies: list[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Mean accuracies of m networks over seeds drawn with replacement: (resamples, m)."""
    columns = [
        values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
        for values in accuracies
    ]
    return np.stack(columns, axis=1).round(DECIMALS)


def _interval(values: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of what is not NaN; None where that is less than half."""
    kept = values[np.isfinite(values)]
    return (
        None
        if len(kept) == 0 or 2 * len(kept) < len(values)
        else [float(v) for v in np.quantile(kept, (0.025, 0.975))]
    )


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _both(x: np.ndarray, y: np.ndarray) -> tuple[float | None, float | None]:
    """(tau-b, rho) of two vectors, None where one is constant or has a single element."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return None, None
    return _or_none(scipy.stats.kendalltau(x, y)[0]), _or_none(scipy.stats.spearmanr(x, y)[0])  # type: ignore[arg-type]


def _regret(on_set: np.ndarray, full: np.ndarray) -> float:
    """Of several networks that are equally good on the set, the mean."""
    return float(full.max() - full[on_set == on_set.max()].mean())


def _why_none(name: str, on_set: np.ndarray, full: np.ndarray) -> str | None:
    equal = [where for where, values in (("full", full), (name, on_set)) if len(set(values)) == 1]
    return (
        f"all networks have the same accuracy on {' and on '.join(equal)}, so there is no order"
        if equal
        else None
    )


def _ceiling(full: list[np.ndarray], seed: int) -> dict[str, Any]:
    """How far the full data agree with themselves: mean correlation of two halves of their seeds
    over random halvings, each network's its own.

    The means of a half are noisier than those of all seeds, so this is rather low for the agreement
    that a perfect set could reach.
    """
    fewest = min(len(values) for values in full)
    base = {"kendall": None, "spearman": None, "seeds_per_half": fewest // 2, "splits": 0}
    if fewest < 2:
        return base | {
            "reason": "one network of a kind on the full data cannot be compared with another one; raise evaluation.num_networks"
        }
    rng = _stream(seed, "ceiling")
    halves = np.empty((2, SPLITS, len(full)))
    for j, values in enumerate(full):
        half = len(values) // 2
        drawn = rng.permuted(np.tile(values, (SPLITS, 1)), axis=1)
        halves[:, :, j] = (
            drawn[:, :half].mean(1).round(DECIMALS),
            drawn[:, half : 2 * half].mean(1).round(DECIMALS),
        )
    tau, rho = kendall_rows(*halves), spearman_rows(*halves)
    kept = np.isfinite(tau)
    if not kept.any():
        return base | {
            "reason": "all networks have the same accuracy on full, so there is no order"
        }
    return base | {
        "kendall": float(tau[kept].mean()),
        "spearman": float(rho[kept].mean()),
        "splits": int(kept.sum()),
        "reason": None,
    }


def correlations(evaluation: dict[str, Any], *, seed: int, resamples: int = 2000) -> dict[str, Any]:
    """How well each set of an evaluation orders networks as the full data do.

    Compared are mean accuracies over seeds, by Kendall's tau-b and Spearman's rho (-1 to 1). Their
    95 % intervals are percentiles of a two-level bootstrap: networks are drawn with replacement,
    and of each network the seeds, of the set and of the full data independently; a network drawn
    twice has the same seeds both times, so is tied with itself in both orders. Resamples in which
    all accuracies are equal are dropped; where that is more than half, there is no interval. All
    sets share the resampled networks and the resampled full data, so differences between sets (of
    the first set's tau and another's) are paired. `top_*` are the same among the better half of the
    networks by full accuracy, where choosing is hard; selecting that half makes them smaller than
    among all. `regret` is the full-data accuracy (a fraction) lost by taking the network that is
    best on the set in place of the one best on the full data; as that one is the best of the very
    accuracies it is compared with, regret is rather high. `ceiling`: correlation between two halves
    of the full data's own seeds.

    Args:
        evaluation: content of evaluation.json, whose rows hold every network on "full" and on other
            sets; networks that lack a set are left out, as are seeds that diverged, and networks
            all of whose seeds diverged on a set, which "diverged" names.
        seed: decides all draws; nothing else does but the accuracies and the names of the sets.
        resamples: of the bootstrap.

    Returns:
        {"networks", "diverged", "sets": [{"set", "kendall", "kendall_ci95", "spearman",
        "spearman_ci95", "top_kendall", "top_spearman", "regret", "reason", "resamples"}],
        "top_networks", "differences": [{"set", "than", "kendall", "kendall_ci95"}], "ceiling",
        "seed", "resamples", "note"}; what cannot be computed is None, and "reason" says why.

    Raises:
        UserError: no row of the full data, none of another set, or fewer than 3 networks that have
            all sets.
    """
    rows = {
        (row["set"], row["model"]): np.array(
            [a["accuracy"] for a in row["accuracies"] if a["accuracy"] is not None], float
        )
        for row in evaluation["rows"]
    }
    names = [name for name in dict.fromkeys(name for name, _ in rows) if name != "full"]
    if not any(name == "full" for name, _ in rows) or not names:
        lacking = "no set but full" if not names else "no row of the full data"
        raise UserError(
            f"The evaluation has {lacking}, and a ranking compares sets with the full data; "
            "evaluate with full among evaluation.baselines."
        )
    networks = [
        model
        for model in dict.fromkeys(model for _, model in rows)
        if all((name, model) in rows for name in (*names, "full"))
    ]
    diverged = [
        model for model in networks if any(len(rows[name, model]) == 0 for name in (*names, "full"))
    ]
    networks = [model for model in networks if model not in diverged]
    if len(networks) < FEWEST:
        lost = f" (without {', '.join(diverged)}, which diverged on a set)" if diverged else ""
        raise UserError(
            f"The evaluation has {len(networks)} networks on all sets{lost}, and a ranking needs "
            f"{FEWEST}; name more with evaluation.models."
        )
    on = {name: [rows[name, model] for model in networks] for name in (*names, "full")}
    means = {
        name: np.array([values.mean() for values in of]).round(DECIMALS) for name, of in on.items()
    }
    full = means["full"]
    top = np.argsort(-full, kind="stable")[: math.ceil(len(networks) / 2)]

    chosen = _stream(seed, "networks").integers(len(networks), size=(resamples, len(networks)))
    drawn = {
        name: np.take_along_axis(_resampled(of, resamples, _stream(seed, "seeds", name)), chosen, 1)
        for name, of in on.items()
    }
    taus = {name: kendall_rows(drawn[name], drawn["full"]) for name in names}
    sets = []
    for name in names:
        (tau, rho), (top_tau, top_rho) = (
            _both(means[name], full),
            _both(means[name][top], full[top]),
        )
        ordered = tau is not None
        reason = _why_none(name, means[name], full)
        if ordered and top_tau is None:
            reason = f"the better half of the networks, {len(top)}, all have the same accuracy on one of the two"
        sets.append({
            "set": name,
            "kendall": tau,
            "kendall_ci95": _interval(taus[name]) if ordered else None,
            "spearman": rho,
            "spearman_ci95": _interval(spearman_rows(drawn[name], drawn["full"])) if ordered else None,
            "top_kendall": top_tau,
            "top_spearman": top_rho,
            "regret": _regret(means[name], full),
            "reason": reason,
            "resamples": int(np.isfinite(taus[name]).sum()),
        })  # fmt: skip
    known = {entry["set"]: entry["kendall"] for entry in sets}
    first = names[0]
    differences = [
        {
            "set": first,
            "than": other,
            "kendall": known[first] - known[other],
            "kendall_ci95": _interval(taus[first] - taus[other]),
        }
        for other in names[1:]
        if known[first] is not None and known[other] is not None
    ]
    lost = f" Left out, because they diverged on a set: {', '.join(diverged)}." if diverged else ""
    return {
        "networks": networks,
        "diverged": diverged,
        "sets": sets,
        "top_networks": [networks[i] for i in top],
        "differences": differences,
        "ceiling": _ceiling(on["full"], seed),
        "seed": seed,
        "resamples": resamples,
        "note": f"{CAUTION} {_facts(sets[0], differences, len(networks))}{lost}",
    }


def _facts(first: dict[str, Any], differences: list[dict[str, Any]], num: int) -> str:
    """What this evaluation says of its first set, in a sentence."""
    name, tau, ci = first["set"], first["kendall"], first["kendall_ci95"]
    if tau is None:
        return f"Here nothing can be said of {name}: {first['reason']}."
    if num < TELLING:
        return f"Here {num} networks are too few to show anything, because so few often come in one order by chance; name {TELLING} or more."
    if ci is None:
        return f"Here, of {num} networks, {name} has a tau of {tau:.2f}, without an interval: most resamples have no order."
    if ci[0] > 0:
        says = "does not contain 0: the orders agree more than by chance"
    elif ci[1] < 0:
        says = "lies below 0: good networks on the full data tend to be bad ones on the set"
    else:
        says = "contains 0: it is not shown that the set orders networks at all as the full data do"
    text = f"Here, of {num} networks, {name} has a tau of {tau:.2f}, and its 95 % interval, {_range(ci)}, {says}"
    parts = []
    for entry in differences:
        if entry["than"] not in ("random", "herding"):
            continue
        between = entry["kendall_ci95"]
        if between is None:
            parts.append(f"whether it is above that of {entry['than']} cannot be said")
            continue
        word = (
            "clearly above"
            if between[0] > 0
            else "clearly below"
            if between[1] < 0
            else "not clearly above"
        )
        parts.append(
            f"it is {word} that of {entry['than']} (difference {entry['kendall']:+.2f}, "
            f"{_range(between)})"
        )
    return "; ".join([text, *parts]) + "."


def _range(ci: list[float]) -> str:
    return f"{ci[0]:.2f} to {ci[1]:.2f}"


def _cell(value: float | None, ci: list[float] | None = None) -> str:
    return "-" if value is None else f"{value:.2f}" + (f" ({_range(ci)})" if ci else "")


def table(result: dict[str, Any]) -> Table:
    """What `correlations` returns as a table for the terminal; top tau is of the better half,
    regret in points of percent, the note below.
    """
    shown = Table(
        title=f"order of {len(result['networks'])} networks: agreement with the full data",
        title_justify="left",
        caption_justify="left",
    )
    for head in ("set", "tau", "95 %", "rho", "top tau", "regret"):
        shown.add_column(head, justify="left" if head == "set" else "right", no_wrap=True)
    for entry in result["sets"]:
        cells = [
            _cell(entry["kendall"]),
            _range(entry["kendall_ci95"]) if entry["kendall_ci95"] else "-",
            _cell(entry["spearman"]),
        ]
        shown.add_row(
            entry["set"], *cells, _cell(entry["top_kendall"]), f"{100 * entry['regret']:.1f}"
        )
    ceiling = result["ceiling"]
    shown.add_row(
        "full, half seeds", _cell(ceiling["kendall"]), "-", _cell(ceiling["spearman"]), "-", "-"
    )
    shown.caption = result["note"]
    return shown


def plot(path: Path, evaluation: dict[str, Any], result: dict[str, Any]) -> None:
    """A PNG: for each set a panel, a point for each network, mean accuracy on the set against that
    on the full data, tau in the title.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    means = {(row["set"], row["model"]): 100 * row["accuracy_mean"] for row in evaluation["rows"]}
    networks, sets = result["networks"], result["sets"]
    columns = min(4, len(sets))
    lines = math.ceil(len(sets) / columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(3.1 * columns, 3.0 * lines),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axis in axes.flat[len(sets) :]:
        axis.set_visible(False)
    full = [means["full", model] for model in networks]
    for axis, entry in zip(axes.flat, sets, strict=False):
        axis.scatter(
            [means[entry["set"], model] for model in networks], full, s=22, color="#1b6ca8"
        )
        axis.set_title(
            f"{entry['set']}: tau {_cell(entry['kendall'], entry['kendall_ci95'])}", fontsize=9
        )
        axis.set_xlabel(f"test accuracy on {entry['set']}, %", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for line in axes:
        line[0].set_ylabel("test accuracy on full data, %", fontsize=8)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)
