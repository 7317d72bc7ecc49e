"""The distilled set: what is learned, and the folder that is shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ddengine.artefact import loader
from ddengine.data import Data, Preprocess
from ddengine.data.stored import check_numbers
from ddengine.models import build_model
from ddengine.recipe import Recipe, to_dict
from ddengine.sets import codec as codecs
from ddengine.sets.start import INITIALISERS
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.types import Batch, Experts, TargetKind

FORMAT = 2  # of the folder; 1 had soft labels among the other tensors
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
    codec: codecs.Codec
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

    def save(
        self, folder: Path, meta: Mapping[str, Any], splits: Mapping[str, Any] | None = None
    ) -> None:
        """Write the folder that explains itself, replacing an older one.

        data.safetensors, labels.safetensors, meta.json and load.py; images/, a parquet file and
        README.md, the card, with pixels of 8 bits; splits.json, which real images are validation
        and test images (`Data.split_names`), where `splits` says it.
        """
        from ddengine.artefact import handover
        from ddengine.evaluation import protocol  # which are about sets like this one

        with files.replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            labels = {k: v for k, v in self.tensors.items() if k in LABELS}
            others = {k: v for k, v in self.tensors.items() if k not in LABELS} | {
                "classes": self.classes
            }
            files.write_tensors(temporary / "data.safetensors", others | self.preprocess.tensors())
            # a row belongs to an image, whatever the shapes say
            digest = files.tensor_digest(labels) if labels else None
            if digest is not None:
                files.write_tensors(temporary / "labels.safetensors", labels, {"digest": digest})
            own = {
                "format": FORMAT,
                "class_names": list(self.class_names),
                "codec": {"type": type(self.codec).__name__, **to_dict(self.codec)},
                "target_kind": self.target_kind,
                "label_of": self.label_of,
                "space": self.space,
                "labels_digest": digest,
                "bytes": self.nbytes(),
                "images_per_class": self.images_per_class(),
            }
            own |= dict(meta)
            trained = protocol.of_set(
                own, len(self), soft=self.target_kind == "logits", learned=self.lr
            )
            own.pop("protocol", None)  # of the set that this one was made of
            own |= {} if trained is None else {"protocol": trained}
            files.write_json(temporary / "meta.json", own)
            if splits:
                files.write_json(temporary / "splits.json", splits)
            files.write_text(temporary / "load.py", self.load_py(trained))
            handover.write(temporary, self, own)

    def load_py(self, trained: Mapping[str, Any] | None) -> str:
        """The text of the shipped load.py; `trained` is the protocol that meta.json says, None
        where it says none.
        """
        return loader.source(
            decode=self.codec.loader(),
            pixels=self.space == "pixel",
            whitened=self.preprocess.matrix is not None,
            soft=self.target_kind == "logits",
            per_item=self.label_of == "stored",
            protocol=trained,
        )


def initial(
    recipe: Recipe, data: Data, rng: Generator, experts: Experts | None = None
) -> SyntheticSet:
    """The set before the first step, labelled with classes: initial images, and what the objective
    learns beside them.
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
        data.train, per_class, data.class_names, rng, recipe.init, experts, new_model
    )
    scalars = {k: torch.tensor(v, device=device) for k, v in recipe.objective.initial().items()}
    classes = torch.arange(data.num_classes, device=device).repeat_interleave(items)
    return coded(codec, images, classes, data.class_names, data.train.preprocess, scalars)


