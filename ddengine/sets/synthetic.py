"""The distilled set: what is learned, and how it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ddengine.data import Data, Preprocess
from ddengine.models import build_model
from ddengine.recipe import Recipe
from ddengine.sets.codec import Codec, Space
from ddengine.sets.codec.within_bytes import fitted
from ddengine.sets.coreset import TrainNetworks
from ddengine.sets.start import INITIALISERS
from ddengine.sets.targets import LABELS, Classes, Features, LabelOf, Logits, Targets, Weights
from ddengine.system.errors import UserError
from ddengine.system.runtime import sent
from ddengine.types import Batch, Experts, TargetKind

RAW = "raw."  # before the name of a tensor: its last iterate, beside its running average
PARTS: tuple[str, ...] = ("images", "compensators", "labels", "other")  # that every ledger has
NOT_PARTS = ("total", "preprocess", "raw")  # of a ledger

Option = TypeVar("Option")


@dataclass
class SyntheticSet:
    """Stored tensors, and everything needed to train on them.

    `tensors` holds what the codec stores, what the targets store, "lr" () when a learning rate is
    learned, and what methods add. `classes` (S,) is int64, always. `space` is "pixel" for values in
    [0, 1], preprocessed after decoding, "model" for what networks see.
    """

    tensors: dict[str, Tensor]
    classes: Tensor
    class_names: tuple[str, ...]
    codec: Codec
    preprocess: Preprocess
    targets: Targets = Classes()
    space: Space = "model"

    def __len__(self) -> int:
        """N, the number of decoded training examples."""
        return len(self.source)

    @property
    def source(self) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        return self.codec.source(self.tensors)

    @property
    def target_kind(self) -> TargetKind:
        """What examples are trained towards."""
        return self.targets.kind

    @property
    def label_of(self) -> LabelOf:
        """Whether targets belong to stored items or to decoded examples."""
        return self.targets.label_of

    @property
    def lr(self) -> float | None:
        """The learned learning rate, None without one."""
        if "lr" not in self.tensors:
            return None
        return float(self.tensors["lr"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a decoded example."""
        first = self.source[:1] * 0
        with torch.no_grad():
            image = self.codec.decode(self.tensors, first)
        _, channels, height, width = image.shape
        return channels, height, width

    @property
    def num_outputs(self) -> int:
        """How many outputs a network has that is trained on the set."""
        return self.targets.outputs(self.tensors, len(self.class_names))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "SyntheticSet":
        """The same set holding other tensors (of an inner loop, of a running average)."""
        return replace(self, tensors={**self.tensors, **tensors})

    def with_labels(
        self, logits: Tensor, dtype: torch.dtype = torch.float32, top: int | None = None
    ) -> "SyntheticSet":
        """The same set with soft labels.

        They are logits (N, K) of each decoded example, or (S, K) of each stored item. With `top`,
        only the so many largest of each are stored, and the mean of the others.
        """
        return self.with_targets(Logits(self.whose(logits)), logits, dtype, top)

    @property
    def row_names(self) -> tuple[str, ...]:
        """What rows of pictures are called: the classes, or numbers where these say nothing.

        Sets with features are made without labels, and the classes of their images are places.
        """
        if not self.targets.regressed:
            return self.class_names
        return tuple(str(number + 1) for number in range(len(self.class_names)))

    def with_features(self, features: Tensor, dtype: torch.dtype = torch.float32) -> "SyntheticSet":
        """The same set with features (N or S, D) to which the outputs of a network are fitted."""
        return self.with_targets(Features(self.whose(features)), features, dtype)

    def with_weights(self, weights: Tensor) -> "SyntheticSet":
        """The same set with weights (N or S, K) of the classes of each example."""
        return self.with_targets(Weights(self.whose(weights)), weights, torch.float32)

    def whose(self, values: Tensor) -> LabelOf:
        """Whether targets are those of stored items or of decoded examples, by their number."""
        return "stored" if len(values) == len(self.classes) else "decoded"

    def with_targets(
        self, targets: Targets, values: Tensor, dtype: torch.dtype, top: int | None = None
    ) -> "SyntheticSet":
        """The same set with targets of these values (N or S, outputs) in place of its own."""
        kept = dict(self.tensors)
        for name in LABELS:
            kept.pop(name, None)
        stored = targets.store(values, len(self.class_names), dtype, top)
        return replace(self, tensors=kept | stored, targets=targets)

    def as_labelled(self, logits: Tensor) -> Tensor:
        """Logits (N, K) as they would be after they were stored like the labels of this set."""
        if not self.targets.soft:
            return logits
        top = None
        if "logits.index" in self.tensors:
            top = self.tensors["logits.index"].shape[1]
        dtype = self.tensors["logits"].dtype
        return self.with_labels(logits, dtype, top).logits

    def shipped(self) -> "SyntheticSet":
        """The set as it is stored in the end, by its codec."""
        codec, tensors = self.codec.ship(self.tensors, self.preprocess)
        return replace(self, codec=codec, tensors=tensors, space=codec.space)

    @property
    def logits(self) -> Tensor:
        """The soft labels (N or S, K); of some largest logits the others are their mean."""
        values = self.targets.values(self.tensors, len(self.class_names))
        assert values is not None, "the targets of the set are classes"
        return values

    def batch(self, index: Tensor) -> Batch:
        """Decoded, preprocessed examples at `index` (B,) of N, differentiable in the tensors.

        Targets are classes, label logits, weights of classes or features.
        """
        index = sent(index, self.classes.device)
        images = self.codec.decode(self.tensors, index)
        if self.space == "pixel":
            images = self.preprocess.forward(images)
        item = self.source.index_select(0, index)
        classes = self.classes.index_select(0, item)
        num_classes = len(self.class_names)
        targets = self.targets.encode(self.tensors, num_classes, index, item, classes)
        return Batch(images, targets, classes)

    def pixels(self, index: Tensor | None = None) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) as pixel values, for display; not clamped.

        None: all of them.
        """
        if index is None:
            index = torch.arange(len(self))
        with torch.no_grad():
            images = self.codec.decode(self.tensors, index.to(self.classes.device))
            return images if self.space == "pixel" else self.preprocess.backward(images)

    def by_tensor(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """Options by the name of a tensor, from options by the names of tensors or of groups.

        Groups are those of the codec; a name of neither stays as it is.
        """
        groups = self.codec.parameters(self.tensors)
        by_tensor = dict[str, Option]()
        for name, option in options.items():
            names = (name,) if name in self.tensors else groups.get(name, (name,))
            by_tensor.update(dict.fromkeys(names, option))
        return by_tensor

    def images_per_class(self) -> float:
        """Stored image-sized items per class, compensators among them; labels are counted apart.

        Of a codec that stores no images, it is how many images have the values that it stores.
        """
        return self.codec.num_images(self.tensors) / len(self.class_names)

    @property
    def ledger(self) -> dict[str, int]:
        """Bytes of what counts: images, compensators, labels, other, and what else the codec has.

        The codec says which tensors are in which part; what it does not name, and no label, is
        other.
        """
        parts = self.codec.bytes_by_part(self.tensors)
        labels = self.classes.nbytes
        stored = self.classes.nbytes
        for name, tensor in self.tensors.items():
            if name in LABELS:
                labels += tensor.nbytes
            if not name.startswith(RAW):
                stored += tensor.nbytes
        ledger = {
            "images": parts.pop("images", 0),
            "compensators": parts.pop("compensators", 0),
            "labels": labels,
            "other": 0,
        }
        ledger |= parts
        ledger["other"] = stored - sum(ledger.values())
        return ledger

    @property
    def nbytes(self) -> int:
        """Bytes stored: the sum of the ledger."""
        return sum(self.ledger.values())

    def sizes(self) -> dict[str, int]:
        """Bytes of the `ledger`, and their total, as meta.json says them.

        Beside it preprocess (can be fitted again) and raw (the last iterate of an average).
        """
        parts = self.ledger
        raw = 0
        for name, tensor in self.tensors.items():
            if name.startswith(RAW):
                raw += tensor.nbytes
        preprocess = total_bytes(self.preprocess.tensors())
        return parts | {"total": sum(parts.values()), "preprocess": preprocess, "raw": raw}


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def counted(nbytes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each part from what `sizes` returned, as meta.json keeps it.

    Their total and what does not count are left out. A part that does not occur has none.
    """
    parts: dict[str, int] = dict.fromkeys(PARTS, 0)  # type: ignore[arg-type]
    for part, size in nbytes.items():
        if part not in NOT_PARTS:
            parts[part] = size
    return parts


