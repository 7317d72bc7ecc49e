"""All rows of a transfer: every dataset, size and way, from every start."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from ddengine import naming
from ddengine.data.checks import image_digests
from ddengine.evaluation import brought
from ddengine.evaluation.evaluate import set_digest
from ddengine.evaluation.intervals import NAME
from ddengine.recipe import digest, to_dict
from ddengine.sets.codec import as_bytes
from ddengine.system import files, log, runtime
from ddengine.system.memo import Memo
from ddengine.types import Json
from ddengine.uses.transfer.config import ALL
from ddengine.uses.transfer.context import Context
from ddengine.uses.transfer.downstream import Question, Seen, values_of
from ddengine.uses.transfer.rows import compared, row
from ddengine.uses.transfer.starts import Start, starts

# form of what is remembered of an interrupted command; what an older program left is made again
MEMO = 1


def identity(context: Context) -> str:
    """Identifies everything that decides the numbers."""
    syn, source = context.syn, context.source
    images = None if source is None else source.train.digest
    experts = [files.tensor_digest(network.state_dict()) for network in context.experts]
    named = {}
    for name, factory in context.factories.items():
        named[name] = brought.stable_name(factory)
    datasets = [[of.name, of.facts] for of in context.datasets]
    preprocess = files.tensor_digest(syn.preprocess.tensors())
    return digest(
        [
            MEMO,
            [set_digest(syn), type(syn.codec).__name__, to_dict(syn.codec), preprocess],
            [syn.target_kind, syn.label_of, files.tensor_digest({"classes": syn.classes})],
            [to_dict(context.config), to_dict(context.pretraining), context.home],
            [*map(_in_digest(syn.image_shape[1:]), context.models), named],
            [context.seed, context.precision],
            [images, experts, datasets],
        ]
    )


def _in_digest(size: tuple[int, int]):
    """What says which network a name means."""

    def named(model: str) -> str:
        return naming.in_digest(model, size)

    return named


def run(context: Context, memo_path: Path) -> Json:
    """Train and test every network of every row; returns the content of transfer.json.

    Finished trainings are remembered in the file `memo_path`, and pre-trained networks in the
    folder of the context, until all is done.
    """
    begin = time.perf_counter()
    context = replace(context, identity=identity(context))
    memo = Memo(memo_path, context.identity)
    made, missing = starts(context)
    asked, absent = _questions(context, made)
    # wherever it is resumed, computations are those of where it began
    threads = memo("threads", torch.get_num_threads)
    num = _num_pieces(context, asked)
    with log.progress("transfer", num) as bar, runtime.on_threads(threads):
        context = replace(context, memo=memo, advance=bar.advance)
        rows = _rows(context, asked)
    memo.clear()
    shutil.rmtree(context.folder, ignore_errors=True)
    seconds = round(memo.seconds_before + time.perf_counter() - begin, 2)
    content = _content(context, made, [*missing, *absent], rows, seconds)
    return {**content, "threads": threads}


def _questions(context: Context, made: Sequence[Start]) -> tuple[list[Question], list[str]]:
    """(the rows to be, why others are missing)."""
    asked = []
    for model, suiting in _by_model(context, made).items():
        for data in context.datasets:
            for start, size, way in product(suiting, context.config.sizes, context.config.ways):
                asked.append(Question(data, size, way, model, start))
    had = {question.start.name for question in asked}
    absent = []
    for start in made:
        if start.name not in had:
            absent.append(
                f"no row {start.name}: {start.said}, and none of the networks is of that kind; "
                "--models names it"
            )
    return asked, absent


def _by_model(context: Context, made: Sequence[Start]) -> dict[str, list[Start]]:
    """The starts of every network.

    Experts of another kind have a network of their own, beside new ones of that kind.
    """
    by_model = {}
    for model in context.models:
        by_model[model] = [start for start in made if start.suits(context, model)]
    theirs = context.experts_model
    has_experts = any(start.name == "experts" for start in made)
    if has_experts and theirs is not None and theirs not in by_model:
        suiting = [start for start in made if start.name in ("none", "experts")]
        if all(start.suits(context, theirs) for start in suiting):
            by_model[theirs] = suiting
    return by_model


def _rows(context: Context, asked: Sequence[Question]) -> list[Json]:
    """The rows: those that compare one thing follow each other."""
    seen = Seen()
    made = [row(context, question, seen) for question in asked]
    order = {size: place for place, size in enumerate(context.config.sizes)}
    names = [of.name for of in context.datasets]
    ways = context.config.ways

    models = list(dict.fromkeys(question.model for question in asked))

    def place(one: Json) -> tuple[int, ...]:
        of_row = names.index(one["data"]), order[one["shots"]], ways.index(one["way"])
        return (*of_row, models.index(one["model"]))

    made.sort(key=place)
    return compared(made)


def _num_pieces(context: Context, asked: Sequence[Question]) -> int:
    """How many networks are trained, and classifiers fitted."""
    num = 0
    for question in asked:
        tried = len(values_of(context, question))
        num += context.config.networks + (tried if tried > 1 else 0)
    chooses = any(of.validation is not None for of in context.datasets)
    each = context.config.networks + int(chooses)
    trained = {(question.model, question.start.name) for question in asked if question.start.lesson}
    return num + each * len(trained)


def _content(
    context: Context, made: Sequence[Start], missing: list[str], rows: list[Json], seconds: float
) -> Json:
    """The content of transfer.json; accuracies are fractions."""
    return {
        "format": naming.FORMAT,
        "identity": context.identity,
        "config": to_dict(context.config),
        "pretraining": to_dict(context.pretraining),
        "finetuning": to_dict(context.config.finetuning),
        "target_kind": context.syn.target_kind,
        "image_shape": list(context.syn.image_shape),
        "models": list(dict.fromkeys(row["model"] for row in rows)),
        "starts": {start.name: {"said": start.said, "bytes": start.bytes} for start in made},
        "missing": missing,
        "warnings": _warnings(context),
        "datasets": {of.name: dict(of.facts) for of in context.datasets},
        "draws": _draws(context),
        "interval": NAME,
        "rows": rows,
        "set_digest": set_digest(context.syn),
        "seed": context.seed,
        "precision": context.precision,
        "seconds": seconds,
        "machine": runtime.machine(context.device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def _warnings(context: Context) -> list[str]:
    """Test images of a dataset that the set, or what it was made of, has pixel for pixel."""
    syn = context.syn
    known = {"the set": as_bytes(syn.pixels())}
    if context.source is not None:
        known["the images that the set was made of"] = context.source.train.pixels
    seen = {whose: set(image_digests(images)) for whose, images in known.items()}
    told = []
    for of in context.datasets:
        tested = image_digests(of.test.pixels)
        for whose, digests in seen.items():
            num = sum(map(digests.__contains__, tested))
            if num:
                told.append(
                    f"warning: {num} of the {len(tested)} test images of {of.name} are among "
                    f"{whose}, so accuracies there say too much"
                )
    return told


def _draws(context: Context) -> Json:
    """Which training images few-shot networks had: by dataset and size, a list for each draw."""
    draws: Json = {}
    for of in context.datasets:
        by_size = {}
        for size in context.config.sizes:
            if size != ALL:
                numbers = range(context.config.networks)
                by_size[str(size)] = [of.chosen(size, context.seed, i).tolist() for i in numbers]
        draws[of.name] = by_size
    return draws
