"""Experts that are trained in other processes: what these are told, and do.

A process is told the images and the settings of experts as plain data, trains one expert at a time,
as this process would, and writes its shard itself; on as many threads the numbers are the same to
the bit. This process says how far all are, hears the signals, and has the others end with it. What
cannot be told so (steps and networks of the user) stays in this process.
"""

import io
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from buffers.barlow import BarlowTwins
from buffers.curriculum import EasyFirst
from buffers.filling import Making, network_maker
from buffers.flat_step import Gsam
from buffers.mixed import MixedSgd
from buffers.smooth import Smooth
from buffers.steps import Sgd
from ddengine.data import Data, Preprocess
from ddengine.evaluation.beside import images_told, told_images
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system import log, runtime, signals
from ddengine.system.configs import from_dict, to_dict
from ddengine.system.errors import UserError
from ddengine.system.workers import Answer, Message, Tell, Worker, Workers, answering, work, working
from ddengine.types import Facts, Json

MODULE = "buffers.beside"  # whose `main` a worker runs
LOOK_EVERY = 1.0  # seconds between two looks whether a signal was heard
STEPS = {step.__name__: step for step in (Sgd, Gsam, Smooth, MixedSgd, BarlowTwins)}

Task = tuple[int, int]  # the number of a store, and of an expert in it


def can_go(makings: Sequence[Making]) -> bool:
    """Whether the experts of stores can be trained in other processes."""
    for making in makings:
        config = making.config
        step, order = type(config.step), type(config.curriculum)
        can_be_told = making.is_named and STEPS.get(step.__name__) is step
        if not can_be_told or order not in (EasyFirst, type(None)):
            return False
        if making.data is not makings[0].data or making.data.train.device.type != "cpu":
            return False
    return True


def train_all(makings: Sequence[Making], tasks: Sequence[Task], processes: int) -> list[Task]:
    """Train experts in so many processes; returns those that are left where all of these ended.

    Raises UserError for what an expert cannot be, and for one that two processes could not train;
    signals.Stopped where one was heard. In either case the others have written checkpoints.
    """
    threads = max(makings[number].threads or 1 for number, _ in tasks)
    epochs = sum(makings[number].epochs_each for number, _ in tasks)
    with (
        log.progress("experts", epochs) as bar,
        working(processes, MODULE, threads) as workers,
        signals.at_step_ends(),
    ):
        return _Work(makings, list(tasks), workers, bar).all()


@dataclass
class _Work:
    """What is left to do, and who does what."""

    makings: Sequence[Making]
    waiting: list[Task]
    workers: Workers
    bar: log.Bar
    idle: list[Worker] = field(default_factory=list)
    running: dict[Worker, Task] = field(default_factory=dict)
    epochs: dict[Task, int] = field(default_factory=dict)  # that are done
    failed: set[Task] = field(default_factory=set)  # once
    error: Exception | None = None  # that ends the work
    stopped: list[str] = field(default_factory=list)  # where experts were

    def all(self) -> list[Task]:
        """Do everything that processes can do; what is left."""
        while self.workers.all and (self.waiting or self.running):
            if signals.is_asked() or self.error is not None:
                self._stop()
            while self.idle and self.waiting:
                self._send(self.idle.pop(), self.waiting.pop(0))
            said = self.workers.within(LOOK_EVERY)
            if said is not None:
                self._take(*said)
        if self.error is not None:
            raise self.error
        return self.waiting

    def _stop(self) -> None:
        """Have all end after their step with a checkpoint, wait for them, and raise why."""
        for worker in self.running:
            worker.ask_to_end(signals.asked() or signal.SIGTERM)
        while self.running:
            self._take(*self.workers.wait())
        raise self.error or signals.stopped(" and ".join(self.stopped))

    def _send(self, worker: Worker, task: Task) -> None:
        self.running[worker] = task
        self.epochs[task] = 0
        worker.send(Message({"task": list(task)}))

    def _take(self, worker: Worker, message: Message | None) -> None:
        """Go by what a process says; None of one that has ended."""
        if message is None:
            if worker in self.idle:
                self.idle.remove(worker)
            if worker in self.running:
                self._lost(self.running.pop(worker), "its process has ended")
        elif "said" in message.facts:
            log.say(message.facts["said"])
        elif "epoch" in message.facts:
            self.epochs[self.running[worker]] += 1
            self.bar.move(sum(self.epochs.values()), message.facts["epoch"])
        elif worker in self.running:
            self._ended(self.running.pop(worker), message.facts)
            self.idle.append(worker)
        else:  # it has started
            worker.send(beginning(self.makings))
            self.idle.append(worker)

    def _ended(self, task: Task, facts: Facts) -> None:
        """What came of an expert."""
        if "failed" in facts:
            self._lost(task, facts["failed"])
            return
        end = facts["result"]
        if end["kind"] == "stopped":
            self.stopped.append(end["said"])
        elif end["kind"] == "refused":
            self.error = self.error or UserError(end["said"])
        elif end["kind"] == "file":
            self.error = self.error or OSError(*end["said"])

    def _lost(self, task: Task, why: str) -> None:
        """An expert that a process did not train is trained again, once."""
        number, expert = task
        where = self.makings[number].folder
        if task in self.failed:
            self.error = self.error or UserError(
                f"Expert {expert} in {where} could not be trained in two processes ({why}), as "
                "where memory is short; set OMP_NUM_THREADS=1 to train one expert after another."
            )
            return
        log.say(f"warning: expert {expert} in {where} is trained again: {why}")
        self.failed.add(task)
        self.waiting.insert(0, task)


