"""Experts of a dataset of one's own, for ddengine.distill."""

from functools import partial
from pathlib import Path
from typing import Any

from buffers import experts, store
from buffers.store import ExpertStore, StoreGroup
from ddengine.api import buffer_models, check_precision
from ddengine.data.torch_dataset import OWN, data_of, own_config
from ddengine.models import build_model
from ddengine.recipe import BufferConfig, DataConfig, Recipe, digest
from ddengine.system import runtime
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision

EXPERTS = Path("experts")


def generate(
    dataset: Any,
    buffer: Recipe | BufferConfig,
    *,
    model: str | None = None,
    data: DataConfig | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
) -> ExpertStore | StoreGroup:
    """Train and store the experts that ddengine.distill(dataset, recipe, experts) reads; those that
    are stored already are left alone.

    Args:
        dataset: as ddengine.distill takes it.
        buffer: the whole recipe, which says everything; or only its buffer, with `model` and `data`
            beside it.
        model: network of the experts; None: that of the buffer or recipe, of a recipe with teachers
            one store each.
        data: size, limit, validation, split_seed and zca, as the recipe has them; None: the
            recipe's, or of a buffer the usual ones.
        folder: of the store, and with teachers of their stores; None: experts/FINGERPRINT.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.

    Raises:
        UserError: a network that nobody names, a recipe without experts, data that do not go, a
            folder that holds something else.
    """
    check_precision(precision)
    config = buffer.buffer if isinstance(buffer, Recipe) else buffer
    if isinstance(buffer, Recipe) and config is None:
        raise UserError(
            f"The recipe {buffer.name} needs no experts; call ddengine.distill without."
        )
    if not isinstance(config, BufferConfig):
        raise UserError(
            f"buffers.generate was given a {type(buffer).__name__}; give it a Recipe, or its "
            "buffer."
        )
    if isinstance(buffer, Recipe):
        models, data = (model,) if model else buffer_models(buffer), data or buffer.data
    else:
        models, data = tuple(filter(None, [model or config.model])), data or DataConfig(name=OWN)
    if not models:
        raise UserError(
            "The buffer names no network for its experts; give model=recipe.model, or the whole "
            "recipe in place of its buffer."
        )
    several, settings = isinstance(buffer, Recipe) and bool(buffer.teachers), own_config(data)

    def place(name: str, images: str) -> Path:
        if folder is None:
            return EXPERTS / digest(store.identity(images, settings, config, name, seed, precision))
        return store.teacher_folder(Path(folder), name) if several else Path(folder)

    where = runtime.setup(device, precision)
    loaded = data_of(
        dataset,
        settings,
        where,
        stored=lambda images: next(
            filter(None, (store.stored_preprocess(place(name, images)) for name in models)), None
        ),
    )
    stores = []
    for name in models:
        new_model, own = (
            partial(build_model, name, loaded.image_shape, loaded.num_classes),
            place(name, loaded.train.digest),
        )
        experts.generate(
            loaded, settings, config, name, new_model, own, seed=seed, precision=precision
        )
        stores.append(ExpertStore(own, new_model, config.num_experts))
    return StoreGroup(stores) if several else stores[0]
