"""All rows of a transfer: every dataset, size and way, from every start."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ddengine import naming
from ddengine.data.checks import image_digests
from ddengine.evaluation import brought
from ddengine.evaluation.evaluate import set_digest
from ddengine.evaluation.intervals import NAME
from ddengine.sets.codec import as_bytes
from ddengine.system import files, log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.memo import Memo
from ddengine.types import Json
from ddengine.uses.transfer.beside import processes_for, train_all
from ddengine.uses.transfer.context import Context
from ddengine.uses.transfer.downstream import Question, Seen, values_of
from ddengine.uses.transfer.rows import compared, row
from ddengine.uses.transfer.starts import Start, starts

# form of what is remembered of an interrupted command; what an older program left is made again
MEMO = 1


def identity(context: Context) -> str:
    """Identifies everything that decides the numbers."""
    syn, size = context.syn, context.syn.image_shape[1:]
    models: list[Any] = []
    for model in context.models:
        models.append(naming.in_digest(model, size))
        if model in context.factories:
            models.append(brought.stable_name(context.factories[model]))
    facts: Json = {
        "form": MEMO,
        "set": set_digest(syn),
        "codec": [type(syn.codec).__name__, to_dict(syn.codec)],
        "preprocess": files.tensor_digest(syn.preprocess.tensors()),
        "targets": [syn.target_kind, syn.label_of],
        "classes": syn.classes.tolist(),
        "config": to_dict(context.config),
        "pretraining": to_dict(context.pretraining),
        "home": context.home,
        "models": models,
        "seed": context.seed,
        "precision": context.precision,
        "datasets": [[of.name, dict(of.facts)] for of in context.datasets],
    }
    if context.source is not None:
        facts["source"] = context.source.train.digest
    experts = []
    for network in context.experts:
        experts.append(files.tensor_digest(network.state_dict()))
    facts["experts"] = experts
    return digest(facts)


def run(context: Context, memo_path: Path) -> Json:
    """Train and test every network of every row; returns the content of transfer.json.

    Finished trainings are remembered in the file `memo_path`, and pre-trained networks in the
    folder of the context; the caller removes both once the content is written.
    """
    begin = time.perf_counter()
    context = replace(context, identity=identity(context))
    memo = Memo(memo_path, context.identity)
    made, missing = starts(context)
    asked, absent = _questions(context, made)
    # wherever it is resumed, computations are on as many threads as where it began
    allowed = torch.get_num_threads()
    processes = memo("processes", partial(processes_for, context, asked))
    threads = memo("threads", lambda: max(1, allowed // processes))
    num = _num_pieces(context, asked)
    with log.progress("transfer", num) as bar, runtime.on_threads(threads):
        context = replace(context, memo=memo, advance=bar.advance)
        if processes > 1:
            train_all(context, asked, processes, threads)
        rows = _rows(context, asked)
    seconds = round(memo.seconds_before + time.perf_counter() - begin, 2)
    content = _content(context, made, [*missing, *absent], rows, seconds)
    return {**content, "processes": processes, "threads": threads}


def _questions(context: Context, made: Sequence[Start]) -> tuple[list[Question], list[str]]:
    """(the rows to be, why others are missing)."""
    config = context.config
    asked = []
    had = set()
    for model, suiting in _by_model(context, made).items():
        had.update(start.name for start in suiting)
        for data, start in product(context.datasets, suiting):
            for size, way in product(config.sizes, config.ways):
                asked.append(Question(data, size, way, model, start))
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
        by_model[model] = _suiting(context, made, model)
    theirs = context.experts_model
    beside = [start for start in made if start.name in ("none", "experts")]
    if theirs is None or theirs in by_model or not context.experts:
        return by_model
    if _suiting(context, beside, theirs) == beside:
        by_model[theirs] = beside
    return by_model


def _suiting(context: Context, made: Sequence[Start], model: str) -> list[Start]:
    """The starts that networks of that name can have."""
    return [start for start in made if start.suits(context, model)]


def _rows(context: Context, asked: Sequence[Question]) -> list[Json]:
    """The rows: those that compare one thing follow each other."""
    seen = Seen()
    made = [row(context, question, seen) for question in asked]
    orders = {
        "data": [of.name for of in context.datasets],
        "shots": list(context.config.sizes),
        "way": list(context.config.ways),
        "model": list(dict.fromkeys(question.model for question in asked)),
    }

    def place(one: Json) -> list[int]:
        return [order.index(one[name]) for name, order in orders.items()]

    return compared(sorted(made, key=place))


def _num_pieces(context: Context, asked: Sequence[Question]) -> int:
    """How many networks are trained, and classifiers fitted."""
    num = 0
    for question in asked:
        tried = len(values_of(context, question))
        num += context.config.networks + (tried if tried > 1 else 0)
    each = context.config.networks
    if any(of.validation is not None for of in context.datasets):
        each += 1  # which chooses
    trained = set()
    for question in asked:
        if question.start.lesson is not None:
            trained.add((question.model, question.start.name))
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
        "starts": dict(map(_told, made)),
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


def _told(start: Start) -> tuple[str, Json]:
    """What transfer.json says of a start, under its name."""
    return start.name, {"said": start.said, "bytes": start.bytes}


def _warnings(context: Context) -> list[str]:
    """Test images of a dataset that the set, or what it was made of, has pixel for pixel."""
    syn = context.syn
    known = {"the set": as_bytes(syn.pixels())}
    if context.source is not None:
        known["the images that the set was made of"] = context.source.train.pixels
    told = []
    for whose, images in known.items():
        digests = set(image_digests(images))
        for of in context.datasets:
            tested = image_digests(of.test.pixels)
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
        by_size: Json = {}
        for size in context.config.shots:
            by_size[str(size)] = []
            for draw in range(context.config.networks):
                index = of.chosen(size, context.seed, draw)
                by_size[str(size)].append(index.tolist())
        draws[of.name] = by_size
    return draws
