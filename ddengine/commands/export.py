"""`export SET --format FORMAT --out FOLDER`: a set, or a store, as files of other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from buffers.exchange import PER_FILE, export
from ddengine.artefact.export import Format
from ddengine.artefact.runs import is_set
from ddengine.artefact.tars import PER_SHARD
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Waits
from ddengine.system import log


def is_store(path: Path) -> bool:
    """Whether a path is that of experts or of a set."""
    return (path / "manifest.json").is_file() or is_set(path)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Waits):
    """Flags of export."""

    # mtt: the files of MTT, FTD, TESLA and DATM | webdataset: a tar, or several, of 8-bit PNGs |
    # folders: such PNGs in a folder for each class, called as the class is | imagefolder: the same,
    # with the number of the class before its name | hub: a dataset of the Hugging Face Hub
    format: Format = "mtt"
    out: Path | None = None  # folder to write
    per_file: int = PER_FILE  # experts in a file of mtt
    per_shard: int = PER_SHARD  # images in a tar of webdataset
    title: str | None = None  # of the card of hub
    license: str | None = None  # of the set, for the card of hub, such as cc-by-4.0


COMMAND = OnPaths(
    "export",
    ExportOptions,
    what="the folder of an expert store, a run or a distilled set",
    is_meant=is_store,
)


def main(args: list[str]) -> None:
    """Write an expert store, a run or a distilled folder as files of the published programs.

    A run or a distilled folder can be written as image files and as a dataset of the Hub, too.
    """
    path, flags = COMMAND.path(args)
    options = COMMAND.parse(path, flags)
    out = cli.needed_folder(options.out, "export")
    written = export(
        path,
        options.format,
        out,
        per_file=options.per_file,
        per_shard=options.per_shard,
        title=options.title,
        license=options.license,
    )
    log.say(said(written, out))


def said(written: Sequence[Path], folder: Path) -> str:
    """What was written into a folder, or that it is what was written."""
    if written == [folder]:
        return f"written: {folder}"
    more = " ..." if len(written) > 3 else ""
    return f"{', '.join(path.name for path in written[:3])}{more} in {folder}"
