"""Do networks come in the same order on a small set as on the full data?

Rank correlations of an evaluation of many networks.
"""

import math
from collections.abc import Mapping, Sequence
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
from ddengine.types import Evaluation, Facts, Json

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
        a = _signs(x[part])
        b = _signs(y[part])
        both = (a * b).sum((1, 2))
        left = np.square(a).sum((1, 2))
        right = np.square(b).sum((1, 2))
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
    both = (a * b).sum(1)
    left = np.square(a).sum(1)
    right = np.square(b).sum(1)
    with np.errstate(invalid="ignore"):
        return both / np.sqrt(left * right)


# Resampling.


def _stream(seed: int, *names: str) -> np.random.Generator:
    """Random numbers of a purpose, which follow from the seed and its names."""
    stream = generator(seed, "ranking", *names)
    number = torch.randint(2**62, (1,), generator=stream)
    return np.random.default_rng(int(number))


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
    """The value, or None in place of one that is not finite."""
    if not math.isfinite(value):
        return None
    return float(value)


def _both(x: np.ndarray, y: np.ndarray) -> tuple[float | None, float | None]:
    """(tau-b, rho) of two vectors, None where one is constant or has a single element."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return None, None
    tau, _ = scipy.stats.kendalltau(x, y)
    rho, _ = scipy.stats.spearmanr(x, y)
    return _or_none(tau), _or_none(rho)  # type: ignore[arg-type]


def _regret(on_set: np.ndarray, full: np.ndarray) -> float:
    """Of several networks that are equally good on the set, the mean."""
    best_on_set = full[on_set == on_set.max()]
    return float(full.max() - best_on_set.mean())


def _why_none(name: str, on_set: np.ndarray, full: np.ndarray) -> str | None:
    """Why there is no correlation."""
    equal = []
    if len(set(full)) == 1:
        equal.append("full")
    if len(set(on_set)) == 1:
        equal.append(name)
    if not equal:
        return None
    return NO_ORDER.format(" and on ".join(equal))


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
    one, other = _halves(full, _stream(seed, "ceiling"))
    tau = kendall_rows(one, other)
    rho = spearman_rows(one, other)
    kept = np.isfinite(tau)
    if not kept.any():
        return unknown | {"reason": NO_ORDER.format("full")}
    return unknown | {
        "kendall": float(tau[kept].mean()),
        "spearman": float(rho[kept].mean()),
        "splits": int(kept.sum()),
        "reason": None,
    }


def _halves(accuracies: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Mean accuracies of m networks over two halves of their seeds: (2, SPLITS, m)."""
    halves = np.empty((2, SPLITS, len(accuracies)))
    for j, values in enumerate(accuracies):
        half = len(values) // 2
        drawn = rng.permuted(np.tile(values, (SPLITS, 1)), axis=1)
        one = drawn[:, :half]
        other = drawn[:, half : 2 * half]
        halves[0, :, j] = one.mean(1).round(DECIMALS)
        halves[1, :, j] = other.mean(1).round(DECIMALS)
    return halves


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
        accuracies = np.array([network["accuracy"] for network in row["accuracies"]], float)
        rows[row["set"], row["model"]] = accuracies[np.isfinite(accuracies)]
    all_sets = dict.fromkeys(name for name, _ in rows)
    all_networks = dict.fromkeys(network for _, network in rows)
    names = _sets_to_compare(list(all_sets))
    networks = []
    diverged = []
    for network in all_networks:
        fewest = _fewest_seeds(rows, network, [*names, "full"])
        if fewest == 0:
            diverged.append(network)
        elif fewest is not None:
            networks.append(network)
    if len(networks) < FEWEST:
        lost = ""
        if diverged:
            lost = f" (without {', '.join(diverged)}, which diverged on a set)"
        raise UserError(
            f"The evaluation has {len(networks)} networks on all sets{lost}, and a ranking needs "
            f"{FEWEST}; name more with evaluation.models."
        )
    return _Accuracies(names, networks, diverged, rows)


def _fewest_seeds(
    rows: Mapping[tuple[str, str], np.ndarray], network: str, names: Sequence[str]
) -> int | None:
    """The least number of seeds with which a network did not diverge, among sets of these names.

    None where it was not trained on one of the sets.
    """
    sizes = []
    for name in names:
        if (name, network) not in rows:
            return None
        sizes.append(len(rows[name, network]))
    return min(sizes)


