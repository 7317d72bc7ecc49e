"""Pruned data: what is kept, what students are trained to say, what the figures are said to show."""

import json
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from helpers import tiny_data, tiny_set
from rich.console import Console

import ddengine
from ddengine.api.results import Distilled
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.pages import of_pruning
from ddengine.recipe import AugmentConfig, DataConfig
from ddengine.sets import coreset
from ddengine.sets.pruning import (
    by_features,
    cad_scores,
    facility_location,
    number_kept,
    ranked,
    similarities,
)
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.uses import pruning
from ddengine.uses.pruning import Context, PruningConfig, keep, students, teacher
from ddengine.uses.pruning.findings import findings
from ddengine.uses.pruning.looking import looked_at
from ddengine.uses.pruning.students import Student
from ddengine.uses.pruning.teacher import Teacher
from synth.catalogue import RECIPES

CPU = torch.device("cpu")
MODEL = "convnet-d2-w4-in"
BASE = RECIPES["mtt/digits_ipc1"]
RECIPE = replace(
    BASE,
    data=DataConfig(name="digits", limit=200),
    model=MODEL,
    init=replace(BASE.init, networks=1),
    evaluation=replace(
        BASE.evaluation, augment=AugmentConfig(ops=()), rate="learned", lr=0.05, batch=64
    ),
)
SMALL = PruningConfig(
    fractions=(0.1, 1.0),
    selections=("random", "hard"),
    alphas=(0.0, 0.9),
    steps=4,
    teacher_steps=6,
    repeats=2,
)


# What is kept.


def test_facility_location_is_the_greedy_one_by_brute_force():
    """Of small integers, so that many gains are equal; with and without weights."""
    for seed in range(60):
        rng = generator(seed, "facility")
        kernel = torch.randint(0, 4, (7, 6), generator=rng).double()
        weights = torch.randint(0, 3, (7,), generator=rng).double() if seed % 2 else torch.ones(7)
        chosen, gains = facility_location(kernel, 6, weights.double())
        taken: list[int] = []
        reached = torch.zeros(7, dtype=torch.float64)
        for number, gain in zip(chosen, gains, strict=True):
            values = []
            for j in range(6):
                best = torch.maximum(reached, kernel[:, j])
                of_j = float((weights.double() * (best - reached)).sum())
                values.append(-1.0 if j in taken else of_j)
            assert number == values.index(max(values)) and gain == max(values)
            taken.append(number)
            reached = torch.maximum(reached, kernel[:, number])


def test_similarities_are_cosines_without_negative_ones():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).double()
    assert torch.equal(similarities(rows), wanted)


def test_which_end_of_the_scores_is_kept():
    members = [torch.tensor([0, 2, 4, 6, 8]), torch.tensor([1, 3])]
    scores = torch.tensor([5.0, 9.0, 4.0, 8.0, 3.0, 0.0, 2.0, 0.0, 1.0])
    easy, _ = ranked(members, scores, 2, "easy")
    hard, _ = ranked(members, scores, 2, "hard")
    middle, small = ranked(members, scores, 2, "middle")
    assert (easy.tolist(), hard.tolist(), middle.tolist()) == ([8, 6], [0, 2], [6, 4])
    assert small.tolist() == [3, 1]  # a class of fewer is kept whole
    ties = ranked([torch.arange(4)], torch.zeros(4), 2, "hard")
    assert ties[0].tolist() == [0, 1]


def test_the_number_that_is_kept_is_that_of_the_published_code():
    for num in (12, 100, 9000, 50000):
        for num_classes in (2, 7, 10):
            for percent in range(1, 101):
                published = int(num / num_classes * percent / 100)
                assert number_kept(num, num_classes, percent / 100) == published


