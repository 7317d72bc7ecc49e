"""Is anything lost or wrong where a command is killed with -9 at any moment?

    python benchmarks/faults/kills.py --times 30 --stages buffer distill evaluate report cache

Each stage runs once to its end. Then it is started again and again in a copy of what is before it,
killed after a random share of the computation that it took (no clock tells, so the machine may do
other things), and started again in the same folder until it has ended; a killed command may be
killed again, up to three times. Its numbers must be those of the unbroken run, to the bit, and no
temporary file or lock may be left.
"""

import random
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import faults
import tyro


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int = 30
    stages: tuple[str, ...] = tuple(faults.STAGES)
    seed: int = 0
    name: str = "kills"


def main(settings: Settings) -> None:
    draw = random.Random(settings.seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in settings.stages:
            rows.append(tried(name, settings.times, draw, Path(place) / name))
    faults.write(settings.name, vars(settings), rows)


def tried(name: str, times: int, draw: random.Random, place: Path) -> faults.Row:
    """What came of so many kills of a stage."""
    stage = faults.STAGES[name]
    faults.made_before(place / "before", stage)
    whole = place / "whole"
    shutil.copytree(place / "before", whole)
    code, said, seconds = faults.finish(stage.command, whole)
    assert code == 0, said
    wanted = faults.numbers(whole, stage)
    kills = lost = wrong = 0
    while kills < times:
        folder = place / "killed"
        shutil.copytree(place / "before", folder)
        for _ in range(draw.randint(1, 3)):
            kills += killed(stage, folder, draw.uniform(0.1, 1.0) * seconds)
        code, said, _ = faults.finish(stage.command, folder)
        if code != 0 or faults.left_over(folder):
            print(said, faults.left_over(folder))
            lost += 1
        elif faults.numbers(folder, stage) != wanted:
            wrong += 1
        shutil.rmtree(folder)
    return faults.Row("killed with -9", name, kills, lost, wrong, 0)


def killed(stage: faults.Stage, folder: Path, seconds: float) -> int:
    """Start a stage and kill it when it has computed so long; 1, or 0 where it had ended."""
    process = faults.start(stage.command, folder, start_new_session=True)
    still = faults.wait_for_work(process, seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return int(still)


if __name__ == "__main__":
    main(tyro.cli(Settings))
