"""`privacy SET [flags]`: the real images nearest to the distilled ones; does membership show?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import ddengine
from ddengine.api.evaluate import data_settings, protocol_of
from ddengine.commands import DEMO, cli
from ddengine.commands.options import SET, path_of
from ddengine.commands.process import alone
from ddengine.commands.words import asks_help, taken_paths
from ddengine.recipe import DataConfig
from ddengine.system import log
from ddengine.system.runtime import Precision
from synth.catalogue import find


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions:
    """Flags of privacy."""

    seed: int = 0  # decides networks, orders and which images are compared
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of privacy.json; None: the run, or the distilled folder
    model: str  # the network in whose embedding images are compared, and which is attacked
    full_steps: int  # most updates of the network that embeds, on the full data
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    if asks_help(args) and not taken_paths(args, lambda path: False)[0]:
        recipe = find(DEMO)
        steps = recipe.evaluation.full_steps
        general = PrivacyOptions(model=recipe.model, full_steps=steps, data=recipe.data)
        cli.parse(PrivacyOptions, ["--help"], general, "privacy SET")
    path, flags = path_of(args, "privacy", SET)
    of = ddengine.load(path)
    steps = protocol_of(of).full_steps
    model = of.meta["recipe"]["model"]
    defaults = PrivacyOptions(model=model, full_steps=steps, data=data_settings(of))
    options = cli.parse(PrivacyOptions, flags, defaults, f"privacy {path}")
    alone("privacy")
    outcome = ddengine.privacy(
        of,
        options.data,
        model=options.model,
        full_steps=options.full_steps,
        folder=options.out,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
    )
    log.console.print(outcome.table())
