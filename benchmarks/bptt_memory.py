"""How does memory grow with the window of back-propagation through training?

Added peak memory and time of one outer step of rat/fashion_mnist_ipc10_small: `replay` and `full`
of our own and `higher`, with windows of several lengths, each in a fresh process.

    python benchmarks/bptt_memory.py [--device cuda] [--windows 10 30 100]

Random images of Fashion-MNIST's shape, 10 a class. Writes docs/results/bptt_memory.md and .json.
"""

import time
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
from ddengine.system import files, runtime
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.windows import Last

RECIPE = "rat/fashion_mnist_ipc10_small"
SHAPE = (1, 28, 28)
POLICIES = {
    "replay": {"inner": "unroll", "backprop": "replay"},
    "full": {"inner": "unroll", "backprop": "full"},
    "higher": {"inner": "higher"},
}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    windows: tuple[int, ...] = (10, 30, 100)
    warm: int = 10  # plain steps before the window


def images(device: torch.device, num: int) -> torch.Tensor:
    """Random images as networks see them."""
    return torch.randn(num, *SHAPE, generator=generator(0, "images")).to(device)


def measure(pipe: Any, policy: str, window: int, settings: Settings) -> None:
    """Send the cost of one outer step."""
    device = runtime.setup(settings.device)
    recipe = find(RECIPE)
    preprocess = Preprocess(mean=torch.zeros(1), std=torch.ones(1)).to(device)
    classes = torch.arange(10, device=device)
    pixels = torch.zeros(1000, *SHAPE, dtype=torch.uint8, device=device)
    real = RealSet(pixels, classes.repeat(100), 10, preprocess)

    def new_model(rng: torch.Generator) -> torch.nn.Module:
        return build_model(recipe.model, SHAPE, 10, rng)

    model = FlatModel(new_model(generator(0))).to(device)
    env = Env(real, new_model, model, None, device)
    stored = classes.repeat_interleave(recipe.ipc)
    tensors = {"images": images(device, len(stored)).requires_grad_()}
    syn = SyntheticSet(tensors, stored, tuple("0123456789"), recipe.codec, preprocess)
    seconds = 0.0

    def once(turn: int) -> None:
        nonlocal seconds
        size = window if turn else 1
        changes: dict[str, Any] = {"inner_steps": settings.warm + size, "window": Last(size=size)}
        objective = replace(recipe.objective, **changes, **POLICIES[policy]).build(env)
        start = time.perf_counter()
        for loss in objective.losses(syn, {}, 0, generator(0)):
            loss.backward()
        seconds = time.perf_counter() - start

    peak = common.added_memory(once)
    pipe.send({"policy": policy, "window": window, "peak_bytes": peak, "seconds": seconds})


def markdown(rows: list[dict[str, Any]], windows: tuple[int, ...]) -> str:
    """A line a policy: memory with each window, how much it grows, seconds of the longest."""
    names = [f"{window} steps" for window in windows]
    lines = ["| gradients by | " + " | ".join(names) + " | growth | time of the longest |"]
    lines.append("| --- " * (len(windows) + 3) + "|")
    for policy in POLICIES:
        of_policy = [row for row in rows if row["policy"] == policy]
        sizes = [row["peak_bytes"] for row in of_policy]
        cells = [f"{size / 1e6:.0f} MB" for size in sizes]
        growth = f"{sizes[-1] / sizes[0]:.2f}"
        seconds = f"{of_policy[-1]['seconds']:.1f} s"
        lines.append(f"| {policy} | " + " | ".join([*cells, growth, seconds]) + " |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    """Measure, print, write the table."""
    rows = []
    for policy in POLICIES:
        for window in settings.windows:
            rows.append(common.apart(measure, policy, window, settings))
            print(rows[-1], flush=True)
    device = runtime.setup(settings.device)
    where = {"machine": runtime.machine(device), "versions": runtime.versions()}
    said = {"settings": asdict(settings), "rows": rows, **where, "commit": runtime.commit()}
    out = common.ROOT / "docs" / "results"
    files.write_json(out / "bptt_memory.json", said)
    (out / "bptt_memory.md").write_text(markdown(rows, settings.windows))


if __name__ == "__main__":
    main(tyro.cli(Settings))
