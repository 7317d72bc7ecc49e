"""From a DataConfig to sets on the device."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ddengine.data import digits, folder, imagenet, named, parquet, tiny_imagenet
from ddengine.data.preprocess import Preprocess, fit_preprocess
from ddengine.data.realset import RealSet, images_digest
from ddengine.data.source import Part, Source, hold_out, stratified
from ddengine.data.stored import check_stored
from ddengine.data.subset import check_classes
from ddengine.errors import UserError, unknown
from ddengine.recipe import DataConfig

DATASETS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": digits.read,
    "folder": folder.read,
    "parquet": parquet.read,
    **{name: named.reader(name) for name in named.KNOWN},
    "tiny_imagenet": tiny_imagenet.read,
    **{name: imagenet.reader(name) for name in imagenet.NAMES},
}

TEST_FRACTION = 0.2  # of a dataset without an official test split


@dataclass(frozen=True)
class Data:
    """The splits of a dataset. `test` is None unless it was asked for: distillation never sees it."""

    train: RealSet
    validation: RealSet | None
    test: RealSet | None
    class_names: tuple[str, ...]
    bytes: int  # size of the training images in use, one byte a value
    dataset_bytes: int  # of the whole training split, at the same image size
    num_test: int = 0  # test images, whether or not they are loaded
    held_out: bool = False  # whether they were held out of the training images, for want of a test split

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {"train": len(self.train), "validation": len(self.validation or ()), "test": self.num_test}

    def said(self) -> str:
        """The splits in words."""
        held = " (held out, there is no test split)" if self.held_out else ""
        return ", ".join(f"{num} {name}" for name, num in self.counts.items()) + f" images{held}"


def resize(pixels: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Images (B, C, H, W) uint8 at `size`. Array-backed readers hand out stored sizes; file-backed ones have resized already."""
    if size is None or tuple(pixels.shape[2:]) == size:
        return pixels
    resized = torch.nn.functional.interpolate(pixels.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _renumbered(part: Part, classes: tuple[int, ...]) -> Part:
    """The same images with the class `classes[i]` called i, and those of others -1."""
    number = np.full(max(part.labels.max(initial=0), *classes) + 1, -1, np.int64)
    number[list(classes)] = np.arange(len(classes))
    return Part(number[part.labels], part.fetch)


def load_data(
    config: DataConfig,
    device: torch.device,
    *,
    test: bool = False,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
) -> Data:
    """The training and validation split on `device`, and the test split when asked for, of the dataset that `config` names."""
    if config.name not in DATASETS:
        raise unknown("dataset", config.name, DATASETS)
    return data_from(DATASETS[config.name](config), config, device, test=test, stored=stored)


def data_from(
    source: Source,
    config: DataConfig,
    device: torch.device,
    *,
    test: bool = False,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
) -> Data:
    """The splits of `source` on `device`, the test split when asked for; where the images come from is not looked at.

    The limit takes a stratified subset of the official training images, then validation is held out of it, both by data.split_seed.
    With data.classes all splits hold these classes only. Which of their images are test and, without a limit, validation images is what it is with
    all classes, so that a set distilled of some classes has seen no test image of the whole. Preprocessing is fitted on the training split, unless
    `stored` has it for the digest of that split; what is stored is refused where it cannot be that of these images.
    """
    part, held = source.train, source.test
    index = np.arange(len(part.labels))
    if held is None:
        index, test_index = hold_out(part.labels, TEST_FRACTION, config.split_seed)
        held_part, held_index = part, test_index
    else:
        held_part, held_index = held, np.arange(len(held.labels))
    labels_top, names, chosen = part.labels.max(), source.class_names, config.classes
    if chosen is not None:
        check_classes(chosen, len(names), "data.classes")

    def among(owner: Part, index: np.ndarray) -> np.ndarray:
        return index if chosen is None else index[np.isin(owner.labels[index], chosen)]

    whole = len(among(part, index))
    if config.limit is not None:
        index = among(part, index)
        index = index[stratified(part.labels[index], config.limit, config.split_seed)]
    kept, out = hold_out(part.labels[index], config.validation, config.split_seed)
    train_index, val_index, held_index = among(part, index[kept]), among(part, index[out]), among(held_part, held_index)
    if chosen is not None:
        names = tuple(names[c] for c in chosen)
        part, held_part = _renumbered(part, chosen), _renumbered(held_part, chosen)
    num_classes = len(names)
    present = np.unique(part.labels[train_index])
    if len(present) < num_classes:
        missing = next(c for c in range(num_classes) if c not in present)
        raise UserError(f"Class {names[missing]!r} has no training images; add some, or raise data.limit.")
    if labels_top >= len(source.class_names):
        raise UserError(f"The labels go up to {labels_top} and only {len(source.class_names)} class names are given; correct the file.")

    # one fetch for train and validation, so that both agree on colour or grey
    both = np.concatenate((train_index, val_index))
    pixels = resize(torch.from_numpy(np.ascontiguousarray(part.fetch(both))), config.size)
    train_pixels = pixels[: len(train_index)].to(device)
    if source.mean is not None and len(source.mean) != train_pixels.shape[1]:
        raise UserError(
            f"The images in {config.root} have {train_pixels.shape[1]} channels and {config.name} has {len(source.mean)}; "
            "correct data.root, or name them folder or parquet."
        )
    train_labels = torch.from_numpy(part.labels[train_index]).to(device)
    digest = images_digest(pixels[: len(train_index)], torch.from_numpy(part.labels[train_index]))
    preprocess = stored(digest)
    if preprocess is None:
        preprocess = fit_preprocess(train_pixels, zca=config.zca, mean=source.mean, std=source.std)
    else:
        check_stored(preprocess, train_pixels, source.mean, source.std)
    preprocess = preprocess.to(device)

    def real(images: torch.Tensor, owner: Part, chosen: np.ndarray) -> RealSet:
        return RealSet(images.to(device), torch.from_numpy(owner.labels[chosen]).to(device), num_classes, preprocess)

    train = RealSet(train_pixels, train_labels, num_classes, preprocess, digest)
    validation = real(pixels[len(train_index) :], part, val_index) if len(val_index) else None
    test_set = None
    if test:
        if len(held_index) == 0:
            raise UserError(f"There are no test images: {config.name} has no test split and too few images to hold any out; add images.")
        test_pixels = torch.from_numpy(np.ascontiguousarray(held_part.fetch(held_index)))
        if test_pixels.shape[1] < pixels.shape[1]:  # grey test images beside colour training images
            test_pixels = test_pixels.expand(-1, pixels.shape[1], -1, -1)
        elif test_pixels.shape[1] > pixels.shape[1]:
            test_pixels = test_pixels.float().mean(1, keepdim=True).round().to(torch.uint8)
        test_pixels = resize(test_pixels, config.size)
        if test_pixels.shape[1:] != pixels.shape[1:]:
            raise UserError(
                f"Test images are {tuple(test_pixels.shape[1:])} and training images {tuple(pixels.shape[1:])} "
                "(channels, height, width); set data.size."
            )
        test_set = real(test_pixels, held_part, held_index)
    return Data(
        train, validation, test_set, names, train_pixels.numel(), whole * train_pixels[0].numel(), num_test=len(held_index), held_out=held is None
    )
