"""`estimate RECIPE [flags]`: what buffer, distill and evaluate will cost here; --json PATH."""

import time
from pathlib import Path

import ddengine
from buffers.open import EXPERTS
from ddengine.commands.options import options_of, print_config
from ddengine.commands.process import alone
from ddengine.commands.words import taken_flag
from ddengine.plan import estimate as plan
from ddengine.recipe import to_dict
from ddengine.system import files, log
from ddengine.system.errors import UserError


def main(args: list[str]) -> None:
    """The command."""
    began = time.perf_counter()
    paths, words = taken_flag(args, "--json")
    options = options_of("estimate", words)
    parsing = time.perf_counter() - began
    if "" in paths:
        raise UserError("--json needs the path of the file to write.")
    path = Path(paths[-1]) if paths else None
    if options.print_config:
        return print_config(options.recipe)
    if path is not None:
        plan.check_path(path)
    alone("estimate")
    outcome = ddengine.estimate(
        None,
        options.recipe,
        options.stores(),
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
