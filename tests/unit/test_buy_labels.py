"""Labels bought from a teacher that errs: the max-min distribution against linear programs, draws,
answers of files, rounds, what cannot be.
"""

import json
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from helpers import tiny_data, tiny_set
from scipy.optimize import linprog

import ddengine
from ddengine.api.results import Distilled
from ddengine.learning import training
from ddengine.pages import of_labels
from ddengine.recipe import AugmentConfig, DataConfig
from ddengine.sets.pruning import facility_location
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.uses.labels import (
    LabelsConfig,
    OfFile,
    Simulated,
    cites,
    inclusion,
    max_min,
)
from ddengine.uses.labels.choosing import Judged, entropy, facility, margin, rad, uniform
from ddengine.uses.labels.distribution import drawn
from synth.catalogue import RECIPES

BASE = RECIPES["mtt/digits_ipc1"]
RECIPE = replace(
    BASE,
    data=DataConfig(name="digits", limit=200),
    model="convnet-d1-w4-in",
    evaluation=replace(
        BASE.evaluation, augment=AugmentConfig(ops=()), rate="learned", lr=0.05, batch=64
    ),
)
SMALL = LabelsConfig(
    rules=("rad", "facility"),
    wrong=(0.0, 0.4),
    first_per_class=1,
    rounds=2,
    points=8,
    steps=3,
    repeats=2,
)


# The distribution.


def by_linear_program(gains, errors):
    """The value of max over p of min over |F| <= m of sum s_i p_i g_i, by HiGHS.

    The sum of the m largest of a_i = p_i g_i is the least m t + sum u_i with u_i >= a_i - t.
    """
    num = len(gains)
    flipped = min(errors, num)
    cost = np.concatenate([-gains, [2 * flipped], np.full(num, 2.0)])
    above = np.hstack([np.diag(gains), -np.ones((num, 1)), -np.eye(num)])
    sums_to_1 = np.concatenate([np.ones(num), np.zeros(num + 1)])[None]
    found = linprog(cost, A_ub=above, b_ub=np.zeros(num), A_eq=sums_to_1, b_eq=[1])
    assert found.success
    return -found.fun


def worst(probabilities, gains, errors):
    """What a distribution gains at least: its largest terms are turned against it."""
    terms = np.sort(probabilities * gains)[::-1]
    return terms.sum() - 2 * terms[:errors].sum()


