"""SRe2L: statistics matching of images, from noise.

Yin, Xing & Shen, NeurIPS 2023, arXiv 2306.13092.

Two methods change a part of it: `_cda`, a curriculum of crops (Yin & Shen, TMLR 2024, arXiv
2311.18838), and `_dwa`, real images, a teacher with weights of its own for each batch and a heavier
variance (Du et al., NeurIPS 2024, arXiv 2409.17612); `_dwa_convnet` trains ConvNet128 on its sets.

Values: the authors' code (github.com/VILA-Lab/SRe2L,
github.com/AngusDujw/Diversity-Driven-Synthesis). Students have dynamic labels: the teacher looks at
each augmented and mixed batch. SRe2L's script of CIFAR-100 is assumed for CIFAR-10. Of SRe2L's
evaluation on Tiny ImageNet the 100 epochs are recalled; the rest is what DWA made of it, but for
its five epochs of warm-up, which this engine does not have.

Differs from the released code: see the notes. All images of a set are optimised at once, not one
batch after another, and no batch sees another; of each value four bytes are kept three times.
Figures: tables in the repositories, without a deviation where none is printed; those of SRe2L on
CIFAR are quotes. With ResNet18 as student, as teacher too.
"""

from dataclasses import dataclass, field, replace

from ddengine.recipe import AugmentConfig, BufferConfig, EvalConfig, InitConfig, Recipe
from ddengine.sets.codec import Identity
from synth.recipes.cells import quoted
from synth.recipes.protocols import PROTOCOLS
from synth.recipes.soft import (
    BYTES,
    CROP_FLIP,
    CROPS,
    PRETRAINED,
    RECALLED_TEACHERS,
    SHIFTS,
    SMALL_CELLS,
    SQUEEZE,
    SQUEEZE_LARGE,
    Figure,
    adam,
    cell,
    cutmix,
    differs,
    small,
)
from synth.statistics import OnePerClass, StatisticsMatching

BIBTEX = """
@inproceedings{yin2023sre2l,
  title     = {Squeeze,
      Recover and Relabel: Dataset Condensation at {ImageNet} Scale From A New Perspective},
  author    = {Yin, Zeyuan and Xing, Eric and Shen, Zhiqiang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023}
}

@article{yin2024cda,
  title   = {Dataset Distillation via Curriculum Data Synthesis in Large Data Era},
  author  = {Yin, Zeyuan and Shen, Zhiqiang},
  journal = {Transactions on Machine Learning Research},
  year    = {2024}
}

@inproceedings{du2024dwa,
  title     = {Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight
              Adjustment},
  author    = {Du, Jiawei and Zhang, Xin and Hu, Juncheng and Huang, Wenxin and Zhou, Joey Tianyi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}
"""

CITES = ("yin2023sre2l",)
NOISE = InitConfig(kind="noise")
REAL = InitConfig()
TINY_ROLL = AugmentConfig(always=("resized_crop", "flip", "roll"), ops=(), roll=4)
LARGE_ROLL = AugmentConfig(always=("resized_crop", "flip", "roll"), ops=(), roll=32)

ON_CIFAR = replace(PROTOCOLS["sre2l"], teacher_mode="train")
ON_TINY = cutmix(
    PROTOCOLS["sre2l"],
    epochs=100,
    batch=64,
    optimiser="sgd",
    lr=0.2,
    momentum=0.9,
    weight_decay=1e-4,
    decay_norms=True,
    squared=True,
    lr_grid=(0.05, 0.1, 0.2),
)
ON_IMAGENET = cutmix(PROTOCOLS["sre2l"], batch=1024)

QUOTED = "INFER's table 1, which quotes it"
TABLE = {
    "": "SRe2L's table of results",
    "_cda": "CDA's table of results",
    "_dwa": "DWA's table of results",
}
# of ImageNet: so that the smallest class has an image for each of a random set
LIMITS = {10: 100_000, 50: 100_000, 100: 200_000, 200: 400_000}


@dataclass(frozen=True)
class Setting:
    """What the cells of one method and dataset share."""

    figures: dict[int, tuple[Figure | None, str]]  # by images per class; and where it was read
    steps: int
    lr: float
    objective: StatisticsMatching
    init: InitConfig
    buffer: BufferConfig
    evaluation: EvalConfig
    notes: tuple[str, ...]
    each: dict[int, str] = field(default_factory=dict)  # notes by images per class


def _figures(
    source: str, by_ipc: dict[int, Figure | float]
) -> dict[int, tuple[Figure | None, str]]:
    figures: dict[int, tuple[Figure | None, str]] = {}
    for ipc, value in by_ipc.items():
        figure = value if isinstance(value, tuple) else (value, None)
        figures[ipc] = (figure, source)
    return figures


