"""What does computing several classes in one pass gain?

Seconds per outer step and added peak memory of DC, DSA, DM and IDC.

    python benchmarks/matching.py [--device cuda] [--widths 16 128]

One outer step on images of Fashion-MNIST's shape, forward and back, in a fresh network, of three
forms: class by class, all ten classes in one pass, and the default, which takes as many classes as
pay on the device. The network's own training between steps is the same in all forms and not
counted. Each form runs in a process of its own for its memory; times are of one process that takes
turns between the forms.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import common
import torch
import tyro

from ddengine.data import Preprocess, RealSet
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import rng, runtime
from synth import classes
from synth.catalogue import find
from synth.networks import OnReal, OnSynthetic

SHAPE, CLASSES, PER_CLASS = (1, 28, 28), 10, 600
# images in one pass, which the engine otherwise chooses by the device
FORMS: dict[str, int | None] = {"class by class": 0, "all at once": 10**9, "default": None}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    widths: tuple[int, ...] = (16, 128)
    ipc: tuple[int, ...] = (1, 10, 50)
    methods: tuple[str, ...] = ("dc", "dsa", "dm", "idc")
    # real images per class; None: the published number on a GPU; on a CPU 64, and 16 for wide
    # networks
    real_batch: int | None = None
    repeats: int = 3  # turns, after one that is not counted
    name: str = "matching"  # of the result's file


def step(method: str, width: int, ipc: int, settings: Settings, form: int | None) -> Any:
    """A function that makes one outer step."""
    device = runtime.setup(settings.device)
    at_once = classes.AT_ONCE[device.type] if form is None else form
    recipe, stream = find(f"{method}/fashion_mnist_ipc{ipc}"), rng.generator(0, "benchmark")

    def new_model(r: torch.Generator) -> torch.nn.Module:
        return build_model(f"convnet-d3-w{width}-in", SHAPE, CLASSES, r)

    pixels = torch.randint(
        0, 256, (CLASSES * PER_CLASS, *SHAPE), generator=stream, dtype=torch.uint8
    ).to(device)
    preprocess = Preprocess(mean=torch.zeros(1), std=torch.ones(1)).to(device)
    real = RealSet(
        pixels,
        torch.arange(CLASSES, device=device).repeat_interleave(PER_CLASS),
        CLASSES,
        preprocess,
    )
    env = Env(real, new_model, FlatModel(new_model(stream)).to(device), None, device)
    real_batch = settings.real_batch or (
        recipe.objective.real_batch if device.type == "cuda" else 64 if width < 64 else 16
    )
    objective: Any = replace(recipe.objective, real_batch=real_batch, classes_at_once=None)
    if isinstance(objective.networks, OnSynthetic | OnReal):
        # a new network each step, as untrained ones are
        objective = replace(objective, networks=replace(objective.networks, steps=1))
    built = objective.build(env)
    images = torch.rand(CLASSES * ipc, *SHAPE, generator=stream).to(device)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(ipc)
    syn = SyntheticSet(
        {"images": images.requires_grad_()},
        labels,
        tuple(map(str, range(10))),
        recipe.codec,
        preprocess,
        space=recipe.codec.space,
    )

    def once(number: int) -> None:
        images.grad, classes.AT_ONCE[device.type] = None, at_once
        for loss in built.losses(syn, built.init(stream), number, rng.generator(0, number)):
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return once


def memory(pipe: Any, *args: Any) -> None:
    """Send the added peak memory of a step."""
    pipe.send(common.added_memory(step(*args)))


def seconds(pipe: Any, method: str, width: int, ipc: int, settings: Settings) -> None:
    """Send the median seconds of each form."""
    pipe.send(
        common.turns(
            {name: step(method, width, ipc, settings, form) for name, form in FORMS.items()},
            settings.repeats,
        )
    )


def main(settings: Settings) -> None:
    """Measure, print, write the JSON."""
    rows = []
    for width in settings.widths:
        for method in settings.methods:
            for ipc in settings.ipc:
                times = common.apart(seconds, method, width, ipc, settings)
                for name, form in FORMS.items():
                    gain = times["class by class"] / times[name]
                    row = {
                        "method": method,
                        "width": width,
                        "ipc": ipc,
                        "form": name,
                        "seconds": times[name],
                        "faster": gain,
                    }
                    rows.append(
                        row
                        | {"peak_bytes": common.apart(memory, method, width, ipc, settings, form)}
                    )
                    print(
                        f"width {width:4} {method:4} ipc {ipc:3} {name:15}: {times[name]:8.4f} s, "
                        f"{gain:5.2f} x, "
                        f"added peak {rows[-1]['peak_bytes'] / 1e9:6.2f} GB", flush=True,
                    )  # fmt: skip
                common.write(settings.name, runtime.setup(settings.device), asdict(settings), rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