def some_gains(seed):
    """(gains (n,), wrong answers): up to 8 points, at times equal, zero or more than can be."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 9))
    gains = rng.random(num)
    if seed % 3 == 0:
        gains = np.round(4 * gains) / 4
    if seed % 7 == 0:
        gains[rng.integers(num)] = 0
    if seed % 11 == 0:
        gains[:] = gains[0]
    return gains, int(rng.integers(0, num + 2))


def test_the_closed_form_is_the_optimum_of_a_linear_program():
    """Ties, zeros, one point, errors of half the points and of all of them among the cases."""
    negative = 0
    for seed in range(250):
        gains, errors = some_gains(seed)
        ours = max_min(torch.from_numpy(gains), errors)
        said = ours.probabilities.numpy()
        assert said.min() >= 0 and said.sum() == pytest.approx(1)
        assert ours.value == pytest.approx(by_linear_program(gains, errors), abs=1e-7), seed
        assert worst(said, gains, errors) == pytest.approx(ours.value, abs=1e-9), seed
        negative += ours.value < 0
    assert 20 < negative < 200  # both kinds of cases were there


def test_it_is_proportional_to_1_over_the_gain_on_the_largest_gains():
    gains = torch.tensor([0.5, 0.01, 1.0, 0.4], dtype=torch.float64)
    ours = max_min(gains, 1)
    assert (ours.probabilities > 0).tolist() == [True, False, True, True]
    products = (ours.probabilities * gains)[[0, 2, 3]]
    assert torch.allclose(products, products[0].expand(3))
    assert ours.value == pytest.approx(1 / (2 + 1 + 2.5))  # (3 - 2) / sum of 1 / g
    alone = max_min(gains, 0)
    assert alone.probabilities.tolist() == [0, 0, 1, 0] and alone.value == 1


@pytest.mark.parametrize(
    ("gains", "errors", "said"),
    [
        ([], 0, "no point"),
        ([0.1, -0.1], 0, "finite and not negative"),
        ([0.1, float("nan")], 0, "may have diverged"),
        ([0.1], -1, "-1 wrong answers"),
    ],
)
def test_gains_that_cannot_be(gains, errors, said):
    with pytest.raises(UserError, match=said):
        max_min(torch.tensor(gains), errors)


def test_each_point_is_included_with_its_probability():
    """Never above 1, as many as asked, in proportion to p below that."""
    for seed in range(100):
        gains, _ = some_gains(seed)
        for num in range(len(gains) + 1):
            included = inclusion(torch.from_numpy(gains), num, seed % 3)
            assert float(included.sum()) == pytest.approx(num)
            assert 0 <= float(included.min()) and float(included.max()) <= 1 + 1e-12
    gains = torch.tensor([1.0, 0.5, 0.5, 0.25], dtype=torch.float64)  # p: 1, 2, 2, 4 of 9
    some = inclusion(gains, 2, 1)
    assert torch.allclose(some, torch.tensor([2, 4, 4, 8], dtype=torch.float64) / 9)
    capped = inclusion(gains, 3, 1)  # 3 p is 12/9 for the last: 1, and 2 in all for the others
    assert torch.allclose(capped, torch.tensor([0.4, 0.8, 0.8, 1.0], dtype=torch.float64))
    with pytest.raises(UserError, match="5 points are to be bought of 4 that are left"):
        inclusion(gains, 5, 1)


def test_draws_have_these_probabilities():
    included = torch.tensor([1.0, 0.7, 0.2, 0.1, 0.0, 0.5, 0.5], dtype=torch.float64)
    counts = torch.zeros(7)
    times = 2000
    for seed in range(times):
        points = drawn(included, generator(seed, "drawn"))
        assert len(points) == 3 == len(points.unique())
        counts[points] += 1
    assert counts[0] == times and counts[4] == 0
    assert torch.allclose(counts.double() / times, included, atol=0.045)  # 4 standard errors


def test_any_two_points_may_be_drawn_together():
    """Systematic sampling takes neighbours never, so their order is random."""
    pairs = set()
    for seed in range(60):
        first, second = sorted(drawn(torch.full((4,), 0.5), generator(seed, "pair")).tolist())
        pairs.add((first, second))
    assert len(pairs) == 6


def test_rad_guards_against_half_of_a_round_at_most():
    config = replace(SMALL, points=10)
    assert [config.guarded(wrong) for wrong in (0.0, 0.31, 0.9, None)] == [0, 3, 5, 2]
    assert replace(config, errors=0.1).guarded(0.9) == 1


# The rules.


def judged():
    """40 points of 5 classes, and 3 known ones."""
    rng = generator(0, "judged")
    logits = torch.randn(40, 5, generator=rng, dtype=torch.float64)
    features = torch.nn.functional.normalize(torch.randn(40, 6, generator=rng), dim=1)
    return Judged((3 * logits).softmax(1), features, features[:3])


def test_rules_choose_what_they_say():
    of, rng = judged(), generator(1)
    first, second = of.probabilities.topk(2, 1).values.T
    assert torch.equal(margin(of, 6, 0, rng), (first - second).argsort(stable=True)[:6])
    entropies = torch.distributions.Categorical(of.probabilities).entropy()
    assert set(entropy(of, 6, 0, rng).tolist()) == set(entropies.topk(6).indices.tolist())
    for rule in (rad, uniform, facility):
        points = rule(of, 6, 1, rng)
        assert len(points) == 6 == len(points.unique()) and points.max() < 40


def test_facility_leaves_out_what_is_like_the_known_points():
    """Those that would be chosen first are known here, and others are chosen."""
    of = judged()
    kernel = (of.features @ of.features.T).clamp(min=0)
    first, _ = facility_location(kernel, 3)
    covered = kernel[:, first].max(1).values
    wanted, _ = facility_location(kernel, 3, covered=covered)
    chosen = facility(replace(of, known=of.features[first]), 3, 0, generator(1))
    assert chosen.tolist() == wanted and not set(wanted) & set(first)


def test_rad_without_errors_buys_the_largest_gains():
    of = judged()
    assert set(rad(of, 6, 0, generator(2)).tolist()) == set(margin(of, 6, 0, generator(2)).tolist())
    spread = set()
    for seed in range(20):
        spread |= set(rad(of, 6, 3, generator(seed)).tolist())
    assert len(spread) > 12  # with errors it draws among more


# Who answers.


def test_more_wrong_answers_have_those_of_fewer_among_them():
    classes = torch.arange(600) % 7
    index = torch.arange(600)
    before = torch.zeros(600, dtype=torch.bool)
    for share in (0.0, 0.1, 0.4, 1.0):
        said, answered = Simulated(classes, 7, share, 3).ask(index)
        wrong = said != classes
        assert answered.all() and (wrong & before).sum() == before.sum()
        assert float(wrong.double().mean()) == pytest.approx(share, abs=0.06)
        before = wrong
    assert said.max() < 7 and len((said - classes).remainder(7).unique()) == 6


def test_a_file_answers_by_index_name_and_class_name(tmp_path):
    file = tmp_path / "answers.csv"
    names, classes = ["a.png", "b, c.png", "d.png"], ("ant", "bee")
    assert OfFile.read(file, names, classes).ask(torch.arange(3))[1].tolist() == [False] * 3
    file.write_text('index,name,class\n0,a.png,bee\n,"b, c.png",0\n2,d.png,\n')
    said, answered = OfFile.read(file, names, classes).ask(torch.arange(3))
    assert answered.tolist() == [True, True, False] and said[:2].tolist() == [1, 0]
    for text, message in (
        ("name,label\na.png,ant\n", "give it class, and index or name"),
        ("index,class\n7,ant\n", "line 2, names the point '7'"),
        ("name,class\ne.png,ant\n", "names the point 'e.png'"),
        ("index,class\n1,wasp\n", "says the class 'wasp'"),
        ("index,class\n1,ant\n1,bee\n", "line 3, answers about point 1 otherwise"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            OfFile.read(file, names, classes)
    file.write_bytes(b"\xff\xfe\x00index")
    with pytest.raises(UserError, match="cannot be read as a CSV file"):
        OfFile.read(file, names, classes)


# Rounds.


def bought(config=SMALL, recipe=RECIPE, progress=False, **settings):
    return ddengine.buy_labels(
        None, recipe, config, device="cpu", progress=progress, **settings
    ).content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where labels.json is written."""
    return tmp_path_factory.mktemp("labels") / "run"


