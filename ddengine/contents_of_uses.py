"""What scores.json, ranking.json, privacy.json and the files of the uses hold, field by field.

The uses are transfer, pruned data, bought labels and continual learning. What their tables and
pictures are made of is required; `CHECKS` compares what must fit each other, such as a row and the
rounds of which it has a column.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Required, TypedDict

from ddengine.common_facts import Common
from ddengine.system.typed import Count, Fraction, Number, Positive
from ddengine.types import Json

Ends = tuple[Number, Number] | None  # of a 95 % interval


class Statistics(TypedDict, total=False):
    """A mean over networks or repeats; None where all diverged."""

    mean: Required[Number | None]
    std: Required[Positive | None]
    ci95: Required[Ends]
    diverged: Count
    values: list[Number | None]


class Difference(TypedDict, total=False):
    """A paired difference of two rows."""

    difference: Required[Number | None]
    difference_ci95: Required[Ends]
    p: Fraction | None
    paired: Required[Count]


# scores.json, ranking.json, privacy.json


class Score(TypedDict, total=False):
    """The mean of a score over networks."""

    mean: Required[Number | None]
    std: Positive | None
    ci95: Ends
    n: Count


class ScoresOfModel(TypedDict, total=False):
    """The scores of a set on a network."""

    model: Required[str]
    diverged: Count
    scores: Required[Mapping[str, Score | Number | None]]  # a number alone: as once written


class ScoresFile(Common, total=False):
    """scores.json."""

    scores: Required[list[ScoresOfModel]]
    interval: str
    seconds: Positive


class RankedBy(TypedDict, total=False):
    """How well a set orders networks."""

    set: Required[str]
    kendall: Required[Number | None]
    kendall_ci95: Ends
    spearman: Required[Number | None]
    spearman_ci95: Ends


class RankingFile(Common, total=False):
    """ranking.json."""

    networks: list[str]
    sets: Required[list[RankedBy]]
    note: str


class Neighbours(TypedDict, total=False):
    """The nearest real images of a set, or of the control."""

    images: Required[Count]
    near_copies: Count
    much_nearer: Required[Count]
    median_train: Required[Positive]
    median_held_out: Required[Positive]
    nearest_in_train: Required[Fraction]
    nearest_in_train_by_chance: Required[Fraction]
    balanced_nearest_in_train: Required[Fraction]
    balanced_by_chance: Required[Fraction]
    balanced_ci95: Required[tuple[Number, Number]]


class NearestImages(TypedDict, total=False):
    """The nearest images in a space."""

    distilled: Required[Neighbours]
    control: Neighbours


class Area(TypedDict, total=False):
    """How well members are told from others."""

    auc: Required[Fraction]
    ci95: Required[tuple[Number, Number]]
    tpr_at_1_fpr: Required[Fraction]


class Attack(Area, total=False):
    """A way of membership inference, and the same with control images."""

    score: Required[str]
    control: Required[Area | None]


class PrivacyFile(Common, total=False):
    """privacy.json."""

    images: Required[Count]  # type: ignore[misc]  # of the set, where other files have a digest
    train: Required[Count]
    held_out: Required[Count]
    near_copy_rms: Required[Number]
    neighbours: Required[Mapping[str, NearestImages]]
    membership: Required[list[Attack]]
    note: Required[str]


# transfer.json


class TransferRow(TypedDict, total=False):
    """How well networks that start so do on a dataset."""

    data: Required[str]
    shots: Required[Count | Literal["all"]]
    images: Required[Count]
    way: Required[str]
    model: Required[str]
    set: Required[str]
    accuracy_mean: Required[Fraction | None]
    accuracy_std: Required[Positive | None]
    ci95: Ends
    n: Required[Count]
    diverged: Required[Count]
    difference: Number | None
    difference_ci95: Ends
    p: Fraction | None


class OfStart(TypedDict, total=False):
    """What networks start from."""

    said: Required[str]
    bytes: Count


class SplitSizes(TypedDict, total=False):
    """Images of each split."""

    train: Count
    validation: Required[Count | None]
    test: Count | None


class OfDataset(TypedDict, total=False):
    """A dataset that a transfer was tested on."""

    stored_shape: Required[tuple[Count, Count, Count] | None]
    shape: Required[tuple[Count, Count, Count]]
    channels: Required[Count]
    num_images: Required[SplitSizes]


class TransferFile(Common, total=False):
    """transfer.json."""

    identity: str
    interval: str
    models: Required[list[str]]
    starts: Required[Mapping[str, OfStart]]
    missing: Required[list[str]]
    warnings: list[str]
    datasets: Required[Mapping[str, OfDataset]]
    rows: Required[list[TransferRow]]
    seconds: Positive


# prune.json


class PruneSettings(TypedDict, total=False):
    """How long students are trained, and how often."""

    steps: Required[Count]
    repeats: Required[Count]


class PruneRow(TypedDict, total=False):
    """How well students of a selection do."""

    selection: Required[str]
    fraction: Required[Fraction]
    images: Required[Count]
    bytes: Required[Count]
    loss: Required[str]
    alpha: Required[Fraction | None]
    teacher: Required[str | None]
    lr: Required[Positive]
    accuracy_mean: Required[Fraction | None]
    accuracy_std: Required[Positive | None]
    ci95: Required[Ends]
    diverged: Required[Count]


class OfTeacher(TypedDict, total=False):
    """How well the teacher of a repeat does."""

    teacher: Required[str]
    accuracy: Required[Fraction | None]


class BestShare(TypedDict, total=False):
    """The best share of distillation where a fraction is kept."""

    size: Required[str]
    fraction: Required[Fraction]
    best: Required[Fraction]
    level: Required[list[Fraction]]


class OfSelection(Difference, total=False):
    """Random images less others."""

    size: Required[str]
    fraction: Required[Fraction]
    selection: Required[str]


class OfOtherTeacher(Difference, total=False):
    """Another teacher less the first one."""

    size: Required[str]
    fraction: Required[Fraction]
    teacher: Required[str]


class Findings(TypedDict, total=False):
    """What is compared for each claim."""

    alphas: Required[list[BestShare]]
    selections: Required[list[OfSelection]]
    teachers: Required[list[OfOtherTeacher]]


class PruneFile(Common, total=False):
    """prune.json."""

    identity: str
    config: Required[PruneSettings]
    interval: str
    model: Required[str]
    data: Required[str]
    images: Required[Count]  # type: ignore[misc]  # of the training split
    teachers: Required[list[OfTeacher]]
    rows: Required[list[PruneRow]]
    findings: Required[Findings]


# labels.json


class LabelsSettings(TypedDict, total=False):
    """How many labels are bought, and how often."""

    rounds: Required[Count]
    points: Required[Count]
    repeats: Required[Count]


class RoundStatistics(Statistics, total=False):
    """Accuracies after a round."""

    diverged: Required[Count]  # type: ignore[misc]  # which is told of


class LabelsRow(TypedDict, total=False):
    """How well networks do on labels that a rule bought."""

    rule: Required[str]
    answers: Required[str]
    bought: Required[Count]
    wrong_bought: Required[list[Fraction]]
    rounds: Required[list[RoundStatistics]]


class RuleDifference(Difference, total=False):
    """Rad less another rule."""

    answers: Required[str]
    rule: Required[str]


class LabelsFile(Common, total=False):
    """labels.json."""

    identity: str
    config: Required[LabelsSettings]
    interval: str
    model: Required[str]
    points: Required[Count]
    known: Required[Count]
    rows: Required[list[LabelsRow]]
    differences: Required[list[RuleDifference]]


# continual.json


class ContinualSettings(TypedDict, total=False):
    """What memories hold, and how often classes come in another order."""

    stages: Required[Count]
    repeats: Required[Count]
    budget: Required[Count]
    strategy: Required[str]


class Memory(TypedDict, total=False):
    """How well networks do that are trained with a memory."""

    images_per_class: Required[Count | None]
    bytes: Required[Count]
    accuracy: Required[list[Statistics]]
    final: Required[Statistics]
    forgetting: Required[Statistics]


class ContinualFile(Common, total=False):
    """continual.json."""

    config: Required[ContinualSettings]
    interval: str
    model: Required[str]
    classes_seen: Required[list[Count]]
    memories: Required[Mapping[str, Memory]]


KINDS: Mapping[str, Any] = {
    "scores.json": ScoresFile,
    "ranking.json": RankingFile,
    "privacy.json": PrivacyFile,
    "transfer.json": TransferFile,
    "prune.json": PruneFile,
    "labels.json": LabelsFile,
    "continual.json": ContinualFile,
}
# whose commands read what is there, and make nothing anew without --restart
CONTINUED = ("transfer.json", "prune.json", "labels.json", "continual.json")


# What must fit each other.


def _check_transfer(content: Json) -> None:
    _check_some(content, "models", "rows")
    for number, row in enumerate(content["rows"]):
        if row["model"] not in content["models"]:
            raise ValueError(f"rows[{number}].model is none of models")


def _check_prune(content: Json) -> None:
    _check_some(content, "teachers", "rows")
    for number, row in enumerate(content["rows"]):
        if row["loss"] in ("ce", "kd") and row["alpha"] is None:
            raise ValueError(f"rows[{number}] lacks alpha, the share of distillation in its loss")


def _check_labels(content: Json) -> None:
    _check_some(content, "rows")
    rounds = content["config"]["rounds"]
    for number, row in enumerate(content["rows"]):
        _check_some(row, "wrong_bought")
        if len(row["rounds"]) != rounds + 1:  # the first is before any label is bought
            num = len(row["rounds"])
            raise ValueError(f"rows[{number}].rounds are {num}, and config.rounds {rounds}")


def _check_continual(content: Json) -> None:
    _check_some(content, "classes_seen", "memories")
    stages = len(content["classes_seen"])
    for name, memory in content["memories"].items():
        num = len(memory["accuracy"])
        if num != stages:
            raise ValueError(f"memories.{name}.accuracy are {num}, and classes_seen {stages}")


def _check_some(content: Json, *names: str) -> None:
    """Raise ValueError for lists and objects of nothing."""
    for name in names:
        if not content[name]:
            raise ValueError(f"{name} holds nothing")


CHECKS: Mapping[Any, Callable[[Json], None]] = {
    TransferFile: _check_transfer,
    PruneFile: _check_prune,
    LabelsFile: _check_labels,
    ContinualFile: _check_continual,
}
