"""What do time and memory grow with, and what would large cells cost?

    python benchmarks/scale.py            # about 10 minutes on two idle cores; goes on where it was
    python benchmarks/scale.py --tiny     # a rehearsal in runs/, whose numbers mean nothing
    python benchmarks/scale.py --page     # docs/scaling.md again, of what was measured before

An outer step of trajectory matching (MTT, replayed) on images of noise, with a narrow network, for
more images per class, classes, pixels and inner steps than a base case, one of them at a time; the
training of several experts; and a step of DM on one rank and on two. Each point is measured in a
process of its own. Lines and power laws (`scale_fits.py`) are fitted to all but the largest point
of each axis, and say what that will be. What whole cells would cost (`scale_predicted.py`) follows
from the floating-point operations that are counted here, and from what is assumed of a GPU.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import torch
import tyro
from torch import Tensor

from buffers.train import train_expert
from ddengine import loop
from ddengine.data import Data, Preprocess, RealSet
from ddengine.evaluation.ledger import forward_flops
from ddengine.learning.flat import flatten
from ddengine.models import build_model
from ddengine.prepare import prepare
from ddengine.recipe import Recipe
from ddengine.system import files, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.trajectory import UniformWindow

MODEL = "convnet-d3-w16-in"
PLAIN = "mtt/cifar10_ipc1"  # recipes whose experts are trained by plain SGD, and by GSAM
SHARP = "datm/cifar10_ipc1"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Point:
    """A distillation."""

    ipc: int = 4
    classes: int = 10
    size: int = 32  # of the sides of its images
    inner_steps: int = 5


BASE = Point()
# what each axis is measured at beside the base; the last one is held out of the fit
AXES: Mapping[str, tuple[int, ...]] = {
    "ipc": (1, 2, 8, 16, 32),
    "classes": (2, 5, 20, 40, 80),
    "size": (16, 24, 40, 48, 64),
    "inner_steps": (1, 2, 10, 20, 40),
}
COMBINED = Point(ipc=8, classes=20, size=48, inner_steps=10)  # held out, too
EXPERTS = (1, 2, 3, 4, 8)  # the last one is held out
RANKS = (1, 2)
TINY_BASE = Point(ipc=1, classes=2, size=16, inner_steps=1)
TINY_AXES: Mapping[str, tuple[int, ...]] = {"ipc": (2, 3, 4), "inner_steps": (2, 3, 4)}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    tiny: bool = False
    page: bool = False
    repeats: int = 5  # steps of which the median counts
    out: Path = common.RESULTS / "scale-cpu.json"  # with --tiny runs/scale_tiny.json


# What is measured, each in a process of its own.


class Experts:
    """Snapshots near a random network, in place of a store."""

    num_experts = 1
    epochs = (0, 1, 2)

    def __init__(self, theta: Tensor):
        self.theta, self.num_params = theta, len(theta)

    def snapshots(self, expert: int, epochs: Sequence[float]) -> Tensor:
        """The network moved a little by each epoch."""
        way = torch.sin(torch.arange(len(self.theta)))
        return torch.stack([self.theta + 1e-3 * epoch * way for epoch in epochs])

    def load(self, expert: int, epoch: int) -> torch.nn.Module:
        """Nobody asks."""
        raise NotImplementedError


def noise(classes: int, per_class: int, size: int) -> Data:
    """Images (N, 3, size, size) of noise."""
    stream = generator(0, "noise")
    shape = (classes * per_class, 3, size, size)
    pixels = torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(per_class)
    preprocess = Preprocess(mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))
    names = tuple(map(str, range(classes)))
    real = RealSet(pixels, labels, classes, preprocess, class_names=names)
    return Data(real, None, None, names, bytes=pixels.numel(), dataset_bytes=pixels.numel())


def recipe_of(point: Point) -> Recipe:
    """Trajectory matching with the whole set in each inner step."""
    recipe = find(PLAIN, ipc=point.ipc, model=MODEL)
    matching: Any = replace(
        recipe.objective,
        inner_steps=point.inner_steps,
        expert_epochs=1,
        window=UniformWindow(low=0, high=1),
        batch=None,
        backprop="replay",
    )
    return replace(recipe, objective=matching)


def of_step(pipe: Any, point: Point, repeats: int) -> None:
    """Send what an outer step takes: seconds, bytes beside what was there, operations."""
    runtime.setup("cpu")
    data, recipe = noise(point.classes, max(10, point.ipc), point.size), recipe_of(point)
    shape = data.image_shape
    network = build_model(MODEL, shape, point.classes, generator(0))
    experts = Experts(flatten(network).detach())
    syn, objective = prepare(recipe, data, CPU, experts, seed=0)
    state = loop.first_state(syn, objective, recipe.outer, 0)

    def step() -> float:
        began = time.perf_counter()
        loop.outer_step(syn, objective, recipe.outer, state, 0).tolist()
        state.step += 1
        return time.perf_counter() - began

    step()
    common.give_back()
    common.reset_peak()
    before = common.resident()
    step()
    peak = common.peak() - before
    seconds = statistics.median(step() for _ in range(repeats))
    with common.Operations() as counter:
        step()
    flops = counter.number
    seen = point.ipc * point.classes * point.inner_steps
    passes = flops / (forward_flops(MODEL, shape, point.classes) * seen)
    pipe.send({"seconds": seconds, "peak_bytes": peak, "flops": flops, "passes": passes})


def of_experts(pipe: Any, number: int, name: str, images: int, epochs: int) -> None:
    """Send what so many experts of a recipe take."""
    runtime.setup("cpu")
    data = noise(10, images // 10, BASE.size)
    recipe = find(name, model=MODEL)
    assert recipe.buffer is not None
    config = replace(recipe.buffer, epochs=epochs, batch=min(images, recipe.buffer.batch))

    def train(expert: int) -> None:
        network = build_model(MODEL, data.image_shape, data.num_classes, generator(expert))
        train_expert(network, data, config, expert)

    with common.Operations() as counter:
        train(0)
    flops = counter.number
    began = time.perf_counter()
    for expert in range(number):
        train(expert)
    seconds = time.perf_counter() - began
    passes = flops / (forward_flops(MODEL, data.image_shape, 10) * images * epochs)
    pipe.send({"seconds": seconds, "flops": number * flops, "passes": passes})


def of_ranks(ranks: int, steps: int) -> dict[str, float]:
    """Seconds of a step of DM with two draws, shared by so many ranks of one thread each."""
    words = ["distill", "dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--model", MODEL]
    words += ["--data.limit", "None"]
    words += ["--outer.draws", str(max(RANKS) // ranks), "--outer.steps", str(steps)]
    words += ["--outer.evaluate_every", "0", "--outer.picture_every", "0", "--ipc", "10"]
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(ranks)]
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        command = [*launcher, str(common.ROOT / "run.py"), *words, "--out", str(run)]
        done = subprocess.run(command, cwd=place, env=_one_thread(), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        meta = json.loads((run / "distilled" / "meta.json").read_text())
    return {"seconds": meta["distillation"]["seconds"] / steps}


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(common.ROOT)}


# What is asked, in its order.


def asked(tiny: bool) -> Iterator[dict[str, Any]]:
    """What is measured: {"what": step, experts, counts or ranks, ...}; held out of fits or not."""
    base, axes = (TINY_BASE, TINY_AXES) if tiny else (BASE, AXES)
    yield {"what": "step", "axis": "base", "held_out": False, "point": asdict(base)}
    for axis, values in axes.items():
        for value in values:
            point = replace(base, **{axis: value})
            held_out = value == values[-1]
            yield {"what": "step", "axis": axis, "held_out": held_out, "point": asdict(point)}
    if not tiny:
        yield {"what": "step", "axis": "all", "held_out": True, "point": asdict(COMBINED)}
    numbers = EXPERTS[:3] if tiny else EXPERTS
    for number in numbers:
        held_out = number == numbers[-1]
        yield {"what": "experts", "axis": "experts", "held_out": held_out, "number": number}
    for name in (PLAIN, SHARP):
        yield {"what": "counts", "recipe": name}
    for ranks in RANKS:
        yield {"what": "ranks", "ranks": ranks}


def measured(one: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What came of one of `asked`."""
    images, epochs = (20, 1) if settings.tiny else (1000, 2)
    if one["what"] == "step":
        return common.apart(of_step, Point(**one["point"]), settings.repeats)
    if one["what"] == "experts":
        return common.apart(of_experts, one["number"], PLAIN, images, epochs)
    if one["what"] == "counts":
        return common.apart(of_experts, 1, one["recipe"], 20, 1)
    return of_ranks(one["ranks"], 3 if settings.tiny else 60)


