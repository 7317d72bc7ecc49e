"""What the JSON files of runs, sets, stores and evaluations hold, and the one place they are read.

A file may come from a stranger: it is read within the limits of `system/parsing.py`, and what it
says of a field below must be of the type that stands there, or the file is refused in a sentence
that names the field. Fields that are not named here are for people, or for parts of the program
that read them themselves. Files of before lack some, so few are required.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

from ddengine import contents_of_uses, naming
from ddengine.common_facts import Common
from ddengine.recipe import (
    DataConfig,
    EvalConfig,
    InitConfig,
    OuterConfig,
    Published,
    StudentTraining,
    TargetConfig,
)
from ddengine.system import files, log, typed
from ddengine.system.configs import from_dict
from ddengine.system.errors import UserError
from ddengine.system.parsing import content_of, parsed
from ddengine.system.runtime import Precision
from ddengine.system.typed import Between, Count, Fraction, Number, Positive
from ddengine.types import Facts, Json, Row, TargetKind

Threads = Annotated[int, Between(1, 2**10)]
Together = Annotated[int, Between(1, 2**16)]


class OfKind(TypedDict, total=False):
    """A part that comes in kinds; its other fields are for who knows the kind."""

    type: Required[str]


class StoredBuffer(TypedDict, total=False):
    """A recipe's settings of experts."""

    step: OfKind
    model: str | None
    num_experts: Count
    epochs: Count
    batch: Count
    seed: int


class StoredRecipe(TypedDict, total=False):
    """A recipe; that of an imported or merged set lacks parts."""

    name: str
    cites: list[str]
    published: Published | None
    note: str
    data: DataConfig
    model: str
    ipc: Count
    buffer: StoredBuffer | None
    teachers: list[str]
    init: InitConfig
    codec: OfKind
    targets: TargetConfig
    objective: OfKind
    outer: OuterConfig
    evaluation: EvalConfig
    taken: list[str]
    more_models: list[str]


class Store(TypedDict, total=False):
    """What a set says of the experts that it was made with."""

    fingerprint: str | None
    seed: int | None


class UsedExperts(Store, total=False):
    """Of one store, or of several."""

    stores: list[Store]


class Distillation(TypedDict, total=False):
    """What it took to make a set."""

    seconds: Positive
    wall_seconds: Positive
    initial_seconds: Positive
    validation_accuracy: Fraction | None
    peak_memory_bytes: Positive
    updates_skipped_not_finite: Count
    updates_skipped_max_loss: Count
    learned_lr_held: Count
    log_digest: str | None


class Selected(TypedDict, total=False):
    """How real images were chosen."""

    kind: Required[str]


class Imported(TypedDict, total=False):
    """Which files of another program a set came from."""

    files: list[str]


class TargetNetwork(TypedDict, total=False):
    """The network whose features a set has."""

    model: str


class MetaFile(Common, total=False):
    """meta.json of a set."""

    class_names: list[str]
    codec: OfKind
    target_kind: TargetKind
    label_of: Literal["stored", "decoded"]
    space: Literal["pixel", "model"]
    labels_digest: str | None
    bytes: Mapping[str, Count]
    images_per_class: Positive
    digests: Mapping[str, str]
    set_digest: str
    recipe: StoredRecipe
    experts: UsedExperts | None
    raw_bytes: Count
    dataset_bytes: Count
    data_notes: list[str]
    source: str | None
    bibtex: str | None
    distillation: Distillation
    selected: Selected
    imported: Imported
    merged: list[str]
    target_network: TargetNetwork | None
    students: StudentTraining | None
    protocol: Mapping[str, Any] | None


class RecipeFile(Common, total=False):
    """recipe.json of a run."""

    recipe: StoredRecipe
    resolved: str
    experts: Any  # the fingerprint of a store, or several
    data_root: str | None


class Network(TypedDict, total=False):
    """A network of a row."""

    seed: int
    draw: Count
    accuracy: Fraction | None


class Cut(TypedDict, total=False):
    """Why networks had fewer updates than usual."""

    updates: Count
    of: Count
    by: str


