"""Which stores belong to a recipe, where they lie, and opening them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from buffers import pace, store
from buffers.filling import Making, network_maker
from buffers.store import ExpertStore, StoreGroup
from buffers.train import train_expert
from ddengine import contents
from ddengine.artefact.runs import EXPERTS
from ddengine.artefact.target_network import target_network
from ddengine.data import Data, Preprocess
from ddengine.experts import AtOnce, ExpertSource, TeacherSource
from ddengine.learning.teachers import load_all
from ddengine.models import build_model, is_family
from ddengine.prepare import buffer_models
from ddengine.recipe import BufferConfig, DataConfig, Recipe
from ddengine.system import log
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision


@dataclass(frozen=True)
class Place:
    """One store: the network of its experts, its folder and what decides its content."""

    model: str
    folder: Path
    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stores(ExpertSource):
    """The expert stores of a recipe, one, or with teachers one each; opened when they are needed.

    `ddengine.distill` takes it in place of experts.
    """

    buffer: BufferConfig | None  # how experts are trained; None: there are none
    models: tuple[str, ...]  # their networks
    several: bool  # whether each network has a store in a folder of its own
    data: DataConfig  # of the images
    precision: Precision = "fp32"
    # of the store, or of several stores; None: ROOT/FINGERPRINT
    folder: Path | None = None
    root: Path = EXPERTS

    @classmethod
    def of(cls, recipe: Recipe, **where: Any) -> "Stores":
        """The stores of a recipe; `where` are precision, folder and root."""
        return cls(
            buffer=recipe.buffer,
            models=buffer_models(recipe),
            several=bool(recipe.teachers),
            data=recipe.data,
            **where,
        )

    def on(self, data: DataConfig) -> "Stores":
        """The stores of experts on other images."""
        return replace(self, data=data)

    def seed(self) -> int | None:
        """That the experts are trained with; None where there are none."""
        return None if self.buffer is None else self.buffer.seed

    def of_seed(self, seed: int) -> "Stores":
        """The stores of experts that are trained with another seed."""
        if self.buffer is None:
            return self
        return replace(self, buffer=replace(self.buffer, seed=seed))

    def places(self, images: str) -> list[Place]:
        """Where the stores are whose experts saw the training images with this digest."""
        if self.buffer is None:
            return []
        places = []
        for model in self.models:
            identity = store.identity(images, self.data, self.buffer, model, self.precision)
            places.append(Place(model, self._folder(model, identity), identity))
        return places

    def _folder(self, model: str, identity: dict[str, Any]) -> Path:
        if self.folder is None:
            return self.root / digest(identity)
        return store.teacher_folder(self.folder, model) if self.several else self.folder

    def preprocess(self, images: str) -> Preprocess | None:
        """What the first of the stores that are there saw its images through; None without one."""
        for place in self.places(images):
            preprocess = store.stored_preprocess(place.folder)
            if preprocess is not None:
                return preprocess
        return None

    def origin(self, images: str) -> str | None:
        """The digests of the files that imported stores are of, or that experts were made with.

        None for stores of this program, which follow from the recipe.
        """
        digests = []
        for place in self.places(images):
            imported = store.imported_digest(place.folder)
            if imported:
                digests.append(imported)
            elif "files" in place.identity:
                digests.append(place.identity["files"])
        return ", ".join(digests) or None

    @property
    def trainer(self) -> Callable[..., Any]:
        """What trains an expert."""
        return train_expert

    def missing(self, images: str) -> dict[str, int]:
        """How many experts the store of each network lacks."""
        if self.buffer is None:
            return {}
        missing = {}
        for place in self.places(images):
            done = len(store.finished(place.folder))
            missing[place.model] = max(0, self.buffer.num_experts - done)
        return missing

    def makings(self, data: Data) -> list[Making]:
        """The stores, to be filled."""
        if self.buffer is None:
            return []
        makings = []
        for place in self.places(data.train.digest):
            makings.append(
                Making(
                    data=data,
                    data_config=self.data,
                    config=self.buffer,
                    model=place.model,
                    new_model=network_maker(self.buffer, place.model, data),
                    folder=place.folder,
                    precision=self.precision,
                    is_named=True,
                )
            )
        return makings

    def at_once(self, data: Data) -> AtOnce:
        """How many experts that are missing would be trained at a time here."""
        return pace.at_once(self.makings(data))

    def open(self, data: Data) -> ExpertStore | StoreGroup | None:
        """The stores; None for a recipe without experts.

        Raises UserError for one that is not there or was made differently.
        """
        if self.buffer is None:
            return None
        opened = []
        for place in self.places(data.train.digest):
            store.check_identity(place.folder, place.identity)
            new_model = network_maker(self.buffer, place.model, data)
            opened.append(ExpertStore(place.folder, new_model, self.buffer.num_experts))
        return StoreGroup(opened) if self.several else opened[0]


@dataclass(frozen=True)
class SetTeachers(TeacherSource):
    """The teachers that a distilled set was made with, which its meta.json names.

    `ddengine.evaluate` takes it in place of experts. `folder` is that of their stores; None:
    experts/FINGERPRINT.
    """

    folder: Path | None = None

    def teachers(
        self, meta: Mapping[str, Any], data: Data, device: torch.device, *, dynamic: bool
    ) -> list[nn.Module]:
        """The networks, which label on the fly and label random images; none of a set without.

        Raises UserError where `dynamic` labels need a store that is not there, or is not the one
        that the set was made with. A set that was imported says no fingerprints; there the stores
        in `folder` must be of these images.
        """
        recipe = meta["recipe"]
        stores = self._stores(meta, dynamic)
        epochs = recipe.get("targets", {}).get("epochs")
        kept = epochs and range(epochs[0], epochs[1] + 1)
        networks: list[nn.Module] = []
        for facts in stores:
            folder = self._folder(facts)
            absent = not (folder / "manifest.json").is_file()
            if absent and not dynamic and self.folder is None:
                log.say(
                    f"warning: no store of the teacher {facts['model']} in {folder}; random_soft "
                    "is labelled by a network trained on the full data"
                )
                return []
            networks += load_all(self._opened(folder, facts, data), device, kept)
        if recipe.get("targets", {}).get("experts") == "first":
            return networks[:1]
        return networks

    def _stores(self, meta: Mapping[str, Any], dynamic: bool) -> list[dict[str, Any]]:
        """Network, fingerprint and number of experts of each store."""
        names = meta["recipe"].get("teachers") or []
        stores = (meta.get("experts") or {}).get("stores", [])
        if self.folder is not None and not names:
            raise UserError(
                "--experts names the stores of teachers, and this set was made without teachers; "
                "leave --experts out."
            )
        if stores:
            return stores
        if self.folder is not None:
            return [{"model": name, "fingerprint": None, "num": None} for name in names]
        if dynamic:
            advice = "it has none; set evaluation.labels own."
            if names:
                advice = "it does not say them; name the folder of their stores with --experts."
            raise UserError(
                f"evaluation.labels dynamic needs the teachers of the set, and {advice}"
            )
        return []

    def _folder(self, facts: Mapping[str, Any]) -> Path:
        if self.folder is not None:
            return store.teacher_folder(self.folder, facts["model"])
        return EXPERTS / facts["fingerprint"]

    def _opened(self, folder: Path, facts: Mapping[str, Any], data: Data) -> ExpertStore:
        return _opened(folder, facts, data)


def _opened(folder: Path, facts: Mapping[str, Any], data: Data) -> ExpertStore:
    """The store of a set's experts: network, fingerprint (None: any) and number (None: all).

    Raises UserError for a store that is not of these images, or has another fingerprint.
    """
    new_model = partial(build_model, facts["model"], data.image_shape, data.num_classes)
    experts = ExpertStore(folder, new_model, facts["num"])
    same_store = facts["fingerprint"] in (None, experts.manifest["fingerprint"])
    if not same_store or experts.manifest["identity"]["images"] != data.train.digest:
        raise UserError(
            f"{folder} holds other experts than those of the set; name the folder of its own "
            "with --experts."
        )
    return experts


@dataclass(frozen=True)
class SetExperts(TeacherSource):
    """The experts that a set was made with, which its meta.json names, after their last epoch.

    `ddengine.transfer` takes it in place of experts. Of a set with features the first of them is
    the network whose features these are. `folder` is that of their store; None:
    experts/FINGERPRINT, and no networks where there is none.
    """

    folder: Path | None = None

    def teachers(
        self, meta: Mapping[str, Any], data: Data, device: torch.device, *, dynamic: bool
    ) -> list[nn.Module]:
        """The networks. Raises UserError for a store in `folder` that is of other images."""
        facts = self._facts(meta)
        folder = self.folder or EXPERTS / str(facts["fingerprint"])
        if self.folder is None and not (folder / "manifest.json").is_file():
            return []
        if facts["model"] is None:
            facts = facts | {
                "model": contents.read_json(folder / "manifest.json", "model")["model"]
            }
        if not is_family(facts["model"]):  # parts of a generator, which classify nothing
            return []
        return load_all(_opened(folder, facts, data), device)

    def _facts(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Network, fingerprint and number of the experts; None for what the set does not say."""
        said = meta.get("experts") or {}
        first = (said.get("stores") or [said])[0]
        named = target_network(meta) or {}
        facts = {}
        for key in ("model", "fingerprint", "num"):
            facts[key] = first.get(key, named.get(key))
        return facts


def stores(
    recipe: Recipe,
    *,
    folder: Path | str | None = None,
    seed: int | None = None,
    precision: Precision = "fp32",
) -> Stores:
    """The experts of a recipe that lie in their stores.

    Made by `buffers.generate`, by the buffer command or by import.

        ddengine.distill(None, recipe, buffers.stores(recipe))

    Args:
        recipe: whose experts, on the images of the distillation that asks for them.
        folder: of the store, and with teachers of their stores; None: experts/FINGERPRINT.
        seed: that they were made with; None: recipe.buffer.seed.
        precision: that they were made with.
    """
    where = None if folder is None else Path(folder)
    named = Stores.of(recipe, precision=precision, folder=where)
    return named if seed is None else named.of_seed(seed)
