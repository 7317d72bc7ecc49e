"""Is one flipped bit in any file ever used without a word?

    python benchmarks/faults/flips.py --times 200

A store, a run with a checkpoint and its set, and an evaluation are made once. Then one random bit
of one file is flipped, the kinds of files in turn, and what reads that file is asked to: a reader
must refuse it or give the same numbers to the bit. The shipped load.py reads each set too. What a
flip in white space or in a word that nobody reads leaves as it was counts as no damage.
"""

import importlib.util
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import torch
import tyro

import buffers
from buffers.store import ExpertStore
from ddengine import loop
from ddengine.artefact import folder as folders
from ddengine.pages import reading
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    times: int = 200
    seed: int = 0
    name: str = "flips"


def rows_of(place: Path) -> Any:
    """All that a store says of its experts."""
    store = ExpertStore(place / "store")
    rows = [store.snapshots(i, list(store.epochs)) for i in range(store.num_experts)]
    metrics = [store.metrics(i)["validation_accuracy"] for i in range(store.num_experts)]
    seen = store.preprocess
    assert seen is not None
    return [
        rows,
        metrics,
        list(seen.tensors().values()),
        list(store.epochs),
        store.manifest["model"],
    ]


def set_of(place: Path) -> Any:
    """All that a set says."""
    syn, meta = folders.load(place / "run" / "distilled", CPU)
    return [syn.tensors, syn.classes, syn.class_names, str(syn.codec), meta]


def shipped(place: Path) -> Any:
    """What the load.py of the set gives."""
    path = place / "run" / "distilled" / "load.py"
    spec = importlib.util.spec_from_file_location("load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, targets, info = module.load()
    return [images, targets, info["lr"], info["classes"]]


def checkpoint_of(place: Path) -> Any:
    """All that a checkpoint says."""
    state, log_bytes = loop.load_checkpoint(place / "run" / loop.CHECKPOINT, CPU)
    return [state.tensors, state.momentum, state.step, vars(state.counters), log_bytes]


def page_of(place: Path) -> Any:
    """What a report shows of an evaluation."""
    return reading.read(place / "run").evaluation


def memo_of(place: Path) -> Any:
    """What an interrupted evaluation remembers, and else finds out again."""
    memo = Memo(place / "memo.jsonl", "me")
    return memo("search", lambda: {"accuracies": [0.25, 0.5]}, keep=False)


# what reads each kind of file
READERS: dict[str, Callable[[Path], Any]] = {
    "store/expert_0001.safetensors": rows_of,
    "store/preprocess.safetensors": rows_of,
    "store/manifest.json": rows_of,
    "run/distilled/data.safetensors": set_of,
    "run/distilled/meta.json": set_of,
    "run/checkpoint/state.safetensors": checkpoint_of,
    "run/evaluation.json": page_of,
    "run/recipe.json": page_of,
    "memo.jsonl": memo_of,
}
SHIPPED = ("run/distilled/data.safetensors", "run/distilled/meta.json")


def main(settings: Settings) -> None:
    draw = random.Random(settings.seed)
    silent, refused, tried = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        faults.made(place, ("buffer", "distill", "evaluate"))
        Memo(place / "memo.jsonl", "me").put("search", {"accuracies": [0.25, 0.5]})
        kinds = [(file, read) for file, read in READERS.items()]
        kinds += [(file, shipped) for file in SHIPPED]
        sound = [read(place) for _, read in kinds]
        for number in range(settings.times):
            (file, read), wanted = kinds[number % len(kinds)], sound[number % len(kinds)]
            what = f"{Path(file).name}{', read by load.py' if read is shipped else ''}"
            tried[what] += 1
            came = outcome(place, file, read, wanted, draw)
            silent[what] += came == "silent"
            refused[what] += came == "refused"
    rows = []
    for what, times in tried.items():
        note = f"{times - refused[what] - silent[what]} changed no number"
        rows.append(
            faults.Row("one bit flipped", what, times, 0, silent[what], refused[what], note)
        )
    faults.write(settings.name, vars(settings), rows)


def outcome(
    place: Path, file: str, read: Callable[[Path], Any], wanted: Any, draw: random.Random
) -> str:
    """What comes of a bit that is flipped: refused, the same, or silent."""
    path = place / file
    sound = path.read_bytes()
    content = bytearray(sound)
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    put(path, bytes(content))
    try:
        return "same" if same(read(place), wanted) else "silent"
    except (UserError, ValueError, KeyError, UnicodeDecodeError) as error:
        assert isinstance(error, UserError) or read is shipped, error
        return "refused"
    finally:
        put(path, sound)


def put(path: Path, content: bytes) -> None:
    """Give a file other bytes; who has mapped the old ones keeps them."""
    beside = path.with_name("beside")
    beside.write_bytes(content)
    beside.replace(path)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    assert buffers is not None
    main(tyro.cli(Settings))
