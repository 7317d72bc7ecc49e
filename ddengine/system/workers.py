"""Processes that do jobs beside this one, each on as many threads as it is told.

They are programs of their own and not copies of this process, so that the script of a user is not
run again, whether or not it guards its main part. Messages are JSON and safetensors, so that
nothing is unpickled. A worker ends with the process that started it, however that ends: its
standard input closes then. One that finishes steps can be asked to end after the one that it is in.
"""

import json
import math
import os
import queue
import selectors
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

from safetensors.torch import load, save
from torch import Tensor

from ddengine.system import files, signals

HEAD = struct.Struct("<QQ")  # bytes of the JSON and of the tensors that follow
PART = 2**20  # bytes that are read at a time
END = "asked_to_end"  # in a message: the signal that asks a worker to end after its step


@dataclass(frozen=True)
class Message:
    """What processes say to each other: plain facts, and tensors by name."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def write(stream: BinaryIO, message: Message) -> None:
    """Send a message."""
    text = files.to_json(message.facts).encode()
    tensors = b""
    if message.tensors:
        # copies, because a file may not hold one piece of memory under two names
        tensors = save({name: one.clone() for name, one in message.tensors.items()})
    for part in (HEAD.pack(len(text), len(tensors)), text, tensors):
        stream.write(part)
    stream.flush()


def read(stream: BinaryIO) -> Message | None:
    """The next message; None where the other side has closed."""
    head = _exactly(stream, HEAD.size)
    if len(head) < HEAD.size:
        return None
    sizes = HEAD.unpack(head)
    parts = [_exactly(stream, size) for size in sizes]
    if list(map(len, parts)) != list(sizes):
        return None
    text, tensors = parts
    return Message(json.loads(text), load(tensors) if tensors else {})


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """So many bytes; fewer where the other side has closed."""
    parts = []
    while size > 0 and (part := stream.read(min(size, PART))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# The side of the process that has the work done.


@dataclass(frozen=True, eq=False)
class Worker:
    """A process that does one job at a time."""

    process: "subprocess.Popen[bytes]"

    @property
    def replies(self) -> BinaryIO:
        """What it says, without a buffer: a message in one would not wake who waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.raw  # type: ignore[return-value,attr-defined]

    def send(self, message: Message) -> bool:
        """Give it a message; False where it has ended."""
        assert self.process.stdin is not None
        try:
            write(self.process.stdin, message)  # type: ignore[arg-type]
        except (BrokenPipeError, OSError):
            return False
        return True

    def ask_to_end(self, number: int) -> None:
        """Let it end after its step, as a signal of this number would, and say so."""
        self.send(Message({END: number}))

    def end(self) -> int:
        """End it now, and return its exit code."""
        self.process.kill()
        return self.process.wait()


class Workers:
    """Some processes of one kind."""

    also_here = False  # this process only gives them jobs

    def __init__(self, workers: Sequence[Worker]):
        """`workers` have been started."""
        self.all = list(workers)
        self._selector = selectors.DefaultSelector()
        for worker in workers:
            self._selector.register(worker.replies, selectors.EVENT_READ, worker)

    @property
    def num(self) -> int:
        """Jobs that are done at the same time."""
        return max(1, len(self.all))

    def ready(self) -> None:
        """Nothing: there is time to `wait` for them."""

    def wait(self) -> tuple[Worker, Message | None]:
        """The next worker that says something, and what; None of one that has ended."""
        said = self.within(None)
        assert said is not None
        return said

    def within(self, seconds: float | None) -> tuple[Worker, Message | None] | None:
        """As `wait`; None where none has said anything after so many seconds."""
        ready = self._selector.select(seconds)
        if not ready:
            return None
        key, _ = ready[0]
        worker: Worker = key.data
        message = read(worker.replies)
        if message is None:
            self._selector.unregister(worker.replies)
            self.all.remove(worker)
        return worker, message

    def end(self) -> None:
        """End all of them, whatever they are doing."""
        for worker in self.all:
            worker.end()
        self._selector.close()


def num_for(jobs: int, cores: int, most: int) -> int:
    """How many processes, `most` of them, do jobs of equal length soonest on so many cores.

    The fewest, from one for each core on, of which all cores have work until the last job ends, if
    any do: five jobs on two cores are two rounds and a half for three processes that take turns,
    and three for two processes.
    """
    for num in range(cores, min(2 * cores - 1, jobs, most) + 1):
        last = jobs % num
        if last == 0 or last >= cores:
            return num
    return max(1, min(cores, jobs, most))


@dataclass(frozen=True)
class Hands:
    """So many processes, or ranks, each at one job, of which so many have a core or device."""

    num: int = 1
    cores: int = 1

    @property
    def take_turns(self) -> bool:
        """Whether there are fewer cores, so that a job takes longer than alone."""
        return self.num > self.cores

    def rounds(self, jobs: int) -> float:
        """How many times as long as one job alone so many of its length take, roughly."""
        if self.take_turns:
            return max(1.0, jobs / self.cores) if jobs else 0.0
        return math.ceil(jobs / self.num)


@contextmanager
def working(num: int, module: str, threads: int) -> Iterator[Workers]:
    """So many processes that run the `main` of a module, ended with the block.

    Each says {} once it is ready. They are not of the group that an interruption from the keyboard
    goes to: this process ends them.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
    }
    program = [sys.executable, "-P", "-c", f"from {module} import main; main()"]
    started = []
    for _ in range(num):
        process = subprocess.Popen(
            program,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        started.append(Worker(process))
    workers = Workers(started)
    try:
        yield workers
    finally:
        workers.end()


# The side of a worker.


Tell = Callable[[Message], None]  # says something before the answer
Answer = Callable[[Message], Message]


def work(begin: Callable[[Message, Tell], Answer]) -> None:
    """Be a worker: `begin` makes of the first message what answers each of the others.

    What it is given tells the process that started this one something between two answers, from
    the main thread. Does not return: the process ends with the one that started it, in the middle
    of a job too. What libraries print does not get between the messages.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def listen() -> None:
        requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
        while (message := read(requests)) is not None:
            if END in message.facts:
                signals.ask(message.facts[END])
            else:
                waiting.put(message)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    tell = partial(write, replies)
    tell(Message({}))
    answer = begin(waiting.get(), tell)
    while True:
        tell(answer(waiting.get()))


def answering(result: Callable[[Message], Any]) -> Answer:
    """What answers a message with what comes of it, or with why nothing does."""

    def answer(message: Message) -> Message:
        try:
            return Message({"result": result(message)})
        except Exception as error:
            return Message({"failed": f"{type(error).__name__}: {error}"})

    return answer
