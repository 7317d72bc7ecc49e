"""CIM: features of each image paired with those of a real one, with hard labels.

Shang et al., ECCV 2026, arXiv 2607.00916.

Published with labels of teachers and an evaluation of which not all settings were read, so no
published cell is here; with hard labels nobody has published it. Settings of the small cells: 2 x 2
images in a stored one, 200 steps of AdamW at 0.01, as in the released program (commit ea71377 of
LINs-lab/CIM). That decays the change of the images at 0.01, which is left out here, and does not
keep pixels within 0 and 1.
"""

from dataclasses import replace

from buffers.steps import Sgd
from ddengine.recipe import BufferConfig, OptimConfig, Recipe
from ddengine.sets.codec import MultiFormation
from synth.paired import PairedFeatures
from synth.recipes.cells import UNTUNED, sentences
from synth.recipes.experts_matching import digits_cell
from synth.recipes.matching import small, strategy

BIBTEX = """
@inproceedings{shang2026cim,
  title     = {Condensing Large-Scale Datasets Directly with Minimal Information Loss},
  author    = {Shang, Xinyi and Sun, Peng and Shi, Bei and Wang, Zixuan and Lin, Tao},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2026}
}
"""

CITES = ("shang2026cim",)
OBSERVER = BufferConfig(
    step=Sgd(lr=0.05, momentum=0.9, weight_decay=5e-4, cosine=True),
    num_experts=1,
    epochs=10,
    batch=64,
    keep="last",
)
ADAMW = OptimConfig(kind="adamw", lr=0.01, momentum=0.9, beta2=0.999)


def recipes() -> list[Recipe]:
    """Cells for a CPU."""
    cells = []
    for dataset in ("fashion_mnist", "cifar10"):
        for ipc in (1, 10):
            cell = small(
                "cim",
                CITES,
                ipc,
                dataset=dataset,
                objective=PairedFeatures(),
                steps=200,
                lr_img=ADAMW.lr,
                codec=MultiFormation(factor=2),
            )
            outer = replace(cell.outer, optim={"images": ADAMW})
            note = sentences(cell.note, UNTUNED)
            cells.append(replace(cell, buffer=OBSERVER, outer=outer, note=note))
    return [digits_cell(cells[0], strategy("digits")), *cells]
