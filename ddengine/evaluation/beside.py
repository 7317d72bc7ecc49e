"""Networks of an evaluation that are trained in other processes: what these are told, and do.

They are told what decides a training, as plain data, and do with a bench of their own what this
process would do with its: on as many threads the numbers are the same to the bit. What cannot be
told so (functions of the user, teachers that label every batch) stays in this process.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from ddengine.data import Data, Preprocess, RealSet, Subset
from ddengine.evaluation.bench import Bench, Contender, Training
from ddengine.evaluation.decoded import Decoded, Labelled
from ddengine.evaluation.pace import Pace, measured
from ddengine.learning.training import usual_means
from ddengine.recipe import EvalConfig
from ddengine.sets.targets import targets_of
from ddengine.system import log, runtime
from ddengine.system.configs import from_dict, to_dict
from ddengine.system.memo import Memo
from ddengine.system.workers import Answer, Message, Tell, answering, work
from ddengine.types import Facts, Json, TrainingSet

SPLITS = ("train", "validation", "test")


def can_go(bench: Bench, asked: Training) -> bool:
    """Whether networks can be trained in another process."""
    own = bench.train is not None or asked.model in bench.factories
    return not own and asked.who.labels != "dynamic"


# What a process is told.


def beginning(bench: Bench, *, take_turns: bool = False) -> Message:
    """What all trainings share; `take_turns`: there are more processes than cores."""
    data = bench.data
    tensors = dict(data.train.preprocess.tensors())
    for name in SPLITS:
        tensors |= told_images(name, _split(data, name))
    facts = {
        "config": to_dict(bench.config),
        "class_names": list(data.class_names),
        "precision": bench.precision,
        "home": bench.home,
        "targets": {"kind": bench.targets.kind, "label_of": bench.targets.label_of},
        "outputs": bench.outputs,
        "at_once": asdict(bench.at_once),
        "take_turns": take_turns,
    }
    return Message(facts, tensors)


def _split(data: Data, name: str) -> RealSet | None:
    splits: Mapping[str, RealSet | None] = {
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
    }
    return splits[name]


def told_images(name: str, real: RealSet | None) -> dict[str, Tensor]:
    """Real images as tensors under names that begin with `name`; none of None."""
    if real is None:
        return {}
    return {f"{name}.pixels": real.pixels, f"{name}.labels": real.labels}


def request(bench: Bench, asked: Training, *, decoded: bool = True) -> Message:
    """A training; `decoded`: with the images of sets that were decoded."""
    sets: list[Json] = []
    tensors: dict[str, Tensor] = {}
    for number, draw in enumerate(asked.draws):
        facts, stored = _told(asked.who.sets(draw), bench.data.train, decoded)
        sets.append(facts)
        tensors |= {f"{number}.{name}": tensor for name, tensor in stored.items()}
    who = asked.who
    facts = {
        "model": asked.model,
        "lr": asked.lr,
        "seeds": list(asked.seeds),
        "split": asked.split,
        "steps": asked.steps,
        "labels": who.labels,
        "distilled": who.distilled,
        "sets": sets,
    }
    return Message(facts, tensors)


def beginning_of_rank(bench: Bench) -> Message:
    """What all trainings share, for a rank, which has the images and the set itself."""
    return Message({"threads": bench.threads, "at_once": asdict(bench.at_once)})


def request_of_rank(bench: Bench, asked: Training) -> Message:
    """A training, for a rank; what it has decoded itself is named.

    The images of a coreset that a network has chosen go along: another rank would choose its own.
    """
    message = request(bench, asked, decoded=asked.who.selection is not None)
    facts = {**message.facts, "who": asked.who.name, "draws": list(asked.draws)}
    return replace(message, facts={**facts, "our_loop": bench.train is None})


def measuring(message: Message) -> Message:
    """The question how long updates of a training take that a message asks for."""
    return replace(message, facts={**message.facts, "measure": True})


def _told(of: TrainingSet, train: RealSet, decoded: bool) -> tuple[Json, dict[str, Tensor]]:
    """What a set is, as plain facts and tensors; of one that was decoded only that, if need be."""
    if of is train:
        return {"kind": "train"}, {}
    if isinstance(of, Subset) and of.real is train:
        return {"kind": "subset"}, {"index": of.index}
    if isinstance(of, Labelled):
        facts, tensors = _told(of.of, train, decoded)
        return {"kind": "labelled", "of": facts}, tensors | {"logits": of.logits}
    assert isinstance(of, Decoded), f"a {type(of).__name__} cannot be told"
    if not decoded:
        return {"kind": "known"}, {}
    tensors = {"images": of.images, "targets": of.targets, "classes": of.classes}
    return {"kind": "decoded"}, tensors


# What it does.


def main() -> None:
    """Be such a process."""
    log.console.quiet = True
    work(_begin)


def _begin(message: Message, tell: Tell) -> Answer:
    """What answers the messages that follow the first."""
    facts, tensors = message.facts, dict(message.tensors)
    device = runtime.setup("cpu", facts["precision"])
    preprocess, names = Preprocess.from_tensors(tensors), tuple(facts["class_names"])
    splits: dict[str, RealSet | None] = {}
    for name in SPLITS:
        splits[name] = images_told(name, tensors, preprocess, len(names), names)
    train = splits["train"]
    assert train is not None
    data = Data(train, splits["validation"], splits["test"], names, bytes=0, dataset_bytes=0)
    memo = Memo(None, "")
    memo.put("at_once", facts["at_once"])
    bench = Bench(
        data=data,
        config=from_dict(EvalConfig, facts["config"]),
        seed=0,
        device=device,
        precision=facts["precision"],
        memo=memo,
        means=usual_means(),
        home=facts["home"],
        targets=targets_of(**facts["targets"]),
        outputs=facts["outputs"],
        # who waits for a turn takes no time of the processor, and would alone not wait
        clock=time.process_time if facts["take_turns"] else time.perf_counter,
    )
    return answering(partial(_result, bench, {}))


def of_rank(
    bench: Bench, contenders: Sequence[Contender], beginning: Message
) -> Callable[[Message], Message]:
    """What answers the requests of the first rank, by a bench of this one."""
    for name, value in beginning.facts.items():
        bench.memo.put(name, value)
    known = {who.name: who for who in contenders}

    def result(message: Message) -> Json:
        of = bench if not message.facts["our_loop"] else replace(bench, train=None)
        with runtime.on_threads(bench.threads):
            return _result(of, known, message)

    return answering(result)


def images_told(
    name: str,
    tensors: Mapping[str, Tensor],
    preprocess: Preprocess,
    num_classes: int,
    class_names: tuple[str, ...] = (),
) -> RealSet | None:
    """The inverse of `told_images`."""
    if f"{name}.pixels" not in tensors:
        return None
    pixels, labels = tensors[f"{name}.pixels"], tensors[f"{name}.labels"]
    return RealSet(pixels, labels, num_classes, preprocess, class_names=class_names)


def _result(bench: Bench, known: Mapping[str, Contender], message: Message) -> Json:
    """What comes of a request."""
    asked = _asked(message, bench.data.train, known)
    if message.facts.get("measure"):
        return asdict(measured(bench, asked))
    return bench.result(asked)


def pace_of(result: Facts) -> Pace:
    """The answer to `measuring`."""
    return Pace(**result)


def _asked(message: Message, train: RealSet, known: Mapping[str, Contender]) -> Training:
    """The training that a message asks for; `known` are contenders whose sets are here, by name."""
    facts = message.facts
    sets = []
    for number, told in enumerate(facts["sets"]):
        prefix = f"{number}."
        tensors = {}
        for name, tensor in message.tensors.items():
            if name.startswith(prefix):
                tensors[name.removeprefix(prefix)] = tensor.to(train.device)
        if told["kind"] == "known":
            sets.append(known[facts["who"]].sets(facts["draws"][number]))
        else:
            sets.append(_set_of(told, tensors, train))
    who = Contender("", sets.__getitem__, labels=facts["labels"], distilled=facts["distilled"])
    return Training(
        who=who,
        model=facts["model"],
        lr=facts["lr"],
        seeds=tuple(facts["seeds"]),
        draws=tuple(range(len(sets))),
        split=facts["split"],
        steps=facts["steps"],
    )


def _set_of(told: Facts, tensors: Mapping[str, Tensor], train: RealSet) -> TrainingSet:
    """The inverse of `_told`."""
    if told["kind"] == "train":
        return train
    if told["kind"] == "subset":
        return Subset(train, tensors["index"])
    if told["kind"] == "labelled":
        labelled = Labelled(_set_of(told["of"], tensors, train), list, torch.clone)
        labelled.logits = tensors["logits"]  # made already
        return labelled
    return Decoded(tensors["images"], tensors["targets"], tensors["classes"], ledger={})
