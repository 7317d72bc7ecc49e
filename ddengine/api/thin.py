"""A set with fewer of its images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine.api.checks import check_run
from ddengine.api.evaluate import asked_protocol
from ddengine.api.keeping import new_folder
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact import folder as folders
from ddengine.evaluation.train import train_one
from ddengine.recipe import require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.thinning import Margins, item_areas, items_left, thinned
from ddengine.system import log, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, seed_from

# what meta.json says of the set itself, so anew of the other one
OF_THE_SET = ("format", "codec", "space", "labels_digest", "bytes", "images_per_class")


def thin(
    of: Distilled | Path | str,
    folder: Path | str | None = None,
    *,
    items: int | None = None,
    budget: int | None = None,
    hardest: float = 0.5,
    networks: int = 3,
    seed: int = 0,
    device: str = "auto",
    progress: log.Progress = True,
) -> Distilled:
    """A finished set of which each class keeps the images that networks learn best.

        ddengine.thin("runs/more", "sets/fewer", budget=31360)

    Distil a few more than a budget holds, and leave out those that are learnt latest and those that
    are learnt at once, by the area under the margin (HMN, ECCV 2024; AUM, NeurIPS 2020). Networks
    are trained on the set alone, by its protocol; no real image is looked at. Of a codec that
    combines shared parts these stay as they are.

    Args:
        of: the folder of a run or of a distilled set, or a set, whose stored images stand alone and
            have hard labels.
        folder: a new folder to write; None: the set stays in memory.
        items: stored images that each class keeps.
        budget: bytes of the set, labels apart, in place of `items`: as many stay as it holds.
        hardest: of the images that go, the share with the lowest area; the others have the highest.
        networks: trained to measure the areas, of which the means count.
        seed: decides their initialisation, order and augmentation.
        device: auto, cpu, cuda or cuda:N.
        progress: as `distill` takes it.

    Raises:
        UserError: a set whose images do not stand alone, a number or a budget that leaves nothing
            out or nothing, a folder that is there.
    """
    check_run(seed, "fp32")
    _check_numbers(items, budget, hardest, networks)
    with log.shown(progress), new_folder(folder, "thin") as where:
        asked = opened(of)
        syn = on_device(asked, runtime.setup(device, "fp32"))
        num = _number(syn, items, budget)
        areas = _areas(syn, asked, networks, seed)
        fewer = thinned(syn, items_left(areas, syn.classes, num, hardest))
        meta = {name: fact for name, fact in asked.meta.items() if name not in OF_THE_SET}
        meta["thinned"] = {"items": num, "hardest": hardest, "networks": networks, "seed": seed}
        if where is not None:
            folders.save(fewer, where, meta, asked.splits or None)
    return Distilled(fewer, meta, where, asked.splits)


def _check_numbers(items: Any, budget: Any, hardest: Any, networks: Any) -> None:
    """Raise UserError for what is no number, and unless `items` or a `budget` is given."""
    if (items is None) == (budget is None):
        raise UserError("Say either items, what each class keeps, or a budget of bytes.")
    counts = {"networks": networks}
    counts |= {"items": items} if budget is None else {"budget": budget}
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise UserError(f"{name} is {count!r}; give a whole number.")
    require_at_least("networks", networks)
    if not isinstance(hardest, int | float) or isinstance(hardest, bool):
        raise UserError(f"hardest is {hardest!r}; give a number between 0 and 1.")
    require(0 <= hardest <= 1, f"hardest is a share between 0 and 1, got {hardest:g}.")


def _areas(syn: SyntheticSet, asked: Distilled, networks: int, seed: int) -> Tensor:
    """The area (S,) of each stored item, over so many networks."""
    thinned(syn, torch.arange(len(syn.classes)))  # refuses a codec before anything is trained
    margins = Margins(syn.classes[syn.source])
    home = asked.meta["recipe"]["model"]
    config = asked_protocol(asked, None)
    # margins are those of the classes, and teachers of dynamic labels are not asked
    labels = "hard" if config.labels == "dynamic" else None
    for network in range(networks):
        log.say(f"network {network + 1} of {networks} learns the set")
        train_one(
            syn,
            home,
            config,
            seed=seed_from(generator(seed, "thin", network)),
            device=syn.classes.device,
            home=home,
            labels=labels,
            observe=margins.see,
        )
    return item_areas(margins.areas(), syn.source, len(syn.classes))


def _number(syn: SyntheticSet, items: int | None, budget: int | None) -> int:
    """Stored items that each class keeps. Raises UserError for none, or for all."""
    per_class = syn.classes.bincount(minlength=len(syn.class_names))
    fewest, most = int(per_class.min()), int(per_class.max())
    if most == 1:
        raise UserError(
            "The set has one stored image of a class, so none can go; thin a set with more."
        )
    if items is None:
        assert budget is not None
        items = syn.codec.most_items(budget, syn.image_shape, len(syn.class_names))
    if fewest != most:
        raise UserError(
            f"The set has {fewest} to {most} stored images of a class, and each class is to keep "
            "as many; thin a set that has as many of each."
        )
    if not 1 <= items < fewest:
        raise UserError(
            f"The set has {fewest} stored images of each class and is to keep {items}; ask for 1 "
            f"to {fewest - 1}."
        )
    return items
