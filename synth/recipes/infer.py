"""INFER: universal feature compensators. Zhang, Du, Liu & Zhou, ICLR 2025, arXiv 2408.06927.

Values: the authors' code (github.com/zhangxin-xd/UFC) where it is released: the script of
CIFAR-100, the README for ImageNet. No script for CIFAR-10 and none for Tiny ImageNet, whose
settings are assumed as each note says; the evaluation on ImageNet is not released either. A recipe
without suffix has the labels it ships, mixed as logits; `_dyn` asks the teachers at each step, for
1 / (M + 1) of the epochs, so as many as SRe2L asks for; `_convnet` trains ConvNet128 on the same
set. What is stored of ipc images a class: n = ipc C / (M + C) images of each, rounded down, and M n
compensators; of these N = n (M + 1) training examples a class are made.

                            C     M    ipc    n     M n    N
    CIFAR-10               10     4    10      7     28     35
                                       50     35    140    175
    CIFAR-100             100     4    10      9     36     45
                                       50     48    192    240
                                      100     96    384    480
    Tiny ImageNet         200     4    10      9     36     45
                                       50     49    196    245
    ImageNet             1000     3    10      9     27     36
                                       50     49    147    196

Differs from the released code: see the notes; the image that is shipped includes the last update,
where the released one stops before it. Figures: tables 1 and 2 of the paper, mean and deviation as
printed. Those of 100 images a class on ImageNet were not read.
"""

from dataclasses import replace

from ddengine.recipe import AugmentConfig, EvalConfig, InitConfig, Recipe
from ddengine.sets.codec import Compensated
from synth.compensator import BaseSets
from synth.recipes.protocols import PROTOCOLS
from synth.recipes.soft import (
    BYTES,
    CROP_FLIP,
    CROPS,
    PRETRAINED,
    RECALLED_TEACHERS,
    SHIFTS,
    SMALL_CELLS,
    SMALL_TEACHERS,
    SQUEEZE,
    SQUEEZE_LARGE,
    Figure,
    adam,
    cell,
    cutmix,
    differs,
    small,
)
from synth.statistics import StatisticsMatching

BIBTEX = """
@inproceedings{zhang2025infer,
  title     = {Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature
              Compensator},
  author    = {Zhang, Xin and Du, Jiawei and Liu, Ping and Zhou, Joey Tianyi},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2025}
}
"""

CITES = ("zhang2025infer", "yin2023sre2l")
TEACHERS = ("resnet18-bn", "mobilenet_v2", "efficientnet_b0", "shufflenet_g2")
TORCHVISION = tuple(
    f"torchvision/{name}" for name in ("resnet18", "mobilenet_v2", "efficientnet_b0")
)

# {dataset: {network: {images per class: (static, dynamic)}}}
FIGURES: dict[str, dict[str, dict[int, tuple[Figure, Figure]]]] = {
    "cifar10": {
        "": {10: ((32.0, 0.5), (30.7, 0.3)), 50: ((60.4, 1.6), (60.7, 0.9))},
        "_convnet": {10: ((34.0, 0.4), (30.1, 0.8)), 50: ((57.0, 0.2), (52.4, 0.7))},
    },
    "cifar100": {
        "": {
            10: ((45.2, 0.04), (53.4, 0.6)),
            50: ((62.8, 0.4), (68.9, 0.1)),
            100: ((66.3, 0.1), (73.3, 0.2)),
        },
        "_convnet": {
            10: ((41.0, 0.4), (37.2, 0.3)),
            50: ((53.8, 0.2), (50.7, 0.3)),
            100: ((57.0, 0.02), (53.4, 0.2)),
        },
    },
    "tiny_imagenet": {
        "": {10: ((32.0, 0.1), (41.0, 0.4)), 50: ((52.9, 0.1), (54.6, 0.4))},
        "_convnet": {10: ((22.8, 0.3), (24.9, 0.3)), 50: ((32.3, 0.3), (33.9, 0.6))},
    },
    "imagenet": {"": {10: ((28.7, 0.2), (36.3, 0.3)), 50: ((51.8, 0.2), (55.6, 0.2))}},
}
OTHERS = {  # of ImageNet: ResNet50 and ResNet101
    (10, False): "26.9 ± 0.3 and 26.5 ± 0.1",
    (50, False): "53.3 ± 0.3 and 52.2 ± 0.3",
    (10, True): "38.3 ± 0.5 and 38.9 ± 0.5",
    (50, True): "63.4 ± 0.3 and 60.7 ± 0.1",
}
# of _convnet
NETWORKS = {
    "cifar10": "convnet-d3-w128-bn",
    "cifar100": "convnet-d3-w128-bn",
    "tiny_imagenet": "convnet-d4-w128-bn",
}

