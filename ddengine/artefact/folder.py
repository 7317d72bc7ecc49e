"""The folder that is shipped: a set is saved into it and loaded from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine import contents, naming
from ddengine.artefact import handover, listing, loader
from ddengine.artefact.card import CARD
from ddengine.artefact.parquet import PARQUET
from ddengine.data import Preprocess
from ddengine.data.stored import check_numbers
from ddengine.evaluation import protocol
from ddengine.sets.codec import Codec, codec_of
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import LABELS, targets_of
from ddengine.system import files, log
from ddengine.system.configs import to_dict
from ddengine.system.digests import KEY
from ddengine.system.errors import UserError
from ddengine.system.runtime import check_memory
from ddengine.types import Facts, Json, Meta

FORMAT = naming.FORMAT  # of the folder; 1 had soft labels among the other tensors
DATA = "data.safetensors"
LABELS_FILE = "labels.safetensors"
# what torch and codecs say of tensors whose counts do not fit each other
UNFIT = (RuntimeError, IndexError, ValueError, ArithmeticError, AttributeError)
# of what a set stores
KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE_KINDS = (torch.uint8, torch.int16, torch.int32, torch.int64)
# what cannot say a digest of itself
LISTED = ("images", PARQUET, CARD, "load.py")
AGAIN = "restore the file, or distill or import the set again"


def save(
    syn: SyntheticSet,
    folder: Path,
    meta: Meta,
    splits: Facts | None = None,
) -> None:
    """Write the folder that explains itself, replacing an older one.

    data.safetensors, labels.safetensors, meta.json and load.py; images/, a parquet file and
    README.md, the card, with pixels of 8 bits; splits.json, which real images are validation
    and test images (`Data.split_names`), where `splits` says it. Files without digests of their
    own are listed with them (`listing.py`).
    """
    with files.replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        labels, others = dict[str, Tensor](), dict[str, Tensor]()
        for name, tensor in syn.tensors.items():
            (labels if name in LABELS else others)[name] = tensor
        others |= {"classes": syn.classes} | syn.preprocess.tensors()
        digests = {DATA: files.write_tensors(temporary / DATA, others)}
        of_labels = None
        if labels:
            # a row belongs to an image, whatever the shapes say
            of_labels = files.tensor_digest(labels)
            path = temporary / LABELS_FILE
            digests[LABELS_FILE] = files.write_tensors(path, labels, {"digest": of_labels})
        facts = _facts(syn, of_labels) | dict(meta)
        facts |= {"digests": digests, "set_digest": files.tensor_digest(syn.tensors)}
        facts.pop("protocol", None)  # of the set that this one was made of
        trained = protocol.of_set(facts, len(syn), targets=syn.targets, learned=syn.lr)
        if trained is not None:
            facts["protocol"] = trained
        files.write_json(temporary / "meta.json", facts)
        if splits:
            files.write_json(temporary / "splits.json", splits)
        files.write_text(temporary / "load.py", load_py(syn, trained))
        handover.write(temporary, syn, facts)
        listing.write(temporary, [temporary / name for name in LISTED])


def _facts(syn: SyntheticSet, labels_digest: str | None) -> Json:
    """What meta.json says of the set itself."""
    return {
        "format": FORMAT,
        "class_names": list(syn.class_names),
        "codec": {"type": type(syn.codec).__name__, **to_dict(syn.codec)},
        "target_kind": syn.targets.kind,
        "label_of": syn.targets.label_of,
        "space": syn.space,
        "labels_digest": labels_digest,
        "bytes": syn.sizes(),
        "images_per_class": syn.images_per_class(),
    }


def load_py(syn: SyntheticSet, trained: Facts | None) -> str:
    """The text of the shipped load.py.

    `trained` is the protocol that meta.json says, None where it says none.
    """
    shipped = loader.Shipped(
        decode=syn.codec.loader(),
        codec=to_dict(syn.codec),
        pixels=syn.space == "pixel",
        whitened=syn.preprocess.matrix is not None,
        kind=syn.targets.kind,
        protocol=trained,
    )
    return loader.source(shipped)


def load(folder: Path, device: torch.device) -> tuple[SyntheticSet, Json]:
    """A distilled set from its folder, and its meta.json.

    Raises UserError for a folder that is not one, and for numbers that cannot be: what is not
    finite, a rate that is not positive, labels of classes that the set does not have, preprocessing
    that no images can have.
    """
    meta = _meta(folder)
    tensors = _tensors(folder, meta)
    try:
        syn = _set(folder, meta, tensors, device)
    except UserError:
        raise
    except (KeyError, TypeError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{folder / 'meta.json'} was not written by this version of the engine ({said}); "
            "restore it, or distill the set again."
        ) from None
    except UNFIT as error:
        said = str(error).partition("\n")[0]
        raise UserError(
            f"The tensors of {folder} and the codec in meta.json do not fit each other ({said}); "
            f"{AGAIN}."
        ) from None
    return syn, meta


def _meta(folder: Path) -> Json:
    """The content of meta.json. Raises UserError for a folder without, and for a newer format."""
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
    return naming.as_now(contents.checked(folder / "meta.json", meta))


def _tensors(folder: Path, meta: Any) -> dict[str, Tensor]:
    """All tensors of the folder. Raises UserError for labels of another set."""
    tensors, metadata = files.read_tensors(folder / DATA)
    path = folder / LABELS_FILE
    if not isinstance(meta, dict):
        return tensors
    stated = meta.get("digests")
    if not isinstance(stated, dict):
        log.say_once(
            f"warning: {folder} was written before sets had digests, so damage would not be noticed"
        )
        stated = {}
    _check_stated(folder / DATA, stated, metadata)
    if not path.is_file():
        return tensors
    labels, metadata = files.read_tensors(path)
    if meta.get("labels_digest") != files.tensor_digest(labels):
        raise UserError(
            f"{path} holds the labels of another set; put the file there that was written "
            "with this one, or distill it again."
        )
    _check_stated(path, stated, metadata)
    return tensors | labels


def _check_stated(path: Path, stated: Facts, metadata: Mapping[str, str]) -> None:
    """Raise UserError unless a file, which is as it says itself, is the one that meta.json says."""
    wanted = stated.get(path.name)
    if wanted is not None and metadata.get(KEY) != wanted:
        raise UserError(
            f"{path} is not the file that meta.json beside it was written with; {AGAIN}."
        )


def _set(
    folder: Path, meta: Meta, tensors: dict[str, Tensor], device: torch.device
) -> SyntheticSet:
    """The set of these tensors, checked.

    Raises KeyError and TypeError for what another version wrote, UserError for what cannot be.
    """
    codec = codec_of(meta["codec"])
    preprocess = Preprocess.from_tensors(tensors, str(folder / DATA))
    class_names = tuple(meta["class_names"])
    _check_tensors(folder / DATA, tensors, codec)
    items = codec.source(tensors)
    _check_counts(folder, len(class_names), items, tensors["classes"])
    check_numbers_of_set(folder, tensors, codec, len(class_names))
    targets = targets_of(meta["target_kind"], meta["label_of"])
    labelled = len(items) if targets.label_of == "decoded" else len(tensors["classes"])
    flaw = targets.flaw(tensors, labelled, len(class_names))
    if flaw is not None:
        raise UserError(f"{folder} {flaw}")
    stored = dict[str, Tensor]()
    for name, tensor in tensors.items():
        if name != "classes" and not name.startswith("preprocess."):
            stored[name] = tensor.to(device)
    with torch.no_grad():
        ends = torch.tensor([0, len(items) - 1], device=device)
        first = codec.decode(stored, ends)
    if not first.is_floating_point() or not first.numel():
        raise UserError(f"{folder / DATA} holds no numbers that are images; {AGAIN}.")
    check_numbers(preprocess, tuple(first.shape[1:]))
    return SyntheticSet(
        stored,
        tensors["classes"].to(device),
        class_names,
        codec,
        preprocess.to(device),
        targets,
        meta["space"],
    )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], codec: Codec) -> None:
    """Raise UserError for tensors of other types or dimensions than the codec has.

    And for a codec that would decode them to more than there is memory for.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (*KINDS, *WHOLE_KINDS):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path} holds {name!r} of type {kind}, as no set has; {AGAIN}.")
    for name, dims in {**codec.dims(tensors), "classes": 1}.items():
        if name not in tensors:
            raise UserError(f"{path} has lost {name!r}; {AGAIN}.")
        shape = tuple(tensors[name].shape)
        if len(shape) != dims or 0 in shape:
            raise UserError(
                f"{path} holds {name!r} of shape {shape}, which should have {dims} dimensions and "
                f"numbers in it; {AGAIN}."
            )
    check_memory(f"What {path} says with codec {codec}", codec.memory(tensors), AGAIN)