def initial(
    recipe: Recipe,
    data: Data,
    rng: Generator,
    experts: Experts | None = None,
    train_networks: TrainNetworks | None = None,
) -> SyntheticSet:
    """The set before the first step, labelled with classes.

    It holds initial images, and what the objective learns beside them. `train_networks` trains
    networks that choose images, in place of that of `training`.
    """
    device = data.train.device
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    codec, items = fitted(recipe, data.image_shape, data.num_classes)
    per_class = items * codec.per_item
    fewest = min(len(members) for members in data.train.members)
    if items <= fewest < per_class and recipe.init.kind != "noise":
        raise UserError(
            f"ipc {recipe.ipc} of {codec.per_item} tiles each starts from {per_class} images per "
            f"class, and a class has {fewest}; lower ipc or codec.factor, or give the class more "
            "images."
        )
    initial_images = INITIALISERS[recipe.init.kind]
    images = initial_images(
        data.train,
        per_class,
        data.class_names,
        rng,
        recipe.init,
        experts,
        new_model,
        train_networks,
    )
    scalars = {}
    for name, start in recipe.objective.initial().items():
        scalars[name] = torch.tensor(start, device=device)
    classes = torch.arange(data.num_classes, device=device).repeat_interleave(items)
    return coded(codec, images, classes, data.class_names, data.train.preprocess, scalars, rng)


def coded(
    codec: Codec,
    images: Tensor,
    classes: Tensor,
    class_names: tuple[str, ...],
    preprocess: Preprocess,
    scalars: Mapping[str, Tensor] = {},
    rng: Generator | None = None,
) -> SyntheticSet:
    """A set of preprocessed images (S * codec.per_item, C, H, W), as the codec stores them.

    Those of an item lie in a row. The codec is fitted to its budget; `rng` is for what in it starts
    at random.
    """
    values = preprocess.backward(images) if codec.space == "pixel" else images
    packed = codec.pack(values, len(class_names), preprocess, rng)
    return SyntheticSet(
        {**packed, **scalars}, classes, class_names, codec, preprocess, space=codec.space
    )
