"""Ranks that are silent or have ended are named; those that only compute are not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as td

from ddengine.commands.process import start as started
from ddengine.system import dist, heartbeat
from ddengine.system.errors import UserError
from ddengine.system.heartbeat import GRACE, Heartbeat


class Kept:
    """What ranks write, in this process."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        """Write."""
        self.values[key] = value

    def check(self, keys):
        """Whether all are there."""
        return self.values.keys() >= set(keys)

    def multi_get(self, keys):
        """Read."""
        return [self.values[key].encode() for key in keys]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def ranks(clock):
    """Three ranks that have met, and of which each has said once that it is there."""
    store = Kept()
    hearts = [Heartbeat(store, rank, 3, timeout=60.0) for rank in range(3)]
    for heart in hearts:
        heart._beat()
        heart._forgive()
    return hearts


def after(ranks, clock, seconds, beating=(0, 1, 2)):
    """Some seconds, in which these ranks show that they are there; what the first complains of."""
    for _ in range(round(seconds)):
        clock[0] += 1.0
        for rank in beating:
            ranks[rank]._beat()
        ranks[0].look()
    return ranks[0]._complaint(clock[0])


def test_a_rank_that_imports_for_long_is_waited_for(clock, monkeypatch):
    """Longer than the timeout, which begins once all are there."""
    store = Kept()
    first, second = (Heartbeat(store, rank, 2, timeout=60.0) for rank in range(2))

    def sleep(seconds):
        clock[0] += seconds
        if clock[0] > 1300.0:
            second._beat()

    monkeypatch.setattr(heartbeat.time, "sleep", sleep)
    first._beat()
    first._await_others()
    first._forgive()
    assert clock[0] > 1300.0 and first._complaint(clock[0]) is None
    lonely = Heartbeat(Kept(), 0, 2, timeout=60.0)
    with pytest.raises(RuntimeError, match="not all have begun within 10 min"):
        lonely._await_others()
    Heartbeat(Kept(), 0, 1, timeout=60.0)._await_others()


def test_a_rank_that_computes_for_long_is_left_alone(ranks, clock):
    assert after(ranks, clock, 300) is None


def test_a_silent_rank_is_named(ranks, clock):
    assert after(ranks, clock, 59, beating=(0, 2)) is None
    said = after(ranks, clock, 5, beating=(0, 2))
    assert said.startswith("Rank 1 (process ") and said.count(".") == 1
    assert "has not answered for 60 s (--dist_timeout), so rank 0 ends" in said


def test_two_silent_ranks_are_named(ranks, clock):
    said = after(ranks, clock, 70, beating=(0,))
    assert said.startswith("Rank 1 (process ") and " and rank 2 (process " in said
    assert "have not answered" in said


def test_a_rank_that_has_done_its_work_is_not_missed(ranks, clock):
    ranks[1].end(0)
    assert after(ranks, clock, 300, beating=(0, 2)) is None
    assert ranks[0].ended == {1: 0} and ranks[0].failed() is None


def test_a_rank_that_has_done_its_work_waits_for_others_but_not_for_a_silent_one(
    ranks, clock, monkeypatch, capsys
):
    """A launcher would wait for ever for one that was stopped when all but it had ended."""
    beating = [1, 2]

    def sleep(seconds):
        clock[0] += 1.0
        for rank in beating:
            ranks[rank]._beat()
        if clock[0] > 1300.0:
            ranks[2].end(0)
        if clock[0] > 1400.0:
            beating.clear()

    monkeypatch.setattr(heartbeat.time, "sleep", sleep)
    ranks[0].end(0)
    assert not ranks[0].others_end() and clock[0] > 1450.0
    assert "Rank 1 (process " in capsys.readouterr().err
    ranks[1].end(0)
    assert ranks[0].others_end()


def test_a_rank_that_has_failed_ends_the_others_after_a_moment(ranks, clock):
    ranks[2].end(2)
    assert after(ranks, clock, 3, beating=(0, 1)) is None  # it may be said better
    assert ranks[0].failed() == (2, 2)
    said = after(ranks, clock, GRACE + 5, beating=(0, 1))
    assert said == "Rank 2 has ended with code 2, so rank 0 ends too."


def test_a_rank_that_has_ended_beats_no_more(ranks, clock):
    ranks[1].end(0)
    ranks[1]._beat()
    assert after(ranks, clock, 1, beating=(0, 2)) is None and ranks[0].ended == {1: 0}


def test_a_store_without_answers_accuses_no_rank(ranks, clock):
    clock[0] += 61.0
    said = ranks[0]._complaint(clock[0])
    assert said.startswith("The process through which the ranks have met has not answered for 60 s")


def test_a_timeout_of_nothing_is_refused():
    class Options:
        device, precision, dist_timeout = "cpu", "fp32", 0.0

    with pytest.raises(UserError, match=r"--dist_timeout 0 must be a number of seconds above 0"):
        started(Options())


def test_one_process_shares_with_nobody():
    """Everything is the identity there."""
    assert dist.told({"a": 1}) == {"a": 1} and dist.most(3) == 3
    assert list(dist.shared_out([1, 2], "numbers")) == [1, 2]
    dist.meet()
    dist.end(0)


def test_the_first_rank_leaves_last(monkeypatch):
    """The others still read in a store that goes with it."""
    store = td.HashStore()
    hearts = [Heartbeat(store, rank, 2, timeout=60.0) for rank in range(2)]
    monkeypatch.setattr(dist, "num_ranks", lambda: 2)
    monkeypatch.setattr(dist.td, "destroy_process_group", lambda: None)

    def ends(rank):
        monkeypatch.setattr(dist, "rank", lambda: rank)
        monkeypatch.setattr(
            dist, "_started", [dist._Group(torch.device("cpu"), store, hearts[rank])]
        )
        return dist.end(0)

    hearts[1].end(0)  # it has done its work, and waits for the first
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ends, 0)
        with pytest.raises(TimeoutError):
            first.result(timeout=0.3)
        assert ends(1) == 0
        assert first.result(timeout=5.0) == 0
