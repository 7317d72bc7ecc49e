"""`merge SET SET ... --out FOLDER`: sets of some classes each, or of the same, as one."""

from dataclasses import dataclass
from pathlib import Path

import ddengine
from ddengine.api.evaluate import data_settings
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Waits
from ddengine.system import log, program


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Waits):
    """Flags of merge."""

    out: Path | None = None  # folder to write
    # what networks see the images of all sets through: that of this run or set, or what is fitted
    # to this folder of images; None: that of the first set
    preprocess: Path | None = None


COMMAND = OnPaths(
    "merge", MergeOptions, what="the folders of runs or distilled sets", shown="SET SET..."
)


def main(args: list[str]) -> None:
    """The command."""
    paths, flags = COMMAND.paths(args)
    options = COMMAND.parse("SET SET...", flags)
    out = cli.needed_folder(options.out, "merge")
    merged = ddengine.merge(paths, out, preprocess=options.preprocess)
    log.say(f"{len(merged)} images of {len(merged.class_names)} classes in {out}")
    roots = {data_settings(ddengine.load(path)).root for path in paths}
    more = []
    if roots != {None}:
        (root,) = roots if len(roots) == 1 else ["IMAGES_OF_ALL_CLASSES"]
        more = ["--data.root", str(root)]
    log.say(f"evaluate them with {program.as_typed('evaluate', str(out), *more)}")
