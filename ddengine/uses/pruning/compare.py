"""All rows of a comparison: every selection at every size, with every student."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ddengine.evaluation.decoded import freeze
from ddengine.evaluation.evaluate import set_digest
from ddengine.evaluation.intervals import NAME
from ddengine.evaluation.rates import candidates
from ddengine.recipe import resolved
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.types import Json, TrainingSet
from ddengine.uses.pieces import Pieces
from ddengine.uses.pruning.config import ALL, cites
from ddengine.uses.pruning.context import Context
from ddengine.uses.pruning.findings import findings
from ddengine.uses.pruning.keep import Kept, Size, kept_of, sizes_of
from ddengine.uses.pruning.looking import scores_of
from ddengine.uses.pruning.rates import chosen_rate
from ddengine.uses.pruning.students import (
    DISTILLED,
    Student,
    students_of,
    tested,
    train,
    with_targets,
)
from ddengine.uses.pruning.summary import row_of
from ddengine.uses.pruning.teacher import Teacher, teacher_of

# form of what is remembered of an interrupted command; what an older program left is made again
MEMO = 1
CLASS_BYTES = 8  # of the class of an image, as everywhere in the engine
Keep = Callable[[Kept], None]  # writes what is kept for the user


@dataclass(frozen=True)
class Beside:
    """A distilled set that stands beside selections of as many bytes."""

    name: str
    set: SyntheticSet


@dataclass(frozen=True)
class Row:
    """What students are trained on, in every repeat, and how."""

    selection: str
    size: Size
    student: Student
    beside: Beside | None = None  # the set of a row DISTILLED

    @property
    def key(self) -> str:
        """Names what is remembered."""
        return f"{self.selection}/{self.size.name}/{self.student.key}"

    @property
    def label(self) -> str:
        """Names the row for a person."""
        return f"{self.selection}, {self.size.name}, {self.student.words}"


def identity(context: Context, sets: Sequence[Beside]) -> str:
    """Identifies everything that decides the numbers."""
    facts: Json = {
        "form": MEMO,
        "recipe": resolved(context.recipe),
        "config": to_dict(replace(context.config, write_sets=False)),
        "seed": context.seed,
        "precision": context.precision,
        "images": context.data.train.digest,
        "preprocess": files.tensor_digest(context.data.train.preprocess.tensors()),
        "sets": [[beside.name, set_digest(beside.set)] for beside in sets],
    }
    return digest(facts)


def run(context: Context, sets: Sequence[Beside], memo_path: Path, keep: Keep) -> Json:
    """Choose, train and test everything; returns the content of prune.json.

    Finished trainings are remembered in the file `memo_path`, networks and scores in the folder of
    the context; the caller removes both once the content is written. `keep` gets every selection
    as soon as it is made.
    """
    begin = time.perf_counter()
    context = replace(context, identity=identity(context, sets), rates=_rates(context))
    memo = Memo(memo_path, context.identity)
    sizes = [*sizes_of(context), *_sizes_of_sets(context, sets)]
    rows = list(_rows(context, sizes, sets))
    # wherever it is resumed, computations are on as many threads as where it began
    threads = memo("threads", torch.get_num_threads)
    with (
        log.progress("prune", _num_pieces(context, rows, sizes)) as bar,
        runtime.on_threads(threads),
    ):
        context = replace(context, pieces=Pieces(memo, bar.advance))
        teachers, results = _all_repeats(context, rows, sizes, keep)
    seconds = round(memo.seconds_before + time.perf_counter() - begin, 2)
    made = [row_of(context, row.selection, row.size, row.student, results[row.key]) for row in rows]
    return _content(context, sets, teachers, made) | {"seconds": seconds, "threads": threads}


def _rates(context: Context) -> tuple[float, ...]:
    """The learning rates that are tried for every row; the only one where none is chosen."""
    protocol = context.protocol
    if context.data.validation is None:
        log.say(f"no validation split: all networks are trained at rate {protocol.lr:g}")
    elif protocol.rate == "validation":
        return tuple(candidates(protocol, None))
    return (protocol.lr,)


def image_bytes(context: Context) -> int:
    """The bytes of a real image and its class."""
    channels, height, width = context.data.image_shape
    return channels * height * width + CLASS_BYTES


def _sizes_of_sets(context: Context, sets: Sequence[Beside]) -> list[Size]:
    """How many real images of each class have the bytes of each set.

    Raises UserError for a set of fewer bytes than an image of each class.
    """
    data = context.data
    sizes = []
    for beside in sets:
        num = beside.set.nbytes // (data.num_classes * image_bytes(context))
        if num < 1:
            raise UserError(
                f"The set {beside.name} has {beside.set.nbytes} bytes, fewer than one image of "
                f"each of {data.num_classes} classes, so no selection is of as many; leave it out."
            )
        fraction = num * data.num_classes / len(data.train)
        sizes.append(Size(f"bytes of {beside.name}", num, min(1.0, fraction)))
    return sizes


def _rows(context: Context, sizes: Sequence[Size], sets: Sequence[Beside]) -> Iterator[Row]:
    """All rows, by size, and there by selection."""
    config, data = context.config, context.data
    of_sets = {f"bytes of {beside.name}": beside for beside in sets}
    for size in sizes:
        if size.name in of_sets:
            for student in students_of(config, context.teachers, DISTILLED):
                yield Row(DISTILLED, size, student, of_sets[size.name])
        for selection in config.selections:
            for student in students_of(config, context.teachers, selection):
                yield Row(selection, size, student)
    if 1 in config.fractions:
        everything = Size("1", max(map(len, data.train.members)), 1.0)
        for student in students_of(config, context.teachers, ALL):
            yield Row(ALL, everything, student)


def _num_pieces(context: Context, rows: Sequence[Row], sizes: Sequence[Size]) -> int:
    """How many pieces of work there are: trainings, tried rates, choices, scores."""
    config = context.config
    tried = len(context.rates) if len(context.rates) > 1 else 0
    trained = len(rows) + len(context.teachers)
    chosen = 0
    if sizes:
        chosen = len(config.selections) + int(config.looks)
    return tried * trained + config.repeats * (trained + chosen)


# {"accuracy", "lr", "images", "bytes", "seconds"} by repeat, under the key of a row
Results = Mapping[str, list[Json]]


def _all_repeats(
    context: Context, rows: Sequence[Row], sizes: Sequence[Size], keep: Keep
) -> tuple[list[Json], Results]:
    """(what the teachers came to, the results of each row)."""
    teachers: list[Json] = []
    results: dict[str, list[Json]] = {row.key: [] for row in rows}
    rates: dict[str, float] = {}
    for repeat in range(context.config.repeats):
        taught = {}
        for name in context.teachers:
            taught[name], facts = teacher_of(context, name, repeat)
            teachers.append({"teacher": name, "repeat": repeat} | facts)
        kept = _chosen(context, sizes, repeat, taught[context.teachers[0]])
        for one in kept.values():
            keep(one)
        for row in rows:
            teacher = None if row.student.teacher is None else taught[row.student.teacher]
            on = _on(context, row, kept, teacher)
            if row.key not in rates:  # chosen in the first repeat, for all
                rates[row.key] = _rate(context, row, on, teacher)
            results[row.key].append(_result(context, row, on, teacher, rates[row.key], repeat))
    return teachers, results


def _chosen(
    context: Context, sizes: Sequence[Size], repeat: int, teacher: Teacher
) -> dict[tuple[str, str], Kept]:
    """What is kept in a repeat, by selection and size."""
    if not sizes:
        return {}
    if context.config.looks:
        scores_of(context, repeat)
    kept = {}
    for selection in context.config.selections:
        for one in kept_of(context, selection, sizes, repeat, teacher):
            kept[selection, one.size.name] = one
    return kept


@dataclass(frozen=True)
class On:
    """What a student is trained on, and what that takes."""

    examples: TrainingSet
    bytes: int


def _on(
    context: Context,
    row: Row,
    kept: Mapping[tuple[str, str], Kept],
    teacher: Teacher | None,
) -> On:
    """The examples of a row in a repeat."""
    if row.beside is not None:
        return On(freeze(row.beside.set, context.device), row.beside.set.nbytes)
    if row.selection == ALL:
        index = torch.arange(len(context.data.train))
    else:
        index = kept[row.selection, row.size.name].index
    examples = with_targets(context, row.student, index, teacher)
    return On(examples, len(index) * image_bytes(context))


def _rate(context: Context, row: Row, on: On, teacher: Teacher | None) -> float:
    def searched(lr: float, seed: int) -> nn.Module:
        return train(context, row.student, on.examples, teacher, lr, seed)

    return chosen_rate(context, row.key, row.label, searched)


def _result(
    context: Context, row: Row, on: On, teacher: Teacher | None, lr: float, repeat: int
) -> Json:
    """How good the student of a row is in a repeat, whose students all have one seed."""
    seed = context.seed_of("student", repeat)

    def compute() -> Json:
        network = train(context, row.student, on.examples, teacher, lr, seed)
        return {"accuracy": tested(context, network)}

    label = f"{row.label}, repeat {repeat + 1}"
    result = context.pieces.remember(f"final/{row.key}/{repeat}", label, compute)
    return result | {"lr": lr, "images": len(on.examples), "bytes": on.bytes}


def _content(
    context: Context, sets: Sequence[Beside], teachers: Sequence[Json], rows: Sequence[Json]
) -> Json:
    """The content of prune.json."""
    data, recipe = context.data, context.recipe
    return {
        "identity": context.identity,
        "config": to_dict(context.config),
        "recipe": recipe.name,
        "model": recipe.model,
        "data": recipe.data.name,
        "protocol": to_dict(context.protocol),
        "classes": list(data.class_names),
        "images": len(data.train),
        "sets": [beside.name for beside in sets],
        "interval": NAME,  # of every ci95
        "teachers": list(teachers),
        "rows": list(rows),
        "findings": findings(rows, context.teachers),
        "cites": list(cites(context.config)),
        "seed": context.seed,
        "precision": context.precision,
        "machine": runtime.machine(context.device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
