"""Commands on two ranks: the numbers of one process, and what faults of a rank come to.

Gloo's rendezvous fails now and then by itself (a port that somebody took in between), so what
comes of ranks is asked again where they did not come together.
"""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers import MODEL, run
from safetensors.torch import load_file

from ddengine.system.heartbeat import LOST

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--data.name", "digits", "--data.limit", "200", "--model", MODEL, "--device", "cpu"]
DISTILL = ["distill", "dm/fashion_mnist_ipc1_small", *SMALL, "--objective.real_batch", "8"]
DISTILL += ["--outer.evaluate_every", "0", "--outer.picture_every", "0"]
LONG = [*DISTILL, "--outer.steps", "600", "--outer.checkpoint_every", "50"]
QUICK = ["--epochs", "5", "--num_networks", "3", "--lr_grid", "0.01", "0.03"]
TRIES = 3
NOT_MET = re.compile(r"did not come together|address already in use|EADDRINUSE|RendezvousConn")


def environment(rank: int, port: int) -> dict[str, str]:
    """That of one of two ranks, as a launcher makes it."""
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | ours | {name: str(value) for name, value in facts.items()}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(words: list[str]) -> "list[subprocess.Popen[str]]":
    """Two ranks at work."""
    command, port = [sys.executable, str(ROOT / "run.py"), *words], free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment(i, port), **pipes) for i in range(2)]


