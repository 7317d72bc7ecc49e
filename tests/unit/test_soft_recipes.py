"""Every published recipe with teachers and soft labels beside the tables it was written from."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, DIGITS
from loops import for_each
from safetensors import safe_open

from buffers.pretrained import Pretrained
from buffers.steps import Sgd
from ddengine.data import load_data
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig, BufferConfig, InitConfig, OptimConfig, TargetConfig
from ddengine.sets.codec import Compensated, Identity
from ddengine.sets.synthetic import initial
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import RECIPES, find
from synth.cite import entries, keys
from synth.compensator import BaseSets
from synth.selection import NoObjective
from synth.statistics import OnePerClass, StatisticsMatching

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "infer_bn.safetensors"
METHODS = ("infer", "sre2l", "rded")
R18, MOBILE, EFFICIENT, SHUFFLE = "resnet18-bn", "mobilenet_v2", "efficientnet_b0", "shufflenet_g2"
LARGE = "torchvision/resnet18"
FOUR = (R18, MOBILE, EFFICIENT, SHUFFLE)
THREE = (LARGE, "torchvision/mobilenet_v2", "torchvision/efficientnet_b0")
C128, C128_4 = "convnet-d3-w128-bn", "convnet-d4-w128-bn"

NONE = None  # nothing was read that may be quoted
# method and variant: {dataset: {images per class: mean and deviation in %, or a mean alone}}
FIGURES = {
    "infer": {
        "cifar10":       {10: (32.0, 0.5), 50: (60.4, 1.6)},
        "cifar100":      {10: (45.2, 0.04), 50: (62.8, 0.4), 100: (66.3, 0.1)},
        "tiny_imagenet": {10: (32.0, 0.1), 50: (52.9, 0.1)},
        "imagenet":      {10: (28.7, 0.2), 50: (51.8, 0.2)},
    },
    "infer _dyn": {
        "cifar10":       {10: (30.7, 0.3), 50: (60.7, 0.9)},
        "cifar100":      {10: (53.4, 0.6), 50: (68.9, 0.1), 100: (73.3, 0.2)},
        "tiny_imagenet": {10: (41.0, 0.4), 50: (54.6, 0.4)},
        "imagenet":      {10: (36.3, 0.3), 50: (55.6, 0.2)},
    },
    "infer _convnet": {
        "cifar10":       {10: (34.0, 0.4), 50: (57.0, 0.2)},
        "cifar100":      {10: (41.0, 0.4), 50: (53.8, 0.2), 100: (57.0, 0.02)},
        "tiny_imagenet": {10: (22.8, 0.3), 50: (32.3, 0.3)},
    },
    "infer _convnet_dyn": {
        "cifar10":       {10: (30.1, 0.8), 50: (52.4, 0.7)},
        "cifar100":      {10: (37.2, 0.3), 50: (50.7, 0.3), 100: (53.4, 0.2)},
        "tiny_imagenet": {10: (24.9, 0.3), 50: (33.9, 0.6)},
    },
    "sre2l": {
        "cifar10":       {10: (27.2, 0.5), 50: (47.5, 0.6)},
        "cifar100":      {10: (31.6, 0.5), 50: (49.5, 0.3)},
        "tiny_imagenet": {50: (41.1, 0.4), 100: 49.7},
        "imagenet":      {10: (21.3, 0.6), 50: (46.8, 0.2), 100: 52.8, 200: 57.0},
    },
    "sre2l _cda": {
        "tiny_imagenet": {50: 48.7, 100: 53.2},
        "imagenet":      {10: 33.5, 50: 53.5, 100: 58.0, 200: 63.3},
    },
    "sre2l _dwa": {
        "cifar10":       {10: 32.6, 50: 53.1},
        "cifar100":      {10: 39.6, 50: 60.9},
        "tiny_imagenet": {50: 52.8, 100: 56.0},
        "imagenet":      {10: 37.9, 50: 55.2, 100: 59.2},
    },
    "sre2l _dwa_convnet": {
        "cifar10":       {10: 45.0, 50: 63.3},
        "cifar100":      {10: 47.6, 50: 59.0},
    },
    "rded": {
        "cifar10":       {1: NONE, 10: NONE, 50: NONE},
        "cifar100":      {1: NONE, 10: NONE, 50: NONE},
        "tiny_imagenet": {1: NONE, 10: 41.9, 50: NONE},
        "imagenet":      {1: NONE, 10: 42.0, 50: 56.5},
        "imagenette":    {1: NONE, 10: 61.4, 50: NONE},
        "imagewoof":     {1: NONE, 10: NONE, 50: NONE},
    },
}  # fmt: skip
# not read in the table itself
SECOND_HAND = {
    "rded/tiny_imagenet_ipc10",
    "rded/imagenet_ipc50",
    "rded/imagenette_ipc10",
    "sre2l/imagenet_ipc10_cda",
}

ALL = {
    f"{which.split()[0]}/{dataset}_ipc{ipc}{which.partition(' ')[2]}": (which, dataset, ipc)
    for which, rows in FIGURES.items()
    for dataset, row in rows.items()
    for ipc in row
}
OF = {method: [name for name in ALL if name.startswith(f"{method}/")] for method in METHODS}


def test_every_recipe_is_in_the_tables():
    """Or one of this project's own, and those come first."""
    own = {f"{method}/fashion_mnist_ipc{ipc}_small" for method in METHODS for ipc in (10, 50)}
    own |= {f"{method}/cifar10_ipc10_small" for method in METHODS}
    assert {name for name in RECIPES if name.split("/")[0] in METHODS} == set(ALL) | own
    for method in METHODS:
        assert next(name for name in RECIPES if name.startswith(f"{method}/")) in own


