"""Distillation as a function call: a dataset and a recipe in, the distilled set out.

The command line goes the same way.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ddengine import loop
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.data import Data, Preprocess
from ddengine.data.torch_dataset import data_of, named_classes, own_config
from ddengine.evaluation.train import validate
from ddengine.learning.flat import FlatModel
from ddengine.learning.teachers import load_all
from ddengine.models import build_model, middle
from ddengine.objective import Env, Objective
from ddengine.pages import figures
from ddengine.recipe import Recipe, digest, to_dict
from ddengine.sets import labels, synthetic
from ddengine.sets.codec import Compensated
from ddengine.sets.coreset import TrainNetworks
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files, log, runtime
from ddengine.system.errors import UserError, unknown
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Experts

ASKS_EXPERTS = ("correct", "representative", "patches")  # kinds of init that look through experts


def buffer_models(recipe: Recipe) -> tuple[str, ...]:
    """The networks of the recipe's experts: each has a store."""
    return recipe.teachers or ((recipe.buffer and recipe.buffer.model) or recipe.model,)


def reads_experts(recipe: Recipe) -> bool:
    """Whether a distillation reads the store of the recipe, and not only its buffer command makes
    one.
    """
    return (
        recipe.objective.reads_experts
        or recipe.init.kind in ASKS_EXPERTS
        or recipe.targets.kind == "logits"
        or recipe.evaluation.labels == "dynamic"
    )


def check_networks(recipe: Recipe, data: Data) -> None:
    """Build every network of the recipe once, and fit the codec to its budget, so that what does
    not go fails before any work.
    """
    recipe.codec.fit(recipe.ipc, data.image_shape, data.num_classes)
    for name in {recipe.model, *buffer_models(recipe), *recipe.evaluation.models}:
        network = build_model(name, data.image_shape, data.num_classes, generator(0))
        if name in recipe.teachers:
            recipe.objective.check_teacher(name, network)
        if recipe.evaluation.loss == "uskd" and name in (
            recipe.evaluation.models or (recipe.model,)
        ):
            middle(network, data.image_shape)


def prepare(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    experts: Experts | None,
    *,
    seed: int,
    precision: Precision = "fp32",
    compile: bool = False,
    images: Tensor | None = None,
    train_networks: TrainNetworks | None = None,
) -> tuple[SyntheticSet, Objective]:
    """What a distillation starts from: the labelled initial set, and the objective.

    `images` are pixels in [0, 1] to start from in place of `recipe.init`, all those of a class in a
    row (classes x images per class, C, H, W).
    """
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    model = FlatModel(new_model(generator(0)), precision).to(device)
    objective = recipe.objective.build(Env(data.train, new_model, model, experts, device, compile))
    codec, networks = (
        recipe.codec,
        len(recipe.teachers) * (recipe.buffer.num_experts if recipe.buffer else 0),
    )
    if (
        recipe.teachers
        and isinstance(codec, Compensated)
        and codec.base is None
        and codec.compensators is None
        and codec.per_set != networks
    ):
        log.say(
            f"warning: codec.per_set {codec.per_set} is not the number of teachers, {networks}, "
            "so not every set has a compensator of each"
        )
    syn = (
        synthetic.initial(recipe, data, generator(seed, "init"), experts, train_networks)
        if images is None
        else _started(recipe, data, images)
    )
    starts_labelled = recipe.objective.reads_labels and not recipe.objective.makes_labels
    if recipe.targets.kind == "logits" and starts_labelled:
        syn = labels.label(syn, experts, recipe.targets)
    # networks have chosen and labelled the images, and ranks need not agree to the last bit
    dist.from_first(syn.tensors.values())
    return syn, objective


def shipped(syn: SyntheticSet, recipe: Recipe, experts: Experts | None) -> SyntheticSet:
    """The set as it is shipped: by its codec, and labelled anew where the recipe says so."""
    return (
        labels.label(syn.shipped(), experts, recipe.targets)
        if recipe.targets.relabel
        else syn.shipped()
    )


