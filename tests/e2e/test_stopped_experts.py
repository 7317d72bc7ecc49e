"""Experts that real processes train, stopped: nothing goes on running, and the same command goes on
from the checkpoints, to the bit.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from proc import running, workers_of
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
WORKER = "buffers.beside"
# run.py, in which processes pay for any work
PROGRAM = """
import sys
from buffers import pace
from ddengine.commands import main
pace.WORTH = 0.0
sys.exit(main(sys.argv[1:]))
"""
BUFFER = ["buffer", "mtt/digits_ipc1", "--model", "convnet-d2-w16-in", "--buffer.num_experts", "6"]
BUFFER += ["--buffer.epochs", "6", "--buffer.batch", "16", "--buffer.keep", "ends"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc"),
]


def started(folder: Path, threads: int) -> "subprocess.Popen[str]":
    """The command, which writes into a folder."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *BUFFER, "--out", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def shards(folder: Path) -> int:
    """Finished experts."""
    return len(list(folder.glob("expert_*.safetensors")))


def until(process: "subprocess.Popen[str]", folder: Path, num: int) -> list[int]:
    """The workers of a command, once so many experts are finished."""
    deadline = time.monotonic() + 300
    while shards(folder) < num:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return workers_of(process.pid, WORKER)


def gone(pids: list[int]) -> bool:
    """Whether processes end within seconds."""
    deadline = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(running, pids))


def test_stopped_experts_leave_no_process_and_go_on(tmp_path):
    folder = tmp_path / "store"
    process = started(folder, 2)
    pids = until(process, folder, 1)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)  # one process goes on with all experts
    until(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    os.kill(pids[1], signal.SIGTERM)  # as a cluster sends it, to all
    asked = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - asked < 30
    assert "is trained again: its process has ended" in said
    assert "stopped by SIGTERM in epoch" in said and "the same command continues" in said
    assert len(list(folder.glob("unfinished_*"))) == 1 and gone(pids)
    before = shards(folder)
    assert before < 5

    process = started(folder, 2)
    pids = until(process, folder, before + 1)
    process.kill()
    assert "goes on in epoch" in process.communicate()[0] and gone(pids)
    assert shards(folder) < 6

    process = started(folder, 4)  # each expert is trained on one thread all the same
    process.communicate()
    assert process.returncode == 0 and shards(folder) == 6
    whole = tmp_path / "whole"
    process = started(whole, 1)
    process.communicate()
    for number in range(6):
        found, wanted = (
            load_file(at / f"expert_{number:04d}.safetensors") for at in (folder, whole)
        )
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list(folder.glob("unfinished_*"))
