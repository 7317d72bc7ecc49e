"""The settings of transfer, and how networks are trained in it."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from ddengine.recipe import AugmentConfig, DataConfig, EvalConfig, require, require_at_least
from ddengine.sets.targets import Targets
from ddengine.system.errors import unknown

WAYS = ("probe", "finetune")
CONTROLS = ("none", "random", "experts")
AUGMENTS: dict[str, tuple[str, ...]] = {"crop_flip": ("crop", "flip"), "crop": ("crop",), "no": ()}
ALL = "all"  # in place of a number of images per class


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How pre-trained networks are tested on other datasets.

    Published for KRR-ST: fine-tuning at 0.01 for 10,000 updates on CIFAR-100 and Tiny ImageNet,
    5,000 on datasets of few images.
    """

    # probe: a linear classifier of the features, the network stays | finetune: the whole network
    ways: tuple[str, ...] = WAYS
    # none: no pre-training | random: random real images with targets of the same kind, as many as
    # the set stores | experts: those of the set, trained on all of its source images
    controls: tuple[str, ...] = CONTROLS
    shots: tuple[int, ...] = ()  # few-shot rows: so many training images of each class
    full: bool = True  # rows with all training images
    networks: int = 3  # of each row, each with its own seed; few-shot: each with its own images
    updates: int = 5000  # of a network that is fine-tuned on all training images
    few_updates: int = 500  # on a few of each class
    batch: int = 256  # images per update
    augment: Literal["crop_flip", "crop", "no"] = "crop_flip"  # of fine-tuning
    lr: float = 0.01  # of fine-tuning, where there is no validation split to choose it on
    # one of these is chosen for each row by another network on the validation split
    lr_grid: tuple[float, ...] = (0.003, 0.01, 0.03)
    decay: float = 1e-4  # weight decay of the linear classifier, as `lr`
    decay_grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)  # as `lr_grid`
    # use a fixed stratified subset of so many training images of each dataset that has more; None:
    # all
    limit: int | None = None
    validation: float = 0.1  # fraction of these that is held out to choose by; 0: none
    split_seed: int = 0  # decides the splits and the subset

    def __post_init__(self) -> None:
        _check_names("way", self.ways, WAYS)
        _check_names("control", self.controls, CONTROLS)
        require(len(self.ways) > 0, f"ways names none; choose of {', '.join(WAYS)}.")
        require(
            self.full or bool(self.shots), "full is False and shots names none; nothing is left."
        )
        different = len(set(self.shots)) == len(self.shots)
        require(
            different and min(self.shots, default=1) >= 1,
            f"shots must be different numbers of images, at least 1 each, got {self.shots}.",
        )
        for name in ("networks", "updates", "few_updates", "batch"):
            require_at_least(name, getattr(self, name))
        _check_grid("lr", self.lr, self.lr_grid)
        _check_grid("decay", self.decay, self.decay_grid)

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """Training images of each class in the rows: few, then ALL."""
        few = sorted(self.shots)
        if self.full:
            return (*few, ALL)
        return tuple(few)

    def values(self, way: str) -> tuple[float, ...]:
        """What is tried for a row, ascending: rates of fine-tuning, or weight decays of a probe."""
        grid = self.decay_grid
        if way == "finetune":
            grid = self.lr_grid
        return tuple(sorted(set(grid)))

    def usual(self, way: str) -> float:
        """The rate, or weight decay, where none can be chosen."""
        if way == "finetune":
            return self.lr
        return self.decay

    def data(self, image_shape: tuple[int, int, int]) -> DataConfig:
        """How datasets are read and split for networks that take images (C, H, W)."""
        _, height, width = image_shape
        return DataConfig(
            name="own",
            size=(height, width),
            limit=self.limit,
            validation=self.validation,
            split_seed=self.split_seed,
        )

    @property
    def finetuning(self) -> EvalConfig:
        """How a network is fine-tuned."""
        return EvalConfig(
            protocol="finetuning",
            batch=self.batch,
            schedule="cosine",
            weight_decay=5e-4,
            augment=AugmentConfig(ops=(), always=AUGMENTS[self.augment]),
            lr=self.lr,
            baselines=(),
        )


def _check_names(field: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise UserError for a name that is not known, or occurs twice."""
    for name in given:
        if name not in known:
            raise unknown(field, name, known)
    require(len(set(given)) == len(given), f"{field}s names {given}; name each once.")


def _check_grid(name: str, usual: float, grid: tuple[float, ...]) -> None:
    """Raise UserError for numbers that are not positive, and for none."""
    require(len(grid) > 0, f"{name}_grid must hold a number at least, got none.")
    for value in (usual, *grid):
        require(0 < value < math.inf, f"{name} and {name}_grid must be positive, got {value}.")


def pretraining_of(protocol: EvalConfig, targets: Targets) -> EvalConfig:
    """How networks are pre-trained on a set, from its protocol.

    On features as KRR-ST does: squared error, SGD at a rate of 0.1 that stays, momentum 0.9, weight
    decay 1e-3, batches of 256, no augmentation, for the epochs of the protocol. On classes and soft
    labels by the protocol itself.
    """
    if not targets.regressed:
        return replace(protocol, models=(), baselines=())
    plain = EvalConfig(
        protocol="pretraining",
        epochs=protocol.epochs,
        schedule="thirds",  # whose drops change nothing
        lr_drop=1.0,
        weight_decay=1e-3,
        augment=AugmentConfig(ops=()),
        rate="learned",
        lr=0.1,
        baselines=(),
    )
    return targets.trained_by(plain)
