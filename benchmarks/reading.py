"""What does reading a dataset need in memory and time?

Peak memory beside the size of its pixels, of image files and of a torch Dataset.

    python benchmarks/reading.py

Each row is read in a process of its own, into a training and a validation split, with mean and
standard deviation fitted. The images are noise, stored as BMP files, which take the least time to
decode. What is counted is above what the process holds before it reads, which is torch itself and,
for a torch Dataset, the images that are handed over.
"""

import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.data import TensorDataset

from ddengine.data import load_data
from ddengine.data.torch_dataset import data_of, own_config
from ddengine.recipe import DataConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    sizes: tuple[tuple[int, int], ...] = ((20_000, 64), (2_000, 512))  # (images, side in pixels)


def fill(root: Path, num: int, side: int) -> None:
    """Write colour images of noise in two class folders."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir(parents=True)
    for i in range(num):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
            root / "ab"[i % 2] / f"{i}.bmp"
        )


def measure(pipe: Connection, kind: str, root: str, num: int, side: int) -> None:
    """Send (bytes of pixels, added peak memory in bytes, seconds) of reading them."""
    dataset = None
    if kind == "torch Dataset":
        dataset = TensorDataset(
            torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8), torch.arange(num) % 2
        )
    common.give_back()
    common.reset_peak()
    before, began = common.resident(), time.perf_counter()
    if dataset is not None:
        data = data_of(dataset, own_config(DataConfig(name="own")), CPU)
    else:
        data = load_data(DataConfig(name="folder", root=root), CPU)
    pixels = sum(real.pixels.numel() for real in (data.train, data.validation) if real is not None)
    pipe.send((pixels, common.peak() - before, time.perf_counter() - began))


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON."""
    rows: list[dict[str, Any]] = []
    for num, side in settings.sizes:
        with tempfile.TemporaryDirectory() as root:
            fill(Path(root) / "images", num, side)
            for kind in ("image files", "torch Dataset"):
                pixels, added, seconds = common.apart(
                    measure, kind, str(Path(root) / "images"), num, side
                )
                rows.append(
                    {
                        "kind": kind,
                        "images": num,
                        "side": side,
                        "pixel_bytes": pixels,
                        "added_bytes": added,
                        "seconds": seconds,
                    }
                )
                print(
                    f"{kind}, {num} x {side} px: pixels {pixels / 2**20:.0f} MiB, peak "
                    f"{added / 2**20:.0f} MiB more, {seconds:.1f} s"
                )
    common.write("reading", CPU, asdict(settings), rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