# updates, their rate, and the rest, by dataset
CIFAR = (1000, 0.25, StatisticsMatching(batches=BaseSets(), alpha=1.0))
SETTINGS: dict[str, tuple[int, float, StatisticsMatching]] = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tiny_imagenet": (
        2000,
        0.1,
        StatisticsMatching(batches=BaseSets(), alpha=1.0, augment=CROP_FLIP, images_at_once=400),
    ),
    "imagenet": (
        2000,
        0.25,
        StatisticsMatching(
            batches=BaseSets(),
            alpha=0.01,
            augment=AugmentConfig(always=("resized_crop", "flip", "roll"), ops=(), roll=32),
            images_at_once=250,
        ),
    ),
}
BUFFERS = {
    "cifar10": SQUEEZE,
    "cifar100": SQUEEZE,
    "tiny_imagenet": replace(SQUEEZE_LARGE, epochs=100),
    "imagenet": PRETRAINED,
}
BLOCKS = "MobileNetV2 and EfficientNet have torchvision's blocks"
LAST = (
    "The released program prints the last and the best accuracy on the test images; here it is "
    "the last."
)
NOTES = {
    "cifar10": (
        "The script of CIFAR-100 is assumed for CIFAR-10, for which none is released.",
        differs(BLOCKS, SHIFTS, BYTES),
        LAST,
    ),
    "cifar100": (differs(BLOCKS, "CIFAR-10's mean and deviation normalise", SHIFTS, BYTES), LAST),
    "tiny_imagenet": (
        "Nothing is released for Tiny ImageNet. Assumed: the four teachers and the students of "
        "CIFAR, DWA's 2000 updates at rate 0.1 on resized "
        "crops and flips, and weight 1 of the statistics.",
        RECALLED_TEACHERS,
        differs(BLOCKS, SHIFTS, CROPS, BYTES),
    ),
    "imagenet": (
        "The evaluation is not released; DWA's is assumed (300 epochs, CutMix, T 20, batch 128). "
        "The table's caption names ResNet18 for "
        "distillation, the released script has three networks, as here.",
        differs(
            "the images of a class are random, not the first of its folder",
            CROPS,
            BYTES,
            "the 1000 images of a compensator go through in parts of "
            "250, with the gradients of one pass",
        ),
    ),
}
LIMIT = {"imagenet": 100_000}


def _evaluation(dataset: str, dynamic: bool) -> EvalConfig:
    """The protocol; on ImageNet as DWA has it, for 300 epochs or 300 / (M + 1)."""
    base = PROTOCOLS["infer-dynamic" if dynamic else "infer-static"]
    if dataset != "imagenet":
        return base
    epochs = 300
    if dynamic:
        epochs = 300 // (len(TORCHVISION) + 1)
    return cutmix(base, epochs=epochs)


def _cell(dataset: str, network: str, ipc: int, dynamic: bool, figure: Figure) -> Recipe:
    steps, lr, objective = SETTINGS[dataset]
    large = dataset == "imagenet"
    teachers = TORCHVISION if large else TEACHERS
    others = f"With ResNet50 and ResNet101 the table has {OTHERS[ipc, dynamic]}." if large else ""
    return cell(
        "infer",
        CITES,
        dataset,
        ipc,
        variant=network + ("_dyn" if dynamic else ""),
        model=NETWORKS[dataset] if network else teachers[0],
        teachers=teachers,
        buffer=BUFFERS[dataset],
        objective=objective,
        optim={"compensators": adam(lr)},
        steps=steps,
        codec=Compensated(per_set=len(teachers)),
        init=InitConfig(),
        evaluation=_evaluation(dataset, dynamic),
        published=figure,
        source=f"INFER's table {2 if large else 1}",
        limit=LIMIT.get(dataset),
        notes=(others, *NOTES[dataset]),
    )


def _published() -> list[Recipe]:
    cells = []
    for dataset, networks in FIGURES.items():
        for network, figures in networks.items():
            for ipc, (static, dynamic) in figures.items():
                cells.append(_cell(dataset, network, ipc, False, static))
                cells.append(_cell(dataset, network, ipc, True, dynamic))
    return cells


def _small() -> list[Recipe]:
    return [
        small(
            "infer",
            CITES,
            ipc,
            dataset=dataset,
            objective=StatisticsMatching(batches=BaseSets(), alpha=1.0),
            optim={"compensators": adam(0.25)},
            steps=200,
            codec=Compensated(per_set=len(SMALL_TEACHERS)),
        )
        for dataset, ipc in SMALL_CELLS
    ]


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
