"""What is pre-training on a set that KRR-ST distils worth on other images?

    python benchmarks/krr_st.py --cifar10 FOLDER [--to fashion_mnist=FOLDER digits]

Images of CIFAR-10 (parquet files in FOLDER) are distilled without labels, and networks that are
pre-trained on the set are tested on Fashion-MNIST and digits, beside new networks, networks
pre-trained on as many random real images with the same kind of targets, and the self-supervised
network that saw all images. The same once more with the pool's counter as the released program has
it, where networks that were replaced are never trained again.

Every command is one of the program that goes on where it was interrupted, so this does too. Nothing
is made again that is in the folder; name another for other settings.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch
import tyro

from ddengine.loop import CHECKPOINT, load_checkpoint

RECIPE = "krr_st/cifar10_ipc10_small"
# what the pool does -> flags of distill
POOLS: dict[str, tuple[str, ...]] = {
    "counted": (),
    "released": ("--objective.pool.restart_count", "False"),
}
COLUMNS = ("data", "shots", "way", "set", "accuracy_mean", "accuracy_std", "n")


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    cifar10: Path  # folder of the parquet files of CIFAR-10
    folder: Path = Path("runs/krr_st")  # of runs and results
    images: int = 10_000  # of CIFAR-10
    ipc: int = 10  # tenth of the distilled images
    epochs: int = 20  # of the self-supervised network
    steps: int = 1000  # outer steps
    pretraining: int = 300  # epochs on the set
    to: tuple[str, ...] = ("fashion_mnist", "digits")  # as transfer takes them
    limit: int = 2000  # training images of each dataset
    shots: int = 10  # of each class, in the few-shot rows
    updates: int = 200  # of fine-tuning, and two fifths of it few-shot
    networks: int = 3  # of each row
    seeds: tuple[int, ...] = (0,)  # of distillations
    threads: int = 1


def program(settings: Settings, *words: str) -> None:
    """Run a command of the program; what it says goes to the terminal."""
    env = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    run = str(common.ROOT / "run.py")
    done = subprocess.run([sys.executable, run, *words], cwd=settings.folder, env=env)
    if done.returncode:
        raise SystemExit(f"run.py {' '.join(words)} ended with {done.returncode}")


def distilled(settings: Settings) -> tuple[str, ...]:
    """The words that buffer and distill have in common."""
    return (
        RECIPE,
        *("--data.name", "parquet", "--data.root", str(settings.cifar10.resolve())),
        *("--data.limit", str(settings.images), "--ipc", str(settings.ipc)),
        *("--buffer.epochs", str(settings.epochs), "--outer.steps", str(settings.steps)),
        *("--evaluation.epochs", str(settings.pretraining)),
    )


def transfer(settings: Settings, run: str, controls: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a run on the other datasets; of controls only those that are named."""
    program(
        settings,
        *("transfer", run, "--to", *settings.to, "--controls", *controls),
        *("--limit", str(settings.limit), "--shots", str(settings.shots)),
        *("--updates", str(settings.updates)),
        *("--few_updates", str(max(1, 2 * settings.updates // 5))),
        *("--networks", str(settings.networks), "--lr_grid", "0.01"),
    )
    content = json.loads((settings.folder / run / "transfer.json").read_text())
    return content["rows"]


def pool_of(run: Path, steps: int) -> dict[str, int]:
    """How many networks the pool of a finished run has, and how many have had their `steps`."""
    state, _ = load_checkpoint(run / CHECKPOINT, torch.device("cpu"))
    ages = state.objective["ages"]
    return {"networks": len(ages), "past": int((ages >= steps).sum())}


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    """All rows, each with the pool and the seed of its distillation."""
    common_words = distilled(settings)
    program(settings, "buffer", *common_words)
    rows = []
    for seed in settings.seeds:
        for pool, flags in POOLS.items():
            run = f"{pool}-{seed}"
            program(settings, "distill", *common_words, *flags, "--seed", str(seed), "--out", run)
            first = pool == "counted" and seed == settings.seeds[0]
            controls = ("none", "random", "experts") if first else ("none",)
            facts = {"pool": pool, "seed": seed, **pool_of(settings.folder / run, 100)}
            for row in transfer(settings, run, controls):
                rows.append(facts | row)
    return rows


def table(rows: list[dict[str, Any]], seeds: tuple[int, ...]) -> str:
    """A line for what networks were pre-trained on, a column for each dataset, way and shots."""
    columns: list[str] = []
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        is_first = row["pool"] == "counted" and row["seed"] == seeds[0]
        is_control = row["set"] != "distilled"
        if is_control and not is_first:
            continue  # the same networks again
        name = row["set"]
        if not is_control:
            name = f"KRR-ST, {row['pool']} pool, seed {row['seed']}"
        shots = "all" if row["shots"] == "all" else f"{row['shots']} a class"
        column = f"{row['data']}, {row['way']}, {shots}"
        if column not in columns:
            columns.append(column)
        lines.setdefault(name, {})[column] = common.shown(row["accuracy_mean"], row["ci95"])
    shown = [f"| pre-trained on | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, cells in lines.items():
        shown.append(f"| {name} | {' | '.join(cells[column] for column in columns)} |")
    return "\n".join(shown)


def options_of(settings: Settings) -> dict[str, str]:
    """The settings as they are kept: of folders of a machine only the names."""
    options = {key: str(value) for key, value in asdict(settings).items()}
    options["cifar10"] = settings.cifar10.name
    options["folder"] = settings.folder.name
    names = [word.partition("=")[0] for word in settings.to]
    options["to"] = " ".join(names)
    return options


def main() -> None:
    """Run everything, and write a table."""
    settings = tyro.cli(Settings)
    settings.folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(settings)
    shown = table(rows, settings.seeds)
    (settings.folder / "table.md").write_text(shown + "\n")
    print(shown)
    common.write(settings.folder.name, torch.device("cpu"), options_of(settings), rows)


if __name__ == "__main__":
    main()
