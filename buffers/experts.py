"""The experts that stores lack: here, on ranks, or in processes where these are faster."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Generator, nn

from buffers import beside, pace, together
from buffers.filling import Making
from ddengine.data import Data
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system import dist
from ddengine.system.runtime import Precision


def generate_all(makings: Sequence[Making]) -> None:
    """Fill stores, leaving finished experts alone.

    Of several ranks each trains its share of all experts that are missing in any of the stores, so
    that teachers of one expert each are shared, too; and so do processes beside this one. Experts
    that are one computation are not shared out. Raises UserError for a folder that holds a store of
    other settings.
    """
    for making in makings:
        making.check()  # before there is a folder
    threads = pace.threads_for(makings)
    for making in makings:
        dist.on_first_rank(partial(_open, making, threads))
    missing = []
    for number, making in enumerate(makings):
        missing += [(number, group) for group in making.grouped(making.missing())]
    mine = []
    # what is there may change as soon as a rank begins
    for number, group in dist.my_share(dist.told(missing)):
        mine += [(number, expert) for expert in group]
    processes = pace.hands_for(makings, mine).num
    if processes > 1:
        mine = beside.train_all(makings, mine, processes)
    for number, making in enumerate(makings):
        making.train([expert for of, expert in mine if of == number])
    dist.meet()


def _open(making: Making, threads: int | None) -> None:
    """Make a store ready; a new one says how its experts are trained."""
    making.open(threads, together.chosen(making))


def generate(
    data: Data,
    data_config: DataConfig,
    config: BufferConfig,
    model: str,
    new_model: Callable[[Generator], nn.Module],
    folder: Path,
    *,
    precision: Precision = "fp32",
) -> None:
    """Fill one store, as `generate_all` does."""
    making = Making(
        data=data,
        data_config=data_config,
        config=config,
        model=model,
        new_model=new_model,
        folder=folder,
        precision=precision,
    )
    generate_all([making])
