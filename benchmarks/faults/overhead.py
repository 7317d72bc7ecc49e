"""What do digests, locks and the flushing of what is replaced cost a small run?

    python benchmarks/faults/overhead.py --pairs 15

The same distillation, with a checkpoint after every 20 steps, runs in turn with and without each of
them, in one process; without: no digest is computed, no folder is claimed, nothing is flushed. The
row says the median seconds and the median of the differences within pairs.
"""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import faults
import tyro

from ddengine import commands
from ddengine.system import claims, digests, files

PARTS = ("digests", "locks", "fsync", "all")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    pairs: int = 15
    steps: int = 400
    name: str = "overhead"


def main(settings: Settings) -> None:
    rows = []
    for part in PARTS:
        run(settings.steps)  # what is compiled and cached is so from here on
        pairs = []
        for number in range(settings.pairs):
            order = (False, True) if number % 2 else (True, False)
            took = {}
            for is_without in order:
                with without(part) if is_without else contextlib.nullcontext():
                    took[is_without] = run(settings.steps)
            pairs.append((took[False], took[True]))
        share = statistics.median(with_ / none - 1 for with_, none in pairs)
        seconds = statistics.median(with_ for with_, _ in pairs)
        note = f"{100 * share:+.2f} % of {seconds:.2f} s, median of {settings.pairs} pairs"
        rows.append(faults.Row(f"cost of {part}", "distill", settings.pairs, 0, 0, 0, note))
    faults.write(settings.name, vars(settings), rows)


def run(steps: int) -> float:
    """Seconds of a small distillation."""
    folder = Path(tempfile.mkdtemp(dir="."))
    words = [*faults.STAGES["distill"].command[:-1], str(folder / "run")]
    words += ["--outer.steps", str(steps), "--outer.checkpoint_every", "20"]
    began = time.perf_counter()
    assert commands.main(words) == 0
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    """Within the block a part costs nothing."""
    with contextlib.ExitStack() as patches:
        if part in ("digests", "all"):
            plain = mock.patch.object(digests, "with_digest", lambda content: ("", [content]))
            patches.enter_context(plain)
            sealed = mock.patch.object(files, "sealed", lambda value: value)
            patches.enter_context(sealed)
        if part in ("locks", "all"):
            free = mock.patch.object(claims, "claimed", lambda *of: contextlib.nullcontext())
            patches.enter_context(free)
        if part in ("fsync", "all"):
            patches.enter_context(mock.patch.object(files, "_flush", lambda path: None))
        yield


if __name__ == "__main__":
    main(tyro.cli(Settings))
