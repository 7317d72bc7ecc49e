"""Students: what they are trained to say, and how good they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ddengine.data import RealSet
from ddengine.data.realset import Subset
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.learning.training import Labels
from ddengine.recipe import EvalConfig
from ddengine.types import Batch, TrainingSet
from ddengine.uses.pruning.config import ALL, MIXING, RANDOM, PruningConfig
from ddengine.uses.pruning.context import Context
from ddengine.uses.pruning.teacher import Teacher

DISTILLED = "distilled"  # the rows of the user's sets


@dataclass(frozen=True)
class Student:
    """How a student is trained."""

    loss: str  # ce, or one of LOSSES
    alpha: float | None  # share of distillation; None of a loss that has none
    teacher: str | None = None  # a network; None: it has none

    @property
    def key(self) -> str:
        """Names what is remembered."""
        return f"{self.loss}/{self.alpha!r}/{self.teacher}"

    @property
    def words(self) -> str:
        """Names it for a person."""
        alpha = "" if self.alpha is None else f" {self.alpha:g}"
        teacher = "" if self.teacher is None else f" from {self.teacher}"
        return f"{self.loss}{alpha}{teacher}"


def students_of(
    config: PruningConfig, teachers: Sequence[str], selection: str
) -> tuple[Student, ...]:
    """The students of a selection; `selection` may be ALL or DISTILLED."""
    is_plain = selection in (RANDOM, ALL, DISTILLED)
    alphas = config.alphas if is_plain else config.other_alphas
    made = []
    if 0 in alphas:
        made.append(Student("ce", 0.0))
    for teacher in teachers if is_plain else teachers[:1]:
        for loss in config.losses:
            made += _of_teacher(loss, teacher, alphas)
    if "uskd" in config.losses:
        made.append(Student("uskd", None))
    if selection == DISTILLED:  # reshaping asks how logits of all images spread
        return tuple(student for student in made if student.loss != "reshaped")
    return tuple(made)


def _of_teacher(loss: str, teacher: str, alphas: Sequence[float]) -> list[Student]:
    """The students of a loss that have a teacher."""
    if loss in MIXING:
        return [Student(loss, alpha, teacher) for alpha in alphas if alpha > 0]
    if loss == "nkd":
        return [Student(loss, None, teacher)]
    return []


class Taught:
    """Some training images with logits that a teacher gave them once."""

    def __init__(self, real: RealSet, index: Tensor, logits: Tensor):
        """Index (S,) of the images, and logits (N, K) of all training images."""
        self.real = real
        self.index = index
        self.logits = logits

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,) of the kept images."""
        chosen = self.index[index]
        batch = self.real.batch(chosen)
        targets = self.logits.index_select(0, chosen.to(self.logits.device))
        return Batch(batch.images, targets, batch.targets)


def distilling(
    alpha: float, temperature: float, base: EvalConfig = EvalConfig(protocol="distilled")
) -> EvalConfig:
    """The protocol `base` with the loss (1 - alpha) CE + alpha T^2 KL(teacher || student).

    Hinton et al. (arXiv 1503.02531); as *Distilling the Knowledge in Data Pruning* weighs it.
    """
    return replace(
        base,
        loss="kl",
        temperature=temperature,
        squared=True,
        soft_weight=alpha,
        hard_weight=1 - alpha,
        mix_labels="probabilities",
    )


def train(
    context: Context,
    student: Student,
    on: TrainingSet,
    teacher: Teacher | None,
    lr: float,
    seed: int,
) -> nn.Module:
    """A student of the recipe's network, trained on a set for as many updates as all have.

    `on` has the targets that `with_targets` gave it.
    """
    protocol = _protocol(context, student)
    labels = labels_of(context, student, on)
    networks = training.train_networks(
        context.builder(context.recipe.model),
        [on],
        [seed],
        adapted(protocol, context.recipe.model),
        lr,
        context.device,
        steps=context.config.steps,
        precision=context.precision,
        teachers=() if teacher is None else [teacher.network],
        labels=labels,
    )
    return networks[0]


def with_targets(
    context: Context, student: Student, index: Tensor, teacher: Teacher | None
) -> TrainingSet:
    """The training images at `index` (S,) with what a student is to say of them.

    A teacher is asked once where images are neither augmented nor mixed, which gives the numbers
    that asking it at every update does; reshaped logits are those of images as they are.
    """
    real = context.data.train
    if teacher is None:
        return Subset(real, index)
    if student.loss == "reshaped":
        return Taught(real, index, teacher.reshaped_logits)
    return Taught(real, index, teacher.logits)


def labels_of(context: Context, student: Student, on: TrainingSet) -> Labels:
    """Which labels a student is trained with."""
    if student.teacher is None:
        return "own" if student.loss == "ce" else "hard"
    protocol = context.protocol
    as_they_are = not (protocol.augment.any or protocol.cutmix or protocol.mixup)
    if student.loss == "reshaped" or (as_they_are and isinstance(on, Taught)):
        return "own"
    return "dynamic"


def _protocol(context: Context, student: Student) -> EvalConfig:
    """How a student is trained."""
    base, config = context.protocol, context.config
    if student.loss in MIXING:
        assert student.alpha is not None
        return distilling(student.alpha, config.temperature, base)
    if student.loss == "nkd":
        return replace(base, loss="nkd", temperature=1.0)
    if student.loss == "uskd":
        return replace(base, loss="uskd")
    return base


def tested(context: Context, network: nn.Module) -> float | None:
    """Test accuracy, a fraction; None of a network that diverged."""
    assert context.data.test is not None
    return training.accuracy(network, context.data.test, context.precision)
