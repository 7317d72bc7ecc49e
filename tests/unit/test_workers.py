"""How many processes share jobs, and what these take then."""

import math
import time

import pytest
from helpers import tiny_data

from ddengine.evaluation import beside
from ddengine.evaluation.bench import Bench
from ddengine.learning.training import usual_means
from ddengine.recipe import EvalConfig
from ddengine.system.memo import Memo
from ddengine.system.workers import Hands, num_for


@pytest.mark.parametrize(
    ("jobs", "cores", "num"),
    [
        (5, 2, 3),  # 2.5 rounds for 3
        (3, 2, 3),  # 1.5 for 2
        (4, 2, 2),
        (100, 2, 2),
        (7, 2, 2),  # one would be left alone in any case
        (5, 4, 5),  # 1.25 for 2
        (40, 16, 20),  # 2.5 for 3
        (3, 16, 3),
        (1, 4, 1),
        (5, 1, 1),
    ],
)
def test_all_cores_have_work_until_the_last_job_ends(jobs, cores, num):
    assert num_for(jobs, cores, jobs) == num
    assert num < 2 * cores and num <= jobs


def test_no_other_number_is_sooner():
    """By jobs that are begun together and share the cores evenly."""

    def seconds(jobs, num, cores):
        full, last = divmod(jobs, num)
        return full * max(1, num / cores) + (max(1, last / cores) if last else 0)

    for cores in range(1, 9):
        for jobs in range(1, 60):
            num = num_for(jobs, cores, jobs)
            soonest = min(seconds(jobs, other, cores) for other in range(1, jobs + 1))
            assert seconds(jobs, num, cores) <= math.ceil(jobs / min(cores, jobs))
            if num > cores:  # taking turns is as good as can be
                assert seconds(jobs, num, cores) == pytest.approx(jobs / cores)
                assert seconds(jobs, num, cores) == pytest.approx(soonest)
            assert Hands(num, cores).rounds(jobs) == pytest.approx(seconds(jobs, num, cores))


def test_memory_holds_fewer():
    """Where no number that it holds keeps all cores at work, each process has one."""
    assert num_for(7, 4, 7) == 7 and num_for(7, 4, 6) == num_for(7, 4, 4) == 4
    assert num_for(5, 2, 2) == 2 and num_for(5, 2, 1) == num_for(5, 2, 0) == 1


def test_jobs_take_as_long_as_one_where_there_are_hands_for_all():
    assert Hands().rounds(5) == 5 and Hands(2, 2).rounds(5) == 3 and Hands(5, 16).rounds(5) == 1
    assert Hands(3, 2).rounds(5) == 2.5 and Hands(3, 2).rounds(1) == 1
    assert Hands(3, 2).rounds(0) == 0
    assert Hands(3, 2).take_turns and not Hands(2, 2).take_turns


@pytest.mark.parametrize("take_turns", [True, False])
def test_who_waits_for_a_turn_takes_no_time(take_turns, monkeypatch):
    """A process of an evaluation times itself by the processor where there are fewer cores."""
    data = tiny_data()
    config, memo = EvalConfig(protocol="test"), Memo(None, "")
    bench = Bench(data, config, 0, data.train.device, "fp32", memo, usual_means())
    made = []
    monkeypatch.setattr(beside, "answering", lambda answer: made.append(answer.args[0]))
    beside._begin(beside.beginning(bench, take_turns=take_turns), lambda message: None)
    assert made[0].clock is (time.process_time if take_turns else time.perf_counter)
