"""Networks that are trained in other processes: what these are told, and do.

They are told what decides a training, as plain data, and do what this process would do: on as many
threads the numbers are the same to the bit. What they find out goes into the memory of this
process, which then makes the rows. Networks of the user stay here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddengine.data import Preprocess
from ddengine.evaluation.beside import SPLITS, images_told, told_images
from ddengine.evaluation.pace import TOLD
from ddengine.evaluation.rates import best_rate
from ddengine.system import log, runtime
from ddengine.system.configs import from_dict, to_dict
from ddengine.system.workers import (
    Answer,
    Message,
    Tell,
    Worker,
    Workers,
    answering,
    num_for,
    work,
    working,
)
from ddengine.types import Json
from ddengine.uses.transfer.config import TransferConfig
from ddengine.uses.transfer.context import Bench, Context, timed
from ddengine.uses.transfer.downstream import (
    Piece,
    Question,
    Seen,
    finals,
    searches,
    tested,
    updates_of,
    values_of,
)
from ddengine.uses.transfer.images import Downstream
from ddengine.uses.transfer.starts import Start, make_ready

MODULE = "ddengine.uses.transfer.beside"  # whose `main` a worker runs
LEAST = 2**20  # images of fine-tuning for each process, which takes seconds to start


def train_all(context: Context, asked: Sequence[Question], processes: int, threads: int) -> None:
    """Train what the rows need in so many processes, as far as they can; the rest stays."""
    able = [question for question in asked if question.model not in context.factories]
    with working(processes, MODULE, threads) as workers:
        _Work(context, able, workers).all()


@dataclass
class _Work:
    """What is left to do, and who does what."""

    context: Context
    asked: Sequence[Question]
    workers: Workers
    idle: list[Worker] = field(default_factory=list)
    running: dict[Worker, Piece] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)  # pieces that are left to this process

    def all(self) -> None:
        """Do everything."""
        while self.workers.all:
            for piece in self._waiting():
                if not self.idle:
                    break
                self._send(self.idle.pop(), piece)
            if not self.running and (self.idle or not self._waiting()):
                return
            self._receive()

    def _waiting(self) -> list[Piece]:
        """The next pieces that nobody does, as many as there may be hands for."""
        taken = {piece.key for piece in self.running.values()} | self.failed
        waiting: list[Piece] = []
        for question in self.asked:
            for piece in _missing(self.context, question):
                if piece.key not in taken:
                    waiting.append(piece)
            if len(waiting) > len(self.workers.all):
                break
        return waiting

    def _send(self, worker: Worker, piece: Piece) -> None:
        self.context.advance(piece.label)
        make_ready(self.context, piece.asked.start, piece.asked.model, piece.seed)
        self.running[worker] = piece
        worker.send(_request(piece))

    def _receive(self) -> None:
        """Wait for a process, and remember what came of it."""
        worker, message = self.workers.wait()
        piece = self.running.pop(worker, None)
        if message is None or "failed" in message.facts:
            if piece is not None:
                self.failed.add(piece.key)
                log.say("warning: a process could not do its part, which is done in this one")
        elif piece is not None:
            self.context.memo.put(piece.key, message.facts["result"])
        else:  # it has started
            worker.send(beginning(self.context))
        if message is not None:
            self.idle.append(worker)
        elif worker in self.idle:  # it has ended while it had nothing to do
            self.idle.remove(worker)


def _missing(context: Context, asked: Question) -> Iterator[Piece]:
    """What a row needs next: what chooses, then what it reports."""
    tried = []
    lacking = False
    for piece in searches(context, asked):
        result = context.memo.get(piece.key)
        if result is None:
            lacking = True
            yield piece
        else:
            tried.append((piece.value, [result["accuracy"]]))
    if lacking:
        return
    value = values_of(context, asked)[0]
    if tried:
        value, _ = best_rate(tried)
    for piece in finals(context, asked, value):
        if context.memo.get(piece.key) is None:
            yield piece


# What a process is told.


def beginning(context: Context) -> Message:
    """What all trainings share."""
    facts: Json = {
        "config": to_dict(context.config),
        "image_shape": list(context.image_shape),
        "seed": context.seed,
        "precision": context.precision,
        "folder": str(context.folder.absolute()),
        "identity": context.identity,
        "datasets": [[of.name, of.num_classes] for of in context.datasets],
    }
    tensors = dict(context.syn.preprocess.tensors())
    for number, of in enumerate(context.datasets):
        for name, real in (("train", of.train), ("validation", of.validation), ("test", of.test)):
            tensors |= told_images(f"{number}.{name}", real)
    return Message(facts, tensors)


def _request(piece: Piece) -> Message:
    """A training."""
    asked = piece.asked
    return Message(
        {
            "data": asked.data.name,
            "size": asked.size,
            "way": asked.way,
            "model": asked.model,
            "start": asked.start.name,
            "is_new": asked.start.is_new,
            "seed": piece.seed,
            "value": piece.value,
            "split": piece.split,
        }
    )


# What it does.


def main() -> None:
    """Be such a process."""
    log.console.quiet = True
    work(_begin)


def _begin(message: Message, tell: Tell) -> Answer:
    """What answers the messages that follow the first."""
    facts = message.facts
    device = runtime.setup("cpu", facts["precision"])
    channels, height, width = facts["image_shape"]
    bench = Bench(
        image_shape=(channels, height, width),
        config=from_dict(TransferConfig, facts["config"]),
        seed=facts["seed"],
        device=device,
        precision=facts["precision"],
        folder=Path(facts["folder"]),
        identity=facts["identity"],
    )
    datasets = {}
    for number, (name, num_classes) in enumerate(facts["datasets"]):
        datasets[name] = _dataset(name, num_classes, message, f"{number}.")
    return answering(partial(_result, bench, datasets, Seen()))


def _dataset(name: str, num_classes: int, message: Message, prefix: str) -> Downstream:
    """A dataset of the first message."""
    tensors: dict[str, Any] = dict(message.tensors)
    preprocess = Preprocess.from_tensors(tensors)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        splits[split] = images_told(f"{prefix}{split}", tensors, preprocess, num_classes)
    return Downstream(name, splits["train"], splits["validation"], splits["test"], {})


def _result(bench: Bench, datasets: Mapping[str, Downstream], seen: Seen, message: Message) -> Json:
    """What comes of a request."""
    facts = message.facts
    start = Start(facts["start"], "", is_new=facts["is_new"])
    data = datasets[facts["data"]]
    asked = Question(data, facts["size"], facts["way"], facts["model"], start)
    piece = Piece("", "", asked, facts["seed"], facts["value"], facts["split"])
    return timed(partial(tested, bench, piece, seen))


def processes_for(context: Context, asked: Sequence[Question]) -> int:
    """How many processes share the work: as many as threads, where there is enough for them.

    Or more that take turns, where the networks of the last row would leave cores idle.

    Trainings on CUDA stay in this one.
    """
    told = 0
    for of in context.datasets:
        told += of.train.pixels.numel() + of.test.pixels.numel()
    if context.device.type != "cpu" or told > TOLD:
        return 1
    seen = 0
    for question in asked:
        networks = context.config.networks + len(searches(context, question))
        seen += networks * context.config.batch * (updates_of(context, question) or 0)
    cores, networks = torch.get_num_threads(), context.config.networks
    if seen // LEAST < cores:
        return max(1, seen // LEAST)
    return max(cores, num_for(networks, cores, networks))
