"""`estimate RECIPE [flags]`: what buffer, distill and evaluate will cost here; --json PATH."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic

import tyro

import ddengine
from buffers.open import EXPERTS
from ddengine.commands.options import Machine, OfRecipe, RecipeT, of_recipe, stores_of
from ddengine.commands.process import alone
from ddengine.plan import estimate as plan
from ddengine.recipe import to_dict
from ddengine.system import files, log


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of estimate, then those of the recipe."""

    out: Path | None = None  # folder of runs, whose free disk is looked at; None: runs
    # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    experts: Path | None = None
    compile: bool = False  # compile the inner training step
    json: Path | None = None  # file to write the numbers to
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    began = time.perf_counter()
    options = of_recipe("estimate", args, EstimateOptions)
    parsing = time.perf_counter() - began
    if options is None:
        return
    path = options.json
    if path is not None:
        plan.check_path(path)
    alone("estimate")
    outcome = ddengine.estimate(
        None,
        options.recipe,
        stores_of(options, options.experts),
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        folders=(options.experts or EXPERTS, options.out or Path("runs")),
        parsing=parsing,
    )
    log.console.print(outcome.table())
    for line in outcome.notes:
        log.say(line)
    if path is not None:
        files.make_folder(path.parent)
        files.write_json(path, {"recipe": to_dict(options.recipe), **outcome.content})