@pytest.fixture(scope="module")
def steps():
    """(done, total) of the progress of `content`."""
    return []


@pytest.fixture(scope="module")
def content(folder, steps):
    """Two rules, with answers that are all right and with 40 % wrong ones."""

    def progress(title, done, total, note):
        steps.append((done, total))

    made = bought(folder=folder, progress=progress, command=("buy_labels", "digits"))
    assert json.loads((folder / "labels.json").read_text())["rows"] == made["rows"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "labels.json", "labels.png", "labels.recipe.json"
    ]  # fmt: skip
    return made


def test_rounds_buy_new_points_and_learn_the_answers(content):
    assert [(row["rule"], row["wrong"]) for row in content["rows"]] == [
        ("rad", 0.0), ("facility", 0.0), ("rad", 0.4), ("facility", 0.4)
    ]  # fmt: skip
    data = tiny_data()
    for row in content["rows"]:
        assert row["bought"] == 16 and len(row["rounds"]) == 3
        assert row["errors"] == round(row["wrong"] * 8)
        for repeat, wrong in zip(row["repeats"], row["wrong_bought"], strict=True):
            assert len(set(repeat["index"])) == 16
            right = data.train.labels[repeat["index"]] == torch.tensor(repeat["answers"])
            assert 1 - float(right.double().mean()) == pytest.approx(wrong)
        assert (max(row["wrong_bought"]) > 0) == (row["wrong"] > 0)
    starts = {tuple(row["rounds"][0]["values"]) for row in content["rows"]}
    assert len(starts) == 1  # all begin with the same points and networks
    assert {(d["answers"], d["rule"]) for d in content["differences"]} == {
        ("0 % wrong", "facility"), ("40 % wrong", "facility")
    }  # fmt: skip
    notes = of_labels.notes(content)
    assert notes[0].startswith("0 % wrong: rad less facility, after the last round: ")


