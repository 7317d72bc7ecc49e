"""What the scripts about faults tell of how far a command is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "faults"))

import faults

BUSY = "while True: pass"
WAITING = "import time; time.sleep(60)"
# a process that starts another one and waits for it
STARTS = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def started(program: str) -> "subprocess.Popen[str]":
    """A process below which a program runs."""
    command = [sys.executable, "-S", "-c", STARTS, program]
    return subprocess.Popen(command, start_new_session=True, text=True)


def test_work_is_computation_of_all_that_a_command_starts():
    """One that computes is waited for, one that waits has done nothing, one that ended is gone."""
    busy, waiting = started(BUSY), started(WAITING)
    try:
        assert faults.wait_for_work(busy, 1.0)
        assert 1.0 <= faults.computed(busy.pid)
        time.sleep(0.2)
        assert faults.computed(waiting.pid) < 0.5
    finally:
        for process in (busy, waiting):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert not faults.wait_for_work(busy, 1.0) and faults.computed(busy.pid) == 0
    code, _, seconds = faults.to_its_end(lambda: started("sum(range(10**7))"))
    assert code == 0 and 0.05 < seconds < 5
