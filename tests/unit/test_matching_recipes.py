"""Every published recipe of gradient and distribution matching beside the tables it was written
from.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, MODEL, run, tiny_data
from loops import for_each

from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig, OptimConfig
from ddengine.sets.codec import Identity, MultiFormation
from ddengine.sets.synthetic import initial
from ddengine.system.rng import generator
from synth.catalogue import RECIPES, find
from synth.cite import entries, keys
from synth.distribution import DistributionMatching
from synth.gradient import GradientMatching, Metric
from synth.networks import OnReal, OnSynthetic, Untrained, loop_counts
from synth.recipes.with_codecs import CODED

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("dc", "dsa", "dcc", "dsac", "dm", "idc", "idc_i")
NONE = None  # nothing was read that may be quoted

# method: {dataset: {images per class: mean and deviation in %}}
FIGURES = {
    "dc": {
        "mnist":         {1: (91.7, 0.5), 10: (97.4, 0.2), 50: (98.8, 0.1)},
        "fashion_mnist": {1: (70.5, 0.6), 10: (82.3, 0.4), 50: (83.6, 0.4)},
        "svhn":          {1: (31.2, 1.4), 10: (76.1, 0.6), 50: (82.3, 0.3)},
        "cifar10":       {1: (28.3, 0.5), 10: (44.9, 0.5), 50: (53.9, 0.5)},
        "cifar100":      {1: (12.8, 0.3), 10: (25.2, 0.3), 50: NONE},
    },
    "dsa": {
        "mnist":         {1: (88.7, 0.6), 10: (97.8, 0.1), 50: (99.2, 0.1)},
        "fashion_mnist": {1: (70.6, 0.6), 10: (84.6, 0.3), 50: (88.7, 0.2)},
        "svhn":          {1: (27.5, 1.4), 10: (79.2, 0.5), 50: (84.4, 0.4)},
        "cifar10":       {1: (28.8, 0.7), 10: (52.1, 0.5), 50: (60.6, 0.5)},
        "cifar100":      {1: (13.9, 0.3), 10: (32.3, 0.3), 50: (42.8, 0.4)},
    },
    "dcc": {
        "cifar10":       {1: (32.9, 0.8), 10: (49.4, 0.5), 50: (61.6, 0.4)},
        "cifar100":      {1: (13.3, 0.3), 10: (30.6, 0.4), 50: (40.0, 0.3)},
    },
    "dsac": {
        "cifar10":       {1: (34.0, 0.7), 10: (54.5, 0.5), 50: (64.2, 0.4)},
        "cifar100":      {1: (14.6, 0.3), 10: NONE, 50: (39.3, 0.4)},  # 14.6 again in the table
    },
    "dm": {
        "mnist":         {1: NONE, 10: NONE, 50: NONE},
        "fashion_mnist": {1: NONE, 10: NONE, 50: NONE},
        "cifar10":       {1: (26.0, 0.8), 10: (48.9, 0.6), 50: (63.0, 0.4), 100: (67.0, 0.3), 200: (71.2, 0.4), 500: (76.1, 0.3),
                          1000: (79.8, 0.3), 1250: (80.8, 0.3)},
        "cifar100":      {1: (11.4, 0.3), 10: (29.7, 0.3), 50: (43.6, 0.4)},
        "tiny_imagenet": {1: (3.9, 0.2), 10: (12.9, 0.4), 50: (24.1, 0.3)},
    },
    "idc": {
        "mnist":         {1: (94.2, None), 10: (98.4, None), 50: (99.1, None)},
        "fashion_mnist": {1: (81.0, None), 10: (86.0, None), 50: (86.2, None)},
        "svhn":          {1: (68.5, None), 10: (87.5, None), 50: (90.1, None)},
        "cifar10":       {1: (50.6, None), 10: (67.5, None), 50: (74.5, None)},
        "cifar100":      {10: (45.1, None), 20: (49.0, None)},
    },
    "idc_i": {
        "mnist":         {1: (88.9, None), 10: (98.0, None), 50: (98.8, None)},
        "fashion_mnist": {1: (70.7, None), 10: (85.3, None), 50: (89.1, None)},
        "svhn":          {1: (46.7, None), 10: (77.0, None), 50: (87.9, None)},
        "cifar10":       {1: (36.7, None), 10: (58.3, None), 50: (69.5, None)},
        "cifar100":      {10: (36.6, None), 20: (41.5, None)},
    },
}  # fmt: skip

ALL = {
    f"{method}/{dataset}_ipc{ipc}": (method, dataset, ipc)
    for method in METHODS
    for dataset, row in FIGURES[method].items()
    for ipc in row
}
OF = {
    method: [name for name, cell in ALL.items() if cell[0] in method.split()]
    for method in ("dc", "dsa", "dcc dsac", "dm", "idc idc_i")
}

NOTHING = AugmentConfig(ops=())
SIX = AugmentConfig(ops=("color", "crop", "cutout", "flip", "scale", "rotate"))
FIVE = AugmentConfig(ops=("color", "crop", "cutout", "scale", "rotate"))  # digits are not mirrored
DSA_OF = {
    "mnist": FIVE,
    "svhn": FIVE,
    "fashion_mnist": SIX,
    "cifar10": SIX,
    "cifar100": SIX,
    "tiny_imagenet": SIX,
}


def test_every_recipe_is_in_the_tables():
    """Or one of this project's own."""
    own = {f"{method}/fashion_mnist_ipc{ipc}_small" for method in METHODS for ipc in (1, 10)}
    own |= {f"{method}/cifar10_ipc{ipc}_small" for method in ("dm", "dsa") for ipc in (1, 10)}
    own |= {"dm/digits_ipc1", "dm/digits_ipc10", "dm/fashion_mnist_ipc1_quantised_small"}
    own |= {f"dm/fashion_mnist_ipc1_{name}_small" for name, _, _ in CODED}
    own |= {"dm/fashion_mnist_ipc10_mixed_small"}
    own |= {"dm/digits_ipc10_hyperbolic", "dm/digits_ipc10_moments"}
    assert {name for name in RECIPES if name.split("/")[0] in METHODS} == set(ALL) | own