def test_progress_counts_every_network_once(content, steps):
    done, total = zip(*steps, strict=True)
    assert set(total) == {2 * (1 + 2 * 2 * 2)} and done[-1] == total[-1]


def test_a_folder_has_a_page(content, folder, tmp_path):
    page = unescape(ddengine.report(folder, tmp_path / "page.html").read_text())
    for words in (
        "Labels bought from a teacher that errs",
        "40 % wrong</th><td>facility",
        "buy_labels mtt/digits_ipc1",
        *of_labels.notes(content),
    ):
        assert words in page, words
    assert page.count("data:image/png") == 1


def test_rules_have_the_same_points_and_seeds_and_repeats_and_rounds_others(monkeypatch):
    lessons = []

    def untrained(new_model, sets, seeds, *args, **settings):
        lessons.append((seeds[0], tuple(sets[0].index[:10].tolist()), len(sets[0])))
        return [new_model(generator(0)).eval()]

    monkeypatch.setattr(training, "train_networks", untrained)
    config = replace(SMALL, rules=("uniform", "margin"), wrong=(0.0,), rounds=2)
    bought(config)
    assert len(lessons) == 2 * (1 + 2 * 2)  # the start of a repeat, and two rounds of two rules
    of_repeats = {}
    for seed, known, size in lessons:
        of_repeats.setdefault(known, set()).add((seed, size))
    assert len(of_repeats) == 2  # other points are known in each repeat
    for of_repeat in of_repeats.values():
        assert sorted(size for _, size in of_repeat) == [10, 18, 26]
        assert len({seed for seed, _ in of_repeat}) == 3


def test_a_pool_can_be_bought_to_its_last_point():
    """Nothing twice, and nothing that was known."""
    config = replace(SMALL, rules=("uniform", "rad"), wrong=(0.0,), points=85, repeats=1)
    for row in bought(config)["rows"]:
        assert len(set(row["repeats"][0]["index"])) == 170  # 180 points, of which 10 were known


def test_what_is_interrupted_goes_on_to_the_bit(content, tmp_path, monkeypatch):
    train, left = training.train_networks, [8]

    def stopping(*args, **settings):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return train(*args, **settings)

    monkeypatch.setattr(training, "train_networks", stopping)
    with pytest.raises(KeyboardInterrupt):
        bought(folder=tmp_path / "run")
    left[0] = -1
    again = bought(folder=tmp_path / "run", command=("buy_labels", "digits"))
    assert timeless(again) == timeless(content)


