"""What comes of a disk that is full from one write on?

    python benchmarks/faults/full.py                 # at every write; at 12 of them: --times 12

A stage runs once with its writes counted; a distillation has 40 steps, because each writes a line.
Then it runs again and again in a copy of what is before it, on a disk that is full from a write on,
of each write or of some that are spread over all; a command must end with 2 and a sentence that
names a file. The same command with space again must come to the numbers of the
unbroken run. Writes fail in the C library (full.c, LD_PRELOAD), so those of every library do; needs
Linux and cc.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import faults
import tyro

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int | None = None  # writes of each stage, at most; None: all
    stages: tuple[str, ...] = tuple(faults.STAGES)
    name: str = "full"


def main(settings: Settings) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        library = place / "full.so"
        command = ["cc", "-shared", "-fPIC", "-o", str(library), str(HERE / "full.c"), "-ldl"]
        subprocess.run(command, check=True)
        for stage in settings.stages:
            rows.append(tried(stage, settings.times, library, place / stage))
    faults.write(settings.name, vars(settings), rows)


def tried(name: str, times: int | None, library: Path, place: Path) -> faults.Row:
    """What came of a stage on disks that are full from a write on."""
    stage = short(faults.STAGES[name])
    faults.made_before(place / "before", stage)
    whole = shutil.copytree(place / "before", place / "whole")
    code, said = on_full(stage, whole, library, 0)
    assert code == 0, said
    wanted = faults.numbers(whole, stage)
    writes = len((place / "count").read_text().splitlines())
    num = min(times or writes, writes)
    chosen = sorted({1 + round(i * (writes - 1) / max(1, num - 1)) for i in range(num)})
    lost = wrong = noticed = 0
    for write in chosen:
        folder = shutil.copytree(place / "before", place / "full")
        code, said = on_full(stage, folder, library, write)
        if code == 2 and "No space left on device" in said and "Traceback" not in said:
            noticed += 1
        elif code != 0:
            print(write, code, said[-600:])
            lost += 1
        continued, more, _ = faults.finish(stage.command, folder)
        if continued != 0:
            print(write, more[-600:])
            lost += 1
        elif faults.numbers(folder, stage) != wanted:
            wrong += 1
        shutil.rmtree(folder)
    note = f"of {writes} writes"
    return faults.Row("disk full", name, len(chosen), lost, wrong, noticed, note)


def short(stage: faults.Stage) -> faults.Stage:
    """The same with fewer outer steps, where it has any."""
    words = list(stage.command)
    for flag, value in (("--outer.steps", "40"), ("--outer.checkpoint_every", "10")):
        if flag in words:
            words[words.index(flag) + 1] = value
    return replace(stage, command=tuple(words))


def on_full(stage: faults.Stage, folder: Path, library: Path, write: int) -> tuple[int, str]:
    """(exit code, what was said) of a stage whose writes fail from one on; 0: none."""
    full = {
        "LD_PRELOAD": str(library),
        "FULL_BELOW": str(folder.resolve()),
        "FULL_FROM": str(write),
        "FULL_COUNT": str(folder.parent / "count"),
    }
    (folder.parent / "count").unlink(missing_ok=True)
    process = faults.start(stage.command, folder, env=faults.environment() | full)
    said, _ = process.communicate()
    return process.returncode, said


if __name__ == "__main__":
    main(tyro.cli(Settings))