TRAINING_MODE = "The teacher of dynamic labels is left in training mode, as in the released code."
TINY_STUDENTS = (
    "The student's {} epochs, SGD at 0.2, batches of {} and CutMix are {}; warm-up is left out."
)
STARTS = (
    "every batch starts from the teacher as it is, where the released one goes on from the batch "
    "before"
)
IMAGENET_MEMORY = (
    "All images are optimised at once, which takes 1.8 GB for each image per class; the released "
    "code has them batch by batch."
)
TINY_NOTES = (
    RECALLED_TEACHERS,
    differs("roll goes down and to the right, not both ways", CROPS, BYTES),
)
IMAGENET_NOTES = (
    IMAGENET_MEMORY,
    differs(
        "labels are made when they are needed, not stored in half precision",
        CROPS,
        BYTES,
        "batches of students are drawn anew each epoch",
    ),
)
CDA_BATCH = "The student's batch of 128 is recalled, not read."
ASSUMED_CIFAR10 = "The script of CIFAR-100 is assumed for CIFAR-10."


def _matching(**changes: float | AugmentConfig | OnePerClass) -> StatisticsMatching:
    return replace(StatisticsMatching(batches=OnePerClass()), **changes)  # type: ignore[arg-type]


_ON_TINY = _matching(alpha=1.0, augment=TINY_ROLL, images_at_once=400)
_ON_LARGE = _matching(augment=LARGE_ROLL, images_at_once=100)
_ADJUSTED = {"adjust": 0.015, "adjust_steps": 12, "variance": 11.0}
_DWA_CIFAR_NOTES = (
    TRAINING_MODE,
    differs(SHIFTS, BYTES, "real images are random, not a stored draw"),
)

SETTINGS: dict[tuple[str, str], Setting] = {
    ("cifar10", ""): Setting(
        _figures(QUOTED, {10: (27.2, 0.5), 50: (47.5, 0.6)}),
        1000,
        0.25,
        _matching(),
        NOISE,
        SQUEEZE,
        ON_CIFAR,
        (ASSUMED_CIFAR10, TRAINING_MODE, differs(SHIFTS, BYTES)),
    ),
    ("cifar100", ""): Setting(
        _figures(QUOTED, {10: (31.6, 0.5), 50: (49.5, 0.3)}),
        1000,
        0.25,
        _matching(),
        NOISE,
        SQUEEZE,
        ON_CIFAR,
        (TRAINING_MODE, differs(SHIFTS, BYTES)),
        {
            10: "RDED's run of it is quoted with 27.0.",
            50: "DWA prints 52.2 for this cell, and RDED's run of it is quoted with 50.2.",
        },
    ),
    ("tiny_imagenet", ""): Setting(
        _figures(TABLE[""], {50: (41.1, 0.4), 100: 49.7}),
        4000,
        0.1,
        _ON_TINY,
        NOISE,
        SQUEEZE_LARGE,
        ON_TINY,
        (
            TINY_STUDENTS.format(100, 64, "partly recalled, partly DWA's, whose code was read"),
            *TINY_NOTES,
        ),
        {50: "4000 updates are the script's; the released images of 50 per class had 1000."},
    ),
    ("imagenet", ""): Setting(
        _figures(TABLE[""], {10: (21.3, 0.6), 50: (46.8, 0.2), 100: 52.8, 200: 57.0}),
        4000,
        0.25,
        _ON_LARGE,
        NOISE,
        PRETRAINED,
        ON_IMAGENET,
        IMAGENET_NOTES,
    ),
    ("tiny_imagenet", "_cda"): Setting(
        _figures(TABLE["_cda"], {50: 48.7, 100: 53.2}),
        4000,
        0.4,
        replace(_ON_TINY, alpha=0.05, crop_until=4000),
        NOISE,
        SQUEEZE_LARGE,
        replace(ON_TINY, batch=128),
        (CDA_BATCH, TINY_STUDENTS.format(100, 128, "recalled or DWA's"), *TINY_NOTES),
    ),
    ("imagenet", "_cda"): Setting(
        _figures(TABLE["_cda"], {50: 53.5, 100: 58.0, 200: 63.3}) | {10: (None, "")},
        4000,
        0.25,
        replace(_ON_LARGE, crop_until=4000),
        NOISE,
        PRETRAINED,
        replace(ON_IMAGENET, batch=128),
        (CDA_BATCH, *IMAGENET_NOTES),
        {10: quoted(33.5)},
    ),
    ("cifar10", "_dwa"): Setting(
        _figures(TABLE["_dwa"], {10: 32.6, 50: 53.1}),
        1000,
        0.25,
        _matching(**_ADJUSTED),
        REAL,
        SQUEEZE,
        ON_CIFAR,
        (ASSUMED_CIFAR10, *_DWA_CIFAR_NOTES),
    ),
    ("cifar100", "_dwa"): Setting(
        _figures(TABLE["_dwa"], {10: 39.6, 50: 60.9}),
        1000,
        0.25,
        _matching(**_ADJUSTED),
        REAL,
        SQUEEZE,
        ON_CIFAR,
        (
            "CIFAR-10's mean and deviation normalise, where the released code has CIFAR-100's.",
            *_DWA_CIFAR_NOTES,
        ),
    ),
    ("tiny_imagenet", "_dwa"): Setting(
        _figures(TABLE["_dwa"], {50: 52.8, 100: 56.0}),
        2000,
        0.1,
        _matching(
            batches=OnePerClass(classes=200), augment=CROP_FLIP, images_at_once=400, **_ADJUSTED
        ),
        REAL,
        replace(SQUEEZE_LARGE, epochs=100),
        replace(ON_TINY, epochs=200),
        (
            "The released warm-up of the student, five epochs from 0.01, is left out.",
            RECALLED_TEACHERS,
            differs(CROPS, BYTES),
        ),
    ),
    ("imagenet", "_dwa"): Setting(
        _figures(TABLE["_dwa"], {10: 37.9, 50: 55.2, 100: 59.2}),
        2000,
        0.25,
        replace(_ON_LARGE, adjust=0.015, adjust_steps=15, variance=2.0, augment=LARGE_ROLL),
        REAL,
        PRETRAINED,
        replace(ON_IMAGENET, batch=128),
        (
            "Each batch keeps weights of its own, 0.5 GB for each image per class.",
            "The augmentation of the images is assumed to be SRe2L's.",
            differs(STARTS, CROPS, BYTES),
            IMAGENET_MEMORY,
        ),
    ),
}
CONVNET = {"cifar10": {10: 45.0, 50: 63.3}, "cifar100": {10: 47.6, 50: 59.0}}  # DWA's figures
CONVNET_NOTE = (
    "Assumed: the images are made in ResNet18, the only kind of network that the released script "
    "trains."
)


