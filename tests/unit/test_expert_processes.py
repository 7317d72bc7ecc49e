"""Experts that other processes train: what these are told, do and say, and what this one does.

The workers here are no processes, and do a task as soon as they are sent one; real ones are in
e2e/test_stopped_experts.py.
"""

import io
import os
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers import MODEL, tiny_data, tiny_making
from safetensors.torch import load_file

from buffers import beside, curriculum, pace, store, train
from buffers.barlow import BarlowTwins
from buffers.curriculum import EasyFirst
from buffers.experts import generate_all
from buffers.filling import Making
from buffers.flat_step import Gsam
from buffers.mixed import MixedSgd
from buffers.smooth import Smooth
from buffers.steps import Sgd
from buffers.unfinished import path_of
from ddengine.experts import AtOnce
from ddengine.recipe import BufferConfig
from ddengine.system import log, runtime, signals, workers
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.workers import Message

DATA = tiny_data()
CONFIG = BufferConfig(step=Sgd(lr=0.05, momentum=0.5), num_experts=3, epochs=3, batch=64)
TEACHERS = ("convnet-d1-w4-in", "mlp")


class Killed(BaseException):
    """What ends a worker."""


def arrived(message: Message) -> Message:
    """A message on the other side."""
    stream = io.BytesIO()
    workers.write(stream, message)
    stream.seek(0)
    return workers.read(stream)


@dataclass(eq=False)
class Worker:
    """One without a process."""

    said: list[tuple[Any, Message | None]]
    answer: Any = None
    lines: Any = None  # where it prints

    def send(self, message):
        """Do what it asks."""
        log.console._file = self.lines
        try:
            self._do(arrived(message))
        finally:
            self.lines, log.console._file = log.console._file, None

    def _do(self, message):
        if self.answer is None:
            self.answer = beside._begin(message, lambda told: self.said.append((self, told)))
            return
        try:
            self.said.append((self, self.answer(message)))
        except Killed:
            self.said.append((self, None))

    def ask_to_end(self, number):
        """Nothing: it has ended its step already."""


class Workers:
    """Some of them."""

    def __init__(self, num):
        self.said: list[Any] = []
        self.all = [Worker(self.said) for _ in range(num)]
        self.said += [(worker, Message({})) for worker in self.all]

    def within(self, seconds):
        """The next that says something."""
        return self.wait()

    def wait(self):
        """The next that says something."""
        worker, message = self.said.pop(0)
        if message is None:
            self.all.remove(worker)
        return worker, None if message is None else arrived(message)


@pytest.fixture
def machine(monkeypatch):
    """Two threads, on which processes pay; what was started, and the threads of trainings."""
    seen: dict[str, list[Any]] = {"started": [], "threads": []}

    @contextmanager
    def working(num, module, threads):
        seen["started"].append((num, module, threads))
        yield Workers(num)

    def on_threads(num):
        seen["threads"].append(num)
        return nullcontext()

    monkeypatch.setattr(beside, "working", working)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(runtime, "on_threads", on_threads)
    monkeypatch.setattr(pace, "WORTH", 0.0)
    return seen


def making(folder, model=MODEL, **changes):
    """A store that is to be filled."""
    return tiny_making(DATA, replace(CONFIG, **changes), model, folder)


def here(make):
    """The same stores, of which nothing is told to others."""
    return [replace(one, folder=one.folder.parent / "here", is_named=False) for one in make]


def check_equal(one, other, experts=3):
    """Two stores hold the same numbers, and the first has nothing unfinished."""
    for expert in range(experts):
        found, wanted = (load_file(store.shard_path(at, expert)) for at in (one, other))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not path_of(one, expert).exists()


