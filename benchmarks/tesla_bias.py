"""How far is TESLA's gradient from the exact one?

Both at the same segments, along two real runs: one that follows each.

    python benchmarks/tesla_bias.py [--recipe tesla/fashion_mnist_ipc1_small] [--steps 200] [--every
    10] [--experts FOLDER]

Needs the recipe's experts. Every so many outer steps the gradients of images and learning rate are
computed by both policies from the same draw. Writes docs/results/tesla_bias.md and .json.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import torch
import tyro

from ddengine import loop
from ddengine.api.inputs import Source
from ddengine.commands.on_recipe import options_of, stores_of
from ddengine.commands.process import start
from ddengine.objective import Objective
from ddengine.prepare import prepare
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, runtime
from ddengine.system.rng import generator


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    recipe: str = "tesla/fashion_mnist_ipc1_small"
    steps: int = 200  # outer steps
    every: int = 10  # between measurements
    experts: Path | None = None
    device: str = "auto"
    flags: str = ""  # more flags of the recipe, separated by spaces


def gradients(objective: Objective, syn: SyntheticSet, step: int) -> dict[str, torch.Tensor]:
    """Of images and learning rate, for the draw that a run with seed 0 makes at this step."""
    leaves = {k: syn.tensors[k].clone().requires_grad_() for k in ("images", "lr")}
    for loss in objective.losses(
        syn.with_tensors(leaves), {}, step, generator(0, "losses", step, 0)
    ):
        loss.backward()
    return {k: v.grad for k, v in leaves.items() if v.grad is not None}


def compare(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Angle in degrees and norms of the images' gradients, and the learning rate's gradients."""
    a, b = ours["images"].flatten().double(), exact["images"].flatten().double()
    cosine = float(torch.dot(a, b) / (a.norm() * b.norm()))
    return {
        "angle": float(torch.rad2deg(torch.acos(torch.tensor(min(1.0, cosine))))),
        "norm_ratio": float(a.norm() / b.norm()),
        "error": float((a - b).norm() / b.norm()),
        "lr": float(ours["lr"]),
        "lr_exact": float(exact["lr"]),
    }


def follow(settings: Settings, policy: str) -> list[dict[str, Any]]:
    """Measurements along a run that steps by `policy`."""
    flags = [
        settings.recipe,
        "--device",
        settings.device,
        "--outer.steps",
        str(settings.steps),
        *settings.flags.split(),
    ]
    if settings.experts:
        flags += ["--experts", str(settings.experts)]
    options = options_of("distill", flags)
    device = start(options)
    stores = stores_of(options, options.experts)
    source = Source(options.recipe.data)
    data = source.load(device, stores.preprocess)
    policies = {}
    for name in ("replay", "detached"):
        recipe = replace(options.recipe, objective=replace(options.recipe.objective, backprop=name))
        syn, policies[name] = prepare(
            recipe, data, device, stores.open(data), seed=options.seed, precision=options.precision
        )
    state = loop.State({k: v.clone() for k, v in syn.tensors.items()}, {}, {}, {})
    rows = []
    while state.step < settings.steps:
        if state.step % settings.every == 0:
            now = syn.with_tensors(state.tensors)
            found = {
                name: gradients(objective, now, state.step) for name, objective in policies.items()
            }
            rows.append(
                {
                    "run": policy,
                    "step": state.step,
                    **compare(found["detached"], found["replay"]),
                    "rate": float(now.tensors["lr"]),
                }
            )
            print(rows[-1])
            sys.stdout.flush()
        loop.outer_step(syn, policies[policy], options.recipe.outer, state, 0)
    return rows


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """Means over quarters of each run."""
    lines = [
        (
            "| the run follows | outer steps | angle, degrees | norm over exact | relative error "
            "| d lr over exact | learned rate |"
        ),
        "|---" * 7 + "|",
    ]
    for policy in ("detached", "replay"):
        for quarter in range(4):
            low, high = quarter * steps // 4, (quarter + 1) * steps // 4
            if not (part := [r for r in rows if r["run"] == policy and low <= r["step"] < high]):
                continue

            def mean(name: str, part: list[dict[str, Any]] = part) -> float:
                return sum(r[name] for r in part) / len(part)

            ratio = sorted(r["lr"] / r["lr_exact"] for r in part)[len(part) // 2]
            cells = [
                policy,
                f"{low} to {high - 1}",
                f"{mean('angle'):.1f}",
                f"{mean('norm_ratio'):.2f}",
                f"{mean('error'):.2f}",
                f"{ratio:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} | {mean('rate'):.4f} |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    """Both runs, the table, the JSON."""
    rows = [row for policy in ("detached", "replay") for row in follow(settings, policy)]
    text = table(rows, settings.steps)
    print(text)
    out = common.ROOT / "docs" / "results"
    where = {
        "machine": runtime.machine(runtime.setup(settings.device)),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    said = {
        "recipe": settings.recipe,
        "steps": settings.steps,
        "every": settings.every,
        "flags": settings.flags,
    }
    files.write_json(out / "tesla_bias.json", {"settings": said, "rows": rows, **where})
    (out / "tesla_bias.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Settings))
