"""transfer killed in the middle, and begun again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, MODEL, run, tiny_data, tiny_set

import synth
from ddengine.api.results import Distilled
from ddengine.recipe import EvalConfig
from ddengine.system import digests
from ddengine.system.configs import to_dict

RUN = Path(__file__).resolve().parents[2] / "run.py"
FLAGS = [
    "--to", "digits", "--limit", "150", "--validation", "0.2", "--updates", "6", "--few_updates", "3",
    "--shots", "2", "--device", "cpu", "--controls", "none", "--batch", "64", "--decay_grid", "0.1", "1", "--lr_grid", "0.01", "0.1",
]  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A set with drawn features in tmp_path/set."""
    monkeypatch.chdir(tmp_path)
    data = tiny_data()
    syn = tiny_set(data)
    features = torch.randn(len(syn), 8, generator=torch.Generator().manual_seed(0))
    protocol = EvalConfig(protocol="own", epochs=30, num_networks=3)
    recipe = synth.find("mtt/digits_ipc1", model=MODEL, evaluation=protocol, data=DIGITS, ipc=2)
    meta = {"recipe": to_dict(recipe), "seed": 0, "images": data.train.digest}
    Distilled(syn.with_features(features), meta).save(tmp_path / "set")
    return tmp_path


def started(out: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, str(RUN), "transfer", "set", *FLAGS, "--out", out]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_bit(work):
    """Rows that were finished stay, and the numbers are those of a command that was left alone."""
    killed = started("killed")
    lines = work / "killed/transfer.partial.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and killed.poll() is None:
        if lines.is_file() and lines.read_bytes().count(b"\n") >= 12:
            break
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was done before it could be killed"
    before = lines.read_bytes()
    assert before.count(b"\n") >= 12 and not (work / "killed/transfer.json").exists()
    assert list((work / "killed/transfer.networks").iterdir())
    contents = []
    for name in ("killed", "alone"):
        assert run("transfer", "set", *FLAGS, "--out", name) == 0
        assert [path.name for path in (work / name).iterdir()] == ["transfer.json"]
        content = json.loads((work / name / "transfer.json").read_text())
        for row in content["rows"]:
            row.pop("seconds")
        for changing in ("seconds", "command", digests.KEY):
            content.pop(changing)
        contents.append(content)
    assert contents[0] == contents[1]
