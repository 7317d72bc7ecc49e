"""What does the gradient through T inner steps cost?

Time and added peak memory of each policy, ConvNet-D3, 32x32x3.

    python benchmarks/unroll.py [--device cuda] [--steps 4 8 16 32] [--runs 5]

Time: median over runs that take turns (policy A, B, C, ... then again), after one uncounted run
each; every policy keeps a process of its own. Memory: highest resident (CUDA: allocated) memory
during one call above the level before it, in a fresh process per case, after a call of one step
that compiles and loads the kernels, and after what that call freed was given back to the system.
"""

import multiprocessing as mp
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

# its worker pool does not start inside a process of a pool
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import common
import torch
import tyro
from torch.nn import functional

from ddengine.learning.flat import FlatModel, flatten
from ddengine.learning.inner import ByAutograd, compiled_gradient, eager_gradient
from ddengine.learning.unroll import unroll
from ddengine.models import build_model
from ddengine.system import rng, runtime

POLICIES = ("full", "full compiled", "replay", "detached")
CUDA_POLICIES = (*POLICIES, "replay compiled", "replay compiled, CUDA graphs")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    steps: tuple[int, ...] = (4, 8, 16, 32)  # T
    runs: int = 5  # counted runs per case
    width: int = 128
    batch: int = 50
    policies: tuple[str, ...] = ()  # none: all that the device has
    threads: int = 0  # CPU threads; 0: torch's default


class Case:
    """One policy, ready to be called."""

    def __init__(self, policy: str, settings: Settings):
        self.device, self.policy = runtime.setup(settings.device), policy
        if settings.threads:
            torch.set_num_threads(settings.threads)
        stream = rng.generator(0, "benchmark")
        net = build_model(f"convnet-d3-w{settings.width}-in", (3, 32, 32), 10, stream).to(
            self.device
        )
        model = FlatModel(net)
        self.theta = flatten(net)
        self.images = torch.randn(settings.batch, 3, 32, 32, generator=stream).to(self.device)
        self.labels = torch.randint(10, (settings.batch,), generator=stream).to(self.device)

        def loss(theta: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(model(theta, images), labels)

        options = {"mode": "reduce-overhead"} if "graphs" in policy else {}
        self.gradient = (
            compiled_gradient(loss, **options) if "compiled" in policy else eager_gradient(loss)
        )

    def __call__(self, num_steps: int, give_back: bool) -> dict[str, float]:
        """Seconds and added peak bytes of one forward and backward through `num_steps` inner steps.

        `give_back`: return freed memory first, so that the peak can be seen; timed runs keep it, as
        runs of the engine do.
        """
        cuda = self.device.type == "cuda"
        images = self.images.clone().requires_grad_()
        lr = torch.tensor(0.01, device=self.device, requires_grad=True)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        elif give_back:
            common.give_back()
            common.reset_peak()
        before = torch.cuda.memory_allocated() if cuda else common.resident()
        start = time.perf_counter()
        end = unroll(
            ByAutograd(self.gradient), lambda tensors, k: (tensors["images"], self.labels),
            self.theta, {"images": images}, num_steps,
            lr=lr, backprop=self.policy.split()[0],
        )  # fmt: skip
        end.square().sum().backward()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        assert images.grad is not None and images.grad.isfinite().all()
        return {
            "seconds": seconds,
            "peak_bytes": (torch.cuda.max_memory_allocated() if cuda else common.peak()) - before,
        }


def serve(pipe: Any, policy: str, settings: Settings) -> None:
    """A process that answers (T, give_back) with the cost of one call."""
    case = Case(policy, settings)
    while (request := pipe.recv()) is not None:
        pipe.send(case(*request))


class Server:
    """A policy in a process of its own."""

    def __init__(self, policy: str, settings: Settings):
        context = mp.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=serve, args=(child, policy, settings), daemon=True)
        self.process.start()

    def __call__(self, num_steps: int, give_back: bool = False) -> dict[str, float]:
        """The cost of one call in that process."""
        self.pipe.send((num_steps, give_back))
        return self.pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self.pipe.send(None)
        self.process.join()


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON."""
    device = runtime.setup(settings.device)
    policies = settings.policies or (CUDA_POLICIES if device.type == "cuda" else POLICIES)
    rows = []
    print(
        f"{'T':>3} {'policy':30} {'median s':>9} {'min':>7} {'max':>7} {'of full':>8} "
        f"{'added peak MB':>14}"
    )
    for num_steps in settings.steps:
        servers = {p: Server(p, settings) for p in policies}
        seconds: dict[str, list[float]] = {p: [] for p in policies}
        for server in servers.values():
            server(num_steps)  # compiles and warms up
        for _ in range(settings.runs):
            for policy, server in servers.items():
                seconds[policy].append(server(num_steps)["seconds"])
        for server in servers.values():
            server.stop()
        for policy in policies:
            fresh = Server(policy, settings)
            fresh(1)
            memory = fresh(num_steps, give_back=True)["peak_bytes"]
            fresh.stop()
            took = seconds[policy]
            row = {
                "T": num_steps,
                "policy": policy,
                "median_s": statistics.median(took),
                "runs_s": took,
                "peak_bytes": memory,
            }
            rows.append(row)
            ratio = (
                row["median_s"] / statistics.median(seconds["full"])
                if "full" in seconds
                else float("nan")
            )
            print(
                f"{num_steps:3} {policy:30} {row['median_s']:9.3f} {min(took):7.3f} "
                f"{max(took):7.3f} {ratio:8.2f} {memory / 1e6:14.0f}"
            )
            sys.stdout.flush()
            common.write("unroll", device, asdict(settings), rows)
    first, last = (
        next(r for r in rows if r["policy"] == "replay" and r["T"] == t)
        for t in (settings.steps[0], settings.steps[-1])
    )
    print(
        f"replay's added peak at T = {last['T']} over T = {first['T']}: "
        f"{last['peak_bytes'] / first['peak_bytes']:.2f}"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
