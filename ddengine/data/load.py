"""From a DataConfig to sets on the device."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import ImageColor

from ddengine.data.digits import read as read_digits
from ddengine.data.folder import read as read_folder
from ddengine.data.hub import read as read_hub
from ddengine.data.imagenet import NAMES as IMAGENET_NAMES
from ddengine.data.imagenet import reader as imagenet_reader
from ddengine.data.loaded import Data
from ddengine.data.named import KNOWN
from ddengine.data.named import reader as known_reader
from ddengine.data.parquet import read as read_parquet
from ddengine.data.preprocess import Preprocess, fit_preprocess, pieces
from ddengine.data.realset import RealSet, images_digest
from ddengine.data.source import Part, Source, hold_out, stratified
from ddengine.data.splits import listed
from ddengine.data.stored import check_stored
from ddengine.data.subset import check_classes
from ddengine.data.tiny_imagenet import read as read_tiny_imagenet
from ddengine.recipe import DataConfig
from ddengine.system import log
from ddengine.system.errors import UserError, unknown

DATASETS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": read_digits,
    "folder": read_folder,
    "parquet": read_parquet,
    "hub": read_hub,
    **{name: known_reader(name) for name in KNOWN},
    "tiny_imagenet": read_tiny_imagenet,
    **{name: imagenet_reader(name) for name in IMAGENET_NAMES},
}

TEST_FRACTION = 0.2  # of a dataset without an official test split


def resize(pixels: torch.Tensor, config: DataConfig) -> torch.Tensor:
    """Images (B, C, H, W) uint8 at data.size, as data.fit says.

    Array-backed readers hand out stored sizes; file-backed ones have resized already.
    """
    if config.size is None or tuple(pixels.shape[2:]) == config.size:
        return pixels
    return torch.cat(
        [_resized(piece, config.size, config.fit, config.background) for piece in pieces(pixels)]
    )


def _resized(
    pixels: torch.Tensor, size: tuple[int, int], fit: str, background: str
) -> torch.Tensor:
    """The same of a few images."""
    (height, width), (rows, columns) = pixels.shape[2:], size
    inner = size
    if fit == "crop":  # the largest part in the middle that has the new shape
        zoom = max(rows / height, columns / width)
        part = (min(height, round(rows / zoom)), min(width, round(columns / zoom)))
        top, left = (height - part[0]) // 2, (width - part[1]) // 2
        pixels = pixels[:, :, top : top + part[0], left : left + part[1]]
    elif fit == "pad":
        zoom = min(rows / height, columns / width)
        inner = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    resized = torch.nn.functional.interpolate(
        pixels.float(), inner, mode="bilinear", antialias=True, align_corners=False
    )
    resized = resized.round().clamp(0, 255).to(torch.uint8)
    if inner == size:
        return resized
    colour = torch.tensor(ImageColor.getrgb(background)[:3], dtype=torch.uint8)
    grey = pixels.shape[1] == 1
    ground = colour.float().mean().round().to(torch.uint8).view(1) if grey else colour
    padded = ground.view(1, -1, 1, 1).repeat(len(pixels), 1, rows, columns)
    top, left = (rows - inner[0]) // 2, (columns - inner[1]) // 2
    padded[:, :, top : top + inner[0], left : left + inner[1]] = resized
    return padded


def _renumbered(part: Part, classes: tuple[int, ...]) -> Part:
    """The same images with the class `classes[i]` called i, and those of others -1."""
    number = np.full(max(part.labels.max(initial=0), *classes) + 1, -1, np.int64)
    number[list(classes)] = np.arange(len(classes))
    return replace(part, labels=number[part.labels])


def load_data(
    config: DataConfig,
    device: torch.device,
    *,
    test: bool = False,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
) -> Data:
    """The training and validation split on `device`, and the test split when asked for, of the
    dataset that `config` names.

    What a person should know of how the images were read is said.
    """
    if config.name == "own":
        raise UserError(
            "The images were given as a Dataset in Python, which no command can read; "
            "name files of the same images with data.name folder or parquet, and data.root."
        )
    if config.name not in DATASETS:
        raise unknown("dataset", config.name, DATASETS)
    for flag in ("image_column", "label_column"):
        if getattr(config, flag) is not None and config.name in (
            "digits",
            "folder",
            "tiny_imagenet",
            *IMAGENET_NAMES,
        ):
            raise UserError(
                f"data.{flag} names a column of parquet files, and data.name is {config.name}; "
                f"leave data.{flag} out."
            )
    return data_from(DATASETS[config.name](config), config, device, test=test, stored=stored)


def data_from(
    source: Source,
    config: DataConfig,
    device: torch.device,
    *,
    test: bool = False,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
) -> Data:
    """The splits of `source` on `device`, the test split when asked for; where the images come from
    is not looked at.

    The limit takes a stratified subset of the official training images, then validation is held out
    of it, both by data.split_seed. With data.classes all splits hold these classes only. Which of
    their images are test and, without a limit, validation images is what it is with all classes, so
    that a set distilled of some classes has seen no test image of the whole. Every class with two
    images or more has a test image. Preprocessing is fitted on the training split, unless `stored`
    has it for the digest of that split; what is stored is refused where it cannot be that of these
    images.
    """
    splits = _split(source, config)
    part, held_part, names = splits.part, splits.held_part, splits.names
    train_index, val_index, held_index = splits.train, splits.validation, splits.test
    notes = Notes(source.notes)
    notes.say(_untested(part.labels[train_index], held_part.labels[held_index], names))

    # one fetch for train and validation, so that both agree on colour or grey
    pixels = resize(
        torch.from_numpy(
            np.ascontiguousarray(part.fetch(np.concatenate((train_index, val_index))))
        ),
        config,
    )
    if source.mean is not None and len(source.mean) != pixels.shape[1]:
        raise UserError(
            f"The images in {config.root} have {pixels.shape[1]} channels and {config.name} has "
            f"{len(source.mean)}; "
            "correct data.root, or name them folder or parquet."
        )
    labels = torch.from_numpy(part.labels[train_index])
    parts = {"training": pixels[: len(train_index)], "validation": pixels[len(train_index) :]}
    digest = images_digest(parts["training"], labels)
    train_pixels = parts["training"].to(device)
    preprocess = stored(digest)
    if preprocess is None:
        preprocess = fit_preprocess(train_pixels, zca=config.zca, mean=source.mean, std=source.std)
    else:
        check_stored(preprocess, train_pixels, source.mean, source.std)
    preprocess = preprocess.to(device)

    def real(images: torch.Tensor, owner: Part, chosen: np.ndarray) -> RealSet:
        return RealSet(
            images.to(device),
            torch.from_numpy(owner.labels[chosen]).to(device),
            len(names),
            preprocess,
            class_names=names,
        )

    train = RealSet(train_pixels, labels.to(device), len(names), preprocess, digest, names)
    validation = real(parts["validation"], part, val_index) if len(val_index) else None
    test_set = None
    if test:
        if len(held_index) == 0:
            raise UserError(
                f"There are no test images: {config.name} has no test split and too few images to "
                "hold any out; add images."
            )
        parts["test"] = _like(
            torch.from_numpy(np.ascontiguousarray(held_part.fetch(held_index))), pixels, config
        )
        test_set = real(parts["test"], held_part, held_index)
    notes.say(constant(parts, part.labels[train_index], names) + repeated(parts))
    return Data(
        train,
        validation,
        test_set,
        names,
        bytes=train_pixels.numel(),
        dataset_bytes=splits.whole * train_pixels[0].numel(),
        num_test=len(held_index),
        held_out=source.test is None,
        notes=tuple(notes.said),
        train_names=_named(part, train_index),
        split_names=_split_names(splits, official=source.test is not None),
    )


class Notes:
    """What a reader found, and keeps finding while images are decoded: each is said once."""

    def __init__(self, found: list[str]):
        self._found, self.said = found, list[str]()
        self.say([])

    def say(self, more: list[str]) -> None:
        """Say what is new of what was found, and `more`."""
        for note in [*self._found, *more]:
            if note not in self.said:
                self.said.append(note)
                log.say(note)


@dataclass(frozen=True)
class Splits:
    """Which images of a source are in use for what."""

    part: Part  # of training and validation images
    held_part: Part  # of test images
    names: tuple[str, ...]  # of the classes in use
    train: np.ndarray  # indices into part
    validation: np.ndarray
    test: np.ndarray  # indices into held_part
    whole: int  # images that could be trained on, without a limit


def _split(source: Source, config: DataConfig) -> Splits:
    """The splits of a source.

    Raises UserError for a class that is not there, or has no training images.
    """
    part, held = source.train, source.test
    if part.labels.max(initial=0) >= len(source.class_names):
        raise UserError(
            f"The labels go up to {part.labels.max()} and only {len(source.class_names)} class "
            "names are given; correct the file."
        )
    index = np.arange(len(part.labels))
    if held is None:
        index, held_index = hold_out(part.labels, TEST_FRACTION, config.split_seed, at_least=1)
        held_part = part
    else:
        held_part, held_index = held, np.arange(len(held.labels))
    names, chosen = source.class_names, config.classes
    if chosen is not None:
        check_classes(chosen, len(names), "data.classes")

    def among(owner: Part, index: np.ndarray) -> np.ndarray:
        return index if chosen is None else index[np.isin(owner.labels[index], chosen)]

    whole = len(among(part, index))
    if config.limit is not None:
        index = among(part, index)
        index = index[stratified(part.labels[index], config.limit, config.split_seed)]
    kept, out = hold_out(part.labels[index], config.validation, config.split_seed)
    train_index, val_index, held_index = (
        among(part, index[kept]),
        among(part, index[out]),
        among(held_part, held_index),
    )
    if chosen is not None:
        names = tuple(names[c] for c in chosen)
        part, held_part = _renumbered(part, chosen), _renumbered(held_part, chosen)
    present = np.unique(part.labels[train_index])
    if len(present) < len(names):
        missing = next(c for c in range(len(names)) if c not in present)
        raise UserError(
            f"Class {names[missing]!r} has no training images; add some, raise data.limit, or "
            "leave it out of data.classes."
        )
    return Splits(part, held_part, names, train_index, val_index, held_index, whole)


def _untested(
    train_labels: np.ndarray, test_labels: np.ndarray, names: tuple[str, ...]
) -> list[str]:
    """A warning that names the classes without a test image."""
    if len(test_labels) == 0:
        return []
    tested = np.isin(np.arange(len(names)), test_labels)
    if tested.all():
        return []
    counts = np.bincount(train_labels, minlength=len(names))
    missing = [f"{names[c]!r} (training images: {counts[c]})" for c in np.flatnonzero(~tested)]
    return [
        f"warning: there is no test image of class {listed(missing)}, so test accuracies say "
        "nothing about it"
    ]


def _like(images: torch.Tensor, others: torch.Tensor, config: DataConfig) -> torch.Tensor:
    """Test images with the channels and the size of the training images."""
    if images.shape[1] < others.shape[1]:  # grey test images beside colour training images
        images = images.expand(-1, others.shape[1], -1, -1)
    elif images.shape[1] > others.shape[1]:
        images = torch.cat(
            [
                piece.float().mean(1, keepdim=True).round().to(torch.uint8)
                for piece in pieces(images)
            ]
        )
    images = resize(images, config)
    if images.shape[1:] != others.shape[1:]:
        raise UserError(
            f"Test images are {tuple(images.shape[1:])} and training images "
            f"{tuple(others.shape[1:])} (channels, height, width); set data.size."
        )
    return images


def constant(
    parts: Mapping[str, torch.Tensor], train_labels: np.ndarray, names: tuple[str, ...]
) -> list[str]:
    """Warnings of splits, and classes of the training split, whose images (N, C, H, W) uint8 all
    have one value each.
    """
    flat = {name: _is_flat(images).numpy() for name, images in parts.items() if len(images)}
    splits = [name for name, found in flat.items() if found.all()]
    if splits:
        return [
            f"warning: every image of the {listed(splits)} split is of a single colour; look at "
            "the files"
        ]
    classes = [
        names[c] for c in np.unique(train_labels) if flat["training"][train_labels == c].all()
    ]
    return (
        [
            f"warning: every training image of class {listed(list(map(repr, classes)))} is of a "
            "single colour; look at the files"
        ]
        if classes
        else []
    )


def _is_flat(images: torch.Tensor) -> torch.Tensor:
    """(N,) bool: whether an image has one value in each channel."""
    return torch.cat(
        [(piece.flatten(2).amax(2) == piece.flatten(2).amin(2)).all(1) for piece in pieces(images)]
    )


def image_digests(images: torch.Tensor) -> list[bytes]:
    """What identifies each of the images (N, C, H, W) uint8."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy()
    ]


