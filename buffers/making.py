"""Making the stores of a recipe on any images: what is missing is trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from buffers import experts
from buffers.open import Place, SetTeachers, Stores
from buffers.store import MANIFEST, ExpertStore, StoreGroup
from ddengine import experts as of_experts
from ddengine.api.checks import check_recipe, check_run
from ddengine.api.inputs import Images, Source, dataset_of
from ddengine.artefact import runs
from ddengine.artefact.runs import EXPERTS
from ddengine.data import Data
from ddengine.experts import OwnTraining
from ddengine.prepare import check_networks
from ddengine.recipe import BufferConfig, Recipe
from ddengine.system import claims, dist, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision


def generate(
    data: Images,
    recipe: Recipe,
    *,
    folder: Path | str | None = None,
    root: Path | str = EXPERTS,
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
) -> ExpertStore | StoreGroup:  # long: its arguments are explained
    """Train and store the experts that `ddengine.distill(data, recipe, experts)` reads.

    Those that are stored already are left alone.

        experts = buffers.generate(my_torch_dataset, recipe)

    Args:
        data: as `ddengine.distill` takes it; None: the images that the recipe names.
        recipe: whose buffer says how experts are trained, and whose teachers, `buffer.model` or
            model says which networks they are.
        folder: of the store, and with teachers of their stores; None: ROOT/FINGERPRINT.
        root: where stores lie that have no other folder.
        seed: decides every random draw; None: that of the buffer (buffer.seed).
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: train anew, deleting the store that is there.

    Raises:
        UserError: a recipe without experts, data that do not go, a folder that holds something
            else.
    """
    check_recipe(recipe)
    if recipe.buffer is None:
        raise UserError(
            f"The recipe {recipe.name} needs no experts; call ddengine.distill without."
        )
    stores = Stores.of(recipe)
    if seed is not None:
        stores = stores.of_seed(seed)
    config = stores.buffer
    assert config is not None
    check_run(config.seed, precision)
    images = dataset_of(data)
    if images is not None:
        stores = stores.on(images.settings(stores.data))
    where = None if folder is None else Path(folder)
    stores = replace(stores, precision=precision, folder=where, root=Path(root))
    with log.shown(progress):
        source = Source(stores.data, images)
        loaded = source.load(runtime.setup(device, precision), stores.preprocess)
        _check_recipe(recipe, loaded)
        places = stores.places(loaded.train.digest)
        with _claimed(places):
            if restart:
                _delete(places)
            experts.generate_all(stores.makings(loaded))
            for place in places:
                _say(place, ExpertStore(place.folder), config, stores.several)
        opened = stores.open(loaded)
    assert opened is not None
    return opened


@contextmanager
def _claimed(places: Sequence[Place]) -> Iterator[None]:
    """Within the block all these stores are this command's.

    Every command claims them in one order, so that no two wait for each other.
    """
    with ExitStack() as all_claims:
        for folder in sorted({place.folder for place in places}):
            all_claims.enter_context(claims.claimed(folder, "buffer"))
        yield


def _delete(places: Sequence[Place]) -> None:
    """Delete stores, all or none. Raises UserError for a folder of something else."""
    for place in places:
        dist.on_first_rank(partial(runs.check_own, place.folder, MANIFEST))
        dist.on_first_rank(partial(claims.refuse_read, place.folder / MANIFEST))
    for place in places:
        dist.on_first_rank(partial(runs.delete, place.folder, MANIFEST))


def _check_recipe(recipe: Recipe, data: Data) -> None:
    """Build the networks once, and say it where experts will not do for the recipe's objective."""
    check_networks(recipe, data)
    try:
        recipe.objective.check(recipe.buffer.kept_epochs())
    except UserError as error:  # the store is still good for other recipes
        log.say(f"warning: {error}")


def _say(place: Place, opened: ExpertStore, config: BufferConfig, several: bool) -> None:
    """How many experts lie where, and how good they are."""
    accuracies = []
    for expert in range(opened.num_experts):
        for accuracy in opened.metrics(expert)["validation_accuracy"][-1:]:
            if accuracy is not None:
                accuracies.append(accuracy)
    what = f"{opened.num_experts} experts of {config.epochs} epochs"
    if isinstance(config.step, OwnTraining):
        what = place.model
    if several:
        what += f", teachers {place.model},"
    line = f"{what} in {place.folder}"
    if accuracies:
        mean = 100 * sum(accuracies) / len(accuracies)
        line += f", validation accuracy {mean:.1f} % after the last epoch"
    log.say(line)


@dataclass(frozen=True, kw_only=True)
class ExpertMaker(of_experts.ExpertMaker):
    """Makes and opens the experts of any recipe.

    `ddengine.sweep` takes it as its experts, whose settings may be among those that are swept.

        ddengine.sweep(data, recipe, experts=buffers.ExpertMaker(), ...)
    """

    # of the store, and with teachers of their stores, of every recipe; None: experts/FINGERPRINT
    folder: Path | None = None

    def source(self, recipe: Recipe, precision: Precision) -> Stores:
        """Where the experts of a recipe lie."""
        return Stores.of(recipe, precision=precision, folder=self.folder)

    def make(
        self,
        data: Images,
        recipe: Recipe,
        *,
        device: str,
        precision: Precision,
        progress: log.Progress,
    ) -> None:
        """Train the experts of a recipe that are missing. Raises UserError as `generate` does."""
        generate(
            data,
            recipe,
            folder=self.folder,
            device=device,
            precision=precision,
            progress=progress,
        )

    def teachers(
        self, meta: Mapping[str, Any], data: Data, device: torch.device, *, dynamic: bool
    ) -> list[nn.Module]:
        """The teachers of a set, as `SetTeachers` finds them."""
        folder = self.folder if meta["recipe"].get("teachers") else None
        return SetTeachers(folder).teachers(meta, data, device, dynamic=dynamic)