def timeless(content):
    """Without what a clock says."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k != "seconds"}
    return [timeless(v) for v in content] if isinstance(content, list) else content


def test_a_person_answers_round_by_round(tmp_path):
    """What is not answered is asked for; an answer that is mended is learned anew."""
    config = replace(SMALL, rules=("rad",), repeats=1)
    answers, folder = tmp_path / "answers.csv", tmp_path / "run"
    labels = tiny_data().train.labels
    text = "index,class\n"
    asked = []
    for _ in range(2):
        waiting = bought(config, answers=answers, folder=folder)
        assert waiting["rows"] == [] and not (folder / "labels.json").exists()
        lines = (folder / "ask.csv").read_text().splitlines()
        assert lines[0] == "index,name,class" and len(lines) == 9
        asked.append([int(line.split(",")[0]) for line in lines[1:]])
        text += "".join(f"{point},{int(labels[point])}\n" for point in asked[-1])
        answers.write_text(text)
    made = bought(config, answers=answers, folder=folder)
    (row,) = made["rows"]
    assert row["repeats"][0]["index"] == asked[0] + asked[1] and row["wrong"] is None
    assert row["wrong_bought"] == [0.0] and not (folder / "ask.csv").exists()


def test_a_teacher_answers_and_a_set_is_the_pool():
    data = tiny_data()
    meta = {"recipe": to_dict(RECIPE), "seed": 0, "images": data.train.digest}
    pool = Distilled(tiny_set(data, 3), meta)
    config = replace(
        SMALL, teacher=RECIPE.model, teacher_images=20, teacher_steps=3, repeats=1, points=5
    )
    made = bought(config, pool=pool)
    assert made["points"] == 30 and [row["answers"] for row in made["rows"]] == [RECIPE.model] * 2
    assert all(max(row["repeats"][0]["index"]) < 30 for row in made["rows"])


# What cannot be.

REFUSED = {
    "rule 'radd'": {"rules": ("radd",)},
    "Name at least one rule": {"rules": ()},
    "wrong are shares of the answers": {"wrong": (1.5,)},
    "wrong must hold one share": {"wrong": ()},
    "wrong must hold each share once": {"wrong": (0.1, 0.1)},
    "more than rad can guard against": {"errors": 0.5},
    "points must be at least 1": {"points": 0},
    "teacher_images must be at least 1": {"teacher_images": 0},
}


def test_settings_that_cannot_be():
    for said, changes in REFUSED.items():
        with pytest.raises(UserError, match=said):
            LabelsConfig(**changes)


def test_what_cannot_be_run_is_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_networks", None)
    with pytest.raises(UserError, match="2 rounds of 100 are 210, and the pool has 180"):
        bought(replace(SMALL, points=100))
    with pytest.raises(UserError, match=r"more than the \d+ points of class"):
        bought(replace(SMALL, first_per_class=19))
    with pytest.raises(UserError, match="teacher_images 500 are more than the 180"):
        bought(replace(SMALL, teacher="convnet-d1-w4-in", teacher_images=500))
    with pytest.raises(UserError, match="A file answers one course"):
        bought(answers=tmp_path / "a.csv", folder=tmp_path / "run")
    one = replace(SMALL, rules=("rad",), repeats=1)
    (tmp_path / "a.csv").write_text("index,class\n999,1\n")
    with pytest.raises(UserError, match="names the point '999'"):
        bought(one, answers=tmp_path / "a.csv", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="name a folder"):
        bought(one, answers=tmp_path / "a.csv")
    with pytest.raises(UserError, match="would answer; leave one out"):
        bought(replace(one, teacher="convnet"), answers=tmp_path / "a.csv")
    features = Distilled(tiny_set(tiny_data()).with_features(torch.zeros(20, 3)), {})
    with pytest.raises(UserError, match="has features and no classes"):
        bought(pool=features)
    with pytest.raises(UserError, match="LabelsConfig"):
        bought({"points": 3})


def test_works_to_cite_are_those_in_use():
    assert cites(replace(SMALL, rules=("rad",))) == ("baykal2023rad",)
    assert cites(SMALL) == ("baykal2023rad", "nemhauser1978submodular")