def test_orders_by_features_are_those_of_the_coresets():
    data = tiny_data()
    real, names = data.train, data.class_names
    features = real.images(torch.arange(len(real))).flatten(1).double()
    pairs = (
        (coreset.herding_order, coreset.herding_index),
        (coreset.k_centre_order, coreset.k_centre_index),
    )
    for order, index in pairs:
        ours = torch.cat(by_features(real.members, features, 4, order))
        assert torch.equal(ours, index(real, 4, names, coreset.pixels))
        more = torch.cat(by_features(real.members, features, 10**6, order))
        assert sorted(more.tolist()) == list(range(len(real)))


@pytest.mark.parametrize(
    ("epochs", "length", "windows", "said"),
    [
        (8, 6, 3, "train it for 9 at least"),
        (8, 1, 3, "a window 2 epochs"),
        (8, 6, 0, "1 at least"),
    ],
)
def test_windows_that_cad_cannot_have(epochs, length, windows, said):
    with pytest.raises(UserError, match=said):
        cad_scores(torch.zeros(3, epochs), length, windows)


def test_scores_are_those_of_a_network_after_its_epochs():
    """EL2N that is taken while a network trains is that of one that was trained so long."""
    real = tiny_data().train
    per_epoch = -(-len(real) // coreset.LOOKING.batch)

    def new_model(rng):
        return build_model("convnet-d1-w4-in", real.image_shape, 10, rng)

    config = PruningConfig(looking_epochs=9, early_epochs=2)
    scores = looked_at(real, new_model, generator(0), config, 0.05)
    after = coreset.train(real, new_model, generator(0), steps=2 * per_epoch, lr=0.05)
    assert torch.equal(scores["el2n"], coreset.el2n_scores(real, [after]))
    assert scores.keys() == {"el2n", "forgetting", "cad"} and len(scores["cad"]) == len(real)
    short = looked_at(real, new_model, generator(0), replace(config, looking_epochs=7), 0.05)
    assert "cad" not in short


def test_images_that_stand_for_others_are_weighted_by_cad(monkeypatch):
    context = context_of()
    num = len(context.data.train)
    scores = torch.rand(num, generator=generator(3), dtype=torch.float64) ** 4
    monkeypatch.setattr(keep, "scores_of", lambda context, repeat: {"cad": scores})
    judge = teacher_in(context)
    features = torch.randn(num, 3, generator=generator(4), dtype=torch.float64)
    judge.__dict__["features"] = features
    chosen = keep._facility(context, 4, 0, judge)
    differ = 0
    for members, of_class in zip(context.data.train.members, chosen, strict=True):
        kernel = similarities(features[members])
        weighted, _ = facility_location(kernel, 4, scores[members])
        assert of_class.tolist() == members[weighted].tolist()
        differ += weighted != facility_location(kernel, 4)[0]
    assert differ


def test_of_images_that_score_alike_some_are_drawn(monkeypatch):
    """Other ones in every repeat."""
    context = context_of()
    scores = torch.zeros(len(context.data.train), dtype=torch.float64)
    monkeypatch.setattr(keep, "scores_of", lambda context, repeat: {"el2n": scores})
    judge = teacher_in(context)
    orders = [torch.cat(keep._order(context, "el2n", 3, repeat, judge)) for repeat in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])


# What students learn.


def context_of(config=SMALL, recipe=RECIPE, folder=Path()):
    from ddengine.data import load_data

    data = load_data(recipe.data, CPU, test=True)
    return Context(data, recipe, config, 0, CPU, "fp32", folder, rates=(0.05,))


def teacher_in(context):
    data = context.data
    network = build_model(MODEL, data.image_shape, 10, generator(5))
    return Teacher(MODEL, network.eval(), context)


def trained(context, student, teacher=None):
    """The parameters of a student of the first 30 images."""
    on = students.with_targets(context, student, torch.arange(30), teacher)
    network = students.train(context, student, on, teacher, 0.05, 3)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_teacher_that_is_asked_once_says_what_it_says_at_every_update(monkeypatch):
    context = context_of()
    teacher, student = teacher_in(context), Student("kd", 0.9, MODEL)
    once = trained(context, student, teacher)
    assert not torch.allclose(trained(context, Student("ce", 0.0)), once, atol=1e-3)
    monkeypatch.setattr(students, "labels_of", lambda *args: "dynamic")
    assert torch.allclose(trained(context, student, teacher), once, atol=1e-6)


