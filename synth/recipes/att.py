"""ATT: trajectory matching at the step that comes nearest to the expert.

Liu et al., ECCV 2024, arXiv 2407.14245.

Values: the table of settings and the README in the authors' repository (github.com/NiaLiu/ATT,
commit eec3176); experts as MTT's. Figures: the table of results there, hard labels. The number of
outer steps is printed for two cells only; the others have MTT's. The released program evaluates
running averages of the images as FTD does, with a decay that was not read; here the last iterate is
shipped.
"""

from dataclasses import replace
from typing import Any

from buffers.steps import Sgd
from ddengine.recipe import BufferConfig, Recipe
from synth.recipes import mtt
from synth.recipes.cells import Figure, cell, figure
from synth.trajectory import TrajectoryMatching, UniformWindow

BIBTEX = """
@inproceedings{liu2024att,
  title     = {Dataset Distillation by Automatic Training Trajectories},
  author    = {Liu, Dai and Gu, Jindong and Cao, Hu and Trinitis, Carsten and Schulz, Martin},
  booktitle = {European Conference on Computer Vision (ECCV)},
  pages     = {334--351},
  year      = {2024}
}
"""

CITES = ("liu2024att",)
SOURCE = "ATT's table of results"
STEPS = {("cifar10", 50): 1_000_000, ("cifar100", 10): 200_000}  # outer steps; 5000 elsewhere
NOT_PRINTED = "The number of outer steps is not printed for this cell; it is MTT's."
# dataset, ipc, N, M, T+, batch, zca, lr pixel, lr lr, lr, figure
Row = tuple[Any, ...]
TABLE: list[Row] = [
    ("cifar10", 1, 80, 4, 2, None, True, 1e2, 1e-7, 0.01, (48.3, 1.0)),
    ("cifar10", 10, 30, 2, 20, None, True, 1e4, 1e-4, 0.01, (67.7, 0.6)),
    ("cifar10", 50, 50, 2, 40, None, False, 1e2, 1e-5, 0.001, (74.5, 0.4)),
    ("cifar100", 1, 50, 4, 20, None, True, 500, 1e-5, 0.01, (26.1, 0.3)),
    ("cifar100", 10, 20, 2, 40, None, False, 1e3, 1e-5, 0.01, (44.2, 0.5)),
    ("cifar100", 50, 80, 2, 40, 1200, True, 1e3, 1e-5, 0.01, (51.2, 0.3)),
    ("tiny_imagenet", 1, 30, 2, 10, None, False, 1e4, 1e-4, 0.01, (11.0, 0.5)),
    ("tiny_imagenet", 10, 20, 2, 40, None, False, 1e4, 1e-5, 1e-4, (25.8, 0.4)),
]  # fmt: skip
# subsets of ImageNet at 128 pixels: figures of 1 and of 10 images per class
OF_IMAGENET: dict[str, tuple[Figure, Figure]] = {
    "imagenette": ((52.4, 1.1), (69.3, 0.8)),
    "imagewoof": ((31.2, 1.8), (40.0, 1.4)),
    "imagefruit": ((30.0, 0.8), (45.9, 1.2)),
    "imagemeow": ((34.0, 1.4), (45.5, 1.6)),
}


def _of_imagenet() -> list[Row]:
    rows: list[Row] = []
    for subset, (of_one, of_ten) in OF_IMAGENET.items():
        rows.append((subset, 1, 20, 2, 10, None, False, 1e4, 5e-8, 0.01, of_one))
        rows.append((subset, 10, 20, 2, 10, None, False, 1e4, 1e-4, 0.01, of_ten))
    return rows


def _published() -> list[Recipe]:
    cells = []
    for row in (*TABLE, *_of_imagenet()):
        dataset, ipc, steps, epochs, window, batch, zca, lr_img, lr_lr, lr, printed = row
        objective = TrajectoryMatching(
            inner_steps=steps,
            expert_epochs=epochs,
            window=UniformWindow(high=window),
            batch=batch,
            lr=lr,
            match="nearest",
        )
        known = (dataset, ipc) in STEPS
        cells.append(
            cell(
                "att",
                CITES,
                dataset,
                ipc,
                zca=zca,
                lr_img=lr_img,
                lr_lr=lr_lr,
                buffer=BufferConfig(step=Sgd()),
                objective=objective,
                steps=STEPS.get((dataset, ipc), 5000),
                published=figure(printed, SOURCE),
                note="" if known else NOT_PRINTED,
            )
        )
    return cells


def _small() -> list[Recipe]:
    """MTT's small cells, compared at the nearest step."""
    small = []
    for recipe in mtt.small_of("digits", "fashion_mnist"):
        small.append(
            replace(
                recipe,
                name=recipe.name.replace("mtt/", "att/"),
                cites=CITES,
                objective=replace(recipe.objective, match="nearest"),
            )
        )
    return small


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
