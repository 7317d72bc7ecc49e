"""95 % intervals of accuracies: within 0 and 1, honest about skewed ones, and the plain ones where
these are right.
"""

import json

import numpy as np
import pytest
import scipy.stats

from ddengine.evaluation import intervals, scores, tables
from ddengine.evaluation.intervals import interval, within
from ddengine.pages import figures, of_continual, page


def plain(values):
    """Student's t interval."""
    return scipy.stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
    )


def test_the_interval_stays_within_the_bounds_and_holds_the_mean():
    """Random accuracies, also of networks that are always or never right."""
    rng = np.random.default_rng(0)
    cases = [
        [0.1, 1.0],
        [0.0, 1.0],
        [0.0, 0.0, 1e-9],
        [1.0, 1.0, 0.999],
        [1e-12, 2e-12],
        [0.1, 0.574 * 2 - 0.1],
    ]
    cases += [rng.uniform(0, 1, n).tolist() for n in (2, 3, 5, 20) for _ in range(50)]
    cases += [(1 - rng.beta(0.2, 5, n)).tolist() for n in (2, 3, 5) for _ in range(50)]
    for values in cases:
        mean, std, ends = interval(values)
        assert mean == pytest.approx(np.mean(values)) and std == pytest.approx(
            np.std(values, ddof=1)
        )
        assert 0 <= ends[0] <= mean <= ends[1] <= 1, values
        assert ends[0] < ends[1], values


def test_it_is_the_plain_interval_where_values_scatter_little_in_the_middle():
    for values in ([0.61, 0.58, 0.6, 0.6, 0.62], [0.5, 0.501], list(np.linspace(0.45, 0.5, 30))):
        assert interval(values)[2] == pytest.approx(plain(values), abs=0.002), values


def test_its_ends_are_those_of_the_delta_method():
    """By hand: mean 0.9, half width h, so 0.9 / 0.1 times exp(-+ h / 0.09) as odds."""
    values = [0.85, 0.9, 0.95]
    half = scipy.stats.t.ppf(0.975, 2) * 0.05 / 3**0.5
    odds = 9 * np.exp(np.array([-1, 1]) * half / 0.09)
    assert interval(values)[2] == pytest.approx(odds / (1 + odds), rel=1e-12)
    low, high = interval(values)[2]
    assert 0.9 - low > high - 0.9  # there is more room below


def test_it_covers_skewed_accuracies_more_often_than_the_plain_one():
    """Networks that mostly reach 95 %, now and then much less."""
    rng = np.random.default_rng(0)
    for n, least in ((2, 0.94), (3, 0.93), (5, 0.92)):
        drawn = rng.beta(0.95 * 28, 0.05 * 28, (2000, n))
        ours = np.array([interval(list(values))[2] for values in drawn])
        cut = np.array([plain(values) for values in drawn]).clip(0, 1)
        covers = [
            float(((ends[:, 0] <= 0.95) & (0.95 <= ends[:, 1])).mean()) for ends in (ours, cut)
        ]
        assert covers[0] > least and covers[0] > covers[1] + 0.01, (n, covers)


def test_equal_values_one_value_and_none():
    assert interval([]) == (None, None, None)
    assert interval([0.4]) == (0.4, None, None)
    for value in (0.0, 0.5, 1.0):
        assert interval([value] * 3) == (value, 0.0, (value, value))


def test_differences_have_bounds_of_their_own():
    """Improvements lie within -1 and 1: negative ends are right there, and the interval is
    symmetric around 0.
    """
    low, high = interval([-0.1, 0.1], -1.0, 1.0)[2]
    assert low == pytest.approx(-high) and -1 < low < -0.5
    assert within(0.0, 0.2, -1.0, 1.0) == pytest.approx((-np.tanh(0.2), np.tanh(0.2)))
    summary = scores.summary([-0.02, 0.03, 0.1], -1.0, 1.0)
    assert -1 < summary["ci95"][0] < 0 < summary["ci95"][1] < 1


def evaluations(sets):
    return {
        "rows": [
            {"set": s, "model": "mlp", "accuracies": [{"accuracy": a} for a in values]}
            for s, values in sets.items()
        ]
    }


def test_scores_and_splits_stay_within_their_bounds():
    """Two networks, as far apart as can be."""
    augmented = evaluations({"distilled": [0.05, 0.99], "random": [0.1, 0.2], "full": [0.99, 1.0]})
    made = scores.of(augmented, evaluations({"distilled": [0.05, 0.99], "random": [0.2, 0.1]}))[0][
        "scores"
    ]
    for name, found in made.items():
        floor = 0 if name in scores.BOUNDS else -1
        assert floor <= found["ci95"][0] <= found["mean"] <= found["ci95"][1] <= 1, name
    assert made["improvement_over_random"]["ci95"][0] < 0 < made["label_robust_score"]["ci95"][0]
    groups = [[0.99, 0.95, 0.2], [0.9, 0.99, 0.97]]
    for paired in (False, True):
        split = scores.variance_split(groups, paired=paired)
        assert 0 <= split["ci95"][0] <= split["mean"] <= split["ci95"][1] <= 1, paired


ROWS = [
    {
        "set": "distilled",
        "model": "mlp",
        "accuracy_mean": 0.9,
        "accuracy_std": 0.1,
        "ci95": [0.4, 0.99],
        "n": 3,
    },
    {
        "set": "full",
        "model": "mlp",
        "accuracy_mean": 0.95,
        "accuracy_std": None,
        "ci95": None,
        "n": 1,
    },
]


def test_error_bars_reach_as_far_as_the_interval_on_each_side():
    below, above = figures.error_bars(ROWS)
    assert below == pytest.approx([50.0, 0.0]) and above == pytest.approx([9.0, 0.0])
    stages = [{"mean": 0.9, "ci95": [0.4, 0.99]}, {"mean": None, "ci95": None}]
    below, above = figures.error_bars(stages, "mean")
    assert below == pytest.approx([50.0, 0.0]) and above == pytest.approx([9.0, 0.0])


def test_what_is_shown_names_the_interval(tmp_path):
    """Of an evaluation its own, of an older one plain Student's t; nothing where there is none."""
    new, old = {"rows": ROWS, "interval": intervals.NAME}, {"rows": ROWS}
    assert any(intervals.NAME in line for line in tables.notes(new))
    assert any(line.endswith("by Student's t") for line in tables.notes(old))
    assert not any("interval" in line for line in tables.notes({"rows": ROWS[1:]}))
    for content in (new, old):
        (tmp_path / "evaluation.json").write_text(json.dumps(content))
        text = page.write([tmp_path], tmp_path / "report.html").read_text().replace("&#39;", "'")
        assert f"95 % intervals of the mean over networks by {tables.interval_of(content)}<" in text
    stages = {"accuracy": [{"mean": 0.5, "ci95": [0.1, 0.9], "diverged": 0}]}
    result = {"config": {"repeats": 2}, "memories": {"random": stages}, "interval": intervals.NAME}
    assert intervals.NAME in of_continual.notes(result)[0]
