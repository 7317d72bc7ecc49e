"""Any torch Dataset of (image, label) pairs as a Source, so that it gets the same splits and
preprocessing as the datasets known by name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from ddengine.data.decoder import NeedsColour
from ddengine.data.images import plain
from ddengine.data.load import data_from
from ddengine.data.loaded import Data
from ddengine.data.preprocess import Preprocess
from ddengine.data.resize import resize
from ddengine.data.scales import NeedsScale, Scales, Wide, extremes
from ddengine.data.source import Part, Source
from ddengine.data.splits import listed
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped

OWN = "own"  # data.name of what has no name: a dataset that was given as one
AT_ONCE = 32  # examples that are read at a time
NO_IMAGES = Part(np.empty(0, np.int64), lambda index: np.empty((len(index), 1, 1, 1), np.uint8))


def own_config(config: DataConfig) -> DataConfig:
    """The settings that count for a dataset of one's own, without the name and the place of the
    recipe's.
    """
    return replace(config, name=OWN, root=None, download=False)


def named_classes(classes: Iterable[Any]) -> tuple[str, ...]:
    """Names of classes, given as names or numbers, as text.

    Raises UserError for a single text and for a name that is there twice.
    """
    if isinstance(classes, str):
        raise UserError(f"classes is the text {classes[:40]!r}; give a list of names.")
    names = tuple(map(str, classes))
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"classes names a class twice, {twice!r}; give each a name of its own.")
    return names


def data_of(
    dataset: Any,
    config: DataConfig,
    device: torch.device,
    *,
    test: Any = None,
    classes: Sequence[Any] | None = None,
    stored: Callable[[str], Preprocess | None] = lambda digest: None,
    load_test: bool | None = None,
) -> Data:
    """The splits of a dataset of one's own on `device`, as `load_data` makes them; all of it is
    training data, and `test` another such dataset. `load_test` says whether the test split is on
    the device too (None: where `test` is given); without `test` there is none.

    `dataset` has a length and gives (image, label) by index: a map-style torch Dataset, one of
    torchvision, a list; or it is a pair of tensors or arrays (images, labels). An image is a PIL
    image; a tensor (C, H, W) or (H, W), uint8, or float within [0, 1]; or such a numpy array with
    the channels last. Whatever its form, it is kept as 8-bit pixels. Sizes that differ need
    `config.size`; name, root and download of `config` play no role. The dataset must not augment:
    it is read once, and the engine augments.

    Labels are whole numbers. Those that occur are numbered anew from 0, in ascending order, because
    a class without images cannot be distilled; `class_names` keeps who they were: label i is
    `classes[i]`, else `dataset.classes[i]`, else "i". Preprocessing is fitted on the training
    split, unless `stored` has it for the digest of that split.

    Raises:
        UserError: normalised pixels, a form that is not known, labels that are no whole numbers or
            beyond `classes`, sizes that differ, names in `classes` that are there twice, and
            `config.classes`, whose numbers would be those of the dataset that the recipe names.
    """
    if config.classes is not None:
        raise UserError(
            f"data.classes {' '.join(map(str, config.classes))} are classes of a dataset that has "
            "a name; "
            "choose classes of a Dataset with torch.utils.data.Subset, and set data.classes None."
        )
    classes = None if classes is None else named_classes(classes)
    notes: list[str] = []
    scales = Scales()
    part = _part(dataset, config, scales, notes)
    if len(part.labels) == 0:
        raise UserError("The dataset is empty; give one with images of every class.")
    present = np.unique(part.labels)
    held = NO_IMAGES
    if test is not None:
        held = _part(test, config, scales, notes)
        if len(new := np.setdiff1d(held.labels, present)):
            raise UserError(
                f"The test images have label {new[0]}, of which there are no training images; "
                "leave these out of test, or add some."
            )
        lists = _class_list(dataset), _class_list(test)
        if None not in lists and lists[0] != lists[1]:
            raise UserError(
                f"The classes of the test images ({listed(lists[1] or ())}) are not those of the "
                "training images in their order "
                f"({listed(lists[0] or ())}); give both the same."
            )
        held = Part(np.searchsorted(present, held.labels), held.fetch)
    source = Source(
        Part(np.searchsorted(present, part.labels), part.fetch),
        held,
        _names(dataset, classes, present),
        notes=notes,
    )
    load_test = test is not None if load_test is None else load_test
    return data_from(source, config, device, test=load_test, stored=stored)


def _part(dataset: Any, config: DataConfig, scales: Scales, notes: list[str]) -> Part:
    """The labels as they are, and the images."""
    if (
        isinstance(dataset, tuple | list)
        and len(dataset) == 2
        and all(isinstance(part, Tensor | np.ndarray) for part in dataset)
    ):
        images, labels = dataset
        if len(images) != len(labels):
            raise UserError(
                f"{len(images)} images and {len(labels)} labels do not belong together; give a "
                "label for each image."
            )
        dataset = _Pairs(images, labels)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UserError(
            f"A {type(dataset).__name__} cannot be read by index; give a map-style dataset, with "
            "a length, or a list of (image, label)."
        )
    known = _known_labels(dataset)
    images = _Images(dataset, config, scales, notes, known)
    return Part(images.all_labels() if known is None else known, images.fetch)


class _Pairs:
    """Images and labels side by side as a dataset."""

    def __init__(self, images: Any, labels: Any):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], self.labels[i]


class _Images:
    """The images of a dataset of one's own as 8-bit pixels."""

    def __init__(
        self,
        dataset: Any,
        config: DataConfig,
        scales: Scales,
        notes: list[str],
        known: np.ndarray | None,
    ):
        """`known`: the labels that the dataset lists, which must be those of its examples."""
        self._dataset, self._config, self._scales, self._notes, self._known = (
            dataset,
            config,
            scales,
            notes,
            known,
        )
        self._ground = ImageColor.getrgb(config.background)[:3]
        self._kept: dict[int, np.ndarray | Wide] = {}  # read already, and not yet handed out
        # all images, where these were read already and are of one shape
        self._alike: np.ndarray | None = None

    def all_labels(self) -> np.ndarray:
        """The labels where the dataset does not list them.

        To learn them everything is read, so it is kept until it is asked for.
        """
        labels, num = [], len(self._dataset)
        for i, (image, label) in zip(range(num), self._examples(range(num)), strict=True):
            labels.append(label)
            if i == 0 and isinstance(image, np.ndarray):
                self._alike = np.empty((num, *image.shape), np.uint8)
            if self._alike is not None and (
                isinstance(image, Wide) or image.shape != self._alike.shape[1:]
            ):
                self._kept, self._alike = dict(enumerate(self._alike[:i])), None
            if self._alike is None:
                self._kept[i] = image
            else:
                self._alike[i] = image  # type: ignore[assignment]
        return np.array(labels, np.int64)

    def fetch(self, index: np.ndarray) -> np.ndarray:
        """(B, C, H, W) uint8: colour if any image is; of one size, to which they are resized if
        they differ. Allocated once.
        """
        if (
            self._alike is not None
            and len(index) == len(self._alike)
            and self._config.size in (None, self._alike.shape[2:])
        ):
            images, self._alike = reordered(self._alike, index), None
            return images
        if self._alike is not None:
            self._kept, self._alike = dict(enumerate(self._alike)), None
        colour = any(
            len(image) == 3
            for i in index.tolist()
            if isinstance(image := self._kept.get(i), np.ndarray)
        )
        while True:
            try:
                return self._stacked(index.tolist(), colour)
            except NeedsColour:
                colour = True
            except NeedsScale:
                self._settle(index.tolist())

    def _values(self, order: list[int]) -> Iterator[np.ndarray | Wide]:
        """The images at `order`, those that are kept without reading them again."""
        if all(i in self._kept for i in order):
            yield from (self._kept[i] for i in order)
            return
        for i, (values, label) in zip(order, self._examples(order), strict=True):
            if self._known is not None and label != self._known[i]:
                raise UserError(
                    f"Example {i} of the dataset has label {label}, and {self._known[i]} in its "
                    "list of targets; make both the same."
                )
            yield values

    def _stacked(self, order: list[int], colour: bool) -> np.ndarray:
        pixels = np.empty((0, 0, 0, 0), np.uint8)
        for k, (i, values) in enumerate(zip(order, self._values(order), strict=True)):
            image = self._as_bytes(values, i)
            if k == 0:
                colour = colour or len(image) == 3
                pixels = np.empty(
                    (len(order), 3 if colour else 1, *(self._config.size or image.shape[1:])),
                    np.uint8,
                )
            if len(image) == 3 and not colour:
                raise NeedsColour
            if self._config.size is None and image.shape[1:] != pixels.shape[2:]:
                first, other = (
                    "x".join(map(str, shape)) for shape in (pixels.shape[2:], image.shape[1:])
                )
                raise UserError(
                    f"The images of the dataset differ in size, such as {first} and {other}; "
                    "set size of the recipe's data to a height and width for all."
                )
            if image.shape[1:] != pixels.shape[2:]:
                image = resize(torch.tensor(image)[None], self._config)[0].numpy()
            pixels[k] = image  # grey into all channels
            self._kept.pop(i, None)
        self._notes += [note for note in self._scales.said() if note not in self._notes]
        return pixels

    def _as_bytes(self, image: np.ndarray | Wide, i: int) -> np.ndarray:
        """(C, H, W) uint8."""
        return (
            np.asarray(self._scales.applied(image, self._ground, f"image {i} of the dataset"))[None]
            if isinstance(image, Wide)
            else image
        )

    def _settle(self, order: list[int]) -> None:
        """Choose the scale of values that are not of 8 bits among the images at `order`."""
        wide = [
            (image.kind, f"Image {i} of the dataset", extremes(image.values))
            for i, image in zip(order, self._values(order), strict=True)
            if isinstance(image, Wide)
        ]
        self._notes += self._scales.settle(wide)

    def _examples(self, index: Iterable[int]) -> Iterator[tuple[np.ndarray | Wide, int]]:
        """The examples at `index`.

        Transforms that draw from torch's global generator always draw the same, and leave it as it
        was.
        """
        order = list(index)
        # read before they are handed out, because whoever takes them may draw too
        for start in range(0, len(order), AT_ONCE):
            with scoped(generator(0, "dataset", start)):
                read = [
                    _example(self._dataset, i, self._ground) for i in order[start : start + AT_ONCE]
                ]
            yield from read