SIZES = {"imagenet": (224, 224), "imagenette": (224, 224), "imagewoof": (224, 224)}


@for_each("name", ALL)
def test_figures_and_what_all_have_in_common(name):
    """A figure as printed or the reason why there is none; the whole training split, of ImageNet a
    subset; the labels of all teachers are shipped.
    """
    recipe, (which, dataset, ipc) = find(name), ALL[name]
    assert (recipe.name, recipe.data.name, recipe.ipc) == (name, dataset, ipc)
    assert (recipe.data.validation, recipe.data.zca, recipe.data.size) == (
        0,
        False,
        SIZES.get(dataset),
    )
    assert (recipe.data.limit is not None) == (dataset == "imagenet")
    assert recipe.targets == TargetConfig(
        kind="logits", experts="all", relabel=True, dtype="float16"
    )
    figure = FIGURES[which][dataset][ipc]
    if name in SECOND_HAND:
        assert recipe.published is None
        assert f"a summary by others quotes {figure:g} %" in recipe.note
    elif figure is None:
        assert (
            recipe.published is None
            and "No published figure" in recipe.note
            and "recalled" in recipe.note
        )
    else:
        mean, std = figure if isinstance(figure, tuple) else (figure, None)
        assert recipe.published is not None and recipe.published.accuracy == pytest.approx(
            mean / 100
        )
        assert recipe.published.std == (None if std is None else pytest.approx(std / 100))
        assert "summary" not in recipe.published.source
        assert "No published figure" not in recipe.note
    assert "Differs from the released code: " in recipe.note and not re.search(
        r"\.\.|  |\{|\}", recipe.note
    )
    assert set(keys(recipe)) <= entries().keys()
    if dataset == "imagenet":
        assert f"{recipe.data.limit:,}" in recipe.note and "squashed" in recipe.note


# The budget


# C, M, ipc: base images a class, compensators, examples a class; stored images a class, bytes of
# labels in half precision
BUDGET = [
    ("cifar10",       10,   4, 10,  7,  28,  35,  9.80,   7.0e3),
    ("cifar10",       10,   4, 50,  35, 140, 175, 49.0,   35e3),
    ("cifar100",      100,  4, 10,  9,  36,  45,  9.36,   0.9e6),
    ("cifar100",      100,  4, 50,  48, 192, 240, 49.92,  4.8e6),
    ("cifar100",      100,  4, 100, 96, 384, 480, 99.84,  9.6e6),
    ("tiny_imagenet", 200,  4, 10,  9,  36,  45,  9.18,   3.6e6),
    ("tiny_imagenet", 200,  4, 50,  49, 196, 245, 49.98,  19.6e6),
    ("imagenet",      1000, 3, 10,  9,  27,  36,  9.027,  72e6),
    ("imagenet",      1000, 3, 50,  49, 147, 196, 49.147, 392e6),
    ("imagenet",      1000, 3, 100, 99, 297, 396, 99.297, 0.792e9),
]  # fmt: skip


