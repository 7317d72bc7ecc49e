"""MCT: trajectory matching along straight lines between a few waypoints of an expert.

Zhong et al., CVPR 2025, arXiv 2406.19827.

Values: the commands of the authors' README (github.com/Zhong0x29a/MCT, commit e959363), without
whitening; experts as MTT's, of which two waypoints are stored in place of 51 snapshots. Segments
start anywhere, not at whole epochs alone. Outer steps are not printed; they are MTT's, as is the
first learning rate where none is printed.

Differs from the released code: a tensor that does not move has no share of a path, and the last
epoch can be read; the program divides by zero there, and gives nothing.
"""

from dataclasses import replace

from buffers.steps import Sgd
from ddengine.recipe import BufferConfig, Recipe
from synth.recipes import mtt
from synth.recipes.cells import cell
from synth.trajectory import TrajectoryMatching, UniformWindow

BIBTEX = """
@inproceedings{zhong2025mct,
  title     = {Towards Stable and Storage-efficient Dataset Distillation: Matching Convexified
      Trajectory},
  author    = {Zhong, Wenliang and Tang, Haoyu and Zheng, Qinghai and Xu, Mingzhu and Hu, Yupeng
      and Guan, Weili},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  pages     = {25581--25589},
  year      = {2025}
}
"""

CITES = ("zhong2025mct",)
NOTE = "No published figure was read for this cell."
# images per class: N, M, T+, pixel rate, rate of the learned rate, where that starts
CELLS = {
    1: (60, 6, 4, 1e3, 1e-7, 0.01),
    10: (30, 15, 8, 1e3, 1e-5, 0.01),
    50: (30, 2, 40, 1e3, 1e-5, 0.001),
}


def _published() -> list[Recipe]:
    cells = []
    for ipc, (steps, epochs, window, lr_img, lr_lr, lr) in CELLS.items():
        cells.append(
            cell(
                "mct",
                CITES,
                "cifar10",
                ipc,
                zca=False,
                lr_img=lr_img,
                lr_lr=lr_lr,
                buffer=BufferConfig(step=Sgd(), store="convex"),
                objective=TrajectoryMatching(
                    inner_steps=steps,
                    expert_epochs=epochs,
                    window=UniformWindow(high=window),
                    lr=lr,
                    fractional=True,
                ),
                published=None,
                note=NOTE,
            )
        )
    return cells


def _small() -> list[Recipe]:
    """MTT's small cells with convex stores; `_four` has four waypoints."""
    small = []
    for recipe in mtt.small_of("digits", "fashion_mnist"):
        for variant, waypoints in (("", 2), ("_four", 4)):
            if variant and recipe.ipc > 1:
                continue
            name = recipe.name.replace("mtt/", "mct/")
            if name.endswith("_small"):
                name = f"{name.removesuffix('_small')}{variant}_small"
            else:
                name = f"{name}{variant}"
            buffer = replace(recipe.buffer, store="convex", waypoints=waypoints)
            objective = replace(recipe.objective, fractional=True)
            small.append(
                replace(recipe, name=name, cites=CITES, buffer=buffer, objective=objective)
            )
    return small


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
