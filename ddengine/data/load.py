"""From a DataConfig to sets on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddengine.data.cache import Wanted, check_setting, decoded, is_wanted
from ddengine.data.checks import Looks, constant, looks_of, repeated, untested
from ddengine.data.digits import read as read_digits
from ddengine.data.folder import read as read_folder
from ddengine.data.hub import read as read_hub
from ddengine.data.imagenet import NAMES as IMAGENET_NAMES
from ddengine.data.imagenet import reader as imagenet_reader
from ddengine.data.loaded import Data
from ddengine.data.named import KNOWN
from ddengine.data.named import reader as known_reader
from ddengine.data.parquet import read as read_parquet
from ddengine.data.preprocess import Preprocess, fit_preprocess
from ddengine.data.realset import RealSet, images_digest, placed
from ddengine.data.resize import resize, with_channels
from ddengine.data.source import Part, Source, hold_out, stratified
from ddengine.data.stored import check_stored
from ddengine.data.subset import check_classes
from ddengine.data.tiny_imagenet import read as read_tiny_imagenet
from ddengine.recipe import DataConfig
from ddengine.system import files, log
from ddengine.system.errors import UserError, unknown
from ddengine.system.runtime import check_memory

DATASETS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": read_digits,
    "folder": read_folder,
    "parquet": read_parquet,
    "hub": read_hub,
    **{name: known_reader(name) for name in KNOWN},
    "tiny_imagenet": read_tiny_imagenet,
    **{name: imagenet_reader(name) for name in IMAGENET_NAMES},
}
WITHOUT_COLUMNS = ("digits", "folder", "tiny_imagenet", *IMAGENET_NAMES)

TEST_FRACTION = 0.2  # of a dataset without an official test split


def _check_column(
    config: DataConfig,
    flag: str,
    column: str | None,
) -> None:
    """Raise UserError where a column is named for a dataset that has none."""
    if column is not None and config.name in WITHOUT_COLUMNS:
        raise UserError(
            f"data.{flag} names a column of parquet files, and data.name is {config.name}; "
            f"leave data.{flag} out."
        )


def load_data(
    config: DataConfig,
    device: torch.device,
    *,
    test: bool = False,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
) -> Data:
    """The splits of the dataset that `config` names, on `device`.

    What a person should know of how the images were read is said.

    Args:
        config: which images, and how they are split and preprocessed.
        device: where they shall lie.
        test: whether the test images are read too; distillation never sees them.
        stored: gives the preprocessing that belongs to a digest of training images, or None where
            it is to be fitted.

    Raises:
        UserError: a name that is not known, images that cannot be read, settings that do not fit.
    """
    if config.name == "own":
        raise UserError(
            "The images were given as a Dataset in Python, which no command can read; "
            "name files of the same images with data.name folder or parquet, and data.root."
        )
    if config.name not in DATASETS:
        raise unknown("dataset", config.name, DATASETS)
    _check_column(config, "image_column", config.image_column)
    _check_column(config, "label_column", config.label_column)
    return data_from(DATASETS[config.name](config), config, device, test=test, stored=stored)


def _check_size(config: DataConfig) -> None:
    """Raise UserError where one image in colour of data.size would not fit into memory."""
    if config.size is not None:
        needed = 3 * config.size[0] * config.size[1]
        check_memory(f"An image of data.size {config.size}", needed, "set a smaller one")


def data_from(
    source: Source,
    config: DataConfig,
    device: torch.device,
    *,
    test: bool = False,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
) -> Data:
    """The splits of `source` on `device`; where the images come from is not looked at.

    The limit takes a stratified subset of the official training images, then validation is held out
    of it, both by data.split_seed. With data.classes all splits hold these classes only. Which of
    their images are test and, without a limit, validation images is what it is with all classes, so
    that a set distilled of some classes has seen no test image of all. Every class with two images
    or more has a test image. Preprocessing is fitted on the training split, unless `stored` has it
    for the digest of that split; what is stored is refused where it cannot be that of these images.
    Arguments and errors are those of `load_data`.
    """
    check_setting(config, source.train.undecoded)
    splits = _split(source, config)
    _check_size(config)
    names = splits.class_names
    train_labels = splits.labelled.labels[splits.train]
    notes = Notes(source.notes)
    notes.say(untested(train_labels, splits.testing.labels[splits.test], names))

    training = _training_images(splits, config)
    images = training.images
    _check_channels(source, config, images["training"].pixels)
    train_pixels = placed(images["training"].pixels, device)
    images["training"] = replace(images["training"], pixels=train_pixels)
    known = stored(training.digest)
    preprocess = _preprocess(source, config, train_pixels, known, training.counts).to(device)

    def real_set(held: Held, labels: np.ndarray, digest: str | None = None) -> RealSet:
        pixels = placed(held.pixels, device)
        on_device = torch.from_numpy(labels).to(device)
        return RealSet(pixels, on_device, len(names), preprocess, digest, names)

    validation = test_set = None
    if len(splits.validation):
        validation = real_set(images["validation"], splits.labelled.labels[splits.validation])
    if test:
        images["test"] = _test_images(splits, images["training"].pixels, config)
        test_set = real_set(images["test"], splits.testing.labels[splits.test])
    looks = {split: held.looks for split, held in images.items()}
    notes.say(constant(looks, train_labels, names) + repeated(looks))
    return Data(
        real_set(images["training"], train_labels, training.digest),
        validation,
        test_set,
        names,
        bytes=train_pixels.numel(),
        dataset_bytes=splits.num_trainable * train_pixels[0].numel(),
        num_test=len(splits.test),
        held_out=source.test is None,
        notes=tuple(notes.said),
        train_names=_names_of(splits.labelled, splits.train),
        split_names=_split_names(splits, official=source.test is not None),
    )


class Notes:
    """What a reader found, and keeps finding while images are decoded: each is said once."""

    def __init__(self, growing: list[str]):
        """`growing`: the list to which the reader adds; what is in it is said at once."""
        self._growing = growing
        self.said = list[str]()
        self.say([])

    def say(self, more: list[str]) -> None:
        """Say what the reader has added, and `more`, unless it was said before."""
        for note in [*self._growing, *more]:
            if note not in self.said:
                self.said.append(note)
                log.say(note)


# Which images


@dataclass(frozen=True)
class Splits:
    """Which images of a source are in use for what."""

    labelled: Part  # of training and validation images
    testing: Part  # of test images
    class_names: tuple[str, ...]  # of the classes in use
    train: np.ndarray  # indices into `labelled`
    validation: np.ndarray
    test: np.ndarray  # indices into `testing`
    num_trainable: int  # images that could be trained on, without a limit


def _split(source: Source, config: DataConfig) -> Splits:
    """The splits of a source.

    Raises UserError for a class that the source does not have, or that has no training images.
    """
    labelled = source.train
    testing = source.test
    seed = config.split_seed
    _check_labels(source)
    index = np.arange(len(labelled.labels))
    if testing is None:
        index, test = hold_out(labelled.labels, TEST_FRACTION, seed, at_least=1)
        testing = labelled
    else:
        test = np.arange(len(testing.labels))
    if config.classes is not None:
        check_classes(config.classes, len(source.class_names), "data.classes")
    num_trainable = len(_in_classes(labelled, index, config))
    if config.limit is not None:
        index = _in_classes(labelled, index, config)
        index = index[stratified(labelled.labels[index], config.limit, seed)]
    for_training, for_validation = hold_out(labelled.labels[index], config.validation, seed)
    train = _in_classes(labelled, index[for_training], config)
    validation = _in_classes(labelled, index[for_validation], config)
    test = _in_classes(testing, test, config)

    names = tuple(map(files.as_text, source.class_names))
    if config.classes is not None:
        names = tuple(names[c] for c in config.classes)
        labelled = _renumbered(labelled, config.classes)
        testing = _renumbered(testing, config.classes)
    _check_every_class(labelled.labels[train], names, config.limit)
    return Splits(labelled, testing, names, train, validation, test, num_trainable)


def _in_classes(
    part: Part,
    index: np.ndarray,
    config: DataConfig,
) -> np.ndarray:
    """Those of the indices whose images are of data.classes."""
    if config.classes is None:
        return index
    return index[np.isin(part.labels[index], config.classes)]


def _renumbered(part: Part, classes: tuple[int, ...]) -> Part:
    """The same images with the class `classes[i]` called i, and those of others -1."""
    largest = max(part.labels.max(initial=0), *classes)
    number = np.full(largest + 1, -1, np.int64)
    number[list(classes)] = np.arange(len(classes))
    return replace(part, labels=number[part.labels])


def _check_labels(source: Source) -> None:
    """Raise UserError for a label that no name belongs to."""
    largest = source.train.labels.max(initial=0)
    if largest >= len(source.class_names):
        raise UserError(
            f"The labels go up to {largest} and only {len(source.class_names)} class "
            "names are given; correct the file."
        )


def _check_every_class(train_labels: np.ndarray, names: tuple[str, ...], limit: int | None) -> None:
    """Raise UserError naming the first class without a training image."""
    missing = np.setdiff1d(np.arange(len(names)), train_labels)
    if len(missing):
        more = "add some" if limit is None else f"add some, raise data.limit (now {limit})"
        raise UserError(
            f"Class {names[missing[0]]!r} has no training images; {more}, or leave it out of "
            "data.classes."
        )


# Their pixels


@dataclass(frozen=True)
class Held:
    """The images of a split, in memory or mapped into it."""

    pixels: Tensor  # (N, C, H, W) uint8
    looks: Looks


@dataclass(frozen=True)
class Training:
    """The training and the validation images, and what is known of the training images."""

    images: dict[str, Held]
    digest: str  # see `images_digest`
    counts: Tensor | None = None  # their `histogram`, where it is known


def _fetched(part: Part, index: np.ndarray, config: DataConfig) -> Tensor:
    """The images at `index`, (B, C, H, W) uint8."""
    return resize(torch.from_numpy(np.ascontiguousarray(part.fetch(index))), config)


def _training_images(splits: Splits, config: DataConfig) -> Training:
    """The training and the validation images; fetched at once, so that both agree on colour."""
    part = splits.labelled
    index = np.concatenate((splits.train, splits.validation))
    num = len(splits.train)
    if part.undecoded is not None and is_wanted(part.undecoded, index, config):
        cached = decoded(Wanted(part.undecoded, index, part.labels[index], num), config)
        training = Held(cached.pixels[:num], cached.looks.part(slice(num)))
        validation = Held(cached.pixels[num:], cached.looks.part(slice(num, None)))
        images = {"training": training, "validation": validation}
        return Training(images, cached.digest, cached.counts)
    pixels = _fetched(part, index, config)
    images = {}
    for name, of_split in (("training", pixels[:num]), ("validation", pixels[num:])):
        images[name] = Held(of_split, looks_of(of_split))
    labels = torch.from_numpy(part.labels[splits.train])
    return Training(images, images_digest(images["training"].pixels, labels))


def _check_channels(
    source: Source,
    config: DataConfig,
    pixels: Tensor,
) -> None:
    """Raise UserError where images of a known dataset have not its number of channels."""
    if source.mean is not None and len(source.mean) != pixels.shape[1]:
        raise UserError(
            f"The images in {config.root} have {pixels.shape[1]} channels and {config.name} has "
            f"{len(source.mean)}; "
            "correct data.root, or name them folder or parquet."
        )


def _preprocess(
    source: Source,
    config: DataConfig,
    pixels: Tensor,
    stored: Preprocess | None,
    counts: Tensor | None,
) -> Preprocess:
    """The stored preprocessing, checked against training pixels; else fitted to them."""
    if stored is None:
        return fit_preprocess(
            pixels, zca=config.zca, mean=source.mean, std=source.std, counts=counts
        )
    check_stored(stored, pixels, source.mean, source.std)
    return stored


def _test_images(
    splits: Splits,
    training: Tensor,
    config: DataConfig,
) -> Held:
    """The test images, with the channels and the size of the training images.

    Raises UserError where there are none, or they are of another size.
    """
    if len(splits.test) == 0:
        raise UserError(
            f"There are no test images: {config.name} has no test split and too few images to "
            "hold any out; add images."
        )
    held = _held_test(splits, config)
    # grey test images beside colour training images, or the other way round
    images = with_channels(held.pixels, training.shape[1])
    if images.shape[1:] != training.shape[1:]:
        raise UserError(
            f"Test images are {tuple(images.shape[1:])} and training images "
            f"{tuple(training.shape[1:])} (channels, height, width); set data.size."
        )
    if images.shape == held.pixels.shape:
        return held
    return Held(images, looks_of(images))


def _held_test(splits: Splits, config: DataConfig) -> Held:
    """The test images as their files are."""
    part = splits.testing
    if part.undecoded is not None and is_wanted(part.undecoded, splits.test, config):
        num = len(splits.test)
        wanted = Wanted(part.undecoded, splits.test, part.labels[splits.test], num)
        cached = decoded(wanted, config)
        return Held(cached.pixels, cached.looks)
    pixels = _fetched(part, splits.test, config)
    return Held(pixels, looks_of(pixels))


# What they are called


def _split_names(splits: Splits, *, official: bool) -> dict[str, Any]:
    """Which images were held out, so that others can select and test on the same ones.

    They are names below data.root, else indices from 0.
    """
    by = "names below data.root"
    if splits.labelled.name_of is None:
        by = "indices into the training split, from 0"
    test: Any = "the test split of the dataset"
    if not official:
        test = list(_names_of(splits.testing, splits.test))
    validation = list(_names_of(splits.labelled, splits.validation))
    return {"named_by": by, "validation": validation, "test": test}


def _names_of(part: Part, index: np.ndarray) -> tuple[Any, ...]:
    """What images are called: by their reader, or their indices."""
    if part.name_of is None:
        return tuple(index.tolist())
    return tuple(map(part.name_of, index.tolist()))
