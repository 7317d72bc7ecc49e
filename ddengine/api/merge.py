"""Several sets as one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ddengine.api.evaluate import data_settings
from ddengine.api.inputs import Images, preprocess_of
from ddengine.api.keeping import new_folder
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact import folder as folders
from ddengine.artefact import merging
from ddengine.data import Preprocess
from ddengine.system import log
from ddengine.system.errors import UserError


def merge(
    sets: Sequence[Distilled | Path | str],
    folder: Path | str | None = None,
    *,
    preprocess: Preprocess | Distilled | Images = None,
    progress: log.Progress = True,
) -> Distilled:
    """Sets of some classes each, or of the same classes, as one; classes are matched by name.

        both = ddengine.merge(["runs/animals", "runs/vehicles"], "sets/both")

    The sets are of one dataset, or of images that several people hold (a torch Dataset, a folder,
    parquet files). The classes are all that any set has, in the order of first appearance; sets
    need not have as many. Images are brought under one preprocessing, that of the first set or
    `preprocess`; `distill(..., preprocess=)` makes sets that need not be.

    Args:
        sets: folders of runs or of distilled sets, or sets.
        folder: a new folder to write; None: the set stays in memory.
        preprocess: what networks see the images of all sets through, as `distill` takes it: a
            `Preprocess`, a set, or images that it is fitted to; None: that of the first set.
        progress: as `distill` takes it.

    Raises:
        UserError: sets that do not belong together, a folder that is there.
    """
    if isinstance(sets, str | Path | Distilled) or not sets:
        raise UserError("merge takes a list of sets or folders; give it at least one.")
    with log.shown(progress), new_folder(folder, "merge") as where:
        asked = [opened(of) for of in sets]
        merging.check_named([of.meta for of in asked])
        members = [_member(of) for of in asked]
        shared = preprocess_of(preprocess, members[0].config)
        merged = merging.merge_sets(members, shared)
        if where is not None:
            folders.save(merged.syn, where, merged.meta)
    return Distilled(merged.syn, merged.meta, where)


def _member(of: Distilled) -> merging.Member:
    """A set with what is known of it."""
    syn = on_device(of, torch.device("cpu"))
    name = "in memory" if of.folder is None else str(of.folder)
    return merging.Member(syn, of.meta, data_settings(of), name)
