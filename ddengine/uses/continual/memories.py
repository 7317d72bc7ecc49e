"""The memory of a stage: images of its classes, distilled ones or chosen real ones."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ddengine.artefact import folder as folders
from ddengine.data import Data
from ddengine.data.subset import class_subset
from ddengine.models import build_model
from ddengine.recipe import Recipe, resolved
from ddengine.sets import start
from ddengine.sets.codec import Identity, Pixels, as_bytes
from ddengine.sets.merge import merge
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.uses.continual.config import Store, images_per_class
from ddengine.uses.continual.context import Context, Stage


def kept(syn: SyntheticSet, store: Store) -> SyntheticSet:
    """A plain distilled set as a memory keeps it: images and classes, nothing else.

    "uint8" keeps pixels in [0, 1] as bytes; "float32" keeps them as networks see them, exactly;
    what is bytes already stays so. A learned rate is not used here. Raises UserError for sets whose
    images are not stored one by one, and for soft labels and features.
    """
    if syn.targets.names or not syn.codec.keeps_images:
        raise UserError(
            "A memory keeps plain images with their classes, and the set has "
            f"{syn.targets.words} in codec {type(syn.codec).__name__}; use classes, and codec "
            "Identity or Pixels."
        )
    images = syn.tensors["images"].detach()
    if images.dtype == torch.uint8 and syn.space == "pixel":
        return replace(syn, tensors={"images": images}, codec=Pixels(), space="pixel")
    if images.dtype == torch.uint8 or store == "uint8":
        pixels = as_bytes(syn.pixels())
        return replace(syn, tensors={"images": pixels}, codec=Pixels(), space="pixel")
    return decoded(syn)


def decoded(syn: SyntheticSet) -> SyntheticSet:
    """The same examples, decoded and preprocessed once."""
    images = syn.batch(torch.arange(len(syn))).images.detach().float()
    return replace(syn, tensors={"images": images}, codec=Identity(), space="model")


def piece(context: Context, stage: Stage) -> tuple[SyntheticSet, float]:
    """(the memory of a stage's classes, numbered from 0, the seconds it took).

    Only training images of these classes are looked at.
    """
    num = images_per_class(stage.memory, context.data, context.recipe, context.config)
    subset = replace(class_subset(context.data, stage.classes), test=None)
    if stage.memory == "distilled":
        return _distilled(context, stage, subset, num)
    return _chosen(context, stage, subset, num)


def joined(
    new: SyntheticSet, stage: Stage, before: SyntheticSet | None, data: Data
) -> SyntheticSet:
    """The memory so far, with the class numbers of all the data."""
    if before is None:
        return merge([new], [stage.classes], data.class_names)
    numbers = list(range(data.num_classes))
    return merge([before, new], [numbers, stage.classes], data.class_names)


def _chosen(context: Context, stage: Stage, subset: Data, num: int) -> tuple[SyntheticSet, float]:
    """`num` real images of each class of a stage, and the seconds that choosing them took."""
    real, recipe = subset.train, context.recipe
    kind: Any = "real" if stage.memory == "random" else stage.memory
    how = replace(recipe.init, kind=kind)
    new_model = partial(build_model, recipe.model, subset.image_shape, subset.num_classes)
    rng = generator(context.seed, "continual", stage.memory, stage.repeat, stage.number)

    def choose() -> dict[str, Any]:
        index = start.selected_index(real, num, subset.class_names, rng, how, new_model=new_model)
        return {"index": index.tolist()}

    label = f"{stage.label}: choosing images"
    choice = context.pieces.remember(f"piece/{stage.key}", label, choose)
    index = torch.tensor(choice["index"], device=real.device)
    chosen = SyntheticSet(
        {"images": real.stored(index)},
        real.labels[index],
        subset.class_names,
        Pixels(),
        real.preprocess,
        space="pixel",
    )
    return chosen, choice["seconds"]


def _distilled(
    context: Context, stage: Stage, subset: Data, num: int
) -> tuple[SyntheticSet, float]:
    """`num` distilled images of each class of a stage as they are kept, and the seconds it took.

    They come from the work folder where they lie, else they are distilled and put there.
    """
    recipe = _of_stage(context.recipe, stage, num)
    name = f"repeat{stage.repeat}_stage{stage.number}"
    # the name of the random stream is spelled as it ever was, so that numbers stay
    seed = context.seed_of("distil", stage.repeat, stage.number)
    identity = _identity(context, subset, recipe, seed)
    folder = None if context.work is None else context.work / name
    context.pieces.advance(f"{stage.label}: distilling")
    if folder is not None and (folder / "meta.json").is_file():
        stored, meta = folders.load(folder, context.device)
        if meta.get("identity") == identity:
            return stored, meta["seconds"]
    begin = time.perf_counter()
    syn = context.distill(subset, recipe, seed, name)
    _check_counts(syn, subset.num_classes, num)
    syn = kept(syn, context.config.store)
    seconds = time.perf_counter() - begin
    if folder is not None:
        files.make_folder(folder.parent)
        meta = {
            "recipe": to_dict(replace(recipe, data=replace(recipe.data, root=None))),
            "seed": seed,
            "identity": identity,
            "seconds": seconds,
        }
        folders.save(syn, folder, meta)
    return syn, seconds


def _of_stage(recipe: Recipe, stage: Stage, num: int) -> Recipe:
    """The recipe for the classes of a stage, with `num` images of each."""
    ids = stage.classes
    if recipe.data.classes is not None:
        ids = [recipe.data.classes[c] for c in stage.classes]
    return replace(recipe, ipc=num, data=replace(recipe.data, classes=tuple(ids)))


def _identity(context: Context, subset: Data, recipe: Recipe, seed: int) -> str:
    """Identifies everything that decides what is distilled at a stage."""
    preprocess = files.tensor_digest(subset.train.preprocess.tensors())
    store, precision = context.config.store, context.precision
    return digest([resolved(recipe), seed, store, precision, subset.train.digest, preprocess])


def _check_counts(syn: SyntheticSet, num_classes: int, num: int) -> None:
    counts = torch.bincount(syn.classes.cpu(), minlength=num_classes).tolist()
    if counts != [num] * num_classes:
        raise UserError(
            f"The distilled set of a stage has {counts} images of its classes, and the budget is "
            f"made for {num} each; use a plain codec."
        )
