"""Tasks as jobs of a cluster, by submitit: an array of SLURM, or processes of this machine.

What `pool` does in processes of its own. A job that SLURM preempts or whose time is over is put
back into the queue and goes on from its checkpoint. Jobs end with the command that waits for them;
those of a command that was killed go on, and another one waits for the folders they work in.
submitit writes tasks and what comes of them as pickles, which this command alone reads.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddengine.system import claims, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.pool import Ended, Task, Watcher, ended, environment

Kind = Literal["local", "slurm"]
LOOK_EVERY = {"local": 0.5, "slurm": 5.0}  # seconds between two looks at the jobs
MINUTES = {"local": 7 * 24 * 60, "slurm": 24 * 60}  # that a job may take, where nobody says


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and with what of it, in submitit's names: gpus_per_node, slurm_partition."""

    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """On which a job computes."""
        return int(self.options.get("cpus_per_task", 1))


@dataclass(frozen=True)
class Job:
    """A task, as it is called where a job runs."""

    task: Task
    threads: int

    def __call__(self) -> Ended:
        """Do it; who works in its folder still is waited for."""
        with log.shown(False), runtime.on_threads(self.threads), claims.waiting():
            return ended(self.task, _told_nobody)

    def checkpoint(self) -> Any:
        """What is put back into the queue where the job is to end: itself, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _told_nobody(title: str, done: int, total: int, note: str) -> None:
    """Nobody listens to the progress of a job."""


def executor_of(cluster: Cluster, folder: Path, jobs: int) -> Any:
    """What submits jobs, which keeps its files in a folder; at most `jobs` run at a time.

    Raises UserError where submitit or SLURM is not there, and for options that are none.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--cluster needs the package submitit, which is not installed; pip install submitit."
        ) from None
    options = {"timeout_min": MINUTES[cluster.kind], "name": "ddengine", **cluster.options}
    if cluster.kind == "slurm":
        options.setdefault("slurm_array_parallelism", jobs)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster.kind)
        executor.update_parameters(**options)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise UserError(
            f"--cluster {cluster.kind} cannot be used so ({why}); correct --cluster_options, or "
            "leave --cluster out."
        ) from None
    return executor


def run_all(
    tasks: Mapping[str, Task], watcher: Watcher, cluster: Cluster, folder: Path, jobs: int
) -> None:
    """Run tasks by their names as jobs, at most `jobs` at a time.

    Those that are not done are cancelled where this is interrupted. Raises UserError as
    `executor_of` does.
    """
    executor = executor_of(cluster, folder, jobs)
    waiting = list(tasks.items())
    at_once = jobs if cluster.kind == "local" else len(waiting)  # SLURM counts itself
    running: dict[str, Any] = {}
    try:
        while waiting or running:
            free = at_once - len(running)
            running |= _submitted(executor, waiting[:free], cluster.threads)
            del waiting[:free]
            for name, job in list(running.items()):
                if job.done():
                    del running[name]
                    watcher.ended(name, _end_of(job))
            time.sleep(LOOK_EVERY[cluster.kind])
    finally:
        for job in running.values():
            job.cancel()


def _submitted(executor: Any, tasks: Sequence[tuple[str, Task]], threads: int) -> dict[str, Any]:
    """The jobs of some tasks, by their names; in SLURM one array of them."""
    jobs: dict[str, Any] = {}
    if tasks:
        path = os.pathsep.join(map(os.path.abspath, sys.path))  # what is not installed is found so
        with environment(PYTHONPATH=path), executor.batch():
            for name, task in tasks:
                jobs[name] = executor.submit(Job(task, threads))
    return jobs


def _end_of(job: Any) -> Ended:
    """What came of a job."""
    try:
        return job.result()
    except Exception as error:  # whatever submitit says of a job that was lost
        line = str(error).strip().partition("\n")[0]
        return Ended(error=f"its job {job.job_id} failed: {line}", details=str(error))
