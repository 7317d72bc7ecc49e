"""Whether the other ranks are still there: each says so now and then, and looks whether others do.

A rank that computes for an hour is silent in the group, but its heart beats, in a thread. One that
was stopped, or whose machine is gone, has none. Who waits for such a one may sit in a collective of
torch, which nothing interrupts, so a thread says which rank it is and ends this process.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from ddengine.system import log, meeting

LOST = 75  # the exit code where other ranks are gone: EX_TEMPFAIL, the same command continues
BEATS = 10  # that a rank misses before it counts as silent
LONGEST_INTERVAL = 2.0  # seconds between two beats of up to RANKS ranks; of more in proportion
RANKS = 64
MEETING = 600.0  # seconds in which all ranks must have begun to beat, or the timeout where longer
LOOK_EVERY = 0.05  # seconds between two looks whether others have ended
LEAVING = 2.0  # seconds that a look at a busy store is given where this rank ends
GRACE = 10.0  # seconds in which the main thread may say better what has happened
ENDED = "ended "  # what a rank says last, with its exit code


class Store(meeting.Store, Protocol):
    """What ranks write into and read, of torch.distributed."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """The values of keys."""
        ...


class Heartbeat:
    """The beats of this rank, and those that it has seen of the others."""

    def __init__(self, store: Store, rank: int, ranks: int, timeout: float):
        """Nothing beats yet; `timeout` is the seconds that a silent rank is given."""
        self._store = store
        self._rank = rank
        self._others = [other for other in range(ranks) if other != rank]
        self.timeout = timeout
        self.interval = min(timeout / BEATS, LONGEST_INTERVAL * max(1.0, ranks / RANKS))
        self._count = 0
        self._said: dict[int, str] = {}  # the last beat of each other rank
        self._heard: dict[int, float] = {}  # and when it changed
        self._looked = 0.0  # when the store last answered
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._writing = threading.Lock()
        self.ended: dict[int, int] = {}  # exit codes of ranks that have ended

    def start(self) -> None:
        """Let it beat, until the process ends.

        Raises RuntimeError where the others do not begin to.
        """
        self._beat()
        self._await_others()
        self._forgive()
        for work in (self._go_on, self._judge):
            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()

    def _await_others(self) -> None:
        """Wait until the others beat, too: on a busy machine one may import for minutes longer."""
        keys = list(map(self._key, self._others))
        for _ in meeting.looks(max(MEETING, self.timeout)):
            if not keys or self._store.check(keys):
                return

    def end(self, code: int) -> None:
        """Say that this rank ends, and with which code; its heart looks at nothing any more."""
        self._over.set()
        for thread in self._threads:
            thread.join(LEAVING)
        with self._writing:
            self._store.set(self._key(self._rank), f"{ENDED}{code}")

    def others_end(self) -> bool:
        """Wait until all others have ended; False, and said, where one is silent meanwhile."""
        self._forgive()
        last = time.monotonic()
        while len(self.ended) < len(self._others):
            self.look()
            last = self._now(last)
            silent = [rank for rank in self._others if self._is_silent(rank, last)]
            if silent:
                said = silence(silent, self._said, self._rank, self.timeout)
                log.complain(f"error: {said}")
                return False
            time.sleep(LOOK_EVERY)
        return True

    def failed(self) -> tuple[int, int] | None:
        """(rank, exit code) of one that has ended with another code than 0."""
        return next(((rank, code) for rank, code in list(self.ended.items()) if code), None)

    def _key(self, rank: int) -> str:
        return f"beat/{rank}"

    def _beat(self) -> None:
        self._count += 1
        who = f"process {os.getpid()} on {socket.gethostname()}"
        with self._writing:
            if not self._over.is_set():
                self._store.set(self._key(self._rank), f"{self._count} {who}")

    def look(self) -> None:
        """See what the others have said."""
        keys = list(map(self._key, self._others))
        if self._store.check(keys):
            now = time.monotonic()
            for rank, value in zip(self._others, self._store.multi_get(keys), strict=True):
                said = value.decode()
                if said != self._said.get(rank):
                    self._said[rank], self._heard[rank] = said, now
                if said.startswith(ENDED):
                    self.ended[rank] = int(said.removeprefix(ENDED))
        self._looked = time.monotonic()

    def _go_on(self) -> None:
        """Beat and look; a store that is gone is told by that nothing is seen any more."""
        while not self._over.wait(self.interval):
            try:
                self._beat()
                self.look()
            except RuntimeError:  # what torch raises of a store that does not answer
                continue

    def _forgive(self) -> None:
        """Count all silence from now on: this process was not there to hear anything."""
        now = self._looked = time.monotonic()
        self._heard = dict.fromkeys(self._others, now)

    def _now(self, last: float) -> float:
        """The time; silence counts anew where this process was stopped itself since `last`."""
        now = time.monotonic()
        if now - last > self.timeout / 2:
            self._forgive()
        return now

    def _judge(self) -> None:
        """End this process where another one is gone."""
        last = time.monotonic()
        while not self._over.wait(self.interval):
            last = self._now(last)
            if complaint := self._complaint(last):
                log.complain(f"error: {complaint}")
                os._exit(LOST)

    def _complaint(self, now: float) -> str | None:
        """What is wrong with the others, in one sentence; None where nothing is."""
        for rank, code in list(self.ended.items()):
            if code and now - self._heard[rank] > GRACE + self.interval:
                return f"Rank {rank} has ended with code {code}, so rank {self._rank} ends too."
        silent = [rank for rank in self._others if self._is_silent(rank, now)]
        # a store that does not answer says of nobody whether it is silent
        if now - self._looked > self.timeout:
            silent = []
        elif not silent:
            return None
        return silence(silent, self._said, self._rank, self.timeout)

    def _is_silent(self, rank: int, now: float) -> bool:
        return rank not in self.ended and now - self._heard[rank] > self.timeout


def silence(silent: Sequence[int], said: dict[int, str], rank: int, timeout: float) -> str:
    """The sentence about ranks without a heartbeat; without any, about what holds them together."""
    names = []
    for other in silent:
        _, _, who = said.get(other, "").partition(" ")
        names.append(f"rank {other} ({who})" if who else f"rank {other}")
    who = " and ".join(names) or "the process through which the ranks have met"
    has = "have" if len(names) > 1 else "has"
    return (
        f"{who[0].upper()}{who[1:]} {has} not answered for {log.duration(timeout)} "
        f"(--dist_timeout), so rank {rank} ends; the same command continues from the last "
        "checkpoint."
    )
