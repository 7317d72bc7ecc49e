"""Estimate."""

import time
from functools import partial
from pathlib import Path

import torch

from buffers.open import EXPERTS
from buffers.train import train_expert
from ddengine.api.inputs import Source
from ddengine.commands.evaluate import set_options
from ddengine.commands.options import options_of, print_config
from ddengine.commands.process import one_process
from ddengine.plan import estimate as costs
from ddengine.prepare import check_networks
from ddengine.system.errors import UserError


def main(args: list[str]) -> None:
    """Say what buffer, distill and evaluate of a recipe will cost on this machine, from a short
    calibration; --json PATH writes it too.
    """
    words = [
        word for arg in args for word in (arg.split("=", 1) if arg.startswith("--json=") else [arg])
    ]
    at = words.index("--json") if "--json" in words else len(words)
    path, began = words[at + 1 : at + 2], time.perf_counter()
    options, parsing = (
        options_of("estimate", words[:at] + words[at + 2 :]),
        time.perf_counter() - began,
    )
    if at < len(words) and not path:
        raise UserError("--json needs the path of the file to write.")
    recipe = options.recipe
    if options.print_config:
        return print_config(recipe)
    if path:
        costs.check_path(Path(path[0]))
    device = one_process(options, "estimate")
    stores, source = options.stores(), Source(recipe.data)
    data = source.load(torch.device("cpu"), stores.preprocess)
    check_networks(recipe, data)
    missing = stores.missing(data.train.digest)
    job = costs.Job(
        recipe=recipe,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        load=partial(source.load, stored=stores.preprocess),
        open_store=stores.open,
        train_expert=train_expert,
        set_options=set_options,
        parsing=parsing,
    )
    costs.show(
        job,
        missing,
        recipe,
        device,
        experts=options.experts or EXPERTS,
        run=options.out or Path("runs"),
        path=Path(path[0]) if path else None,
    )
