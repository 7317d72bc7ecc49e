"""`privacy SET [flags]`: the real images nearest to the distilled ones; does membership show?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import ddengine
from ddengine.api.evaluate import data_settings, protocol_of
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.commands.options import Machine
from ddengine.commands.process import alone
from ddengine.recipe import DataConfig, Recipe


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions(Machine):
    """Flags of privacy."""

    out: Path | None = None  # folder of privacy.json; None: the run, or the distilled folder
    model: str  # the network in whose embedding images are compared, and which is attacked
    full_steps: int  # most updates of the network that embeds, on the full data
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]


def _by_recipe(recipe: Recipe) -> PrivacyOptions:
    """The options, by what a recipe says."""
    steps = recipe.evaluation.full_steps
    return PrivacyOptions(model=recipe.model, full_steps=steps, data=recipe.data)


COMMAND = OnPaths("privacy", PrivacyOptions, by_recipe=_by_recipe)


def main(args: list[str]) -> None:
    """The command."""
    path, flags = COMMAND.path(args)
    of = ddengine.load(path)
    steps, model = protocol_of(of).full_steps, of.meta["recipe"]["model"]
    defaults = PrivacyOptions(model=model, full_steps=steps, data=data_settings(of))
    options = COMMAND.parse(path, flags, defaults)
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
    cli.show(outcome)