def reordered(images: np.ndarray, order: np.ndarray) -> np.ndarray:
    """images[order] of a permutation, in the memory that the images have: a copy would take as much
    again.
    """
    moved = np.zeros(len(order), bool)
    for start in range(len(order)):
        if moved[start]:
            continue
        first, at = images[start].copy(), start
        while order[at] != start:
            images[at], moved[at] = images[order[at]], True
            at = int(order[at])
        images[at], moved[at] = first, True
    return images


def _known_labels(dataset: Any) -> np.ndarray | None:
    """The labels where a dataset lists them, so that no image need be decoded to learn them; None
    where it must be asked for each.
    """
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, np.int64)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        dataset = _Pairs(*dataset.tensors)
    for name in ("targets", "labels"):
        try:
            listed = np.asarray(getattr(dataset, name))
        except (AttributeError, TypeError, ValueError):
            continue
        if (
            listed.ndim == 1
            and np.issubdtype(listed.dtype, np.integer)
            and len(listed) == len(dataset)
        ):
            return listed.astype(np.int64)
    return None


def _example(dataset: Any, i: int, ground: tuple[int, int, int]) -> tuple[np.ndarray | Wide, int]:
    """(image, label) of an example."""
    example = dataset[i]
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise UserError(
            f"Example {i} of the dataset is a {type(example).__name__} and not a pair (image, "
            "label); wrap the dataset so that it is."
        )
    image, label = example
    if isinstance(label, Tensor | np.ndarray) and np.prod(label.shape) == 1:
        label = label.item()
    if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer):
        raise UserError(
            f"The label of example {i} is {_shown(label)} and not a whole number; give the number "
            "of its class."
        )
    return _image(image, i, ground), int(label)


