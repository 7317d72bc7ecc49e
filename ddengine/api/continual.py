"""Class-incremental learning with memories of equal bytes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddengine.api.checks import check_folder, check_recipe, check_run
from ddengine.api.distill import distill_data
from ddengine.api.inputs import AUTO, Images, dataset_of, pointed_at
from ddengine.api.keeping import content_of, kept_in
from ddengine.api.outcomes import Outcome
from ddengine.artefact import runs
from ddengine.data import Data
from ddengine.pages import of_continual
from ddengine.prepare import check_networks, reads_experts
from ddengine.recipe import Recipe
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log, runtime
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from ddengine.uses import continual as learning
from ddengine.uses.continual import ContinualConfig

MARK = "continual.recipe.json"
FILE = "continual.json"
PARTIAL = "continual.partial.jsonl"  # what is finished of a run that is not done


def continual(
    data: Images,
    recipe: Recipe,
    config: ContinualConfig = ContinualConfig(),
    *,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    command: Sequence[str] = (),
) -> Outcome:  # long: its arguments are explained
    """A network that learns classes in stages, with distilled, random and herding memories.

        ddengine.continual(ddengine.Dataset.named("digits"), recipe, folder="runs/stages")

    Args:
        data: as `distill` takes it, with test images.
        recipe: how each stage's memory is distilled; its ipc follows from the budget of bytes.
        config: stages, budget, memories and how they are stored.
        folder: where continual.json and continual.png are written, and an interrupted run is
            continued; "auto" is the one that the command line would name; None leaves nothing.
        seed: decides the order of the classes and every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: begin anew, deleting what the folder holds.
        command: the words by which a command line asked for this.

    Raises:
        UserError: a recipe that needs experts, a budget that is too small, a folder of something
            else.
    """
    check_recipe(recipe)
    check_run(seed, precision)
    if not isinstance(config, ContinualConfig):
        raise UserError(f"config is {config!r}; give a ddengine.ContinualConfig.")
    if folder != AUTO:
        check_folder(folder)
    _check_experts(recipe, config)
    with log.shown(progress):
        recipe, source = pointed_at(_within_pixels(recipe, config), dataset_of(data))
        where = runtime.setup(device, precision)
        loaded = source.load(where, test=True)
        check_networks(recipe, loaded)
        learning.check(loaded, recipe, config)
        said = {"continual": to_dict(config), "seed": seed, "precision": precision}
        wanted = runs.identity(recipe, loaded.train.digest, **said)
        learn = partial(_learned, loaded, recipe, config, seed, where, precision)
        with kept_in(
            folder, recipe, wanted, command="continual", use="continual", mark=MARK, restart=restart
        ) as path:
            content = _content(path, learn, command)
        table, notes = partial(of_continual.table, content), tuple(of_continual.notes(content))
        return Outcome(content, _rows(content), table, notes, path)


def _check_experts(recipe: Recipe, config: ContinualConfig) -> None:
    """Raise UserError for a recipe whose experts would be of other classes at every stage."""
    if "distilled" in config.memories and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts, of each stage's classes; take one of a "
            "method without, such as dm/fashion_mnist_ipc10_small."
        )


def _content(
    folder: Path | None, learn: Callable[[Path], dict[str, Any]], command: Sequence[str]
) -> Mapping[str, Any]:
    """The content of continual.json, with the picture beside it.

    `learn` takes the file in which finished stages are remembered.
    """

    def make(place: Path) -> dict[str, Any]:
        return learn(place / PARTIAL)

    unfinished = (PARTIAL, learning.NETWORKS)
    content = content_of(
        folder, FILE, make, keys=("memories",), command=command, unfinished=unfinished
    )
    if folder is not None:
        of_continual.plot(folder / "continual.png", content)
    return content


def _learned(
    data: Data,
    recipe: Recipe,
    config: ContinualConfig,
    seed: int,
    device: torch.device,
    precision: Precision,
    memo_path: Path,
) -> dict[str, Any]:
    """The learning itself."""

    def distilled(of: Data, small: Recipe, seed: int, name: str) -> SyntheticSet:
        return distill_data(of, small, seed=seed, device=device, precision=precision)

    return learning.run(
        data,
        recipe,
        config,
        distilled,
        seed=seed,
        device=device,
        precision=precision,
        memo_path=memo_path,
    )


def _within_pixels(recipe: Recipe, config: ContinualConfig) -> Recipe:
    """The recipe whose images stay within what a memory of bytes can hold, which is said."""
    within = learning.within_pixels(recipe, config)
    if within != recipe:
        log.say(
            "images are distilled within the range of pixels (codec.bounded), because the memory "
            "keeps 8 bits; --continual.store float32 does not"
        )
    return within


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a memory."""
    return [{"memory": name, **facts} for name, facts in content["memories"].items()]
