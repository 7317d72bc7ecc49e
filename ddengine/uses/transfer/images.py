"""Datasets that networks are tested on, in the form that the networks take."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.data import Data, Preprocess, RealSet
from ddengine.data.resize import with_channels
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.types import Facts

Shape = tuple[int, int, int]  # (C, H, W)


@dataclass(frozen=True)
class Downstream:
    """A dataset that networks are tested on; its images are of the shape that these take."""

    name: str
    train: RealSet
    validation: RealSet | None
    test: RealSet
    facts: Facts  # what transfer.json says of it

    @property
    def num_classes(self) -> int:
        """K."""
        return self.train.num_classes

    def chosen(self, size: int | str, seed: int, draw: int) -> Tensor:
        """Indices (N,) of the training images of a network: all, or `size` of each class."""
        if not isinstance(size, int):
            return torch.arange(len(self.train))
        rng = generator(seed, "transfer", "shots", self.name, size, draw)
        drawn = [self.train.draw_index(c, size, rng) for c in range(self.num_classes)]
        return torch.cat(drawn)


def brought_to(
    name: str, data: Data, stored: Shape | None, shape: Shape, preprocess: Preprocess
) -> Downstream:
    """A dataset whose images have the size of `shape` already, in its channels.

    Args:
        name: of the dataset.
        data: with its test split.
        stored: the shape of its images as they are stored; None where it varies.
        shape: that the networks take.
        preprocess: through which networks see their images.

    Raises:
        UserError: a dataset of one class.
    """
    if data.num_classes < 2:
        raise UserError(
            f"{name} has one class, {data.class_names[0]!r}, so nothing can be told apart there; "
            "name a dataset of two classes at least."
        )
    assert data.test is not None

    def seen(real: RealSet) -> RealSet:
        pixels = with_channels(real.pixels, shape[0]).contiguous()
        return RealSet(
            pixels, real.labels, real.num_classes, preprocess, class_names=real.class_names
        )

    facts = {
        "digest": data.train.digest,
        "test_digest": data.test.digest,
        "stored_shape": stored and list(stored),
        "shape": list(shape),
        "channels": data.image_shape[0],
        "num_images": data.counts,
        "class_names": list(data.class_names),
        "held_out": data.held_out,
    }
    validation = None
    if data.validation is not None:
        validation = seen(data.validation)
    return Downstream(name, seen(data.train), validation, seen(data.test), facts)


def check_shots(of: Downstream, shots: tuple[int, ...]) -> None:
    """Raise UserError for few-shot rows of more images than a class has."""
    counts = [len(members) for members in of.train.members]
    fewest = min(counts)
    for num in shots:
        if num > fewest:
            raise UserError(
                f"shots {num} asks for so many images of each class, and class "
                f"{of.train.called(counts.index(fewest))} of {of.name} has {fewest} training "
                "images beside those held out for validation; lower shots, or raise limit."
            )


def stored_shape(load: Callable[[DataConfig], Data], config: DataConfig) -> Shape | None:
    """The shape (C, H, W) of the images of a dataset as they are stored; None where it varies.

    `load` reads a few of them.
    """
    few = DataConfig(name=config.name, limit=config.limit, validation=0.0)
    try:
        return load(few).image_shape
    except UserError:  # images of several sizes cannot be read without one
        return None
