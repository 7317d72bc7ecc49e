"""What does optimising several compensators in one forward pass gain?

Seconds per outer step and added peak memory of INFER.

    python benchmarks/compensator.py [--device cuda] [--models convnet-d3-w128-bn resnet18-bn]

One outer step of all compensators of one teacher, forward and back, on 32 x 32 colour images of ten
classes, of three forms: one compensator after another, all in one pass, and the default, which
takes as many as pay on the device. All have statistics of each compensator alone, and the same
gradients. Each form runs in a process of its own for its memory; times are of one process that
takes turns between the forms.
"""

from dataclasses import asdict, dataclass
from typing import Any

import common
import torch
import tyro

from ddengine.data import Preprocess, RealSet
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.sets.codec import Compensated
from ddengine.sets.synthetic import coded
from ddengine.system import rng, runtime
from synth.compensator import BaseSets
from synth.statistics import AT_ONCE, StatisticsMatching, StatisticsObjective

SHAPE, CLASSES, TEACHERS = (3, 32, 32), 10, 4
# images in one pass
FORMS: dict[str, int | None] = {"one by one": CLASSES, "all at once": 10**9, "default": None}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    models: tuple[str, ...] = (
        "convnet-d3-w16-bn",
        "convnet-d3-w128-bn",
        "resnet18-bn-x12",
        "resnet18-bn",
    )
    ipc: tuple[int, ...] = (10, 50)
    repeats: int = 3  # turns, after one that is not counted
    name: str = "compensator"  # of the result's file


def step(name: str, ipc: int, settings: Settings, form: int | None) -> Any:
    """A function that makes one outer step; the compensators are those of one of four teachers."""
    device = runtime.setup(settings.device)
    stream = rng.generator(0, "benchmark")
    teacher = build_model(name, SHAPE, CLASSES, stream).eval().requires_grad_(False).to(device)
    preprocess = Preprocess(mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25)).to(device)
    pixels = torch.randint(0, 256, (CLASSES * ipc, *SHAPE), generator=stream, dtype=torch.uint8).to(
        device
    )
    labels = torch.arange(CLASSES, device=device).repeat_interleave(ipc)
    real = RealSet(pixels, labels, CLASSES, preprocess)
    sets, _, _ = Compensated(per_set=TEACHERS).budget(ipc, CLASSES)
    codec, _ = Compensated(base=sets, compensators=sets).fit(ipc, (3, 32, 32), CLASSES)
    index = (torch.arange(CLASSES)[:, None] * ipc + torch.arange(sets)).flatten()
    syn = coded(
        codec,
        real.images(index),
        labels[index.to(device)],
        tuple(map(str, range(CLASSES))),
        preprocess,
    )
    compensators = syn.tensors["compensators"].requires_grad_()

    def new_model(r: torch.Generator) -> torch.nn.Module:
        return teacher

    env = Env(real, new_model, FlatModel(teacher).to(device), None, device)
    objective = StatisticsObjective(
        StatisticsMatching(batches=BaseSets(), alpha=1.0), env, [teacher]
    )
    objective.at_once = AT_ONCE[device.type] if form is None else form

    def once(number: int) -> None:
        compensators.grad = None
        for loss in objective.losses(syn, {}, number, rng.generator(0, number)):
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return once


def memory(pipe: Any, *args: Any) -> None:
    """Send the added peak memory of a step."""
    pipe.send(common.added_memory(step(*args)))


def seconds(pipe: Any, name: str, ipc: int, settings: Settings) -> None:
    """Send the median seconds of each form."""
    pipe.send(
        common.turns(
            {form: step(name, ipc, settings, images) for form, images in FORMS.items()},
            settings.repeats,
        )
    )


def main(settings: Settings) -> None:
    """Measure, print, write the JSON."""
    rows = []
    for name in settings.models:
        for ipc in settings.ipc:
            times = common.apart(seconds, name, ipc, settings)
            for form, images in FORMS.items():
                gain = times["one by one"] / times[form]
                row = {
                    "model": name,
                    "ipc": ipc,
                    "form": form,
                    "seconds": times[form],
                    "faster": gain,
                }
                rows.append(row | {"peak_bytes": common.apart(memory, name, ipc, settings, images)})
                print(
                    (
                        f"{name:20} ipc {ipc:3} {form:12}: {times[form]:8.4f} s, {gain:5.2f} x, "
                        f"added peak {rows[-1]['peak_bytes'] / 1e9:6.2f} GB"
                    ),
                    flush=True,
                )
            common.write(settings.name, runtime.setup(settings.device), asdict(settings), rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
