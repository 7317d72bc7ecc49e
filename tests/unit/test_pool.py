"""Tasks in processes of their own: what fails stops nothing, and nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from ddengine.system import pool
from ddengine.system.errors import UserError
from ddengine.system.pool import Ended

HERE = Path(__file__).resolve().parent


@dataclass
class Heard:
    """What a watcher was told."""

    ends: dict[str, Ended] = field(default_factory=dict)
    told: list[tuple] = field(default_factory=list)

    def progress(self, name, title, done, total):
        self.told.append((name, title, done, total))

    def ended(self, name, end):
        self.ends[name] = end


def threads(report):
    """The number of threads that a task has."""
    report("counting", 2, 2, "")
    return torch.get_num_threads()


def mistake(report):
    """A user's mistake."""
    raise UserError("data.limit is 0; raise it.")


def failure(report):
    """Something nobody thought of."""
    raise RuntimeError("a surprise\nwith more lines")


def crash(report):
    """A process that is gone."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(report):
    """A task that takes long, and says where it is."""
    Path("pid").write_text(str(os.getpid()))
    time.sleep(600)


def test_each_task_ends_for_itself():
    heard = Heard()
    tasks = {"a": mistake, "b": failure, "c": crash, "d": threads}
    pool.run_all(tasks, heard, jobs=2, threads=1)
    ends = heard.ends
    assert ends.keys() == tasks.keys()
    assert ends["a"] == Ended(error="data.limit is 0; raise it.")
    assert ends["b"].error == "RuntimeError: a surprise" and "in failure" in ends["b"].details
    assert ends["c"].error == "its process ended with code -9"
    assert ends["d"] == Ended(value=1)
    assert ("d", "counting", 2, 2) in heard.told
    assert os.environ.get("OMP_NUM_THREADS") != "0"


def test_what_cannot_be_given_to_a_process_is_told_before_any_begins():
    heard = Heard()
    with pytest.raises(UserError, match=r"b cannot be given to a process of its own"):
        pool.run_all({"a": threads, "b": lambda report: None}, heard, jobs=1, threads=1)
    assert not heard.ends


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pool.environment(OMP_NUM_THREADS="3", HOME="nowhere"):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["HOME"] != "nowhere"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_task_ends_with_the_process_that_started_it(tmp_path):
    """However that ends: here by SIGKILL."""
    code = (
        "import test_pool\nfrom ddengine.system import pool\n"
        "pool.run_all({'a': test_pool.sleep}, test_pool.Heard(), jobs=1, threads=1)\n"
    )
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    environment = os.environ | {"PYTHONPATH": path}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(child), 30)


def wait_for(condition, seconds=300):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
