"""Runs as jobs of a cluster: what is refused, and what comes of jobs."""

import pytest

from ddengine.commands.sweep import cluster_of
from ddengine.system import cluster
from ddengine.system.cluster import Cluster, Job, executor_of
from ddengine.system.errors import UserError
from ddengine.system.pool import Ended

pytest.importorskip("submitit")


class Finished:
    """A job that is done as soon as somebody looks for the second time."""

    job_id = "7"

    def __init__(self, job, at_work):
        self._job, self._at_work, self._looks = job, at_work, 0
        at_work.append(self)
        self.cancelled = False

    def done(self):
        """Whether it is."""
        self._looks += 1
        return self._looks > 1

    def result(self):
        """What came of it."""
        self._at_work.remove(self)
        return self._job()

    def cancel(self):
        """End it."""
        self.cancelled = True


class Executor:
    """One that does its jobs in this process, and counts them."""

    def __init__(self):
        self.at_work, self.most, self.made = [], 0, []

    def batch(self):
        """Jobs that are submitted together."""
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, job):
        """A job at work."""
        self.made.append(Finished(job, self.at_work))
        self.most = max(self.most, len(self.at_work))
        return self.made[-1]


class Watcher(dict):
    """What came of tasks, by their names."""

    def ended(self, name, end):
        """A task has."""
        self[name] = end


@pytest.fixture
def executor(monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_EVERY", {"local": 0.0, "slurm": 0.0})
    made = Executor()
    monkeypatch.setattr(cluster, "executor_of", lambda *args: made)
    return made


def doubled(report):
    """A task."""
    return 2


def mistaken(report):
    """A task with a user's mistake in it."""
    raise UserError("There is no such image; name another.")


@pytest.mark.parametrize(("kind", "most"), [("local", 2), ("slurm", 5)])
def test_tasks_are_done_and_those_that_fail_are_told(kind, most, executor, tmp_path):
    """Local jobs so many at a time; SLURM is given all, and told how many."""
    tasks = dict.fromkeys("abcd", doubled) | {"e": mistaken}
    watcher = Watcher()
    cluster.run_all(tasks, watcher, Cluster(kind), tmp_path, jobs=2)
    assert executor.most == most and not executor.at_work
    assert {watcher[name].value for name in "abcd"} == {2}
    assert watcher["e"] == Ended(error="There is no such image; name another.")


def test_a_job_that_was_lost_fails_its_task(executor, tmp_path, monkeypatch):
    def result(job):
        job._at_work.remove(job)
        raise RuntimeError("Job 7 (task: 0) was killed\nand more")

    monkeypatch.setattr(Finished, "result", result)
    watcher = Watcher()
    cluster.run_all({"a": doubled}, watcher, Cluster("slurm"), tmp_path, jobs=1)
    assert watcher["a"].error == "its job 7 failed: Job 7 (task: 0) was killed"
    assert "and more" in watcher["a"].details


def test_jobs_end_with_the_command(executor, tmp_path):
    class Interrupted(Watcher):
        def ended(self, name, end):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.run_all({"a": doubled, "b": doubled}, Interrupted(), Cluster("slurm"), tmp_path, 2)
    assert [job.cancelled for job in executor.made] == [False, True]


def test_a_job_goes_on_as_itself():
    job = Job(doubled, threads=1)
    assert job.checkpoint().function is job


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("local", {"slurm_nonsense": 1}, "slurm_nonsense"),
        ("local", {"timeout_min": "soon"}, "timeout_min"),
        ("slurm", {}, "srun"),
    ],
)
def test_what_is_not_there_is_refused(kind, options, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=words) as refused:
        executor_of(Cluster(kind, options), tmp_path, 1)
    assert "correct --cluster_options, or leave --cluster out" in str(refused.value)


def test_options_of_jobs_in_words():
    words = ("gpus_per_node=1", "slurm_partition=gpu", "slurm_constraint=a=b")
    options = {"gpus_per_node": 1, "slurm_partition": "gpu", "slurm_constraint": "a=b"}
    assert cluster_of("slurm", words) == Cluster("slurm", options)
    assert cluster_of("none", ()) is None
    with pytest.raises(UserError, match="NAME=VALUE"):
        cluster_of("slurm", ["gpu"])
    with pytest.raises(UserError, match="are for --cluster local or slurm"):
        cluster_of("none", words)