@for_each("name", ALL)
def test_figures_and_what_all_have_in_common(name):
    """The whole training split, ConvNet of width 128, momentum 0.5; a figure as printed, or the
    reason why there is none.
    """
    recipe, (method, dataset, ipc) = find(name), ALL[name]
    assert (recipe.name, recipe.data.name, recipe.ipc, recipe.buffer) == (name, dataset, ipc, None)
    assert (recipe.data.validation, recipe.data.limit, recipe.data.zca, recipe.data.size) == (
        0,
        None,
        False,
        None,
    )
    assert recipe.model == (
        "convnet-d4-w128-in" if dataset == "tiny_imagenet" else "convnet-d3-w128-in"
    )
    assert recipe.targets.kind == "class" and recipe.init.kind == (
        "noise" if method == "dc" else "real"
    )
    optim = recipe.outer.optim["images"]
    assert set(recipe.outer.optim) == {"images"} and optim == OptimConfig(lr=optim.lr, momentum=0.5)
    assert (
        recipe.outer.draws,
        recipe.outer.ema,
        recipe.outer.max_loss,
        recipe.outer.evaluate_every,
    ) == (1, {}, float("inf"), 0)
    figure = FIGURES[method][dataset][ipc]
    if figure is None:
        assert recipe.published is None and "No published figure" in recipe.note
    else:
        assert recipe.published is not None and recipe.published.accuracy == pytest.approx(
            figure[0] / 100
        )
        assert recipe.published.std == (
            None if figure[1] is None else pytest.approx(figure[1] / 100)
        )
        assert recipe.published.source and "No published figure" not in recipe.note
    evaluation = recipe.evaluation
    assert (evaluation.lr, evaluation.momentum, evaluation.weight_decay) == (
        0.01,
        0.9,
        5e-4,
    ) and evaluation.models == ()


# images per class: outer steps per network, epochs between them
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


@for_each("ipc", LOOPS)
def test_published_loops(ipc):
    """The table."""
    assert loop_counts(ipc) == LOOPS[ipc]


def test_loops_in_between_and_beyond():
    """As many steps as images, epochs on the line between two entries; from 50 on as at 50."""
    assert {ipc: loop_counts(ipc) for ipc in (2, 5, 15, 25, 45, 51, 100, 1250)} == {
        2: (2, 6), 5: (5, 23), 15: (15, 38), 25: (25, 22), 45: (45, 12), 51: (50, 10), 100: (50, 10), 1250: (50, 10),
    }  # fmt: skip


