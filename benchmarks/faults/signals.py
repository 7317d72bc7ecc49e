"""Does a command that a signal asks to end finish its step, say so, and go on from there?

    python benchmarks/faults/signals.py --times 5

Each signal is sent in each stage after a random share of its computation. The exit code must be 128
and the number of the signal, and the same command must come to the numbers of an unbroken run. A
signal that came when the work was done does not count. Of a distillation no step may be made twice.
A signal is not sent while Python imports, in which it ends the program as any other.
"""

import json
import random
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import faults
import tyro

SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1")


PATIENCE = 5  # commands for each signal that is to come before the work is over


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int = 5
    stages: tuple[str, ...] = ("buffer", "distill", "evaluate")
    signals: tuple[str, ...] = SIGNALS
    seed: int = 0
    name: str = "signals"


def main(settings: Settings) -> None:
    # a shell has the processes that it starts in the background ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(settings.seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in settings.stages:
            stage, folder = faults.STAGES[name], Path(place) / name
            faults.made_before(folder / "before", stage)
            shutil.copytree(folder / "before", folder / "whole")
            code, said, seconds = faults.finish(stage.command, folder / "whole")
            assert code == 0, said
            for number in settings.signals:
                rows.append(tried(name, number, settings.times, seconds, draw, folder))
    faults.write(settings.name, vars(settings), rows)


def tried(
    name: str, number: str, times: int, seconds: float, draw: random.Random, place: Path
) -> faults.Row:
    """What came of a signal in a stage that takes so many seconds of computation."""
    stage = faults.STAGES[name]
    wanted = faults.numbers(place / "whole", stage)
    counted = lost = wrong = said_so = 0
    for _ in range(PATIENCE * times):
        if counted == times:
            break
        folder = place / "asked"
        shutil.copytree(place / "before", folder)
        code, said = asked(stage, folder, number, draw.uniform(0.5, 0.9) * seconds)
        in_work = code != 0 and faults.numbers(folder, stage) != wanted  # else it came too late
        counted += in_work
        said_so += "the same command continues" in said
        ended_well = not in_work or code == 128 + getattr(signal, number)
        continued, more, _ = faults.finish(stage.command, folder)
        if not ended_well or continued != 0 or steps_made_twice(folder):
            print(number, code, said[-500:], more[-500:])
            lost += 1
        elif faults.numbers(folder, stage) != wanted:
            wrong += 1
        shutil.rmtree(folder)
    return faults.Row(f"{number} in its work", name, counted, lost, wrong, said_so)


def asked(stage: faults.Stage, folder: Path, number: str, seconds: float) -> tuple[int, str]:
    """(exit code, what was said) of a stage that gets a signal when it has computed so long."""
    process = faults.start(stage.command, folder)
    if faults.wait_for_work(process, seconds) and faults.wait_for_claim(process, folder):
        process.send_signal(getattr(signal, number))
    said, _ = process.communicate()
    return process.returncode, said


def steps_made_twice(folder: Path) -> bool:
    """Whether the log of a distillation tells of a step twice."""
    path = folder / "run" / "metrics.jsonl"
    if not path.is_file():
        return False
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    return len(steps) != len(set(steps))


if __name__ == "__main__":
    main(tyro.cli(Settings))
