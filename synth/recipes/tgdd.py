"""TGDD: distribution matching in snapshots of experts, with a later snapshot as the judge.

Ran et al., AAAI 2026, arXiv 2512.02469.

Values: the released code (github.com/FlyFinley/TGDD at commit 39ac9c2). Five experts of 60 epochs,
every epoch of which is stored; 10,000 iterations of an update after every class, SGD at 0.01 times
the images per class with momentum 0.5, on pixels. The weight of the judge is 1 by default in that
code; 2.5 and at 50 images per class 0.5 are those of a note of others.

Differs from the released code: tiles start from random real images; pixels are clamped after each
update; all draws follow from the seed, which those of snapshots there do not; the judge sees the
augmented images that features are compared of; the last iterate is shipped, not the best on the
test images.
"""

from dataclasses import replace

from ddengine.recipe import OptimConfig, Recipe
from synth.distribution import DistributionMatching
from synth.expert_networks import Snapshots
from synth.recipes.experts_matching import (
    MATCHING,
    NOT_READ,
    digits_cell,
    experts,
    published_cell,
    small_cell,
)
from synth.recipes.matching import strategy
from synth.recipes.protocols import PROTOCOLS

BIBTEX = """
@inproceedings{ran2026tgdd,
  title     = {{TGDD}: Trajectory Guided Dataset Distillation with Balanced Distribution},
  author    = {Ran, Fengli and Pu, Xiao and Liu, Bo and Bi, Xiuli and Xiao, Bin},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume    = {40},
  number    = {18},
  pages     = {15662--15670},
  year      = {2026}
}
"""

CITES = ("ran2026tgdd", "kim2022idc")
JUDGE = {1: 2.5, 10: 2.5, 50: 0.5}  # images per class -> weight of the judge
# of others, in %
NOTED = {
    "cifar10": {1: None, 10: 71.9, 50: 76.5},
    "cifar100": {1: None, 10: 51.3, 50: 54.6},
    "tiny_imagenet": {10: 29.3, 50: 30.9},
}
NOTE = "With another --ipc set the pixel rate and the weight of the judge too."


def _objective(judge: float, real_batch: int = 128) -> DistributionMatching:
    return DistributionMatching(
        networks=Snapshots(interval=7),
        judge=judge,
        real_batch=real_batch,
        syn_batch=200,
        augment=MATCHING,
        classes_at_once=1,
    )


def _published() -> list[Recipe]:
    cells = []
    for dataset, figures in NOTED.items():
        for ipc, noted in figures.items():
            known = "none" if noted is None else f"{noted} %"
            cells.append(
                published_cell(
                    "tgdd",
                    CITES,
                    dataset,
                    ipc,
                    buffer=experts(5, "all"),
                    objective=_objective(JUDGE[ipc]),
                    steps=10000,
                    optim=OptimConfig(lr=0.01 * ipc),
                    evaluation=PROTOCOLS["idc"],
                    published=None,
                    source="",
                    note=f"{NOT_READ.format(known)} {NOTE}",
                )
            )
    return cells


def recipes() -> list[Recipe]:
    """All of them."""
    objective = _objective(2.5, real_batch=64)
    cells = []
    for ipc, steps, lr in ((1, 200, 0.05), (10, 100, 0.3)):
        optim = OptimConfig(lr=lr)
        cells.append(
            small_cell(
                "tgdd", CITES, ipc, objective=objective, keep="all", steps=steps, optim=optim
            )
        )
    digits = replace(objective, augment=replace(MATCHING, always=("color", "crop")))
    of_digits = digits_cell(replace(cells[0], objective=digits), strategy("digits"))
    return [of_digits, *cells, *_published()]
