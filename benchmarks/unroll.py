"""What does the gradient through T inner steps cost, by each way to it?

    python benchmarks/unroll.py [--device cuda] [--steps 4 16] [--runs 5]

A ConvNet-D3 on images of no meaning, 32x32x3; the same step T times forwards, and the way back.
Ways: all graphs kept ("full"), one at a time ("replay"), a half of them kept, no derivative of the
gradient in the parameters ("detached"); and replay with gradient and pullback each as one compiled
graph. For that, reverse over reverse is compared with forwards over reverse in networks of torch's
own layers, because ours have no forward derivatives. On CUDA each compiled graph is launched by one
call, and so are graphs that are written down and not compiled ("launched").

Time: median over runs that take turns (way A, B, C, ... then again), after two uncounted runs each
(the first compiles); every way keeps a process of its own. Seconds are the processor's, on CUDA the
clock's; ratios to "full" are means over turns with their 95 % interval (Student's t on the
logarithm). Memory: the highest resident (CUDA: allocated) memory during one run above the level
before it, in a process of its own, after a run of T = 1.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# its worker pool does not start inside a process of a pool
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import common
import plain_loops
import torch
import tyro
from torch import Tensor
from torch.nn import functional

from ddengine.learning.flat import FlatModel, flatten
from ddengine.learning.graphs import by_inductor
from ddengine.learning.inner import Compiled, InnerGradient, LossFn, Pullback, inner_gradient
from ddengine.learning.unroll import unroll
from ddengine.models import build_model
from ddengine.system import rng, runtime
from ddengine.types import Backprop

TORCHS = ", of torch's layers"
FORWARDS = "forwards over reverse"
WAYS = (
    "full", "replay, a half kept", "replay", "detached", "compiled",
    f"compiled{TORCHS}", f"compiled, {FORWARDS}{TORCHS}",
)  # fmt: skip
CUDA_WAYS = (*WAYS, "launched")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    steps: tuple[int, ...] = (4, 16)  # T
    runs: int = 5  # counted turns
    width: int = 128
    batch: int = 50
    ways: tuple[str, ...] = ()  # none: all that the device has
    threads: int = 1  # of a CPU
    out: Path = common.RESULTS  # the folder of the result's file


class ForwardsOverReverse(Compiled):
    """The pullback as the derivative of the gradients in theta and the images, along r.

    With the gradients g and g_x of the loss, d <r, g> / dx = (d g_x / d theta) r, as second
    derivatives are symmetric.
    """

    def pullback(
        self, theta: Tensor, *batch: Tensor, r: Tensor, curvature: bool = True
    ) -> Pullback:
        """Of the images alone, which come first."""

        def along(theta: Tensor, r: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            def gradients(at: Tensor) -> tuple[Tensor, Tensor]:
                return torch.func.grad(self._loss, argnums=(0, 1))(at, *batch)

            there, slopes = torch.func.jvp(gradients, (theta,), (r,))[:2]
            return torch.dot(r, there[0]), slopes[0], slopes[1]

        product, by_theta, by_images = self._graphs("along", along, theta, r, *batch)
        return Pullback(product, by_theta, (by_images, *(None,) * (len(batch) - 1)))


def without_checks(graph: Any) -> Callable[..., Any]:
    """A compiled graph without comparisons of sizes, whose results nothing uses."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return by_inductor(graph)


def inner_of(way: str, loss: LossFn) -> InnerGradient:
    """The inner gradient of a way."""
    if way == "launched":
        return Compiled(loss, compiler=lambda graph: graph)
    if FORWARDS in way:
        return ForwardsOverReverse(loss, compiler=without_checks)
    return inner_gradient(loss, compile=way.startswith("compiled"))


def run_of(way: str, settings: Settings) -> Callable[[int], Any]:
    """A run of so many inner steps and the way back."""
    device = runtime.setup(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    stream = rng.generator(0, "benchmark")
    network = build_model(f"convnet-d3-w{settings.width}-in", (3, 32, 32), 10, stream)
    if way.endswith(TORCHS):
        network = plain_loops.of_torchs_layers(network)
    model = FlatModel(network.to(device)).to(device)
    theta = flatten(network)
    pixels = torch.randn(settings.batch, 3, 32, 32, generator=stream).to(device)
    labels = torch.randint(10, (settings.batch,), generator=stream).to(device)

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(theta, images), labels)

    inner, images = inner_of(way, loss), pixels.requires_grad_()
    backprop: Backprop = "replay"
    if way in ("full", "detached"):
        backprop = way  # type: ignore[assignment]

    def run(num_steps: int) -> None:
        images.grad = None
        lr = torch.tensor(0.01, device=device, requires_grad=True)
        end = unroll(
            inner, lambda tensors, k: (tensors["images"], labels), theta, {"images": images},
            num_steps, lr=lr, backprop=backprop, kept_graphs=num_steps // 2 * ("half" in way),
        )  # fmt: skip
        end.square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert images.grad is not None and bool(images.grad.isfinite().all())

    return run


def serve(pipe: Any, way: str, settings: Settings) -> None:
    """Send the seconds of a run of as many steps as the pipe gives, until it gives 0."""
    run = run_of(way, settings)
    on_cuda = runtime.device_named(settings.device).type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    while num_steps := pipe.recv():
        start = clock()
        run(num_steps)
        pipe.send(clock() - start)


def memory(pipe: Any, way: str, settings: Settings, num_steps: int) -> None:
    """Send the added peak memory of a run."""
    run = run_of(way, settings)
    pipe.send(common.added_memory(lambda turn: run(num_steps if turn else 1)))


def measured(ways: tuple[str, ...], settings: Settings, num_steps: int) -> list[dict[str, Any]]:
    """A row for each way."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with ExitStack() as stack:
        pipes = {}
        for way in ways:
            pipes[way] = stack.enter_context(common.beside(serve, way, settings))
        for _ in range(settings.runs + 2):
            for way, pipe in pipes.items():
                pipe.send(num_steps)
                seconds[way].append(pipe.recv())
        for pipe in pipes.values():
            pipe.send(0)
    rows = []
    for way, of_way in seconds.items():
        counted = of_way[2:]
        ratio, ends = common.ratio(counted, seconds[ways[0]][2:])
        rows.append(
            {
                "T": num_steps,
                "way": way,
                "median_s": statistics.median(counted),
                "runs_s": counted,
                "first_s": of_way[0],
                "of_first_way": ratio,
                "interval": ends,
                "peak_bytes": common.apart(memory, way, settings, num_steps),
            }
        )
    return rows


def said(row: dict[str, Any]) -> str:
    """A line of the table."""
    low, high = row["interval"] or (math.nan, math.nan)
    ratio = f"{row['of_first_way']:.2f} ({low:.2f} to {high:.2f})"
    cells = (
        str(row["T"]), row["way"], f"{row['median_s']:.2f}", ratio, f"{row['first_s']:.0f}",
        f"{row['peak_bytes'] / 1e6:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON."""
    device = runtime.setup(settings.device)
    ways = settings.ways or (CUDA_WAYS if device.type == "cuda" else WAYS)
    print(f"| T | way | median s | of {ways[0]} (95 %) | first run s | added peak MB |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for num_steps in settings.steps:
        for row in measured(ways, settings, num_steps):
            rows.append(row)
            print(said(row), flush=True)
        kept = {name: value for name, value in asdict(settings).items() if name != "out"}
        common.write("unroll", device, kept, rows, settings.out)


if __name__ == "__main__":
    main(tyro.cli(Settings))
