"""Several sets as one set, with the meta.json that says what it is of.

Names identify classes. How tensors are put together is `sets/merge.py`; this module looks at what
the sets say of their data. Sets of one dataset are merged so that an evaluation can check that no
test image was seen. Sets of several people's own images have nothing in common but class names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ddengine.artefact.target_network import target_in_words, target_network
from ddengine.data import Data, Preprocess, load_data
from ddengine.data.dataset import PEOPLES  # those of two sets need not be the same
from ddengine.data.torch_dataset import OWN
from ddengine.recipe import DataConfig
from ddengine.sets.merge import merge
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import runtime
from ddengine.system.errors import UserError
from ddengine.system.log import say
from ddengine.types import Facts, Json, Meta

# settings of the data that decide which images are training, validation and test images
SAME_DATA = ("name", "size", "limit", "validation", "split_seed", "zca")


@dataclass(frozen=True)
class Member:
    """One of the sets that are merged."""

    syn: SyntheticSet
    meta: Meta  # what its meta.json says
    config: DataConfig  # the data settings that it was made with
    name: str  # where it lies, or that it lies in memory


@dataclass(frozen=True)
class Merged:
    """What `merge_sets` gives."""

    syn: SyntheticSet
    meta: Json  # what folder.save takes beside the set


def merge_sets(members: Sequence[Member], preprocess: Preprocess | None = None) -> Merged:
    """One set of several; all of them are seen through `preprocess`, or through that of the first.

    Says, as a warning, where nobody can check which images the sets have seen.

    Raises:
        UserError: sets that cannot be merged.
    """
    sets = [member.syn for member in members]
    metas = [member.meta for member in members]
    configs = [member.config for member in members]
    own = are_peoples_own(configs)
    network = _common_target_network(members)
    maps, names = class_maps([syn.class_names for syn in sets], sort_numbers=own)
    syn = merge(sets, maps, names, preprocess=preprocess or sets[0].preprocess)
    if own:
        config, data = _own_config(configs[0]), None
        _say_own(names)
    else:
        same_data(configs)
        config = merged_config(maps, configs, len(names))
        data = whole_data(members, config, syn.preprocess)
    meta: Json = {
        "recipe": _merged_recipe(metas[0]["recipe"], syn, config),
        "merged": [member.name for member in members],
        "seed": None,
    }
    if data is not None:
        meta["images"] = data.train.digest
        meta["raw_bytes"] = data.bytes
        meta["dataset_bytes"] = data.dataset_bytes
    if network is not None:
        meta["target_network"] = network
    kinds = _selections(metas)
    if kinds:
        meta["selected"] = {"kind": " and ".join(kinds)}
    meta["versions"] = runtime.versions()
    meta["commit"] = runtime.commit()
    return Merged(syn, meta)


def _common_target_network(members: Sequence[Member]) -> Json | None:
    """The network whose features the sets have; None where one of them has none.

    Raises UserError where these are of different networks, or nobody can tell.
    """
    if not all(member.syn.targets.regressed for member in members):
        return None
    networks = [target_network(member.meta) for member in members]
    for i, network in enumerate(networks):
        if network is None:
            raise UserError(
                f"Set {i + 1} has features and does not say of which network, so they cannot be "
                'put beside others; write "target_network": {"model": NAME} into its meta.json.'
            )
        if network != networks[0]:
            raise UserError(
                f"The features of set {i + 1} are of {target_in_words(network)} and those of set 1 "
                f"of {target_in_words(networks[0])}; merge sets with features of one network."
            )
    return networks[0]


def check_named(metas: Sequence[Meta]) -> None:
    """Raise UserError unless every set says of which dataset it is."""
    for i, meta in enumerate(metas):
        if not (meta.get("recipe") or {}).get("data", {}).get("name"):
            raise UserError(
                f"Set {i + 1} does not say of which dataset it is, so its classes cannot be "
                "matched; distill it again, or write recipe.data.name into its meta.json."
            )


def are_peoples_own(configs: Sequence[DataConfig]) -> bool:
    """Whether sets are of images that people hold themselves, and so of different ones.

    Raises UserError for sets of datasets that have different names in the program.
    """
    first = configs[0]
    if all(config.name in PEOPLES for config in configs):
        places = {(config.name, config.root) for config in configs}
        return first.name == OWN or len(places) > 1
    for i, config in enumerate(configs):
        if config.name != first.name:
            raise UserError(
                f"Set {i + 1} is of dataset {config.name} and set 1 of {first.name}; merge sets of "
                "one dataset."
            )
    return False


def _own_config(config: DataConfig) -> DataConfig:
    """The data settings of sets of several people's own images: those of all of them together."""
    return replace(config.without_places(), name=OWN, limit=None, classes=None)


def _say_own(names: Sequence[str]) -> None:
    """Say how classes of people's own images were matched, and what nobody can check."""
    if all(name.isdecimal() for name in names):
        say(
            "the classes have numbers for names, and equal numbers were taken for one class; "
            "Dataset.of(..., classes=NAMES) names them"
        )
    _warn("are of images of several sources")


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


def class_maps(
    names_of_sets: Sequence[Sequence[str]], *, sort_numbers: bool = False
) -> tuple[list[list[int]], tuple[str, ...]]:
    """(maps, class names) for `sets.merge.merge`, from the class names of each set.

    Their order is that of first appearance; with `sort_numbers` whole numbers ascend, as the labels
    of a Dataset without names do. Raises UserError for a set that has a name twice.
    """
    seen = dict[str, None]()
    for i, names in enumerate(names_of_sets):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(
                f"Set {i + 1} has two classes called {twice[0]!r}, and classes are matched by "
                "name; give them different names."
            )
        seen.update(dict.fromkeys(names))
    merged = list(seen)
    if sort_numbers and all(name.isdecimal() for name in merged):
        merged.sort(key=int)
    maps = [[merged.index(name) for name in names] for names in names_of_sets]
    return maps, tuple(merged)


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
    members: Sequence[Member],
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
    if any(not isinstance(member.meta.get("images"), str) for member in members):
        _warn("do not all say which images they were distilled from")
        return None
    read = dict[DataConfig, Data]()
    try:
        for config in dict.fromkeys((*(member.config for member in members), wanted)):
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
    for i, member in enumerate(members):
        seen = read[member.config]
        same = seen.train.digest == member.meta["images"]
        if not same or seen.class_names != member.syn.class_names:
            raise UserError(
                f"Set {i + 1} was distilled from other images than data.name {member.config.name} "
                "gives here; merge sets of the same images."
            )
    return read[wanted]


def _warn(lack: str) -> None:
    """Say what the sets do not tell, and what follows."""
    say(f"warning: the sets {lack}, so evaluate cannot check that no test image was seen")
