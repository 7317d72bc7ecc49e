"""Does a file that a stranger may have made ever end in a traceback, or without an end?

    python benchmarks/faults/strangers.py --times 10000        # make test-fuzz

Files of a store, of sets with hard and soft labels, of evaluations and of runs are spoiled, one at
a time (`strange.py`), and what reads them is asked to. It must do its work or say a sentence.
Exits with 1 where anything else came of it.
"""

import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import faults
import strange
import tyro
from hypothesis import HealthCheck, Phase, given, seed, settings

# bytes of address space beyond what the program has when it begins; more is no file's to ask for
MEMORY = 8 * 2**30


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int = 10_000
    seed: int = 0
    name: str = "strangers"


def main(asked: Settings) -> int:
    with tempfile.TemporaryDirectory() as name:
        sound = Path(name) / "sound"
        strange.made(sound)
        limit_memory()
        outcomes = outcomes_of(asked, sound, Path(name) / "place")
    rows = []
    wrong = 0
    for file in sorted({trial.file for trial, _ in outcomes}):
        of_file = [came for trial, came in outcomes if trial.file == file]
        counts = Counter(came.partition(":")[0] for came in of_file)
        bad = counts["fault"] + counts["hang"]
        wrong += bad
        note = f"{counts['fault']} tracebacks, {counts['hang']} hangs"
        rows.append(
            faults.Row("changed by a stranger", file, len(of_file), 0, bad, counts["said"], note)
        )
    faults.write(asked.name, vars(asked), rows)
    return 1 if wrong else 0


def outcomes_of(asked: Settings, sound: Path, place: Path) -> list[tuple[strange.Trial, str]]:
    """What came of each trial; of each kind of fault the first is printed."""
    outcomes: list[tuple[strange.Trial, str]] = []
    kinds = set[str]()
    began = time.monotonic()

    @seed(asked.seed)
    @settings(
        max_examples=asked.times,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(strange.trials())
    def one(trial: strange.Trial) -> None:
        came = strange.tried(trial, sound, place)
        outcomes.append((trial, came))
        if came not in ("done", "said") and came not in kinds:
            kinds.add(came)
            print(f"{trial}\n    {came}", flush=True)
        if len(outcomes) % 100 == 0:
            print(f"{len(outcomes)} in {time.monotonic() - began:.0f} s", flush=True)

    one()
    return outcomes


def limit_memory() -> None:
    """Let this process have no more than MEMORY bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