def main(settings: Settings) -> None:
    """Measure what is not there yet, and write the page."""
    import scale_page

    if settings.tiny:
        settings = replace(settings, repeats=1, out=common.ROOT / "runs" / "scale_tiny.json")
    if not settings.page:
        measure(settings)
    if not settings.tiny:
        scale_page.write(settings.out)


def measure(settings: Settings) -> None:
    """Measure what the file of results does not say, which is written after each point."""
    files.make_folder(settings.out.parent)
    rows = _known(settings)
    wanted = list(asked(settings.tiny))
    began, done = time.perf_counter(), 0
    missing = [one for one in wanted if not any(one.items() <= row.items() for row in rows)]
    for one in missing:
        rows.append(one | measured(one, settings))
        done += 1
        files.write_json(settings.out, _said(settings) | {"rows": rows} | _where())
        left = (time.perf_counter() - began) / done * (len(missing) - done)
        print(f"{len(wanted) - len(missing) + done} of {len(wanted)}, {left / 60:.0f} min left")
        print(f"    {rows[-1]}", flush=True)


def _said(settings: Settings) -> dict[str, Any]:
    return {"settings": {"repeats": settings.repeats, "tiny": settings.tiny, "model": MODEL}}


def _known(settings: Settings) -> list[dict[str, Any]]:
    """Rows that were measured before: same settings, machine, versions and commit."""
    if not settings.out.is_file():
        return []
    asked = _said(settings) | _where()
    content = files.read_json(settings.out, "rows", *asked)
    same = all(content[name] == value for name, value in asked.items())
    return content["rows"] if same else []


def _where() -> dict[str, Any]:
    """Where it was measured."""
    where = {"machine": runtime.machine(CPU), "versions": runtime.versions()}
    return where | {"commit": runtime.commit()}


if __name__ == "__main__":
    main(tyro.cli(Settings))
