"""Demo."""

from dataclasses import replace
from pathlib import Path

from ddengine.api import check_networks
from ddengine.artefact import runs
from ddengine.commands import report
from ddengine.commands.buffer import buffer
from ddengine.commands.distill import distill
from ddengine.commands.evaluate import evaluate_path
from ddengine.commands.options import DEMO, options_of, print_config
from ddengine.commands.process import one_process
from ddengine.commands.stores import run_identity
from ddengine.data import load_data
from ddengine.system import log


def main(args: list[str]) -> None:
    """Digits, one image per class: buffers, distillation, evaluation, pictures."""
    options = options_of("demo", args, fixed=DEMO)
    if options.print_config:
        return print_config(options.recipe)
    folder = options.out or Path("runs/demo")
    if options.experts is not None:
        log.say(f"warning: --experts is ignored, demo makes its own in {folder / 'experts'}")
    device = one_process(options, "demo")
    data = load_data(options.recipe.data, device)
    check_networks(options.recipe, data)
    if options.restart:
        runs.delete(folder, runs.MARK, beside="experts")
    options = replace(options, out=None, experts=None, restart=False)
    # refuses a folder of something else
    runs.is_finished(
        folder, run_identity(options, data.train.digest, folder / "experts"), beside="experts"
    )
    buffer(options, folder / "experts")
    distill(replace(options, out=folder), folder / "experts")
    flags = [
        "--seed",
        str(options.seed),
        "--device",
        options.device,
        "--precision",
        options.precision,
    ]
    evaluation = evaluate_path(folder, flags)
    report.main([str(folder)])
    log.say(
        f"pictures: {folder / 'real_vs_distilled.png'} and {folder / 'progress'}; the set: "
        f"{folder / 'distilled'}"
    )
    log.say(f"{log.duration(evaluation['seconds'])} in all")
