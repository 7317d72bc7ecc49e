"""Any torch Dataset of (image, label) pairs as a Source.

It gets the same splits and preprocessing as the datasets known by name.
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
from ddengine.data.scales import Colour, NeedsScale, Scales, Wide, extremes
from ddengine.data.source import Part, Source
from ddengine.data.splits import listed
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped

OWN = "own"  # data.name of what has no name: a dataset that was given as one
AT_ONCE = 32  # examples that are read at a time
NO_IMAGES = Part(
    np.empty(0, np.int64),
    lambda index: np.empty((len(index), 1, 1, 1), np.uint8),
)


def own_config(config: DataConfig) -> DataConfig:
    """The settings that count for a dataset of one's own: without the recipe's name and place."""
    return replace(config, name=OWN, root=None, download=False)


def named_classes(classes: Iterable[Any]) -> tuple[str, ...]:
    """Names of classes, given as names or numbers, as text.

    Raises UserError for a single text and for a name that occurs twice.
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
    """The splits of a dataset of one's own on `device`, as `load_data` makes them.

    All of it is training data, and `test` another such dataset.

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

    `load_test` says whether the test split is on the device too (None: where `test` is given);
    without `test` there is none.

    Raises:
        UserError: normalised pixels, a form that is not known, labels that are no whole numbers or
            beyond `classes`, sizes that differ, names in `classes` that occur twice, and
            `config.classes`, whose numbers would be those of the dataset that the recipe names.
    """
    _check_no_classes(config)
    named = None if classes is None else named_classes(classes)
    notes: list[str] = []
    scales = Scales()
    part = _part(dataset, config, scales, notes)
    if len(part.labels) == 0:
        raise UserError("The dataset is empty; give one with images of every class.")
    present = np.unique(part.labels)
    test_part = NO_IMAGES
    if test is not None:
        test_part = _part(test, config, scales, notes)
        _check_test(dataset, test, test_part.labels, present)
    source = Source(
        _renumbered(part, present),
        _renumbered(test_part, present),
        _names(dataset, named, present),
        notes=notes,
    )
    if load_test is None:
        load_test = test is not None
    return data_from(source, config, device, test=load_test, stored=stored)


def _check_no_classes(config: DataConfig) -> None:
    """Raise UserError where classes are chosen by the numbers of another dataset."""
    if config.classes is not None:
        raise UserError(
            f"data.classes {' '.join(map(str, config.classes))} are classes of a dataset that has "
            "a name; "
            "choose classes of a Dataset with torch.utils.data.Subset, and set data.classes None."
        )


def _check_test(
    dataset: Any,
    test: Any,
    labels: np.ndarray,
    present: np.ndarray,
) -> None:
    """Raise UserError where test labels are not among the training labels that are present.

    The same holds where both datasets name their classes differently.
    """
    new = np.setdiff1d(labels, present)
    if len(new):
        raise UserError(
            f"The test images have label {new[0]}, of which there are no training images; "
            "leave these out of test, or add some."
        )
    classes = _class_list(dataset)
    test_classes = _class_list(test)
    if classes is not None and test_classes is not None and classes != test_classes:
        raise UserError(
            f"The classes of the test images ({listed(test_classes)}) are not those of the "
            "training images in their order "
            f"({listed(classes)}); give both the same."
        )


def _renumbered(part: Part, present: np.ndarray) -> Part:
    """The same images; the label `present[i]` becomes i."""
    return Part(np.searchsorted(present, part.labels), part.fetch)


def is_pair(dataset: Any) -> bool:
    """Whether it is a pair of an array or tensor of images and of labels."""
    if not isinstance(dataset, tuple | list) or len(dataset) != 2:
        return False
    return isinstance(dataset[0], Tensor | np.ndarray)


def _part(
    dataset: Any,
    config: DataConfig,
    scales: Scales,
    notes: list[str],
) -> Part:
    """The labels as they are, and the images."""
    if is_pair(dataset):
        images, labels = dataset
        if len(images) != len(labels):
            raise UserError(
                f"{len(images)} images and {len(labels)} labels do not belong together; give a "
                "label for each image."
            )
        if not isinstance(labels, Tensor) and _as_labels(labels) is None:
            raise UserError(
                "The labels beside the images are no whole numbers; give the number of its class "
                "for each image."
            )
        dataset = _Pairs(images, labels)
    # probe: whatever a user gives
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UserError(
            f"A {type(dataset).__name__} cannot be read by index; give a map-style dataset, with "
            "a length, or a list of (image, label)."
        )
    listed_labels = _listed_labels(dataset)
    images = _Images(dataset, config, scales, notes, listed_labels)
    labels = images.all_labels() if listed_labels is None else listed_labels
    if len(labels) and labels.min() < 0:
        raise UserError(
            f"A label is {labels.min()}, which often means that an image has none; leave such "
            "images out, and number classes from 0."
        )
    return Part(labels, images.fetch)