def _check_counts(folder: Path, num_classes: int, items: Tensor, classes: Tensor) -> None:
    """Raise UserError unless there are classes, and one for each stored item."""
    if not num_classes:
        raise UserError(f"{folder / 'meta.json'} names no classes (class_names); {AGAIN}.")
    stored = int(items.max()) + 1 if len(items) else 0
    if classes.dtype != torch.int64 or stored != len(classes):
        kind = str(classes.dtype).removeprefix("torch.")
        raise UserError(
            f"{folder / DATA} holds {stored} stored images and {len(classes)} numbers of type "
            f"{kind} in 'classes', which are as many whole numbers; {AGAIN}."
        )


def check_numbers_of_set(
    folder: Path, tensors: Mapping[str, Tensor], codec: Codec, num_classes: int
) -> None:
    """Raise UserError unless what a set stores are numbers that can be used.

    Its preprocessing is checked elsewhere.
    """
    _check_finite(folder, tensors)
    path = folder / DATA
    flaw = codec.flaw(tensors)
    if flaw is not None:
        raise UserError(f"{path} {flaw}; {AGAIN}.")
    if "lr" in tensors:
        _check_rate(path, tensors["lr"])
    _check_classes(path, tensors, "classes", num_classes)
    _check_classes(folder / LABELS_FILE, tensors, "logits.index", num_classes)


