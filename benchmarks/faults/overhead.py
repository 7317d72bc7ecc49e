"""What do checkpoints, digests, locks and the flushing of what is replaced cost a small run?

    python benchmarks/faults/overhead.py --runs 30

A distillation of 400 steps, with a checkpoint after every 100, which is usual, runs many times in
one process. A row says which share of the time that passes is spent in a part: the median, and the
largest. In turn with these runs go others without any of it: the only checkpoint is that of the
end, no digest is computed, no folder is claimed, nothing is flushed. The last row says by how much
the former take longer, the median of pairs with its 95 % interval (by order statistics); that
scatters by more than all parts cost where a machine is not at rest.
"""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import faults
import tyro
from scipy import stats

from ddengine import commands, loop
from ddengine.system import claims, digests, files

EVERY = 100  # steps between checkpoints
# the functions that do it
PARTS: Mapping[str, Sequence[tuple[ModuleType, str]]] = {
    "checkpoints": [(loop, "save_checkpoint")],
    "digests": [
        (digests, name)
        for name in ("with_digest", "of_facts", "of_bytes", "running", "stated_and_computed")
    ],
    "locks": [(claims, "_acquired")],
    "fsync": [(files, "_flush")],
}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    runs: int = 30  # with all parts, and as many without
    steps: int = 400
    name: str = "overhead"


def main(settings: Settings) -> None:
    run(settings.steps, EVERY)  # what is compiled and cached is so from here on
    shares: dict[str, list[float]] = {name: [] for name in (*PARTS, "all")}
    pairs = []
    for number in range(settings.runs):
        took = {}
        for is_without in (False, True) if number % 2 else (True, False):
            if is_without:
                with without():
                    took[is_without] = run(settings.steps, settings.steps)
                continue
            with contextlib.ExitStack() as clocks:
                spent = {name: clocks.enter_context(spent_in(name)) for name in shares}
                took[is_without] = run(settings.steps, EVERY)
            for name, clock in spent.items():
                shares[name].append(clock.seconds / took[is_without])
        pairs.append(took[False] / took[True] - 1)
    rows = []
    for name, of_part in shares.items():
        usual, most = 100 * statistics.median(of_part), 100 * max(of_part)
        note = f"{usual:.2f} % of the time, {most:.2f} at most"
        rows.append(faults.Row(f"cost of {name}", "distill", settings.runs, 0, 0, 0, note))
    low, high = interval(pairs)
    note = f"{100 * statistics.median(pairs):+.2f} % ({100 * low:+.2f} to {100 * high:+.2f})"
    rows.append(faults.Row("with all less without", "distill", settings.runs, 0, 0, 0, note))
    faults.write(settings.name, vars(settings), rows)


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Ends of an interval that holds the median of what these were drawn from, with 95 %."""
    below = max(1, int(stats.binom.ppf(0.025, len(numbers), 0.5)))
    in_order = sorted(numbers)
    return in_order[below - 1], in_order[-below]


class Clock:
    """The seconds that pass in some functions; those of one within another count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_in = False

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on this clock."""

        def timed(*given: Any, **named: Any) -> Any:
            if self._is_in:
                return function(*given, **named)
            self._is_in, began = True, time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds += time.perf_counter() - began
                self._is_in = False

        return timed


@contextlib.contextmanager
def spent_in(part: str) -> Iterator[Clock]:
    """A clock of what is spent in a part within the block."""
    clock = Clock()
    functions = [each for name, of in PARTS.items() if part in (name, "all") for each in of]
    with contextlib.ExitStack() as patches:
        for module, name in functions:
            timed = clock.of(getattr(module, name))
            patches.enter_context(mock.patch.object(module, name, timed))
        yield clock


def run(steps: int, every: int) -> float:
    """Seconds that a small distillation takes, with a checkpoint after `every` steps."""
    folder = Path(tempfile.mkdtemp(dir="."))
    words = [*faults.STAGES["distill"].command[:-1], str(folder / "run")]
    words += ["--outer.steps", str(steps), "--outer.checkpoint_every", str(every)]
    began = time.perf_counter()
    assert commands.main(words) == 0
    took = time.perf_counter() - began
    shutil.rmtree(folder)
    return took


@contextlib.contextmanager
def without() -> Iterator[None]:
    """Within the block no digest is computed, no folder claimed, nothing flushed."""
    with contextlib.ExitStack() as patches:
        for module, name, instead in (
            (digests, "with_digest", lambda content: ("", [content])),
            (files, "sealed", lambda value: value),
            (claims, "claimed", lambda *of, **how: contextlib.nullcontext()),
            (files, "_flush", lambda path: None),
        ):
            patches.enter_context(mock.patch.object(module, name, instead))
        yield


if __name__ == "__main__":
    main(tyro.cli(Settings))
