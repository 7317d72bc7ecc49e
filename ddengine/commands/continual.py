"""Continual."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Generic

import tyro

from ddengine.api.distill import distill_data
from ddengine.artefact import runs
from ddengine.commands.options import RecipeT, options_of, print_config
from ddengine.commands.process import one_process
from ddengine.data import Data, load_data
from ddengine.pages import of_continual
from ddengine.prepare import check_networks, reads_experts
from ddengine.recipe import (
    Recipe,
    digest,
    to_dict,
)  # fmt: skip
from ddengine.sets import synthetic
from ddengine.sets.codec import Identity
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from ddengine.uses.continual import ContinualConfig


@dataclass(frozen=True, kw_only=True)
class ContinualOptions(Generic[RecipeT]):
    """Flags of continual: --continual.stages, --continual.budget and so on, then those of the
    recipe, whose ipc follows from the budget.
    """

    seed: int = 0  # decides the order of the classes and every random draw
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder to write; None: runs/continual-RECIPE-HASH
    restart: bool = False  # begin anew, deleting what the folder holds
    print_config: bool = False  # print the resolved recipe and stop
    continual: ContinualConfig = ContinualConfig()
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """Class-incremental learning with memories of equal bytes: continual.json and continual.png;
    the same command continues.
    """
    from ddengine.uses import continual

    options: ContinualOptions[Recipe] = options_of("continual", args, flags=ContinualOptions)
    recipe, config = options.recipe, options.continual
    if options.print_config:
        return print_config(recipe)
    if "distilled" in config.memories and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts, of each stage's classes; take one of a "
            "method without, such as dm/fashion_mnist_ipc10_small."
        )
    if (
        config.store == "uint8"
        and isinstance(recipe.codec, Identity)
        and not recipe.codec.bounded
        and not recipe.data.zca
    ):
        # the memory would cut what lies outside
        recipe = replace(recipe, codec=Identity(bounded=True))
        log.say(
            "images are distilled within the range of pixels (codec.bounded), because the memory "
            "keeps 8 bits; --continual.store float32 does not"
        )
    device = one_process(options, "continual")
    data = load_data(recipe.data, device, test=True)
    check_networks(recipe, data)
    continual.check(data, recipe, config)
    said = {"continual": to_dict(config), "seed": options.seed, "precision": options.precision}
    wanted = runs.identity(recipe, data.train.digest, **said)
    folder = (
        options.out or Path("runs") / f"continual-{recipe.name.replace('/', '-')}-{digest(wanted)}"
    )
    if options.restart:
        runs.delete(folder, "continual.recipe.json")
    runs.claim(folder, "continual.recipe.json", {"recipe": to_dict(recipe), **wanted})
    if (folder / "continual.json").is_file():
        result = files.read_json(folder / "continual.json", "memories")
        log.say(f"{folder / 'continual.json'} is there; --restart begins anew")
    else:

        def distill(of: Data, small: Recipe, seed: int, name: str) -> synthetic.SyntheticSet:
            return distill_data(of, small, seed=seed, device=device, precision=options.precision)

        result = continual.run(
            data,
            recipe,
            config,
            distill,
            seed=options.seed,
            device=device,
            precision=options.precision,
            memo_path=folder / "continual.partial.jsonl",
        )
        files.write_json(folder / "continual.json", result)
    of_continual.plot(folder / "continual.png", result)
    log.console.print(of_continual.table(result))
    for line in of_continual.notes(result):
        log.say(line)
    log.say(f"accuracy after each stage: {folder / 'continual.png'}")
