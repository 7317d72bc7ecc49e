"""The dataset card of a set: what meta.json says, in words, as README.md in its folder.

The text is templates/card.md.jinja; `CardFacts` is what it says of this set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ddengine import naming
from ddengine.artefact import loader, markdown
from ddengine.artefact.eight_bit import Exported
from ddengine.artefact.markdown import at
from ddengine.artefact.parquet import PARQUET
from ddengine.artefact.target_network import target_in_words, target_network
from ddengine.data.dataset import PEOPLES
from ddengine.evaluation import protocol as protocols
from ddengine.sets.synthetic import SyntheticSet, counted
from ddengine.system.log import size
from ddengine.types import Facts, Meta

CARD = "README.md"
SHOWN_CLASSES = 100  # class names in the card
# around the parts of the card that an evaluation replaces
BEGIN, END = "<!-- results -->", "<!-- /results -->"
PROTOCOL_BEGIN, PROTOCOL_END = "<!-- protocol -->", "<!-- /protocol -->"

# The licences of source images that are known, as Hugging Face writes them, and in words. All
# others are said to be unknown.
LICENCES = {
    "digits": (
        "cc-by-4.0",
        "The source images, Optical Recognition of Handwritten Digits of the UCI repository, are "
        "under CC BY 4.0.",
    ),
    "fashion_mnist": ("mit", "The source images, Fashion-MNIST, are under the MIT licence."),
}
UNKNOWN = (
    "unknown",
    "The licence of the source images is not known to the program that wrote this; find it out "
    "before passing the set on.",
)
# Hugging Face's words for numbers of examples, each with the first number that is too large for it.
SIZE_CATEGORIES = {
    "n<1K": 10**3,
    "1K<n<10K": 10**4,
    "10K<n<100K": 10**5,
    "100K<n<1M": 10**6,
    "1M<n<10M": 10**7,
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says, under the names that its template has for it."""

    title: str
    source: str | None  # the dataset or folder that the set was made of
    selected: Any  # how real images were chosen; none for distilled ones
    imported: str | None  # files of another program that the set was imported from
    num_merged: int  # sets that the set was merged from
    licence: str
    licence_in_words: str
    size_category: str
    parquet: str  # path of the parquet file in the folder
    examples: int  # decoded ones
    natural: int  # of them, how many are real images stored as they are
    num_classes: int
    classes: tuple[str, ...]  # names of the first SHOWN_CLASSES
    soft: bool  # whether the labels are logits
    weighted: bool  # whether they are weights of the classes
    features_of: str | None  # the network whose features the targets are; None: they are not
    width: int  # of the features; of classes and logits how many classes there are
    labels_share: str  # percent of the stored bytes that labels are
    column: str | None  # of targets in the parquet file; None: they are classes
    networks: tuple[str, ...]  # that the set was made for
    about: tuple[tuple[str, Any], ...]  # table under "What it is"
    mean: list[float] | None  # of each channel; None for whitened images
    std: list[float] | None
    exact: bool  # whether 8 bits hold everything
    clamped: str  # percent of the pixel values that were cut off
    largest_change: str  # by the 8 bits, of 255 steps
    trained_on: str | None  # the section on the protocol; None: not known
    begin: str = BEGIN
    end: str = END
    total_bytes: str
    bytes_by_part: str
    raw_bytes: str | None  # of the training images in use
    split_bytes: str | None  # of the whole training split, where it is larger
    cites: tuple[Any, ...]  # keys of the works that the set stands on
    bibtex: str | None
    made: tuple[tuple[str, Any], ...]  # table under "Reproducibility"


def card(syn: SyntheticSet, meta: Meta, export: Exported) -> str:
    """The dataset card.

    YAML that makes `datasets.load_dataset(folder)` read the parquet file, then what meta.json says,
    in words.
    """
    return markdown.render("card.md.jinja", vars(facts_of(syn, meta, export)))


