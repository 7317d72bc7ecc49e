"""A set in fewer bits."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ddengine.api.keeping import new_folder
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact import folder as folders
from ddengine.sets.codec import Quantised
from ddengine.sets.quantising import quantised, within
from ddengine.system import log

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
    progress: log.Progress = True,
) -> Distilled:
    """A finished set with its images in a few bits a value; labels and a learned rate stay.

        small = ddengine.quantise("runs/mine", "sets/small", bits=2)

    Tran & Bae, AAAI 2026, without their refinement. The codec is `ddengine.sets.codec.Quantised`,
    in which sets can be learned, too.

    Args:
        of: the folder of a run or of a distilled set, or a set, whose codec keeps images.
        folder: a new folder to write; None: the set stays in memory.
        bits: of a value: 2, 3, 4 or 8.
        region: what has a scale and a zero: a patch of all channels, a channel or an image.
        patch: the side of a patch.
        groups: of regions, found by k-means, that share a scale and a zero; None: each has its own.
        budget: bytes that the images may take; as many groups as fit are made, where it is needed.
        progress: as `distill` takes it.

    Raises:
        UserError: a set whose images are made of other things, a budget that is too small, a folder
            that is there.
    """
    with log.shown(progress), new_folder(folder, "quantise") as where:
        asked = opened(of)
        syn = on_device(asked, torch.device("cpu"))
        codec = Quantised(bits=bits, region=region, patch=patch, groups=groups)
        if budget is not None:
            codec = replace(codec, groups=within(syn, codec, budget))
        small = quantised(syn, codec)
        meta = {name: fact for name, fact in asked.meta.items() if name not in OF_THE_SET}
        meta["quantised"] = {"bits": bits, "region": region, "patch": patch, "groups": codec.groups}
        if where is not None:
            folders.save(small, where, meta, asked.splits or None)
    return Distilled(small, meta, where, asked.splits)
