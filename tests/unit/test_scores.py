"""DD-Ranking's scores on fractions, the split of the spread, and what belongs to a distilled set:
its rate, its 8-bit form, its compute.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CPU, MODEL, tiny_set

from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.evaluation import evaluate as module
from ddengine.evaluation import rates as of_rates
from ddengine.evaluation import scores
from ddengine.evaluation.decoded import eight_bit, freeze
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.ledger import forward_flops
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.recipe import AugmentConfig, DataConfig, EvalConfig
from ddengine.system.errors import UserError

SHORT = EvalConfig(
    protocol="test",
    epochs=3,
    batch=32,
    augment=AugmentConfig(ops=("flip",)),
    num_networks=3,
    lr_grid=(0.05,),
    full_steps=6,
)


@pytest.fixture(scope="module")
def data():
    """400 digits with their test split."""
    return load_data(DataConfig(name="digits", limit=400), CPU, test=True)


# DD-Ranking


@pytest.mark.parametrize(
    ("value", "score"), [(-1.0, 0.0), (0.0, 0.2689), (-0.2, 0.1918), (0.1, 0.3137), (1.0, 1.0)]
)
def test_the_map_has_the_published_values(value, score):
    assert scores.squash(value) == pytest.approx(score, abs=5e-5)


def test_label_robust_score_weighs_improvement_against_recovery():
    assert scores.label_robust_score(0.3, 0.1) == pytest.approx(scores.squash(0.1))
    assert scores.label_robust_score(0.3, 0.1, weight=1.0) == pytest.approx(scores.squash(0.3))
    assert scores.label_robust_score(0.3, 0.1, weight=0.0) == pytest.approx(scores.squash(-0.1))
    assert scores.augmentation_robust_score(0.3, 0.1) == pytest.approx(scores.squash(0.2))


@pytest.mark.parametrize("make", [scores.label_robust_score, scores.augmentation_robust_score])
def test_percentages_are_refused(make):
    with pytest.raises(
        UserError, match=r"within -1 and 1, got 13\.5; give accuracies as fractions\."
    ):
        make(0.1, 13.5)


def rows(**sets):
    return [
        {"set": name, "model": "mlp", "accuracies": [{"accuracy": a} for a in values]}
        for name, values in sets.items()
    ]


def test_scores_are_averaged_over_networks_and_not_made_of_means():
    augmented = {"rows": rows(distilled=[0.5, 0.9], random=[0.3, 0.3], full=[0.9, 0.9])}
    plain = {"rows": rows(distilled=[0.4, 0.6], random=[0.3, 0.2])}
    (found,) = scores.of(augmented, plain)
    got = {k: v["mean"] for k, v in found["scores"].items()}
    assert got["improvement_over_random"] == pytest.approx(0.4) and got[
        "hard_label_recovery"
    ] == pytest.approx(0.2)
    assert got["improvement_without_augmentation"] == pytest.approx(0.25)
    each = [0.5 * 0.2 - 0.5 * 0.4, 0.5 * 0.6 - 0.5 * 0.0]
    assert got["label_robust_score"] == pytest.approx(sum(map(scores.squash, each)) / 2)
    assert got["label_robust_score"] != pytest.approx(scores.squash(sum(each) / 2), abs=1e-4)
    assert got["augmentation_robust_score"] == pytest.approx(
        (scores.squash(0.15) + scores.squash(0.5)) / 2
    )
    assert found["scores"]["label_robust_score"]["n"] == 2


def test_of_a_set_with_soft_labels_recovery_is_by_classes_and_random_images_have_such_labels():
    augmented = {
        "rows": rows(
            distilled=[0.8, 0.8],
            distilled_hard=[0.5, 0.5],
            random=[0.1, 0.1],
            random_soft=[0.7, 0.7],
            full=[0.9, 0.9],
        )
    }
    (found,) = scores.of(augmented, {"rows": rows(distilled=[0.6, 0.6], random_soft=[0.6, 0.6])})
    got = {k: v["mean"] for k, v in found["scores"].items()}
    assert got["hard_label_recovery"] == pytest.approx(0.4) and got[
        "improvement_over_random"
    ] == pytest.approx(0.1)
    assert got["improvement_without_augmentation"] == pytest.approx(0.0)


def test_an_evaluation_without_the_rows_is_refused():
    with pytest.raises(UserError, match="need rows of it, random and full"):
        scores.of(
            {"rows": rows(distilled=[0.5], random=[0.1])},
            {"rows": rows(distilled=[0.5], random=[0.1])},
        )


def test_the_two_protocols_differ_in_augmentation_and_mixing_only():
    config = replace(SHORT, mixup=0.8)
    augmented, plain = scores.protocols(config, soft=False)
    assert augmented == replace(config, baselines=("random", "full"))
    assert (
        not plain.augment.any
        and plain.mixup == plain.cutmix == 0
        and plain.baselines == ("random",)
    )
    assert replace(plain, augment=config.augment, mixup=0.8, baselines=config.baselines) == config
    assert scores.protocols(config, soft=True)[0].baselines == (
        "random_soft",
        "hard_labels",
        "full",
    )


def test_scores_of_a_real_set(data):
    syn = tiny_set(data)
    augmented, plain = (
        evaluate(syn, data, config, MODEL, seed=0, device=CPU)
        for config in scores.protocols(SHORT, soft=False)
    )
    (found,) = scores.of(augmented, plain)
    assert all(
        0 <= found["scores"][name]["mean"] <= 1
        for name in ("label_robust_score", "augmentation_robust_score")
    )
    mean = {row["set"]: row["accuracy_mean"] for row in augmented["rows"]}
    assert found["scores"]["hard_label_recovery"]["mean"] == pytest.approx(
        mean["full"] - mean["distilled"]
    )


# The spread


def test_variance_split_finds_what_was_put_in():
    rng = np.random.default_rng(0)
    groups = [
        list(0.5 + shift + 0.02 * rng.standard_normal(400))
        for shift in 0.05 * rng.standard_normal(300)
    ]
    split = scores.variance_split(groups)
    assert split["between_std"] == pytest.approx(0.05, rel=0.1) and split[
        "within_std"
    ] == pytest.approx(0.02, rel=0.02)
    assert split["num_distillations"] == 300 and split["num_networks"] == 400


def test_variance_split_by_hand():
    # mean squares 0.16 between, 0.02 within
    split = scores.variance_split([[0.1, 0.3], [0.5, 0.7]])
    assert split["within_std"] == pytest.approx(math.sqrt(0.02)) and split[
        "between_std"
    ] == pytest.approx(math.sqrt((0.16 - 0.02) / 2))
    assert split["mean"] == pytest.approx(0.4) and split["ci95"][0] < 0.2 < 0.6 < split["ci95"][1]


def test_variance_split_of_equal_distillations_is_all_within():
    split = scores.variance_split([[0.4, 0.6], [0.4, 0.6], [0.4, 0.6]])
    assert split["between_std"] == 0 and split["within_std"] == pytest.approx(math.sqrt(0.02))


@pytest.mark.parametrize("groups", [[], [[0.1, 0.2]], [[0.1, 0.2], [0.3]]])
def test_too_few_cannot_be_split(groups):
    with pytest.raises(
        UserError, match="cannot be split; give two distillations with two networks each"
    ):
        scores.variance_split(groups)


# Rates, optimisers


def rates(data, monkeypatch, models, **config):
    """(set, model, rate) of every training."""
    seen, train = [], training.train_networks

    def spy(new_model, sets, seeds, used, lr, device, **rest):
        seen.append((used.optimiser, lr))
        return train(new_model, sets, seeds, used, lr, device, **rest)

    monkeypatch.setattr(training, "train_networks", spy)
    syn = tiny_set(data)
    syn = syn.with_tensors({"lr": torch.tensor(0.07)})
    found = evaluate(
        syn,
        data,
        replace(SHORT, baselines=("random",), models=models, **config),
        MODEL,
        seed=0,
        device=CPU,
    )
    return seen, {(row["set"], row["model"]): row["lr"] for row in found["rows"]}


def test_the_learned_rate_is_tried_on_its_own_network_only(data, monkeypatch):
    seen, _ = rates(data, monkeypatch, (MODEL, "mlp"))
    assert [lr for _, lr in seen].count(pytest.approx(0.07, abs=1e-6)) >= 2  # both sets, on MODEL
    _, chosen = rates(data, monkeypatch, ("mlp",))
    assert set(chosen.values()) == {0.05}


def test_rate_learned_searches_nothing(data, monkeypatch):
    seen, chosen = rates(data, monkeypatch, (MODEL, "mlp"), rate="learned", lr=0.02)
    assert chosen == {
        ("distilled", MODEL): pytest.approx(0.07), ("distilled", "mlp"): 0.02, ("random", MODEL): 0.02, ("random", "mlp"): 0.02
    }  # fmt: skip
    assert len(seen) in (4, 4 * 3)  # one call, or one a network


def test_a_learned_rate_is_none_of_adamw(data, monkeypatch):
    seen, chosen = rates(data, monkeypatch, (MODEL,), optimiser="adamw")
    assert set(chosen.values()) == {0.05} and {optimiser for optimiser, _ in seen} == {"adamw"}


def test_networks_that_sgd_trains_badly_have_adamw_unless_told_otherwise():
    vision = "torchvision/vit_b_16"
    assert (
        adapted(SHORT, vision).optimiser == "adamw" and max(adapted(SHORT, vision).lr_grid) < 0.01
    )
    assert (
        adapted(SHORT, MODEL) == SHORT
        and adapted(replace(SHORT, adapt=False), vision).optimiser == "sgd"
    )
    own = replace(SHORT, optimiser="adamw", lr_grid=(0.5,))
    assert adapted(own, vision) == own


# 8 bits, compute


def test_eight_bits_are_what_the_png_files_hold(data, tmp_path):
    from ddengine.data.images import open_image

    syn = tiny_set(data)
    syn = syn.with_tensors(
        {
            "images": syn.tensors["images"]
            + 0.3
            * torch.randn(syn.tensors["images"].shape, generator=torch.Generator().manual_seed(0))
        }
    )
    folders.save(syn, tmp_path / "set", {})
    eight = eight_bit(syn, freeze(syn, CPU), CPU)
    assert eight is not None
    files = sorted((tmp_path / "set" / "images").rglob("*.png"), key=lambda p: p.name)
    pixels = (
        torch.stack(
            [
                torch.from_numpy(np.asarray(open_image(p, p.name).convert("L"), np.float32))
                for p in files
            ]
        )[:, None]
        / 255
    )
    assert torch.allclose(syn.preprocess.backward(eight.images), pixels, atol=1e-5)
    assert (
        eight.ledger["images"] == eight.images.numel()
        and eight.ledger["labels"] == freeze(syn, CPU).ledger["labels"]
    )


def test_real_images_have_no_row_of_eight_bits(data):
    syn = tiny_set(data)
    assert eight_bit(syn, freeze(syn, CPU), CPU) is None


def test_the_row_of_eight_bits_takes_the_rate_of_the_exact_set(data, monkeypatch):
    syn = tiny_set(data)
    syn = syn.with_tensors({"images": syn.tensors["images"] * 1.5})
    seen, train = [], training.train_networks
    monkeypatch.setattr(
        training,
        "train_networks",
        lambda *args, **rest: (seen.append(args[4]), train(*args, **rest))[1],
    )
    config = replace(SHORT, baselines=("eight_bit",), lr_grid=(0.001, 0.05), epochs=30)
    found = {
        row["set"]: row for row in evaluate(syn, data, config, MODEL, seed=0, device=CPU)["rows"]
    }
    assert (
        list(found) == ["distilled", "distilled_8bit"]
        and found["distilled"]["lr"] == found["distilled_8bit"]["lr"]
    )
    assert found["distilled_8bit"]["bytes"] < found["distilled"]["bytes"]
    assert found["distilled_8bit"]["accuracies"] != found["distilled"]["accuracies"]
    searched = 2
    assert len(seen) in (searched + 2, searched + 2 * 3)


def test_compute_is_counted():
    assert forward_flops("mlp", (1, 8, 8), 10) == 2 * (64 * 128 + 128 * 128 + 128 * 10)


def test_rows_say_their_compute(data):
    syn = tiny_set(data)
    (row,) = evaluate(
        syn, data, replace(SHORT, baselines=(), models=("mlp",)), MODEL, seed=0, device=CPU
    )["rows"]
    assert row["examples_seen"] == len(syn) * 4  # E + 1 epochs
    assert (
        row["training_flops"] == 3 * row["examples_seen"] * forward_flops("mlp", (1, 8, 8), 10)
        and row["optimiser"] == "sgd"
    )


def test_progress_counts_what_is_done(data, monkeypatch):
    told = []
    from contextlib import contextmanager

    class Bar:
        done = 0

        def advance(self, label):
            self.done += 1

    @contextmanager
    def progress(title, total, done=0):
        bar = Bar()
        yield bar
        told.append((total, bar.done))

    monkeypatch.setattr(module.log, "progress", progress)
    syn = tiny_set(data)
    syn = syn.with_tensors({"images": syn.tensors["images"] * 1.5, "lr": torch.tensor(0.07)})
    config = replace(
        SHORT,
        baselines=("random", "herding", "full", "eight_bit", "hard_labels"),
        models=(MODEL, "mlp"),
    )
    evaluate(syn, data, config, MODEL, seed=0, device=CPU)
    evaluate(
        syn,
        data,
        replace(config, baselines=("herding",), models=("mlp",)),
        MODEL,
        seed=0,
        device=CPU,
    )
    evaluate(syn, data, replace(config, rate="learned"), MODEL, seed=0, device=CPU)
    assert all(total == done for total, done in told), told


def test_runs_that_differ_in_more_than_the_seed_are_not_split():
    def run(name, seed, **more):
        meta = {
            "recipe": {"name": "r", "ipc": 1, "note": name, "evaluation": {"x": name}} | more,
            "seed": seed,
            "precision": "fp32",
            "images": "i",
        }
        rows_ = [
            {
                "set": s,
                "model": "mlp",
                "accuracies": [{"seed": i, "accuracy": a} for i, a in enumerate((0.1 * seed, 0.2))],
            }
            for s in ("distilled", "x")
        ]
        return name, meta, {"rows": rows_, "protocol": {"epochs": 3}, "precision": "fp32"}

    one, two, other, again = run("a", 1), run("b", 2), run("c", 3, ipc=2), run("d", 2)
    (found,) = scores.splits([one, other, two])
    assert found["runs"] == ["a", "b"] and found["recipe"] == "r" and found["model"] == "mlp"
    assert (
        found["split"] == scores.variance_split([[0.1, 0.2], [0.2, 0.2]], paired=True)
        and found["split"]["num_distillations"] == 2
    )
    assert "2 distillations: 17.5 %" in scores.said(found)
    assert scores.splits([one]) == scores.splits([one, other]) == scores.splits([two, again]) == []
    longer = (two[0], two[1], two[2] | {"protocol": {"epochs": 4}})
    assert scores.splits([one, longer]) == []
    wider = (two[0], two[1], two[2] | {"protocol": {"epochs": 3, "models": ["mlp", "lenet"]}})
    # a seed counts once, and networks do not matter
    assert scores.splits([one, wider, again])[0]["runs"] == ["a", "b"]


def test_networks_that_sets_share_are_not_taken_for_distillations():
    """Accuracies of crossed sets and networks: both parts are found, and the interval covers the
    mean as often as it says.
    """
    rng, parts, covered = np.random.default_rng(0), [], 0
    for _ in range(400):
        y = (
            0.5
            + 0.01 * rng.standard_normal((4, 1))
            + 0.02 * rng.standard_normal((1, 5))
            + 0.01 * rng.standard_normal((4, 5))
        )
        split = scores.variance_split(y.tolist(), paired=True)
        parts.append(
            [split["between_std"] ** 2, split["network_std"] ** 2, split["within_std"] ** 2]
        )
        covered += split["ci95"][0] <= 0.5 <= split["ci95"][1]
    assert np.mean(parts, 0) == pytest.approx([1e-4, 4e-4, 5e-4], rel=0.15)
    assert 0.92 <= covered / 400 <= 1.0


def test_crossed_split_by_hand():
    # mean squares 0.16 of sets, 0.04 of networks, nothing left
    split = scores.variance_split([[0.1, 0.3], [0.5, 0.7]], paired=True)
    assert split["between_std"] == pytest.approx(math.sqrt(0.08)) and split[
        "network_std"
    ] == pytest.approx(math.sqrt(0.02))
    assert split["within_std"] == pytest.approx(math.sqrt(0.02)) and split["mean"] == pytest.approx(
        0.4
    )


def test_uskd_uses_no_soft_labels():
    assert scores.protocols(replace(SHORT, loss="uskd"), soft=True)[0].baselines == (
        "random",
        "full",
    )


def test_a_learned_rate_is_none_of_a_network_that_needs_adamw(data, monkeypatch):
    monkeypatch.setattr(of_rates, "usual_optimiser", lambda name: "adamw")
    seen, chosen = rates(data, monkeypatch, (MODEL,), rate="learned", lr=0.02)
    assert set(chosen.values()) == {of_rates.ADAMW["lr"]} and {
        optimiser for optimiser, _ in seen
    } == {"adamw"}


def test_the_network_that_herding_looks_through_has_the_optimiser_of_its_rate(data, monkeypatch):
    monkeypatch.setattr(of_rates, "usual_optimiser", lambda name: "adamw")
    seen, train = [], training.train_networks
    monkeypatch.setattr(
        training,
        "train_networks",
        lambda *args, **rest: (seen.append((args[3].optimiser, args[4])), train(*args, **rest))[1],
    )
    evaluate(
        tiny_set(data), data, replace(SHORT, baselines=("herding",)), MODEL, seed=0, device=CPU
    )
    assert {optimiser for optimiser, _ in seen} == {"adamw"} and max(lr for _, lr in seen) < 0.01
