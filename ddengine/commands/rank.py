"""Rank."""

from dataclasses import replace
from pathlib import Path

import torch

from ddengine.artefact import folder as set_folders
from ddengine.commands.evaluate import evaluation_in, set_options
from ddengine.commands.options import SET, paths_of
from ddengine.system import files, log
from ddengine.system.errors import UserError


def rank(path: Path, args: list[str]) -> None:
    """Do networks trained on the set come in the order they have on the full data? ranking.json and
    ranking.png.
    """
    from ddengine.evaluation import ranking  # scipy.stats takes a second to import

    folder, meta, options = set_options(path, args, "rank")
    out, config = options.out or path, options.evaluation
    channels, height, width = (
        set_folders.load(folder, torch.device("cpu"))[0]
        .pixels(torch.zeros(1, dtype=torch.long))
        .shape[1:]
    )
    asked = (
        config.baselines
        if any(word.split("=")[0] == "--baselines" for word in args)
        else ("random", "herding")
    )
    config = replace(
        config,
        models=config.models or ranking.grid((channels, height, width)),
        baselines=(*(b for b in asked if b != "full"), "full"),
    )
    if len(set(config.models)) < ranking.FEWEST:
        raise UserError(
            f"--models names {len(set(config.models))} networks, and a ranking needs "
            f"{ranking.FEWEST}; name more, or none for twelve of ours."
        )
    options = replace(options, evaluation=config)
    evaluation = evaluation_in(
        out / "ranking",
        folder,
        meta,
        options,
        ("rank", str(path), *args),
        strict=True,
        command="rank",
    )
    found = ranking.correlations(evaluation, seed=options.seed)
    files.write_json(out / "ranking.json", found)
    ranking.plot(out / "ranking.png", evaluation, found)
    log.console.print(ranking.table(found))


def main(args: list[str]) -> None:
    """The command."""
    rank(paths_of(args[:1], "rank", SET)[0], args[1:])
