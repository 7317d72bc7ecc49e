"""The distilled set: what is learned, and the folder that is shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from ddengine.data import Data, Preprocess
from ddengine.models import build_model
from ddengine.recipe import Recipe
from ddengine.sets.codec import Codec
from ddengine.sets.coreset import TrainNetworks
from ddengine.sets.start import INITIALISERS
from ddengine.system.errors import UserError
from ddengine.types import Batch, Experts, TargetKind

LABELS = ("logits", "logits.index")  # tensors that go into a file of their own


@dataclass
class SyntheticSet:
    """Stored tensors, and everything needed to train on them.

    `tensors` holds "images" (as the codec wants them), "lr" () when a learning rate is learned, and
    what methods add. `classes` (S,) is int64, always. space "pixel": values in [0, 1], preprocessed
    after decoding; "model": already what networks see.
    """

    tensors: dict[str, Tensor]
    classes: Tensor
    class_names: tuple[str, ...]
    codec: Codec
    preprocess: Preprocess
    target_kind: TargetKind = "class"
    label_of: Literal["stored", "decoded"] = "stored"
    space: Literal["pixel", "model"] = "model"

    def __len__(self) -> int:
        """N, the number of decoded training examples."""
        return len(self.source)

    @property
    def source(self) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        return self.codec.source(self.tensors)

    @property
    def lr(self) -> float | None:
        """The learned learning rate, None without one."""
        return float(self.tensors["lr"]) if "lr" in self.tensors else None

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "SyntheticSet":
        """The same set holding other tensors (of an inner loop, of a running average)."""
        return replace(self, tensors={**self.tensors, **tensors})

    def with_labels(
        self, logits: Tensor, dtype: torch.dtype = torch.float32, top: int | None = None
    ) -> "SyntheticSet":
        """The same set with soft labels: logits (N, K), one of each decoded example.

        With `top`, "logits" holds the so many largest of each and then the mean of the others (N,
        top + 1), and "logits.index" whose they are: at a high temperature, where labels are as good
        as their logits, no other single number is nearer to what is left out.
        """
        label_of: Literal["stored", "decoded"] = (
            "stored" if len(logits) == len(self.classes) else "decoded"
        )
        stored = {"logits": logits.to(dtype)}
        num_classes = len(self.class_names)
        short = (
            torch.uint8
            if num_classes <= 256
            else torch.int16
            if num_classes < 2**15
            else torch.int32
        )
        # else nothing would be saved
        if (
            top is not None
            and (top + 1) * dtype.itemsize + top * short.itemsize < num_classes * dtype.itemsize
        ):
            values, index = logits.topk(top, dim=1)
            rest = (logits.sum(1, keepdim=True) - values.sum(1, keepdim=True)) / (num_classes - top)
            stored = {
                "logits": torch.cat([values, rest], 1).to(dtype),
                "logits.index": index.to(short),
            }
        without = {k: v for k, v in self.tensors.items() if k not in LABELS}
        return replace(self, tensors=without | stored, target_kind="logits", label_of=label_of)

    def as_labelled(self, logits: Tensor) -> Tensor:
        """Logits (N, K) as they would be after they were stored like the labels of this set."""
        if self.target_kind == "class":
            return logits
        index = self.tensors.get("logits.index")
        stored = self.with_labels(
            logits, self.tensors["logits"].dtype, None if index is None else index.shape[1]
        )
        return stored.logits

    def shipped(self) -> "SyntheticSet":
        """The set as it is stored in the end, by its codec."""
        codec, tensors = self.codec.ship(self.tensors, self.preprocess)
        return replace(self, codec=codec, tensors=tensors, space=codec.space)

    @property
    def logits(self) -> Tensor:
        """The soft labels (N or S, K); of some largest logits the others are their mean."""
        stored = self.tensors["logits"]
        stored = stored.float() if stored.dtype == torch.float16 else stored
        if "logits.index" not in self.tensors:
            return stored
        index = self.tensors["logits.index"].long()
        return stored[:, -1:].expand(-1, len(self.class_names)).scatter(1, index, stored[:, :-1])

    def batch(self, index: Tensor) -> Batch:
        """Decoded, preprocessed examples at `index` (B,) of N, differentiable in the tensors;
        targets are classes or label logits.
        """
        index = index.to(self.classes.device)
        images = self.codec.decode(self.tensors, index)
        if self.space == "pixel":
            images = self.preprocess.forward(images)
        item = self.source.index_select(0, index)
        classes = self.classes.index_select(0, item)
        if self.target_kind == "class":
            return Batch(images, classes, classes)
        return Batch(
            images,
            self.logits.index_select(0, index if self.label_of == "decoded" else item),
            classes,
        )

    def pixels(self, index: Tensor | None = None) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) as pixel values, for display; not clamped.

        None: all of them.
        """
        with torch.no_grad():
            index = torch.arange(len(self)) if index is None else index
            images = self.codec.decode(self.tensors, index.to(self.classes.device))
            return images if self.space == "pixel" else self.preprocess.backward(images)

    def images_per_class(self) -> float:
        """Stored image-sized items per class, compensators among them; labels are counted apart."""
        return (len(self.tensors["images"]) + len(self.tensors.get("compensators", ()))) / len(
            self.class_names
        )

    def nbytes(self) -> dict[str, int]:
        """Bytes of images, compensators, labels, other, and their total.

        Beside it preprocess (can be fitted again) and raw (the last iterate of an average).
        """
        sizes = {k: v.numel() * v.element_size() for k, v in self.tensors.items()}
        raw = sum(sizes.pop(k) for k in list(sizes) if k.startswith("raw."))
        ledger = {
            "images": sizes.pop("images", 0),
            "compensators": sizes.pop("compensators", 0),
            "labels": self.classes.numel() * self.classes.element_size()
            + sum(sizes.pop(k, 0) for k in LABELS),
            "other": sum(sizes.values()),
        }
        preprocess = sum(v.numel() * v.element_size() for v in self.preprocess.tensors().values())
        return ledger | {"total": sum(ledger.values()), "preprocess": preprocess, "raw": raw}


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
    codec, items = recipe.codec.fit(recipe.ipc, data.num_classes)
    per_class = items * codec.per_item
    fewest = min(len(members) for members in data.train.members)
    if items <= fewest < per_class and recipe.init.kind != "noise":
        raise UserError(
            f"ipc {recipe.ipc} of {codec.per_item} tiles each starts from {per_class} images per "
            f"class, and a class has {fewest}; "
            "lower ipc or codec.factor, or raise data.limit."
        )
    images = INITIALISERS[recipe.init.kind](
        data.train,
        per_class,
        data.class_names,
        rng,
        recipe.init,
        experts,
        new_model,
        train_networks,
    )
    scalars = {k: torch.tensor(v, device=device) for k, v in recipe.objective.initial().items()}
    classes = torch.arange(data.num_classes, device=device).repeat_interleave(items)
    return coded(codec, images, classes, data.class_names, data.train.preprocess, scalars)


def coded(
    codec: Codec,
    images: Tensor,
    classes: Tensor,
    class_names: tuple[str, ...],
    preprocess: Preprocess,
    scalars: Mapping[str, Tensor] = {},
) -> SyntheticSet:
    """A set of preprocessed images (S * codec.per_item, C, H, W), those of an item in a row, as the
    codec, fitted to its budget, stores them.
    """
    tensors = codec.pack(
        preprocess.backward(images) if codec.space == "pixel" else images,
        len(class_names),
        preprocess,
    )
    return SyntheticSet(
        {**tensors, **scalars}, classes, class_names, codec, preprocess, space=codec.space
    )
