"""The folder that is shipped: a set is saved into it and loaded from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine.artefact import handover, loader
from ddengine.data import Preprocess
from ddengine.data.stored import check_numbers
from ddengine.evaluation import protocol
from ddengine.recipe import to_dict
from ddengine.sets.codec import CODECS
from ddengine.sets.synthetic import LABELS, SyntheticSet
from ddengine.system import files
from ddengine.system.errors import UserError

FORMAT = 2  # of the folder; 1 had soft labels among the other tensors


def save(
    syn: SyntheticSet,
    folder: Path,
    meta: Mapping[str, Any],
    splits: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder that explains itself, replacing an older one.

    data.safetensors, labels.safetensors, meta.json and load.py; images/, a parquet file and
    README.md, the card, with pixels of 8 bits; splits.json, which real images are validation
    and test images (`Data.split_names`), where `splits` says it.
    """
    with files.replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        labels = {k: v for k, v in syn.tensors.items() if k in LABELS}
        others = {k: v for k, v in syn.tensors.items() if k not in LABELS} | {
            "classes": syn.classes
        }
        files.write_tensors(temporary / "data.safetensors", others | syn.preprocess.tensors())
        # a row belongs to an image, whatever the shapes say
        digest = files.tensor_digest(labels) if labels else None
        if digest is not None:
            files.write_tensors(temporary / "labels.safetensors", labels, {"digest": digest})
        own = {
            "format": FORMAT,
            "class_names": list(syn.class_names),
            "codec": {"type": type(syn.codec).__name__, **to_dict(syn.codec)},
            "target_kind": syn.target_kind,
            "label_of": syn.label_of,
            "space": syn.space,
            "labels_digest": digest,
            "bytes": syn.nbytes(),
            "images_per_class": syn.images_per_class(),
        }
        own |= dict(meta)
        trained = protocol.of_set(own, len(syn), soft=syn.target_kind == "logits", learned=syn.lr)
        own.pop("protocol", None)  # of the set that this one was made of
        own |= {} if trained is None else {"protocol": trained}
        files.write_json(temporary / "meta.json", own)
        if splits:
            files.write_json(temporary / "splits.json", splits)
        files.write_text(temporary / "load.py", load_py(syn, trained))
        handover.write(temporary, syn, own)


def load_py(syn: SyntheticSet, trained: Mapping[str, Any] | None) -> str:
    """The text of the shipped load.py; `trained` is the protocol that meta.json says, None
    where it says none.
    """
    return loader.source(
        decode=syn.codec.loader(),
        pixels=syn.space == "pixel",
        whitened=syn.preprocess.matrix is not None,
        soft=syn.target_kind == "logits",
        per_item=syn.label_of == "stored",
        protocol=trained,
    )


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
