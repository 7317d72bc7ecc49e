"""`estimate RECIPE... [flags]`: what buffer, distill and evaluate will cost here; --json PATH.

Flags behind several recipes are for all of them, which have one table.
"""

import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Generic

import tyro

import ddengine
from ddengine.artefact.runs import EXPERTS, RUNS
from ddengine.commands import cli
from ddengine.commands.on_recipe import of_recipe, stores_of
from ddengine.commands.options import ForNetworks, Machine, OfRecipe, RecipeT
from ddengine.commands.process import alone
from ddengine.commands.words import is_flag
from ddengine.plan import estimate as plan
from ddengine.system import files
from ddengine.system.configs import to_dict


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(OfRecipe, ForNetworks, Machine, Generic[RecipeT]):
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
    asked = asked_for(args)
    parsing = time.perf_counter() - began
    if not asked:
        return
    options = asked[0]
    if options.json is not None:
        plan.check_path(options.json)
    alone("estimate")
    recipes = [each.recipe for each in asked]
    stores = [stores_of(each, each.experts) for each in asked]
    is_one = len(asked) == 1
    outcome = ddengine.estimate(
        None,
        recipes[0] if is_one else recipes,
        stores[0] if is_one else stores,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        folders=(options.experts or EXPERTS, options.out or RUNS),
        parsing=parsing,
    )
    cli.show(outcome)
    if options.json is not None:
        files.make_folder(options.json.parent)
        said = {"recipe": to_dict(options.recipe)} if is_one else {}
        files.write_json(options.json, {**said, **outcome.content})


def asked_for(args: list[str]) -> list[EstimateOptions[Any]]:
    """The options of every recipe of a line, which has names and then flags for all of them.

    Empty where a flag asks for something else, which was shown.
    """
    names, flags = taken_names(args)
    lines = [args] if len(names) < 2 else [[name, *flags] for name in names]
    parsed = [of_recipe("estimate", line, EstimateOptions) for line in lines]
    return [options for options in parsed if options is not None]


def taken_names(args: list[str]) -> tuple[list[str], list[str]]:
    """(names of recipes, flags) of a line that begins with names."""
    names = list(takewhile(lambda word: not is_flag(word), args))
    return names, args[len(names) :]
