"""Tasks in processes of their own, so many at a time; one that fails stops no other.

A task is something that can be pickled and called; its process ends with it, and with the process
that started it, however that ends.
"""

import itertools
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import torch

from ddengine.system import dist, log, signals
from ddengine.system.bars import Report
from ddengine.system.errors import UserError

# what is done: it is told of progress as `progress=` of the public functions is
Task = Callable[[Report], Any]
TOLD_EVERY = 0.5  # seconds between two messages of progress
LONGEST_STEP = 20.0  # seconds that tasks have to end by themselves
LOOKED_EVERY = 1.0  # seconds after which ends of processes are looked for in any case


@dataclass(frozen=True)
class Ended:
    """What came of a task."""

    value: Any = None  # what it returned
    error: str | None = None  # one sentence; None where it did what it should
    details: str = ""  # the traceback of an error that is no sentence for a user


class Watcher(Protocol):
    """What is told how tasks go."""

    def progress(self, name: str, title: str, done: int, total: int) -> None:
        """A task has done so many of what its title says."""
        ...

    def ended(self, name: str, end: Ended) -> None:
        """A task has ended."""
        ...


def run_all(tasks: Mapping[str, Task], watcher: Watcher, *, jobs: int, threads: int) -> None:
    """Run tasks by their names, at most `jobs` at a time, each on `threads` threads of a CPU.

    They begin in their order; of several ranks each takes the next one that no other has. Those
    that run are ended where this is interrupted. Raises UserError for a task that cannot be given
    to another process.
    """
    for name, task in tasks.items():
        _check(name, task)
    waiting = dist.shared_out(list(tasks.items()), "tasks")
    at_a_time = min(jobs, len(tasks)) * dist.ranks_here()
    running: list[_Running] = []
    try:
        while True:
            for name, task in itertools.islice(waiting, jobs - len(running)):
                running.append(_started(name, task, threads, at_a_time))
            if not running:
                return
            ready = wait([one.receiver for one in running], LOOKED_EVERY)
            for one in list(running):
                if one.receiver in ready and _heard(one, watcher):
                    running.remove(one)
    finally:
        for one in running:
            one.process.terminate()  # it finishes its step, and writes a checkpoint
        deadline = time.monotonic() + LONGEST_STEP
        for one in running:
            one.process.join(max(0.0, deadline - time.monotonic()))
            one.process.kill()
            one.process.join()


def _check(name: str, task: Task) -> None:
    try:
        ForkingPickler.dumps(task)
    except Exception as error:
        raise UserError(
            f"{name} cannot be given to a process of its own ({type(error).__name__}: {error}); "
            "use images, networks and functions that lie in a module or file."
        ) from None


@dataclass(frozen=True)
class _Running:
    """A task that runs."""

    name: str
    process: BaseProcess
    receiver: Connection


def _started(name: str, task: Task, threads: int, at_a_time: int) -> _Running:
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, task, threads), name=name)
    told = {"OMP_NUM_THREADS": str(threads), dist.AT_A_TIME: str(at_a_time)}
    with script_left_alone((task,)), environment(**told):
        process.start()
    sender.close()  # so that the end of the process ends the waiting
    return _Running(name, process, receiver)


def _heard(one: _Running, watcher: Watcher) -> bool:
    """Pass on what a task says; whether it has ended."""
    try:
        kind, *said = one.receiver.recv()
    except EOFError:
        kind, said = "ended", []
    if kind == "progress":
        watcher.progress(one.name, *said)
        return False
    one.process.join()
    one.receiver.close()
    code = one.process.exitcode
    end = said[0] if said else Ended(error=f"its process ended with code {code}")
    watcher.ended(one.name, end)
    return True


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Processes that are started within have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def script_left_alone(args: Sequence[Any]) -> Iterator[None]:
    """Processes that are spawned within do not run the user's script again.

    A script may have no guard, and would do all its work in every process. It runs again only where
    something of it is among what the process is given, which is not to be had otherwise.
    """
    script = sys.modules["__main__"]
    facts = vars(script)
    hidden = {name: facts[name] for name in ("__file__", "__spec__") if name in facts}
    if b"__main__" in bytes(ForkingPickler.dumps(tuple(args))):
        hidden = {}
    facts.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        facts.update(hidden)


# The side of the process that does a task.


def _child(sender: Connection, task: Task, threads: int) -> None:
    """Do a task and send what comes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process where it ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.console.quiet = True
    torch.set_num_threads(threads)
    try:
        with signals.heard():
            end = ended(task, _Teller(sender))
    except signals.Stopped as stop:
        sys.exit(stop.code)  # nobody listens any more
    sender.send(("ended", end))


def ended(task: Task, report: Report) -> Ended:
    """Do a task in this process; what comes of it, whatever that is."""
    try:
        return Ended(task(report))
    except signals.Stopped:
        raise
    except UserError as error:
        return Ended(error=str(error))
    except MemoryError as error:
        return Ended(error=f"memory did not suffice ({error}); run fewer at a time.")
    except BaseException as error:
        line = str(error).strip().partition("\n")[0]
        return Ended(error=f"{type(error).__name__}: {line}", details=traceback.format_exc())


def _end_with_parent() -> None:
    """End this process, in the middle of its task, as soon as the one that started it has ended."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class _Teller:
    """Sends progress, now and then."""

    def __init__(self, sender: Connection):
        self._sender = sender
        self._told = -TOLD_EVERY

    def __call__(self, title: str, done: int, total: int, note: str) -> None:
        """So many of `total` are done."""
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY or done == total:
            self._told = now
            self._sender.send(("progress", title, done, total))