@for_each("name", OF["dc"])
def test_dc(name):
    """No augmentation, 300 epochs; on MNIST 1000 with shifts, scales and rotations."""
    recipe, (_, dataset, ipc) = find(name), ALL[name]
    assert recipe.objective == GradientMatching(
        networks=OnSynthetic(steps=None, epochs=None, batch=256, lr=0.01),
        real_batch=256,
        augment=NOTHING,
    )
    assert recipe.outer.steps == 1000 * LOOPS[ipc][0] and recipe.outer.optim["images"].lr == 0.1
    assert recipe.codec == Identity() and (recipe.outer.step_after, recipe.evaluation.protocol) == (
        "all",
        "dc",
    )
    shifts = AugmentConfig(ops=("crop", "scale", "rotate"), crop=4 / 32, scale=1.2, rotate=45)
    assert (recipe.evaluation.epochs, recipe.evaluation.augment) == (
        (1000, shifts) if dataset == "mnist" else (300, NOTHING)
    )
    assert (
        recipe.objective.metric == "layerwise"
        and recipe.objective.tensors == "weights"
        and recipe.objective.classes == "each"
    )


@for_each("name", OF["dsa"])
def test_dsa(name):
    """DC from real images, with augmentation in matching and evaluation."""
    recipe, (_, dataset, ipc) = find(name), ALL[name]
    assert recipe.objective == replace(find("dc/cifar10_ipc10").objective, augment=DSA_OF[dataset])
    assert recipe.outer.steps == 1000 * LOOPS[ipc][0] and recipe.outer.optim["images"].lr == 0.1
    assert recipe.codec == Identity() and (recipe.outer.step_after, recipe.evaluation.protocol) == (
        "all",
        "dsa",
    )
    assert (recipe.evaluation.epochs, recipe.evaluation.augment) == (1000, DSA_OF[dataset])


@for_each("name", OF["dcc dsac"])
def test_dcc(name):
    """Sums over classes after the warm-up; ten steps per network and five epochs at one image per
    class.
    """
    recipe, (method, _, ipc) = find(name), ALL[name]
    augment = SIX if method == "dsac" else NOTHING
    networks = OnSynthetic(steps=10, epochs=5) if ipc == 1 else OnSynthetic()
    assert recipe.objective == replace(
        find("dc/cifar10_ipc10").objective,
        networks=networks,
        augment=augment,
        classes="sum",
        warmup_networks=250,
        warmup_steps=10,
    )
    assert (
        recipe.outer.steps == 1000 * max(ipc, 10)
        and recipe.outer.optim["images"].lr == 0.1
        and recipe.codec == Identity()
    )
    assert (
        recipe.evaluation == find(f"{'dsa' if method == 'dsac' else 'dc'}/cifar10_ipc10").evaluation
    )


@for_each("name", OF["dm"])
def test_dm(name):
    """Fresh networks; ten times the rate from 100 images per class on."""
    recipe, (_, dataset, ipc) = find(name), ALL[name]
    assert recipe.objective == DistributionMatching(
        networks=Untrained(), real_batch=256, augment=DSA_OF[dataset]
    )
    assert (
        recipe.outer.steps == 20000
        and recipe.outer.optim["images"].lr == (10 if ipc >= 100 else 1)
        and recipe.codec == Identity()
    )
    assert (recipe.evaluation.protocol, recipe.evaluation.epochs, recipe.evaluation.augment) == (
        "dsa",
        1000,
        DSA_OF[dataset],
    )


# dataset: metric, real images between sweeps, {images per class: rate of the pixels}
IDC: dict[str, tuple[Metric, int, dict[int, float]]] = {
    "mnist":         ("l1", 500, {1: 1e-5, 10: 1e-4, 50: 5e-4}),
    "fashion_mnist": ("l1", 500, {1: 7.66e-6, 10: 7.66e-5, 50: 3.83e-4}),
    "svhn":          ("mse", 500, {1: 5e-4, 10: 5e-3, 50: 2.5e-2}),
    "cifar10":       ("mse", 2000, {1: 5e-4, 10: 5e-3, 50: 2.5e-2}),
    "cifar100":      ("mse", 2000, {10: 5e-3, 20: 1e-2}),
}  # fmt: skip
# probability of mixing, and what is always applied, where it is not the protocol's 0.5 with flip
# and colour
IDC_EVALUATION = {
    "idc/mnist": (0.0, ("color",)), "idc_i/mnist": (0.5, ("color",)), "idc/svhn": (0.5, ("color",)), "idc_i/svhn": (0.5, ("color",)),
    "idc_i/svhn_ipc1": (0.0, ("color", "cutout")),
}  # fmt: skip