class _Pairs:
    """Images and labels side by side as a dataset."""

    def __init__(self, images: Any, labels: Any):
        self.images = images
        self.labels = labels

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
        labels: np.ndarray | None,
    ):
        """`labels`: those that the dataset lists, which must be those of its examples."""
        self._dataset = dataset
        self._labels = labels
        self._size = config.size
        self._config = config
        self._scales = scales
        self._notes = notes
        self._ground = ImageColor.getrgb(config.background)[:3]
        self._kept: dict[int, np.ndarray | Wide] = {}  # read already, and not yet handed out
        # all images, where these were read already and are of one shape
        self._alike: np.ndarray | None = None

    def all_labels(self) -> np.ndarray:
        """The labels where the dataset does not list them.

        To learn them everything is read, so it is kept until it is asked for.
        """
        labels = []
        num = len(self._dataset)
        for i, (image, label) in zip(range(num), self._examples(range(num)), strict=True):
            labels.append(label)
            if i == 0 and isinstance(image, np.ndarray):
                self._alike = np.empty((num, *image.shape), np.uint8)
            self._keep(i, image)
        return np.array(labels, np.int64)

    def _keep(self, i: int, image: np.ndarray | Wide) -> None:
        """Keep image i, behind those before it: in one array while all are of one shape."""
        if self._alike is not None:
            if isinstance(image, np.ndarray) and image.shape == self._alike.shape[1:]:
                self._alike[i] = image
                return
            self._kept = dict(enumerate(self._alike[:i]))
            self._alike = None
        self._kept[i] = image

    def fetch(self, index: np.ndarray) -> np.ndarray:
        """The images at `index`, (B, C, H, W) uint8, in colour if any image is. Allocated once.

        They are of one size, to which they are resized if they differ.
        """
        if self._alike is not None:
            alike = self._alike
            self._alike = None
            if len(index) == len(alike) and self._size in (None, alike.shape[2:]):
                return reordered(alike, index)
            self._kept = dict(enumerate(alike))
        order = index.tolist()
        colour = self._colour_is_kept(order)
        while True:
            try:
                return self._stacked(order, colour)
            except NeedsColour:
                colour = True
            except NeedsScale:
                self._settle(order)

    def _colour_is_kept(self, order: list[int]) -> bool:
        """Whether one of the images at `order` that are kept is in colour."""
        for i in order:
            image = self._kept.get(i)
            if isinstance(image, np.ndarray) and len(image) == 3:
                return True
        return False

    def _values(self, order: list[int]) -> Iterator[np.ndarray | Wide]:
        """The images at `order`, those that are kept without reading them again."""
        if all(i in self._kept for i in order):
            for i in order:
                yield self._kept[i]
            return
        for i, (values, label) in zip(order, self._examples(order), strict=True):
            if self._labels is not None and label != self._labels[i]:
                raise UserError(
                    f"Example {i} of the dataset has label {label}, and {self._labels[i]} in its "
                    "list of targets; make both the same."
                )
            yield values

    def _stacked(self, order: list[int], colour: bool) -> np.ndarray:
        """The images at `order`, (B, C, H, W) uint8; `colour` says that some are in colour.

        Raises NeedsColour where some turn out to be, and NeedsScale.
        """
        pixels = np.empty((0, 0, 0, 0), np.uint8)
        for k, (i, values) in enumerate(zip(order, self._values(order), strict=True)):
            image = self._as_bytes(values, i)
            in_colour = len(image) == 3
            if k == 0:
                colour = colour or in_colour
                channels = 3 if colour else 1
                side = self._size or image.shape[1:]
                pixels = np.empty((len(order), channels, *side), np.uint8)
            if in_colour and not colour:
                raise NeedsColour
            pixels[k] = self._at_size(image, pixels.shape[2:])  # grey into all channels
            self._kept.pop(i, None)
        for note in self._scales.said():
            if note not in self._notes:
                self._notes.append(note)
        return pixels

    def _at_size(self, image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """An image (C, H, W) at `size`, to which it is resized where the settings say one.

        Raises UserError where they do not, and it has another.
        """
        if image.shape[1:] == size:
            return image
        if self._size is None:
            raise UserError(
                f"The images of the dataset differ in size, such as {_sides(size)} and "
                f"{_sides(image.shape[1:])}; "
                "set size of the recipe's data to a height and width for all."
            )
        (resized,) = resize(torch.tensor(image).unsqueeze(0), self._config)
        return resized.numpy()

    def _as_bytes(self, image: np.ndarray | Wide, i: int) -> np.ndarray:
        """Image i as (C, H, W) uint8."""
        if not isinstance(image, Wide):
            return image
        pixels = self._scales.applied(image, self._ground, f"image {i} of the dataset")
        return np.expand_dims(np.asarray(pixels), 0)

    def _settle(self, order: list[int]) -> None:
        """Choose the scale of values that are not of 8 bits among the images at `order`."""
        wide = []
        for i, image in zip(order, self._values(order), strict=True):
            if isinstance(image, Wide):
                name = f"Image {i} of the dataset"
                wide.append((image.kind, name, extremes(image.values)))
        self._notes += self._scales.settle(wide)

    def _examples(self, index: Iterable[int]) -> Iterator[tuple[np.ndarray | Wide, int]]:
        """The examples at `index`.

        Transforms that draw from torch's global generator always draw the same, and leave it as it
        was.
        """
        order = list(index)
        # read before they are handed out, because whoever takes them may draw too
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            with scoped(generator(0, "dataset", start)):
                examples = [_example(self._dataset, i, self._ground) for i in some]
            yield from examples


def _sides(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def reordered(images: np.ndarray, order: np.ndarray) -> np.ndarray:
    """images[order] of a permutation, in the memory that the images have.

    A copy would take as much again.
    """
    moved = np.zeros(len(order), bool)
    for start in range(len(order)):
        if moved[start]:
            continue
        first = images[start].copy()
        at = start
        while order[at] != start:
            images[at], moved[at] = images[order[at]], True
            at = int(order[at])
        images[at] = first
        moved[at] = True
    return images


def _listed_labels(dataset: Any) -> np.ndarray | None:
    """The labels where a dataset lists them; None where it must be asked for each.

    So no image need be decoded to learn them.
    """
    if isinstance(dataset, Subset):
        labels = _listed_labels(dataset.dataset)
        if labels is None:
            return None
        return labels[np.asarray(dataset.indices, np.int64)]
    # probe: torchvision's datasets may change their labels on the way
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        dataset = _Pairs(*dataset.tensors)
    for name in ("targets", "labels"):
        labels = _as_labels(getattr(dataset, name, None))  # probe: the names that datasets use
        if labels is not None and len(labels) == len(dataset):
            return labels
    return None


def _as_labels(values: Any) -> np.ndarray | None:
    """Whole numbers (N,) int64; None where the values are something else."""
    try:
        labels = np.asarray(values)
    except (TypeError, ValueError):
        return None
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return None
    return labels.astype(np.int64)


def _example(
    dataset: Any,
    i: int,
    ground: Colour,
) -> tuple[np.ndarray | Wide, int]:
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
    if isinstance(value, int | float | str):
        return repr(value)
    return f"a {type(value).__name__}"


def _image(
    image: Any,
    i: int,
    ground: Colour,
) -> np.ndarray | Wide:
    """Image i in any of the forms: (C, H, W) uint8, or values that need a scale."""
    if not isinstance(image, Image.Image):
        return _pixels(image, i)
    seen = plain(image, ground)
    if isinstance(seen, Wide):
        return seen
    array = np.asarray(seen)
    if array.ndim == 2:
        return array[None]
    return array.transpose(2, 0, 1)


def _pixels(image: Any, i: int) -> np.ndarray:
    """(C, H, W) uint8 of image i, a tensor or an array."""
    channels, layout = _channels_first(image, i)
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
    low = float(channels.min())
    high = float(channels.max())
    if not (low >= 0 and high <= 1):  # also where they are not numbers
        raise UserError(
            f"Image {i} of the dataset has values from {low:.4g} to {high:.4g}; give pixels in "
            "[0, 1], not normalised, as the engine normalises."
        )
    return np.round(channels * 255).astype(np.uint8)


def _channels_first(image: Any, i: int) -> tuple[np.ndarray, str]:
    """(image i with a dimension of channels before the others, the layout it should have had).

    Raises UserError for what is no tensor and no array.
    """
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        if values.is_floating_point():
            values = values.float()
        array = values.numpy()
        if array.ndim == 2:
            array = array[None]
        return array, "(C, H, W)"
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            return image[None], "(H, W, C)"
        return np.moveaxis(image, -1, 0), "(H, W, C)"
    raise UserError(
        f"Image {i} of the dataset is {_shown(image)}; give PIL images, tensors (C, H, W) or "
        "numpy arrays (H, W, C)."
    )


def _names(
    dataset: Any,
    classes: tuple[str, ...] | None,
    present: np.ndarray,
) -> tuple[str, ...]:
    """What the labels that occur are called: by `classes`, else by the dataset, else by number.

    Raises UserError for labels that are not numbers of `classes`.
    """
    negative = present[0] < 0
    named = _class_list(dataset) if classes is None else classes
    if named is not None and not negative and present[-1] < len(named):
        return tuple(named[label] for label in present)
    if classes is None:
        return tuple(map(str, present))
    raise UserError(
        f"The dataset has label {present[0] if negative else present[-1]}, and classes names "
        f"{len(classes)}, from 0 on; name a class for every label."
    )


def _class_list(dataset: Any) -> tuple[str, ...] | None:
    """What a dataset calls its classes, in the order of their labels; None without names."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)  # probe: torchvision's name for them
    if not isinstance(classes, tuple | list):
        return None
    names = []
    for name in classes:
        if isinstance(name, tuple | list) and name:  # ImageNet's have several names
            name = name[0]
        names.append(str(name))
    return tuple(names)
