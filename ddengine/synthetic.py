"""The distilled set: what is learned, and the folder that is shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ddengine import codec as codecs
from ddengine import files
from ddengine.data import Data, Preprocess
from ddengine.errors import UserError
from ddengine.init import INITIALISERS
from ddengine.models import build_model
from ddengine.recipe import Recipe, to_dict
from ddengine.types import Batch, Experts, TargetKind

FORMAT = 1  # of the folder

LOAD_PY = '''"""The distilled set as ready-to-train tensors. Needs torch and safetensors, nothing else.

    from load import load
    images, targets, info = load()          # images as the network should see them, targets as the loss should

info["lr"] is the learned learning rate (None without one), info["classes"] names the classes, and info["preprocess"](pixels) brings
real images with values in [0, 1], shape (B, C, H, W), into the same form: use it on the test images.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent


{decode}

def preprocess(pixels, tensors):
    if "preprocess.matrix" in tensors:  # ZCA whitening
        flat = (pixels.flatten(1) - tensors["preprocess.mean"]) @ tensors["preprocess.matrix"]
        return flat.view_as(pixels)
    return (pixels - tensors["preprocess.mean"].view(-1, 1, 1)) / tensors["preprocess.std"].view(-1, 1, 1)


def load(folder=FOLDER):
    tensors = load_file(str(Path(folder) / "data.safetensors"))
    meta = json.loads((Path(folder) / "meta.json").read_text())
    images, item = decode(tensors)
    if meta["space"] == "pixel":
        images = preprocess(images, tensors)
    # soft labels as probabilities, which torch's cross_entropy takes in place of classes
    targets = tensors["logits"].softmax(1) if meta["target_kind"] == "logits" else tensors["classes"]
    if meta["target_kind"] == "class" or meta["label_of"] == "stored":
        targets = targets[item]
    info = {{
        "lr": tensors["lr"].item() if "lr" in tensors else None,
        "classes": meta["class_names"],
        "preprocess": lambda pixels: preprocess(pixels, tensors),
    }}
    return images, targets, info


if __name__ == "__main__":
    images, targets, info = load()
    print(tuple(images.shape), images.dtype, "images of", len(info["classes"]), "classes, learned lr", info["lr"])
