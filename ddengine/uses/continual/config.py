"""The settings of class-incremental learning: stages, budgets, and what cannot be run."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from ddengine.data import Data
from ddengine.recipe import Recipe, require
from ddengine.system.errors import UserError, unknown
from ddengine.system.rng import generator

CLASS_BYTES = 8  # of the class of an image, as everywhere in the engine
# memories of real images
CHOSEN = ("random", "herding", "k_centre", "k_means", "forgetting", "el2n")
MEMORIES = ("distilled", *CHOSEN)
JOINT = "joint"  # all real images of the classes seen so far

Store = Literal["uint8", "float32"]


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Class-incremental learning: stages, the memory, what is compared."""

    # the classes come in so many groups; where they do not divide, earlier ones are larger by one
    stages: int = 5
    # bytes of the whole memory in the end; each class has an equal share from the start
    budget: int = 100_000
    # distilled | random | herding | k_centre | k_means | forgetting | el2n
    memories: tuple[str, ...] = ("distilled", "random", "herding")
    # memory: after each stage a new network is trained on the memory alone (GDumb, Prabhu et al.,
    # ECCV 2020; so in the papers of DC and DM) | replay: one network goes on, trained on the real
    # images of the stage and the memory of earlier ones, each class of equal weight
    strategy: Literal["memory", "replay"] = "memory"
    # how a distilled image is kept; uint8: 8 bits a value, as real ones are, so also cut to what
    # pixels can be | float32: exactly, 4 bytes a value
    store: Store = "uint8"
    repeats: int = 3  # each with another order of the classes, other images and other networks
    order_seed: int | None = None  # decides the orders of the classes; None: the seed of the run

    def __post_init__(self) -> None:
        require(self.stages >= 2, f"stages must be at least 2, got {self.stages}.")
        require(self.repeats >= 1, f"repeats must be at least 1, got {self.repeats}.")
        require(self.budget >= 1, f"budget must be positive, got {self.budget}.")
        named = ", ".join(self.memories) or "none"
        require(
            0 < len(self.memories) == len(set(self.memories)),
            f"memories must name at least one memory, each once, got {named}.",
        )
        for name in self.memories:
            if name not in MEMORIES:
                raise unknown("memory", name, MEMORIES)


def image_bytes(
    memory: str, shape: tuple[int, int, int], recipe: Recipe, config: ContinualConfig
) -> int:
    """The bytes of one image (C, H, W) of a memory, with its class.

    Recipes that ship bytes are not made larger by store float32.
    """
    wide = memory == "distilled" and config.store == "float32" and not recipe.codec.keeps_pixels
    return math.prod(shape) * (4 if wide else 1) + CLASS_BYTES


def images_per_class(memory: str, data: Data, recipe: Recipe, config: ContinualConfig) -> int:
    """How many images the share of a class holds.

    Raises UserError for a budget below one image, or above what the smallest class has.
    """
    counts = [len(members) for members in data.train.members]
    fewest = min(counts)
    cost = image_bytes(memory, data.image_shape, recipe, config)
    num = config.budget // data.num_classes // cost
    if num < 1:
        raise UserError(
            f"budget {config.budget} is less than one image of {cost} bytes for each of "
            f"{data.num_classes} classes (memory {memory}); "
            f"set budget to {cost * data.num_classes} at least."
        )
    if num > fewest:
        smallest = data.class_names[counts.index(fewest)]
        raise UserError(
            f"budget {config.budget} holds {num} images per class (memory {memory}), and class "
            f"{smallest!r} has {fewest} "
            f"training images; set budget to less than {(fewest + 1) * cost * data.num_classes}."
        )
    return num


def class_order(
    num_classes: int, config: ContinualConfig, seed: int, repeat: int
) -> list[list[int]]:
    """The classes of each stage, in the order of a repeat; the same for all memories."""
    order_seed = seed if config.order_seed is None else config.order_seed
    rng = generator(order_seed, "class order", repeat)
    order = torch.randperm(num_classes, generator=rng).numpy()
    return [part.tolist() for part in np.array_split(order, config.stages)]


def within_pixels(recipe: Recipe, config: ContinualConfig) -> Recipe:
    """The recipe with its images distilled within the range of pixels, where a memory keeps bytes.

    A memory of bytes cuts what lies outside, so that the rest would have been learned in vain. A
    recipe that is not concerned is returned as it is.
    """
    within = recipe.codec.within_pixels()
    if config.store != "uint8" or recipe.data.zca or within == recipe.codec:
        return recipe
    return replace(recipe, codec=within)


def check(data: Data, recipe: Recipe, config: ContinualConfig) -> list[int]:
    """How many classes come in each stage.

    Raises UserError for what cannot be run, before any work.
    """
    assert data.test is not None, "load the data with test=True"
    if config.stages * 2 > data.num_classes:
        raise UserError(
            f"stages {config.stages} leave a stage with fewer than 2 of the {data.num_classes} "
            "classes; "
            f"set stages to at most {data.num_classes // 2}."
        )
    plain = recipe.codec.keeps_images and recipe.targets.kind == "class"
    if "distilled" in config.memories and not plain:
        raise UserError(
            f"{recipe.name} packs several examples into an image or has soft labels or features, "
            "and a memory keeps plain images with their classes; "
            "set codec to Identity or Pixels and targets.kind class."
        )
    for name in config.memories:
        images_per_class(name, data, recipe, config)
    _check_classes(data)
    return [len(part) for part in np.array_split(np.arange(data.num_classes), config.stages)]


def _check_classes(data: Data) -> None:
    """Raise UserError for a class without test images, or without validation images."""
    for part, real in (("test", data.test), ("validation", data.validation)):
        if real is None:
            continue
        for name, members in zip(data.class_names, real.members, strict=True):
            if not len(members):
                raise UserError(
                    f"Class {name!r} has no {part} images, so nothing can be "
                    "measured on it; leave it out of data.classes."
                )
