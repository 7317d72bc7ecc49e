"""Merge."""

from dataclasses import dataclass
from pathlib import Path

from ddengine.artefact import folder as set_folders
from ddengine.artefact import merging
from ddengine.commands import cli
from ddengine.commands.options import paths_of
from ddengine.system import files, log, program
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Flags of merge."""

    out: Path | None = None  # folder to write


def main(args: list[str]) -> None:
    """Make one distilled folder of several of one dataset; classes are matched by name."""
    paths = paths_of(args, "merge", "the folders of runs or distilled sets")
    options = cli.parse(MergeOptions, args[len(paths) :], MergeOptions(), "merge SET SET ...")
    if options.out is None:
        raise UserError(f"{program.name()} merge needs a folder to write; name it with --out.")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} exists already; name another folder with --out.")
    merged = merging.merge_folders(paths)
    files.make_folder(options.out.parent)
    set_folders.save(merged.syn, options.out, merged.meta)
    classes = len(merged.syn.class_names)
    log.say(f"{len(merged.syn)} images of {classes} classes in {options.out}")
    root = [] if merged.root is None else ["--data.root", merged.root]
    log.say(f"evaluate them with {program.as_typed('evaluate', str(options.out), *root)}")
