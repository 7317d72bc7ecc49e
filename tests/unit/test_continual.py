"""Class-incremental learning: budgets, what each memory sees, orders, forgetting, resuming, the
network that goes on.
"""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from ddengine.data import load_data
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.pages import of_continual
from ddengine.recipe import AugmentConfig, DataConfig, TargetConfig
from ddengine.sets.codec import Identity, MultiFormation
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.uses import continual
from ddengine.uses.continual import (
    ContinualConfig,
    class_order,
    forgetting,
    image_bytes,
    images_per_class,
    kept,
    memories,
    stages,
)
from synth.catalogue import RECIPES

CPU = torch.device("cpu")
BASE = RECIPES["dm/fashion_mnist_ipc1_small"]
RECIPE = replace(
    BASE,
    data=DataConfig(name="digits", limit=200),
    model="convnet-d1-w4-in",
    init=replace(BASE.init, steps=3),
    objective=replace(BASE.objective, real_batch=8),
    outer=replace(BASE.outer, steps=2, evaluate_every=0),
    evaluation=replace(
        BASE.evaluation,
        epochs=2,
        full_steps=4,
        augment=AugmentConfig(ops=()),
        lr_grid=(0.01, 0.1),
        search_networks=1,
    ),
)
SMALL = ContinualConfig(stages=2, repeats=2, budget=2 * 720, memories=("distilled", "random"))


@pytest.fixture(scope="module")
def digits():
    return load_data(RECIPE.data, CPU, test=True)


def means(data, recipe, seed, name):
    """A distillation that takes no time: the class mean, each image a little darker than the one
    before.
    """
    images = [
        data.train.images(members).mean(0) * 0.9**i
        for members in data.train.members
        for i in range(recipe.ipc)
    ]
    classes = torch.arange(data.num_classes).repeat_interleave(recipe.ipc)
    return SyntheticSet(
        {"images": torch.stack(images), "lr": torch.tensor(0.1)},
        classes,
        data.class_names,
        Identity(),
        data.train.preprocess,
    )


def run(data, config=SMALL, distill=means, recipe=RECIPE, **settings):
    return continual.run(data, recipe, config, distill, seed=0, device=CPU, **settings)


def timeless(result):
    """A result without what a clock says."""
    if isinstance(result, dict):
        return {k: timeless(v) for k, v in result.items() if k != "seconds"}
    return [timeless(v) for v in result] if isinstance(result, list) else result


# Budgets


def test_a_budget_is_exact_and_a_byte_below_the_smallest_is_refused(digits):
    assert image_bytes("random", (3, 32, 32), RECIPE, SMALL) == 3 * 1024 + 8
    exact = replace(SMALL, store="float32")
    assert (
        image_bytes("distilled", (3, 32, 32), RECIPE, exact) == 4 * 3 * 1024 + 8
        and image_bytes("herding", (3, 32, 32), RECIPE, exact) == 3080
    )
    bounded = replace(RECIPE, codec=Identity(bounded=True))  # ships bytes anyway
    assert image_bytes("distilled", (3, 32, 32), bounded, exact) == 3080
    assert images_per_class("random", digits, RECIPE, replace(SMALL, budget=720)) == 1
    assert images_per_class("random", digits, RECIPE, replace(SMALL, budget=2159)) == 2
    with pytest.raises(UserError, match="set budget to 720 at least"):
        images_per_class("random", digits, RECIPE, replace(SMALL, budget=719))
    with pytest.raises(UserError, match="set budget to 2640 at least"):
        run(digits, replace(exact, budget=2639))
    fewest = min(len(m) for m in digits.train.members)
    with pytest.raises(
        UserError, match=f"holds {fewest + 1} images per class .* less than {(fewest + 1) * 720}"
    ):
        run(digits, replace(SMALL, budget=(fewest + 1) * 720))


@pytest.mark.parametrize(("store", "each"), [("uint8", 5), ("float32", 1)])
def test_what_is_kept_is_what_the_budget_counts(digits, store, each):
    config = replace(SMALL, store=store, repeats=1, budget=10 * 5 * 72 + 71)
    result = run(digits, config)["memories"]
    assert (
        result["distilled"]["images_per_class"] == each
        and result["random"]["images_per_class"] == 5
    )
    assert result["distilled"]["bytes"] == 10 * each * (72 if store == "uint8" else 264)
    assert result["random"]["bytes"] == 3600 <= config.budget
    assert result["joint"]["bytes"] == len(digits.train) * 72