def facts_of(syn: SyntheticSet, meta: Meta, export: Exported) -> CardFacts:
    """What the card says of a set; `meta` is the content of its meta.json."""
    source = _source(meta)
    dataset = _text(at(meta, "recipe", "data", "name"))
    licence, licence_in_words = LICENCES.get(dataset or "", UNKNOWN)
    imported = at(meta, "imported", "files")
    mean, std = _normalisation(syn)
    sizes = syn.sizes()
    raw_bytes, split_bytes = _bytes_of_source(meta)
    trained_on = at(meta, "protocol")
    bibtex = _text(at(meta, "bibtex"))
    return CardFacts(
        title=_title(syn, meta, source),
        source=source,
        selected=at(meta, "selected", "kind"),
        imported=", ".join(map(str, imported)) if imported else None,
        num_merged=_num_merged(meta),
        licence=licence,
        licence_in_words=licence_in_words,
        size_category=size_category(len(syn)),
        parquet=PARQUET,
        examples=len(syn),
        natural=syn.codec.natural(syn.tensors),
        num_classes=len(syn.class_names),
        classes=syn.class_names[:SHOWN_CLASSES],
        soft=syn.targets.soft,
        weighted=syn.targets.of_classes and not syn.targets.soft,
        features_of=target_in_words(target_network(meta)) if syn.targets.regressed else None,
        width=syn.num_outputs,
        labels_share=f"{100 * sizes['labels'] / sizes['total']:.3g}",
        column=syn.targets.column,
        networks=_networks(meta),
        about=_about(syn, meta),
        mean=mean,
        std=std,
        exact=export.exact,
        clamped=f"{100 * export.clamped:.3g}",
        largest_change=f"{255 * export.largest_error:.3g}",
        trained_on=trained_section(trained_on) if isinstance(trained_on, Mapping) else None,
        total_bytes=size(sizes["total"]),
        bytes_by_part=bytes_by_part(sizes),
        raw_bytes=raw_bytes,
        split_bytes=split_bytes,
        cites=_sequence(at(meta, "recipe", "cites")),
        bibtex=bibtex.strip() if bibtex else None,
        made=_made(meta),
    )


def size_category(num: int) -> str:
    """Hugging Face's word for so many examples."""
    for word, limit in SIZE_CATEGORIES.items():
        if num < limit:
            return word
    return "10M<n<100M"


def bytes_by_part(sizes: Facts) -> str:
    """What the tensors of a set take, part by part, without parts that it does not have."""
    parts = []
    for part, num in counted(sizes).items():
        if num:
            parts.append(f"{part} {size(num)}")
    return ", ".join(parts)


def trained_section(protocol: Facts) -> str:
    """The part of the card that says by which protocol networks are trained on the set.

    The marks by which it is found again are around it.
    """
    facts = {
        "begin": PROTOCOL_BEGIN,
        "end": PROTOCOL_END,
        "facts": protocols.words(protocol),
        "trainable": loader.trainable(protocol),
    }
    return markdown.render("trained_on.md.jinja", facts).removesuffix("\n")


# Facts, one by one


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _source(meta: Meta) -> str | None:
    """What the source images are called: their dataset, or for a user's own their folder.

    None where nothing is known but that they were a user's own.
    """
    dataset = _text(at(meta, "recipe", "data", "name"))
    return _text(at(meta, "source")) or (None if dataset in PEOPLES else dataset)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else ()


def _num_merged(meta: Meta) -> int:
    return len(_sequence(at(meta, "merged")))


def _title(syn: SyntheticSet, meta: Meta, source: str | None) -> str:
    """Such as "Distilled digits, 1 image per class"."""
    num_merged = _num_merged(meta)
    if num_merged:
        title = f"Merged from {num_merged} sets"
        if source is not None:
            title += f" of {source}"
    else:
        kind = "Selected" if at(meta, "selected", "kind") else "Distilled"
        title = f"{kind} set" if source is None else f"{kind} {source}"
    per_class = f"{syn.images_per_class():.4g}"
    if per_class == "1":
        return f"{title}, 1 image per class"
    return f"{title}, {per_class} images per class"