class EvaluationRow(TypedDict, total=False):
    """How well networks of a kind trained on a set."""

    set: Required[str]
    model: Required[str]
    images: Count
    bytes: Count
    ledger: Mapping[str, Count]
    accuracy_mean: Required[Fraction | None]
    accuracy_std: Positive | None
    ci95: tuple[Number, Number] | None
    n: Count
    diverged: Count
    balanced_accuracy_mean: Fraction | None
    balanced_accuracy_std: Positive | None
    per_class: Mapping[str, Fraction | None]
    optimiser: str
    lr: Positive
    steps: Count
    examples_seen: Count
    training_flops: Positive
    seconds: Positive
    accuracies: list[Network]
    cut: Cut | None
    dynamic_labels: Mapping[str, Count]
    labels_counted: str


class Counts(TypedDict, total=False):
    """Images of each split."""

    train: Count
    validation: Count | None
    test: Count | None


class EvaluationFile(Common, total=False):
    """evaluation.json."""

    protocol: EvalConfig
    rows: list[EvaluationRow]
    raw_bytes: Count
    dataset_bytes: Count
    interval: str
    num_images: Counts
    test_images_per_class: Mapping[str, Count]
    set_digest: str
    seconds: Positive
    judged_by: str | None
    brought: Mapping[str, str | None]
    quick_seconds: Positive | None
    full_seconds: Positive | None
    own_test: str | None


class Identity(TypedDict, total=False):
    """Everything that decides the content of a store."""

    dataset: str
    images: str
    zca: bool
    model: str
    seed: int | None
    precision: Precision | None
    buffer: StoredBuffer
    imported: str


class ManifestFile(TypedDict, total=False):
    """manifest.json of a store."""

    format: Count
    fingerprint: str
    identity: Identity
    model: str
    epochs: list[Count]
    shapes: list[list[Count]]
    digests: Mapping[str, str]
    threads: Threads  # on which each expert is trained, where the store was begun on a CPU
    together: Together  # experts that are one computation, where these are several


class ChoicesFile(TypedDict, total=False):
    """choices.json: what a run left to the machine, for each of its objectives."""

    objectives: Required[list[Mapping[str, Count | str | bool | None]]]
    scales: list[Positive]  # of the losses in networks that take turns
    compile: bool  # whether the inner training is compiled, where that was left to the machine


class SweepFile(TypedDict, total=False):
    """sweep.json: the runs of a sweep by the names of their folders."""

    runs: Mapping[str, Any]
    of: Mapping[str, Any]


class ListingFile(TypedDict, total=False):
    """.digests.json: those of files that cannot say their own, by name."""

    files: Required[Mapping[str, str]]


class Event(TypedDict, total=False):
    """A line of metrics.jsonl."""

    step: Count
    loss: Number | None
    validation_accuracy: Fraction | None


class Metrics(TypedDict, total=False):
    """What the metadata of a shard say of the training of its expert."""

    seconds: Positive
    validation_accuracy: list[Fraction | None]
    train_loss: list[Number | None]


# What a file holds that has this name.
KINDS: Mapping[str, Any] = {
    "meta.json": MetaFile,
    "recipe.json": RecipeFile,
    "evaluation.json": EvaluationFile,
    "manifest.json": ManifestFile,
    "choices.json": ChoicesFile,
    "sweep.json": SweepFile,
    ".digests.json": ListingFile,
    **contents_of_uses.KINDS,
}
OF_A_USE = ".recipe.json"  # ends the name of the recipe of a use of a dataset
# what to do about one that holds something else
RESTORE = "restore it or run the command that wrote it again"
ADVICE = {
    "evaluation.json": "evaluate again with --restart",
    "manifest.json": "restore it, or make the store again with --restart",
    **dict.fromkeys(contents_of_uses.CONTINUED, f"{RESTORE} with --restart"),
}
# parts of a recipe whose values are checked too, as they are on a command line
PARTS = {
    "data": DataConfig,
    "init": InitConfig,
    "targets": TargetConfig,
    "outer": OuterConfig,
    "evaluation": EvalConfig,
}


