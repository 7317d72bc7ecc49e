"""PAD: DATM with experts that see easy images first, compared in their deep layers alone.

Li et al., arXiv 2408.03360.

Values: the paper's table of settings as quoted in a public index, and the README of the repository
(github.com/NUS-HPC-AI-Lab/PAD, commit 2a4bc91): 10,000 outer steps, ZCA, learned labels with
momentum 0.9, experts of 100 epochs with GSAM (rho 0.01, alpha 0.3). The released configurations
differ in some cells, and the released program compares the parameters that err most instead, and
does not run as it stands (`objective.coordinates LargestErrors`). The authors order images by
files of scores; here EL2N of three networks orders them. Figures: the table of results in the
repository; a set carries 10 to 200 soft labels per image.
"""

from dataclasses import replace
from typing import Any

from buffers.curriculum import EasyFirst
from buffers.flat_step import Gsam
from ddengine.recipe import BufferConfig, InitConfig, OptimConfig, Recipe, TargetConfig
from synth.datm import GrowingWindow
from synth.pad import DeepLayers, LargestErrors
from synth.recipes import datm
from synth.recipes.cells import cell, figure
from synth.recipes.protocols import PROTOCOLS
from synth.trajectory import TrajectoryMatching, UniformWindow

BIBTEX = """
@article{li2024pad,
  title   = {Prioritize Alignment in Dataset Distillation},
  author  = {Li, Zekai and Guo, Ziyao and Zhao, Wangbo and Zhang, Tianle and Cheng, Zhi-Qi and
      Khaki, Samir and Zhang, Kaipeng and Sajedi, Ahmad and Plataniotis, Konstantinos N. and Wang,
      Kai and You, Yang},
  journal = {arXiv preprint arXiv:2408.03360},
  year    = {2024}
}
"""

CITES = ("li2024pad", "guo2024datm")
SOURCE = "PAD's table of results"
# dataset, ipc, share left out, N, M, T-, T, T+, outer steps to the next start, batch, rates of
# labels, pixels and the learned rate, figure
Row = tuple[Any, ...]
TABLE: list[Row] = [
    ("cifar10", 1, 0.0, 80, 2, 0, 4, 4, 0, 10, 5, 100, 1e-7, (47.2, 0.6)),
    ("cifar10", 10, 0.25, 80, 2, 0, 10, 20, 100, 100, 2, 100, 1e-5, (67.4, 0.3)),
    ("cifar10", 50, 0.25, 80, 2, 0, 20, 40, 100, 500, 2, 1000, 1e-5, (77.0, 0.5)),
    ("cifar10", 500, 0.5, 80, 2, 40, 60, 60, 0, 1000, 10, 50, 1e-5, (84.6, 0.3)),
    ("cifar10", 1000, 0.75, 80, 2, 40, 60, 60, 0, 1000, 10, 50, 1e-5, (86.7, 0.2)),
    ("cifar100", 1, 0.0, 40, 3, 0, 10, 20, 100, 100, 10, 1000, 1e-5, (28.4, 0.5)),
    ("cifar100", 10, 0.25, 80, 2, 0, 20, 40, 100, 1000, 10, 1000, 1e-5, (47.8, 0.2)),
    ("cifar100", 50, 0.5, 80, 2, 40, 60, 80, 100, 1000, 10, 1000, 1e-5, (55.9, 0.3)),
    ("cifar100", 100, 0.5, 80, 2, 40, 80, 80, 0, 1000, 10, 50, 1e-5, (58.5, 0.3)),
    ("tiny_imagenet", 1, 0.0, 60, 2, 0, 15, 30, 400, 200, 10, 1e4, 1e-4, (17.7, 0.2)),
    ("tiny_imagenet", 10, 0.25, 60, 2, 0, 20, 40, 100, 250, 10, 100, 1e-4, (32.3, 0.4)),
    ("tiny_imagenet", 50, 0.5, 60, 2, 20, 40, 60, 100, 250, 10, 100, 1e-4, (41.6, 0.4)),
]  # fmt: skip
NOTE = (
    "The rate of the learned rate is not in the table that was read; it is DATM's, and so is the "
    "update gate."
)


def _window(low: int, first: int, high: int, every: int) -> UniformWindow | GrowingWindow:
    """Starts from `low`; the last one grows from `first` to `high`, by one in so many steps."""
    if not every:
        return UniformWindow(low=low, high=high)
    return GrowingWindow(low=low, first=first, high=high, grow=every * (high - first))


def _published() -> list[Recipe]:
    cells = []
    for dataset, ipc, drop, *segment, batch, lr_labels, lr_img, lr_lr, printed in TABLE:
        steps, epochs, low, first, high, every = segment
        all_after = 20 if dataset == "cifar10" else 40
        cells.append(
            cell(
                "pad",
                CITES,
                dataset,
                ipc,
                zca=True,
                lr_img=lr_img,
                lr_lr=lr_lr,
                steps=10000,
                buffer=BufferConfig(
                    step=Gsam(rho=0.01, alpha=0.3),
                    epochs=100,
                    curriculum=EasyFirst(all_after=all_after),
                ),
                objective=TrajectoryMatching(
                    inner_steps=steps,
                    expert_epochs=epochs,
                    batch=batch,
                    window=_window(low, first, high, every),
                    coordinates=DeepLayers(drop=drop),
                ),
                init=InitConfig(kind="correct"),
                targets=TargetConfig(kind="logits", experts="correct"),
                optim={"logits": OptimConfig(lr=lr_labels, momentum=0.9)},
                max_loss=1.1 if (dataset, ipc) == ("cifar10", 1) else 1.0,
                evaluation=PROTOCOLS["datm"],
                published=figure(printed, SOURCE),
                note=NOTE,
            )
        )
    return cells


def _small() -> list[Recipe]:
    """DATM's small cells with this method's parts; `_errors` compares as the program does."""
    easy = EasyFirst(all_after=4, drop_after=(7,), drop=(0.1,))
    kinds = (("", DeepLayers(drop=0.25)), ("_errors", LargestErrors(drop=0.25)))
    small = []
    for recipe in datm.small():
        for variant, coordinates in kinds:
            name = recipe.name.replace("datm/", "pad/").removesuffix("_small")
            small.append(
                replace(
                    recipe,
                    name=f"{name}{variant}_small",
                    cites=CITES,
                    buffer=replace(recipe.buffer, curriculum=easy),
                    objective=replace(recipe.objective, coordinates=coordinates),
                )
            )
    return small


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
