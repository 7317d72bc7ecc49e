"""What does decoding cost, beside a step of a student?

Decoding and its backward pass, seconds and added peak memory of each codec and batch, and the step
of a network of width 128 on a plain batch of as many images.

    python benchmarks/codecs.py [--device cuda] [--batches 64 256] [--runs 5] [--codecs gaussians]

The codecs are those of the recipes `dm/fashion_mnist_ipc1_NAME_small`, at 32 x 32 x 3, with random
numbers in place of images that were fitted. Time: median over runs that take turns, after one
uncounted run each; on a CPU it is that of the processor, on one thread, which other programs do not
lengthen. Memory: as in unroll.py, in a process of its own.
"""

import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import common
import torch
import tyro
from torch.nn import functional

from ddengine.data import Preprocess
from ddengine.models import build_model
from ddengine.sets.codec import Codec, Quantised
from ddengine.sets.codec.within_bytes import NearImages
from ddengine.system import rng, runtime
from synth.recipes.with_codecs import CODED

SHAPE = (3, 32, 32)
PLAIN = "plain student step"
CODECS: dict[str, Codec] = {name: codec for name, codec, _ in CODED} | {"quantised": Quantised()}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    batches: tuple[int, ...] = (64, 256)
    codecs: tuple[str, ...] = tuple(CODECS)
    runs: int = 5  # counted runs per case
    width: int = 128  # of the student


class Decoding:
    """A codec with the numbers of as many images as a batch has."""

    def __init__(self, name: str, batch: int, device: torch.device):
        codec = CODECS[name]
        if isinstance(codec, NearImages):
            codec = replace(codec, fit_steps=0)
        needed = codec.shipped_bytes(batch, SHAPE, 1)
        self.codec, items = codec.within(needed, SHAPE, 1)
        images = torch.rand(
            items * self.codec.per_item, *SHAPE, generator=rng.generator(0, "images")
        ).to(device)
        preprocess = Preprocess(mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25)).to(device)
        self.tensors = dict(self.codec.pack(images, 1, preprocess))
        for names in self.codec.parameters(self.tensors).values():
            for learned in names:
                self.tensors[learned] = self.tensors[learned].detach().requires_grad_()
        self.index = torch.arange(batch, device=device)

    def __call__(self, turn: int) -> None:
        """Decode a batch, and go back."""
        self.codec.decode(self.tensors, self.index).square().sum().backward()


class Step:
    """A network on a plain batch."""

    def __init__(self, width: int, batch: int, device: torch.device):
        stream = rng.generator(0, "benchmark")
        self.network = build_model(f"convnet-d3-w{width}-in", SHAPE, 10, stream).to(device)
        self.images = torch.randn(batch, *SHAPE, generator=stream).to(device)
        self.labels = torch.randint(10, (batch,), generator=stream).to(device)

    def __call__(self, turn: int) -> None:
        """Forward, and back to the weights."""
        functional.cross_entropy(self.network(self.images), self.labels).backward()


def case(name: str, batch: int, settings: Settings, device: torch.device) -> Any:
    """What is timed under a name."""
    if name == PLAIN:
        return Step(settings.width, batch, device)
    return Decoding(name, batch, device)


def memory_of(pipe: Any, name: str, batch: int, settings: Settings) -> None:
    """Send the added peak memory of a case."""
    torch.set_num_threads(1)
    pipe.send(common.added_memory(case(name, batch, settings, runtime.setup(settings.device))))


def seconds_of(cases: dict[str, Any], runs: int, device: torch.device) -> dict[str, float]:
    """The median seconds of each case; cases take turns, and the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for turn in range(runs + 1):
        for name, once in cases.items():
            start = clock()
            once(turn)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(clock() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON."""
    device = runtime.setup(settings.device)
    torch.set_num_threads(1)
    names = (PLAIN, *settings.codecs)
    rows = []
    print(f"{'batch':>5} {'':20} {'median s':>9} {'of the step':>12} {'added peak MB':>14}")
    for batch in settings.batches:
        cases = {name: case(name, batch, settings, device) for name in names}
        seconds = seconds_of(cases, settings.runs, device)
        del cases
        for name in names:
            memory = common.apart(memory_of, name, batch, settings)
            row = {"batch": batch, "case": name, "median_s": seconds[name], "peak_bytes": memory}
            rows.append(row)
            ratio = seconds[name] / seconds[PLAIN]
            print(f"{batch:5} {name:20} {seconds[name]:9.3f} {ratio:12.2f} {memory / 1e6:14.0f}")
            common.write("codecs", device, asdict(settings), rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
