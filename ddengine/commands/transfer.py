"""`transfer SET --to DATASET... [flags]`: pre-training on a set, tested on other datasets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import buffers
import ddengine
from ddengine.api.evaluate import data_settings, protocol_of
from ddengine.api.inputs import dataset_of
from ddengine.api.transfer import by_name
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Machine, ProtocolAlone, as_kind
from ddengine.commands.process import alone
from ddengine.data import Dataset
from ddengine.data.load import DATASETS
from ddengine.recipe import DataConfig, EvalConfig, Recipe
from ddengine.system.errors import UserError, unknown
from ddengine.uses.transfer import TransferConfig, pretraining_of

OF_PATHS = ("folder", "parquet", "hub")  # datasets that are named by where they lie


@dataclass(frozen=True, kw_only=True)
class TransferOptions(Machine):
    """Flags of transfer."""

    # datasets to test on: names (digits, fashion_mnist ...), paths of folders of images or of
    # parquet files, or hub:USER/NAME; NAME=PATH for a known one that lies elsewhere, or to call any
    # of these NAME
    to: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # networks; none: the recipe's
    out: Path | None = None  # folder of transfer.json; None: the run, or the distilled folder
    restart: bool = False  # test again although transfer.json is there
    # the store of the set's experts, for the rows experts and, of sets with features, random; None:
    # experts/FINGERPRINT, where it is there
    experts: Path | None = None
    transfer: Annotated[TransferConfig, tyro.conf.arg(name="")] = TransferConfig()
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]  # that the set was made of
    # how networks are pre-trained on the set
    pretraining: Annotated[ProtocolAlone, tyro.conf.FlagConversionOff]


def _by_recipe(recipe: Recipe) -> TransferOptions:
    """The options, by what a recipe says."""
    protocol = as_kind(ProtocolAlone, recipe.evaluation)
    return TransferOptions(data=recipe.data, pretraining=protocol)


COMMAND = OnPaths("transfer", TransferOptions, by_recipe=_by_recipe)


def main(args: list[str]) -> None:
    """The command."""
    path, flags = COMMAND.path(args)
    of = ddengine.load(path)
    protocol = pretraining_of(protocol_of(of), of.set.targets)
    defaults = TransferOptions(data=data_settings(of), pretraining=as_kind(ProtocolAlone, protocol))
    options = COMMAND.parse(path, flags, defaults)
    alone("transfer")
    outcome = ddengine.transfer(
        of,
        options.data,
        by_name(list(map(named, options.to))),
        models=options.models,
        config=options.transfer,
        protocol=as_kind(EvalConfig, options.pretraining),
        experts=buffers.SetExperts(options.experts),
        folder=options.out,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
        command=("transfer", *args),
    )
    cli.show(outcome)


def named(word: str) -> tuple[str | None, Dataset]:
    """(what a dataset is called, None for its own name; the dataset) of a word of --to.

    Raises UserError for a word that means none.
    """
    name, equals, what = word.partition("=")
    if not equals or Path(word).exists():
        return None, dataset_named(word)
    if name in DATASETS and name not in OF_PATHS:
        return None, Dataset.named(name, what or None)
    if not name or not what:
        raise UserError(f"--to {word} lacks a name or a path; write --to NAME=PATH.")
    return name, dataset_named(what)


def dataset_named(word: str) -> Dataset:
    """The dataset of a name, a path or hub:USER/NAME. Raises UserError where there is none."""
    if word in DATASETS and word not in OF_PATHS:
        return Dataset.named(word)
    if word.startswith("hub:"):
        return Dataset.hub(word.removeprefix("hub:"))
    path = Path(word)
    dataset = dataset_of(word) if path.is_dir() or path.suffix == ".parquet" else None
    if dataset is not None:
        return dataset
    if len(path.parts) > 1 or path.exists():
        raise UserError(
            f"--to {word} is no folder of images or parquet files; check the path, or name a "
            "dataset."
        )
    raise unknown("dataset", word, DATASETS)
