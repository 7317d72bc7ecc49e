"""What comes of several ranks where one of them is killed, or stopped, or all are asked to end?

    python benchmarks/faults/ranks.py --times 10

`killed`: a rank is killed with -9 after a random share of the computation, and torchrun starts all
of them again (--max-restarts). `stopped`: a rank is stopped (SIGSTOP); the others must name it
within --dist_timeout and end, and the same command must come to its end then. `asked`: SIGTERM to
the launcher. All must come to the set of an unbroken run, to the bit. Gloo's rendezvous fails now
and then by itself (a port that somebody else took), which is counted apart and tried again.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import faults
import tyro

FAULTS = ("killed", "stopped", "asked")
# what torch says where a group does not come about, whoever asks for it
RENDEZVOUS = re.compile(r"RendezvousConnectionError|address already in use|EADDRINUSE|RendezvousT")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int = 10
    faults: tuple[str, ...] = FAULTS
    ranks: int = 2
    # seconds of silence that a rank is given, which each trial of `stopped` waits; a machine that
    # does other things takes many
    timeout: float = 40.0
    seed: int = 0
    name: str = "ranks"


def main(settings: Settings) -> None:
    draw = random.Random(settings.seed)
    stage = faults.STAGES["distill"]
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        code, said, seconds = finish(stage, settings, whole)
        assert code == 0, said
        rows = []
        for fault in settings.faults:
            rows.append(tried(fault, settings, draw, seconds, Path(place)))
    faults.write(settings.name, vars(settings), rows)


def launched(stage: faults.Stage, settings: Settings, folder: Path) -> "subprocess.Popen[str]":
    """A stage on so many ranks, of a launcher that starts them again where one fails."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(settings.ranks),
    ]
    launcher += ["--max_restarts", "3", str(faults.ROOT / "run.py")]
    return subprocess.Popen(
        [sys.executable, *launcher, *stage.command, "--dist_timeout", str(settings.timeout)],
        cwd=folder,
        env=faults.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(stage: faults.Stage, settings: Settings, folder: Path) -> tuple[int, str, float]:
    """(exit code, what was said, seconds of computation) of ranks that nothing disturbs."""
    return faults.to_its_end(lambda: launched(stage, settings, folder))


def tried(
    fault: str, settings: Settings, draw: random.Random, seconds: float, place: Path
) -> faults.Row:
    """What came of a fault so many times; an unbroken run computes for so many seconds."""
    stage = faults.STAGES["distill"]
    wanted = faults.numbers(place / "whole", stage)
    lost = wrong = said_so = rendezvous = by_hand = 0
    for _ in range(settings.times):
        folder = place / "disturbed"
        folder.mkdir()
        code, said = disturbed(fault, settings, draw, seconds, folder)
        said_so += bool(re.search(r"has not answered|the same command continues|continuing", said))
        for _ in range(3):  # what was not started again goes on by the same command
            if code == 0:
                break
            rendezvous += bool(RENDEZVOUS.search(said))
            if fault == "killed":  # which torchrun makes good by itself
                by_hand += 1
                print(said[-3000:])
            code, said, _ = finish(stage, settings, folder)
        if code != 0 or faults.left_over(folder):
            print(said[-3000:], faults.left_over(folder))
            lost += 1
        elif faults.numbers(folder, stage) != wanted:
            wrong += 1
        shutil.rmtree(folder)
    note = f"{by_hand} times torchrun gave up; {rendezvous} times no group came about"
    name = {"killed": "a rank killed with -9", "stopped": "a rank stopped (SIGSTOP)"}
    fault = name.get(fault, "SIGTERM to the launcher")
    return faults.Row(
        fault, f"distill, {settings.ranks} ranks", settings.times, lost, wrong, said_so, note
    )


def disturbed(
    fault: str, settings: Settings, draw: random.Random, seconds: float, folder: Path
) -> tuple[int, str]:
    """(exit code, what was said) of ranks to which a fault happens."""
    process = launched(faults.STAGES["distill"], settings, folder)
    if faults.wait_for_work(process, draw.uniform(0.4, 0.95) * seconds):
        victims = children(process.pid)
        if fault == "asked" or not victims:
            process.send_signal(signal.SIGTERM)
        else:
            number = signal.SIGKILL if fault == "killed" else signal.SIGSTOP
            os.kill(draw.choice(victims), number)
    said, _ = process.communicate()
    return process.returncode, said


def children(of: int) -> list[int]:
    """The processes that a process has started and that are there."""
    found = subprocess.run(["pgrep", "-P", str(of)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


if __name__ == "__main__":
    main(tyro.cli(Settings))
