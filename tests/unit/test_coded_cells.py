"""The published cells in codecs beside the tables that they were read in."""

import math

from published import NUM_CLASSES, SHAPES, SUBSETS

from ddengine.sets.codec.within_bytes import fitted
from synth.catalogue import find

# dataset and ipc: images of a class, Gaussians, student steps, starts, rate of the rate, batch, %
GSDD = {
    "cifar10_ipc1": (30, 22, 60, 30, 1e-5, 300, 67.6),
    "cifar10_ipc10": (160, 42, 60, 30, 1e-5, 380, 75.5),
    "cifar10_ipc50": (250, 136, 60, 30, 1e-5, 360, 77.7),
    "cifar100_ipc1": (30, 22, 60, 30, 1e-5, 512, 43.0),
    "cifar100_ipc10": (80, 85, 60, 30, 1e-5, 512, 47.4),
    "cifar100_ipc50": (400, 85, 60, 30, 1e-5, 640, 53.1),
    "imagenette_ipc1": (64, 170, 20, 40, 1e-6, 150, 76.4),
    "imagewoof_ipc1": (64, 170, 20, 40, 1e-6, 150, 46.4),
    "imagefruit_ipc1": (64, 170, 20, 40, 1e-6, 150, 51.2),
    "imagemeow_ipc1": (64, 170, 20, 40, 1e-6, 150, 53.8),
    "imagesquawk_ipc1": (64, 170, 20, 40, 1e-6, 150, 73.2),
    "imageyellow_ipc1": (64, 170, 20, 40, 1e-6, 150, 72.4),
}
# the same subsets under DM, %
UNDER_DM = dict(zip(SUBSETS, (74.6, 43.4, 52.0, 48.2, 73.6, 69.4), strict=True))


def assert_fills_its_bytes(recipe):
    """No image more has so many Gaussians in the bytes of ipc images of float32."""
    shape = SHAPES.get(recipe.data.name, (3, *(recipe.data.size or ())))
    codec, items = fitted(recipe, shape, NUM_CLASSES[recipe.data.name])
    assert items == codec.items
    numbers = codec.primitives * 9
    room = recipe.ipc * math.prod(shape) * 2 // items
    assert numbers <= room < numbers + 9


def test_gaussians_under_trajectories():
    for name, row in GSDD.items():
        recipe = find(f"gsdd/{name}")
        objective = recipe.objective
        assert row == (
            recipe.codec.items, recipe.codec.primitives, objective.inner_steps,
            objective.window.high, recipe.outer.optim["lr"].lr, objective.batch,
            round(100 * recipe.published.accuracy, 1),
        )  # fmt: skip
        assert recipe.outer.steps == 15000 and objective.expert_epochs == 2
        assert recipe.data.zca == name.startswith("cifar")
        assert_fills_its_bytes(recipe)


def test_gaussians_under_distribution_matching():
    for name, printed in UNDER_DM.items():
        recipe = find(f"gsdd/{name}_ipc1_dm")
        assert (recipe.codec.items, recipe.codec.primitives) == (200, 54)
        assert recipe.outer.steps == 20000 and recipe.objective.real_batch == 1024
        assert recipe.buffer is None and recipe.objective.syn_batch is None
        assert round(100 * recipe.published.accuracy, 1) == printed
        assert_fills_its_bytes(recipe)


def test_the_cross_has_hard_labels_and_as_many_images_as_its_bytes_hold():
    for ipc in (1, 10):
        recipe, datm = find(f"datm/cifar10_ipc{ipc}_quantised"), find(f"datm/cifar10_ipc{ipc}")
        assert recipe.targets.kind == "class" and recipe.published is None
        assert recipe.objective.window == datm.objective.window and recipe.buffer == datm.buffer
        shape = SHAPES["cifar10"]
        codec, items = fitted(recipe, shape, 10)
        budget = ipc * math.prod(shape) * 4 * 10
        assert codec.shipped_bytes(items, shape, 10) <= budget
        assert codec.shipped_bytes(items + 1, shape, 10) > budget and items >= 14 * ipc
