"""Several distilled sets as one: of different classes, or more images of the same ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddengine.data import Data, Preprocess, load_data
from ddengine.data.torch_dataset import OWN
from ddengine.recipe import DataConfig, from_dict
from ddengine.sets.codec import Compensated, Identity
from ddengine.sets.synthetic import LABELS, SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.log import say

# logit of a class that a label says nothing about: probability 0 at all usual temperatures, finite,
# and exact in float16
NOT_SEEN = -1e4


def class_maps(metas: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], tuple[str, ...]]:
    """(maps, class names) for `merge`, from the meta.json of each set: names identify classes,
    their order is that of first appearance.

    Raises UserError for sets of different datasets, where equal names may mean different things, or
    of datasets without a name, and for a set that has a name twice.
    """
    datasets = [(meta.get("recipe") or {}).get("data", {}).get("name") for meta in metas]
    for i, dataset in enumerate(datasets):
        if dataset is None or dataset == OWN:
            raise UserError(
                f"Set {i + 1} is of a dataset without a name, and classes of such sets cannot be "
                "matched; "
                "call ddengine.sets.merge.merge, which is told which class is which."
            )
        if dataset != datasets[0]:
            raise UserError(
                f"Set {i + 1} is of dataset {dataset} and set 1 of {datasets[0]}; merge sets of "
                "one dataset."
            )
    names = [tuple(meta["class_names"]) for meta in metas]
    for i, own in enumerate(names):
        if twice := [n for n in own if own.count(n) > 1]:
            raise UserError(
                f"Set {i + 1} has two classes called {twice[0]!r}, and classes are matched by "
                "name; give them different names."
            )
    union = tuple(dict.fromkeys(n for own in names for n in own))
    return [[union.index(n) for n in own] for own in names], union


def same_data(configs: Sequence[DataConfig]) -> None:
    """Raise UserError unless the sets saw the same images up to their choice of classes, so that no
    test image of one was shown to another.
    """
    first = configs[0]
    for i, config in enumerate(configs):
        for field in ("name", "size", "limit", "validation", "split_seed", "zca"):
            own, wanted = getattr(config, field), getattr(first, field)
            if own != wanted:
                raise UserError(
                    f"Set {i + 1} was made with data.{field} {own} and set 1 with {wanted}; merge "
                    "sets of the same data settings."
                )
        if config.limit is not None and config.classes != first.classes:
            raise UserError(
                f"Sets 1 and {i + 1} are of different classes with data.limit {config.limit}, "
                "which takes other images for each choice of classes; "
                "distill them with data.limit None."
            )


def class_ids(
    maps: Sequence[Sequence[int]], configs: Sequence[DataConfig], num_classes: int
) -> list[int] | None:
    """The ids in the dataset of the merged classes; None where the sets do not say them, or
    contradict each other.
    """
    found: dict[int, int] = {}
    for own, config in zip(maps, configs, strict=True):
        # all classes of the dataset cannot be fewer than those of its parts
        if config.classes is None and len(own) < num_classes:
            return None
        ids = range(len(own)) if config.classes is None else config.classes
        if len(ids) != len(own) or any(
            found.setdefault(new, old) != old for new, old in zip(own, ids, strict=True)
        ):
            return None
    ids = [found[c] for c in range(num_classes)]
    return ids if len(set(ids)) == len(ids) else None


def whole_data(
    configs: Sequence[DataConfig],
    metas: Sequence[Mapping[str, Any]],
    wanted: DataConfig | None,
    preprocess: Preprocess,
    load: Callable[..., Data] = load_data,
) -> Data | None:
    """The data of all merged classes, as `wanted` says them, when every set was distilled from its
    part of them.

    Then no set has seen a test image of the whole, and the digest of the training images, in the
    merged meta.json, lets `evaluate` check that. None, with a warning, where the images cannot be
    read or a set does not say which it saw. Raises UserError for a set that saw others.
    """
    if wanted is None or any(not isinstance(meta.get("images"), str) for meta in metas):
        what = (
            "do not say which classes of the dataset they have"
            if wanted is None
            else "do not all say which images they were distilled from"
        )
        say(f"warning: the sets {what}, so evaluate cannot check that no test image was seen")
        return None

    def read(config: DataConfig) -> Data:
        return load(
            replace(config, download=False), torch.device("cpu"), stored=lambda digest: preprocess
        )

    try:
        known = {config: read(config) for config in dict.fromkeys((*configs, wanted))}
    except (UserError, OSError) as error:
        say(
            f"warning: the images cannot be read ({str(error).split(';')[0].rstrip('.')}), so "
            "evaluate cannot check that no test image was seen"
        )
        return None
    for i, (config, meta) in enumerate(zip(configs, metas, strict=True)):
        if known[config].train.digest != meta["images"] or known[config].class_names != tuple(
            meta["class_names"]
        ):
            raise UserError(
                f"Set {i + 1} was distilled from other images than data.name {config.name} gives "
                "here; merge sets of the same images."
            )
    return known[wanted]


def config_of(meta: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> DataConfig:
    """The data settings of a set from its meta.json, or from `data`, which its run has kept.

    Raises UserError where they do not fit.
    """
    return from_dict(DataConfig, data or meta["recipe"]["data"])


def merge(
    sets: Sequence[SyntheticSet],
    maps: Sequence[Sequence[int]],
    class_names: Sequence[str],
    preprocess: Preprocess | None = None,
) -> SyntheticSet:
    """One set of all images of several, in their order; class c of sets[i] becomes class maps[i][c]
    of `class_names`.

    Sets may share classes, which then have the images of both. The sets must agree in codec and its
    options, space, kind of labels and preprocessing; with `preprocess` the images are brought from
    their own preprocessing into that one: the pictures stay the same, and what networks see of them
    changes. A learned rate is the mean where all sets have one, else there is none. Iterates beside
    a running average are left out.

    Soft labels (N, K) become (N, len(class_names)). What a label says of its own classes stays as
    probable as it was at any temperature, and the other classes have the logit NOT_SEEN, which is
    probability 0: a teacher of some classes knows that the image is of one of these. For the loss
    "mse", which compares logits, such labels are useless. Labels of some largest logits are written
    out, because "the mean of the others" would mix both kinds of others.

    Raises UserError for no sets, maps that do not fit, sets that do not agree, and codecs whose
    images are not independent of each other.
    """
    if not sets or len(sets) != len(maps):
        raise UserError(
            f"{len(maps)} class maps were given for {len(sets)} sets; give at least one set, and "
            "a map for each."
        )
    if preprocess is not None:
        sets = [_under(syn, preprocess) for syn in sets]
    first = sets[0]
    for i, (syn, own) in enumerate(zip(sets, maps, strict=True)):
        _check(syn, first, own, len(class_names), i + 1)
    device = first.classes.device
    images = torch.cat([syn.tensors["images"].to(device) for syn in sets])
    classes = torch.cat(
        [
            torch.tensor(list(own), device=device)[syn.classes.to(device)]
            for syn, own in zip(sets, maps, strict=True)
        ]
    )
    scalars = (
        {"lr": torch.stack([syn.tensors["lr"].to(device) for syn in sets]).mean(0)}
        if all("lr" in syn.tensors for syn in sets)
        else {}
    )
    merged = replace(
        first,
        tensors={"images": images, **scalars},
        classes=classes,
        class_names=tuple(class_names),
        target_kind="class",
    )
    if first.target_kind == "class":
        return merged
    wide = [
        _widened(syn.logits.to(device), own, len(class_names))
        for syn, own in zip(sets, maps, strict=True)
    ]
    if first.label_of == "decoded":
        # item by item, and the examples of an item in their order, all sets decode alike
        by_item = torch.cat(
            [
                rows[syn.source.to(device).argsort(stable=True)]
                for rows, syn in zip(wide, sets, strict=True)
            ]
        )
        logits = torch.empty_like(by_item)
        logits[merged.source.argsort(stable=True)] = by_item
    else:
        logits = torch.cat(wide)
    return merged.with_labels(logits, first.tensors["logits"].dtype)


def _under(syn: SyntheticSet, preprocess: Preprocess) -> SyntheticSet:
    """The same pictures under another preprocessing."""
    if syn.space == "pixel":
        return replace(syn, preprocess=preprocess)
    if not isinstance(syn.codec, Identity):
        raise UserError(
            f"Images in codec {type(syn.codec).__name__} cannot be brought under another "
            "preprocessing; distill the sets with the same one."
        )
    return replace(
        syn.with_tensors(
            {"images": preprocess.forward(syn.preprocess.backward(syn.tensors["images"]))}
        ),
        preprocess=preprocess,
    )


def _check(
    syn: SyntheticSet, first: SyntheticSet, own: Sequence[int], num_classes: int, number: int
) -> None:
    """Raise UserError unless set `number` can be merged with the first."""
    if (
        len(own) != len(syn.class_names)
        or len(set(own)) < len(own)
        or not all(0 <= c < num_classes for c in own)
    ):
        raise UserError(
            f"The map of set {number}, {list(own)}, must name a different class from 0 to "
            f"{num_classes - 1} for each of its "
            f"{len(syn.class_names)} classes; correct it."
        )
    if isinstance(syn.codec, Compensated):
        raise UserError(
            f"Set {number} holds compensators, which belong to all its classes at once; merge "
            "sets of another codec."
        )
    if unknown := sorted(
        k for k in syn.tensors if k not in ("images", "lr", *LABELS) and not k.startswith("raw.")
    ):
        raise UserError(
            f"Set {number} holds {unknown[0]}, which cannot be merged; merge sets without."
        )
    facts = {
        "codec": lambda s: s.codec,
        "space of values": lambda s: s.space,
        "shape of images": lambda s: tuple(s.tensors["images"].shape[1:]),
        "type of images": lambda s: s.tensors["images"].dtype,
        "kind of labels": lambda s: s.target_kind,
        "place of labels": lambda s: s.label_of if s.target_kind == "logits" else None,
    }
    for what, fact in facts.items():
        if fact(syn) != fact(first):
            raise UserError(
                f"Set {number} has another {what} ({fact(syn)}) than set 1 ({fact(first)}); "
                "distill both alike."
            )
    one, other = first.preprocess.tensors(), syn.preprocess.tensors()
    if one.keys() != other.keys() or not all(
        torch.equal(one[k].cpu(), other[k].cpu()) for k in one
    ):
        raise UserError(
            f"Set {number} has another preprocessing than set 1, so a network would see both "
            "differently; "
            "distill them under one, of the whole dataset, or name the one to bring all of them "
            "under."
        )


def _widened(logits: Tensor, own: Sequence[int], num_classes: int) -> Tensor:
    """Logits (N, len(own)) among `num_classes`."""
    wide = logits.new_full((len(logits), num_classes), NOT_SEEN)
    wide[:, list(own)] = logits
    return wide
