"""Train and store experts."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from buffers.experts import generate
from buffers.store import (
    ExpertStore,
)
from ddengine.api import check_networks
from ddengine.artefact import runs
from ddengine.commands.options import Options, of_recipe
from ddengine.commands.process import on_first_rank, start
from ddengine.commands.stores import EXPERTS, load_for, store_folders
from ddengine.models import build_model
from ddengine.recipe import (
    Recipe,
)  # fmt: skip
from ddengine.system import log
from ddengine.system.errors import UserError


def buffer(options: Options[Recipe], root: Path = EXPERTS) -> None:
    """Train the recipe's experts, trajectories or teachers, and store them."""
    recipe = options.recipe
    if recipe.buffer is None:
        raise UserError(f"The recipe {recipe.name} needs no experts; run distill.")
    if options.compile:
        log.say("warning: --compile is ignored, experts are trained uncompiled")
    if options.tensorboard:
        log.say("warning: --tensorboard is ignored, it shows distillations")
    device = start(options)
    data = load_for(options, device, root)
    stores = store_folders(
        replace(options, experts=options.out or options.experts), data.train.digest, root
    )
    check_networks(recipe, data)
    try:
        recipe.objective.check(recipe.buffer.kept_epochs())
    except UserError as error:  # the store is still good for other recipes
        log.say(f"warning: {error}")
    if options.restart:
        for _, folder, _ in stores:
            on_first_rank(lambda folder=folder: runs.check_own(folder, "manifest.json"))
        for _, folder, _ in stores:
            on_first_rank(lambda folder=folder: runs.delete(folder, "manifest.json"))
    for name, folder, _ in stores:
        new_model = partial(build_model, name, data.image_shape, data.num_classes)
        generate(
            data,
            recipe.data,
            recipe.buffer,
            name,
            new_model,
            folder,
            seed=options.seed,
            precision=options.precision,
        )
        store = ExpertStore(folder)
        scores = [
            a
            for i in range(store.num_experts)
            for a in store.metrics(i)["validation_accuracy"][-1:]
            if a is not None
        ]
        shown = (
            f", validation accuracy {100 * sum(scores) / len(scores):.1f} % after the last epoch"
            if scores
            else ""
        )
        what = f"{store.num_experts} experts of {recipe.buffer.epochs} epochs" + (
            f", teachers {name}," if recipe.teachers else ""
        )
        log.say(f"{what} in {folder}{shown}")


def main(args: list[str]) -> None:
    """The command."""
    if (options := of_recipe("buffer", args)) is not None:
        buffer(options)
