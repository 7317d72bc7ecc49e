"""An evaluation whose networks are trained in other processes, stopped: nothing goes on running, and
nothing that was finished is lost.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import run
from proc import running, workers_of

ROOT = Path(__file__).resolve().parents[2]
WORKER = "ddengine.evaluation.beside"
# 20 seconds of networks by the first timing, so that processes are worth their start
LONG = ["--epochs", "6000", "--num_networks", "3", "--lr_grid", "0.01", "--baselines", "random"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc"),
]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_evaluation_leaves_no_process_and_goes_on(tmp_path, monkeypatch, stop):
    monkeypatch.chdir(tmp_path)
    recipe = "dm/fashion_mnist_ipc1_small"
    digits = ["--data.name", "digits", "--data.limit", "200", "--model", "convnet-d1-w4-in"]
    short = ["--objective.real_batch", "8", "--outer.steps", "2", "--outer.evaluate_every", "0"]
    assert run("distill", recipe, *digits, *short, "--out", "runs/a") == 0
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(ROOT / "run.py"), "evaluate", "runs/a", *LONG]
    partial = Path("runs/a/evaluation.partial.jsonl")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (partial.exists() and "search/distilled" in partial.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    pids = workers_of(process.pid, WORKER)
    assert len(pids) == 3  # of three networks, which take turns on two cores
    process.send_signal(stop)
    assert process.wait() == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    before = partial.read_text()
    for _ in range(50):
        if not any(map(running, pids)):
            break
        time.sleep(0.1)
    assert not any(map(running, pids))
    assert "search/distilled" in before
    if stop == signal.SIGINT:
        return  # what goes on is the same
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    content = json.loads(Path("runs/a/evaluation.json").read_text())
    assert content["threads"] == 1 and content["processes"] == 3
    (line,) = [json.loads(x) for x in before.splitlines() if "search/distilled" in x]
    assert line["value"]["accuracies"] and not partial.exists()
