"""Ranks that do jobs which the first of them gives out, as `workers` has processes do them.

Messages are those of workers, and go through the store at which the ranks have met. The first rank
does jobs too, and hears of the others between two of its own; so each of them has the next job at
hand while it does one.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ddengine.system import dist
from ddengine.system.workers import Message, read, write

SEATS = 2  # jobs that a rank has at hand, one of which it does
BEGIN, JOB, END = "begin", "job", "end"  # what a message to a rank asks for


class Seat:
    """A place for one job at a rank."""

    def __init__(self, crew: "Crew", rank: int):
        self._crew = crew
        self.rank = rank
        self.reply = ""  # where the answer to what was sent last will lie

    def send(self, message: Message) -> bool:
        """Give the rank a job; a rank that is gone is told otherwise."""
        self.reply = self._crew.post(self.rank, JOB, message)
        return True


class Crew:
    """The other ranks, as the first one sees them."""

    also_here = True  # this process does jobs, too

    def __init__(self, name: str, ranks: Sequence[int]):
        """`name` tells this crew's messages from those of others."""
        self._name = name
        self._posted = dict.fromkeys(ranks, 0)  # how many messages each rank was sent
        self.all = [Seat(self, rank) for _ in range(SEATS) for rank in ranks]

    @property
    def num(self) -> int:
        """Jobs that are done at the same time."""
        return len(self._posted) + 1

    def begin(self, message: Message) -> None:
        """Tell all ranks what all jobs share."""
        for rank in self._posted:
            self.post(rank, BEGIN, message)

    def post(self, rank: int, kind: str, message: Message) -> str:
        """Send a message to a rank; where the answer will lie."""
        self._posted[rank] += 1
        key = _key(self._name, rank, self._posted[rank])
        dist.put(key, _packed(Message({"kind": kind, **message.facts}, message.tensors)))
        return f"{key}/reply"

    def ready(self) -> tuple[Seat, Message] | None:
        """A rank that has answered, and what; None where none has."""
        for seat in self.all:
            if seat.reply and dist.is_there(seat.reply):
                answer = _unpacked(dist.removed(seat.reply))
                seat.reply = ""
                return seat, answer
        return None

    def wait(self) -> tuple[Seat, Message]:
        """The next rank that answers, and what."""
        while (answered := self.ready()) is None:
            time.sleep(dist.LOOK_EVERY)
        return answered


_crew: ContextVar[Crew | None] = ContextVar("crew", default=None)


def current() -> Crew | None:
    """The other ranks, where this one leads them; None where there are none."""
    return _crew.get()


@contextmanager
def led() -> Iterator[None]:
    """Within the block the first rank may give jobs to the others, which `serve` until its end."""
    crew = Crew(dist.numbered("crew"), range(1, dist.num_ranks()))
    token = _crew.set(crew)
    try:
        yield
    finally:
        _crew.reset(token)
        for seat in crew.all[: crew.num - 1]:
            crew.post(seat.rank, END, Message({}))


def serve(begin: Callable[[Message], Callable[[Message], Message]]) -> None:
    """Do the jobs of the first rank until it gives no more.

    `begin` makes of what it says first what answers each job.
    """
    name, number = dist.numbered("crew"), 0
    answer = _idle
    while True:
        number += 1
        key = _key(name, dist.rank(), number)
        message = _unpacked(dist.removed(key))
        kind = message.facts["kind"]
        if kind == END:
            return
        if kind == BEGIN:
            answer = _begun(begin, message)
        else:
            dist.put(f"{key}/reply", _packed(answer(message)))


def _begun(
    begin: Callable[[Message], Callable[[Message], Message]], message: Message
) -> Callable[[Message], Message]:
    """What `begin` makes; where it fails, what says so of every job."""
    try:
        return begin(message)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return lambda _: Message({"failed": why})


def _idle(message: Message) -> Message:
    """What a rank says of a job before it knows anything."""
    return Message({"failed": f"a job came before what it is about ({sorted(message.facts)})"})


def _key(name: str, rank: int, number: int) -> str:
    return f"{name}/{rank}/{number}"


def _packed(message: Message) -> bytes:
    stream = io.BytesIO()
    write(stream, message)
    return stream.getvalue()


def _unpacked(content: bytes) -> Message:
    message = read(io.BytesIO(content))
    assert message is not None, "a message was cut"
    return message
