"""RDED: crops of real images, chosen by a teacher. Sun, Shi, Yu & Lin, CVPR 2024, arXiv 2312.03526.

Values: the authors' code (github.com/LINs-lab/RDED): of 300 random images of a class five crops
each, the best of each image, tiled two by two where images are larger than 32 pixels; nothing is
optimised. Students ask the teacher at each step (dynamic labels), see the tiles in another order,
crops of at least 1 / factor of the image (with one tile: the whole of it) and flips, mixed by
CutMix, at a rate that ends at half. Batches: 10, 50 and 100 at 1, 10 and 50 images per class, twice
that with 100 or 1000 classes, and 100 on Tiny ImageNet.

Differs from the released code: it lets the student look at the plain images before each update,
which moves its running statistics, here nothing does; it normalises by ImageNet's constants
everywhere, here each dataset has its own; it reports the best of the last fifth of epochs on the
test images. Figures: one is in the README; of the paper's table, three are quoted in a summary by
others, and the others were recalled; none of these is called published.
"""

from dataclasses import replace

from ddengine.recipe import AugmentConfig, BufferConfig, EvalConfig, InitConfig, Recipe
from ddengine.sets.codec import Identity
from synth.recipes.cells import quoted
from synth.recipes.protocols import PROTOCOLS
from synth.recipes.soft import (
    PRETRAINED,
    RECALLED_TEACHERS,
    SMALL_CELLS,
    SQUEEZE,
    SQUEEZE_LARGE,
    Figure,
    cell,
    differs,
    small,
)
from synth.selection import NoObjective

BIBTEX = """
@inproceedings{sun2024rded,
  title     = {On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation
              Paradigm},
  author    = {Sun, Peng and Shi, Bei and Yu, Daiwei and Lin, Tao},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  year      = {2024}
}
"""

CITES = ("sun2024rded",)
README = "RDED's README"
RECALLED = "No published figure: the one known was recalled, not read."

FIGURES: dict[tuple[str, int], tuple[Figure, str]] = {
    ("imagenet", 10): ((42.0, None), README),
}
# what a summary by others quotes, in %
QUOTED = {("imagenet", 50): 56.5, ("tiny_imagenet", 10): 41.9, ("imagenette", 10): 61.4}
IPC = (1, 10, 50)
# dataset: network, its training, accuracy of the released teacher in %, patches along a side,
# batches by images per class
DATASETS: dict[str, tuple[str, BufferConfig, str, int, tuple[int, int, int]]] = {
    "cifar10": ("resnet18-bn", SQUEEZE, "93.86", 1, (10, 50, 100)),
    "cifar100": ("resnet18-bn", SQUEEZE, "72.27", 1, (20, 100, 200)),
    "tiny_imagenet": ("resnet18-bn", SQUEEZE_LARGE, "61.98", 2, (100, 100, 100)),
    "imagenet": ("torchvision/resnet18", PRETRAINED, "", 2, (20, 100, 200)),
    "imagenette": (
        "torchvision/resnet18",
        replace(SQUEEZE_LARGE, epochs=200, batch=128),
        "90.0",
        2,
        (10, 50, 100),
    ),
    "imagewoof": (
        "torchvision/resnet18",
        replace(SQUEEZE_LARGE, epochs=200, batch=128),
        "75.0",
        2,
        (10, 50, 100),
    ),
}
# of ImageNet: 50 images per class take 200 patches, each of another image; 10 take 40, for which
# 100,000 are enough
LIMIT = {"imagenet": 400_000}
OTHERS = {("cifar100", 10): "56.9", ("cifar100", 50): "66.8"}  # a later evaluation by others


def _evaluation(factor: int, batch: int) -> EvalConfig:
    """The protocol; with several tiles their order changes and crops are smaller."""
    base = replace(PROTOCOLS["rded"], batch=batch)
    if factor == 1:
        return replace(base, augment=AugmentConfig(always=("flip",), ops=()))
    tiles = AugmentConfig(
        always=("shuffle", "resized_crop", "flip"), ops=(), area=1 / factor, patches=factor
    )
    return replace(base, augment=tiles)


def _published() -> list[Recipe]:
    cells = []
    for dataset, (network, buffer, accuracy, factor, batches) in DATASETS.items():
        for ipc, batch in zip(IPC, batches, strict=True):
            figure, source = FIGURES.get((dataset, ipc), (None, ""))
            of_others = QUOTED.get((dataset, ipc))
            other = OTHERS.get((dataset, ipc), "")
            notes = (
                RECALLED if figure is None and of_others is None else "",
                "" if of_others is None else quoted(of_others),
                f"A later evaluation of it by others is quoted with {other}, under another "
                "protocol."
                if other
                else "",
                f"The released teacher is {accuracy} % right. {RECALLED_TEACHERS}"
                if accuracy
                else "",
                "A teacher sees up to 300 images of a class, at 60 GB for all; below 50 images "
                "per class --data.limit 100000 is enough."
                if dataset in LIMIT
                else "",
                differs(
                    "students do not look at the plain images before each update",
                    "crops that are shrunk to tiles are interpolated twice",
                    "accuracies are of the last epoch, not of the best of many",
                ),
                ""
                if network.startswith("torchvision")
                else (
                    "Each dataset has its own mean and deviation, where the released code has "
                    "ImageNet's."
                ),
            )
            cells.append(
                cell(
                    "rded",
                    CITES,
                    dataset,
                    ipc,
                    model=network,
                    teachers=(network,),
                    buffer=buffer,
                    objective=NoObjective(),
                    optim={},
                    steps=0,
                    codec=Identity(bounded=True),
                    init=InitConfig(kind="patches", candidates=300, crops=5, factor=factor),
                    evaluation=_evaluation(factor, batch),
                    published=figure,
                    source=source,
                    limit=LIMIT.get(dataset),
                    notes=notes,
                )
            )
    return cells


def _small() -> list[Recipe]:
    return [
        small(
            "rded",
            CITES,
            ipc,
            dataset=dataset,
            objective=NoObjective(),
            optim={},
            steps=0,
            init=InitConfig(kind="patches"),
            codec=Identity(bounded=True),
        )
        for dataset, ipc in SMALL_CELLS
    ]


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
