"""Several distilled sets as one: of different classes, or more images of the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddengine.data import Preprocess
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import LABELS, Classes, targets_of
from ddengine.system.errors import UserError

# what sets must have in common, each with what shows it
COMMON: dict[str, Callable[[SyntheticSet], Any]] = {
    "codec": lambda syn: syn.codec,
    "space of values": lambda syn: syn.space,
    "shape of images": lambda syn: tuple(syn.tensors["images"].shape[1:]),
    "type of images": lambda syn: syn.tensors["images"].dtype,
    "kind of labels": lambda syn: syn.target_kind,
    "place of labels": lambda syn: syn.label_of if syn.targets.names else None,
    "width of features": lambda syn: syn.num_outputs if syn.targets.regressed else None,
}


def merge(
    sets: Sequence[SyntheticSet],
    maps: Sequence[Sequence[int]],
    class_names: Sequence[str],
    preprocess: Preprocess | None = None,
) -> SyntheticSet:
    """One set of all images of several, in their order.

    Class c of sets[i] becomes class maps[i][c] of `class_names`. Sets may share classes, which then
    have the images of both. The sets must agree in codec and its options, space, kind of labels and
    preprocessing; with `preprocess` the images are brought from the preprocessing of each set into
    that one: the pictures stay the same, and what networks see of them changes. A learned rate is
    the mean where all sets have one, for as many steps, else none is kept. Iterates beside a
    running average are left out.

    Soft labels (N, K) become (N, len(class_names)). What a label says of the classes of its set
    stays as probable as it was at any temperature, and the other classes have the logit
    `targets.NOT_SEEN`, which is probability 0: a teacher of some classes knows that the image is of
    one of these. For the loss "mse", which compares logits, such labels are useless. Labels of some
    largest logits are written out, because "the mean of the others" would mix both kinds of others.
    Features stay what they are; whether they are of one network, the sets do not say themselves.

    Raises UserError for no sets, maps that do not fit, sets that do not agree, and codecs whose
    images are not independent of each other.
    """
    if not sets or len(sets) != len(maps):
        raise UserError(
            f"{len(maps)} class maps were given for {len(sets)} sets; give at least one set, and "
            "a map for each."
        )
    for syn in sets:
        if "images" not in syn.tensors:
            raise UserError(
                f"Sets in codec {type(syn.codec).__name__} store no images of their own that could "
                "lie side by side; export them as folders, and merge sets in codec Identity or "
                "Pixels."
            )
    if preprocess is not None:
        sets = [_under(syn, preprocess) for syn in sets]
    first = sets[0]
    for i, (syn, classes) in enumerate(zip(sets, maps, strict=True)):
        _check_map(syn, classes, len(class_names), i + 1)
        _check_tensors(syn, i + 1)
        _check_agreement(syn, first, i + 1)
    device = first.classes.device
    numbers = []
    for syn, classes in zip(sets, maps, strict=True):
        numbers.append(torch.tensor(list(classes), device=device)[syn.classes.to(device)])
    merged = replace(
        first,
        tensors=_images_and_rate(sets, device),
        classes=torch.cat(numbers),
        class_names=tuple(class_names),
        targets=Classes(),
    )
    if not first.targets.names:
        return merged
    values = _values(sets, maps, merged)
    targets = targets_of(first.target_kind, merged.whose(values))
    return merged.with_targets(targets, values, first.tensors[first.targets.names[0]].dtype)


def _images_and_rate(sets: Sequence[SyntheticSet], device: torch.device) -> dict[str, Tensor]:
    """All images, and the mean of the learned rates where all sets have one, for as many steps."""
    images = []
    rates = []
    for syn in sets:
        images.append(syn.tensors["images"].to(device))
        if "lr" in syn.tensors:
            rates.append(syn.tensors["lr"].to(device))
    tensors = {"images": torch.cat(images)}
    if len(rates) == len(sets) and len({rate.shape for rate in rates}) == 1:
        tensors["lr"] = torch.stack(rates).mean(0)
    return tensors


def _values(
    sets: Sequence[SyntheticSet], maps: Sequence[Sequence[int]], merged: SyntheticSet
) -> Tensor:
    """The soft labels, or features, (N or S, outputs) of the merged set."""
    num_classes = len(merged.class_names)
    device = merged.classes.device
    by_set = []
    for syn, classes in zip(sets, maps, strict=True):
        values = syn.targets.values(syn.tensors, len(syn.class_names))
        assert values is not None, "classes have no values"
        by_set.append(syn.targets.among(values.to(device), classes, num_classes))
    if sets[0].label_of == "decoded":
        return _by_example(sets, by_set, merged)
    return torch.cat(by_set)


def _by_example(
    sets: Sequence[SyntheticSet], by_set: Sequence[Tensor], merged: SyntheticSet
) -> Tensor:
    """Targets (N, outputs) in the order in which the merged set decodes its examples.

    Item by item, and the examples of an item in their order, all sets decode alike.
    """
    by_item = []
    for rows, syn in zip(by_set, sets, strict=True):
        order = syn.source.to(rows.device).argsort(stable=True)
        by_item.append(rows[order])
    in_order = torch.cat(by_item)
    joined = torch.empty_like(in_order)
    order = merged.source.argsort(stable=True)
    joined[order] = in_order
    return joined


def _under(syn: SyntheticSet, preprocess: Preprocess) -> SyntheticSet:
    """The same pictures under another preprocessing."""
    same = _same_tensors(syn.preprocess.tensors(), preprocess.tensors())
    if syn.space == "pixel" or same:
        return replace(syn, preprocess=preprocess)
    if not syn.codec.keeps_images:
        raise UserError(
            f"Images in codec {type(syn.codec).__name__} cannot be brought under another "
            "preprocessing; distill the sets with the same one."
        )
    pixels = syn.preprocess.backward(syn.tensors["images"])
    changed = syn.with_tensors({"images": preprocess.forward(pixels)})
    return replace(changed, preprocess=preprocess)


def _check_map(syn: SyntheticSet, classes: Sequence[int], num_classes: int, number: int) -> None:
    """Raise UserError unless each class of set `number` becomes another one of `num_classes`."""
    possible = all(0 <= c < num_classes for c in classes)
    each_once = len(set(classes)) == len(classes) == len(syn.class_names)
    if not possible or not each_once:
        raise UserError(
            f"The map of set {number}, {list(classes)}, must name a different class from 0 to "
            f"{num_classes - 1} for each of its "
            f"{len(syn.class_names)} classes; correct it."
        )


def _check_tensors(syn: SyntheticSet, number: int) -> None:
    """Raise UserError unless the images of set `number` are independent of each other.

    It may hold nothing else that would have to be merged.
    """
    shared = syn.codec.of_all_classes
    if shared:
        raise UserError(
            f"Set {number} holds {shared}, which belong to all its classes at once; merge sets of "
            "another codec."
        )
    mergeable = ("images", "lr", *LABELS)
    for name in sorted(syn.tensors):
        if name not in mergeable and not name.startswith("raw."):
            raise UserError(
                f"Set {number} holds {name}, which cannot be merged; merge sets without."
            )


def _check_agreement(syn: SyntheticSet, first: SyntheticSet, number: int) -> None:
    """Raise UserError unless set `number` is made as the first is."""
    for what, of in COMMON.items():
        common = of(first)
        other = of(syn)
        if other != common:
            raise UserError(
                f"Set {number} has another {what} ({other}) than set 1 ({common}); "
                "distill both alike."
            )
    if not _same_tensors(first.preprocess.tensors(), syn.preprocess.tensors()):
        raise UserError(
            f"Set {number} has another preprocessing than set 1, so a network would see both "
            "differently; "
            "distill them under one, of the whole dataset, or name the one to bring all of them "
            "under."
        )


def _same_tensors(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether both hold equal tensors under equal names, wherever they lie."""
    if some.keys() != others.keys():
        return False
    return all(torch.equal(some[name].cpu(), others[name].cpu()) for name in some)