def test_augmented_images_are_shown_to_the_teacher():
    """But for reshaped logits, which are of images as they are."""
    augmented = replace(RECIPE, evaluation=replace(RECIPE.evaluation, augment=AugmentConfig()))
    for recipe, wanted in ((RECIPE, "own"), (augmented, "dynamic")):
        context = context_of(recipe=recipe)
        teacher = teacher_in(context)
        for loss, labels in (("kd", wanted), ("nkd", wanted), ("reshaped", "own")):
            student = Student(loss, 0.9, MODEL)
            on = students.with_targets(context, student, torch.arange(30), teacher)
            assert students.labels_of(context, student, on) == labels


@pytest.mark.parametrize("mixed", [{"cutmix": 1.0}, {"mixup": 0.8}])
def test_mixed_images_are_shown_to_the_teacher(mixed):
    context = context_of(recipe=replace(RECIPE, evaluation=replace(RECIPE.evaluation, **mixed)))
    student = Student("kd", 0.9, MODEL)
    on = students.with_targets(context, student, torch.arange(30), teacher_in(context))
    assert students.labels_of(context, student, on) == "dynamic"


def test_a_teacher_learns_classes_alone():
    learns = replace(RECIPE.evaluation, loss="kl", soft_weight=0.5, hard_weight=0.5)
    context = context_of(recipe=replace(RECIPE, evaluation=learns))
    protocol = teacher._alone(context, MODEL)
    assert (protocol.loss, protocol.labels) == ("ce", "hard")
    assert (protocol.soft_weight, protocol.hard_weight) == (1.0, 0.0)


def test_a_share_of_0_is_cross_entropy():
    context = context_of()
    none = trained(context, Student("kd", 0.0, MODEL), teacher_in(context))
    assert torch.allclose(none, trained(context, Student("ce", 0.0)), atol=1e-6)


def test_reshaped_logits_spread_as_those_of_their_class():
    context = context_of()
    teacher, labels = teacher_in(context), context.data.train.labels
    spread = teacher.logits.std(1)
    for c in range(10):
        of_class = teacher.reshaped_logits[labels == c].std(1)
        assert torch.allclose(of_class, spread[labels == c].mean().expand_as(of_class), atol=1e-5)


