"""What a distillation starts from and ends with.

Networks that fit the images, the labelled initial set and the objective, the set as it is shipped.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from ddengine import naming
from ddengine.data import Data
from ddengine.experts import OwnTraining
from ddengine.learning import muon
from ddengine.models import build_model, middle
from ddengine.objective import Env, Objective, environments
from ddengine.recipe import Recipe
from ddengine.sets import labels, synthetic
from ddengine.sets.codec.within_bytes import fitted
from ddengine.sets.coreset import TrainNetworks
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.turns import InTurn, alone, balanced, objective_of
from ddengine.types import Experts

ASKS_EXPERTS = ("correct", "representative", "patches")  # kinds of init that look through experts


def buffer_models(recipe: Recipe) -> tuple[str, ...]:
    """The networks of the recipe's experts: each has a store."""
    if recipe.teachers:
        return recipe.teachers
    if recipe.buffer is not None and isinstance(recipe.buffer.step, OwnTraining):
        return (recipe.buffer.step.network,)
    if recipe.buffer is not None and recipe.buffer.model:
        return (recipe.buffer.model,)
    return (recipe.model,)


def reads_experts(recipe: Recipe) -> bool:
    """Whether a distillation reads the store of the recipe.

    Of other recipes the buffer command makes one all the same.
    """
    return (
        recipe.objective.reads_experts
        or recipe.init.kind in ASKS_EXPERTS
        or recipe.targets.kind in ("logits", "features")
        or recipe.evaluation.labels == "dynamic"
    )


def check_networks(recipe: Recipe, data: Data, *, selection: bool = False) -> None:
    """Build every network of the recipe once, and fit the codec to its budget.

    So what does not go fails before any work. Of a `selection` the objective has no say in what
    networks may look at real images.
    """
    fitted(recipe, data.image_shape, data.num_classes)
    if recipe.evaluation.optimiser == "muon":
        muon.check()
    evaluated = recipe.evaluation.models or (recipe.model,)
    networks = {*recipe.networks, *recipe.evaluation.models}
    if recipe.scaled_to is not None:
        networks.add(recipe.scaled_to)
    if recipe.buffer is None or not isinstance(recipe.buffer.step, OwnTraining):
        networks |= {*buffer_models(recipe)}
    for name in sorted(networks):
        warning = naming.warning(name, data.image_shape[1:])
        if warning is not None:
            log.say(warning)
        network = build_model(name, data.image_shape, data.num_classes, generator(0))
        if name in recipe.teachers and not selection:
            recipe.objective.check_teacher(name, network)
        if recipe.evaluation.loss == "uskd" and name in evaluated:
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
    row (classes x images per class, C, H, W). `train_networks` takes the place of our training of
    the networks that choose.
    """
    envs = environments(recipe, data, device, experts, precision=precision, compile=compile)
    objective = objective_of(recipe.objective, envs)
    warning = recipe.codec.warning(recipe)
    if warning is not None:
        log.say(f"warning: {warning}")
    if images is None:
        images = _images_of_method(recipe, data, envs[0], generator(seed, "made"))
    if images is None:
        syn = synthetic.initial(recipe, data, generator(seed, "init"), experts, train_networks)
    else:
        syn = _started(recipe, data, images)
    starts_labelled = recipe.objective.reads_labels and not recipe.objective.makes_labels
    if starts_labelled:
        syn = labels.labelled(syn, experts, recipe.targets)
    # networks have chosen and labelled the images, and ranks need not agree to the last bit
    dist.from_first(syn.tensors.values())
    learned = syn.by_tensor(recipe.outer.optim).keys() & syn.tensors.keys()
    reference = None
    if recipe.scaled_to is not None:
        of_network = replace(recipe, model=recipe.scaled_to, more_models=(), scaled_to=None)
        (env,) = environments(of_network, data, device, experts, precision=precision)
        with log.shown(False):  # what is said of the images was said
            reference = recipe.objective.build(env)
    return syn, balanced(recipe.objective, objective, syn, learned, reference)


def compiled(
    objective: Objective,
    recipe: Recipe,
    data: Data,
    device: torch.device,
    experts: Experts | None,
    precision: Precision,
) -> Objective:
    """The same objective with its inner training compiled."""
    envs = environments(recipe, data, device, experts, precision=precision, compile=True)
    with log.shown(False):  # what is said of the images was said
        other = objective_of(recipe.objective, envs)
    if not isinstance(objective, InTurn):
        return other
    return InTurn(recipe.objective, alone(other), objective.scales)


def _images_of_method(recipe: Recipe, data: Data, env: Env, rng: Generator) -> Tensor | None:
    """The images that the method makes of itself, as `_started` takes them; None of most."""
    codec, items = fitted(recipe, data.image_shape, data.num_classes)
    return recipe.objective.make_images(env, items * codec.per_item, rng)


def shipped(syn: SyntheticSet, recipe: Recipe, experts: Experts | None) -> SyntheticSet:
    """The set as it is shipped: by its codec, and labelled anew where the recipe says so.

    Raises UserError for one that has diverged, which nobody could read.
    """
    final = syn.shipped()
    flaw = final.codec.flaw(final.tensors)
    if flaw is not None:
        rates = {name: optim.lr for name, optim in recipe.outer.optim.items()}
        now = ", ".join(f"outer.optim.{name}.lr (now {lr:g})" for name, lr in rates.items())
        raise UserError(f"The distilled set {flaw}: it has diverged; lower {now}.")
    if recipe.targets.relabel:
        return labels.label(final, experts, recipe.targets)
    return final


def _started(recipe: Recipe, data: Data, images: Tensor) -> SyntheticSet:
    """The set before the first step that holds given images.

    They are pixels in [0, 1], all of a class in a row. Raises UserError for any others.
    """
    codec, items = fitted(recipe, data.image_shape, data.num_classes)
    device = data.train.device
    wanted = (data.num_classes * items * codec.per_item, *data.image_shape)
    if not isinstance(images, Tensor):
        raise UserError(
            f"images is a {type(images).__name__}, and the recipe starts from floats of shape "
            f"{wanted}; give a tensor."
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
