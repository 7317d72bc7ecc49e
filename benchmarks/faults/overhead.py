"""What do checkpoints, digests, locks and the flushing of what is replaced cost a small run?

    python benchmarks/faults/overhead.py --pairs 15

The same distillation, with a checkpoint after every 100 steps, which is usual, runs in turn with
and without each of them, in one process; without: the only checkpoint is that of the end, no digest
is computed, no folder is claimed, nothing is flushed. The row says the median of the differences
within pairs, of the time that passes and of that which the process computes, which other work on
the machine hardly moves; waiting for a disk is in the first alone.
"""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import faults
import tyro

from ddengine import commands
from ddengine.system import claims, digests, files

PARTS = ("checkpoints", "digests", "locks", "fsync", "all")
EVERY = 100  # steps between checkpoints


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    pairs: int = 15
    steps: int = 400
    name: str = "overhead"


def main(settings: Settings) -> None:
    rows = []
    for part in PARTS:
        run(settings.steps, EVERY)  # what is compiled and cached is so from here on
        pairs = []
        for number in range(settings.pairs):
            order = (False, True) if number % 2 else (True, False)
            took = {}
            for is_without in order:
                every = settings.steps if is_without and part in ("checkpoints", "all") else EVERY
                with without(part) if is_without else contextlib.nullcontext():
                    took[is_without] = run(settings.steps, every)
            pairs.append((took[False], took[True]))
        said = [_share(pairs, which) for which in (0, 1)]
        note = f"{said[0]} of time, {said[1]} of computation; medians of {settings.pairs} pairs"
        rows.append(faults.Row(f"cost of {part}", "distill", settings.pairs, 0, 0, 0, note))
    faults.write(settings.name, vars(settings), rows)


Took = tuple[float, float]  # seconds that passed, seconds of computation


def _share(pairs: Sequence[tuple[Took, Took]], which: int) -> str:
    """How much more runs with a part take, and of how much."""
    share = statistics.median(with_[which] / none[which] - 1 for with_, none in pairs)
    seconds = statistics.median(with_[which] for with_, _ in pairs)
    return f"{100 * share:+.2f} % of {seconds:.2f} s"


def run(steps: int, every: int) -> Took:
    """What a small distillation takes, with a checkpoint after `every` steps."""
    folder = Path(tempfile.mkdtemp(dir="."))
    words = [*faults.STAGES["distill"].command[:-1], str(folder / "run")]
    words += ["--outer.steps", str(steps), "--outer.checkpoint_every", str(every)]
    began, computed = time.perf_counter(), time.process_time()
    assert commands.main(words) == 0
    took = time.perf_counter() - began, time.process_time() - computed
    shutil.rmtree(folder)
    return took


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    """Within the block a part costs nothing; checkpoints are not made by flags of the run."""
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