def _check_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for numbers that are not finite."""
    for name, tensor in tensors.items():
        if name.startswith("preprocess.") or not tensor.is_floating_point():
            continue
        wrong = int((~tensor.isfinite()).sum())
        if wrong:
            path = folder / (LABELS_FILE if name in LABELS else DATA)
            raise UserError(
                f"{path} is damaged: {wrong} of the {tensor.numel()} numbers in {name!r} are not "
                f"finite; {AGAIN}."
            )


def _check_rate(path: Path, rate: Tensor) -> None:
    """Raise UserError unless a learned rate is one positive number."""
    if rate.numel() != 1:
        said = f"{rate.numel()} numbers"
    elif not float(rate) > 0:
        said = f"{float(rate):g}"
    else:
        return
    raise UserError(
        f"{path} says a learned learning rate of {said}, and a rate is one positive number; "
        f"{AGAIN}."
    )


def _check_classes(path: Path, tensors: Mapping[str, Tensor], name: str, num_classes: int) -> None:
    """Raise UserError where a tensor of classes names some that the set does not have."""
    if name not in tensors or not tensors[name].numel():
        return
    least, most = int(tensors[name].min()), int(tensors[name].max())
    if not 0 <= least <= most < num_classes:
        raise UserError(
            f"{path} names classes {least} to {most} "
            f"in {name!r}, and the set has {num_classes}, "
            f"counted from 0; {AGAIN}."
        )
