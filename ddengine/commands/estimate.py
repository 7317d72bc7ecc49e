"""Estimate."""

import time
from pathlib import Path

import torch

from buffers.store import (
    finished,
)
from buffers.train import train_expert
from ddengine.api import check_networks
from ddengine.commands.evaluate import set_options
from ddengine.commands.options import options_of, print_config
from ddengine.commands.process import one_process
from ddengine.commands.stores import EXPERTS, load_for, open_store, store_folders
from ddengine.plan import estimate as costs
from ddengine.plan import jobs
from ddengine.recipe import EvalConfig
from ddengine.system.errors import UserError


def protocol_of(folder: Path) -> EvalConfig:
    """The protocol by which the evaluate command looks at a distilled set."""
    return set_options(folder, [])[2].evaluation


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
    data, missing = load_for(options, torch.device("cpu")), {}
    check_networks(recipe, data)
    if recipe.buffer is not None:
        for model, folder, _ in store_folders(options, data.train.digest):
            missing[model] = max(0, recipe.buffer.num_experts - len(finished(folder)))
    job = jobs.job(
        options,
        load_for,
        open_store,
        EXPERTS,
        train_expert=train_expert,
        protocol_of=protocol_of,
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