@for_each("dataset, classes, per_set, ipc, n, k, examples, effective, label_bytes", BUDGET)
def test_the_published_budget(
    dataset, classes, per_set, ipc, n, k, examples, effective, label_bytes
):
    """Row by row, through the codec of the recipes."""
    named = [name for name in OF["infer"] if ALL[name][1:] == (dataset, ipc)]
    assert named or (dataset, ipc) == ("imagenet", 100)  # whose figure was not read
    assert all(find(name).codec == Compensated(per_set=per_set) for name in named)
    codec = Compensated(per_set=per_set)
    assert codec.budget(ipc, classes) == (n, k, examples)
    assert codec.fit(ipc, (3, 32, 32), classes) == (
        Compensated(per_set=per_set, base=n, compensators=k),
        n,
    )
    assert n + k / classes == pytest.approx(effective) and n + k / classes <= ipc
    assert examples * classes * classes * 2 == pytest.approx(label_bytes)


@pytest.mark.skipif(not GOLDEN.is_file(), reason="no golden file")
def test_the_budget_of_the_released_code():
    """Its rows; where it is a rounding error below a whole number, the codec has the whole number."""
    with safe_open(GOLDEN, "pt") as file:
        rows, rounding = (
            file.get_tensor("budget").tolist(),
            file.get_tensor("budget_rounding").tolist(),
        )
    for ipc, classes, per_set, n, k, examples in rows:
        if n:
            assert Compensated(per_set=per_set).budget(ipc, classes) == (n, k, examples)
        else:
            with pytest.raises(UserError, match="no whole base image"):
                Compensated(per_set=per_set).budget(ipc, classes)
    assert len(rows) > 10 and rounding
    for ipc, classes, per_set, released, exact in rounding:
        assert (
            released == exact - 1 and Compensated(per_set=per_set).budget(ipc, classes)[0] == exact
        )


# Settings


def adam(lr):
    return OptimConfig(kind="adam", lr=lr, momentum=0.5, beta2=0.9, schedule="cosine")


SHIFT_FLIP = AugmentConfig(always=("crop", "flip"), ops=(), crop=4 / 32)
CROP_FLIP = AugmentConfig(always=("resized_crop", "flip"), ops=(), area=0.08)
ROLL = AugmentConfig(always=("roll",), ops=(), roll=4)
CROP_ROLL = AugmentConfig(always=("resized_crop", "flip", "roll"), ops=(), area=0.08, roll=4)
CROP_ROLL_32 = AugmentConfig(always=("resized_crop", "flip", "roll"), ops=(), area=0.08, roll=32)
SQUEEZE = BufferConfig(
    step=Sgd(lr=0.1, momentum=0.9, weight_decay=5e-4, cosine=True),
    num_experts=1,
    epochs=200,
    batch=128,
    augment=SHIFT_FLIP,
    keep="last",
)


def check_teachers(recipe, dataset, networks, tiny_epochs):
    """Their networks and how they are trained."""
    assert recipe.teachers == networks
    if dataset.startswith("cifar"):
        assert recipe.buffer == SQUEEZE
    elif dataset == "imagenet":
        assert (
            recipe.buffer.step == Pretrained(weights="IMAGENET1K_V1")
            and not recipe.buffer.augment.any
        )
    elif dataset == "tiny_imagenet":
        assert recipe.buffer.step == Sgd(lr=0.2, momentum=0.9, weight_decay=1e-4, cosine=True)
        assert (recipe.buffer.epochs, recipe.buffer.batch, recipe.buffer.augment) == (
            tiny_epochs,
            256,
            CROP_FLIP,
        )
        assert "recalled" in recipe.note
    assert (recipe.buffer.num_experts, recipe.buffer.keep, recipe.buffer.model) == (1, "last", None)


