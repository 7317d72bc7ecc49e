"""FRePo: neural feature regression with a pool. Zhou et al., NeurIPS 2022, arXiv 2206.00719.

Values: the released code (github.com/yongchaoz/FRePo): a pool of 10 networks of widths 128, 256,
512 with BatchNorm, each trained by Adam at 3e-4 and replaced after 100 steps; batches of 1024 real
images; labels that start as centred classes, divided by the root of a tenth of their number;
500,000 steps. Students are fitted to the labels by squared error, for as many updates as the number
of images says.
Differs from the released code: images and labels are learned by Adam at the same rate and not by
LAMB, and the rate falls along a cosine to 0 and not to a tenth; students are trained by AdamW
without warm-up; colours are CIFAR's whitened ones as other recipes have them (`data.zca`).
Figures: NCFM's table, and others that were recalled, which are not called published. Theirs are
best test accuracies over checkpoints, of students without normalisation.
"""

from dataclasses import replace

from ddengine.recipe import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    OuterConfig,
    Published,
    Recipe,
    TargetConfig,
)
from ddengine.sets.codec import Identity
from synth.frepo import ADAM, Frepo
from synth.pool import Pool
from synth.recipes.protocols import PROTOCOLS

BIBTEX = """
@inproceedings{zhou2022frepo,
  title     = {Dataset Distillation Using Neural Feature Regression},
  author    = {Zhou, Yongchao and Nezhadarya, Ehsan and Ba, Jimmy},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}
"""

CITES = ("zhou2022frepo",)
TABLE = "NCFM's table 1"
RECALLED = "No published figure: the one known was recalled, not read."
LAMB = "Learned by Adam in place of LAMB."
# images -> updates of a student
UPDATES = {10: 1000, 100: 2000, 200: 20_000, 500: 5000, 1000: 10_000, 2000: 40_000, 5000: 40_000}
NUM_CLASSES = {"fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
# images per class: mean and deviation in %, as printed; None where nothing was read
Figure = tuple[float, float] | None
FIGURES: dict[str, dict[int, Figure]] = {
    "fashion_mnist": {1: None, 10: None, 50: None},
    "cifar10": {1: (46.8, 0.7), 10: (65.5, 0.4), 50: (71.7, 0.2)},
    "cifar100": {1: (28.7, 0.1), 10: (42.5, 0.2), 50: (44.3, 0.2)},
}
NO_FLIP = {("cifar100", 10), ("cifar100", 50)}  # images that are not mirrored in the regression
DIGITS = AugmentConfig(always=("color", "crop", "rotate", "cutout"), ops=())


def students(dataset: str, num: int) -> EvalConfig:
    """The protocol for a set of so many images."""
    protocol = PROTOCOLS["frepo"]
    if dataset == "fashion_mnist":
        protocol = replace(protocol, augment=DIGITS)
    steps_of_epoch = -(-num // protocol.batch)
    return replace(protocol, epochs=UPDATES[num] // steps_of_epoch)


def cell(dataset: str, ipc: int, figure: Figure) -> Recipe:
    """A cell of the paper."""
    published = None
    if figure is not None:
        published = Published(accuracy=figure[0] / 100, std=figure[1] / 100, source=TABLE)
    optim = OptimConfig(kind="adam", lr=3e-4, momentum=0.9, beta2=0.999, schedule="cosine")
    return Recipe(
        name=f"frepo/{dataset}_ipc{ipc}",
        cites=CITES,
        published=published,
        note=LAMB if published else f"{RECALLED} {LAMB}",
        data=DataConfig(name=dataset, validation=0.0, zca=dataset != "fashion_mnist"),
        model="convnet-d3-w128x2-bn",
        ipc=ipc,
        buffer=None,
        codec=Identity(),
        targets=TargetConfig(kind="centred"),
        objective=Frepo(flip=(dataset, ipc) not in NO_FLIP),
        outer=OuterConfig(
            steps=500_000,
            optim={"images": optim, "logits": optim},
            checkpoint_every=5000,
            picture_every=50_000,
        ),
        evaluation=students(dataset, ipc * NUM_CLASSES[dataset]),
    )


def _small() -> list[Recipe]:
    optim = OptimConfig(kind="adam", lr=0.01, momentum=0.9, beta2=0.999, schedule="cosine")
    pool = Pool(size=5, steps=100, optim=replace(ADAM, lr=1e-3), batch=500)
    recipes = []
    for dataset in ("fashion_mnist", "cifar10"):
        for ipc in (1, 10):
            recipe = Recipe(
                name=f"frepo/{dataset}_ipc{ipc}_small",
                cites=CITES,
                published=None,
                note=f"A recipe of this project for a CPU; nothing is published for it. {LAMB}",
                data=DataConfig(name=dataset, limit=10_000),
                model="convnet-d3-w16x2-bn",
                ipc=ipc,
                buffer=None,
                codec=Identity(),
                targets=TargetConfig(kind="centred"),
                objective=Frepo(pool=pool, real_batch=256),
                outer=OuterConfig(
                    steps=2000,
                    optim={"images": optim, "logits": optim},
                    evaluate_every=500,
                    picture_every=500,
                ),
                evaluation=replace(
                    students(dataset, 10 * ipc), num_networks=5, lr=1e-3, full_steps=300
                ),
            )
            recipes.append(recipe)
    return recipes


def recipes() -> list[Recipe]:
    """All of them."""
    cells = []
    for dataset, figures in FIGURES.items():
        for ipc, figure in figures.items():
            cells.append(cell(dataset, ipc, figure))
    return [*_small(), *cells]
