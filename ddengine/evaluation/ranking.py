"""Do networks come in the same order on a small set as on the full data?

Rank correlations of an evaluation of many networks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from rich.table import Table

from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.types import Evaluation, Json

# Small networks whose accuracies on the full data differ: depth, width, normalisation, pooling,
# activation, and two other families.
GRID: tuple[str, ...] = (
    "mlp",
    "lenet",
    "convnet-d1-w8-in",
    "convnet-d1-w32-nn",
    "convnet-d2-w8-bn",
    "convnet-d2-w8-nn-sigmoid",
    "convnet-d2-w16-in-mp",
    "convnet-d2-w32-gn",
    "convnet-d3-w8-nn",
    "convnet-d3-w8-in",
    "convnet-d3-w16-bn",
    "convnet-d3-w32-in",
)

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
NO_ORDER = "all networks have the same accuracy on {}, so there is no order"


def grid(image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The networks of `GRID` that images (C, H, W) can be given to.

    A depth d halves the sides d times. Raises UserError for less than 4 pixels.
    """
    side = min(image_shape[1:])
    if side < 4:
        raise UserError(
            f"The images are {image_shape[1]} x {image_shape[2]}, too small for networks of "
            "different depth; set data.size to 8 8 or more."
        )
    names = []
    for name in GRID:
        depth = 0
        if name.startswith("convnet-d"):
            depth = int(name[len("convnet-d")])
        if 2**depth <= side:
            names.append(name)
    return tuple(names)


# Rank correlation of many pairs of rows.


def kendall_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each pair of rows of x and y (R, m): (R,), NaN where a row is constant."""
    taus = np.empty(len(x))
    step = max(1, CELLS // x.shape[1] ** 2)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        a, b = _signs(x[part]), _signs(y[part])
        both, left, right = (a * b).sum((1, 2)), np.square(a).sum((1, 2)), np.square(b).sum((1, 2))
        with np.errstate(invalid="ignore"):
            taus[part] = both / np.sqrt(left * right)
    return taus


def _signs(rows: np.ndarray) -> np.ndarray:
    """Which of each two of a row (R, m) is larger: (R, m, m) of -1, 0, 1."""
    return np.sign(rows[:, :, None] - rows[:, None, :])


def spearman_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho of each pair of rows of x and y (R, m): (R,), NaN where a row is constant."""
    middle = (x.shape[1] + 1) / 2
    a = scipy.stats.rankdata(x, axis=1) - middle
    b = scipy.stats.rankdata(y, axis=1) - middle
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
    columns = []
    for values in accuracies:
        drawn = rng.integers(len(values), size=(resamples, len(values)))
        columns.append(values[drawn].mean(1))
    return np.stack(columns, axis=1).round(DECIMALS)


