"""Some classes of loaded data: as a dataset of their own, or with the numbers they have."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddengine.data.loaded import Data
from ddengine.data.realset import RealSet
from ddengine.system.errors import UserError


def of_classes(real: RealSet, classes: Sequence[int]) -> RealSet:
    """The images of `classes` in their order, with the labels they have.

    `num_classes` stays as it is.
    """
    chosen = torch.isin(real.labels, torch.tensor(list(classes), device=real.device))
    index = chosen.nonzero().flatten()
    return RealSet(
        _rows(real.pixels, index),
        real.labels[index],
        real.num_classes,
        real.preprocess,
        class_names=real.class_names,
    )


def _rows(pixels: Tensor, index: Tensor) -> Tensor:
    """The images at an ascending index; where they lie side by side they are not copied."""
    first, last = (int(index[0]), int(index[-1])) if len(index) else (0, -1)
    if last - first + 1 == len(index):
        return pixels[first : last + 1]
    return pixels.index_select(0, index.to(pixels.device))


def class_subset(data: Data, classes: Sequence[int]) -> Data:
    """The splits of `data` restricted to `classes`, numbered anew: `classes[i]` becomes i.

    Images keep their order. The preprocessing stays that of all classes, so that sets distilled
    from several subsets agree on what networks see. In class-incremental learning it is thus fixed
    before the first class is seen, as published constants are. `bytes` are those of the images that
    remain; `dataset_bytes` stay those of the training split of all classes. Raises UserError for a
    class that is not in the data, is named twice, or has no training images.
    """
    check_classes(classes, data.num_classes, "classes")
    number = torch.full((data.num_classes,), -1, dtype=torch.long, device=data.train.device)
    number[list(classes)] = torch.arange(len(classes), device=number.device)

    names = tuple(data.class_names[c] for c in classes)

    def restricted(real: RealSet) -> RealSet:
        chosen = of_classes(real, classes)
        labels = number[chosen.labels]
        return RealSet(chosen.pixels, labels, len(classes), chosen.preprocess, class_names=names)

    train = restricted(data.train)
    for name, members in zip(names, train.members, strict=True):
        if len(members) == 0:
            raise UserError(f"Class {name!r} has no training images; leave it out, or add some.")
    return replace(
        data,
        train=train,
        validation=None if data.validation is None else restricted(data.validation),
        test=None if data.test is None else restricted(data.test),
        class_names=names,
        train_names=(),
        bytes=train.pixels.numel(),
    )


def check_classes(
    classes: Sequence[int],
    num_classes: int,
    what: str,
) -> None:
    """Raise UserError unless `classes` are distinct numbers below `num_classes`.

    The error calls them `what`.
    """
    if len(set(classes)) < len(classes):
        raise UserError(
            f"{what} {' '.join(map(str, classes))} names a class twice; name each once."
        )
    for c in classes:
        if not 0 <= c < num_classes:
            raise UserError(
                f"{what} names class {c}, and the dataset has classes 0 to {num_classes - 1}; "
                "choose among these."
            )
