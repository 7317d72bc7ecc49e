"""KRR-ST: self-supervised distillation for transfer. Lee et al., ICLR 2024, arXiv 2310.06511.

Values: the released code (github.com/db-Lee/selfsup_dd): a pool of 10 networks, each replaced after
1000 steps of SGD (rate 0.1, momentum 0.9, weight decay 1e-3); batches of 1024 real images, shifted
and mirrored; AdamW for 160,000 steps, whose rate falls along a line to a thousandth, here to 0.
Images are counted without classes: 1000 of CIFAR-100 are `ipc` 10 here, and start as random images
of any class, so that no label is read. The classes of such a set are numbers of rows, and say
nothing.
The target network is a ResNet-18 trained by Barlow Twins, with average pooling over its last maps;
how it was trained was not read, so those settings are of this project. Its published stem has
padding 2, ours 1.
Figures: the tables were recalled and not read, so none is called published. They are of fine-tuning
on other datasets, not of the accuracy on the images that were distilled.
"""

from dataclasses import replace

from buffers.barlow import BarlowTwins
from ddengine.recipe import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    InitConfig,
    OptimConfig,
    OuterConfig,
    Recipe,
    TargetConfig,
)
from ddengine.sets.codec import Identity
from synth.krr_st import KrrSt
from synth.pool import Pool
from synth.recipes.cells import CLASS_FOLDERS, FILES
from synth.recipes.protocols import PROTOCOLS

BIBTEX = """
@inproceedings{lee2024krrst,
  title     = {Self-Supervised Dataset Distillation for Transfer Learning},
  author    = {Lee, Dong Bok and Lee, Seanie and Ko, Joonho and Kawaguchi, Kenji and Lee, Juho and
              Hwang, Sung Ju},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}

@inproceedings{zbontar2021barlow,
  title     = {Barlow Twins: Self-Supervised Learning via Redundancy Reduction},
  author    = {Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, St{\\'e}phane},
  booktitle = {International Conference on Machine Learning},
  year      = {2021}
}
"""

CITES = ("lee2024krrst",)
NOT_READ = (
    "No published figure: those of the paper were recalled, not read, and are of fine-tuning on "
    "other datasets. Images are counted without classes, and the classes of the set say nothing."
)
SMALL_NOTE = (
    "A recipe of this project for a CPU; nothing is published for this cell. Images are counted "
    "without classes, and the classes of the set say nothing."
)
VIEWS = AugmentConfig(always=("resized_crop", "flip", "color"), ops=(), area=0.2)
# digits are not mirrored; a small crop of one can be another
VIEWS_OF_DIGITS = AugmentConfig(always=("resized_crop", "color"), ops=(), area=0.4)
SHIFT = AugmentConfig(always=("crop",), ops=())
TARGETS = TargetConfig(kind="features")
UNLABELLED = InitConfig(kind="unlabelled")
# the published pre-training on the set: no augmentation, the rate stays
PRETRAINING = replace(PROTOCOLS["krr-st"], num_networks=3)


def adamw(lr: float) -> OptimConfig:
    """The optimiser of images and targets."""
    return OptimConfig(kind="adamw", lr=lr, momentum=0.9, beta2=0.999, schedule="linear")


def cell(
    name: str,
    data: DataConfig,
    model: str,
    ipc: int,
    *,
    lr: float,
    target: str = "torchvision/resnet18-small",
    note: str = "",
) -> Recipe:
    """A cell of the paper."""
    optim = adamw(lr)
    return Recipe(
        name=name,
        cites=CITES,
        published=None,
        note=" ".join(filter(None, (NOT_READ, note))),
        data=data,
        model=model,
        ipc=ipc,
        buffer=BufferConfig(
            step=BarlowTwins(),
            model=target,
            num_experts=1,
            epochs=300,
            batch=256,
            augment=VIEWS,
            keep="last",
        ),
        init=UNLABELLED,
        codec=Identity(),
        targets=TARGETS,
        objective=KrrSt(),
        outer=OuterConfig(
            steps=160_000,
            optim={"images": optim, "features": optim},
            checkpoint_every=4000,
            picture_every=16_000,
        ),
        evaluation=PRETRAINING,
    )


def _published() -> list[Recipe]:
    tiny = DataConfig(name="tiny_imagenet", validation=0.0)
    nette = DataConfig(name="imagenette", validation=0.0, size=(224, 224))
    return [
        cell(
            "krr_st/cifar100_ipc10",
            DataConfig(name="cifar100", validation=0.0),
            "convnet-d3-w128x2-bn",
            10,
            lr=1e-4,
        ),
        cell(
            "krr_st/tiny_imagenet_ipc10",
            tiny,
            "convnet-d4-w64x2-bn",
            10,
            lr=1e-5,
            note=FILES.get("tiny_imagenet", ""),
        ),
        cell(
            "krr_st/imagenette_ipc1",
            nette,
            "convnet-d5-w32x2-bn",
            1,
            lr=1e-5,
            target="torchvision/resnet18",
            note=f"The target network is a ResNet-18, published a ResNet-50. {CLASS_FOLDERS}",
        ),
    ]


def small(
    name: str,
    data: DataConfig,
    model: str,
    *,
    ipc: int,
    epochs: int,
    views: AugmentConfig,
    augment: AugmentConfig,
    batch: int = 256,
    steps: int,
) -> Recipe:
    """A cell of this project for a CPU: the target network is of the students' kind.

    So `transfer` can set it beside them.
    """
    optim = adamw(1e-3)
    return Recipe(
        name=name,
        cites=CITES,
        published=None,
        note=SMALL_NOTE,
        data=data,
        model=model,
        ipc=ipc,
        buffer=BufferConfig(
            step=BarlowTwins(widths=(256, 256)),
            num_experts=1,
            epochs=epochs,
            batch=batch,
            augment=views,
            keep="last",
        ),
        init=UNLABELLED,
        codec=Identity(),
        targets=TARGETS,
        objective=KrrSt(pool=Pool(size=5, steps=100), real_batch=256, augment=augment),
        outer=OuterConfig(
            steps=steps,
            optim={"images": optim, "features": optim},
            checkpoint_every=100,
            picture_every=max(1, steps // 6),
        ),
        evaluation=replace(PRETRAINING, epochs=300, full_steps=300),
    )


def _small() -> list[Recipe]:
    shift_flip = KrrSt().augment
    return [
        small(
            "krr_st/digits_ipc5_small",
            DataConfig(name="digits"),
            "convnet-d2-w16-bn",
            ipc=5,
            epochs=100,
            views=VIEWS_OF_DIGITS,
            augment=SHIFT,
            steps=500,
        ),
        small(
            "krr_st/fashion_mnist_ipc10_small",
            DataConfig(name="fashion_mnist", limit=10_000),
            "convnet-d3-w32-bn",
            ipc=10,
            epochs=20,
            views=VIEWS,
            augment=shift_flip,
            steps=1000,
        ),
        small(
            "krr_st/cifar10_ipc10_small",
            DataConfig(name="cifar10", limit=10_000),
            "convnet-d3-w32-bn",
            ipc=10,
            epochs=20,
            views=VIEWS,
            augment=shift_flip,
            steps=1000,
        ),
    ]


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