def _shown(value: Any) -> str:
    """A value, or what kind of array it is, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {str(value.dtype).removeprefix('torch.')} array of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def _image(image: Any, i: int, ground: tuple[int, int, int]) -> np.ndarray | Wide:
    """Image i in any of the forms: (C, H, W) uint8, or values that need a scale."""
    if not isinstance(image, Image.Image):
        return _pixels(image, i)
    seen = plain(image, ground)
    if isinstance(seen, Wide):
        return seen
    array = np.asarray(seen)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _pixels(image: Any, i: int) -> np.ndarray:
    """(C, H, W) uint8 of image i, a tensor or an array."""
    if isinstance(image, Tensor):
        array, layout = (
            image.detach().cpu().float().numpy()
            if image.is_floating_point()
            else image.detach().cpu().numpy(),
            "(C, H, W)",
        )
        channels = array[None] if array.ndim == 2 else array
    elif isinstance(image, np.ndarray):
        array, layout = image, "(H, W, C)"
        channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    else:
        raise UserError(
            f"Image {i} of the dataset is {_shown(image)}; give PIL images, tensors (C, H, W) or "
            "numpy arrays (H, W, C)."
        )
    if channels.ndim != 3 or channels.shape[0] not in (1, 3) or 0 in channels.shape:
        raise UserError(
            f"Image {i} of the dataset is {_shown(image)}; give 1 or 3 channels, as {layout} or "
            "(H, W)."
        )
    if channels.dtype == np.uint8:
        return channels
    if not np.issubdtype(channels.dtype, np.floating):
        raise UserError(
            f"Image {i} of the dataset is {_shown(image)}; give pixels as uint8 or as floats in "
            "[0, 1]."
        )
    low, high = float(channels.min()), float(channels.max())
    if not (low >= 0 and high <= 1):  # also where they are not numbers
        raise UserError(
            f"Image {i} of the dataset has values from {low:.4g} to {high:.4g}; give pixels in "
            "[0, 1], not normalised, as the engine normalises."
        )
    return np.round(channels * 255).astype(np.uint8)


def _names(dataset: Any, classes: Sequence[str] | None, present: np.ndarray) -> tuple[str, ...]:
    """What the labels that occur are called."""
    if classes is not None:
        if present[0] < 0 or present[-1] >= len(classes):
            wrong = present[0] if present[0] < 0 else present[-1]
            raise UserError(
                f"The dataset has label {wrong}, and classes names {len(classes)}, from 0 on; "
                "name a class for every label."
            )
        return tuple(str(classes[label]) for label in present)
    own = _class_list(dataset)
    if own is None or present[0] < 0 or present[-1] >= len(own):
        return tuple(str(label) for label in present)
    return tuple(own[label] for label in present)


def _class_list(dataset: Any) -> tuple[str, ...] | None:
    """What a dataset calls its classes, in the order of their labels; None where it does not say."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    own = getattr(dataset, "classes", None)
    if not isinstance(own, tuple | list):
        return None
    # ImageNet's have several names
    return tuple(str(name[0] if isinstance(name, tuple | list) and name else name) for name in own)