def protocol(evaluation):
    """What decides a training, but augmentation and mixing."""
    return (
        evaluation.epochs, evaluation.batch, evaluation.optimiser, evaluation.lr, evaluation.weight_decay, evaluation.schedule, evaluation.stretch,
        evaluation.loss, evaluation.temperature, evaluation.squared, evaluation.hard_weight, evaluation.decay_norms,
    )  # fmt: skip


def mixing(evaluation):
    return evaluation.mixup, evaluation.cutmix, evaluation.mix_labels


MATCHING = {  # updates, rate, weight of the statistics, augmentation
    "cifar10": (1000, 0.25, 1.0, ROLL),
    "cifar100": (1000, 0.25, 1.0, ROLL),
    "tiny_imagenet": (2000, 0.1, 1.0, CROP_FLIP),
    "imagenet": (2000, 0.25, 0.01, CROP_ROLL_32),
}


@for_each("name", OF["infer"])
def test_infer(name):
    """All compensators from nothing; the evaluation with static labels, or with dynamic ones for 1
    / (M + 1) of the epochs.
    """
    recipe, (which, dataset, _) = find(name), ALL[name]
    steps, lr, alpha, augment = MATCHING[dataset]
    large = dataset == "imagenet"
    objective = StatisticsMatching(
        batches=BaseSets(),
        alpha=alpha,
        first=10.0,
        variance=1.0,
        augment=augment,
        adjust=0.0,
        crop_until=0,
    )
    assert replace(recipe.objective, images_at_once=None) == objective
    assert recipe.objective.images_at_once == {"imagenet": 250, "tiny_imagenet": 400}.get(dataset)
    assert recipe.outer.steps == steps and recipe.outer.optim == {"compensators": adam(lr)}
    assert recipe.init == InitConfig(kind="real") and recipe.codec == Compensated(
        per_set=3 if large else 4, clamp=False
    )
    check_teachers(recipe, dataset, THREE if large else FOUR, 100)
    convnet = C128_4 if dataset == "tiny_imagenet" else C128
    assert recipe.model == (convnet if "_convnet" in which else LARGE if large else R18)
    dynamic, evaluation = "_dyn" in which, recipe.evaluation
    assert (evaluation.protocol, evaluation.labels) == (
        ("infer-dynamic", "dynamic") if dynamic else ("infer-static", "own")
    )
    assert evaluation.teacher_mode == "eval"
    if large:
        assert protocol(evaluation) == (
            75 if dynamic else 300,
            128,
            "adamw",
            1e-3,
            0.01,
            "cosine",
            1.0,
            "kl",
            20.0,
            False,
            0.0,
            False,
        )
        assert evaluation.augment == CROP_FLIP and mixing(evaluation) == (0.0, 1.0, "logits")
        assert (
            recipe.data.limit == 100_000
            and "ResNet101" in recipe.note
            and "not released" in recipe.note
        )
    else:
        assert protocol(evaluation) == (
            80 if dynamic else 400,
            64,
            "adamw",
            1e-3,
            0.01,
            "cosine",
            1.0,
            "kl",
            30.0,
            False,
            0.0,
            True,
        )
        assert evaluation.augment == SHIFT_FLIP and mixing(evaluation) == (0.8, 0.0, "logits")
    assert ("ssumed" in recipe.note) == (dataset != "cifar100")


