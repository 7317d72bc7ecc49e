"""RaT-BPTT: windows anywhere in the training. Feng et al., ICLR 2024, arXiv 2311.07025.

Values: the authors' code and README (github.com/fengyzpku/Simple_Dataset_Distillation). Images
start as noise of norm 1. A window is drawn for each epoch of real batches, here for as many steps.
The student is stepped by Adam, in the window with the place of eps that `higher` has. Gradients of
the images are at most twice as long as their running average. Published with soft labels are the
cells of CIFAR-100 and Tiny ImageNet, which are not here. Figures: mean ± std over 8 networks of the
best of four lengths of training and of all checkpoints, on the test images.
"""

from ddengine.learning.updates import Adam
from ddengine.recipe import DataConfig, Recipe
from synth.bptt import ThroughTraining
from synth.inner_batches import InnerBatches
from synth.recipes.through_training import (
    FLIP_ROTATE,
    cell,
    clipped_adam,
    own_training,
    small,
    unit_noise,
)
from synth.windows import RandomWindow, Window

BIBTEX = """
@inproceedings{feng2024rat,
  title     = {Embarrassingly Simple Dataset Distillation},
  author    = {Feng, Yunzhen and Vedantam, Shanmukha Ramakrishna and Kempe, Julia},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2024}
}
"""

CITES = ("feng2024rat", "wang2018dd")


def _published() -> list[Recipe]:
    objective = ThroughTraining(
        inner_steps=200,
        window=RandomWindow(size=60, every=10),
        update=Adam(eps_as="higher"),
        lr=0.001,
        batches=InnerBatches(per_class=10),
        real_batch=5000,
        augment=FLIP_ROTATE,
    )
    return [
        cell(
            "rat/cifar10_ipc10", CITES, "cifar10", 10, zca=True, objective=objective,
            optim={"images": clipped_adam(0.001)}, steps=60000 * 10, init=unit_noise(),
            evaluation=own_training(objective, updates=1000, num_networks=8),
            published=(69.4, 0.4), source="the authors' table",
        )
    ]  # fmt: skip


def small_objective(window: Window, steps: int, real: int = 512) -> ThroughTraining:
    """A short training of all images of a class at once, by Adam at a large rate."""
    return ThroughTraining(
        inner_steps=steps,
        window=window,
        update=Adam(eps_as="higher"),
        lr=0.005,
        real_batch=real,
    )


DIGITS = DataConfig(name="digits")


def _small() -> list[Recipe]:
    window = RandomWindow(size=10)
    return [
        small(
            "rat/digits_ipc1", CITES, 1, steps=200, data=DIGITS, model="convnet-d2-w32-in",
            objective=small_objective(window, 30, 256), optim={"images": clipped_adam(0.05)},
            epochs=150,
        ),
        small(
            "rat/fashion_mnist_ipc1_small", CITES, 1, steps=600,
            objective=small_objective(window, 30), optim={"images": clipped_adam(0.1)},
        ),
        small(
            "rat/fashion_mnist_ipc10_small", CITES, 10, steps=150,
            objective=small_objective(window, 30), optim={"images": clipped_adam(0.05)},
        ),
    ]  # fmt: skip


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