'''


@dataclass
class SyntheticSet:
    """Stored tensors, and everything needed to train on them.

    `tensors` holds "images" (as the codec wants them), "lr" () when a learning rate is learned, and what methods add. `classes` (S,) is
    int64, always. space "pixel": values in [0, 1], preprocessed after decoding; "model": already what networks see.
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

    def with_labels(self, logits: Tensor) -> "SyntheticSet":
        """The same set with soft labels: logits (N, K), one of each decoded example."""
        label_of: Literal["stored", "decoded"] = "stored" if self.codec.per_item == 1 else "decoded"
        return replace(self.with_tensors({"logits": logits}), target_kind="logits", label_of=label_of)

    def batch(self, index: Tensor) -> Batch:
        """Decoded, preprocessed examples at `index` (B,) of N, differentiable in the tensors; targets are classes or label logits."""
        index = index.to(self.classes.device)
        images = self.codec.decode(self.tensors, index)
        if self.space == "pixel":
            images = self.preprocess.forward(images)
        item = self.source.index_select(0, index)
        if self.target_kind == "class":
            return Batch(images, self.classes.index_select(0, item))
        return Batch(images, self.tensors["logits"].index_select(0, index if self.label_of == "decoded" else item))

    def pixels(self) -> Tensor:
        """All decoded examples (N, C, H, W) as pixel values, for display; not clamped."""
        with torch.no_grad():
            images = self.codec.decode(self.tensors, torch.arange(len(self), device=self.classes.device))
            return images if self.space == "pixel" else self.preprocess.backward(images)

    def images_per_class(self) -> float:
        """Stored image-sized items per class; labels are counted apart."""
        return len(self.tensors["images"]) / len(self.class_names)

    def nbytes(self) -> dict[str, int]:
        """Bytes of images, labels, other, and their total; beside it preprocess (can be fitted again) and raw (the last iterate of an average)."""
        sizes = {k: v.numel() * v.element_size() for k, v in self.tensors.items()}
        raw = sum(sizes.pop(k) for k in list(sizes) if k.startswith("raw."))
        labels = self.classes.numel() * self.classes.element_size() + sizes.get("logits", 0)
        images = sizes.get("images", 0)
        other = sum(sizes.values()) - images - sizes.get("logits", 0)
        preprocess = sum(v.numel() * v.element_size() for v in self.preprocess.tensors().values())
        return {"images": images, "labels": labels, "other": other, "total": images + labels + other, "preprocess": preprocess, "raw": raw}

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write the folder that explains itself, replacing an older one: data.safetensors, meta.json, images/, load.py."""
        from ddengine.compat import torchvision  # only here: pictures

        with files.replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            files.write_tensors(temporary / "data.safetensors", self.tensors | {"classes": self.classes} | self.preprocess.tensors())
            own = {
                "format": FORMAT,
                "class_names": list(self.class_names),
                "codec": {"type": type(self.codec).__name__, **to_dict(self.codec)},
                "target_kind": self.target_kind,
                "label_of": self.label_of,
                "space": self.space,
                "bytes": self.nbytes(),
                "images_per_class": self.images_per_class(),
            }
            files.write_json(temporary / "meta.json", own | dict(meta))
            (temporary / "load.py").write_text(LOAD_PY.format(decode=self.codec.loader()))
            classes = self.classes[self.source].tolist()
            for i, (image, c) in enumerate(zip(self.pixels().clamp(0, 1).cpu(), classes, strict=True)):
                name = "".join(ch if ch.isalnum() or ch in "-_" else "_" for ch in self.class_names[c])
                path = temporary / "images" / f"{c:04d}_{name}" / f"{i:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                torchvision.utils.save_image(image, path)


def initial(recipe: Recipe, data: Data, rng: Generator, experts: Experts | None = None) -> SyntheticSet:
    """The set before the first step, labelled with classes: initial images, and what the objective learns beside them."""
    device = data.train.device
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    per_class = recipe.ipc * recipe.codec.per_item
    fewest = min(len(members) for members in data.train.members)
    if recipe.ipc <= fewest < per_class and recipe.init.kind != "noise":
        raise UserError(
            f"ipc {recipe.ipc} of {recipe.codec.per_item} tiles each starts from {per_class} images per class, and a class has {fewest}; "
            "lower ipc or codec.factor, or raise data.limit."
        )
    images = INITIALISERS[recipe.init.kind](data.train, per_class, data.class_names, rng, recipe.init, experts, new_model)
    scalars = {k: torch.tensor(v, device=device) for k, v in recipe.objective.initial().items()}
    classes = torch.arange(data.num_classes, device=device).repeat_interleave(recipe.ipc)
    return SyntheticSet(
        {"images": coded(recipe.codec, images, data.train.preprocess), **scalars}, classes, data.class_names, recipe.codec, data.train.preprocess,
        space=recipe.codec.space,
    )  # fmt: skip


def coded(codec: codecs.Codec, images: Tensor, preprocess: Preprocess) -> Tensor:
    """Preprocessed images (S * codec.per_item, C, H, W), those of an item in a row, as the codec stores them (S, C, H, W)."""
    tensors = {"images": codec.pack(preprocess.backward(images) if codec.space == "pixel" else images)}
    codec.project(tensors)
    return tensors["images"]


CODECS = {"Identity": codecs.Identity, "MultiFormation": codecs.MultiFormation}


def load(folder: Path, device: torch.device) -> tuple[SyntheticSet, dict[str, Any]]:
    """A distilled set from its folder, and its meta.json. Raises UserError for a folder that is not one."""
    if not (folder / "meta.json").is_file():
        run = folder.parent if folder.name == "distilled" else folder
        if (run / "checkpoint").is_dir():
            raise UserError(f"{run} is not a distilled set yet, its run is unfinished; continue it with the same distill command.")
        raise UserError(f"{folder} is not a distilled set (it has no meta.json); give the folder that distill wrote, or the run that holds it.")
    meta = files.read_json(folder / "meta.json")
    tensors, _ = files.read_tensors(folder / "data.safetensors")
    try:
        options = dict(meta["codec"])
        codec = CODECS[options.pop("type")](**options)
        preprocess = Preprocess.from_tensors(tensors)
        if "images" not in tensors:
            raise KeyError("images")
        labelled = len(codec.source(tensors)) if meta["label_of"] == "decoded" else len(tensors["classes"])
        if meta["target_kind"] == "logits" and tensors["logits"].shape != (labelled, len(meta["class_names"])):
            raise UserError(
                f"{folder} has labels of shape {tuple(tensors['logits'].shape)} for {labelled} images "
                f"of {len(meta['class_names'])} classes; distil or import it again."
            )
        own = {k: v.to(device) for k, v in tensors.items() if k != "classes" and not k.startswith("preprocess.")}
        syn = SyntheticSet(
            own, tensors["classes"].to(device), tuple(meta["class_names"]), codec, preprocess.to(device),
            meta["target_kind"], meta["label_of"], meta["space"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} was not written by this version of the engine ({error!r} is missing or unknown); distil it again.") from None
    return syn, meta
