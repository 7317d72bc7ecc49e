"""What are narrower numbers and another layout of images in memory worth, in accuracy and in time?

    python benchmarks/precision.py [--device cuda] [--recipes mtt/digits_ipc1 dm/digits_ipc1]

Accuracy: recipes whose experts, sets and evaluations are made in each precision, beside each other,
as the commands do with --precision; and those sets evaluated in fp32. Mean over seeds of the
distillation, each the mean over networks, with the 95 % interval of the mean over seeds. The runs
lie in --runs, and the same command goes on there.

Time: a gradient in the parameters, and one through which a vector is pulled back, of images
32x32x3, in each precision, with images channel by channel ("planar", as they are stored) and pixel
by pixel ("channels_last"), for networks whose norms are of an instance or of a batch. Medians of
turns; seconds of the processor, on CUDA of the clock.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import common
import torch
import tyro
from torch import Tensor
from torch.nn import functional

from ddengine.evaluation import intervals
from ddengine.learning.flat import FlatModel, flatten
from ddengine.learning.inner import inner_gradient
from ddengine.models import build_model
from ddengine.system import rng, runtime
from ddengine.system.runtime import Precision
from synth.catalogue import find

NETWORKS = ("convnet-d3-w128-in", "convnet-d3-w128-bn", "resnet18")
LAYOUTS = ("planar", "channels_last")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    recipes: tuple[str, ...] = ("mtt/digits_ipc1", "dm/digits_ipc1")
    seeds: int = 3  # distillations of each recipe in each precision
    networks: int = 5  # trained on each set
    steps: int | None = None  # outer steps; None: those of the recipe
    timed: tuple[str, ...] = NETWORKS
    batch: int = 100
    repeats: int = 5  # turns, after one that is not counted
    threads: int = 1  # of a CPU
    runs: Path = common.ROOT / "runs" / "precision"
    out: Path = common.RESULTS  # the folder of the result's file


def precisions(device: torch.device) -> list[Precision]:
    """Those that there are on a device."""
    return [name for name in get_args(Precision) if name != "tf32" or device.type == "cuda"]


# Accuracy.


def program(settings: Settings, *words: str) -> None:
    """Run a command of the program; SystemExit where it fails."""
    env = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    command = [sys.executable, "run.py", *words, "--device", settings.device]
    done = subprocess.run(command, cwd=common.ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"run.py {' '.join(words)} failed: {done.stderr.strip()[-300:]}")


def accuracy_of(settings: Settings, run: Path, evaluated: Precision) -> float:
    """The mean accuracy of networks trained on a run's set in a precision."""
    folder = run.with_name(f"{run.name}_in_{evaluated}")
    if not (folder / "evaluation.json").is_file():
        program(
            settings, "evaluate", str(run), "--precision", evaluated, "--num_networks",
            str(settings.networks), "--baselines", "--seed", "0", "--out", str(folder),
        )  # fmt: skip
    return json.loads((folder / "evaluation.json").read_text())["rows"][0]["accuracy_mean"]


def made(settings: Settings, recipe: str, precision: Precision, seed: int) -> Path:
    """The folder of a distillation."""
    name = recipe.replace("/", "_")
    run = settings.runs.absolute() / f"{name}_{precision}_{seed}"
    words = [recipe, "--precision", precision]
    if find(recipe).buffer is not None:
        experts = settings.runs.absolute() / f"{name}_{precision}_experts"
        program(settings, "buffer", *words, "--out", str(experts))
        words += ["--experts", str(experts)]
    if not (run / "distilled" / "meta.json").is_file():
        if settings.steps is not None:
            words += ["--outer.steps", str(settings.steps)]
        program(settings, "distill", *words, "--seed", str(seed), "--out", str(run))
    return run


def accuracies(settings: Settings, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each recipe and precision."""
    for recipe, precision in product(settings.recipes, precisions(device)):
        runs = [made(settings, recipe, precision, seed) for seed in range(settings.seeds)]
        for evaluated in dict.fromkeys((precision, "fp32")):
            found = [accuracy_of(settings, run, evaluated) for run in runs]
            mean, _, ends = intervals.interval(found, 0.0, 1.0)
            yield {
                "recipe": recipe,
                "precision": precision,
                "evaluated_in": evaluated,
                "accuracies": found,
                "accuracy_mean": mean,
                "ci95": ends,
            }


# Time.


def steps_of(
    name: str, precision: Precision, layout: str, settings: Settings, device: torch.device
) -> dict[str, Callable[[int], Any]]:
    """A gradient, and one that is pulled back through, of a network in a layout."""
    network = build_model(name, (3, 32, 32), 10, rng.generator(0, "network")).to(device)
    model, theta = FlatModel(network, precision).to(device), flatten(network)
    images = torch.randn(settings.batch, 3, 32, 32, generator=rng.generator(0, "images"))
    labels = (torch.arange(settings.batch) % 10).to(device)
    images = images.to(device)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    images.requires_grad_()

    def loss(theta: Tensor, images: Tensor) -> Tensor:
        return functional.cross_entropy(model(theta, images), labels)

    inner = inner_gradient(loss)

    def gradient(turn: int) -> None:
        inner.gradient(theta, images)
        wait(device)

    def pullback(turn: int) -> None:
        inner.pullback(theta, images, r=theta)
        wait(device)

    return {"gradient": gradient, "pullback": pullback}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def times(settings: Settings, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each network, what is computed, precision and layout."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for name in settings.timed:
        steps = {}
        for precision, layout in product(precisions(device), LAYOUTS):
            runtime.setup(settings.device, precision)
            of_case = steps_of(name, precision, layout, settings, device)
            for what, once in of_case.items():
                steps[what, precision, layout] = once
        found: dict[Any, list[float]] = {case: [] for case in steps}
        for turn in range(settings.repeats + 1):
            for case, once in steps.items():
                runtime.setup(settings.device, case[1])
                start = clock()
                once(turn)
                found[case].append(clock() - start)
        for (what, precision, layout), of_case in found.items():
            yield {
                "network": name,
                "computed": what,
                "precision": precision,
                "layout": layout,
                "median_s": statistics.median(of_case[1:]),
                "turns": of_case[1:],
            }


# What came out.


def said(row: dict[str, Any]) -> str:
    """A line of the tables."""
    if "recipe" in row:
        shown = common.shown(row["accuracy_mean"], row["ci95"])
        return f"| {row['recipe']} | {row['precision']} | {row['evaluated_in']} | {shown} |"
    where = " | ".join(row[name] for name in ("network", "computed", "precision", "layout"))
    return f"| {where} | {1000 * row['median_s']:.1f} |"


def main(settings: Settings) -> None:
    """Measure, print, write the JSON."""
    device = runtime.setup(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    kept = {name: value for name, value in asdict(settings).items() if name not in ("runs", "out")}
    tables = (
        ("| recipe | made in | evaluated in | accuracy % |", accuracies),
        ("| network | computed | precision | layout | median ms |", times),
    )
    rows: list[dict[str, Any]] = []
    for title, made_of in tables:
        print(f"{title}\n{'|---' * (title.count('|') - 1)}|")
        for row in made_of(settings, device):
            rows.append(row)
            print(said(row), flush=True)
            common.write("precision", device, kept, rows, settings.out)


if __name__ == "__main__":
    main(tyro.cli(Settings))
