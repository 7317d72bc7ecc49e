"""The experts of a recipe on any images, for ddengine.distill and the buffer command."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from buffers import experts
from buffers.open import EXPERTS, Place, Stores
from buffers.store import MANIFEST, ExpertStore, StoreGroup
from ddengine.api.checks import check_run
from ddengine.api.inputs import Images, Source, dataset_of
from ddengine.artefact import runs
from ddengine.data import Data
from ddengine.data.torch_dataset import OWN
from ddengine.models import build_model
from ddengine.prepare import check_networks
from ddengine.recipe import BufferConfig, DataConfig, Recipe
from ddengine.system import dist, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision


def generate(
    dataset: Images,
    buffer: Recipe | BufferConfig,
    *,
    model: str | None = None,
    data: DataConfig | None = None,
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
        dataset: as ddengine.distill takes it; None: the images that the recipe names.
        buffer: the whole recipe, which says everything; or only its buffer, with `model` and
            `data` beside it.
        model: network of the experts; None: that of the buffer or recipe, of a recipe with teachers
            one store each.
        data: size, limit, validation, split_seed and zca of the images; None: the recipe's, or
            of a buffer the usual ones.
        folder: of the store, and with teachers of their stores; None: ROOT/FINGERPRINT.
        root: where stores lie that have no other folder.
        seed: decides every random draw; None: that of the buffer (buffer.seed).
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: train anew, deleting the store that is there.

    Raises:
        UserError: a network that nobody names, a recipe without experts, data that do not go, a
            folder that holds something else.
    """
    stores = _stores_of(buffer, model, data)
    if seed is not None:
        stores = stores.of_seed(seed)
    config = stores.buffer
    assert config is not None
    check_run(config.seed, precision)
    images = dataset_of(dataset)
    if images is not None:
        stores = stores.on(images.settings(stores.data))
    where = None if folder is None else Path(folder)
    stores = replace(stores, precision=precision, folder=where, root=Path(root))
    with log.shown(progress):
        source = Source(stores.data, images)
        loaded = source.load(runtime.setup(device, precision), stores.preprocess)
        if isinstance(buffer, Recipe):
            _check_recipe(buffer, loaded)
        places = stores.places(loaded.train.digest)
        if restart:
            _delete(places)
        for place in places:
            new_model = partial(build_model, place.model, loaded.image_shape, loaded.num_classes)
            experts.generate(
                loaded,
                stores.data,
                config,
                place.model,
                new_model,
                place.folder,
                precision=precision,
            )
            _say(place, ExpertStore(place.folder), config, stores.several)
        opened = stores.open(loaded)
    assert opened is not None
    return opened


def _delete(places: Sequence[Place]) -> None:
    """Delete stores, all or none. Raises UserError for a folder of something else."""
    for place in places:
        dist.on_first_rank(partial(runs.check_own, place.folder, MANIFEST))
    for place in places:
        dist.on_first_rank(partial(runs.delete, place.folder, MANIFEST))


def _stores_of(
    buffer: Recipe | BufferConfig, model: str | None, settings: DataConfig | None
) -> Stores:
    """The stores that are to be filled. Raises UserError where nobody says which."""
    if isinstance(buffer, Recipe):
        if buffer.buffer is None:
            raise UserError(
                f"The recipe {buffer.name} needs no experts; call ddengine.distill without."
            )
        stores = Stores.of(buffer)
        if model:
            stores = replace(stores, models=(model,))
        return stores if settings is None else stores.on(settings)
    if not isinstance(buffer, BufferConfig):
        raise UserError(
            f"buffers.generate was given a {type(buffer).__name__}; give it a Recipe, or its "
            "buffer."
        )
    named = model or buffer.model
    if not named:
        raise UserError(
            "The buffer names no network for its experts; give model=recipe.model, or the whole "
            "recipe in place of its buffer."
        )
    config = settings or DataConfig(name=OWN)
    return Stores(buffer=buffer, models=(named,), several=False, data=config)


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
    if several:
        what += f", teachers {place.model},"
    line = f"{what} in {place.folder}"
    if accuracies:
        mean = 100 * sum(accuracies) / len(accuracies)
        line += f", validation accuracy {mean:.1f} % after the last epoch"
    log.say(line)
