"""Estimate."""

import time
from functools import partial
from pathlib import Path

import torch

import ddengine
from buffers.open import EXPERTS
from buffers.train import train_expert
from ddengine.api.evaluate import protocol_of
from ddengine.api.inputs import Source
from ddengine.commands.options import options_of, print_config
from ddengine.commands.process import one_process
from ddengine.commands.words import taken_flag
from ddengine.plan import estimate as costs
from ddengine.plan import jobs
from ddengine.prepare import check_networks
from ddengine.recipe import EvalConfig
from ddengine.system.errors import UserError


def main(args: list[str]) -> None:
    """Say what buffer, distill and evaluate of a recipe will cost on this machine, from a short
    calibration; --json PATH writes it too.
    """
    began = time.perf_counter()
    paths, words = taken_flag(args, "--json")
    options = options_of("estimate", words)
    parsing = time.perf_counter() - began
    if "" in paths:
        raise UserError("--json needs the path of the file to write.")
    path = Path(paths[-1]) if paths else None
    recipe = options.recipe
    if options.print_config:
        return print_config(recipe)
    if path is not None:
        costs.check_path(path)
    device = one_process(options, "estimate")
    stores, source = options.stores(), Source(recipe.data)
    data = source.load(torch.device("cpu"), stores.preprocess)
    check_networks(recipe, data)
    missing = stores.missing(data.train.digest)
    job = jobs.Job(
        recipe=recipe,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        load=partial(source.load, stored=stores.preprocess),
        open_store=stores.open,
        train_expert=train_expert,
        protocol_of=protocol_of_folder,
        parsing=parsing,
    )
    costs.show(
        job,
        missing,
        recipe,
        device,
        experts=options.experts or EXPERTS,
        run=options.out or Path("runs"),
        path=path,
    )


def protocol_of_folder(folder: Path) -> EvalConfig:
    """What the evaluate command takes for a distilled folder."""
    return protocol_of(ddengine.load(folder))
