"""The expert stores of a recipe."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from buffers.store import (
    ExpertStore,
    StoreGroup,
    check_identity,
    identity,
    imported_digest,
    stored_preprocess,
    teacher_folder,
)
from ddengine.api import buffer_models
from ddengine.artefact import runs
from ddengine.data import Data, Preprocess, load_data
from ddengine.learning.teachers import load_all
from ddengine.models import build_model
from ddengine.recipe import (
    digest,
)  # fmt: skip
from ddengine.system import log
from ddengine.system.errors import UserError

EXPERTS = Path("experts")


def store_folders(
    options: Any, images: str, root: Path = EXPERTS
) -> list[tuple[str, Path, dict[str, Any]]]:
    """(network, folder, identity) of each expert store of a recipe on these images."""
    recipe, found = options.recipe, []
    for model in buffer_models(recipe):
        content = identity(
            images, recipe.data, recipe.buffer, model, options.seed, options.precision
        )
        given = options.experts and (
            teacher_folder(options.experts, model) if recipe.teachers else options.experts
        )
        found.append((model, given or root / digest(content), content))
    return found


def load_for(options: Any, device: torch.device, root: Path = EXPERTS) -> Data:
    """The recipe's data, preprocessed as its expert store has it, where there is one."""

    def stored(images: str) -> Preprocess | None:
        if options.recipe.buffer is None:
            return None
        return next(
            filter(
                None,
                (
                    stored_preprocess(folder)
                    for _, folder, _ in store_folders(options, images, root)
                ),
            ),
            None,
        )

    return load_data(options.recipe.data, device, stored=stored)


def run_identity(options: Any, images: str, root: Path = EXPERTS) -> dict[str, Any]:
    """What makes two runs the same; experts of this program follow from recipe and seed, imported
    ones have a digest.
    """
    folders = (
        [folder for _, folder, _ in store_folders(options, images, root)]
        if options.recipe.buffer is not None
        else []
    )
    experts = ", ".join(filter(None, map(imported_digest, folders))) or None
    return runs.identity(
        options.recipe, images, seed=options.seed, precision=options.precision, compile=options.compile, experts=experts
    )  # fmt: skip


def open_store(options: Any, data: Data, root: Path = EXPERTS) -> ExpertStore | StoreGroup | None:
    """The expert stores of a recipe, None for a recipe without experts.

    Raises UserError for one that is not there or was made differently.
    """
    if options.recipe.buffer is None:
        return None
    stores = []
    for model, folder, content in store_folders(options, data.train.digest, root):
        check_identity(folder, content)
        new_model = partial(build_model, model, data.image_shape, data.num_classes)
        stores.append(ExpertStore(folder, new_model, options.recipe.buffer.num_experts))
    return StoreGroup(stores) if options.recipe.teachers else stores[0]


def teachers_of(store: ExpertStore | StoreGroup | None, device: torch.device) -> list[nn.Module]:
    """The networks of a store after their last epoch; none without a store."""
    return [] if store is None else load_all(store, device)


def teachers_for(
    options: Any, meta: dict[str, Any], data: Data, device: torch.device
) -> list[nn.Module]:
    """The teachers of a set, which label on the fly and label random images; none where the set has
    none.

    Raises UserError where dynamic labels need a store that is not there, or is not the one that the
    set was made with. A set that was imported says no fingerprints; there the stores in the folder
    that --experts names must be of these images.
    """
    recipe, dynamic = meta["recipe"], options.evaluation.labels == "dynamic"
    names, used = recipe.get("teachers") or [], (meta.get("experts") or {}).get("stores", [])
    if options.experts is not None and not names:
        raise UserError(
            "--experts names the stores of teachers, and this set was made without teachers; "
            "leave --experts out."
        )
    if dynamic and not (used or (names and options.experts)):
        raise UserError(
            "evaluation.labels dynamic needs the teachers of the set, and "
            + (
                "it does not say them; name the folder of their stores with --experts."
                if names
                else "it has none; set evaluation.labels own."
            )
        )
    epochs, found = recipe.get("targets", {}).get("epochs"), []
    for facts in used or [
        {"model": name, "fingerprint": None, "num": None} for name in names if options.experts
    ]:
        folder = (
            teacher_folder(options.experts, facts["model"])
            if options.experts
            else EXPERTS / facts["fingerprint"]
        )
        if not (folder / "manifest.json").is_file() and not dynamic and options.experts is None:
            log.say(
                f"warning: no store of the teacher {facts['model']} in {folder}; random_soft is "
                "labelled by a network trained on the full data"
            )
            return []
        store = ExpertStore(
            folder,
            partial(build_model, facts["model"], data.image_shape, data.num_classes),
            facts["num"],
        )
        if (
            facts["fingerprint"] not in (None, store.manifest["fingerprint"])
            or store.manifest["identity"]["images"] != data.train.digest
        ):
            raise UserError(
                f"{folder} holds other experts than those of the set; name the folder of its own "
                "with --experts."
            )
        found += load_all(store, device, epochs and range(epochs[0], epochs[1] + 1))
    return found[:1] if recipe.get("targets", {}).get("experts") == "first" else found