def _cells(dataset: str, variant: str, of: Setting, suffix: str, model: str) -> list[Recipe]:
    large = dataset == "imagenet"
    cells = []
    for ipc, (figure, source) in sorted(of.figures.items()):
        checkpoint_every = None
        if of.objective.adjust:
            # with adjusted weights a checkpoint holds as many networks as there are batches
            checkpoint_every = of.steps // 4
        recipe = cell(
            "sre2l",
            CITES,
            dataset,
            ipc,
            variant=variant + suffix,
            model=model,
            teachers=(_resnet18(dataset),),
            buffer=of.buffer,
            objective=of.objective,
            optim={"images": adam(of.lr)},
            steps=of.steps,
            checkpoint_every=checkpoint_every,
            codec=Identity(bounded=True),
            init=of.init,
            evaluation=of.evaluation,
            published=figure,
            source=source,
            limit=LIMITS[ipc] if large else None,
            notes=(of.each.get(ipc, ""), *of.notes),
        )
        cells.append(recipe)
    return cells


def _resnet18(dataset: str) -> str:
    """The network of this name: torchvision's where images are large."""
    return "torchvision/resnet18" if dataset == "imagenet" else "resnet18-bn"


def _published() -> list[Recipe]:
    cells = []
    for (dataset, variant), of in SETTINGS.items():
        cells += _cells(dataset, variant, of, "", _resnet18(dataset))
        if variant == "_dwa" and dataset in CONVNET:
            figures = _figures(TABLE["_dwa"], dict(CONVNET[dataset]))
            convnet = replace(of, figures=figures, notes=(CONVNET_NOTE, *of.notes))
            cells += _cells(dataset, variant, convnet, "_convnet", "convnet-d3-w128-bn")
    return cells


def _small() -> list[Recipe]:
    return [
        small(
            "sre2l",
            CITES,
            ipc,
            dataset=dataset,
            objective=StatisticsMatching(batches=OnePerClass()),
            optim={"images": adam(0.25)},
            steps=200,
            codec=Identity(bounded=True),
            init=InitConfig(kind="noise"),
        )
        for dataset, ipc in SMALL_CELLS
    ]


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
