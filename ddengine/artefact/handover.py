"""What lies in the folder of a set for those who have no engine: pictures, parquet and a card.

All of these hold pixels of 8 bits. The exact tensors are in data.safetensors; the card says how far
the two are apart.
"""

from pathlib import Path

from ddengine.artefact.card import CARD, card
from ddengine.artefact.eight_bit import example_name, exported, png
from ddengine.artefact.image_folder import write_classes
from ddengine.artefact.parquet import PARQUET, write_parquet
from ddengine.sets.codec import as_bytes
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Meta


def write(folder: Path, syn: SyntheticSet, meta: Meta) -> None:
    """Put images/, the parquet file and the card into an existing folder.

    `meta` is the content of meta.json; the card says what is in it.
    """
    export = exported(syn)
    pngs = export.pngs
    natural = syn.codec.natural(syn.tensors)
    if natural:  # then sums with compensators are not written as images
        pngs = pngs[:natural]
        _write_compensators(folder / "images" / "compensators", syn)
    write_classes(folder / "images", syn.class_names, pngs, export.classes)
    write_parquet(folder / PARQUET, syn, export)
    (folder / CARD).write_bytes(card(syn, meta, export).encode())


def _write_compensators(folder: Path, syn: SyntheticSet) -> None:
    """Pictures of what is added to natural images, around grey."""
    folder.mkdir(parents=True)
    compensators = syn.tensors["compensators"].float()
    unit = syn.tensors["unit"].view(-1, 1, 1)
    added = 0.5 + compensators * unit
    for i, image in enumerate(added):
        name = f"{example_name(i, len(added))}.png"
        content = png(as_bytes(image))
        (folder / name).write_bytes(content)
