"""The published cells of back-propagation through training, value by value."""

import pytest

from ddengine.learning.updates import Adam, HeavyBall, Sgd
from ddengine.sets.codec import LinearBases
from synth.catalogue import RECIPES
from synth.stages import Stages
from synth.windows import FromStart, Last, RandomWindow

# recipe: (steps of a student, window, update, step size, images per class, real images, figure)
CELLS = {
    "dd/mnist_ipc1": (3, FromStart(size=3), Sgd(), 0.02, 1, 1024, None),
    "dd/cifar10_ipc10": (30, FromStart(size=30), Sgd(), 0.001, 1, 1024, 0.368),
    "rtp/cifar10_ipc1": (150, FromStart(size=150), HeavyBall(momentum=0.9), 0.01, 32, 640, 0.664),
    "rat/cifar10_ipc10": (
        200, RandomWindow(size=60, every=10), Adam(eps_as="higher"), 0.001, 10, 5000, 0.694,
    ),
    "at/cifar10_ipc10": (
        200, Stages(size=40, spread=10, every=10), Adam(eps_as="higher"), 0.001, 10, 5000, 0.724,
    ),
    "rat/cifar100_ipc1": (130, Last(size=90), Adam(eps_as="higher"), 0.001, 1, 5000, 0.353),
    "rat/cifar100_ipc10": (
        300, RandomWindow(size=100, every=10), Adam(eps_as="higher"), 0.001, 1, 5000, 0.475,
    ),
    "rat/tiny_imagenet_ipc10": (
        300, RandomWindow(size=100, every=100), Adam(eps_as="higher"), 0.001, 1, 1000, 0.244,
    ),
    "rat/tiny_imagenet_ipc10_last": (
        270, Last(size=90), Adam(eps_as="higher"), 0.001, 1, 2000, None,
    ),
    "at/cifar100_ipc10": (
        300, Stages(size=100, spread=20, every=50, early_calm=45, middle_calm=None),
        Adam(eps_as="higher"), 0.001, 1, 1000, 0.490,
    ),
    "at/tiny_imagenet_ipc10": (
        300, Stages(size=100, spread=30, every=100, early_calm=45, middle_calm=None),
        Adam(eps_as="higher"), 0.001, 1, 1000, 0.327,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_students_are_as_published(name):
    """And the figure is as printed."""
    recipe, of = RECIPES[name], RECIPES[name].objective
    printed = recipe.published and recipe.published.accuracy
    per_class = of.batches.per_class
    assert CELLS[name] == (
        of.inner_steps, of.window, of.update, of.lr, per_class, of.real_batch,
        printed and pytest.approx(printed),
    )  # fmt: skip
    assert of.learned_rates == (of.batches.order == "turns") == name.startswith("dd/")
    assert of.one_draw == name.startswith("rtp/")
    learned = name.startswith(("rat/", "at/")) and "cifar10_" not in name
    assert recipe.targets.kind == ("weights" if learned else "class")
    assert set(recipe.outer.optim) >= {"weights"} or not learned
    assert of.batches.classes == (50 if "tiny" in name else None) and recipe.buffer is None


def test_networks_are_trained_on_the_sets_as_published():
    """As their students, for 1,000 steps or DD's; RTP's in epochs of larger batches."""
    for name in CELLS:
        recipe, config = RECIPES[name], RECIPES[name].evaluation
        assert config.protocol == "bptt" and config.augment == recipe.objective.augment
        assert config.as_students == (not name.startswith("rtp/"))
        assert config.updates == (1000 if name.startswith(("rat/", "at/")) else None)
    rtp = RECIPES["rtp/cifar10_ipc1"].evaluation
    assert (rtp.optimiser, rtp.lr, rtp.epochs, rtp.batch) == ("sgd", 0.01, 300, 640)


def test_learned_labels_are_learned_as_published():
    """At the rate of the images, which alone are clipped, for 60,000 epochs of real batches."""
    steps = {
        "rat/cifar100_ipc1": (3e-4, 10), "rat/cifar100_ipc10": (1e-3, 10),
        "rat/tiny_imagenet_ipc10": (3e-4, 100), "rat/tiny_imagenet_ipc10_last": (3e-4, 50),
        "at/cifar100_ipc10": (1e-3, 50), "at/tiny_imagenet_ipc10": (3e-4, 100),
    }  # fmt: skip
    for name, (lr, per_epoch) in steps.items():
        outer = RECIPES[name].outer
        images, weights = outer.optim["images"], outer.optim["weights"]
        assert images.lr == weights.lr == lr and outer.steps == 60_000 * per_epoch
        assert images.clip_average == 2.0 and weights.clip_average is None
        assert weights.kind == "adam" and weights.beta2 == 0.999


def test_images_are_learned_as_published():
    """Adam, clipped by twice the running average, halved every 40 epochs, or clipped together."""
    for name in ("rat/cifar10_ipc10", "at/cifar10_ipc10"):
        recipe = RECIPES[name]
        optim = recipe.outer.optim["images"]
        assert (optim.kind, optim.lr, optim.momentum, optim.beta2) == ("adam", 0.001, 0.9, 0.999)
        assert (optim.clip_average, optim.clip_decay) == (2.0, 0.9)
        assert (recipe.init.kind, recipe.init.norm, recipe.data.zca) == ("noise", 1.0, True)
        assert recipe.outer.steps == 600_000
    dd = RECIPES["dd/cifar10_ipc10"].outer
    for optim in dd.optim.values():
        assert (optim.kind, optim.lr, optim.momentum, optim.beta2) == ("adam", 0.01, 0.5, 0.999)
        assert optim.lr_at(40 * 49, dd.steps) == pytest.approx(0.005)
    rtp = RECIPES["rtp/cifar10_ipc1"]
    assert rtp.codec == LinearBases(bases=16, shrink=2)
    assert rtp.codec.most_rows(10 * 3 * 32 * 32, (3, 32, 32), 10) == 115
    for optim in rtp.outer.optim.values():
        assert (optim.kind, optim.lr, optim.momentum) == ("sgd", 0.1, 0.5)
        assert (optim.clip, optim.clip_together) == (2.0, True)


@pytest.mark.parametrize("name", ["rat/cifar10_ipc10", "at/cifar10_ipc10", "rtp/cifar10_ipc1"])
def test_networks_are_evaluated_as_students_are_trained(name):
    """One rate to the end, the student's own, and no search."""
    recipe = RECIPES[name]
    protocol, of = recipe.evaluation, recipe.objective
    assert (protocol.protocol, protocol.lr, protocol.augment) == ("bptt", of.lr, of.augment)
    assert (protocol.lr_drop, protocol.rate, protocol.weight_decay) == (1.0, "learned", 0.0)
    adaptive = isinstance(of.update, Adam)
    assert protocol.optimiser == ("adamw" if adaptive else "sgd")
    assert adaptive or protocol.momentum == of.update.momentum
