"""`thin SET --bytes N --out FOLDER`: a finished set with fewer images."""

from dataclasses import dataclass
from pathlib import Path

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Waits
from ddengine.system import log, program


@dataclass(frozen=True, kw_only=True)
class ThinOptions(Waits):
    """Flags of thin."""

    bytes: int | None = None  # of the set, labels apart: as many images stay as it holds
    items: int | None = None  # stored images that each class keeps, in place of bytes
    # of the images that go, the share that networks learn latest; the others are learnt first
    hardest: float = 0.5
    networks: int = 3  # trained on the set to tell which these are
    seed: int = 0  # decides how they are trained
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    out: Path | None = None  # folder to write


COMMAND = OnPaths("thin", ThinOptions)


def main(args: list[str]) -> None:
    """The command."""
    path, flags = COMMAND.path(args)
    options = COMMAND.parse(path, flags)
    out = cli.needed_folder(options.out, "thin")
    before = ddengine.load(path)
    fewer = ddengine.thin(
        before,
        out,
        items=options.items,
        budget=options.bytes,
        hardest=options.hardest,
        networks=options.networks,
        seed=options.seed,
        device=options.device,
    )
    log.say(
        f"{len(before.classes)} stored images of {before.nbytes:,} bytes became "
        f"{len(fewer.classes)} of {fewer.nbytes:,} in {out}"
    )
    log.say(f"evaluate it with {program.as_typed('evaluate', str(out))}")