# What a process is told.


def beginning(makings: Sequence[Making]) -> Message:
    """The stores, and the images, which they share."""
    data, stores = makings[0].data, []
    for making in makings:
        stores.append(
            {
                "config": to_dict(making.config),
                "data_config": to_dict(making.data_config),
                "model": making.model,
                "folder": str(making.folder.absolute()),
            }
        )
    facts = {
        "stores": stores,
        "class_names": list(data.class_names),
        "precision": makings[0].precision,
    }
    tensors = dict(data.train.preprocess.tensors())
    tensors |= told_images("train", data.train) | told_images("validation", data.validation)
    return Message(facts, tensors)


# What it does.


def main() -> None:
    """Be such a process."""
    signals.leave_to_parent()
    work(_begin)


def _begin(message: Message, tell: Tell) -> Answer:
    """What answers the messages that follow the first."""
    log.console.file = _Lines(tell)
    facts, tensors = message.facts, dict(message.tensors)
    runtime.setup("cpu", facts["precision"])
    preprocess, names = Preprocess.from_tensors(tensors), tuple(facts["class_names"])
    train, validation = (
        images_told(name, tensors, preprocess, len(names), names)
        for name in ("train", "validation")
    )
    assert train is not None
    data = Data(train, validation, None, names, bytes=0, dataset_bytes=0)
    makings = [making_told(told, data, facts["precision"]) for told in facts["stores"]]
    return answering(partial(_result, makings, tell))


def making_told(told: Facts, data: Data, precision: runtime.Precision) -> Making:
    """A store of a message."""
    config, model = buffer_told(told["config"]), told["model"]
    return Making(
        data=data,
        data_config=from_dict(DataConfig, told["data_config"]),
        config=config,
        model=model,
        new_model=network_maker(config, model, data),
        folder=Path(told["folder"]),
        precision=precision,
        is_named=True,
    )


def buffer_told(told: Facts) -> BufferConfig[Any, Any]:
    """The inverse of `to_dict`; the types of its parts are known by their names."""
    of_step = dict(told["step"])
    parts = {"step": from_dict(STEPS[of_step.pop("type")], of_step)}
    if told.get("curriculum") is not None:
        of_order = dict(told["curriculum"])
        of_order.pop("type")
        parts["curriculum"] = from_dict(EasyFirst, of_order)
    if isinstance(told["keep"], list):
        parts["keep"] = tuple(told["keep"])
    return replace(from_dict(BufferConfig, told), **parts)


def _result(makings: Sequence[Making], tell: Tell, message: Message) -> Json:
    """Train an expert; how that ended."""
    number, expert = message.facts["task"]
    try:
        with signals.at_step_ends():
            makings[number].train_some([expert], lambda said: tell(Message({"epoch": said})))
    except signals.Stopped as stop:
        return {"kind": "stopped", "said": stop.where or f"after the last epoch of expert {expert}"}
    except UserError as error:
        return {"kind": "refused", "said": str(error)}
    except OSError as error:
        name = None if error.filename is None else str(error.filename)
        return {"kind": "file", "said": [error.errno, error.strerror, name]}
    return {"kind": "trained"}


class _Lines(io.StringIO):
    """What this process prints, which the one that started it shows, line by line."""

    def __init__(self, tell: Tell):
        super().__init__()
        self._tell = tell
        self._begun = ""  # of a line

    def write(self, text: str) -> int:
        """Tell the lines that are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._tell(Message({"said": line}))
        return len(text)
