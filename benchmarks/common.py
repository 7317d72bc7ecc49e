"""What the benchmarks share: readings of time and memory, and files of results.

The files say where they were made.
"""

import ctypes
import math
import multiprocessing as mp
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ddengine.evaluation import intervals
from ddengine.system import files, runtime
from ddengine.system.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
UNFINISHED = 3  # exit code of a benchmark whose time is over, and which goes on when called again
PATIENCE = 120.0  # seconds in which a command ends that is asked to, at most
SPARED = 0.1  # of a command's seconds, for its ending


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def give_back() -> None:
    """Return freed memory to the system (glibc)."""
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Start a new high-water mark of resident memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Highest resident memory since `reset_peak`, in bytes (Linux)."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


@contextmanager
def beside(target: Any, *args: Any) -> Iterator[Any]:
    """The other end of the pipe that `target` gets first, in a process that runs meanwhile."""
    pipe, child = mp.get_context("spawn").Pipe()
    process = mp.get_context("spawn").Process(target=target, args=(child, *args))
    process.start()
    child.close()  # so that a process that dies ends the waiting
    try:
        yield pipe
    finally:
        pipe.close()
        process.join()


def apart(target: Any, *args: Any) -> Any:
    """What `target` sends through its first argument, a pipe, from a process of its own."""
    with beside(target, *args) as pipe:
        return pipe.recv()


class Operations(TorchDispatchMode):
    """Counts floating-point operations as `FlopCounterMode` does, within autograd.grad too.

    That one hooks into modules, which fails where a gradient is differentiated.
    """

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operation costs, and do it."""
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if count is not None:
            self.number += count(*args, **kwargs, out_val=made)
        return made


def stopped_after(words: Sequence[str], seconds: float, log: Path) -> int:
    """The exit code of a command whose output is added to the file `log`.

    It has ended after so many seconds: before, it is asked to (SIGTERM), and killed with its
    processes where it takes its time. The code is UNFINISHED where it was ended so, unless it
    succeeded. Linux.
    """
    patience = min(PATIENCE, SPARED * seconds)
    with log.open("a") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds - patience)
        return _asked_to_end(process, patience) and UNFINISHED
    finally:
        _asked_to_end(process, patience)  # also where this process is asked to end
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _asked_to_end(process: subprocess.Popen[bytes], patience: float) -> int:
    """The exit code of a process, which is asked to end, within so many seconds, if it has not."""
    if process.poll() is None:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(patience)
    process.kill()
    return process.wait()


def check_positive(flag: str, value: float) -> None:
    """Raise UserError unless a flag is a positive number that ends."""
    if not 0 < value < float("inf"):
        raise UserError(f"{flag} must be positive and finite, got {value}.")


def was_stopped(code: int) -> bool:
    """Whether an exit code of `stopped_after` says that the time was over and work can go on.

    A command that others kill, as the system does for memory, has failed.
    """
    return code == UNFINISHED


def end_when_asked() -> None:
    """Have SIGTERM end this process as an error does, so that what it started ends too."""

    def ended(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, ended)


def added_memory(once: Callable[[int], None]) -> int:
    """The added peak memory of a step in bytes, after one that loads the kernels."""
    cuda = torch.cuda.is_initialized()
    once(0)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        give_back()
        reset_peak()
    before = torch.cuda.memory_allocated() if cuda else resident()
    once(1)
    return (torch.cuda.max_memory_allocated() if cuda else peak()) - before


def ratio(of: Sequence[float], to: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean ratio of seconds to others of the same turns, with its 95 % interval.

    By Student's t on the logarithm; one turn has no interval.
    """
    logs = [math.log(one / other) for one, other in zip(of, to, strict=True)]
    mean, _, ends = intervals.interval(logs, -10.0, 10.0)
    assert mean is not None
    return math.exp(mean), None if ends is None else (math.exp(ends[0]), math.exp(ends[1]))


def ending(main: Callable[[], int]) -> NoReturn:
    """End this process with the exit code of `main`; 2, and a sentence, for a user's mistake."""
    end_when_asked()
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def turns(steps: dict[str, Callable[[int], None]], repeats: int) -> dict[str, float]:
    """The median seconds of each of these steps, which take turns.

    The first turn is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, once in steps.items():
            start = time.perf_counter()
            once(turn)
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def shown(mean: float | None, ci95: Sequence[float] | None) -> str:
    """A mean accuracy and its 95 % interval, in points."""
    if mean is None:
        return "diverged"
    if ci95 is None:
        return f"{100 * mean:.1f}"
    low, high = ci95
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def write(
    name: str,
    device: torch.device,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    folder: Path = RESULTS,
) -> Path:
    """NAME-DEVICE.json in a folder, which is benchmarks/results."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{device.type}.json"
    where = {
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    files.write_json(path, {"settings": settings, "rows": rows, **where})
    return path


def published(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of a run says, without its digest and its command, which names folders here."""
    return {name: value for name, value in content.items() if name not in ("blake2b", "command")}
