"""Ranks that are started together agree on a name, whatever others have left in their store."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as td

from ddengine.system import dist, meeting


def names(store, ranks, order=None):
    """What each rank of an attempt comes to, in an order in which they begin."""
    order = order or range(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        futures = {r: pool.submit(meeting.agreed_name, store, r, ranks, 30.0) for r in order}
        return [futures[rank].result() for rank in range(ranks)]


@pytest.fixture
def store(monkeypatch):
    """A store as ranks share it, which is looked at often."""
    monkeypatch.setattr(meeting, "LOOK_EVERY", 0.001)
    return td.HashStore()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_ranks_agree_on_a_name_of_their_attempt(store, order):
    seen = []
    for _ in range(5):  # attempts, each of which finds what those before have left
        agreed = names(store, 3, order)
        assert len(set(agreed)) == 1
        seen.append(agreed[0])
    assert len(set(seen)) == 5


def test_a_rank_that_reads_what_was_left_waits_for_the_others(store):
    """Names and lists of an attempt whose ranks were killed are no answer to its word."""
    (left, _) = names(store, 2)
    answer = f"{meeting.place()}/answer/1"
    before = store.get(answer)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(meeting.agreed_name, store, 1, 2, 30.0)
        while store.get(answer) == before:
            pass
        assert store.get(answer).decode().startswith(left)
        with pytest.raises(TimeoutError):
            early.result(timeout=0.2)
        name = meeting.agreed_name(store, 0, 2, 30.0)
        assert early.result() == name != left


def test_jobs_that_share_a_store_do_not_meet(store, monkeypatch):
    """As two of torchrun do that name one endpoint."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    (one, _) = names(store, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    with pytest.raises(RuntimeError):
        meeting.agreed_name(store, 1, 2, 0.05)
    assert not store.check([f"{meeting.place()}/name"]) and one


def test_ranks_that_do_not_come_are_not_waited_for_for_ever(store):
    for rank in range(2):
        with pytest.raises(RuntimeError, match="not all have begun within 0"):
            meeting.agreed_name(store, rank, 2, 0.05)
    assert meeting.agreed_name(store, 0, 1, 30.0)


def test_a_group_reads_nothing_of_the_attempt_before(store, monkeypatch):
    """As torchrun keeps one store, in which gloo's addresses of killed ranks still lie."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist.td, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    groups = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(dist.td, "init_process_group", lambda *_, **given: groups.append(given))
            joined = dist._joined(dist.torch.device("cpu"), 60.0)
        joined.heartbeat.end(0)
        joined.store.set("told/1", "of a rank that was killed")
    groups[0]["store"].set("address", "of a rank that was killed")
    assert not groups[1]["store"].check(["address"])