RECOVER = {  # variant and dataset: updates, rate, objective
    ("", "cifar10"): (1000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=ROLL)),
    ("", "cifar100"): (1000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=ROLL)),
    ("", "tiny_imagenet"): (4000, 0.1, StatisticsMatching(batches=OnePerClass(classes=100), alpha=1.0, augment=CROP_ROLL)),
    ("", "imagenet"): (4000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=CROP_ROLL_32)),
    ("_cda", "tiny_imagenet"): (4000, 0.4, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.05, augment=CROP_ROLL, crop_until=4000)),
    ("_cda", "imagenet"): (4000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=CROP_ROLL_32, crop_until=4000)),
    ("_dwa", "cifar10"): (
        1000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=ROLL, variance=11, adjust=0.015, adjust_steps=12),
    ),
    ("_dwa", "cifar100"): (
        1000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=ROLL, variance=11, adjust=0.015, adjust_steps=12),
    ),
    ("_dwa", "tiny_imagenet"): (
        2000, 0.1, StatisticsMatching(batches=OnePerClass(classes=200), alpha=0.01, augment=CROP_FLIP, variance=11, adjust=0.015, adjust_steps=12),
    ),
    ("_dwa", "imagenet"): (
        2000, 0.25, StatisticsMatching(batches=OnePerClass(classes=100), alpha=0.01, augment=CROP_ROLL_32, variance=2, adjust=0.015, adjust_steps=15),
    ),
}  # fmt: skip
# epochs and batch on Tiny ImageNet, batch on ImageNet
STUDENTS = {"": (100, 64, 1024), "_cda": (100, 128, 128), "_dwa": (200, 64, 128)}