def meta_of(
    recipe: Recipe,
    data: Data,
    experts: Any,
    device: torch.device,
    *,
    seed: int,
    precision: Precision,
    **more: Any,
) -> dict[str, Any]:
    """What meta.json says of a set beside what the set says itself; `experts` may have a
    `summary()`.
    """
    return {
        "recipe": to_dict(replace(recipe, data=replace(recipe.data, root=None))),
        "seed": seed,
        "precision": precision,
        "images": data.train.digest,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "data_notes": list(data.notes),
        "experts": experts.summary() if hasattr(experts, "summary") else None,
        **more,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def distill(
    dataset: Any,
    recipe: Recipe,
    experts: Experts | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    folder: Path | str | None = None,
    classes: Sequence[Any] | None = None,
    images: Tensor | None = None,
) -> SyntheticSet:
    """Distill a dataset of (image, label) pairs, which `ddengine.data.torch_dataset.data_of` describes,
    all of which is training data.

    Of `recipe.data` size, limit, validation, split_seed and zca count, and not the name: what is
    kept says "own", of which no licence and no published figure is known. Equal arguments give
    equal sets, and torch's random numbers are left alone; the device is set up as the command line
    does it (deterministic kernels on CUDA).

    Args:
        dataset: map-style torch Dataset, list of (image, label), or pair of tensors (images,
            labels).
        recipe: what to do; those of synth.recipes, with `dataclasses.replace` for what should
            differ.
        experts: what buffers.generate(dataset, recipe) returns, for recipes that read experts.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        folder: where the run is kept, as the command line keeps one: the same call continues an
            unfinished run and reads a finished one. None: nothing is left behind.
        classes: names (or numbers) of all classes where the dataset has only some, such as one
            client's: label i is class i of the set that is returned and of that in the folder.
            None: the set has the classes that occur, numbered anew; its `class_names` say which
            they are.
        images: pixels in [0, 1] to start from in place of recipe.init, all those of a class in a
            row (classes x images per class, C, H, W).

    Raises:
        UserError: experts that are missing, or were made for other images; a folder of something
            else; data or settings that do not go.
    """
    _check_recipe(recipe, experts)
    check_precision(precision)
    _check_folder(folder)
    names = None if classes is None else named_classes(classes)
    recipe = replace(
        recipe,
        data=own_config(recipe.data),
        published=None,
        note=f"{recipe.name} on images of another source, for which nothing is published.",
    )
    where = runtime.setup(device, precision)
    data = data_of(
        dataset,
        recipe.data,
        where,
        classes=names,
        stored=lambda digest: _seen_through(experts, digest),
    )
    if names is not None and len(data.class_names) < len(names) and recipe.targets.kind == "logits":
        raise UserError(
            f"The dataset has {data.num_classes} of the {len(names)} classes, and targets.kind "
            "logits is for those only; leave classes out."
        )
    return _distilled(
        data, recipe, experts, seed, where, precision, folder, images, names or data.class_names
    )


def distill_data(
    data: Data,
    recipe: Recipe,
    *,
    experts: Experts | None = None,
    seed: int = 0,
    device: torch.device,
    precision: Precision = "fp32",
    folder: Path | str | None = None,
    images: Tensor | None = None,
) -> SyntheticSet:
    """`distill` on data that are loaded and split already and lie on `device`, which
    `runtime.setup` has prepared.
    """
    _check_recipe(recipe, experts)
    check_precision(precision)
    _check_folder(folder)
    return _distilled(
        data, recipe, experts, seed, device, precision, folder, images, data.class_names
    )


def _distilled(
    data: Data,
    recipe: Recipe,
    experts: Experts | None,
    seed: int,
    device: torch.device,
    precision: Precision,
    folder: Path | str | None,
    images: Tensor | None,
    names: tuple[str, ...],
) -> SyntheticSet:
    """The set of `data` whose classes are named among all of `names`."""
    if dist.num_ranks() > 1:
        raise UserError(
            f"distill works in one process, and this is a group of {dist.num_ranks()}; call it "
            "outside the group, or use run.py distill."
        )
    if experts is not None and not reads_experts(recipe):
        log.say(f"warning: the recipe {recipe.name} reads no experts, so those given are ignored")
        experts = None
    check_networks(recipe, data)
    _check_experts(recipe, data, experts)
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            # nobody could read these
            quiet = replace(
                recipe.outer,
                checkpoint_every=max(1, recipe.outer.steps),
                evaluate_every=0,
                picture_every=0,
            )
            syn, objective = prepare(
                recipe, data, device, experts, seed=seed, precision=precision, images=images
            )
            finish = partial(shipped, recipe=recipe, experts=experts)
            return _among(
                loop.distill(syn, objective, quiet, Path(temporary), seed=seed, finish=finish)[0],
                names,
            )
    return _kept(data, recipe, experts, seed, device, precision, Path(folder), images, names)


def _kept(
    data: Data,
    recipe: Recipe,
    experts: Any,
    seed: int,
    device: torch.device,
    precision: Precision,
    folder: Path,
    images: Tensor | None,
    names: tuple[str, ...],
) -> SyntheticSet:
    """A distillation whose run lies in `folder`, which continues it."""
    stores = [
        store.manifest["fingerprint"] for store in _stores(experts) if hasattr(store, "manifest")
    ]
    start = None if images is None else files.tensor_digest({"images": images})
    wanted = runs.identity(
        recipe, data.train.digest, seed=seed, precision=precision, compile=False, experts=", ".join(stores) or None, start=start,
        classes=digest([list(data.class_names), list(names)]),
    )  # fmt: skip
    try:
        finished = runs.is_finished(folder, wanted)
    except UserError as error:
        raise UserError(
            f"{str(error).split(';')[0]}; name another folder, or delete this one."
        ) from None
    if finished:
        return folders.load(folder / "distilled", device)[0]
    began = time.perf_counter()
    syn, objective = prepare(
        recipe, data, device, experts, seed=seed, precision=precision, images=images
    )
    initial_seconds = round(time.perf_counter() - began, 2)
    loop.check(syn, objective, recipe.outer)  # before the folder is there
    runs.begin(folder, recipe, wanted)
    teachers = load_all(experts, device) if recipe.evaluation.labels == "dynamic" else []
    result, counters = loop.distill(
        syn, objective, recipe.outer, folder, seed=seed,
        finish=partial(shipped, recipe=recipe, experts=experts),
        validate=lambda s: validate(s, data, recipe.evaluation, recipe.model, seed=seed, device=device, precision=precision, teachers=teachers),
        picture=lambda s, step: figures.grid(folder / "progress" / f"step_{step:06d}.png", s),
    )  # fmt: skip
    cost = loop.summary(counters) | {"initial_seconds": initial_seconds}
    result = _among(result, names)
    meta = meta_of(recipe, data, experts, device, seed=seed, precision=precision, distillation=cost)
    folders.save(result, folder / "distilled", meta, data.split_names)
    return result


def _among(syn: SyntheticSet, names: tuple[str, ...]) -> SyntheticSet:
    """The set with its classes numbered as `names` has them."""
    if syn.class_names == names:
        return syn
    ids = torch.tensor([names.index(name) for name in syn.class_names], device=syn.classes.device)
    return replace(syn, classes=ids[syn.classes], class_names=names)


def _started(recipe: Recipe, data: Data, images: Tensor) -> SyntheticSet:
    """The set before the first step that holds given images, pixels in [0, 1], all of a class in a
    row.
    """
    codec, items = recipe.codec.fit(recipe.ipc, data.image_shape, data.num_classes)
    wanted, device = (
        (data.num_classes * items * codec.per_item, *data.image_shape),
        data.train.device,
    )
    if tuple(images.shape) != wanted or not images.is_floating_point():
        raise UserError(
            f"images is {images.dtype} of shape {tuple(images.shape)}, and the recipe starts from "
            f"floats of shape {wanted}."
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"images has values from {float(images.min()):.4g} to {float(images.max()):.4g}; give "
            "pixels in [0, 1]."
        )
    scalars = {k: torch.tensor(v, device=device) for k, v in recipe.objective.initial().items()}
    classes = torch.arange(data.num_classes, device=device).repeat_interleave(items)
    seen = data.train.preprocess.forward(images.detach().float().to(device))
    return synthetic.coded(codec, seen, classes, data.class_names, data.train.preprocess, scalars)


def _stores(experts: Any) -> list[Any]:
    """The stores behind experts: several of teachers, one of others, none without."""
    return [] if experts is None else list(getattr(experts, "stores", [experts]))


def _seen_through(experts: Any, digest: str) -> Preprocess | None:
    """The preprocessing that experts of these images have, so that published constants they were
    trained with are kept.
    """
    for store in _stores(experts):
        if hasattr(store, "manifest") and store.manifest["identity"]["images"] == digest:
            return store.preprocess
    return None


def check_precision(precision: Any) -> None:
    """Raise UserError for what is no precision."""
    if precision not in get_args(Precision):
        raise unknown("precision", str(precision), get_args(Precision))


def _check_folder(folder: Path | str | None) -> None:
    """Raise UserError for a file."""
    if folder is not None and Path(folder).is_file():
        raise UserError(f"{folder} is a file; name a folder.")


def _check_recipe(recipe: Any, experts: Experts | None) -> None:
    """Raise UserError for what is no recipe, or a recipe that needs experts and has none."""
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"The recipe is a {type(recipe).__name__}; give a Recipe, such as "
            f"synth.catalogue.find({str(recipe)[:40]!r}) returns."
        )
    if experts is None and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts, and none were given; pass "
            "experts=buffers.generate(dataset, recipe)."
        )


