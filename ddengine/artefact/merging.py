"""Several shipped folders of one dataset as one set, with the meta.json that says what it is of.

Names identify classes. How tensors are put together is `sets/merge.py`; this module reads what
the folders say of their data, so that an evaluation can check that no test image was seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddengine.artefact import folder as set_folders
from ddengine.artefact import runs
from ddengine.artefact.markdown import at
from ddengine.data import Data, Preprocess, load_data
from ddengine.data.torch_dataset import OWN
from ddengine.recipe import DataConfig, from_dict
from ddengine.sets.merge import merge
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import runtime
from ddengine.system.errors import UserError
from ddengine.system.log import say
from ddengine.types import Facts, Json, Meta

# settings of the data that decide which images are training, validation and test images
SAME_DATA = ("name", "size", "limit", "validation", "split_seed", "zca")


@dataclass(frozen=True)
class Merged:
    """What `merge_folders` gives."""

    syn: SyntheticSet
    meta: Json  # what folder.save takes beside the set
    root: str | None  # where the images of the first set lie, as its run has kept it


def merge_folders(paths: Sequence[Path]) -> Merged:
    """One set of the sets in several folders, those of runs or of distilled sets.

    All of them are seen through the preprocessing of the first. Says, as a warning, where nobody
    can check which images the sets have seen.

    Raises:
        UserError: no folders, folders without a set, and sets that cannot be merged.
    """
    folders = [runs.set_folder(path) for path in paths]
    sets, metas = [], []
    for folder in folders:
        syn, meta = set_folders.load(folder, torch.device("cpu"))
        sets.append(syn)
        metas.append(meta)
    maps, names = class_maps(metas)
    configs = []
    for path, folder, meta in zip(paths, folders, metas, strict=True):
        # a run knows where its files lie, which a set does not say
        configs.append(config_of(meta, runs.data_of(path) if path != folder else None))
    same_data(configs)
    syn = merge(sets, maps, names, preprocess=sets[0].preprocess)
    config = merged_config(maps, configs, len(names))
    data = whole_data(configs, metas, config, syn.preprocess)
    meta: Json = {
        "recipe": _merged_recipe(metas[0]["recipe"], syn, config),
        "merged": [str(folder) for folder in folders],
        "seed": None,
    }
    if data is not None:
        meta["images"] = data.train.digest
        meta["raw_bytes"] = data.bytes
        meta["dataset_bytes"] = data.dataset_bytes
    kinds = _selections(metas)
    if kinds:
        meta["selected"] = {"kind": " and ".join(kinds)}
    meta["versions"] = runtime.versions()
    meta["commit"] = runtime.commit()
    return Merged(syn, meta, configs[0].root)


def _merged_recipe(recipe: Facts, syn: SyntheticSet, config: DataConfig | None) -> Json:
    """The recipe of the first set, of as many images and of the classes of the merged one."""
    data = dict(recipe["data"])
    data.pop("classes", None)
    if config is not None and config.classes is not None:
        data["classes"] = list(config.classes)
    images = max(1, round(syn.images_per_class()))
    return {**recipe, "ipc": images, "data": data, "published": None}


def _selections(metas: Sequence[Meta]) -> list[str]:
    """How the real images of the sets were selected, each way once; none for distilled sets.

    Raises UserError for sets of both kinds.
    """
    kinds = []
    for meta in metas:
        if "selected" in meta:
            kinds.append(str(meta["selected"].get("kind")))
    if kinds and len(kinds) < len(metas):
        raise UserError(
            "Some of the sets are real images that were selected and some are distilled; "
            "merge those of one kind."
        )
    return list(dict.fromkeys(kinds))


def config_of(meta: Meta, data: Facts | None = None) -> DataConfig:
    """The data settings of a set from its meta.json, or from `data`, which its run has kept.

    Raises UserError where they do not fit.
    """
    return from_dict(DataConfig, data or meta["recipe"]["data"])


def class_maps(metas: Sequence[Meta]) -> tuple[list[list[int]], tuple[str, ...]]:
    """(maps, class names) for `sets.merge.merge`, from the meta.json of each set.

    Names identify classes, and their order is that of first appearance.

    Raises UserError for sets of different datasets, where equal names may mean different things, or
    of datasets without a name, and for a set that has a name twice.
    """
    _check_datasets(metas)
    numbers = dict[str, int]()  # of a class name among all
    maps = []
    for i, meta in enumerate(metas, start=1):
        names = list(meta["class_names"])
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"Set {i} has two classes called {name!r}, and classes are matched by "
                    "name; give them different names."
                )
            numbers.setdefault(name, len(numbers))
        maps.append([numbers[name] for name in names])
    return maps, tuple(numbers)


def _check_datasets(metas: Sequence[Meta]) -> None:
    """Raise UserError unless all sets are of one dataset that has a name."""
    datasets = [at(meta, "recipe", "data", "name") for meta in metas]
    for i, dataset in enumerate(datasets, start=1):
        if dataset is None or dataset == OWN:
            raise UserError(
                f"Set {i} is of a dataset without a name, and classes of such sets cannot be "
                "matched; "
                "call ddengine.sets.merge.merge, which is told which class is which."
            )
        if dataset != datasets[0]:
            raise UserError(
                f"Set {i} is of dataset {dataset} and set 1 of {datasets[0]}; merge sets of "
                "one dataset."
            )


def same_data(configs: Sequence[DataConfig]) -> None:
    """Raise UserError unless the sets saw the same images up to their choice of classes.

    Then no test image of one was shown to another.
    """
    first = configs[0]
    for i, config in enumerate(configs, start=1):
        for name in SAME_DATA:
            value = getattr(config, name)
            wanted = getattr(first, name)
            if value != wanted:
                raise UserError(
                    f"Set {i} was made with data.{name} {value} and set 1 with {wanted}; merge "
                    "sets of the same data settings."
                )
        if config.limit is not None and config.classes != first.classes:
            raise UserError(
                f"Sets 1 and {i} are of different classes with data.limit {config.limit}, "
                "which takes other images for each choice of classes; "
                "distill them with data.limit None."
            )


def merged_config(
    maps: Sequence[Sequence[int]], configs: Sequence[DataConfig], num_classes: int
) -> DataConfig | None:
    """The data settings of all merged classes; None where the sets do not say which they are."""
    ids = class_ids(maps, configs, num_classes)
    if ids is None:
        return None
    if all(config.classes is None for config in configs):
        return replace(configs[0], classes=None)
    return replace(configs[0], classes=tuple(ids))


def class_ids(
    maps: Sequence[Sequence[int]], configs: Sequence[DataConfig], num_classes: int
) -> list[int] | None:
    """The ids in the dataset of the merged classes.

    None where the sets do not say them, or contradict each other.
    """
    id_of: dict[int, int] = {}  # by the number of a class in the merged set
    for merged_classes, config in zip(maps, configs, strict=True):
        # all classes of the dataset cannot be fewer than those of its parts
        if config.classes is None and len(merged_classes) < num_classes:
            return None
        ids = range(len(merged_classes)) if config.classes is None else config.classes
        if len(ids) != len(merged_classes):
            return None
        for merged_class, class_id in zip(merged_classes, ids, strict=True):
            if id_of.setdefault(merged_class, class_id) != class_id:
                return None
    if len(set(id_of.values())) < num_classes:
        return None
    return [id_of[merged_class] for merged_class in range(num_classes)]


def whole_data(
    configs: Sequence[DataConfig],
    metas: Sequence[Meta],
    wanted: DataConfig | None,
    preprocess: Preprocess,
    load: Callable[..., Data] = load_data,
) -> Data | None:
    """The data of all merged classes, as `wanted` says them.

    Every set was distilled from its part of them. Then no set has seen a test image of all these
    data, and the digest of the training images, in the merged meta.json, lets `evaluate` check
    that. None, with a warning, where the images cannot be read or a set does not say which it saw.
    Raises UserError for a set that saw others.
    """
    if wanted is None:
        _warn("do not say which classes of the dataset they have")
        return None
    if any(not isinstance(meta.get("images"), str) for meta in metas):
        _warn("do not all say which images they were distilled from")
        return None
    read = dict[DataConfig, Data]()
    try:
        for config in dict.fromkeys((*configs, wanted)):
            read[config] = load(
                replace(config, download=False),
                torch.device("cpu"),
                stored=lambda digest: preprocess,
            )
    except (UserError, OSError) as error:
        say(
            f"warning: the images cannot be read ({str(error).split(';')[0].rstrip('.')}), so "
            "evaluate cannot check that no test image was seen"
        )
        return None
    for i, (config, meta) in enumerate(zip(configs, metas, strict=True)):
        seen = read[config]
        if seen.train.digest != meta["images"] or seen.class_names != tuple(meta["class_names"]):
            raise UserError(
                f"Set {i + 1} was distilled from other images than data.name {config.name} gives "
                "here; merge sets of the same images."
            )
    return read[wanted]


def _warn(lack: str) -> None:
    """Say what the sets do not tell, and what follows."""
    say(f"warning: the sets {lack}, so evaluate cannot check that no test image was seen")
