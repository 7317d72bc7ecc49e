"""`quantise SET --bits 2 --out FOLDER`: a finished set in fewer bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Waits
from ddengine.system import log, program


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions(Waits):
    """Flags of quantise."""

    bits: Literal[2, 3, 4, 8] = 2  # of a value
    region: Literal["patch", "channel", "image"] = "patch"  # what has a scale and a zero
    patch: int = 5  # side of a patch
    groups: int | None = None  # of regions that share a scale and a zero; none: each has its own
    bytes: int | None = None  # of the images at most: as many groups as fit are made
    # of a network that is trained on the set: steps in which the images come nearer to keeping its
    # features (published: 500, of ImageNet 2000), and their rate
    refine: int = 0
    refine_lr: float = 0.003
    seed: int = 0  # of that network
    out: Path | None = None  # folder to write


COMMAND = OnPaths("quantise", QuantiseOptions)


def main(args: list[str]) -> None:
    """The command."""
    path, flags = COMMAND.path(args)
    options = COMMAND.parse(path, flags)
    out = cli.needed_folder(options.out, "quantise")
    before = ddengine.load(path)
    small = ddengine.quantise(
        before,
        out,
        bits=options.bits,
        region=options.region,
        patch=options.patch,
        groups=options.groups,
        budget=options.bytes,
        refine=options.refine,
        refine_lr=options.refine_lr,
        seed=options.seed,
    )
    log.say(f"{before.nbytes:,} bytes became {small.nbytes:,} in {out}")
    log.say(f"evaluate it with {program.as_typed('evaluate', str(out))}")