@for_each("name", OF["sre2l"])
def test_sre2l(name):
    """Images in one trained ResNet18; students ask it at each step."""
    recipe, (which, dataset, ipc) = find(name), ALL[name]
    suffix = which.partition(" ")[2]
    variant, large = suffix.removesuffix("_convnet"), dataset == "imagenet"
    steps, lr, objective = RECOVER[variant, dataset]
    assert replace(recipe.objective, images_at_once=None) == objective and (
        objective.first,
        objective.curriculum,
    ) == (10.0, "cosine")
    assert recipe.objective.images_at_once == {"imagenet": 100, "tiny_imagenet": 400}.get(dataset)
    assert recipe.outer.steps == steps and recipe.outer.optim == {"images": adam(lr)}
    assert recipe.outer.checkpoint_every == (steps // 4 if variant == "_dwa" else steps // 10)
    assert recipe.codec == Identity(bounded=True) and recipe.init.kind == (
        "real" if variant == "_dwa" else "noise"
    )
    check_teachers(recipe, dataset, (LARGE if large else R18,), 100 if variant == "_dwa" else 50)
    assert recipe.model == (C128 if suffix.endswith("_convnet") else LARGE if large else R18)
    assert recipe.data.limit == (
        {10: 100_000, 50: 100_000, 100: 200_000, 200: 400_000}[ipc] if large else None
    )
    evaluation, (epochs, batch, large_batch) = recipe.evaluation, STUDENTS[variant]
    assert (evaluation.protocol, evaluation.labels) == ("sre2l", "dynamic")
    if dataset.startswith("cifar"):
        assert protocol(evaluation) == (
            400,
            128,
            "adamw",
            1e-3,
            0.01,
            "cosine",
            1.0,
            "kl",
            30.0,
            False,
            0.0,
            True,
        )
        assert (
            evaluation.augment == SHIFT_FLIP
            and mixing(evaluation) == (0.8, 0.0, "logits")
            and evaluation.teacher_mode == "train"
        )
        assert "training mode" in recipe.note
        return
    assert (
        evaluation.augment == CROP_FLIP
        and mixing(evaluation) == (0.0, 1.0, "logits")
        and evaluation.teacher_mode == "eval"
    )
    if large:
        assert protocol(evaluation) == (
            300,
            large_batch,
            "adamw",
            1e-3,
            0.01,
            "cosine",
            1.0,
            "kl",
            20.0,
            False,
            0.0,
            False,
        )
    else:
        assert (
            protocol(evaluation)
            == (epochs, batch, "sgd", 0.2, 1e-4, "cosine", 1.0, "kl", 20.0, True, 0.0, True)
            and evaluation.momentum == 0.9
        )
    assert ("batch of 128 is recalled" in recipe.note) == (variant == "_cda")


def test_where_quotes_of_sre2l_disagree():
    """The note says what others print."""
    assert (
        "52.2" in find("sre2l/cifar100_ipc50").note and "50.2" in find("sre2l/cifar100_ipc50").note
    )
    assert "27.0" in find("sre2l/cifar100_ipc10").note
    assert all(
        "INFER" in find(f"sre2l/{dataset}_ipc{ipc}").published.source
        for dataset in ("cifar10", "cifar100")
        for ipc in (10, 50)
    )


BATCHES = {
    "cifar10": {1: 10, 10: 50, 50: 100}, "cifar100": {1: 20, 10: 100, 50: 200}, "tiny_imagenet": {1: 100, 10: 100, 50: 100},
    "imagenet": {1: 20, 10: 100, 50: 200}, "imagenette": {1: 10, 10: 50, 50: 100}, "imagewoof": {1: 10, 10: 50, 50: 100},
}  # fmt: skip
TILES = AugmentConfig(always=("shuffle", "resized_crop", "flip"), ops=(), area=0.5, patches=2)
WHOLE = AugmentConfig(always=("flip",), ops=())


@for_each("name", OF["rded"])
def test_rded(name):
    """Nothing is optimised; one patch an image on CIFAR, four on larger ones."""
    recipe, (_, dataset, ipc) = find(name), ALL[name]
    factor = 1 if dataset.startswith("cifar") else 2
    assert recipe.init == InitConfig(
        kind="patches", candidates=300, crops=5, factor=factor
    ) and recipe.codec == Identity(bounded=True)
    assert recipe.objective == NoObjective() and (recipe.outer.steps, recipe.outer.optim) == (0, {})
    network = LARGE if dataset in SIZES else R18
    check_teachers(recipe, dataset, (network,), 50)
    assert recipe.model == network and recipe.data.limit == (
        400_000 if dataset == "imagenet" else None
    )
    evaluation = recipe.evaluation
    assert (evaluation.protocol, evaluation.labels, evaluation.teacher_mode) == (
        "rded",
        "dynamic",
        "eval",
    )
    assert protocol(evaluation) == (
        300,
        BATCHES[dataset][ipc],
        "adamw",
        1e-3,
        0.01,
        "cosine",
        2.0,
        "kl",
        20.0,
        False,
        0.0,
        False,
    )
    assert evaluation.augment == (TILES if factor == 2 else WHOLE) and mixing(evaluation) == (
        0.0,
        1.0,
        "logits",
    )
    assert ("mean and deviation" in recipe.note) == (network == R18)


def test_a_subset_of_imagenet_holds_what_is_drawn():
    """The smallest class has 732 of 1,281,167 images, and a subset takes each class in its
    proportion.
    """
    for name, (_, dataset, ipc) in ALL.items():
        recipe = find(name)
        if dataset == "imagenet":
            assert recipe.data.limit * 732 // 1_281_167 >= ipc * recipe.init.factor**2


# They run


@pytest.fixture(scope="module")
def world():
    """200 digits, and four untrained teachers."""
    data = load_data(DIGITS, CPU)

    def new_model(rng):
        return build_model("convnet-d1-w4-bn", data.image_shape, data.num_classes, rng)

    def load(expert, epoch):
        return new_model(generator(expert)).eval()

    first = FlatModel(new_model(generator(0)))
    return data, {
        m: Env(
            data.train, new_model, first, SimpleNamespace(num_experts=m, epochs=[1], load=load), CPU
        )
        for m in (1, 3, 4)
    }


@for_each("name", ALL)
def test_every_recipe_starts_and_has_a_loss(name, world):
    """On digits and small networks: every stored tensor that is optimised gets a finite gradient."""
    data, envs = world
    recipe = replace(find(name), ipc=2)
    env = envs[len(recipe.teachers)]
    syn = initial(recipe, data, generator(0, "init"), env.experts)
    objective = recipe.objective.build(env)
    leaves = {key: syn.tensors[key].clone().requires_grad_() for key in recipe.outer.optim}
    losses = list(
        objective.losses(
            syn.with_tensors(leaves), objective.init(generator(0)), 0, generator(0, "losses")
        )
    )
    if not leaves:
        assert losses == [] and len(syn) == 20
        return
    total = torch.stack(losses).sum()
    grads = torch.autograd.grad(total, list(leaves.values()))
    assert (
        total.isfinite()
        and total > 0
        and all(grad.isfinite().all() and grad.any() for grad in grads)
    )