def _interval(values: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of what is not NaN; None where that is less than half."""
    kept = values[np.isfinite(values)]
    if len(kept) == 0 or 2 * len(kept) < len(values):
        return None
    return np.quantile(kept, (0.025, 0.975)).tolist()


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _both(x: np.ndarray, y: np.ndarray) -> tuple[float | None, float | None]:
    """(tau-b, rho) of two vectors, None where one is constant or has a single element."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return None, None
    tau, rho = scipy.stats.kendalltau(x, y)[0], scipy.stats.spearmanr(x, y)[0]
    return _or_none(tau), _or_none(rho)  # type: ignore[arg-type]


def _regret(on_set: np.ndarray, full: np.ndarray) -> float:
    """Of several networks that are equally good on the set, the mean."""
    return float(full.max() - full[on_set == on_set.max()].mean())


def _why_none(name: str, on_set: np.ndarray, full: np.ndarray) -> str | None:
    """Why there is no correlation."""
    equal = []
    for where, values in (("full", full), (name, on_set)):
        if len(set(values)) == 1:
            equal.append(where)
    return NO_ORDER.format(" and on ".join(equal)) if equal else None


def _ceiling(full: list[np.ndarray], seed: int) -> Json:
    """How far the full data agree with themselves.

    It is the mean correlation of two halves of their seeds over random halvings, each network's its
    own. The means of a half are noisier than those of all seeds, so this is rather low for the
    agreement that a perfect set could reach.
    """
    fewest = min(map(len, full))
    unknown = {"kendall": None, "spearman": None, "seeds_per_half": fewest // 2, "splits": 0}
    if fewest < 2:
        return unknown | {
            "reason": "one network of a kind on the full data cannot be compared with another one; "
            "raise evaluation.num_networks"
        }
    rng = _stream(seed, "ceiling")
    halves = np.empty((2, SPLITS, len(full)))
    for j, values in enumerate(full):
        half = len(values) // 2
        drawn = rng.permuted(np.tile(values, (SPLITS, 1)), axis=1)
        halves[0, :, j] = drawn[:, :half].mean(1).round(DECIMALS)
        halves[1, :, j] = drawn[:, half : 2 * half].mean(1).round(DECIMALS)
    tau, rho = kendall_rows(*halves), spearman_rows(*halves)
    kept = np.isfinite(tau)
    if not kept.any():
        return unknown | {"reason": NO_ORDER.format("full")}
    return unknown | {
        "kendall": float(tau[kept].mean()),
        "spearman": float(rho[kept].mean()),
        "splits": int(kept.sum()),
        "reason": None,
    }


# The sets of an evaluation.


@dataclass(frozen=True)
class _Accuracies:
    """Of every set and network the accuracies of an evaluation, and what is left out of it."""

    names: list[str]  # sets beside "full"
    networks: list[str]
    diverged: list[str]  # networks that are left out, because all of their seeds did on a set
    rows: dict[tuple[str, str], np.ndarray]  # (set, network) -> accuracies of seeds

    def on(self, name: str) -> list[np.ndarray]:
        """The accuracies of each network on a set."""
        return [self.rows[name, network] for network in self.networks]

    def means(self, name: str) -> np.ndarray:
        """The mean accuracy of each network on a set: (m,)."""
        return np.array([values.mean() for values in self.on(name)]).round(DECIMALS)


def _accuracies(evaluation: Evaluation) -> _Accuracies:
    """Raises UserError where there is nothing to compare."""
    rows: dict[tuple[str, str], np.ndarray] = {}
    for row in evaluation["rows"]:
        accuracies = np.array([told["accuracy"] for told in row["accuracies"]], float)
        rows[row["set"], row["model"]] = accuracies[np.isfinite(accuracies)]
    names = _sets_to_compare(list(dict.fromkeys(name for name, _ in rows)))
    networks, diverged = [], []
    for network in dict.fromkeys(network for _, network in rows):
        of_sets = [rows.get((name, network)) for name in (*names, "full")]
        sizes = [len(values) for values in of_sets if values is not None]
        if len(sizes) < len(of_sets):
            continue
        (networks if min(sizes) else diverged).append(network)
    if len(networks) < FEWEST:
        lost = f" (without {', '.join(diverged)}, which diverged on a set)" if diverged else ""
        raise UserError(
            f"The evaluation has {len(networks)} networks on all sets{lost}, and a ranking needs "
            f"{FEWEST}; name more with evaluation.models."
        )
    return _Accuracies(names, networks, diverged, rows)


def _sets_to_compare(names: list[str]) -> list[str]:
    """The sets beside the full data. Raises UserError where one of both is lacking."""
    others = [name for name in names if name != "full"]
    if others and "full" in names:
        return others
    lacking = "no row of the full data" if others else "no set but full"
    raise UserError(
        f"The evaluation has {lacking}, and a ranking compares sets with the full data; "
        "evaluate with full among evaluation.baselines."
    )


@dataclass(frozen=True)
class _Drawn:
    """Resampled mean accuracies of the networks: (resamples, m)."""

    on_set: np.ndarray
    full: np.ndarray

    @cached_property
    def taus(self) -> np.ndarray:
        """Kendall's tau of each resample."""
        return kendall_rows(self.on_set, self.full)

    def rhos(self) -> np.ndarray:
        """Spearman's rho of each resample."""
        return spearman_rows(self.on_set, self.full)


def _bootstrap(known: _Accuracies, seed: int, resamples: int) -> dict[str, _Drawn]:
    """The two-level bootstrap of each set; all share the networks drawn, and the full data."""
    num = len(known.networks)
    chosen = _stream(seed, "networks").integers(num, size=(resamples, num))

    def drawn(name: str) -> np.ndarray:
        values = _resampled(known.on(name), resamples, _stream(seed, "seeds", name))
        return np.take_along_axis(values, chosen, 1)

    full = drawn("full")
    return {name: _Drawn(drawn(name), full) for name in known.names}


def correlations(evaluation: Evaluation, *, seed: int, resamples: int = 2000) -> Json:
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
    known = _accuracies(evaluation)
    drawn = _bootstrap(known, seed, resamples)
    full = known.means("full")
    top = np.argsort(-full, kind="stable")[: math.ceil(len(full) / 2)]
    sets = [_of_set(name, known.means(name), full, top, drawn[name]) for name in known.names]
    differences = _differences(sets, drawn)
    lost = ""
    if known.diverged:
        lost = f" Left out, because they diverged on a set: {', '.join(known.diverged)}."
    return {
        "networks": known.networks,
        "diverged": known.diverged,
        "sets": sets,
        "top_networks": [known.networks[i] for i in top],
        "differences": differences,
        "ceiling": _ceiling(known.on("full"), seed),
        "seed": seed,
        "resamples": resamples,
        "note": f"{CAUTION} {_facts(sets[0], differences, len(full))}{lost}",
    }


def _of_set(
    name: str, on_set: np.ndarray, full: np.ndarray, top: np.ndarray, drawn: _Drawn
) -> Json:
    """What `correlations` says of a set. on_set, full: (m,); top: indices of the better half."""
    tau, rho = _both(on_set, full)
    top_tau, top_rho = _both(on_set[top], full[top])
    reason = _why_none(name, on_set, full)
    tau_ci95 = rho_ci95 = None
    if tau is not None:
        tau_ci95, rho_ci95 = _interval(drawn.taus), _interval(drawn.rhos())
        if top_tau is None:
            reason = (
                f"the better half of the networks, {len(top)}, all have the same accuracy on one "
                "of the two"
            )
    return {
        "set": name,
        "kendall": tau,
        "kendall_ci95": tau_ci95,
        "spearman": rho,
        "spearman_ci95": rho_ci95,
        "top_kendall": top_tau,
        "top_spearman": top_rho,
        "regret": _regret(on_set, full),
        "reason": reason,
        "resamples": int(np.isfinite(drawn.taus).sum()),
    }


def _differences(sets: Sequence[Json], drawn: dict[str, _Drawn]) -> list[Json]:
    """The tau of the first set less that of each other one, where both have one."""
    first, *others = sets
    differences = []
    for other in others:
        if first["kendall"] is None or other["kendall"] is None:
            continue
        between = drawn[first["set"]].taus - drawn[other["set"]].taus
        differences.append(
            {
                "set": first["set"],
                "than": other["set"],
                "kendall": first["kendall"] - other["kendall"],
                "kendall_ci95": _interval(between),
            }
        )
    return differences


# In words, as a table, as a picture.


def _facts(first: Json, differences: list[Json], num: int) -> str:
    """What this evaluation says of its first set, in a sentence."""
    name, tau, ci = first["set"], first["kendall"], first["kendall_ci95"]
    if tau is None:
        return f"Here nothing can be said of {name}: {first['reason']}."
    if num < TELLING:
        return (
            f"Here {num} networks are too few to show anything, because so few often come in one "
            f"order by chance; name {TELLING} or more."
        )
    if ci is None:
        return (
            f"Here, of {num} networks, {name} has a tau of {tau:.2f}, without an interval: most "
            "resamples have no order."
        )
    if ci[0] > 0:
        says = "does not contain 0: the orders agree more than by chance"
    elif ci[1] < 0:
        says = "lies below 0: good networks on the full data tend to be bad ones on the set"
    else:
        says = "contains 0: it is not shown that the set orders networks at all as the full data do"
    parts = [
        f"Here, of {num} networks, {name} has a tau of {tau:.2f}, and its 95 % interval, "
        f"{_range(ci)}, {says}"
    ]
    for entry in differences:
        if entry["than"] in ("random", "herding"):
            parts.append(_compared(entry))
    return "; ".join(parts) + "."


def _compared(entry: Json) -> str:
    """A difference between two sets in words."""
    than, between = entry["than"], entry["kendall_ci95"]
    if between is None:
        return f"whether it is above that of {than} cannot be said"
    word = "not clearly above"
    if between[0] > 0:
        word = "clearly above"
    elif between[1] < 0:
        word = "clearly below"
    return f"it is {word} that of {than} (difference {entry['kendall']:+.2f}, {_range(between)})"


def _range(ci: list[float]) -> str:
    return f"{ci[0]:.2f} to {ci[1]:.2f}"


def _cell(value: float | None, ci: list[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} ({_range(ci)})" if ci else f"{value:.2f}"


def table(result: Json) -> Table:
    """What `correlations` returns as a table for the terminal.

    Top tau is of the better half, regret in points of percent; the note stands below.
    """
    shown = Table(
        title=f"order of {len(result['networks'])} networks: agreement with the full data",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("set", no_wrap=True)
    for head in ("tau", "95 %", "rho", "top tau", "regret"):
        shown.add_column(head, justify="right", no_wrap=True)
    for entry in result["sets"]:
        shown.add_row(
            entry["set"],
            _cell(entry["kendall"]),
            _range(entry["kendall_ci95"]) if entry["kendall_ci95"] else "-",
            _cell(entry["spearman"]),
            _cell(entry["top_kendall"]),
            f"{100 * entry['regret']:.1f}",
        )
    ceiling = result["ceiling"]
    tau, rho = _cell(ceiling["kendall"]), _cell(ceiling["spearman"])
    shown.add_row("full, half seeds", tau, "-", rho, "-", "-")
    shown.caption = result["note"]
    return shown


def plot(path: Path, evaluation: Evaluation, result: Json) -> None:
    """A PNG with a panel for each set and a point for each network.

    It shows the mean accuracy on the set against that on the full data, tau in the title.
    """
    from matplotlib.figure import Figure  # a second to import

    means = {(row["set"], row["model"]): row["accuracy_mean"] for row in evaluation["rows"]}
    networks, sets = result["networks"], result["sets"]
    columns = min(4, len(sets))
    lines = math.ceil(len(sets) / columns)
    figure = Figure(figsize=(3.1 * columns, 3.0 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(sets) :]:
        axis.set_visible(False)
    full = [100 * means["full", model] for model in networks]
    for axis, entry in zip(axes.flat, sets, strict=False):
        on_set = [100 * means[entry["set"], model] for model in networks]
        axis.scatter(on_set, full, s=22, color="#1b6ca8")
        tau = _cell(entry["kendall"], entry["kendall_ci95"])
        axis.set_title(f"{entry['set']}: tau {tau}", fontsize=9)
        axis.set_xlabel(f"test accuracy on {entry['set']}, %", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for line in axes:
        line[0].set_ylabel("test accuracy on full data, %", fontsize=8)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