def test_kept_images_are_quantised_pixels_or_exact(digits):
    syn = means(digits, replace(RECIPE, ipc=1), 0, "")
    small, exact = kept(syn, "uint8"), kept(syn, "float32")
    assert (
        small.tensors.keys() == {"images"}
        and small.tensors["images"].dtype == torch.uint8
        and small.nbytes == 720
    )
    assert (small.pixels() - syn.pixels().clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(exact.tensors["images"], syn.tensors["images"]) and exact.nbytes == 2640
    again = kept(small, "float32")
    # bytes are not made larger
    assert torch.equal(again.tensors["images"], small.tensors["images"])
    with pytest.raises(UserError, match="soft labels"):
        kept(syn.with_labels(torch.zeros(10, 10)), "uint8")


def test_what_cannot_be_run_is_refused_before_any_work(digits):
    def never(*args):
        raise AssertionError("work was done")

    for recipe in (
        replace(RECIPE, codec=MultiFormation()),
        replace(RECIPE, targets=TargetConfig(kind="logits", experts="all", relabel=True)),
    ):
        with pytest.raises(UserError, match="a memory keeps plain images"):
            run(digits, distill=never, recipe=recipe)
    with pytest.raises(UserError, match="set stages to at most 5"):
        run(digits, replace(SMALL, stages=6), never)
    for change, message in [
        ({"stages": 1}, "at least 2"),
        ({"memories": ()}, "at least one"),
        ({"memories": ("rndom",)}, "nearest: random"),
    ]:
        with pytest.raises(UserError, match=message):
            ContinualConfig(**change)


def test_images_for_a_memory_of_bytes_are_distilled_within_pixels():
    """And only those: neither for exact memories, nor whitened, nor what is bytes already."""
    unbounded, whitened = replace(RECIPE, codec=Identity()), replace(RECIPE.data, zca=True)
    bounded = continual.within_pixels(unbounded, SMALL)
    assert bounded == replace(unbounded, codec=Identity(bounded=True))
    assert continual.within_pixels(bounded, SMALL) is bounded
    for recipe, config in (
        (unbounded, replace(SMALL, store="float32")),
        (replace(unbounded, data=whitened), SMALL),
    ):
        assert continual.within_pixels(recipe, config) is recipe


# Orders and what is seen


def test_orders_differ_between_repeats_and_are_equal_between_memories(digits):
    orders = [class_order(10, SMALL, 0, r) for r in range(3)]
    assert orders[0] != orders[1] != orders[2] and all(
        sorted(order[0] + order[1]) == list(range(10)) for order in orders
    )
    assert (
        class_order(10, replace(SMALL, order_seed=5), 0, 0)
        == class_order(10, SMALL, 5, 0)
        != orders[0]
    )
    assert [len(part) for part in class_order(10, replace(SMALL, stages=4), 0, 0)] == [3, 3, 2, 2]
    result = run(digits)
    assert result["orders"] == orders[:2] and result["classes_seen"] == [5, 10]
    assert result["stages"][1] == [[digits.class_names[c] for c in part] for part in orders[1]]


def test_every_memory_sees_the_images_of_its_stage_only(digits, monkeypatch):
    seen = []
    real_selection = memories.start.selected_index

    def watched(real, num, names, *rest, **settings):
        seen.append(("chosen", names, real.digest))
        return real_selection(real, num, names, *rest, **settings)

    def distill(data, recipe, seed, name):
        assert (
            data.test is None and recipe.ipc == 2 and len(data.validation) < len(digits.validation)
        )
        assert recipe.data.classes == tuple(digits.class_names.index(n) for n in data.class_names)
        assert data.train.preprocess is digits.train.preprocess
        seen.append(("distilled", data.class_names, data.train.digest))
        return means(data, recipe, seed, name)

    monkeypatch.setattr(memories.start, "selected_index", watched)
    result = run(
        digits, replace(SMALL, memories=("distilled", "random", "herding"), repeats=1), distill
    )
    stages = [tuple(names) for names in result["stages"][0]]
    assert [s[:2] for s in seen] == [("distilled", n) for n in stages] + [
        ("chosen", n) for n in stages
    ] * 2
    own = {names: digest for kind, names, digest in seen if kind == "distilled"}
    assert all(digest == own[names] for _, names, digest in seen)


@pytest.mark.parametrize(
    ("model", "optimiser", "decay", "rates"),
    [
        ("torchvision/vit_b_16", "adamw", 0.05, {0.0003, 0.001, 0.003}),
        ("convnet-d1-w4-in", "sgd", RECIPE.evaluation.weight_decay, {0.01, 0.1}),
    ],
)
def test_networks_are_trained_by_the_optimiser_they_need(
    digits, monkeypatch, model, optimiser, decay, rates
):
    """As an evaluation trains them: AdamW with its own rates where SGD trains a network badly."""
    asked = []

    def watched(new_model, on, seeds, config, lr, *args, **settings):
        asked.append((config.optimiser, config.weight_decay, lr))
        return [
            build_model("mlp", digits.image_shape, digits.num_classes, generator(seed))
            for seed in seeds
        ]

    monkeypatch.setattr(training, "train_networks", watched)
    result = run(digits, replace(SMALL, repeats=1), recipe=replace(RECIPE, model=model))
    assert {(kind, weight) for kind, weight, _ in asked} == {(optimiser, decay)}
    assert {lr for *_, lr in asked} == rates and all(
        lr in rates for row in result["memories"].values() for found in row["lr"] for lr in found
    )


def test_a_memory_trains_with_the_class_numbers_of_the_whole(digits, monkeypatch):
    """After each stage the set that is trained on has all classes seen so far, each image with its
    own class.
    """
    sets = []
    real_training = training.train_networks

    def watched(new_model, on, *args, **settings):
        sets.append(on[0])
        return real_training(new_model, on, *args, **settings)

    monkeypatch.setattr(training, "train_networks", watched)
    run(digits, replace(SMALL, repeats=1, memories=("distilled",), store="float32", budget=2640))
    order = class_order(10, SMALL, 0, 0)
    for on, seen in ((sets[0], order[0]), (sets[3], order[0] + order[1])):
        images, targets = on.batch(torch.arange(len(on)))
        assert targets.tolist() == seen
        for image, c in zip(images, targets, strict=True):
            assert image.allclose(digits.train.images(digits.train.members[c]).mean(0), atol=1e-5)
    images, targets = sets[-1].batch(torch.arange(len(sets[-1])))
    assert len(targets) == len(digits.train)  # joint


# Results


def test_forgetting_of_a_matrix_made_by_hand():
    assert forgetting([[0.9], [0.7, 0.8], [0.5, 0.85, 0.6]]) == pytest.approx(
        ((0.9 - 0.5) + (0.8 - 0.85)) / 2
    )
    # best after the second stage
    assert forgetting([[0.4], [0.6, 0.9], [0.5, 0.9, 1.0]]) == pytest.approx(0.05)


def test_accuracies_agree_with_each_other(digits):
    found = run(digits)["memories"]["distilled"]
    tested = {n: len(m) for n, m in zip(digits.class_names, digits.test.members, strict=True)}
    for repeat in range(2):
        of_classes = sum(
            found["final_by_class"][n]["values"][repeat] * tested[n] for n in tested
        ) / len(digits.test)
        assert found["final"]["values"][repeat] == pytest.approx(of_classes)
        assert found["by_stage"][repeat][0][0] == pytest.approx(
            found["accuracy"][0]["values"][repeat]
        )
        assert found["forgetting"]["values"][repeat] == pytest.approx(
            forgetting(found["by_stage"][repeat])
        )
    assert (
        found["accuracy"][1] == found["final"]
        and found["final"]["ci95"][0] < found["final"]["mean"]
        and len(found["lr"][0]) == 2
    )
    assert all(set(lrs) <= {0.01, 0.1} for lrs in found["lr"])


def test_without_a_validation_split_the_rate_is_the_protocols(digits):
    result = run(replace(digits, validation=None), replace(SMALL, repeats=1))
    assert (
        result["memories"]["random"]["lr"] == [[RECIPE.evaluation.lr] * 2]
        and result["memories"]["random"]["final"]["ci95"] is None
    )


# Resuming


@pytest.mark.parametrize("strategy", ["memory", "replay"])
def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(
    digits, tmp_path, monkeypatch, strategy
):
    config = replace(SMALL, strategy=strategy, repeats=1)
    whole = run(digits, config)
    real_training, counted, most = training.train_networks, [], [7]

    def stopping(*args, **settings):
        counted.append(1)
        if len(counted) > most[0]:
            raise KeyboardInterrupt
        return real_training(*args, **settings)

    monkeypatch.setattr(training, "train_networks", stopping)
    path = tmp_path / "memo.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(digits, config, memo_path=path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 5])  # a kill in the middle of a line
    assert len(content.splitlines()) >= 7
    counted.clear()
    most[0] = 10**9

    def never(*args):
        raise AssertionError("distilled again")

    resumed = run(digits, config, never, memo_path=path)
    assert timeless(resumed) == timeless(whole)
    assert len(counted) == 18 - 7 + 1  # the line that was cut off
    # it is the caller who removes what is remembered, once the results are written
    assert path.exists()
    pieces = {p.name for p in (tmp_path / "work").iterdir()} - {"networks"}
    assert pieces == {"repeat0_stage0", "repeat0_stage1"}


def test_a_lost_network_is_made_again(digits, tmp_path, monkeypatch):
    """A replay run stopped between stages whose network is gone, or is of another run, trains it
    anew and ends alike.
    """
    config = replace(SMALL, strategy="replay", repeats=1, memories=("random",))
    whole = run(digits, config)
    real_save = stages.save_network

    def save_and_stop(context, stage, network):
        real_save(context, stage, network)
        if stage.number == 1:
            raise KeyboardInterrupt

    path = tmp_path / "memo.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "save_network", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(digits, config, memo_path=path)
    (stored,) = (tmp_path / "work" / "networks").glob("*_0.safetensors")
    tensors, _ = files.read_tensors(stored)
    files.write_tensors(stored, {k: v * 0 for k, v in tensors.items()}, {"identity": "another"})
    assert timeless(run(digits, config, memo_path=path)) == timeless(whole)


def test_stored_pieces_of_another_seed_are_not_taken(digits, tmp_path):
    names = []

    def distill(data, recipe, seed, name):
        names.append((name, seed))
        return means(data, recipe, seed, name)

    config = replace(SMALL, repeats=1, memories=("distilled",))
    run(digits, config, distill, work=tmp_path)
    run(digits, replace(config, strategy="replay"), distill, work=tmp_path)
    assert len(names) == 2  # the strategy does not matter
    continual.run(digits, RECIPE, config, distill, seed=1, device=CPU, work=tmp_path)
    assert len(names) == 4 and len({seed for _, seed in names}) == 4


# Replay


def test_replay_goes_on_with_its_network_and_sees_stage_and_memory_in_equal_parts(
    digits, monkeypatch
):
    starts, sets, ends = [], [], []
    real_training = training.train_networks

    def watched(new_model, on, seeds, *args, **settings):
        starts.append(new_model(torch.Generator().manual_seed(0)).state_dict())
        sets.append(on[0])
        (network,) = real_training(new_model, on, seeds, *args, **settings)
        ends.append({k: v.clone() for k, v in network.state_dict().items()})
        return [network]

    monkeypatch.setattr(training, "train_networks", watched)
    run(
        replace(digits, validation=None),
        replace(SMALL, strategy="replay", repeats=1, memories=("random",)),
    )
    first, second, *joint = range(4)
    assert all(torch.equal(v, ends[first][k]) for k, v in starts[second].items())
    # joint begins anew
    assert not all(torch.equal(v, ends[second][k]) for k, v in starts[joint[1]].items())
    order = class_order(10, SMALL, 0, 0)
    assert sorted(
        sets[first].batch(torch.arange(len(sets[first]))).targets.unique().tolist()
    ) == sorted(order[0])
    targets = sets[second].batch(torch.arange(len(sets[second]))).targets
    counts = torch.bincount(targets, minlength=10)
    assert counts[order[1]].tolist() == [len(digits.train.members[c]) for c in order[1]]
    assert (
        len(set(counts[order[0]].tolist())) == 1
        and abs(counts[order[0][0]] - counts[order[1]].float().mean()) <= 1
    )
    mixed = torch.tensor([len(targets) - 1, 0, 5])
    assert sorted(sets[second].batch(mixed).targets.tolist()) == sorted(targets[mixed].tolist())


# Showing


def test_a_plot_and_a_table_of_a_result_that_went_through_json(digits, tmp_path):
    result = json.loads(json.dumps(run(digits)))
    of_continual.plot(tmp_path / "continual.png", result)
    assert (tmp_path / "continual.png").read_bytes().startswith(b"\x89PNG") and len(
        list(tmp_path.iterdir())
    ) == 1
    console = Console(width=80, record=True, quiet=True)
    with console.capture():
        console.print(of_continual.table(result))
    assert of_continual.table(result).row_count == 3
    assert list(of_continual.table(result).columns[0].cells) == ["distilled", "random", "joint"]


def test_the_true_objective_fills_a_memory(digits):
    from ddengine.api.distill import distill_data

    def distill(data, recipe, seed, name):
        return distill_data(data, recipe, seed=seed, device=CPU)

    result = run(digits, replace(SMALL, repeats=1, memories=("distilled",)), distill)
    assert (
        result["memories"]["distilled"]["images_per_class"] == 2
        and result["memories"]["distilled"]["final"]["mean"] > 0.15
    )


def test_seeds_of_the_pieces_are_those_of_before(digits):
    """A memory that is distilled again has the numbers it ever had: names of streams stay."""
    seeds = {}

    def distill(data, recipe, seed, name):
        seeds[name] = seed
        return means(data, recipe, seed, name)

    run(digits, replace(SMALL, memories=("distilled",), repeats=1), distill)
    assert next(iter(seeds.values())) == int(
        torch.randint(2**31, (1,), generator=generator(0, "continual", "distil", 0, 0))
    )