# The rows.


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """A small comparison with a set beside it, its folder, and (done, total) of its progress."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    data = ddengine.Dataset.named("digits").load(RECIPE.data, CPU)
    meta = {"recipe": to_dict(RECIPE), "seed": 0, "images": data.train.digest}
    beside = Distilled(tiny_set(data), meta)
    config = replace(SMALL, losses=("kd", "nkd"), write_sets=True)
    steps = []
    made = ddengine.prune(
        None,
        RECIPE,
        config,
        sets={"mine": beside},
        folder=folder,
        device="cpu",
        progress=lambda title, done, total, note: steps.append((done, total)),
        command=("prune", "digits"),
    )
    return made, folder, steps


def test_rows_have_equal_updates_and_sets_equal_bytes(outcome):
    made, folder, _ = outcome
    rows = made.rows
    assert {row["updates"] for row in rows} == {4}
    own = [row for row in rows if row["selection"] == "distilled"]
    assert own[0]["bytes"] == 20 * (64 * 4 + 8) and {row["loss"] for row in own} == {
        "ce", "kd", "nkd"
    }  # fmt: skip
    equal = [row for row in rows if row["size"] == own[0]["size"] and row not in own]
    assert {row["bytes"] for row in equal} == {7 * 10 * 72}  # 7 per class are 5,040 bytes of 5,280
    assert {row["images"] for row in rows if row["size"] == "0.1"} == {10}
    assert len(rows) == 2 * (3 + 3) + 3 + 3
    assert all(len(row["accuracies"]) == 2 for row in rows)
    assert sorted(path.name for path in folder.iterdir()) == [
        "kept", "prune.json", "prune.png", "prune.recipe.json"
    ]  # fmt: skip


def test_what_is_kept_is_written_and_opens_as_a_set(outcome):
    _, folder, _ = outcome
    kept = json.loads((folder / "kept" / "hard_0.1_repeat0.json").read_text())
    data = ddengine.Dataset.named("digits").load(RECIPE.data, CPU)
    assert data.train.labels[kept["index"]].tolist() == kept["classes"] == list(range(10))
    assert kept["names"] == [data.train_names[i] for i in kept["index"]]
    opened = ddengine.load(folder / "kept" / "hard_0.1_repeat0")
    assert torch.equal(opened.tensors["images"], data.train.pixels[kept["index"]])
    assert opened.meta["selected"]["kind"] == "hard"
    of_bytes = json.loads((folder / "kept" / "hard_bytes_of_mine_repeat0.json").read_text())
    assert set(kept["index"]) <= set(of_bytes["index"])


def test_the_same_command_finds_what_is_done(outcome, monkeypatch):
    made, folder, _ = outcome
    monkeypatch.setattr(training, "train_networks", None)  # nothing is trained again
    config = replace(SMALL, losses=("kd", "nkd"))
    with pytest.raises(UserError, match="made with other settings; name"):
        ddengine.prune(None, RECIPE, config, folder=folder, device="cpu", progress=False)
    content = json.loads((folder / "prune.json").read_text())
    assert content["rows"] == made.content["rows"]


def test_what_is_interrupted_goes_on_to_the_bit(tmp_path, monkeypatch):
    """Stopped in the middle of a training; networks and scores are read back."""
    alone = pruned(tmp_path / "alone")
    train, left = training.train_networks, [9]

    def stopping(*args, **settings):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return train(*args, **settings)

    monkeypatch.setattr(training, "train_networks", stopping)
    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "prune.partial.jsonl").read_text().count("final/") >= 3
    left[0] = -1
    again = pruned(tmp_path / "stopped")
    assert left[0] == -1 - (14 - 8)  # of 14 trainings 8 were done, and are not done again
    assert timeless(again) == timeless(alone)
    assert not (tmp_path / "stopped" / "work").exists()


def pruned(folder):
    made = ddengine.prune(None, RECIPE, SMALL, folder=folder, device="cpu", progress=False)
    return made.content


def timeless(content):
    """Without what a clock says."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k != "seconds"}
    return [timeless(v) for v in content] if isinstance(content, list) else content


# What is said.


def a_row(selection, fraction, alpha, accuracies, teacher="big"):
    mean = sum(accuracies) / len(accuracies)
    return {
        "selection": selection,
        "size": f"{fraction:g}",
        "fraction": fraction,
        "loss": "kd" if alpha else "ce",
        "alpha": alpha,
        "teacher": teacher if alpha else None,
        "accuracies": accuracies,
        "accuracy_mean": mean,
    }


ROWS = [
    a_row("random", 0.1, 0.0, [0.5, 0.52, 0.51]),
    a_row("random", 0.1, 0.9, [0.6, 0.61, 0.63]),
    a_row("random", 0.1, 1.0, [0.61, 0.60, 0.62]),
    a_row("random", 0.1, 0.9, [0.7, 0.72, 0.74], teacher="small"),
    a_row("hard", 0.1, 0.0, [0.3, 0.31, 0.32]),
    a_row("hard", 0.1, 0.9, [0.4, 0.42, 0.41]),
    a_row("all", 1.0, 0.0, [0.9, 0.91, 0.93]),
    a_row("all", 1.0, 0.9, [0.8, 0.82, 0.81]),
]


