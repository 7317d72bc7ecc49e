"""The scripts for SLURM, with stand-ins for sbatch, srun and scontrol."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import MODEL
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "docs" / "examples" / "slurm"
NAMES = ("one_node", "several_nodes", "requeue")
STAND_INS = ROOT / "tests" / "slurm_stand_ins.py"
# says what its rank is, and ends as the file `codes` says: one a time
RANK = """
import json, os, sys
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
facts = {name: os.environ[name] for name in names} | {"words": sys.argv[1:]}
restart = os.environ.get("SLURM_RESTART_COUNT", "0")
Path(f"rank{facts['RANK']}.{restart}.json").write_text(json.dumps(facts))
codes = json.loads(Path("codes.json").read_text())
sys.exit(codes[int(restart)] if facts["RANK"] == "1" else 0)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder to work in, from which sbatch is found."""
    programs, said = tmp_path / "bin", tmp_path / "said"
    for folder in (programs, said):
        folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_INS} {name} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_INS", str(said))
    for name in ("RANK", "WORLD_SIZE", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def submit(name, *words, tasks=2):
    """A job at work, of so many tasks a node."""
    return subprocess.Popen(
        ["sbatch", f"--ntasks-per-node={tasks}", SCRIPTS / f"{name}.sh", *words]
    )


def pretended(cluster, monkeypatch, codes):
    """Ranks that only say what they are, and end with these codes."""
    (cluster / "rank.py").write_text(RANK)
    (cluster / "codes.json").write_text(json.dumps(codes))
    monkeypatch.setenv("DDENGINE", f"{sys.executable} -S rank.py")


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_a_rank(name, cluster, monkeypatch):
    pretended(cluster, monkeypatch, [0])
    assert submit(name, "distill", "dm/x", "--out", "a folder").wait() == 0
    num = 4 if name == "several_nodes" else 2
    ranks = [json.loads((cluster / f"rank{i}.0.json").read_text()) for i in range(num)]
    assert [int(facts["RANK"]) for facts in ranks] == list(range(num))
    assert [int(facts["LOCAL_RANK"]) for facts in ranks] == [i % 2 for i in range(num)]
    address = "127.0.0.1" if name == "one_node" else "localhost"
    for facts in ranks:
        assert facts["words"] == ["distill", "dm/x", "--out", "a folder"]
        assert (facts["WORLD_SIZE"], facts["LOCAL_WORLD_SIZE"]) == (str(num), "2")
        assert (facts["MASTER_ADDR"], facts["MASTER_PORT"]) == (address, "24711")


@pytest.mark.parametrize(
    ("codes", "code"),
    [([138, 143, 75, 0], 0), ([2], 2), ([138, 1], 1)],
    ids=["goes on", "a mistake", "an error later"],
)
def test_a_job_goes_on_until_it_is_done(codes, code, cluster, monkeypatch):
    """After signals, and ranks that are lost; not after a mistake."""
    pretended(cluster, monkeypatch, codes)
    assert submit("requeue", "distill").wait() == code
    assert len(list(cluster.glob("rank1.*.json"))) == len(codes)


def test_a_job_does_not_go_on_for_ever(cluster, monkeypatch):
    pretended(cluster, monkeypatch, [138] * 9)
    monkeypatch.setenv("MOST_RESTARTS", "2")
    assert submit("requeue", "distill").wait() == 138
    assert len(list(cluster.glob("rank1.*.json"))) == 3


RUN = ["distill", "dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200"]
RUN += ["--model", MODEL, "--objective.real_batch", "8", "--outer.steps", "400"]
RUN += ["--outer.evaluate_every", "0", "--outer.checkpoint_every", "1000"]
RUN += ["--outer.picture_every", "0", "--device", "cpu"]


@pytest.mark.slow
def test_a_distillation_is_put_back_and_goes_on(cluster, monkeypatch):
    """Ahead of its limit the ranks get SIGUSR1; the set is that of a job that had none."""
    monkeypatch.setenv("DDENGINE", f"{sys.executable} {ROOT / 'run.py'}")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert submit("one_node", *RUN, "--out", "whole").wait() == 0
    job = submit("requeue", *RUN, "--out", "run")
    log, deadline = cluster / "run" / "metrics.jsonl", time.monotonic() + 600
    while not log.is_file() or log.stat().st_size == 0:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    for task in (cluster.parent / "said" / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    assert job.wait() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 401))
    whole, run = (load_file(f"{name}/distilled/data.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], run[name]) for name in whole)