def _sets_to_compare(names: list[str]) -> list[str]:
    """The sets beside the full data. Raises UserError where one of both is lacking."""
    others = [name for name in names if name != "full"]
    if others and "full" in names:
        return others
    lacking = "no set but full"
    if others:
        lacking = "no row of the full data"
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
        rng = _stream(seed, "seeds", name)
        means = _resampled(known.on(name), resamples, rng)
        return np.take_along_axis(means, chosen, 1)

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
        tau_ci95 = _interval(drawn.taus)
        rho_ci95 = _interval(drawn.rhos())
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
        taus = drawn[first["set"]].taus - drawn[other["set"]].taus
        difference = {
            "set": first["set"],
            "than": other["set"],
            "kendall": first["kendall"] - other["kendall"],
            "kendall_ci95": _interval(taus),
        }
        differences.append(difference)
    return differences


# In words, as a table, as a picture.


def _facts(first: Json, differences: list[Json], num: int) -> str:
    """What this evaluation says of its first set, in a sentence."""
    name = first["set"]
    tau = first["kendall"]
    ci = first["kendall_ci95"]
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
    low, high = ci
    if low > 0:
        says = "does not contain 0: the orders agree more than by chance"
    elif high < 0:
        says = "lies below 0: good networks on the full data tend to be bad ones on the set"
    else:
        says = "contains 0: it is not shown that the set orders networks at all as the full data do"
    parts = [
        f"Here, of {num} networks, {name} has a tau of {tau:.2f}, and its 95 % interval, "
        f"{_range(ci)}, {says}"
    ]
    for difference in differences:
        if difference["than"] in ("random", "herding"):
            parts.append(_compared(difference))
    return "; ".join(parts) + "."


def _compared(difference: Json) -> str:
    """A difference between two sets in words."""
    than = difference["than"]
    ci = difference["kendall_ci95"]
    if ci is None:
        return f"whether it is above that of {than} cannot be said"
    low, high = ci
    word = "not clearly above"
    if low > 0:
        word = "clearly above"
    elif high < 0:
        word = "clearly below"
    return f"it is {word} that of {than} (difference {difference['kendall']:+.2f}, {_range(ci)})"


def _range(ci: list[float]) -> str:
    """An interval in words."""
    low, high = ci
    return f"{low:.2f} to {high:.2f}"


def _cell(value: float | None, ci: list[float] | None = None) -> str:
    """A correlation with its interval, where there are such."""
    if value is None:
        return "-"
    if not ci:
        return f"{value:.2f}"
    return f"{value:.2f} ({_range(ci)})"


def table(result: Facts) -> Table:
    """What `correlations` returns as a table for the terminal.

    Top tau is of the better half, regret in points of percent; the note stands below.
    """
    shown = Table(
        title=f"order of {len(result['networks'])} networks: agreement with the full data",
        title_justify="left",
        caption=result["note"],
        caption_justify="left",
    )
    shown.add_column("set", no_wrap=True)
    for head in ("tau", "95 %", "rho", "top tau", "regret"):
        shown.add_column(head, justify="right", no_wrap=True)
    for entry in result["sets"]:
        ci = "-"
        if entry["kendall_ci95"]:
            ci = _range(entry["kendall_ci95"])
        shown.add_row(
            entry["set"],
            _cell(entry["kendall"]),
            ci,
            _cell(entry["spearman"]),
            _cell(entry["top_kendall"]),
            f"{100 * entry['regret']:.1f}",
        )
    ceiling = result["ceiling"]
    tau = _cell(ceiling["kendall"])
    rho = _cell(ceiling["spearman"])
    shown.add_row("full, half seeds", tau, "-", rho, "-", "-")
    return shown


def plot(path: Path, evaluation: Evaluation, result: Facts) -> None:
    """A PNG with a panel for each set and a point for each network.

    It shows the mean accuracy on the set against that on the full data, tau in the title.
    """
    from matplotlib.figure import Figure  # a second to import

    accuracies = {}
    for row in evaluation["rows"]:
        accuracies[row["set"], row["model"]] = row["accuracy_mean"]
    networks = result["networks"]
    sets = result["sets"]
    columns = min(4, len(sets))
    lines = math.ceil(len(sets) / columns)
    figure = Figure(figsize=(3.1 * columns, 3.0 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(sets) :]:
        axis.set_visible(False)
    full = [100 * accuracies["full", network] for network in networks]
    for axis, entry in zip(axes.flat, sets, strict=False):
        name = entry["set"]
        on_set = [100 * accuracies[name, network] for network in networks]
        axis.scatter(on_set, full, s=22, color="#1b6ca8")
        tau = _cell(entry["kendall"], entry["kendall_ci95"])
        axis.set_title(f"{name}: tau {tau}", fontsize=9)
        axis.set_xlabel(f"test accuracy on {name}, %", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for line in axes:
        line[0].set_ylabel("test accuracy on full data, %", fontsize=8)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