def test_findings_compare_within_repeats():
    told = findings(ROWS, ["big", "small"])
    small, everything = told["alphas"]
    assert small["best"] == 0.9 and small["level"] == [0.9, 1.0]
    assert everything["best"] == 0.0 and everything["level"] == [0.0]
    (against,) = told["selections"]
    assert against["selection"] == "hard" and against["difference"] == pytest.approx(
        0.2033, abs=1e-3
    )
    (other,) = told["teachers"]
    assert other["teacher"] == "small" and other["difference"] == pytest.approx(0.1067, abs=1e-3)


def test_one_share_is_not_the_best_one():
    rows = [row for row in ROWS if row["alpha"] == 0.9]
    assert findings(rows, ["big", "small"])["alphas"] == []


def test_selections_are_compared_by_shares_that_both_have():
    """Random images have more shares, and their best one is none of the others'."""
    rows = [*ROWS, a_row("random", 0.1, 0.5, [0.9, 0.91, 0.92])]
    (against,) = findings(rows, ["big", "small"])["selections"]
    assert against["random_alpha"] == 0.9 and against["difference"] == pytest.approx(
        0.2033, abs=1e-3
    )


def test_claims_say_what_the_figures_are():
    said = of_pruning.claims({"findings": findings(ROWS, ["big", "small"])})
    assert said[0] == (
        "10 % of the images: the best share of distillation is 0.9; not told apart from it: 1"
    )
    assert "the best share never falls as less is kept" in said[2]
    assert "random less hard" in said[3] and "+20.3 points (+1" in said[3]
    assert "teacher small less the first one" in said[4] and "+10.7 points" in said[4]


DIVERGED = a_row("hard", 0.1, 0.0, [0.5]) | {"accuracies": [None], "accuracy_mean": None}


@pytest.mark.parametrize(
    "rows", [ROWS, [row for row in ROWS if row["selection"] == "hard"], [DIVERGED]]
)
def test_there_is_a_picture_whatever_was_kept(rows, tmp_path, monkeypatch):
    """At random, by a rule alone, and where every network diverged."""
    drawn = []
    monkeypatch.setattr(of_pruning, "save_figure", lambda figure, path: drawn.append(figure))
    config = {"repeats": 3}
    teachers = [{"teacher": "big", "accuracy": 0.9}]
    found = findings(rows, ["big", "small"])
    result = {"rows": rows, "findings": found, "teachers": teachers, "config": config}
    of_pruning.plot(tmp_path / "prune.png", result)
    (figure,) = drawn
    figure.savefig(tmp_path / "prune.png")
    _, names = figure.axes[0].get_legend_handles_labels()
    wanted = {
        "random": {"classes alone", "share of distillation 0.9", "share of distillation 1"},
        "hard": {"hard, ce", "hard, kd 0.9"},
    }
    assert set(names) == (set() if rows == [DIVERGED] else wanted[rows[0]["selection"]])


def test_the_table_says_every_row(outcome):
    made, _, _ = outcome
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(made.table())
    text = console.export_text()
    assert text.count("distilled") == 3 and "kd 0.9" in text
    assert made.table().row_count == len(made.rows)
    assert any("teacher convnet-d2-w4-in" in note for note in made.notes)


def test_progress_counts_every_piece_of_work_once(outcome):
    _, _, steps = outcome
    done, total = zip(*steps, strict=True)
    assert set(total) == {max(total)} and list(done) == sorted(done)
    assert done[-1] == total[-1]


