"""What do images cost that are decoded once into files, beside images that are held in memory?

Private memory (RssAnon) while they are decoded and while they are opened, at growing numbers of
images and, by a straight line from there, at 20 GB of pixels; seconds of draws of 256 images of
each class.

    python benchmarks/decoded.py --folder /tmp/decoded [--gigabytes 2] [--side 64]

The images are JPEG files of noise, with sides half as long again, which this script makes. All of
it goes on where it was when it is started again: images that are there are kept, decoding goes on
by itself, and each row is remembered in the folder.
"""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import tyro
from PIL import Image

from ddengine.data import RealSet, load_data
from ddengine.recipe import DataConfig
from ddengine.system.memo import Memo
from ddengine.system.rng import generator

CPU = torch.device("cpu")
CLASSES = 100
LOOKED_EVERY = 0.05  # seconds
LARGE = 20e9  # bytes of pixels that memory is told for
DRAWN = 256  # images of a class
SHARES = (8, 1)  # an eighth of the images, all


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    folder: Path
    gigabytes: float = 2.0  # of decoded pixels
    side: int = 64
    repeats: int = 5  # rounds of draws over all classes


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON."""
    of_image = 3 * settings.side**2
    most = round(settings.gigabytes * 1e9 / of_image / 0.8)  # a fifth is held out for the test
    settings.folder.mkdir(parents=True, exist_ok=True)
    memo = Memo(settings.folder / "rows.jsonl", str(asdict(settings)))
    rows: list[dict[str, Any]] = []
    fill(settings.folder / "images1", most, settings.side)
    for share in SHARES:
        root = settings.folder / f"images{share}"
        link(settings.folder / "images1", root, most // share)
        for what in ("decoding", "opening"):
            ask = partial(common.apart, measured, str(root), settings.side, what)
            rows.append(memo(f"{what} {share}", ask))
            print(rows[-1])
    for what in ("decoding", "opening"):
        rows.append(at_large(what, rows))
        print(rows[-1])
    largest = str(settings.folder / "images1")
    rows.append(memo("draws", partial(common.apart, drawn, largest, settings)))
    print(rows[-1])
    common.write("decoded", CPU, asdict(settings) | {"folder": None}, rows)


def fill(root: Path, num: int, side: int) -> None:
    """Write so many images in class folders, but those that are there."""
    larger = side * 3 // 2
    noise = np.random.default_rng(0).integers(0, 256, (larger, larger, 3), dtype=np.uint8)
    for i in range(num):
        path = image_at(root, i)
        if path.is_file() and path.stat().st_size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.roll(noise, i, axis=1) // 8 + np.uint8(i % 200)
        Image.fromarray(pixels).save(path, quality=85)


def link(large: Path, small: Path, num: int) -> None:
    """A folder of the first images of another one, but those that are there."""
    for i in range(num):
        path = image_at(small, i)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(image_at(large, i))


def image_at(root: Path, i: int) -> Path:
    """Where an image lies."""
    return root / f"{i % CLASSES:03}" / f"{i // CLASSES:06}.jpg"


def config_of(root: str, side: int, cache: str) -> DataConfig:
    """All images of a folder but the fifth that is held out for the test."""
    return DataConfig(name="folder", root=root, size=(side, side), validation=0.0, cache=cache)


def private() -> int:
    """Bytes of private memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise LookupError("RssAnon")


def measured(pipe: Connection, root: str, side: int, what: str) -> None:
    """Send a row of decoding, or of opening what is decoded."""
    highest = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(LOOKED_EVERY):
            highest = max(highest, private())

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    data = load_data(config_of(root, side, f"{root}.decoded"), CPU)
    seconds = time.perf_counter() - began
    ended.set()
    watching.join()
    row = {"what": what, "images": len(data.train), "pixel_bytes": data.bytes}
    pipe.send(row | {"private_bytes": highest, "seconds": round(seconds, 2)})


def at_large(what: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The private memory at LARGE: that of the most images, and a line from there.

    The line is that of opening, in which nothing is held but what grows with the images, such as
    their names; decoding holds blocks of images beside it, however many there are.
    """
    opened = [row for row in rows if row["what"] == "opening"]
    sizes = np.array([row["pixel_bytes"] for row in opened], float)
    slope, _ = np.polyfit(sizes, [row["private_bytes"] for row in opened], 1)
    last = [row for row in rows if row["what"] == what][-1]
    expected = last["private_bytes"] + slope * (LARGE - last["pixel_bytes"])
    what = f"{what} (by a straight line)"
    return {"what": what, "pixel_bytes": LARGE, "private_bytes": round(expected)}


def drawn(pipe: Connection, root: str, settings: Settings) -> None:
    """Send the median seconds of drawing images of a class, in memory and mapped into it."""
    mapped = load_data(config_of(root, settings.side, f"{root}.decoded"), CPU).train
    held = RealSet(mapped.pixels.clone(), mapped.labels, mapped.num_classes, mapped.preprocess)
    row: dict[str, Any] = {"what": f"draws of {DRAWN} images of a class"}
    for way, draw in (("one class", one_class), ("every class", every_class)):
        for name, real in (("memory", held), ("mapped", mapped)):
            draw(real, 0)
            seconds = [timed(draw, real, turn + 1) for turn in range(settings.repeats)]
            row[f"{way}, {name}, seconds"] = statistics.median(seconds)
        row[f"{way}, times"] = row[f"{way}, mapped, seconds"] / row[f"{way}, memory, seconds"]
    pipe.send(row)


def timed(draw: Callable[[RealSet, int], None], real: RealSet, turn: int) -> float:
    """Seconds of a draw."""
    began = time.perf_counter()
    draw(real, turn)
    return time.perf_counter() - began


def one_class(real: RealSet, turn: int) -> None:
    """Draw from one class after another."""
    for class_ in range(real.num_classes):
        real.draw(class_, DRAWN, generator(turn, class_))


def every_class(real: RealSet, turn: int) -> None:
    """Draw the indices of all classes at once, and then each class."""
    for index in real.draw_each(DRAWN, generator(turn, "each")):
        real.images(index)


if __name__ == "__main__":
    main(tyro.cli(Settings))