def ends(ranks: "list[subprocess.Popen[str]]") -> list[tuple[int, str]]:
    """(exit code, what was said) of each."""
    said = [rank.communicate(timeout=900)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def together(words: list[str]) -> list[tuple[int, str]]:
    """What comes of a command on two ranks."""
    for _ in range(TRIES):
        ended = ends(started(words))
        if not any(NOT_MET.search(said) for _, said in ended):
            break
    return ended


ALONE = ("--standalone", "--nproc_per_node", "2")


def launched(words: list[str], where: Sequence[str] = ALONE) -> "subprocess.Popen[str]":
    """Ranks of torchrun, two where nothing else is said; it starts them again where one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", *where, "--max_restarts", "2"]
    command += [str(ROOT / "run.py"), *words]
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | ours, **pipes)


def children(of: int) -> list[int]:
    """The processes that a process has started and that are there."""
    found = subprocess.run(["pgrep", "-P", str(of)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def wait_for(ready: Callable[[], bool], *processes: "subprocess.Popen[str]") -> None:
    """Wait until something has come about, as long as processes are at work."""
    deadline = time.monotonic() + 600
    while not ready():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def steps(folder: str) -> list[int]:
    """Those of which the log of a run tells."""
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def same_set(first: str, second: str) -> bool:
    """Whether two runs have the same set, to the bit."""
    one, other = (load_file(f"{name}/distilled/data.safetensors") for name in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    (first, said), (second, silent) = together([*LONG, "--out", str(folder)])
    assert (first, second) == (0, 0), said + silent
    assert silent == "", "the first rank alone speaks"
    return str(folder)


def test_a_stopped_rank_is_named_and_the_command_goes_on(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(TRIES):
        ranks = started([*LONG, "--dist_timeout", "20", "--out", "run"])
        wait_for(Path("run/checkpoint/state.safetensors").exists, *ranks)
        ranks[1].send_signal(signal.SIGSTOP)
        said = ranks[0].communicate(timeout=300)[0]
        ranks[1].kill()
        ranks[1].communicate()
        if not NOT_MET.search(said):
            break
    assert ranks[0].returncode == LOST
    complaint = next(line for line in said.splitlines() if line.startswith("error: "))
    who = rf"error: Rank 1 \(process {ranks[1].pid} on \S+\) has not answered for 20 s "
    assert re.match(who + r"\(--dist_timeout\), so rank 0 ends; the same command", complaint)
    assert "Traceback" not in said
    (code, said), _ = together([*LONG, "--out", "run"])
    assert code == 0 and "continuing at step" in said
    assert same_set("run", whole) and steps("run") == list(range(1, 601))


def test_torchrun_starts_killed_ranks_again(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launcher = launched([*LONG, "--out", "run"])
    wait_for(Path("run/checkpoint/state.safetensors").exists, launcher)
    os.kill(children(launcher.pid)[-1], signal.SIGKILL)
    said = launcher.communicate(timeout=900)[0]
    if launcher.returncode != 0 and NOT_MET.search(said):
        (code, said), _ = together([*LONG, "--out", "run"])
        assert code == 0, said
    else:
        assert launcher.returncode == 0, said
        assert "continuing at step" in said
    assert same_set("run", whole) and steps("run") == list(range(1, 601))


def test_two_launchers_start_their_ranks_again(whole, tmp_path, monkeypatch):
    """As on two machines, each of which counts the failures of its own ranks alone."""
    monkeypatch.chdir(tmp_path)
    where = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
    where += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", "two"]
    launchers = [launched([*LONG, "--out", "run"], where) for _ in range(2)]
    wait_for(Path("run/checkpoint/state.safetensors").exists, *launchers)
    os.kill(children(launchers[1].pid)[-1], signal.SIGKILL)
    said = "".join(text for _, text in ends(launchers))
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert "continuing at step" in said
    assert same_set("run", whole) and steps("run") == list(range(1, 601))


def test_a_signal_to_the_launcher_ends_all_ranks_at_one_step(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*LONG, "--outer.checkpoint_every", "1000", "--out", "run"]
    launcher = launched(words)
    log = Path("run/metrics.jsonl")
    wait_for(lambda: log.is_file() and log.stat().st_size > 0, launcher)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=300)[0]
    (step,) = re.findall(r"stopped by SIGTERM at step (\d+) of 600", said)
    assert steps("run") == list(range(1, int(step) + 1))
    (code, said), _ = together([*LONG, "--outer.checkpoint_every", "1000", "--out", "run"])
    assert code == 0 and f"continuing at step {step} of 600" in said
    assert steps("run") == list(range(1, 601))


def test_a_signal_to_one_rank_ends_both(tmp_path, monkeypatch):
    """With its code, and a checkpoint of the step that both have finished."""
    monkeypatch.chdir(tmp_path)
    ranks = started([*LONG, "--outer.checkpoint_every", "1000", "--out", "run"])
    log = Path("run/metrics.jsonl")
    wait_for(lambda: log.is_file() and log.stat().st_size > 0, *ranks)
    ranks[1].send_signal(signal.SIGUSR1)
    (first, said), (second, silent) = ends(ranks)
    assert (first, second) == (128 + signal.SIGUSR1,) * 2, said + silent
    assert re.search(r"stopped by SIGUSR1 at step \d+ of 600", said) and silent == ""
    assert Path("run/checkpoint/state.safetensors").is_file()


def test_another_number_of_ranks_is_refused(tmp_path, monkeypatch, capsys):
    """Each adds a draw to every step."""
    monkeypatch.chdir(tmp_path)
    words = [*DISTILL, "--outer.steps", "4", "--outer.checkpoint_every", "2", "--out", "run"]
    (code, said), _ = together(words)
    assert code == 0, said
    Path("run/distilled/meta.json").unlink()
    assert run(*words) == 2
    assert "begun on 2 ranks" in capsys.readouterr().err


def test_a_mistake_is_said_once(tmp_path, monkeypatch):
    """Whether all ranks see it, or the first alone."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    for words in ([*DISTILL, "--ipc", "0"], [*DISTILL, "--outer.steps", "2", "--out", "run"]):
        (first, said), (second, silent) = together(words)
        assert (first, second) == (2, 2), said + silent
        assert said.count("error: ") == 1 and silent == "", said + silent


def accuracies(path: str) -> list:
    """Of all networks of an evaluation."""
    return [row["accuracies"] for row in json.loads(Path(path).read_text())["rows"]]


def test_evaluations_are_those_of_one_process(tmp_path, monkeypatch):
    """Also the table that is printed, by the first rank."""
    monkeypatch.chdir(tmp_path)
    assert run(*DISTILL, "--outer.steps", "2", "--out", "run") == 0
    models = [MODEL, "mlp", "convnet-d2-w4-in"]
    every = ["--device", "cpu", *QUICK, "--models", *models]
    commands = {
        "evaluation.json": ["evaluate", "run", *every, "--baselines", "random", "herding", "full"],
        "ranking/evaluation.json": ["rank", "run", *every, "--baselines", "random"],
        "scores/plain/evaluation.json": ["score", "run", *every],
    }
    printed = {"evaluate": "test accuracy on", "rank": "order of 3 networks", "score": "n = 3"}
    for made, words in commands.items():
        assert run(*words, "--out", "one") == 0
        (first, said), (second, silent) = together([*words, "--out", "two"])
        assert (first, second) == (0, 0) and silent == "", said + silent
        assert printed[words[0]] in said
        assert accuracies(f"two/{made}") == accuracies(f"one/{made}")
        assert json.loads(Path("two", made).read_text())["processes"] == 2
    one, two = (sorted(p.name for p in Path(name).rglob("*")) for name in ("one", "two"))
    assert one == two


def test_teachers_and_experts_are_shared(tmp_path, monkeypatch):
    """Two teachers of one expert each: both ranks train one; the stores are those of one process."""
    monkeypatch.chdir(tmp_path)
    words = ["buffer", "rded/fashion_mnist_ipc10_small", *SMALL, "--buffer.epochs", "4"]
    words += ["--teachers", MODEL, "convnet-d2-w4-in"]
    assert run(*words, "--out", "one") == 0
    (first, said), (second, silent) = together([*words, "--out", "two"])
    assert (first, second) == (0, 0) and silent == "", said + silent
    shards = sorted(path.relative_to("one") for path in Path("one").rglob("expert_*.safetensors"))
    assert len(shards) >= 2
    for shard in shards:
        one, two = load_file(Path("one", shard)), load_file(Path("two", shard))
        assert all(torch.equal(one[name], two[name]) for name in one)


def comparison(folder: str) -> list[dict[str, str]]:
    """The rows of a sweep, without what they took and where the runs lie."""
    other = ("seconds", "runs")
    rows = list(csv.DictReader(Path(folder, "comparison.csv").open()))
    return [{name: value for name, value in row.items() if name not in other} for row in rows]


def test_a_sweep_is_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", *DISTILL[1:], "--outer.steps", "3", *QUICK, "--baselines", "random"]
    words += ["--grid", "outer.optim.images.lr=1,10", "--seeds", "0,1", "--jobs", "1"]
    (first, said), (second, silent) = together([*words, "--out", "two"])
    assert (first, second) == (0, 0) and silent == "", said + silent
    assert "4 runs; 2 at a time on 2 ranks" in said and "images.lr" in said
    assert run(*words, "--out", "one") == 0
    names = sorted(path.name for path in Path("one/runs").iterdir() if path.name != ".baselines")
    assert len(names) == 4
    for name in names:
        assert same_set(f"one/runs/{name}", f"two/runs/{name}")
        one, two = (f"{folder}/runs/{name}/evaluation.json" for folder in ("one", "two"))
        assert accuracies(one) == accuracies(two)
    assert comparison("one") == comparison("two")


def test_a_sweep_on_a_cluster_is_that_of_one_process(tmp_path, monkeypatch):
    """Jobs of submitit's local executor, which are no part of this process."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    words = ["sweep", *DISTILL[1:], "--outer.steps", "3", *QUICK, "--baselines", "random"]
    words += ["--grid", "outer.optim.images.lr=1,10", "--jobs", "2"]
    assert run(*words, "--cluster", "local", "--out", "jobs") == 0
    assert list(Path("jobs/jobs").glob("*_result.pkl")), "jobs of submitit made it"
    assert run(*words, "--out", "here") == 0
    for name in ("images.lr=1,seed=0", "images.lr=10,seed=0"):
        assert same_set(f"jobs/runs/{name}", f"here/runs/{name}")
    assert comparison("jobs") == comparison("here")
