import io
import json

import numpy as np
import pytest
import scipy.stats
import torch
from rich.console import Console

from ddengine.evaluation import ranking
from ddengine.models import build_model
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

FULL = (0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)


def evaluation(**sets):
    """Of each set the accuracies per network: numbers, or tuples of one per seed; `full` as FULL."""
    rows = []
    for name, networks in ({**sets} if "full" in sets else {**sets, "full": FULL}).items():
        for j, values in enumerate(networks):
            values = np.atleast_1d(values).tolist()
            rows.append({
                "set": name, "model": f"net{j}", "accuracy_mean": float(np.mean(values)),
                "accuracies": [{"seed": i, "draw": 0, "accuracy": a} for i, a in enumerate(values)],
            })  # fmt: skip
    return {"rows": rows}


def of(result, name):
    return next(entry for entry in result["sets"] if entry["set"] == name)


def printed(table, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def noisy(scale, *, seeds=4, networks=40, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.linspace(0.4, 0.9, networks)
    return [tuple(t + rng.normal(0, scale, seeds)) for t in truth], [
        tuple(t + rng.normal(0, 0.01, seeds)) for t in truth
    ]


def test_perfect_and_reversed_orders():
    same = tuple(x**3 for x in FULL)  # another scale, the same order
    result = ranking.correlations(
        evaluation(distilled=same, random=same[::-1]), seed=0, resamples=200
    )
    best, worst = of(result, "distilled"), of(result, "random")
    assert [entry["set"] for entry in result["sets"]] == ["distilled", "random"] and len(
        result["networks"]
    ) == 10
    for key in ("kendall", "spearman", "top_kendall", "top_spearman"):
        assert best[key] == pytest.approx(1) and worst[key] == pytest.approx(-1)
    assert best["kendall_ci95"] == pytest.approx([1, 1]) and worst[
        "spearman_ci95"
    ] == pytest.approx([-1, -1])
    assert best["regret"] == 0 and worst["regret"] == pytest.approx(0.45)
    assert result["differences"][0]["kendall"] == pytest.approx(2) and result["differences"][0][
        "kendall_ci95"
    ] == pytest.approx([2, 2])


def test_top_half_is_by_full_accuracy():
    upside_down_above = (*FULL[:5], *FULL[5:][::-1])
    entry = of(
        ranking.correlations(evaluation(distilled=upside_down_above), seed=0, resamples=50),
        "distilled",
    )
    assert entry["top_kendall"] == pytest.approx(-1) and entry["top_spearman"] == pytest.approx(-1)
    assert entry["kendall"] == pytest.approx((45 - 2 * 10) / 45)
    assert entry["regret"] == pytest.approx(0.2)  # it takes the fifth best


def test_ties_by_hand_and_regret_of_tied_networks():
    result = ranking.correlations(
        evaluation(distilled=(0.1, 0.3, 0.3, 0.2), full=(0.5, 0.7, 0.9, 0.6)), seed=0, resamples=50
    )
    entry = of(result, "distilled")
    # 5 pairs in order, one tied on the set
    assert entry["kendall"] == pytest.approx(5 / np.sqrt(5 * 6))
    assert entry["regret"] == pytest.approx(0.9 - 0.8)  # either of the two


def test_means_that_differ_by_rounding_only_are_tied():
    a, b = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    assert np.mean(a) != np.mean(b) or sum(a) != sum(b)
    result = ranking.correlations(
        evaluation(distilled=(a, b, 0.5), full=(0.1, 0.2, 0.3)), seed=0, resamples=50
    )
    assert of(result, "distilled")["kendall"] == pytest.approx(2 / np.sqrt(2 * 3))


def test_rows_agree_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (50, 8)) / 5, rng.integers(0, 5, (50, 8)) / 5
    x[0] = 0.3
    tau, rho = ranking.kendall_rows(x, y), ranking.spearman_rows(x, y)
    assert np.isnan(tau[0]) and np.isnan(rho[0])
    for i in range(1, 50):
        assert tau[i] == pytest.approx(scipy.stats.kendalltau(x[i], y[i]).statistic)
        assert rho[i] == pytest.approx(scipy.stats.spearmanr(x[i], y[i]).statistic)


def test_rows_in_parts(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.random((30, 6)), rng.random((30, 6))
    whole = ranking.kendall_rows(x, y)
    monkeypatch.setattr(ranking, "CELLS", 7 * 36)
    assert np.array_equal(ranking.kendall_rows(x, y), whole)


def test_results_agree_with_scipy():
    distilled, full = noisy(0.2)
    entry = of(
        ranking.correlations(evaluation(distilled=distilled, full=full), seed=0, resamples=100),
        "distilled",
    )
    means = [np.mean(v) for v in distilled], [np.mean(v) for v in full]
    assert entry["kendall"] == pytest.approx(scipy.stats.kendalltau(*means).statistic)
    assert entry["spearman"] == pytest.approx(scipy.stats.spearmanr(*means).statistic)


def test_interval_contains_the_truth_and_narrows_with_networks():
    # bivariate normal accuracies of one seed: tau is 2 / pi asin(r)
    truth, hits, widths = 2 / np.pi * np.arcsin(0.6), 0, {}
    for networks in (12, 60):
        for trial in range(20):
            x, y = (
                np.random.default_rng(trial)
                .multivariate_normal((0.7, 0.6), [[0.01, 0.006], [0.006, 0.01]], networks)
                .T
            )
            low, high = of(
                ranking.correlations(evaluation(distilled=x, full=y), seed=trial, resamples=300),
                "distilled",
            )["kendall_ci95"]
            hits += low <= truth <= high
            widths.setdefault(networks, []).append(high - low)
    assert 33 <= hits <= 40  # of 40
    assert np.mean(widths[60]) < 0.6 * np.mean(widths[12])


def test_interval_counts_the_noise_of_seeds():
    steady = evaluation(distilled=[(x, x) for x in FULL])
    shaky = evaluation(distilled=[(x - 0.2, x + 0.2) for x in FULL])
    a, b = (
        of(ranking.correlations(e, seed=0, resamples=300), "distilled") for e in (steady, shaky)
    )
    assert a["kendall"] == b["kendall"] == pytest.approx(1)
    assert a["kendall_ci95"][0] == pytest.approx(1) and b["kendall_ci95"][0] < 0.8


def test_seed_alone_decides():
    distilled, full = noisy(0.2)
    content = evaluation(distilled=distilled, random=distilled[::-1], full=full)
    torch.manual_seed(1), np.random.seed(1)  # noqa: NPY002
    first = ranking.correlations(content, seed=3, resamples=100)
    torch.manual_seed(2), np.random.seed(2)  # noqa: NPY002
    assert ranking.correlations(content, seed=3, resamples=100) == first
    assert (
        of(ranking.correlations(content, seed=4, resamples=100), "distilled")["kendall_ci95"]
        != of(first, "distilled")["kendall_ci95"]
    )
    alone = ranking.correlations(evaluation(distilled=distilled, full=full), seed=3, resamples=100)
    assert of(alone, "distilled") == of(first, "distilled")  # whatever other sets there are


def test_constant_accuracies_are_none_with_a_reason():
    result = ranking.correlations(
        evaluation(distilled=[0.1] * 10, random=FULL), seed=0, resamples=50
    )
    entry = of(result, "distilled")
    assert all(
        entry[k] is None
        for k in (
            "kendall",
            "kendall_ci95",
            "spearman",
            "spearman_ci95",
            "top_kendall",
            "top_spearman",
        )
    )
    assert "same accuracy on distilled" in entry["reason"] and entry["resamples"] == 0
    assert entry["regret"] == pytest.approx(0.225)  # any of them
    assert of(result, "random")["reason"] is None and result["differences"] == []
    assert "nothing can be said of distilled" in result["note"]
    json.dumps(result, allow_nan=False)
    flat = ranking.correlations(
        evaluation(distilled=FULL, full=[(0.5, 0.5)] * 10), seed=0, resamples=50
    )
    assert (
        "on full" in of(flat, "distilled")["reason"]
        and "on full" in flat["ceiling"]["reason"]
        and flat["ceiling"]["kendall"] is None
    )


def test_no_interval_where_most_resamples_have_no_order():
    # drawn in two resamples of three, as is the network that has it
    rare = (0.1, 0.1, 0.1, 0.1, 0.1, 0.7)
    result = ranking.correlations(
        evaluation(distilled=(0.1, 0.1, rare), full=(0.1, 0.2, 0.3)), seed=0, resamples=400
    )
    entry = of(result, "distilled")
    assert (
        entry["kendall"] == pytest.approx(2 / np.sqrt(2 * 3))
        and entry["kendall_ci95"] is None
        and 100 < entry["resamples"] < 200
    )
    assert (
        "3 networks are too few to show anything" in result["note"]
        and "more than by chance" not in result["note"]
    )


def test_ceiling():
    full = [(x, x, x, x) for x in FULL]
    steady = ranking.correlations(evaluation(distilled=FULL, full=full), seed=0, resamples=50)[
        "ceiling"
    ]
    assert (
        steady["kendall"] == pytest.approx(1)
        and steady["seeds_per_half"] == 2
        and steady["reason"] is None
    )
    rng = np.random.default_rng(0)
    noise = [tuple(rng.random(4)) for _ in range(40)]
    assert (
        abs(
            ranking.correlations(evaluation(distilled=range(40), full=noise), seed=0, resamples=50)[
                "ceiling"
            ]["spearman"]
        )
        < 0.25
    )
    one = ranking.correlations(evaluation(distilled=FULL), seed=0, resamples=50)["ceiling"]
    assert one["kendall"] is None and "num_networks" in one["reason"]


def test_note_follows_the_facts():
    good, full = noisy(0.02)
    chance = list(np.random.default_rng(5).permutation(np.linspace(0.2, 0.4, 40)))

    def note(**sets):
        return ranking.correlations(evaluation(**sets, full=full), seed=0, resamples=300)["note"]

    agreeing = note(distilled=good, random=chance, herding=good)
    assert ranking.CAUTION in agreeing and "does not contain 0" in agreeing
    assert (
        "clearly above that of random" in agreeing
        and "not clearly above that of herding" in agreeing
    )
    none = note(distilled=chance, random=good)
    assert "contains 0: it is not shown" in none and "clearly below that of random" in none
    assert "lies below 0" in note(distilled=good[::-1])
    assert "of 40 networks, mine has" in note(mine=good)


def test_networks_that_lack_a_set_are_left_out():
    content = evaluation(distilled=FULL, random=FULL)
    content["rows"] = [
        row for row in content["rows"] if (row["set"], row["model"]) != ("random", "net4")
    ]
    assert ranking.correlations(content, seed=0, resamples=50)["networks"] == [
        f"net{j}" for j in range(10) if j != 4
    ]


def test_errors():
    with pytest.raises(UserError, match="no row of the full data"):
        ranking.correlations(
            {"rows": [r for r in evaluation(distilled=FULL)["rows"] if r["set"] != "full"]}, seed=0
        )
    with pytest.raises(UserError, match="no set but full"):
        ranking.correlations(evaluation(), seed=0)
    with pytest.raises(UserError, match="2 networks"):
        ranking.correlations(evaluation(distilled=FULL[:2], full=FULL[:2]), seed=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 4, 5), (3, 64, 64)])
def test_grid_suits_the_images(shape):
    names = ranking.grid(shape)
    assert len(set(names)) == len(names) >= (6 if min(shape[1:]) < 8 else 12)
    for name in names:
        network = build_model(name, shape, 10, generator(0)).train()
        assert network(torch.zeros(2, *shape)).shape == (2, 10)


def test_grid_of_images_that_are_too_small():
    with pytest.raises(UserError, match="too small"):
        ranking.grid((1, 3, 8))


def test_table_and_plot(tmp_path):
    distilled, full = noisy(0.1, networks=12)
    content = evaluation(distilled=distilled, random=[0.1] * 12, herding=distilled[::-1], full=full)
    result = ranking.correlations(content, seed=0, resamples=100)
    text = printed(ranking.table(result))
    assert (
        "distilled" in text
        and f"{of(result, 'distilled')['kendall']:.2f}" in text
        and "half seeds" in text
    )
    assert "often does not" in " ".join(text.split())
    ranking.plot(tmp_path / "ranking.png", content, result)
    assert [p.name for p in tmp_path.iterdir()] == ["ranking.png"] and (
        tmp_path / "ranking.png"
    ).stat().st_size > 5000