def read_json(path: Path, *keys: str) -> Any:
    """The content of a JSON file of a run, a set or an evaluation, with today's names of networks.

    Raises UserError when it is missing or damaged, is not an object with these keys, or holds in a
    field something else than belongs there. Says it where one that was written with a digest has
    none any more.
    """
    content, says_digest = files.read_sealed(path, *keys)
    if not says_digest and isinstance(content, dict) and "set_digest" in content:
        log.say_once(f"warning: {path} says no digest, so damage to it would not be noticed")
    return naming.as_now(checked(path, content))


def checked(path: Path, content: Any) -> Any:
    """The content of the JSON file at `path`, as it is.

    Raises UserError where a field holds something else than belongs there.
    """
    kind = RecipeFile if path.name.endswith(OF_A_USE) else KINDS.get(path.name)
    if kind is None:
        return content
    try:
        typed.check(content, kind)
        _check_values(kind, content)
    except ValueError as error:
        advice = ADVICE.get(path.name, RESTORE)
        said = str(error).rstrip(".")
        raise UserError(f"{path} cannot be read ({said}); {advice}.") from None
    return content


def _check_values(kind: Any, content: Json) -> None:
    """Raise ValueError, such as a UserError, for values that such a file cannot have."""
    if kind is EvaluationFile:
        _check_config(EvalConfig, content.get("protocol"))
        for number, row in enumerate(content.get("rows", ())):
            _check_row(f"rows[{number}]", row)
    if kind in contents_of_uses.CHECKS:
        contents_of_uses.CHECKS[kind](content)
    if kind is MetaFile:
        _check_config(StudentTraining, content.get("students"))
    if kind in (MetaFile, RecipeFile):
        _check_recipe(content.get("recipe", {}))


def _check_recipe(recipe: Facts) -> None:
    """Raise ValueError for values that no recipe can have, and for networks that are code."""
    for network in (recipe.get("model", ""), *_listed(recipe, "teachers", "more_models")):
        if ".py" in network:
            raise ValueError(f"it names {typed.shown(network)}, a file of code, as its network")
    for name, part in PARTS.items():
        _check_config(part, recipe.get(name))


def _listed(recipe: Facts, *names: str) -> list[str]:
    """What several lists hold."""
    return [value for name in names for value in recipe.get(name, ())]


def _check_config(part: Any, values: Facts | None) -> None:
    """Raise UserError for values that a dataclass refuses; None, and older versions', are fine."""
    if values is not None and _needed(part) <= values.keys():
        from_dict(part, values)


def _check_row(name: str, row: Row) -> None:
    """Raise ValueError for numbers of a row that do not fit each other."""
    if row["accuracy_mean"] is None and row.get("ci95") is not None:
        raise ValueError(f"{name}.ci95 is the interval of no accuracy_mean")
    low, high = row.get("ci95") or (0, 1)
    if low > high:
        raise ValueError(f"{name}.ci95 ends at {high}, below {low}, at which it begins")
    networks, counted = row.get("accuracies"), row.get("n", 0) + row.get("diverged", 0)
    if networks is not None and "n" in row and len(networks) != counted:
        raise ValueError(f"{name}.accuracies are {len(networks)}, and n and diverged {counted}")


def _needed(part: Any) -> set[str]:
    """The fields of a dataclass without a default; other versions may have had other ones."""
    fields = dataclasses.fields(part)
    missing = dataclasses.MISSING
    return {f.name for f in fields if f.default is missing and f.default_factory is missing}


def events(path: Path) -> list[Json]:
    """The events of a metrics.jsonl that have a step, without lines that cannot be read.

    Such as the last one, that a kill cut off. None of what is no file.
    """
    try:
        content = content_of(path)
    except (OSError, ValueError):
        return []
    kept = []
    for line in filter(bytes.strip, content.splitlines()):
        try:
            event = parsed(line)
            typed.check(event, Event)
        except ValueError:
            continue
        if "step" in event:
            kept.append(event)
    return kept


def said_in_metadata(path: Path, metadata: Mapping[str, str], key: str, kind: Any) -> Any:
    """What the metadata of a safetensors file say as JSON under `key`, checked.

    Raises UserError where they do not, or something else than belongs there.
    """
    try:
        if key not in metadata:
            raise ValueError(f"its metadata lack {key}")
        content = parsed(metadata[key])
        typed.check(content, kind, key)
        return content
    except UserError:
        raise
    except ValueError as error:
        raise files.damaged(path, str(error)) from None