def _about(syn: SyntheticSet, meta: Meta) -> tuple[tuple[str, Any], ...]:
    """The table of what the set is and how it was made."""
    method = steps = None
    if not at(meta, "selected", "kind") and not at(meta, "imported", "files"):
        method = at(meta, "recipe", "objective", "type")
        steps = at(meta, "recipe", "outer", "steps")
    shape = "x".join(map(str, syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:]))
    labels = syn.targets.words
    if syn.targets.soft:
        labels = f"soft labels, {len(syn.class_names)} logits each"
    if syn.targets.of_classes and not syn.targets.soft:
        labels = f"{syn.targets.words}, {len(syn.class_names)} each, which need not add up to one"
    if syn.targets.regressed:
        network = target_in_words(target_network(meta))
        labels = f"features of {network}, {syn.num_outputs} numbers each"
    return (
        ("recipe", at(meta, "recipe", "name")),
        ("method", method),
        ("source images", _source(meta) or at(meta, "recipe", "data", "name")),
        ("images per class (budget)", at(meta, "recipe", "ipc")),
        ("network", _in_turn(meta)),
        ("teachers", ", ".join(map(naming.in_words, _teachers(meta))) or None),
        ("outer steps", steps),
        ("learned learning rate", None if syn.lr is None else f"{syn.lr:.6g}"),
        ("stored as", _stored_as(syn)),
        ("training examples", f"{len(syn)} of {shape} (channels x height x width)"),
        ("labels", labels),
    )


def _teachers(meta: Meta) -> tuple[str, ...]:
    return tuple(map(str, _sequence(at(meta, "recipe", "teachers"))))


def _drawn(meta: Meta) -> tuple[str, ...]:
    """The network of the recipe, and those that took turns with it."""
    name = _text(at(meta, "recipe", "model"))
    if name is None:
        return ()
    return (name, *map(str, _sequence(at(meta, "recipe", "more_models"))))


def _networks(meta: Meta) -> tuple[str, ...]:
    """The networks that the set was made for."""
    return _teachers(meta) or _drawn(meta)


def _in_turn(meta: Meta) -> str | None:
    """The network that the set was made with, or several, and which of a library's each is."""
    networks = list(map(naming.in_words, _drawn(meta)))
    if len(networks) > 1:
        return f"{', '.join(networks)}, in turn"
    return ", ".join(networks) or None


def _stored_as(syn: SyntheticSet) -> str:
    """The parametrisation, and how many tensors of images it keeps."""
    stored = f"{type(syn.codec).__name__}, {len(syn.classes)} images"
    if syn.codec.natural(syn.tensors):
        stored += f" and {len(syn.tensors['compensators'])} others"
    return stored


def _normalisation(syn: SyntheticSet) -> tuple[list[float] | None, list[float] | None]:
    """(mean, standard deviation) of the channels to six digits; None where images are whitened."""
    if syn.preprocess.std is None:
        return None, None
    return _six_digits(syn.preprocess.mean), _six_digits(syn.preprocess.std)


def _six_digits(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.flatten().tolist()]


def _bytes_of_source(meta: Meta) -> tuple[str | None, str | None]:
    """(bytes of the training images in use, of the whole training split where they differ)."""
    raw, split = at(meta, "raw_bytes"), at(meta, "dataset_bytes")
    if not isinstance(raw, int) or raw <= 0:
        return None, None
    if not isinstance(split, int) or split == raw:
        return size(raw), None
    return size(raw), size(split)


def _made(meta: Meta) -> tuple[tuple[str, Any], ...]:
    """What is known of what it takes to make the set again."""
    rows = (
        ("seed", at(meta, "seed")),
        ("precision", at(meta, "precision")),
        ("digest of the training images", at(meta, "images")),
        ("commit", at(meta, "commit")),
        ("machine", markdown.words(at(meta, "machine"))),
        ("versions", markdown.words(at(meta, "versions"))),
        ("seconds of distillation", at(meta, "distillation", "seconds")),
    )
    return tuple(row for row in rows if row[1] is not None)