def check_as_here(make, monkeypatch):
    """A store is as one thread of one process fills it."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        generate_all(here([make]))
    check_equal(make.folder, make.folder.parent / "here", make.config.num_experts)


def test_they_are_those_of_this_process(tmp_path, machine, monkeypatch):
    """To the bit, and the stores are told apart; progress counts the epochs of all."""
    told = []
    makings = []
    for model in TEACHERS:
        makings.append(making(tmp_path / model / "store", model, num_experts=2))
    with log.shown(lambda *progress: told.append(progress)):
        generate_all(makings)
    assert machine["started"] == [(2, "buffers.beside", 1)]
    assert set(machine["threads"]) == {1}
    assert [done for _, done, *_ in told] == list(range(13))
    assert {total for _, _, total, _ in told} == {12}
    assert {note.partition(":")[0] for *_, note in told[1:]} == {"expert 0", "expert 1"}
    for one in makings:
        assert one.threads == 1
        check_as_here(one, monkeypatch)


STEPS = [Sgd(thirds=0.2), Gsam(), Smooth(), MixedSgd(), BarlowTwins(widths=(16, 8))]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_settings_arrive(step, tmp_path):
    order = EasyFirst(drop_after=(1,), drop=(0.1,))
    config = replace(CONFIG, step=step, curriculum=order, keep=(1, 2), seed=3)
    message = arrived(Message(to_dict(config)))
    assert beside.buffer_told(message.facts) == config
    plain = replace(config, curriculum=None, keep="all", store="convex")
    assert beside.buffer_told(arrived(Message(to_dict(plain))).facts) == plain


def test_a_curriculum_is_ordered_once(tmp_path, machine, monkeypatch):
    """Here, before there are processes."""
    order = EasyFirst(networks=1, updates=3, drop_after=(1,), drop=(0.1,))
    one = making(tmp_path / "store", num_experts=2, curriculum=order)
    real, ordered = beside.train_all, []

    def train_all(*args):
        ordered.append((one.folder / curriculum.FILE).is_file())
        return real(*args)

    monkeypatch.setattr(beside, "train_all", train_all)
    generate_all([one])
    assert ordered == [True]
    check_as_here(one, monkeypatch)


@dataclass(frozen=True, kw_only=True)
class Own(Sgd):
    """A step that a user wrote."""


def test_what_cannot_be_told_stays(tmp_path, machine):
    """Steps and networks of the user, and stores of before; each has all threads."""
    own = making(tmp_path / "step", step=Own(lr=0.05), num_experts=2)
    generate_all([own])
    network = replace(making(tmp_path / "network", num_experts=2), is_named=False)
    generate_all([network])
    assert own.threads == network.threads == 2
    before = making(tmp_path / "before", num_experts=2)
    before.open(None)
    generate_all([before])
    assert before.threads is None
    assert set(machine["threads"]) == {2} and not machine["started"]


def test_short_work_and_one_expert_stay(tmp_path, machine, monkeypatch):
    """The numbers of short work are those of processes."""
    monkeypatch.setattr(pace, "WORTH", 1e6)
    short = making(tmp_path / "short")
    generate_all([short])
    alone = making(tmp_path / "alone", num_experts=1)
    generate_all([alone])
    assert (short.threads, alone.threads) == (1, 2)
    assert not machine["started"]


def test_the_first_choice_holds(tmp_path, machine, monkeypatch):
    """On a machine with other threads, of what is added and of what is trained again."""
    one = making(tmp_path / "store", num_experts=1)
    generate_all([one])
    grown = replace(one, config=replace(one.config, num_experts=2))
    shard = store.shard_path(one.folder, 0)
    shard.write_bytes(shard.read_bytes()[:-5])
    machine["threads"].clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    generate_all([grown])
    assert machine["started"] == [(2, "buffers.beside", 2)]  # as many as 5 threads hold
    assert set(machine["threads"]) == {2}
    assert store.finished(one.folder) == [0, 1]


def test_what_would_be_done_is_told_before_there_is_a_store(tmp_path, machine, monkeypatch):
    """And is what is done then; of a store of before, which says no threads, one after another."""
    make = making(tmp_path / "store")
    assert pace.at_once([make]) == AtOnce(experts=3, threads=1, cores=2)  # which take turns
    assert not make.folder.exists()
    generate_all([make])
    assert machine["started"] == [(3, "buffers.beside", 1)] and make.threads == 1
    assert pace.at_once([make]) == AtOnce()  # nothing is missing
    more = replace(make, config=replace(make.config, num_experts=5))
    assert pace.at_once([more]) == AtOnce(experts=2, threads=1)
    monkeypatch.setattr(store, "threads_of", lambda folder: 4)  # begun on a larger machine
    assert pace.at_once([more]) == AtOnce(experts=1, threads=4)
    monkeypatch.setattr(store, "threads_of", lambda folder: None)
    assert pace.at_once([more]) == AtOnce(experts=1, threads=None)


def test_memory_holds_fewer_experts_on_more_threads(tmp_path, machine, monkeypatch):
    make = making(tmp_path / "store")
    monkeypatch.setattr(runtime, "available_memory", lambda device: 2**29)
    assert pace.threads_for([make]) == 2
    monkeypatch.setattr(runtime, "available_memory", lambda device: 2**34)
    assert pace.threads_for([make]) == 1


def in_batch(monkeypatch, at, action):
    """Do something before a batch of an expert: at (expert, epoch, batch)."""
    real = train._Training._batch

    def batch(self, index):
        if (self._experts[0], self.progress.epoch, self.progress.batch) == at:
            action()
        real(self, index)

    monkeypatch.setattr(train._Training, "_batch", batch)


def test_a_killed_process_costs_no_more_than_its_last_minute(
    tmp_path, machine, monkeypatch, capsys
):
    """Another goes on with its expert, from the checkpoint, and its epochs are counted once."""
    kills, told = [], []

    def kill():
        if not kills:
            kills.append(1)
            raise Killed

    monkeypatch.setattr("buffers.unfinished.EVERY", 0.0)
    in_batch(monkeypatch, (1, 2, 1), kill)
    one = making(tmp_path / "store")
    with log.shown(lambda *progress: told.append(progress)):
        generate_all([one])
    said = capsys.readouterr().out
    assert f"expert 1 in {one.folder} is trained again: its process has ended" in said
    assert "expert 1 goes on in epoch 3 of 3" in said
    assert max(done for _, done, *_ in told) == 9
    check_as_here(one, monkeypatch)


def test_an_expert_that_ends_two_processes_ends_the_work(tmp_path, machine, monkeypatch):
    """In a sentence, and the others have checkpoints; where no process is left, this one goes on."""

    def kill():
        raise Killed

    one = making(tmp_path / "store")
    with monkeypatch.context() as patch:
        in_batch(patch, (1, 1, 0), kill)
        with pytest.raises(UserError, match=r"Expert 1 in .* in two processes \(its process has"):
            generate_all([one])
    assert store.finished(one.folder) == [0, 2]
    grown, killed = replace(one, config=replace(one.config, num_experts=4)), []
    with monkeypatch.context() as patch:
        patch.setattr(beside, "_result", lambda *_: killed.append(1) or kill())
        generate_all([grown])
    assert len(killed) == 2 and store.finished(one.folder) == [0, 1, 2, 3]
    check_as_here(grown, monkeypatch)


def test_errors_of_the_user_are_the_same_sentences(tmp_path, machine):
    one = making(tmp_path / "store", step=Sgd(lr=1e30))
    with pytest.raises(UserError, match=r"^The loss of expert 0 was not finite in epoch 1; lower"):
        generate_all([one])


def test_errors_of_files_name_them(tmp_path, machine, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ddengine.system.files.write_tensors", full)
    one = making(tmp_path / "store")
    monkeypatch.setattr(Making, "open", lambda self, threads, together: None)
    monkeypatch.setattr(Making, "threads", 1)
    monkeypatch.setattr(store, "checkpoint", lambda *_: store.Checkpoint(tmp_path / "c", ""))
    monkeypatch.setattr(store, "write_expert", lambda folder, *_: full(folder / "shard"))
    with pytest.raises(OSError, match="No space left") as error:
        generate_all([one])
    assert error.value.filename == str(one.folder / "shard") and error.value.errno == 28


def test_a_signal_ends_all_with_checkpoints(tmp_path, machine, monkeypatch):
    """Each after its step; the same command goes on to the bit."""
    one = making(tmp_path / "store")
    with monkeypatch.context() as patch, signals.heard():
        in_batch(patch, (1, 1, 1), lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(signals.Stopped) as stop:
            generate_all([one])
    assert stop.value.code == 128 + signal.SIGUSR1
    assert stop.value.where == "in epoch 2 of expert 1"
    assert path_of(one.folder, 1).is_file() and store.finished(one.folder) == [0]
    generate_all([one])
    check_as_here(one, monkeypatch)


def test_a_worker_is_asked_to_end_by_its_parent_alone():
    """Once, whatever a launcher sends it."""
    before = {number: signal.getsignal(number) for number in signals.ASKING}
    try:
        signals.leave_to_parent()
        for number in signals.ASKING:
            os.kill(os.getpid(), number)
        with pytest.raises(signals.Stopped) as stop, signals.at_step_ends():
            assert not signals.is_asked()
            signals.ask(signal.SIGTERM)
            signals.ask(signal.SIGHUP)
            assert signals.is_asked()
        assert stop.value.number == signal.SIGTERM
    finally:
        signals._state.asked = None
        for number, handler in before.items():
            signal.signal(number, handler)
