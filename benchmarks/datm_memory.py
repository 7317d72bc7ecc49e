"""What does a step of DATM at 50 images per class need?

Added peak memory and time, `replay` against `full`, CIFAR-10's shape.

    python benchmarks/datm_memory.py [--device cuda] [--widths 16 128]

One outer step of the recipe datm/cifar10_ipc50 (500 images and learned labels, batch 500,
augmentation) with T inner steps, forward and back, on random images and snapshots, in a fresh
process per case. Where `full` does not fit it is measured at T = 4 and 8 only.
"""

import multiprocessing as mp
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import common
import torch
import tyro

from ddengine.data import Preprocess, RealSet
from ddengine.learning.flat import FlatModel, flatten
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import Logits
from ddengine.system import rng, runtime
from synth.catalogue import find


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    steps: int = 40  # T
    widths: tuple[int, ...] = (16, 128)
    full_widths: tuple[int, ...] = (16,)  # where `full` is run at T; elsewhere at 4 and 8


class Experts:
    """Snapshots near a random network, in place of a store."""

    num_experts = 1

    def __init__(self, theta: torch.Tensor, epochs: int):
        self.theta, self.epochs, self.num_params = theta, tuple(range(epochs + 1)), len(theta)

    def snapshots(self, expert: int, epochs: list[int]) -> torch.Tensor:
        """The network moved a little by each epoch."""
        return torch.stack(
            [self.theta + 1e-3 * e * torch.sin(torch.arange(len(self.theta)) + e) for e in epochs]
        )


def measure(pipe: Any, policy: str, width: int, num_steps: int, device_name: str) -> None:
    """Send the cost of one step, after a step of one inner step that loads the kernels."""
    device = runtime.setup(device_name)
    recipe = find("datm/cifar10_ipc50")
    stream, shape = rng.generator(0, "benchmark"), (3, 32, 32)

    def new_model(r: torch.Generator) -> torch.nn.Module:
        return build_model(f"convnet-d3-w{width}-in", shape, 10, r)

    net = new_model(stream)
    classes = torch.arange(10).repeat_interleave(recipe.ipc).to(device)
    tensors = {
        "images": torch.randn(len(classes), *shape, generator=stream),
        "logits": torch.randn(len(classes), 10, generator=stream),
    }
    tensors = {k: v.to(device) for k, v in tensors.items()} | {
        "lr": torch.tensor(0.01, device=device)
    }
    preprocess = Preprocess(mean=torch.zeros(3), std=torch.ones(3)).to(device)
    syn = SyntheticSet(
        tensors, classes, tuple(map(str, range(10))), recipe.codec, preprocess, Logits()
    )
    real = RealSet(torch.zeros(10, *shape, dtype=torch.uint8), torch.arange(10), 10, preprocess)
    env = Env(
        real,
        new_model,
        FlatModel(net).to(device),
        Experts(flatten(net), recipe.buffer.epochs),
        device,
    )  # type: ignore[arg-type]
    for steps in (1, num_steps):
        objective = replace(recipe.objective, inner_steps=steps, backprop=policy).build(env)
        leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            common.give_back()
            common.reset_peak()
        before, start = (
            torch.cuda.memory_allocated() if cuda else common.resident(),
            time.perf_counter(),
        )
        for loss in objective.losses(syn.with_tensors(leaves), {}, 0, rng.generator(0)):
            loss.backward()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = (torch.cuda.max_memory_allocated() if cuda else common.peak()) - before
    pipe.send(
        {"width": width, "policy": policy, "T": num_steps, "seconds": seconds, "peak_bytes": peak}
    )


def main(settings: Settings) -> None:
    """Measure, print, write the JSON."""
    context, rows = mp.get_context("spawn"), []
    for width in settings.widths:
        whole = width in settings.full_widths
        for policy, num_steps in (
            ("replay", settings.steps),
            *((("full", settings.steps),) if whole else (("full", 4), ("full", 8))),
        ):
            pipe, child = context.Pipe()
            process = context.Process(
                target=measure, args=(child, policy, width, num_steps, settings.device)
            )
            process.start()
            child.close()  # so that a process that dies ends the waiting
            rows.append(pipe.recv())
            process.join()
            print(
                f"width {width:4} {policy:7} T {num_steps:3}: {rows[-1]['seconds']:8.1f} s, added "
                f"peak {rows[-1]['peak_bytes'] / 1e9:6.2f} GB"
            )
            sys.stdout.flush()
        if not whole:
            four, eight = (r["peak_bytes"] for r in rows[-2:])
            guess = four + (eight - four) / 4 * (settings.steps - 4)
            rows.append(
                {
                    "width": width,
                    "policy": "full, extrapolated from T = 4 and 8",
                    "T": settings.steps,
                    "peak_bytes": guess,
                }
            )
            print(
                f"width {width:4} full    T {settings.steps:3}: extrapolated {guess / 1e9:6.2f} GB"
            )
        common.write("datm_memory", runtime.setup(settings.device), asdict(settings), rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
