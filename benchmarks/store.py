"""How long does drawing one segment from an expert store take?

A store of 1 GB, warm and cold page cache, and the memory it costs.

    python benchmarks/store.py [--gigabytes 1] [--draws 300]

A segment is two snapshots of one expert (start and target), as trajectory matching draws them at
every outer step. Cold: the shard's pages are dropped before each draw (posix_fadvise). Beside it,
what the published code does: torch.load of the whole file.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import common
import torch
import tyro

from buffers import store
from ddengine.system.rng import generator


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    gigabytes: float = 1.0
    epochs: int = 50  # of each expert; 51 snapshots
    num_params: int = 320_010  # ConvNet-D3 width 128 on CIFAR-10
    draws: int = 300  # segments timed
    length: int = 2  # expert epochs of a segment


def fill(folder: Path, settings: Settings) -> int:
    """Write random experts up to the size asked for; returns how many."""
    rows = settings.epochs + 1
    num = max(1, round(settings.gigabytes * 1e9 / (rows * settings.num_params * 4)))
    (folder / "manifest.json").write_text(
        json.dumps({"fingerprint": "random", "identity": {}, "epochs": list(range(rows))})
    )
    for expert in range(num):
        params = torch.randn(rows, settings.num_params, generator=generator(0, expert))
        store.write_expert(folder, expert, params, None, "float32", {})
    return num


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def draw(reader: store.ExpertStore, settings: Settings, i: int) -> float:
    """Seconds of drawing segment i."""
    stream = generator(1, i)
    expert = int(torch.randint(reader.num_experts, (1,), generator=stream))
    start = int(torch.randint(settings.epochs - settings.length, (1,), generator=stream))
    began = time.perf_counter()
    rows = reader.snapshots(expert, [start, start + settings.length])
    took = time.perf_counter() - began
    assert rows.shape == (2, settings.num_params)
    return took


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num = fill(folder, settings)
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        print(f"{num} experts, {size / 1e9:.2f} GB")
        cold = []
        for i in range(30):
            drop_pages(folder)
            # a mapping that is open would keep its pages
            cold.append(draw(store.ExpertStore(folder), settings, i))
        reader = store.ExpertStore(folder)
        for i in range(settings.draws):  # every page into the cache
            draw(reader, settings, i)
        before = _anonymous()
        warm = [draw(reader, settings, settings.draws + i) for i in range(settings.draws)]
        growth = _anonymous() - before
        for label, times in (("cold", cold), ("warm", warm)):
            quartiles = statistics.quantiles(times, n=20)
            rows.append(
                {
                    "cache": label,
                    "median_s": statistics.median(times),
                    "p95_s": quartiles[18],
                    "draws": len(times),
                }
            )
            print(
                f"{label}: median {rows[-1]['median_s'] * 1e3:.2f} ms, 95 % below "
                f"{quartiles[18] * 1e3:.2f} ms, {len(times)} draws"
            )
        rows.append({"anonymous_growth_bytes": growth, "store_bytes": size})
        print(
            f"memory of the process's own over {settings.draws} warm draws: {growth / 1e6:+.1f} MB"
        )
        whole = folder / "whole.pt"
        torch.save([list(reader.snapshots(0, [e])) for e in range(settings.epochs + 1)], whole)
        began = time.perf_counter()
        torch.load(whole, weights_only=True)
        rows.append({"one_expert_torch_load_s": time.perf_counter() - began})
        print(
            f"torch.load of one expert as a file: {rows[-1]['one_expert_torch_load_s'] * 1e3:.0f} "
            "ms"
        )
    common.write("store", torch.device("cpu"), asdict(settings), rows)


def _anonymous() -> int:
    """Bytes of this process that are not backed by files."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(tyro.cli(Settings))
