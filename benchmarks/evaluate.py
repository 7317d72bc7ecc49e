"""What does training the networks of an evaluation in one computation gain?

Updates a second, against one after another and a plain loop.

    python benchmarks/evaluate.py [--device cuda] [--models convnet-d3-w16-in convnet-d3-w128-in]
    [--quick]

Networks are trained on noise of one channel and 28 x 28 pixels in ten classes, with DSA and SGD, as
an evaluation trains them on a distilled set of that many images; a batch is the whole set, as in
published evaluations of so few images. Three forms take turns in one process: all networks in one
computation, the engine's one after another, and what reference repositories do: TensorDataset,
DataLoader, optimiser, one network after another. The engine's two forms start alike and must reach
the same networks; the plain loop draws other random numbers.
"""

import dataclasses
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import common
import torch
import tyro
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ddengine.data import Preprocess, RealSet
from ddengine.learning import augment, training
from ddengine.learning.flat import flatten
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.system import rng, runtime

SHAPE, CLASSES, LR = (1, 28, 28), 10, 0.01
CONFIG = EvalConfig(protocol="benchmark")
AGREE = 1e-4  # how far parameters may be apart, of rounding in another order
# networks of any set are trained in one computation, or of none
ENGINE = {"together": training.AtOnce(10**9, 2**62), "one by one": training.AtOnce(0, 0)}


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    models: tuple[str, ...] = ()  # none: convnet-d3-w16-in, on CUDA also of width 128
    images: tuple[int, ...] = (10, 100)  # in the set, which is one batch
    networks: int = 5
    updates: int = 30  # of each network in a turn
    repeats: int = 3  # turns, after one that is not counted
    quick: bool = False  # one turn of two updates of two networks: does it run?
    name: str = "evaluate"  # of the result's file


def noise(num: int, device: torch.device) -> RealSet:
    """Pixels of no meaning, every class as often."""
    pixels = torch.randint(
        0, 256, (num, *SHAPE), generator=rng.generator(0, "pixels"), dtype=torch.uint8
    )
    preprocess = Preprocess(mean=torch.full((1,), 0.5), std=torch.full((1,), 0.25))
    return RealSet(
        pixels.to(device), (torch.arange(num) % CLASSES).to(device), CLASSES, preprocess.to(device)
    )


def by_engine(
    form: str, name: str, real: RealSet, settings: Settings, device: torch.device
) -> list[nn.Module]:
    """Networks trained by the engine, in one computation or one after another."""
    seeds = list(range(settings.networks))
    return training.train_networks(
        partial(build_model, name, SHAPE, CLASSES),
        [real] * len(seeds),
        seeds,
        CONFIG,
        LR,
        device,
        steps=settings.updates,
        at_once=ENGINE[form],
    )


def by_plain_loop(
    name: str, real: RealSet, settings: Settings, device: torch.device
) -> list[nn.Module]:
    """Networks trained as reference repositories do it; their sets, too, lie on the device."""
    images, labels = real.batch(torch.arange(len(real)))
    networks = []
    for seed in range(settings.networks):
        stream = rng.generator(seed, "plain")
        network = build_model(name, SHAPE, CLASSES, stream).to(device).train()
        optimiser = torch.optim.SGD(
            network.parameters(), LR, CONFIG.momentum, weight_decay=CONFIG.weight_decay
        )
        criterion = nn.CrossEntropyLoss()
        loader = DataLoader(
            TensorDataset(images, labels),
            batch_size=CONFIG.batch,
            shuffle=True,
            num_workers=0,
            generator=stream,
        )
        done = 0
        while done < settings.updates:
            for batch, targets in loader:
                draw = augment.sample(CONFIG.augment, len(batch), stream).to(device)
                loss = criterion(network(augment.apply(CONFIG.augment, batch, draw)), targets)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                done += 1
                if done == settings.updates:
                    break
        networks.append(network.eval())
    return networks


def apart_by(name: str, real: RealSet, settings: Settings, device: torch.device) -> float:
    """The largest difference between parameters of the engine's two forms after two updates.

    Rounding grows with more.

    Raises RuntimeError when they are other networks.
    """
    settings = dataclasses.replace(settings, updates=2)
    forms = [
        torch.stack([flatten(network) for network in by_engine(form, name, real, settings, device)])
        for form in ENGINE
    ]
    found = (forms[0] - forms[1]).abs().max().item()
    if not found <= AGREE:
        raise RuntimeError(
            f"{name} on {len(real)} images: trained together and one by one, parameters differ by "
            f"up to {found:.2g}"
        )
    return found


def seconds(pipe: Any, name: str, num: int, settings: Settings) -> None:
    """Send the median seconds of each form, and how far the engine's two are apart."""
    device = runtime.setup(settings.device)
    real = noise(num, device)

    def timed(form: str) -> Any:
        def once(_: int) -> None:
            networks = (
                by_engine(form, name, real, settings, device)
                if form in ENGINE
                else by_plain_loop(name, real, settings, device)
            )
            assert len(networks) == settings.networks
            if device.type == "cuda":
                torch.cuda.synchronize()

        return once

    times = common.turns({form: timed(form) for form in (*ENGINE, "plain loop")}, settings.repeats)
    pipe.send((times, apart_by(name, real, settings, device)))


def main(settings: Settings) -> None:
    """Measure, print, write the JSON; a quick run writes none."""
    device = runtime.setup(settings.device)
    if settings.quick:
        settings = Settings(
            settings.device,
            settings.models,
            settings.images,
            networks=2,
            updates=2,
            repeats=1,
            quick=True,
        )
    models = settings.models or (
        "convnet-d3-w16-in",
        *(("convnet-d3-w128-in",) if device.type == "cuda" else ()),
    )
    rows = []
    for name in models:
        for num in settings.images:
            times, difference = common.apart(seconds, name, num, settings)
            for form, taken in times.items():
                rate = settings.networks * settings.updates / taken
                row = {
                    "model": name,
                    "images": num,
                    "form": form,
                    "seconds": taken,
                    "updates_per_second": rate,
                    "faster": times["plain loop"] / taken,
                }
                rows.append(row | ({"apart": difference} if form == "together" else {}))
                print(
                    (
                        f"{name:20} {num:4} images {form:12}: {taken:8.3f} s, {rate:9.1f} "
                        f"updates/s, {row['faster']:5.2f} x the plain loop"
                    ),
                    flush=True,
                )
            print(
                (
                    f"{'':20} {num:4} images together is "
                    f"{times['one by one'] / times['together']:.2f} x one by one; apart by "
                    f"{difference:.1e}"
                ),
                flush=True,
            )
    if not settings.quick:
        common.write(settings.name, device, asdict(settings), rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