def _check_experts(recipe: Recipe, data: Data, experts: Any) -> None:
    """Raise UserError for experts that were trained on other images, seen through another
    preprocessing, or are other networks.

    Experts that are not of a store say nothing of this, and are taken as they are.
    """
    found = [store.manifest["identity"] for store in _stores(experts) if hasattr(store, "manifest")]
    advice = "make them with buffers.generate(dataset, recipe)"
    for identity in found:
        if identity["images"] != data.train.digest:
            raise UserError(
                "The experts were trained on other images than this dataset and recipe.data "
                f"give; {advice}."
            )
        if identity["zca"] != recipe.data.zca:
            raise UserError(
                f"The experts were trained with data.zca {identity['zca']}, and the recipe has "
                f"data.zca {recipe.data.zca}; {advice}."
            )
    for store in _stores(experts):
        own, ours = (
            p and p.to(torch.device("cpu")).tensors()
            for p in (getattr(store, "preprocess", None), data.train.preprocess)
        )
        if (
            own
            and ours
            and (
                own.keys() != ours.keys()
                or not all(torch.allclose(own[k], ours[k], rtol=1e-3, atol=1e-5) for k in own)
            )
        ):
            raise UserError(
                "The experts saw their images through another preprocessing than these data "
                f"have; {advice}."
            )
    models = {identity["model"] for identity in found}
    if found and models != set(buffer_models(recipe)):
        raise UserError(
            f"The experts are {', '.join(sorted(models))}, and the recipe wants "
            f"{', '.join(sorted(buffer_models(recipe)))}; {advice}."
        )
