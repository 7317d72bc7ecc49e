"""`advise [--data...] [--minutes N]`: which recipes suit images and a time, and what to expect."""

from dataclasses import dataclass

import buffers
import ddengine
from ddengine.artefact.runs import RUNS
from ddengine.commands import cli
from ddengine.commands.process import alone
from ddengine.data.dataset import LAYOUTS
from ddengine.recipe import DataConfig
from ddengine.system import log
from ddengine.system.errors import UserError
from synth.measured import candidates


@dataclass(frozen=True, kw_only=True)
class AdviseOptions:
    """Flags of advise."""

    minutes: float | None = None  # for experts and distillation; None: as long as it takes
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    data: DataConfig = DataConfig(name="folder")


def main(args: list[str]) -> None:
    """The command."""
    options = cli.parse(AdviseOptions, args, AdviseOptions(), "advise")
    alone("advise")
    if options.data.root is None and options.data.name in LAYOUTS:
        raise UserError(
            "advise needs your images: name their folder with --data.root, or a dataset that is "
            "known with --data.name."
        )
    outcome = ddengine.advise(
        options.data,
        candidates(options.data.name),
        minutes=options.minutes,
        experts=buffers.stores,
        device=options.device,
        calibrations=RUNS / ".calibrations",
    )
    log.console.print(outcome.table())
    for line in outcome.notes:
        log.say(line)
