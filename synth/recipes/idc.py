"""IDC: gradient matching on multi-formation images, in networks trained on real data.

Kim et al., ICML 2022, arXiv 2205.14959.

Values: the authors' code (github.com/snu-mllab/Efficient-Dataset-Condensation, misc/reproduce.py
and argument.py) and README. `idc_i` is the same with one tile per image: the images themselves, as
pixels in [0, 1]. Two thousand networks of 100 sweeps over the classes, an update after every class;
the README says that this is far past convergence and may be stopped early. Rates are in units of
pixels and grow with what is stored: a base rate times IPC / 10 times (side / base side) squared,
where the base side is 28 for MNIST and 32 for all others, so that Fashion-MNIST, of 28 pixels, has
0.77 of MNIST's. With another --ipc set --outer.optim.images.lr too.

Differs from the released code: tiles start from random real images, not from the first of a class;
pixels are clamped after each update, not once per network; CIFAR-100 is normalised with its own
mean and deviation, not with CIFAR-10's. Figures: means without a deviation.
"""

from dataclasses import replace

from ddengine.recipe import AugmentConfig, EvalConfig, Recipe
from ddengine.sets.codec import MultiFormation
from synth.gradient import GradientMatching, Metric
from synth.networks import OnReal
from synth.recipes.matching import NO_FLIP, cell, small
from synth.recipes.protocols import PROTOCOLS

BIBTEX = """
@inproceedings{kim2022idc,
  title     = {Dataset Condensation via Efficient Synthetic-Data Parameterization},
  author    = {Kim, Jang-Hyun and Kim, Jinuk and Oh, Seong Joon and Yun, Sangdoo and Song,
      Hwanjun and Jeong, Joonhyun and Ha, Jung-Woo and
               Song, Hyun Oh},
  booktitle = {Proceedings of the International Conference on Machine Learning (ICML)},
  year      = {2022}
}
"""

CITES = ("kim2022idc",)
MATCHING = AugmentConfig(always=("color", "crop", "cutout"), ops=())


NETWORKS = 2000
SOURCE = "IDC's README"
FACTORS = {"idc": 2, "idc_i": 1}
# metric, base rate, real images a network is trained on after each sweep; {images per class: (idc,
# idc_i)}
CELLS: dict[str, tuple[Metric, float, int, dict[int, tuple[float, float]]]] = {
    "mnist": ("l1", 1e-4, 500, {1: (94.2, 88.9), 10: (98.4, 98.0), 50: (99.1, 98.8)}),
    "fashion_mnist": ("l1", 1e-4, 500, {1: (81.0, 70.7), 10: (86.0, 85.3), 50: (86.2, 89.1)}),
    "svhn": ("mse", 5e-3, 500, {1: (68.5, 46.7), 10: (87.5, 77.0), 50: (90.1, 87.9)}),
    "cifar10": ("mse", 5e-3, 2000, {1: (50.6, 36.7), 10: (67.5, 58.3), 50: (74.5, 69.5)}),
    "cifar100": ("mse", 5e-3, 2000, {10: (45.1, 36.6), 20: (49.0, 41.5)}),
}
SIDE = {"mnist": 28, "fashion_mnist": 28}  # of the images; 32 elsewhere
BASE_SIDE = {"mnist": 28}  # at which the base rate holds; 32 elsewhere


def pixel_rate(dataset: str, base: float, ipc: int) -> float:
    """The base rate, scaled as published."""
    return base * ipc / 10 * (SIDE.get(dataset, 32) / BASE_SIDE.get(dataset, 32)) ** 2


def _evaluation(dataset: str, factor: int, ipc: int) -> EvalConfig:
    """The protocol with what the released settings change for a dataset.

    Digits are not mirrored, and two cells are not mixed.
    """
    config = PROTOCOLS["idc"]
    always = ("color",) if dataset in NO_FLIP else config.augment.always
    if dataset == "svhn" and factor == 1 and ipc == 1:
        return replace(
            config, cutmix=0.0, augment=replace(config.augment, always=(*always, "cutout"))
        )
    cutmix = 0.0 if dataset == "mnist" and factor > 1 else config.cutmix
    return replace(config, cutmix=cutmix, augment=replace(config.augment, always=always))


def _published() -> list[Recipe]:
    cells = []
    for i, (method, factor) in enumerate(FACTORS.items()):
        for dataset, (metric, base, images, figures) in CELLS.items():
            plain = dataset == "mnist" and factor > 1  # neither CutMix nor cutout
            networks = OnReal(images=images, cutmix=0.0 if plain else 0.5)
            objective = GradientMatching(
                networks=networks,
                metric=metric,
                tensors="convolutions",
                real_batch=64,
                syn_batch=128,
                augment=replace(MATCHING, always=("color", "crop")) if plain else MATCHING,
                classes_at_once=1,
            )
            for ipc, figure in figures.items():
                cells.append(
                    cell(
                        method,
                        CITES,
                        dataset,
                        ipc,
                        objective=objective,
                        steps=NETWORKS * networks.steps,
                        lr_img=pixel_rate(dataset, base, ipc),
                        codec=MultiFormation(factor=factor),
                        evaluation=_evaluation(dataset, factor, ipc),
                        published=(figure[i], None),
                        source=SOURCE,
                        note=(
                            f"The pixel rate is {base:g}, scaled by what is stored; with another "
                            "--ipc set it too."
                        ),
                        step_after="each",
                        checkpoint_every=500,
                    )
                )
    return cells


def _small() -> list[Recipe]:
    objective = GradientMatching(
        networks=OnReal(steps=25, images=250),
        metric="l1",
        tensors="convolutions",
        real_batch=64,
        syn_batch=128,
        augment=MATCHING,
        classes_at_once=1,
    )
    return [
        small(
            method,
            CITES,
            ipc,
            objective=objective,
            steps=steps,
            lr_img=lr,
            codec=MultiFormation(factor=factor),
            step_after="each",
        )
        for method, factor in FACTORS.items()
        for ipc, steps, lr in ((1, 300, 0.01), (10, 150, 0.05))
    ]


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
