"""What the scripts about faults share: small commands, their results, and rows of the table.

Each script writes benchmarks/results/faults_NAME.json; `python benchmarks/faults/table.py` makes
the table in docs/reliability.md of them.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2]))

from ddengine.system import files, runtime

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MODEL = "convnet-d1-w4-in"
DIGITS = ["--data.name", "digits", "--data.limit", "200", "--model", MODEL]
EXPERTS = ["mtt/digits_ipc1", *DIGITS, "--buffer.num_experts", "3", "--buffer.epochs", "30"]
EXPERTS += ["--buffer.batch", "16", "--objective.window.high", "2", "--out", "store"]
DISTILL = ["dm/fashion_mnist_ipc1_small", *DIGITS, "--objective.real_batch", "8"]
DISTILL += ["--outer.steps", "400", "--outer.checkpoint_every", "50"]
DISTILL += ["--outer.evaluate_every", "0", "--outer.picture_every", "0", "--out", "run"]
EVALUATE = ["run", "--epochs", "400", "--num_networks", "3", "--lr_grid", "0.01", "0.03"]
EVALUATE += ["--baselines", "random", "--no-reuse_baselines"]


DECODE = ["dm/fashion_mnist_ipc1_small", "--init.kind", "real", "--data.name", "folder"]
DECODE += ["--data.root", "images", "--data.size", "96", "96", "--data.limit", "None"]
DECODE += ["--data.cache", "cache", "--out", "run"]
NUM_IMAGES, SIDE = 2500, 128  # of which four fifths are decoded, into four blocks


def nothing(folder: Path) -> None:
    """Nothing lies in the folder before the first command."""


def images(folder: Path) -> None:
    """Write image files of noise in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        path = folder / "images" / "ab"[i % 2] / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(path)


@dataclass(frozen=True)
class Stage:
    """A command, the stages that come before it, and what it leaves."""

    command: tuple[str, ...]
    before: tuple[str, ...]
    results: tuple[str, ...]  # patterns of the files that hold its numbers
    prepare: Callable[[Path], None] = nothing  # makes what lies there before the first command


STAGES = {
    "buffer": Stage(("buffer", *EXPERTS), (), ("store/*.safetensors",)),
    "distill": Stage(("distill", *DISTILL), (), ("run/distilled/*.safetensors", "run/*.jsonl")),
    "evaluate": Stage(("evaluate", *EVALUATE), ("distill",), ("run/evaluation.json",)),
    "report": Stage(("report", "run"), ("distill", "evaluate"), ("run/report.html",)),
    "cache": Stage(
        ("select", *DECODE),
        (),
        ("cache/*/*", "run/distilled/*.safetensors"),
        images,
    ),
}
# what tells when a command ran, and not what came of it
TIMES = ("seconds", "command", "processes", "blake2b")


@dataclass(frozen=True)
class Row:
    """A fault, how often it was tried, and what came of it."""

    fault: str
    stage: str
    tried: int
    lost: int  # times that finished work was lost, or a folder could not be continued
    wrong: int  # times that another number came out, and nobody said so
    noticed: int  # times that a command said what was wrong
    note: str = ""


def words(command: Sequence[str]) -> list[str]:
    """The command line of a command of this program."""
    return [sys.executable, str(ROOT / "run.py"), *command]


def environment() -> dict[str, str]:
    """That of a command, which computes on one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(command: Sequence[str], folder: Path, **options: Any) -> "subprocess.Popen[str]":
    """A command at work in a folder, which says all that it says to a pipe."""
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    usual |= {"env": environment()}
    return subprocess.Popen(words(command), cwd=folder, **{**usual, **options})


def finish(command: Sequence[str], folder: Path) -> tuple[int, str, float]:
    """(exit code, what was said, seconds of computation) of a command that runs to its end."""
    return to_its_end(lambda: start(command, folder))


def to_its_end(begin: Callable[[], "subprocess.Popen[str]"]) -> tuple[int, str, float]:
    """The same of a process that `begin` starts; computation is that of all that it starts, too."""
    before = _of_children()
    process = begin()
    said, _ = process.communicate()
    return process.returncode, said, _of_children() - before


def _of_children() -> float:
    """Seconds that processes have computed which this one started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def computed(process: int) -> float:
    """Seconds that a process and all below it have computed so far (Linux).

    How far a command is, on a machine that does other things, is told by this and by no clock.
    """
    path = Path("/proc", str(process))
    try:
        # behind the name, which may hold anything: user and system time, and that of its children
        # that have ended
        times = (path / "stat").read_text().rpartition(")")[2].split()[11:15]
        below = [(task / "children").read_text().split() for task in (path / "task").iterdir()]
    except OSError:  # it has ended
        return 0.0
    seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return seconds + sum(computed(int(child)) for children in below for child in children)


def made_before(folder: Path, stage: Stage) -> None:
    """Make all that comes before a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    stage.prepare(folder)
    made(folder, stage.before)


def made(folder: Path, stages: Sequence[str]) -> None:
    """Run the commands of some stages in a folder; all must succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in stages:
        code, said, _ = finish(STAGES[name].command, folder)
        assert code == 0, said


def numbers(folder: Path, stage: Stage) -> dict[str, str]:
    """A digest of the numbers in each file that a stage leaves."""
    digests = {}
    for pattern in stage.results:
        for path in sorted(folder.glob(pattern)):
            digests[str(path.relative_to(folder))] = _digest(path)
    return digests


def _digest(path: Path) -> str:
    if path.suffix == ".safetensors":
        return files.tensor_digest(files.read_tensors(path)[0])
    if path.suffix == ".json":
        return _hash(json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True))
    content = b"page" if path.suffix == ".html" else path.read_bytes()
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in TIMES}
        return {key: _without_times(part) for key, part in kept.items()}
    if isinstance(value, list):
        return [_without_times(part) for part in value]
    return value


def left_over(folder: Path) -> list[str]:
    """Files of commands that are not at work any more."""
    left = [*folder.rglob(f"{files.TEMPORARY}*"), *folder.rglob(f"*{files.LOCK}")]
    return [str(path) for path in left]


def wait_for_work(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Wait until a process has computed so long; False where it has ended before."""
    while process.poll() is None:
        if computed(process.pid) >= seconds:
            return True
        time.sleep(0.02)
    return False


def wait_for_claim(process: "subprocess.Popen[str]", folder: Path) -> bool:
    """Wait until a command works in a folder, or below it; False where it has ended before."""
    while process.poll() is None:
        if any(folder.rglob(f"*{files.LOCK}")):
            return True
        time.sleep(0.02)
    return False


def write(name: str, settings: dict[str, Any], rows: Sequence[Row]) -> Path:
    """benchmarks/results/faults_NAME.json, with machine, versions and commit."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"faults_{name}.json"
    device = torch.device("cpu")
    where = {
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    content = {"settings": settings, "rows": [asdict(row) for row in rows], **where}
    files.write_json(path, content)
    for row in rows:
        print(row)
    return path
