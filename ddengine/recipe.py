"""A whole run as one printable value: the recipe and the configurations of the core's parts.

Frozen, keyword-only, checked on construction. A trailing comment on a field is its help on the
command line. Parts that come in kinds (expert training step, codec, objective) are type parameters,
so that `parametrised` can tell the command line which flags exist.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from ddengine import naming
from ddengine.system.configs import LATE, to_dict
from ddengine.system.errors import UserError, unknown
from ddengine.types import ExpertStep, Method

StepT = TypeVar("StepT", bound=ExpertStep)
# None, or what says which images an epoch sees
CurriculumT = TypeVar("CurriculumT", bound=Any)
NO_CURRICULUM: Any = None
BufferT = TypeVar("BufferT", bound="BufferConfig | None")
CodecT = TypeVar("CodecT")
ObjectiveT = TypeVar("ObjectiveT", bound=Method)

BASELINES = (
    "random",
    "equal_bytes",
    "herding",
    "full",
    "random_soft",
    "hard_labels",
    "eight_bit",
    "k_centre",
    "k_means",
    "forgetting",
    "el2n",
    "cad",
    "facility",
)
RANKING = ("forgetting", "el2n", "cad")  # kinds of initial images that go by a score
DSA_OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
OPS = (*DSA_OPS, "roll", "resized_crop", "shuffle")


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def require_at_least(name: str, value: float | None, least: int = 1) -> None:
    """Raise UserError for a value below `least` or infinite; None, where it may be, is fine."""
    require(value is None or value >= least, f"{name} must be at least {least}, got {value}.")
    require(value != math.inf, f"{name} must be finite, got {value}.")


def is_colour(name: str) -> bool:
    """Whether a text is a colour's name or number."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure printed in a paper, as quoted in this project's specification."""

    accuracy: float  # fraction
    std: float | None  # fraction, as printed (mostly population standard deviation over networks)
    source: str  # where the figure was read


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how many of them, and how they are split and preprocessed."""

    # digits | mnist | fashion_mnist | svhn | cifar10 | cifar100 | tiny_imagenet | imagenet |
    # imagenette (or another subset) | folder | parquet | hub
    name: str
    # folder of the files; None: the dataset's usual place; of hub: user/name or
    # user/name:configuration
    # or a folder laid out so
    root: str | None = None
    download: bool = False  # let torchvision download the dataset into root
    size: tuple[int, int] | None = None  # resize to (height, width); None: as stored
    # of images of another shape than size: change it | cut the middle out | add ground around it
    fit: Literal["squash", "crop", "pad"] = "squash"
    # ground under what is transparent, and around padded images: a name, or #rrggbb
    background: str = "white"
    image_column: str | None = None  # of parquet and hub; None: found by its type and name
    label_column: str | None = None  # of parquet and hub; None: found by its type and name
    # use only these classes, in this order, numbered anew; None: all
    classes: tuple[int, ...] | None = None
    # use a fixed stratified subset of this many training images (before the validation split)
    limit: int | None = None
    validation: float = 0.1  # fraction of the training images held out for selection; 0: none
    # decides validation split, subset, and the test split of datasets without one
    split_seed: int = 0
    zca: bool = False  # ZCA whitening (eps 0.1) instead of mean/std normalisation
    # folder of images that are decoded once, into files that are mapped into memory; auto:
    # runs/.images for more than a quarter of the memory, else none: they are held in memory
    cache: str = field(default="auto", metadata=LATE)

    def __post_init__(self) -> None:
        require(
            0 <= self.validation < 1,
            f"data.validation must be at least 0 and below 1, got {self.validation}; 0.1 is usual.",
        )
        require(
            self.limit is None or self.limit > 0,
            f"data.limit must be positive, got {self.limit}; leave it out for all images.",
        )
        require(
            self.classes is None
            or (len(self.classes) == len(set(self.classes)) >= 2 and min(self.classes) >= 0),
            (
                "data.classes must be at least two different class numbers, counted from 0, got "
                f"{self.classes}; leave it out for all classes."
            ),
        )
        require(
            self.split_seed >= 0, f"data.split_seed must not be negative, got {self.split_seed}."
        )
        require(
            self.size is None or min(self.size) > 0,
            f"data.size must be a positive height and width, got {self.size}.",
        )
        require(bool(self.cache), "data.cache is empty; name a folder, auto or none.")
        require(
            self.fit in ("squash", "crop", "pad"),
            f"data.fit must be squash, crop or pad, got {self.fit}.",
        )
        require(
            is_colour(self.background),
            (
                f"data.background {self.background!r} is no colour; give a name such as white, or "
                "#rrggbb."
            ),
        )

    def from_anywhere(self) -> "DataConfig":
        """The same whatever the current folder is, but for `root`, which is looked for."""
        if self.cache in ("auto", "none"):
            return self
        return replace(self, cache=str(Path(self.cache).absolute()))

    def without_places(self) -> "DataConfig":
        """The same for others: where files lie on this machine says nothing to them."""
        return replace(self, root=None, cache="auto")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Differentiable augmentation (DSA): one operation drawn per batch, its parameters per image.

    Others may be applied always.
    """

    ops: tuple[str, ...] = DSA_OPS  # one is drawn from these; none: only what is applied always
    # applied to every image, in this order, before the drawn one; cutout after it
    always: tuple[str, ...] = ()
    brightness: float = 1.0  # range of the added value
    saturation: float = 2.0  # range of the factor
    contrast: float = 0.5  # smallest factor, the largest is 1 more
    crop: float = 0.125  # largest shift, fraction of the side
    cutout: float = 0.5  # side of the square, fraction of the side
    flip: float = 0.5  # probability of mirroring
    scale: float = 1.2  # largest factor, the smallest is its inverse
    rotate: float = 15.0  # largest angle, degrees
    roll: int = 4  # largest cyclic shift, pixels; down and to the right only (as published)
    # smallest area of a resized crop, fraction of the image; the largest is all of it
    area: float = 0.08
    # largest ratio of the sides of a resized crop, the smallest is its inverse; 1: square
    ratio: float = 4 / 3
    patches: int = 2  # strips along each side, 1 to 4, that shuffle puts in another order

    def __post_init__(self) -> None:
        for op in (*self.ops, *self.always):
            if op not in OPS:
                raise unknown("augmentation", op, OPS)
        require(
            self.roll >= 0, f"augment.roll must not be negative, got {self.roll}; 0 moves nothing."
        )
        require(
            0 < self.area <= 1,
            (
                "augment.area is a fraction of the image and must be above 0 and at most 1, got "
                f"{self.area}."
            ),
        )
        require(
            1 <= self.ratio < math.inf,
            f"augment.ratio must be at least 1 and finite, got {self.ratio}; 1 crops squares.",
        )
        require(
            1 <= self.patches <= 4,
            (
                f"augment.patches must lie within 1 and 4, got {self.patches}; 1 leaves images as "
                "they are."
            ),
        )
        require(
            self.scale > 0,
            f"augment.scale must be positive, got {self.scale}; 1 leaves the size as it is.",
        )

    @property
    def any(self) -> bool:
        """Whether images are changed at all."""
        return bool(self.ops or self.always)


@dataclass(frozen=True, kw_only=True)
class BufferConfig(Generic[StepT, CurriculumT]):
    """One store of expert trajectories."""

    step: StepT  # the training step: optimiser and its options
    model: str | None = None  # network of the experts; None: the recipe's
    num_experts: int = 100  # trajectories
    epochs: int = 50  # epochs of training each
    batch: int = 256  # images per training step
    augment: AugmentConfig = AugmentConfig()
    # epochs whose snapshots are stored (0 is the initialisation); ends: the first and the last; two
    # numbers: from, to
    keep: Literal["all", "last", "ends"] | tuple[int, int] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored snapshots
    # decides every random draw of the experts; that of a distillation is --seed, so one store
    # serves the distillations of many seeds
    seed: int = field(default=0, metadata=LATE)
    # what is stored of a trajectory: the kept epochs | `waypoints` of them and how far the path
    # went between, so that any epoch, whole or not, is read as a point on a line
    store: Literal["snapshots", "convex"] = field(default="snapshots", metadata=LATE)
    waypoints: int = field(default=2, metadata=LATE)  # of a convex store, at least 2
    # which images an epoch sees, such as easy ones first; None: all
    curriculum: CurriculumT = field(default=NO_CURRICULUM, metadata=LATE)

    def __post_init__(self) -> None:
        require_at_least("buffer.num_experts", self.num_experts)
        require_at_least("buffer.waypoints", self.waypoints, 2)
        require(
            self.store == "snapshots" or self.keep == "all",
            f"buffer.store convex makes waypoints of all epochs, and buffer.keep is {self.keep}; "
            "set buffer.keep all.",
        )
        require(
            self.store == "snapshots" or self.waypoints <= self.epochs + 1,
            f"buffer.waypoints {self.waypoints} are more than the epochs that buffer.epochs "
            f"{self.epochs} gives, the initialisation among them; lower buffer.waypoints.",
        )
        require(
            self.store == "convex" or self.waypoints == 2,
            f"buffer.waypoints {self.waypoints} are of buffer.store convex, and it is "
            f"{self.store}; set buffer.store convex.",
        )
        require_at_least("buffer.epochs", self.epochs)
        require_at_least("buffer.batch", self.batch)
        require_at_least("buffer.seed", self.seed, 0)
        if not isinstance(self.keep, str):
            low, high = self.keep
            require(
                0 <= low <= high <= self.epochs,
                (
                    f"buffer.keep {low} {high} must lie within 0 and buffer.epochs = "
                    f"{self.epochs}; widen buffer.epochs or narrow buffer.keep."
                ),
            )

    def kept_epochs(self) -> list[int]:
        """Epochs that can be read from the store, ascending."""
        if self.keep == "all":
            return list(range(self.epochs + 1))
        if self.keep == "last":
            return [self.epochs]
        if self.keep == "ends":
            return [0, self.epochs]
        return list(range(self.keep[0], self.keep[1] + 1))

    def num_snapshots(self) -> int:
        """Snapshots that are stored of an expert."""
        return self.waypoints if self.store == "convex" else len(self.kept_epochs())


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where the synthetic images start."""

    # random real images of the class | standard normal noise | real images an expert classifies
    # correctly | representative ones, by k-means | coresets: a running mean near the class mean |
    # far from each other | centres of k-means | by forgetting events | by the error of early
    # networks | by how much the error varies while a network is trained (CAD) | that stand for all
    # others (facility location) | crops of real images that a teacher is most sure of (RDED) |
    # random real images of any class: no labels are read, and the classes of the set say nothing
    kind: Literal[
        "real",
        "noise",
        "correct",
        "representative",
        "herding",
        "k_centre",
        "k_means",
        "forgetting",
        "el2n",
        "cad",
        "facility",
        "patches",
        "unlabelled",
    ] = "real"
    clusters: int = 10  # most clusters per class of `representative`
    # what herding, k_centre and k_means see: features of a trained network, or pixels
    embedding: Literal["network", "pixels"] = "network"
    # updates of the network that embeds (herding, k_centre, k_means, facility) or scores
    # (forgetting; cad, whole epochs of them; el2n,
    # after a tenth of them)
    steps: int = 1000
    lr: float = 0.01  # learning rate of these updates, which have momentum 0.9
    networks: int = 3  # networks whose scores forgetting and el2n average
    # forgetting and el2n take these; hardest as published, for large sets; easiest for a few
    order: Literal["hardest", "easiest"] = "hardest"
    # real images per class that patches are cut from; at most as many as there are
    candidates: int = 300
    crops: int = 5  # random resized crops of each of them, of which patches keeps the best
    # patches along each side of an image; published: 1 for images of 32 pixels, 2 for larger ones
    factor: int = 1
    # Euclidean norm of each image of noise (RaT-BPTT: 1); None: as it is drawn
    norm: float | None = field(default=None, metadata=LATE)
    # forgetting, el2n and cad pass over so many images of a class, as a share of ipc, before they
    # take the next in their order (beta of SelMatch: 0.2 to 0.8 of the hardest)
    skip: float = field(default=0.0, metadata=LATE)

    def __post_init__(self) -> None:
        require(
            0 <= self.skip < math.inf,
            f"init.skip is a share of ipc and must be 0 or more, got {self.skip:g}.",
        )
        require(
            self.skip == 0 or self.kind in RANKING,
            f"init.skip passes over images by a score, and init.kind {self.kind} has none; set "
            f"init.kind to one of {', '.join(RANKING)}, or init.skip 0.",
        )
        require_at_least("init.clusters", self.clusters)
        require_at_least("init.steps", self.steps)
        require_at_least("init.networks", self.networks)
        require_at_least("init.candidates", self.candidates)
        require_at_least("init.crops", self.crops)
        require_at_least("init.factor", self.factor)
        require(0 < self.lr < math.inf, f"init.lr must be positive and finite, got {self.lr}.")
        require(
            self.norm is None or 0 < self.norm < math.inf,
            f"init.norm must be positive and finite, got {self.norm}; leave it out for noise as it "
            "is drawn.",
        )

    def num_skipped(self, ipc: int) -> int:
        """Images of a class that are passed over."""
        return int(ipc * self.skip)


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What the synthetic images are labelled with.

    Their class, or what `outer.optim` may learn: logits that experts give them, weights of the
    classes, features that the first expert gives them, or classes as numbers.
    """

    # class | logits of experts | weights of the classes, which start at one for that of the image
    # and need not add up to one (RaT-BPTT) | features: what lies before the last layer of the first
    # expert | centred: one-hot classes less their mean, as logits that networks are fitted to
    # (FRePo)
    kind: Literal["class", "logits", "weights", "features", "centred"] = "class"
    # whose logits are averaged: of those that are right about the image, of all, of the first
    experts: Literal["correct", "all", "first"] = "correct"
    # expert epochs whose logits are averaged, from and to; None: the last stored
    epochs: tuple[int, int] | None = None
    # label the final images anew the same way, for labels that are not learned
    relabel: bool = False
    # of the labels that are shipped; learned ones stay float32
    dtype: Literal["float32", "float16"] = "float32"
    # ship so many largest logits of each image, and the mean of the others; None, or where that
    # would save nothing: all
    top: int | None = None
    # what logits start from: what experts say | the class of each image, for labels that are
    # learned without experts
    start: Literal["experts", "class"] = field(default="experts", metadata=LATE)

    def __post_init__(self) -> None:
        require(
            self.epochs is None or 0 <= self.epochs[0] <= self.epochs[1],
            (
                f"targets.epochs must be two ascending epochs, got {self.epochs}; leave it out "
                "for the last stored one."
            ),
        )
        require(
            self.top is None or self.top >= 1,
            f"targets.top must be at least 1, got {self.top}; leave it out for all logits.",
        )
        require(
            self.relabel or (self.dtype == "float32" and self.top is None),
            (
                "targets.dtype and targets.top say how labels are shipped that are made of the "
                "final images; set targets.relabel True."
            ),
        )
        require(
            not self.relabel or self.kind == "logits",
            (
                f"targets.relabel makes logits anew, and targets.kind is {self.kind}; set "
                "targets.kind logits."
            ),
        )
        require(
            not (self.relabel and self.start == "class"),
            "targets.relabel asks experts about the final images, and targets.start class has "
            "none; set targets.relabel False or targets.start experts.",
        )
        require(
            not (self.relabel and self.experts == "correct"),
            (
                "targets.relabel with targets.experts correct could end at images that no expert "
                "is right about; set targets.experts all."
            ),
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD, Adam or AdamW on one stored tensor."""

    lr: float  # step size, in units of the tensor
    momentum: float = 0.5  # of Adam: beta 1
    weight_decay: float = 0.0
    # sgd: with heavy-ball momentum | adam: with bias correction and eps 1e-8 | adamw: the same,
    # weight decay apart from gradients
    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    beta2: float = 0.9  # of Adam: decay of the mean of squared gradients
    # of the step size: always lr | cosine, over all steps down to 0 | linear, over all steps down
    # to 0 | steps: times drop after every drop_every steps
    schedule: Literal["constant", "cosine", "linear", "steps"] = "constant"
    # largest norm of the gradient, which is made shorter to it; None: as it is
    clip: float | None = field(default=None, metadata=LATE)
    # largest norm of the gradient in units of the running average of norms (RaT-BPTT: 2); None: as
    # it is
    clip_average: float | None = field(default=None, metadata=LATE)
    # decay of that average, which counts the present gradient too
    clip_decay: float = field(default=0.9, metadata=LATE)
    # the norm is that of the gradients of all tensors that say so, together
    clip_together: bool = field(default=False, metadata=LATE)
    drop: float = field(default=0.5, metadata=LATE)  # factor of schedule steps
    drop_every: int = field(default=40, metadata=LATE)  # outer steps of schedule steps

    def __post_init__(self) -> None:
        require(
            self.lr >= 0 and math.isfinite(self.lr),
            f"A learning rate in outer.optim must be finite and not negative, got {self.lr}.",
        )
        require(
            0 <= self.momentum < 1,
            f"A momentum in outer.optim must be at least 0 and below 1, got {self.momentum}.",
        )
        require(
            self.weight_decay >= 0,
            f"A weight decay in outer.optim must not be negative, got {self.weight_decay}.",
        )
        require(
            0 <= self.beta2 < 1,
            f"A beta2 in outer.optim must be at least 0 and below 1, got {self.beta2}.",
        )
        require(
            self.clip is None or self.clip > 0,
            f"A clip in outer.optim must be positive, got {self.clip}; leave it out to clip "
            "nothing.",
        )
        require(
            self.clip_average is None or self.clip_average > 0,
            f"A clip_average in outer.optim must be positive, got {self.clip_average}; leave it "
            "out to clip nothing.",
        )
        require(
            0 <= self.clip_decay < 1,
            f"A clip_decay in outer.optim must be at least 0 and below 1, got {self.clip_decay}.",
        )
        require_at_least("A drop_every in outer.optim", self.drop_every)
        require(
            0 < self.drop < math.inf,
            f"A drop in outer.optim must be positive and finite, got {self.drop}.",
        )

    def lr_at(self, step: int, steps: int) -> float:
        """Step size of update `step` of `steps`."""
        if self.schedule == "steps":
            return self.lr * self.drop ** (step // self.drop_every)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.lr * (1 - step / steps) if self.schedule == "linear" else self.lr


@dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """The outer loop."""

    steps: int  # outer updates; 0: the initial images are the result
    optim: Mapping[str, OptimConfig]  # stored tensor -> its optimiser; tensors not named stay fixed
    step_after: Literal["all", "each"] = "all"  # update after all losses of a step, or after each
    draws: int = 1  # losses of this many independent draws are averaged per step
    # skip the update when the loss of the step, with milestones their sum, is above this
    max_loss: float = math.inf
    # stored tensor -> decay of its running average; the average is shipped
    ema: Mapping[str, float] = field(default_factory=dict)
    checkpoint_every: int = 100  # steps between checkpoints
    evaluate_every: int = 0  # steps between evaluations on the validation split; 0: none
    picture_every: int = 0  # steps between pictures of the images; 0: none but first and last

    def __post_init__(self) -> None:
        require(
            self.steps >= 0,
            (
                f"outer.steps must not be negative, got {self.steps}; 0 leaves the initial images "
                "as they are."
            ),
        )
        require(self.draws >= 1, f"outer.draws must be at least 1, got {self.draws}.")
        require(
            self.draws == 1 or self.step_after == "all",
            (
                f"outer.draws {self.draws} averages draws before a step, and outer.step_after "
                "each steps after every loss; set one of them back."
            ),
        )
        require(
            not math.isnan(self.max_loss),
            "outer.max_loss must be a number, got nan; inf skips no update.",
        )
        require(
            self.checkpoint_every >= 1,
            f"outer.checkpoint_every must be at least 1, got {self.checkpoint_every}.",
        )
        require(
            self.evaluate_every >= 0,
            f"outer.evaluate_every must not be negative, got {self.evaluate_every}; 0 means never.",
        )
        require(
            self.picture_every >= 0,
            (
                f"outer.picture_every must not be negative, got {self.picture_every}; 0 means "
                "first and last only."
            ),
        )
        for name, decay in self.ema.items():
            require(
                0 <= decay < 1,
                f"outer.ema of {name!r} must be at least 0 and below 1, got {decay}.",
            )


@dataclass(frozen=True, kw_only=True)
class TorchStep:
    """A step of an optimiser of torch, apart from its rate and its weight decay."""

    name: str = "SGD"  # a class of torch.optim
    momentum: float = 0.0  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    eps: float = 1e-8  # of Adam, beside the root of the corrected mean square


@dataclass(frozen=True, kw_only=True)
class ClassBatches:
    """A batch is some examples of each class, or of some classes."""

    per_class: int | None = None  # examples of each class in a batch; None: all
    classes: int | None = None  # classes in a batch, drawn at random; None: all
    # random: examples drawn at random | turns: one after another, so that step k + n sees what step
    # k saw
    order: Literal["random", "turns"] = "random"

    def __post_init__(self) -> None:
        require_at_least("objective.batches.per_class", self.per_class)
        require_at_least("objective.batches.classes", self.classes)


@dataclass(frozen=True, kw_only=True)
class StudentSteps:
    """How the students of a set step, in place of the optimiser and the batches of a protocol."""

    step: TorchStep = TorchStep()
    batches: ClassBatches = ClassBatches()
    # step sizes that were learned with the set, of one update after another and then from the
    # beginning again; none: evaluation.lr in all updates
    rates: tuple[float, ...] = ()

    @property
    def mean_rate(self) -> float:
        """Of the learned step sizes."""
        return sum(self.rates) / len(self.rates)

    def rates_of(self, lr: float) -> tuple[float, ...]:
        """The step sizes of updates whose mean is `lr`: the learned ones, multiplied to it."""
        if not self.rates:
            return (lr,)
        factor = lr / self.mean_rate
        return tuple(factor * rate for rate in self.rates)


@dataclass(frozen=True, kw_only=True)
class StudentTraining:
    """How the students of a set were trained while it was made, as the set says it."""

    steps: StudentSteps
    updates: int  # of a whole training
    batch: int  # images of an update
    lr: float  # the step size; of learned ones the mean
    weight_decay: float = 0.0
    augment: AugmentConfig = AugmentConfig(ops=())


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """An evaluation protocol: how networks are trained on a set, and what it is compared with."""

    protocol: str  # the named protocol that these values start from
    epochs: int = 1000  # E, passes over the set
    batch: int = 256  # images per update
    # sgd: with momentum | adamw: with betas 0.9 and 0.999 | muon: of hidden layers, with adamw of
    # all else (torch 2.9)
    optimiser: Literal["sgd", "adamw", "muon"] = "sgd"
    # where optimiser is sgd, networks that it trains badly from scratch (transformers, ConvNeXt)
    # have AdamW and rates to suit
    adapt: bool = True
    momentum: float = 0.9  # of SGD, until the (first) drop
    # half: E + 1 epochs run, after epoch E // 2 + 1 the rate drops and the optimiser starts anew |
    # thirds: E epochs run, the rate drops after 2 E // 3 and 5 E // 6 of them | cosine: E epochs
    # run, epoch t at half of 1 + cos(pi t / (stretch E)) of the rate | steps: E epochs run, the
    # rate drops at each of drop_at
    schedule: Literal["half", "thirds", "cosine", "steps"] = "half"
    # of schedule steps: after which fractions of the epochs the rate drops, ascending
    drop_at: tuple[float, ...] = field(default=(), metadata=LATE)
    stretch: float = 1.0  # of cosine: 2 ends at half the rate
    momentum_after: float = 0.9  # after the (first) drop
    weight_decay: float = 5e-4
    decay_norms: bool = True  # weight decay on biases and on normalisation layers too
    lr_drop: float = 0.1  # factor on the learning rate at each drop
    augment: AugmentConfig = AugmentConfig()
    cutmix: float = 0.0  # probability that a batch is mixed by CutMix
    mixup: float = 0.0  # every batch is mixed by mixup with a ratio of Beta(mixup, mixup); 0: none
    # what is mixed of soft labels, of loss kl
    mix_labels: Literal["logits", "probabilities"] = "logits"
    # own: the labels that a set has | hard: its classes | dynamic: what the teachers say of each
    # batch as the network sees it
    labels: Literal["own", "hard", "dynamic"] = "own"
    # of dynamic labels; train normalises by the batch, as SRe2L's code does on CIFAR
    teacher_mode: Literal["eval", "train"] = "eval"
    # with soft labels z, outputs s, class c: ce: cross-entropy with softmax(z) | kl: KL of
    # softmax(z / T) from softmax(s / T) | mse: of the logits | nkd: normalised distillation and
    # cross-entropy with c | uskd: without a teacher, of c alone | weighted: cross-entropy with
    # weights z of the classes, which sets that have such use whatever is set. Hard labels always
    # have ce, or uskd
    loss: Literal["ce", "kl", "mse", "nkd", "uskd", "weighted"] = "ce"
    temperature: float = 1.0  # T of kl and nkd; published for nkd: 1
    squared: bool = False  # kl is multiplied by T squared
    # weight of the cross-entropy with the class that is added to kl and mse
    hard_weight: float = 0.0
    # weight of kl and mse themselves
    soft_weight: float = field(default=1.0, metadata=LATE)
    models: tuple[str, ...] = ()  # networks to train; none: the recipe's
    # networks per row, each with its own seed; random: each with its own draw of images
    num_networks: int = 5
    # where learning rates come from; validation: for each set and network the best of lr_grid, and
    # on the recipe's network the learned one, by the validation split; without such a split as
    # learned | learned: of the set on the recipe's network the learned one, elsewhere lr | fixed:
    # lr
    rate: Literal["validation", "learned", "fixed"] = "validation"
    lr: float = 0.01  # learning rate where none is chosen and none was learned
    lr_grid: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    search_networks: int = 1  # networks per learning rate tried
    # random | equal_bytes (as many random images as the bytes of the set hold) | random_soft (with
    # the labels of the set: of its teachers, else of a network trained on the full data) |
    # hard_labels (the set with its classes) | eight_bit (the set as its PNG files say it) | herding
    # | k_centre | k_means | forgetting | el2n | cad | facility | full
    baselines: tuple[str, ...] = ("random", "herding", "full", "eight_bit")
    # all baselines but full have as many epochs as the set, or as many updates
    baseline_steps: Literal["epochs", "updates"] = "epochs"
    # most updates of a network on the full data; with baseline_steps updates, those of the set
    # where they are more
    full_steps: int = 5000
    # networks step as the students of the set did while it was made (optimiser, learned step sizes,
    # batches, number of updates), where the set says how; where it does not, by the other values
    as_students: bool = field(default=False, metadata=LATE)
    # updates of a network in place of epochs; None: as many as its epochs are, or as_students as
    # many as a student made
    updates: int | None = field(default=None, metadata=LATE)
    # what the set says of them; None: nothing, or it was not asked
    students: StudentSteps | None = field(default=None, metadata=LATE)

    def __post_init__(self) -> None:  # long: a list of checks
        require_at_least("evaluation.epochs", self.epochs)
        require_at_least("evaluation.batch", self.batch)
        require_at_least("evaluation.num_networks", self.num_networks)
        require_at_least("evaluation.search_networks", self.search_networks)
        require_at_least("evaluation.full_steps", self.full_steps)
        require_at_least("evaluation.updates", self.updates)
        require(
            not (self.optimiser == "muon" and self.loss == "uskd"),
            "evaluation.loss uskd has a second classifier, which evaluation.optimiser muon does "
            "not train; set evaluation.optimiser sgd or adamw.",
        )
        require(
            bool(self.drop_at) == (self.schedule == "steps"),
            f"evaluation.drop_at {' '.join(map(str, self.drop_at)) or '()'} says when the rate of "
            f"schedule steps drops, and the schedule is {self.schedule}; set both, or none.",
        )
        require(
            all(0 < at < 1 for at in self.drop_at) and list(self.drop_at) == sorted(self.drop_at),
            f"evaluation.drop_at must be ascending fractions of the epochs, got {self.drop_at}.",
        )
        require(
            len(self.lr_grid) > 0,
            "evaluation.lr_grid must hold at least one learning rate, got none.",
        )
        rates = [
            ("lr", self.lr),
            ("lr_drop", self.lr_drop),
            *(("lr_grid", rate) for rate in self.lr_grid),
        ]
        for name, value in rates:
            require(
                0 < value < math.inf, f"evaluation.{name} must be positive and finite, got {value}."
            )
        for name, value in (("momentum", self.momentum), ("momentum_after", self.momentum_after)):
            require(
                0 <= value < 1,
                f"evaluation.{name} must be at least 0 and below 1, got {value}.",
            )
        require(
            0 <= self.cutmix <= 1,
            (
                "evaluation.cutmix is a probability and must lie within 0 and 1, got "
                f"{self.cutmix}; 0 mixes no batch."
            ),
        )
        require(
            self.mixup >= 0,
            f"evaluation.mixup must not be negative, got {self.mixup}; 0 mixes no batch.",
        )
        require(
            not (self.mixup and self.cutmix),
            (
                f"evaluation.mixup {self.mixup} and evaluation.cutmix {self.cutmix} would both "
                "mix a batch; set one of them to 0."
            ),
        )
        require(
            self.temperature > 0,
            f"evaluation.temperature must be positive, got {self.temperature}.",
        )
        require(
            self.hard_weight >= 0,
            f"evaluation.hard_weight must not be negative, got {self.hard_weight}.",
        )
        require(
            self.soft_weight >= 0,
            f"evaluation.soft_weight must not be negative, got {self.soft_weight}.",
        )
        require(
            0.5 <= self.stretch < math.inf,
            (
                f"evaluation.stretch must be at least 0.5 and finite, got {self.stretch}; 1 ends "
                "at rate 0."
            ),
        )
        require(
            self.weight_decay >= 0,
            f"evaluation.weight_decay must not be negative, got {self.weight_decay}.",
        )
        for name in self.baselines:
            if name not in BASELINES:
                raise unknown("baseline", name, BASELINES)
        require(
            not {"random", "equal_bytes", "random_soft"} & set(self.baselines)
            or self.num_networks >= 3,
            "evaluation.num_networks must be at least 3 to draw 3 random sets, got "
            f"{self.num_networks}; "
            "raise it or leave random out of evaluation.baselines.",
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(Generic[BufferT, CodecT, ObjectiveT]):
    """A whole run.

    Data, experts, initial images, parametrisation, objective, outer loop, evaluation.
    """

    name: str
    cites: tuple[str, ...]  # keys of the works it reproduces
    published: Published | None  # the figure of the cell it reproduces
    note: str = ""  # why there is no published figure, where sources disagree, what differs
    data: DataConfig
    model: str  # network used while distilling, e.g. convnet-d3-w128-in
    ipc: int  # stored images per class, or the budget of a codec that stores something beside them
    buffer: BufferT  # experts; None for methods without
    # networks, each with a store of its own as buffer says; none: one store, of buffer.model
    teachers: tuple[str, ...] = ()
    init: InitConfig = InitConfig()
    codec: CodecT
    targets: TargetConfig = TargetConfig()
    objective: ObjectiveT
    outer: OuterConfig
    evaluation: EvalConfig
    # parts that were taken from other recipes, each as PART=RECIPE
    taken: tuple[str, ...] = field(default=(), metadata=LATE)
    # networks that take turns with `model` where the objective draws networks; --for sets all of
    # them, and that the set is evaluated on them
    more_models: tuple[str, ...] = field(default=(), metadata=LATE)
    # bytes of the set as it is shipped, labels apart, from which the codec chooses how many images
    # it holds: ipcN:f32 (N images per class of 4 bytes a value; N becomes ipc), ipcN:u8 (1 byte a
    # value) | a number of bytes of all classes together; nothing: as ipc says
    budget: str = field(default="", metadata=LATE)
    # network which the learning rates are for, and to which losses in the others are
    # scaled; --for sets it to the network of the recipe; None: the first network
    scaled_to: str | None = field(default=None, metadata=LATE)

    def __post_init__(self) -> None:
        if self.budget:
            count, unit = self.budget_parts
            if unit is not None:
                object.__setattr__(self, "ipc", count)
        require(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}.")
        self._check_models()
        self._check_teachers()
        self._check_labels()
        self._check_outer()

    def __repr__(self) -> str:
        """What it does with which images, in a line; `to_dict` has every value."""
        method, steps = type(self.objective).__name__, self.outer.steps
        images = "1 image" if self.ipc == 1 else f"{self.ipc} images"
        return (
            f"Recipe({self.name}: {method} of {self.data.name} in {self.model}, {images} per "
            f"class, {steps} steps)"
        )

    @property
    def budget_parts(self) -> tuple[int, Literal["f32", "u8"] | None]:
        """(images per class, what a value of them takes) of `budget`, or (bytes, None).

        Raises UserError for a budget of another form.
        """
        parts = re.fullmatch(r"(ipc)?([1-9][0-9]*)(?::(f32|u8))?", self.budget)
        if parts is None or (parts[1] is None) != (parts[3] is None):
            raise UserError(
                f"budget is ipcN:f32, ipcN:u8 or a number of bytes, such as ipc1:f32 or 122880, "
                f"got {self.budget!r}; correct it."
            )
        unit: Any = parts[3]
        return int(parts[2]), unit

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that take turns: `model` first, and mostly alone."""
        return (self.model, *self.more_models)

    @property
    def validated_on(self) -> tuple[str, ...]:
        """The networks on which a set is validated while it is distilled.

        They are those that it is made for: of several teachers `model` alone, unless the set is
        evaluated on all of them too.
        """
        several = len(self.teachers) > 1 and self.evaluation.models == self.teachers
        return self.teachers if several else self.networks

    def _check_models(self) -> None:
        require(
            not self.more_models or self.objective.draws_networks,
            f"The images cannot be made for {' and '.join(self.networks)} at once: "
            f"{self._why_one_network()}",
        )
        require(
            self.scaled_to is None or self.objective.draws_networks,
            f"scaled_to {self.scaled_to} says nothing here: {self._why_one_network()}; leave it "
            "out.",
        )
        require(
            len(set(self.networks)) == len(self.networks),
            f"{' '.join(self.networks)} name a network twice, and each has its turn anyway; name "
            "each once.",
        )

    def _why_one_network(self) -> str:
        """Why the objective has no turns for several networks, and what to do."""
        if self.objective.follows_experts:
            return (
                f"{self.name} follows the trajectories of experts, which are of one network; name "
                "one, or take a recipe that draws networks or has teachers."
            )
        if self.teachers:
            return f"{self.name} has teachers; name them with --for or teachers."
        return (
            f"{self.name} draws no networks of several kinds; name one, or take a recipe that does "
            "or has teachers."
        )

    def _check_teachers(self) -> None:
        require(
            not self.teachers or self.buffer is not None,
            (
                "teachers needs the settings of their training in buffer, which is empty; take it "
                "from a recipe."
            ),
        )
        require(
            not self.teachers or self.buffer is None or self.buffer.model is None,
            (
                "teachers and buffer.model both name the networks of the experts; leave "
                "buffer.model out."
            ),
        )
        require(
            not self.objective.reads_between_epochs
            or self.buffer is None
            or self.buffer.store == "convex",
            "This objective reads experts between whole epochs (objective.fractional), and only "
            "convex stores know these; set buffer.store convex, or objective.fractional False.",
        )
        require(
            self.evaluation.labels != "dynamic" or bool(self.teachers),
            (
                "evaluation.labels dynamic asks teachers about every batch, and teachers names "
                "none; name them, or set evaluation.labels own."
            ),
        )
        require(
            not self.teachers or not self.objective.follows_experts,
            (
                f"teachers names {len(self.teachers)} networks, and this objective follows the "
                "trajectories of one; leave teachers out."
            ),
        )
        require(
            len(set(self.teachers)) == len(self.teachers),
            (
                "teachers names a network twice; name each once, and raise buffer.num_experts for "
                "more."
            ),
        )

    def _check_labels(self) -> None:
        self._check_targets()
        learned = "logits" in self.outer.optim
        require(
            self.targets.kind == "class" or self.targets.relabel or self.objective.reads_labels,
            (
                "targets.kind logits labels the initial images, and this objective makes other "
                "ones of them; set targets.relabel True."
            ),
        )
        require(
            not self.objective.makes_labels or self.targets.relabel,
            "The objective trains on labels that it makes anew at each step (objective.labels "
            "target), and targets would ship others; "
            "set targets.kind logits, targets.experts all and targets.relabel True.",
        )
        require(
            not learned or self.targets.kind in ("logits", "centred"),
            (
                "outer.optim has a rate for 'logits', and targets.kind class stores none; take "
                "both from one recipe (--take targets=...)."
            ),
        )
        require(
            not (learned and self.targets.relabel),
            (
                "targets.relabel would replace the logits that outer.optim learns; set "
                "targets.relabel False, or take outer.optim from a recipe without."
            ),
        )

    def _check_targets(self) -> None:
        kind = self.targets.kind
        kinds = self.objective.target_kinds
        require(
            kind in kinds,
            (
                f"targets.kind {kind} is nothing that this objective can learn from; set "
                f"targets.kind {' or '.join(kinds)}, or take another objective."
            ),
        )
        for name in ("features", "weights"):
            require(
                name not in self.outer.optim or kind == name,
                (
                    f"outer.optim has a rate for {name!r}, and targets.kind {kind} stores none; "
                    "take both from one recipe (--take targets=...)."
                ),
            )
        require(
            kind != "features" or self.init.kind != "noise",
            "targets.kind features starts from what a trained network says of the images, and of "
            "noise (init.kind) it says nothing; set init.kind unlabelled, which reads no labels, "
            "or real.",
        )
        require(
            kind != "features" or self.buffer is not None,
            (
                "targets.kind features are those of a trained network, and buffer is empty; take "
                "it from a recipe (--take buffer=...)."
            ),
        )

    def _check_outer(self) -> None:
        require(
            self.outer.steps == 0 or self.objective.optimises,
            (
                f"outer.steps {self.outer.steps} has nothing to minimise with this objective; set "
                "outer.steps 0, or take another objective."
            ),
        )
        require(
            self.outer.step_after == "all" or not self.objective.parts_by_device,
            "outer.step_after each steps after every loss, and how many losses a step has is left "
            "to the device; "
            "set outer.step_after all, or objective.classes_at_once 1 where the objective has it.",
        )
        require(
            self.outer.evaluate_every == 0 or self.data.validation > 0,
            (
                "outer.evaluate_every needs a validation split, and data.validation is 0; set "
                "data.validation to 0.1 or outer.evaluate_every to 0."
            ),
        )


# what students of a set decide of a protocol that trains networks like them, unless it is changed
OF_STUDENTS = ("updates", "lr", "weight_decay", "augment")
# what they decide once and for all
OF_STUDENTS_ALONE = (
    "epochs",
    "batch",
    "optimiser",
    "momentum",
    "schedule",
    "stretch",
    "momentum_after",
    "decay_norms",
    "lr_drop",
)


def as_students(config: EvalConfig, training: StudentTraining | None) -> EvalConfig:
    """The protocol that trains networks as students of a set were trained, where it asks for that.

    `training` is what the set says of it; None where it says nothing.
    """
    if not config.as_students:
        return replace(config, students=None)
    if config.students is not None or training is None:
        return config
    return replace(
        config,
        students=training.steps,
        updates=config.updates or training.updates,
        batch=training.batch,
        lr=training.lr,
        weight_decay=training.weight_decay,
        augment=training.augment,
    )


def check_students_decide(config: EvalConfig, changed: Iterable[str]) -> None:
    """Raise UserError for changed fields of which students of the set decide alone."""
    if config.students is None:
        return
    for name in OF_STUDENTS_ALONE:
        require(
            name not in changed,
            f"evaluation.{name} says nothing here, because networks step as the students of the "
            "set did; set evaluation.updates, lr, weight_decay or augment, or "
            "evaluation.as_students False.",
        )


def for_networks(recipe: Recipe, networks: Sequence[str]) -> Recipe:
    """The recipe whose images are made for these networks, and evaluated on all of them.

        recipe = ddengine.for_networks(synth.find("dm/cifar10_ipc10"), ["resnet18-bn", "convnet"])

    An objective that draws networks draws them in turn, and its losses are scaled to gradients as
    long as in the network of the recipe, which its learning rates are for. Of a recipe with
    teachers they are the teachers, and every image sees all of them. Without names the recipe is as
    it is. No figure is published for one that changes. Raises UserError for several networks where
    the objective is of one.
    """
    if isinstance(networks, str):
        networks = [networks]
    if not networks:
        return recipe
    for name in networks:
        require(
            isinstance(name, str) and ":" not in name,
            f"Images cannot be made for {name}, as a run would not go on without it; name networks "
            "of the engine, torchvision or timm, and evaluate the set on yours.",
        )
    parts = _taught_by(recipe, networks) if recipe.teachers else _made_in(recipe, networks)
    if len(networks) > 1 and not recipe.evaluation.models:
        parts["evaluation"] = replace(recipe.evaluation, models=tuple(networks))
    other = replace(recipe, model=networks[0], **parts)
    if resolved(other) == resolved(recipe):
        return recipe
    note = f"{recipe.name} for {' and '.join(networks)}, for which nothing is published."
    return replace(other, published=None, note=note)


def _taught_by(recipe: Recipe, networks: Sequence[str]) -> dict[str, Any]:
    """What changes in a recipe with teachers where these networks are the teachers."""
    parts: dict[str, Any] = {"teachers": tuple(networks)}
    if len(networks) > 1:
        parts["objective"] = recipe.objective.for_all_teachers()
    return parts


def _made_in(recipe: Recipe, networks: Sequence[str]) -> dict[str, Any]:
    """What changes in a recipe without teachers where images are made in these networks."""
    first, *others = networks
    parts: dict[str, Any] = {"more_models": tuple(others)}
    if recipe.objective.draws_networks:
        measure = recipe.scaled_to or recipe.model
        parts["scaled_to"] = None if measure == first else measure
    return parts


# settings of images by which they are found and read
OF_FILES = ("root", "download", "fit", "background", "image_column", "label_column", "cache")
# what --take can take
PARTS = ("data", "buffer", "init", "codec", "targets", "objective", "outer", "evaluation")


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data without what cannot change a result, for digests."""
    data = deciding(to_dict(recipe))
    if data["buffer"] is not None:
        data["buffer"].pop("seed", None)  # a run says beside this which experts it follows
    return _with_names_of_digests(data, recipe.data.size)


def deciding(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that is JSON data without what cannot change a result: where files lie, and prose.

    Parts that are not there, as of other versions, stay away.
    """
    data = _without(stored, "cites", "published", "note", "taken")
    if "data" in data:  # of which the digest of the images says what came
        data["data"] = _without(data["data"], *OF_FILES)
    if data.get("buffer"):
        data["buffer"] = dict(data["buffer"])
        if "step" in data["buffer"]:
            data["buffer"]["step"] = _without(data["buffer"]["step"], "folder")  # of weights
    if "objective" in data:
        data["objective"] = without_choices(data["objective"])
    return data


def _without(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """JSON data without some fields."""
    return {name: value for name, value in content.items() if name not in names}


def without_choices(objective: dict[str, Any]) -> dict[str, Any]:
    """The JSON data of an objective, with `replay` where the way back is left to the machine.

    Both give one gradient, and `replay` was the default before there was a choice.
    """
    if objective.get("backprop") == "auto":
        return objective | {"backprop": "replay"}
    return objective


def _with_names_of_digests(data: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """A recipe as JSON data, its networks by what stands for them in digests."""

    def named(models: list[str]) -> list[str]:
        return [naming.in_digest(model, size) for model in models]

    data["model"] = naming.in_digest(data["model"], size)
    data["teachers"] = named(data["teachers"])
    if "more_models" in data:
        data["more_models"] = named(data["more_models"])
    if "scaled_to" in data:
        data["scaled_to"] = naming.in_digest(data["scaled_to"], size)
    data["evaluation"]["models"] = named(data["evaluation"]["models"])
    if data["buffer"] is not None and data["buffer"]["model"] is not None:
        data["buffer"]["model"] = naming.in_digest(data["buffer"]["model"], size)
    return data