def coded(
    codec: codecs.Codec,
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


CODECS = {
    "Identity": codecs.Identity,
    "Pixels": codecs.Pixels,
    "MultiFormation": codecs.MultiFormation,
    "Compensated": codecs.Compensated,
}


def load(folder: Path, device: torch.device) -> tuple[SyntheticSet, dict[str, Any]]:
    """A distilled set from its folder, and its meta.json.

    Raises UserError for a folder that is not one, and for numbers that cannot be: what is not
    finite, a rate that is not positive, labels of classes that the set does not have, preprocessing
    that no images can have.
    """
    if not (folder / "meta.json").is_file():
        run = folder.parent if folder.name == "distilled" else folder
        if (run / "checkpoint").is_dir():
            raise UserError(
                f"{run} is not a distilled set yet, its run is unfinished; continue it with the "
                "same distill command."
            )
        raise UserError(
            f"{folder} is not a distilled set (it has no meta.json); give the folder that distill "
            "wrote, or the run that holds it."
        )
    meta = files.read_json(folder / "meta.json")
    if isinstance(meta, dict) and isinstance(meta.get("format"), int) and meta["format"] > FORMAT:
        raise UserError(
            f"{folder} was written by a newer version of the engine (format {meta['format']}); "
            "read it with that."
        )
    tensors, _ = files.read_tensors(folder / "data.safetensors")
    if isinstance(meta, dict) and (folder / "labels.safetensors").is_file():
        labels, _ = files.read_tensors(folder / "labels.safetensors")
        if meta.get("labels_digest") != files.tensor_digest(labels):
            path = folder / "labels.safetensors"
            raise UserError(
                f"{path} holds the labels of another set; put the file there that was written "
                "with this one, or distill it again."
            )
        tensors |= labels
    try:
        options = dict(meta["codec"])
        codec = CODECS[options.pop("type")](**options)
        preprocess = Preprocess.from_tensors(tensors, str(folder / "data.safetensors"))
        if "images" not in tensors:
            raise KeyError("images")
        _check_numbers(folder, tensors, len(meta["class_names"]))
        if meta["target_kind"] == "logits" and "logits" not in tensors:
            raise UserError(
                f"{folder} has lost its soft labels, labels.safetensors; put the file back, or "
                "distill it again."
            )
        labelled = (
            len(codec.source(tensors)) if meta["label_of"] == "decoded" else len(tensors["classes"])
        )
        own = {
            k: v.to(device)
            for k, v in tensors.items()
            if k != "classes" and not k.startswith("preprocess.")
        }
        syn = SyntheticSet(
            own, tensors["classes"].to(device), tuple(meta["class_names"]), codec, preprocess.to(device),
            meta["target_kind"], meta["label_of"], meta["space"],
        )  # fmt: skip
        if syn.target_kind == "logits" and syn.logits.shape != (labelled, len(syn.class_names)):
            raise UserError(
                f"{folder} has labels of shape {tuple(syn.logits.shape)} for {labelled} images of "
                f"{len(syn.class_names)} classes; "
                "distill or import it again."
            )
        with torch.no_grad():
            check_numbers(
                preprocess,
                tuple(codec.decode(own, torch.zeros(1, dtype=torch.long, device=device)).shape[1:]),
            )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder} was not written by this version of the engine ({error!r} is missing or "
            "unknown); distill it again."
        ) from None
    return syn, meta


# of a stored value; pixels are at most 1, and networks see at most some thousands of what they are
# trained on
LARGEST = 1e6
AGAIN = "restore the file, or distill or import the set again"


def _check_numbers(folder: Path, tensors: Mapping[str, Tensor], num_classes: int) -> None:
    """Raise UserError unless what a set stores beside its preprocessing are numbers that can be
    used.
    """
    for name, tensor in tensors.items():
        if (
            not name.startswith("preprocess.")
            and tensor.is_floating_point()
            and not tensor.isfinite().all()
        ):
            path = folder / ("labels.safetensors" if name in LABELS else "data.safetensors")
            wrong = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{path} is damaged: {wrong} of the {tensor.numel()} numbers in {name!r} are not "
                f"finite; {AGAIN}."
            )
    path = folder / "data.safetensors"
    largest = (
        float(tensors["images"].abs().max())
        if tensors["images"].is_floating_point() and tensors["images"].numel()
        else 0.0
    )
    if largest > LARGEST:
        raise UserError(
            f"{path} holds values up to {largest:.3g} in 'images', which no image has; {AGAIN}."
        )
    if "lr" in tensors and not (tensors["lr"].numel() == 1 and float(tensors["lr"]) > 0):
        said = (
            f"{float(tensors['lr']):g}"
            if tensors["lr"].numel() == 1
            else f"{tensors['lr'].numel()} numbers"
        )
        raise UserError(
            f"{path} says a learned learning rate of {said}, and a rate is one positive number; "
            f"{AGAIN}."
        )
    if "unit" in tensors and not bool((tensors["unit"] > 0).all()):
        raise UserError(
            f"{path} says units of {tensors['unit'].tolist()} for compensators, and units are "
            f"positive; {AGAIN}."
        )
    for name, where in (("classes", path), ("logits.index", folder / "labels.safetensors")):
        if (
            name in tensors
            and tensors[name].numel()
            and not 0 <= int(tensors[name].min()) <= int(tensors[name].max()) < num_classes
        ):
            raise UserError(
                f"{where} names classes {int(tensors[name].min())} to {int(tensors[name].max())} "
                f"in {name!r}, and the set has {num_classes}, "
                f"counted from 0; {AGAIN}."
            )
