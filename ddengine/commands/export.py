"""Export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from buffers.exchange import export_experts
from ddengine.artefact import exchange, image_folder, runs, tars
from ddengine.artefact import folder as set_folders
from ddengine.commands import cli
from ddengine.commands.options import is_set, path_of
from ddengine.system import files, log, program
from ddengine.system.errors import UserError


def is_store(path: Path) -> bool:
    """Whether a path is that of experts or of a set."""
    return (path / "manifest.json").is_file() or is_set(path)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Flags of export."""

    # mtt: the files of MTT, FTD, TESLA and DATM | webdataset: a tar, or several, of 8-bit PNGs |
    # imagefolder: such PNGs in a folder for each class
    format: Literal["mtt", "webdataset", "imagefolder"] = "mtt"
    out: Path | None = None  # folder to write
    per_file: int = 10  # experts in a file of mtt
    per_shard: int = 10_000  # images in a tar of webdataset


def export(path: Path, args: list[str]) -> None:
    """Write an expert store, a run or a distilled folder as files of the published programs, a run
    or a distilled folder as image files.
    """
    options = cli.parse(ExportOptions, args, ExportOptions(), f"export {path}")
    if options.out is None:
        raise UserError(f"{program.name()} export needs a folder to write; name it with --out.")
    if (path / "manifest.json").is_file():
        if options.format != "mtt":
            raise UserError(
                f"{path} holds experts, and format {options.format} is one of images; set "
                "--format mtt."
            )
        written = export_experts(path, options.out, options.per_file)
    else:
        folder = runs.set_folder(path)
        if not (folder / "meta.json").is_file():
            raise UserError(
                f"{path} is neither an expert store nor a distilled set; give the folder that "
                "buffer, distill or import wrote."
            )
        syn, meta = set_folders.load(folder, torch.device("cpu"))
        if options.format == "webdataset":
            files.make_folder(options.out)
            written = tars.write_webdataset(syn, options.out / "train.tar", options.per_shard)
        elif options.format == "imagefolder":
            written = [image_folder.write_image_folder(syn, options.out)]
        else:
            written = exchange.export_set(syn, set_name(folder, meta), options.out)
        if options.format == "mtt" and len(syn) > len(syn.classes):
            log.say(
                f"{len(syn.classes)} stored images are written as the {len(syn)} that they decode "
                "to; such files have no codec"
            )
    log.say(
        f"{', '.join(p.name for p in written[:3])}{' ...' if len(written) > 3 else ''} in "
        f"{options.out}"
    )


def set_name(folder: Path, meta: dict[str, Any]) -> str:
    """The X of images_X.pt: the outer steps of a set of this program, or that it was imported or
    selected.
    """
    for origin in ("imported", "selected"):
        if origin in meta:
            return origin
    try:
        return str(int(meta["recipe"]["outer"]["steps"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / 'meta.json'} does not say the recipe of the set, so its files have no "
            "name; distill it again."
        ) from None


def main(args: list[str]) -> None:
    """The command."""
    path, flags = path_of(
        args, "export", "the folder of an expert store, a run or a distilled set", is_store
    )
    export(path, flags)
