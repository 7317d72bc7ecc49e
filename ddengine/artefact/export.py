"""A set as files of other programs, chosen by the name of a format."""

from pathlib import Path
from typing import Literal

import torch

from ddengine.artefact import exchange, hub, image_folder, runs, tars
from ddengine.artefact import folder as folders
from ddengine.artefact.markdown import at
from ddengine.artefact.owner import OwnersWords
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.types import Meta

# mtt: the files of MTT, FTD, TESLA and DATM | webdataset: a tar, or several, of 8-bit PNGs |
# folders: such PNGs in a folder for each class, called as the class is | imagefolder: the same,
# with the number of the class before its name | hub: a dataset of the Hugging Face Hub
Format = Literal["mtt", "webdataset", "folders", "imagefolder", "hub"]


def export(
    path: Path,
    format: Format,
    out: Path,
    *,
    per_shard: int = tars.PER_SHARD,
    words: OwnersWords = OwnersWords(),
) -> list[Path]:
    """Write a run or the folder of a set into the folder `out`, and return what was written.

    Experts are exported by `buffers.exchange.export`, which calls this function for anything else.

    Args:
        path: a run, or the folder of a set.
        format: mtt, webdataset, folders, imagefolder or hub.
        out: the folder to write.
        per_shard: examples in a tar of webdataset.
        words: title and licence for the card of hub.

    Raises:
        UserError: a path that holds no set, a format that there is not or that has no card for the
            owner's words, and files that exist already.
    """
    if words and format != "hub":
        raise UserError(
            f"--title and --license go into a card, and format {format} has none; set --format "
            "hub, or leave them out."
        )
    source = runs.set_folder(path)
    if not (source / "meta.json").is_file():
        if (path / "manifest.json").is_file():
            raise UserError(
                f"{path} holds experts, and this writes sets; call buffers.export for experts."
            )
        raise UserError(
            f"{path} is neither an expert store nor a distilled set; give the folder that "
            "buffer, distill or import wrote."
        )
    syn, meta = folders.load(source, torch.device("cpu"))
    if format == "webdataset":
        files.make_folder(out)
        return tars.write_webdataset(syn, out / "train.tar", per_shard)
    if format in ("folders", "imagefolder"):
        return [image_folder.write_image_folder(syn, out, by_name=format == "folders")]
    if format == "hub":
        return [hub.write_hub_folder(source, syn, out, words)]
    if format != "mtt":
        raise UserError(
            f"There is no format {format!r}; choose mtt, webdataset, folders, imagefolder or hub."
        )
    written = exchange.export_set(syn, set_name(source, meta), out)
    if len(syn) > len(syn.classes):
        log.say(
            f"{len(syn.classes)} stored images are written as the {len(syn)} that they decode "
            "to; such files have no codec"
        )
    return written


def set_name(folder: Path, meta: Meta) -> str:
    """The X of images_X.pt: the outer steps of a set of this program, or its origin.

    Raises UserError where meta.json says neither.
    """
    for origin in ("imported", "selected"):
        if origin in meta:
            return origin
    try:
        return str(int(at(meta, "recipe", "outer", "steps")))
    except (TypeError, ValueError):
        raise UserError(
            f"{folder / 'meta.json'} does not say the recipe of the set, so its files have no "
            "name; distill it again."
        ) from None