def test_a_folder_has_a_page(outcome, tmp_path):
    """With the table, the claims, the picture, what was done with what, and the command."""
    made, folder, _ = outcome
    page = unescape(ddengine.report(folder, tmp_path / "page.html").read_text())
    assert "Distillation on pruned data" in page and made.table().title in page
    for row in made.rows:
        assert f">{of_pruning.student(row)}</td>" in page
    for words in (*made.notes, "prune mtt/digits_ipc1", made.content["machine"]["system"]):
        assert words in page, words
    assert page.count("data:image/png") == 1
    assert "mtt/digits_ipc1" in page and "<td>mtt</td>" not in page  # no method plays a role
    assert "not finished" not in page and "distill " not in page
    (tmp_path / "begun").mkdir()
    shutil.copy(folder / "prune.recipe.json", tmp_path / "begun")
    with pytest.raises(UserError, match=r"holds no prune\.json yet; the command that began it"):
        ddengine.report(tmp_path / "begun")
    (tmp_path / "begun" / "prune.json").write_text('{"rows": [], "identity": ""}')
    with pytest.raises(UserError, match=r"it lacks config\); .* with --restart"):
        ddengine.report(tmp_path / "begun")


# What cannot be.

REFUSED = {
    "alphas are shares of the loss": {"alphas": (1.2,)},
    "other_alphas are shares": {"other_alphas": (-0.1,)},
    "alphas must hold at least one": {"alphas": ()},
    "fractions must be above 0": {"fractions": (0.0,)},
    "fractions must hold one": {"fractions": ()},
    "fractions must differ": {"fractions": (0.1, 0.1)},
    "selection 'herd'": {"selections": ("herd",)},
    "Name at least one selection": {"selections": ("random", "random")},
    "loss 'mse'": {"losses": ("mse",)},
    "positive and finite, got 0": {"temperature": 0.0},
    "positive and finite, got inf": {"temperature": float("inf")},
    "steps must be at least 1": {"steps": 0},
    "early_epochs 10 must be below": {"early_epochs": 10},
    "train it for 8 at least": {"looking_epochs": 7, "selections": ("cad",)},
}


def test_settings_that_cannot_be():
    for said, changes in REFUSED.items():
        with pytest.raises(UserError, match=said):
            PruningConfig(**changes)


def prune_with(config=SMALL, recipe=RECIPE, **settings):
    return ddengine.prune(None, recipe, config, device="cpu", progress=False, **settings)


def test_what_cannot_be_run_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(training, "train_networks", None)
    with pytest.raises(UserError, match=r"keeps no image of a class; set it to 0\.056 at least"):
        prune_with(replace(SMALL, fractions=(0.01,)))
    with pytest.raises(UserError, match="no stage that ends in smaller maps"):
        shallow = replace(RECIPE, model="convnet-d1-w4-in")
        prune_with(replace(SMALL, losses=("uskd",)), shallow)
    with pytest.raises(UserError, match="convnett"):
        prune_with(replace(SMALL, teachers=("convnett",)))
    data = tiny_data()
    few = tiny_set(data, 1)
    small = Distilled(replace(few, class_names=("a",) * 10), {})
    with pytest.raises(UserError, match="other classes than the images"):
        prune_with(sets=[small])
    features = Distilled(few.with_features(torch.zeros(10, 3)), {})
    with pytest.raises(UserError, match="has features and no classes"):
        prune_with(sets=[features])
    other = Distilled(replace(few, preprocess=replace(few.preprocess, mean=torch.ones(1))), {})
    with pytest.raises(UserError, match="another preprocessing"):
        prune_with(sets=[other])
    with pytest.raises(UserError, match="PruningConfig"):
        prune_with({"alphas": 3})


def test_works_to_cite_are_those_in_use():
    assert pruning.cites(SMALL) == ("benbaruch2025pruning", "hinton2015kd")
    for loss in ("nkd", "uskd"):
        assert pruning.cites(replace(SMALL, losses=(loss,)))[-1] == "yang2023nkd"
    both = pruning.cites(replace(SMALL, selections=("cad", "facility"), losses=("nkd", "uskd")))
    assert both == (
        "benbaruch2025pruning", "dey2026hard", "nemhauser1978submodular", "yang2023nkd"
    )  # fmt: skip