@for_each("name", OF["idc idc_i"])
def test_idc(name):
    """Convolutions in networks trained on real images, 100 sweeps each, an update after every
    class.
    """
    recipe, (method, dataset, ipc) = find(name), ALL[name]
    metric, images, rates = IDC[dataset]
    bare = (method, dataset) == ("idc", "mnist")  # neither cutout nor CutMix
    networks = OnReal(
        steps=100, images=images, batch=64, optim=OptimConfig(lr=0.01, momentum=0.9, weight_decay=5e-4),
        augment=AugmentConfig(always=("color", "crop"), ops=()), cutmix=0.0 if bare else 0.5,
    )  # fmt: skip
    always = ("color", "crop") if bare else ("color", "crop", "cutout")
    assert recipe.objective == GradientMatching(
        networks=networks, metric=metric, tensors="convolutions", real_batch=64, syn_batch=128, classes_at_once=1,
        augment=AugmentConfig(always=always, ops=()),
    )  # fmt: skip
    assert (
        recipe.codec == MultiFormation(factor=2 if method == "idc" else 1)
        and recipe.codec.space == "pixel"
    )
    assert (recipe.outer.steps, recipe.outer.step_after) == (200_000, "each")
    assert recipe.outer.optim["images"].lr == pytest.approx(rates[ipc], rel=1e-3)
    evaluation = recipe.evaluation
    assert (
        evaluation.protocol,
        evaluation.epochs,
        evaluation.batch,
        evaluation.schedule,
        evaluation.lr_drop,
    ) == ("idc", 1000, 64, "thirds", 0.2)
    cutmix, always = IDC_EVALUATION.get(
        name, IDC_EVALUATION.get(f"{method}/{dataset}", (0.5, ("flip", "color")))
    )
    assert evaluation.cutmix == cutmix and evaluation.augment == AugmentConfig(
        always=always, ops=("crop", "scale", "rotate")
    )


# They run


@pytest.fixture(scope="module")
def world():
    """200 digits."""
    data = tiny_data()

    def new_model(rng):
        return build_model(MODEL, data.image_shape, data.num_classes, rng)

    return data, Env(data.train, new_model, FlatModel(new_model(generator(0))), None, CPU)


@for_each("name", ALL)
def test_every_objective_builds_and_has_a_loss(name, world):
    """With small real batches, a small network and two images per class."""
    data, env = world
    recipe = replace(find(name), model=MODEL, ipc=2)
    syn = initial(recipe, data, generator(0, "init"), None)
    objective = replace(recipe.objective, real_batch=8).build(env)
    losses = [
        float(loss.detach())
        for loss in objective.losses(syn, objective.init(generator(0)), 0, generator(0, "losses"))
    ]
    assert losses and torch.tensor(losses).isfinite().all() and sum(losses) > 0


def program(*args, columns="80"):
    """What a command line prints."""
    done = subprocess.run(
        [sys.executable, "run.py", *args],
        cwd=ROOT,
        capture_output=True,
        env={"COLUMNS": columns, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_the_list_fits_into_80_columns():
    """No name and no figure is cut off."""
    rows = {line.split()[0]: line for line in program("recipes").splitlines() if "/" in line}
    assert max(map(len, rows.values())) <= 80
    for name, (method, dataset, ipc) in ALL.items():
        figure = FIGURES[method][dataset][ipc]
        printed = (
            "-"
            if figure is None
            else f"{figure[0]}" + (f" ± {figure[1]}" if figure[1] is not None else "")
        )
        assert f"  {printed}  " in rows[name] and rows[name].split()[-1] == find(name).model


# beside the dataset
CITED = {
    "dc": ["zhao2021dc"],
    "dsa": ["zhao2021dc", "zhao2021dsa"],
    "dcc": ["zhao2021dc", "lee2022dcc"],
    "dsac": ["zhao2021dc", "zhao2021dsa", "lee2022dcc"],
    "dm": ["zhao2023dm", "zhao2021dsa"],
    "idc": ["kim2022idc", "zhao2021dc", "yun2019cutmix", "zhao2021dsa"],
    "idc_i": ["kim2022idc", "zhao2021dc", "yun2019cutmix", "zhao2021dsa"],
}


def test_cite(capsys):
    """Method, augmentation, CutMix, dataset."""
    for method in METHODS:
        recipe = find(f"{method}/cifar10_ipc10")
        assert sorted(keys(recipe)) == sorted([*CITED[method], "krizhevsky2009cifar"]), method
        assert run("cite", recipe.name) == 0
        assert (
            capsys.readouterr().out == "\n\n".join(entries()[key] for key in keys(recipe)) + "\n"
        ), method


def test_cutmix_is_cited_where_anything_is_mixed():
    """In the evaluation or in the training of the networks."""
    assert "yun2019cutmix" not in keys(find("idc/mnist_ipc10")) and "yun2019cutmix" in keys(
        find("idc_i/svhn_ipc1")
    )
    plain = find("dm/cifar10_ipc10")
    assert "yun2019cutmix" in keys(replace(plain, evaluation=replace(plain.evaluation, cutmix=0.5)))
