"""A set in fewer bits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddengine.api.checks import check_run
from ddengine.api.evaluate import asked_protocol
from ddengine.api.keeping import new_folder
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact import folder as folders
from ddengine.evaluation.train import train_one
from ddengine.recipe import require
from ddengine.sets.codec import Quantised
from ddengine.sets.quantising import check, quantised, refined, within
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, seed_from

# what meta.json says of the set itself, so anew of the other one
OF_THE_SET = ("format", "codec", "space", "labels_digest", "bytes", "images_per_class")


def quantise(
    of: Distilled | Path | str,
    folder: Path | str | None = None,
    *,
    bits: Literal[2, 3, 4, 8] = 2,
    region: Literal["patch", "channel", "image"] = "patch",
    patch: int = 5,
    groups: int | None = None,
    budget: int | None = None,
    refine: int = 0,
    refine_lr: float = 0.003,
    seed: int = 0,
    progress: log.Progress = True,
) -> Distilled:
    """A finished set with its images in a few bits a value; labels and a learned rate stay.

        small = ddengine.quantise("runs/mine", "sets/small", bits=2)

    Tran & Bae, AAAI 2026. The codec is `ddengine.sets.codec.Quantised`, in which sets can be
    learned, too. With `refine` a network is trained on the set, by its protocol, and the images
    are changed until its features of them in few bits are nearer to those of the exact ones; no
    real image is looked at.

    Args:
        of: the folder of a run or of a distilled set, or a set, whose codec keeps images.
        folder: a new folder to write; None: the set stays in memory.
        bits: of a value: 2, 3, 4 or 8.
        region: what has a scale and a zero: a patch of all channels, a channel or an image.
        patch: the side of a patch.
        groups: of regions, found by k-means, that share a scale and a zero; None: each has its own.
        budget: bytes that the images may take; as many groups as fit are made, where it is needed.
        refine: steps of that change; published: 500, of ImageNet 2000; 0: none.
        refine_lr: learning rate of these steps, of Adam.
        seed: decides how the network is initialised, and sees the set.
        progress: as `distill` takes it.

    Raises:
        UserError: a set whose images are made of other things, a budget that is too small, steps
            below 0, a network that diverges, a folder that is there.
    """
    check_run(seed, "fp32")
    _check_refinement(refine, refine_lr)
    with log.shown(progress), new_folder(folder, "quantise") as where:
        asked = opened(of)
        syn = on_device(asked, torch.device("cpu"))
        codec = Quantised(bits=bits, region=region, patch=patch, groups=groups)
        if budget is not None:
            codec = replace(codec, groups=within(syn, codec, budget))
        change = _refinement(syn, asked, codec, refine, refine_lr, seed) if refine else None
        small = quantised(syn, codec, change)
        meta = {name: fact for name, fact in asked.meta.items() if name not in OF_THE_SET}
        meta["quantised"] = {"bits": bits, "region": region, "patch": patch, "groups": codec.groups}
        if refine:
            meta["quantised"] |= {"refine": refine, "refine_lr": refine_lr, "seed": seed}
        if where is not None:
            folders.save(small, where, meta, asked.splits or None)
    return Distilled(small, meta, where, asked.splits)


def _check_refinement(steps: Any, lr: Any) -> None:
    """Raise UserError for what is no number of steps, and for no rate."""
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise UserError(f"refine is {steps!r}; give a whole number of steps.")
    require(steps >= 0, f"refine is {steps}; set 0 or more steps.")
    if not isinstance(lr, int | float) or isinstance(lr, bool):
        raise UserError(f"refine_lr is {lr!r}; give a number.")
    require(0 < lr < float("inf"), f"refine_lr must be positive, got {lr:g}.")


def _refinement(
    syn: SyntheticSet, asked: Distilled, codec: Quantised, steps: int, lr: float, seed: int
) -> Callable[[Tensor], Tensor]:
    """What changes the images, with the features of a network that is trained on the set."""
    check(syn)  # before anything is trained
    config = asked_protocol(asked, None)  # of a set that says its recipe
    home = asked.meta["recipe"]["model"]
    log.say("a network learns the set, whose features the images are to keep")
    network = train_one(
        syn,
        home,
        config,
        seed=seed_from(generator(seed, "quantise")),
        device=syn.classes.device,
        home=home,
        # its features are those of the classes, and teachers of dynamic labels are not asked
        labels="hard" if config.labels == "dynamic" else None,
    ).requires_grad_(False)
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise UserError(
            "The network that learned the set is not finite, so that its features say nothing; "
            "leave refine out, or take another seed."
        )
    embed = network.embed
    assert callable(embed)
    return partial(refined, codec=codec, embed=embed, steps=steps, lr=lr)
