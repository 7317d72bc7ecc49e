"""What comes of two commands that are started at once for one folder?

    python benchmarks/faults/pairs.py --times 20

Both distill (or train experts) with different rates, the second when the first has done a random
part of the first half of its computation. One must end with 0, the other with 2 and a sentence that
says who works there or that the folder holds another run; recipe and images must be of the same
command, to the bit of a run that was alone. With `--wait` both ask for the same run, and both must
end with 0.
"""

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import faults
import tyro

RATE = {"distill": "--outer.optim.images.lr", "buffer": "--buffer.step.lr"}
VALUES = {"distill": ("1.0", "2.0"), "buffer": ("0.01", "0.02")}
SENTENCES = ("Another command works in", "with other settings", "was made with other settings")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int = 20
    seed: int = 0
    name: str = "pairs"


def main(settings: Settings) -> None:
    draw = random.Random(settings.seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in ("distill", "buffer"):
            alone = [made_alone(name, value, Path(place)) for value in VALUES[name]]
            rows.append(tried(name, settings.times, draw, Path(place), alone))
            if name == "distill":
                rows.append(waited(max(1, settings.times // 4), draw, Path(place), alone[0]))
    faults.write(settings.name, vars(settings), rows)


@dataclass(frozen=True)
class Alone:
    """A run that nobody disturbs."""

    numbers: dict[str, str]
    seconds: float  # of computation


def made_alone(name: str, value: str, place: Path) -> Alone:
    """Such a run."""
    folder = place / f"{name}-{value}"
    folder.mkdir()
    code, said, seconds = faults.finish((*faults.STAGES[name].command, RATE[name], value), folder)
    assert code == 0, said
    return Alone(faults.numbers(folder, faults.STAGES[name]), seconds)


def tried(
    name: str, times: int, draw: random.Random, place: Path, alone: list[Alone]
) -> faults.Row:
    """What came of so many pairs with different rates."""
    stage = faults.STAGES[name]
    lost = wrong = refused = 0
    for _ in range(times):
        folder = place / "pair"
        folder.mkdir()
        processes = []
        for value in VALUES[name]:
            processes.append(faults.start((*stage.command, RATE[name], value), folder))
            faults.wait_for_work(processes[0], draw.uniform(0.0, 0.5) * alone[0].seconds)
        said = [process.communicate()[0] for process in processes]
        codes = [process.returncode for process in processes]
        refused += any(sentence in " ".join(said) for sentence in SENTENCES)
        if sorted(codes) != [0, 2]:
            print(codes, [text[-300:] for text in said])
            lost += 1
        elif faults.numbers(folder, stage) != alone[codes.index(0)].numbers or not fits(
            name, folder, codes
        ):
            wrong += 1
        shutil.rmtree(folder)
    return faults.Row("two at once, different settings", name, times, lost, wrong, refused)


def fits(name: str, folder: Path, codes: list[int]) -> bool:
    """Whether the folder says that it was made by the command that ended with 0."""
    value = float(VALUES[name][codes.index(0)])
    if name == "buffer":
        identity = json.loads((folder / "store" / "manifest.json").read_text())["identity"]
        return identity["buffer"]["step"]["lr"] == value
    recipe = json.loads((folder / "run" / "recipe.json").read_text())["recipe"]
    return recipe["outer"]["optim"]["images"]["lr"] == value


def waited(times: int, draw: random.Random, place: Path, alone: Alone) -> faults.Row:
    """What came of pairs that ask for the same run and wait for each other."""
    stage = faults.STAGES["distill"]
    lost = wrong = 0
    for _ in range(times):
        folder = place / "pair"
        folder.mkdir()
        processes = []
        for _ in range(2):
            processes.append(faults.start((*stage.command, "--wait"), folder))
            faults.wait_for_work(processes[0], draw.uniform(0.0, 0.5) * alone.seconds)
        codes = [process.wait() for process in processes if process.communicate()]
        steps = len((folder / "run" / "metrics.jsonl").read_text().splitlines())
        lost += codes != [0, 0]
        wrong += steps != 400
        shutil.rmtree(folder)
    return faults.Row("two at once, the same settings, --wait", "distill", times, lost, wrong, 0)


if __name__ == "__main__":
    main(tyro.cli(Settings))