def repeated(parts: Mapping[str, torch.Tensor]) -> list[str]:
    """Warnings that count the images (N, C, H, W) uint8 of a split that are, pixel for pixel,
    images of one before it.
    """
    seen: dict[bytes, str] = {}
    counts: dict[tuple[str, str], int] = {}
    for name, images in parts.items():
        digests = image_digests(images)
        for digest in digests:
            if seen.get(digest, name) != name:
                counts[seen[digest], name] = counts.get((seen[digest], name), 0) + 1
        for digest in digests:
            seen.setdefault(digest, name)
    return [
        f"warning: {num} image{'s' if num > 1 else ''} of the {later} split "
        f"{'are' if num > 1 else 'is'} in the {first} split too, pixel for pixel"
        for (first, later), num in counts.items()
    ]


def _split_names(splits: Splits, *, official: bool) -> dict[str, Any]:
    """Which images were held out, so that others can select and test on the same ones: names below
    data.root, else indices from 0.
    """
    by = (
        "indices into the training split, from 0"
        if splits.part.name_of is None
        else "names below data.root"
    )
    test = (
        "the test split of the dataset" if official else list(_named(splits.held_part, splits.test))
    )
    return {
        "named_by": by,
        "validation": list(_named(splits.part, splits.validation)),
        "test": test,
    }


def _named(part: Part, index: np.ndarray) -> tuple[Any, ...]:
    """What images are called: by their reader, or their indices."""
    return (
        tuple(index.tolist())
        if part.name_of is None
        else tuple(part.name_of(int(i)) for i in index)
    )
