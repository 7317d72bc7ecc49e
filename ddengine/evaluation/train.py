"""Training a single network on a set, by a protocol."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ddengine.data import Data
from ddengine.evaluation import brought
from ddengine.evaluation.bench import SEARCH_SEED
from ddengine.evaluation.brought import Factory
from ddengine.evaluation.contenders import set_labels
from ddengine.evaluation.decoded import freeze
from ddengine.evaluation.rates import adapted
from ddengine.learning.training import AtOnce, Labels, Means, usual_means
from ddengine.models import ImageShape, build_model
from ddengine.recipe import EvalConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.runtime import Precision
from ddengine.types import TrainingSet


def train_one(  # long: most of it is what the arguments are
    of: SyntheticSet | TrainingSet,
    network: str | Factory | nn.Module,
    config: EvalConfig,
    *,
    seed: int,
    device: torch.device,
    lr: float | None = None,
    steps: int | None = None,
    home: str = "",
    num_classes: int | None = None,
    precision: Precision = "fp32",
    teachers: Sequence[nn.Module] = (),
    labels: Labels | None = None,
    at_once: AtOnce | None = None,
    means: Means | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> nn.Module:
    """A network trained on a set by a protocol, in evaluation mode.

    It is the network that an evaluation by the same protocol trains with that seed and rate, to the
    bit where that trains networks one after another, to rounding where it trains several in one
    computation.

    Args:
        of: a distilled set, or anything else that networks can be trained on.
        network: the name of one of our networks, a function that makes a network of an image shape
            (C, H, W) and a number of classes, or a network, of which a copy is trained.
        config: the protocol.
        seed: decides initialisation, order, augmentation and mixing.
        device: where the network is trained.
        lr: learning rate; None: the learned one of the set, where it has one for SGD and for this
            network, else the usual one of the protocol.
        steps: exactly so many updates; None: the epochs of the protocol.
        home: the name of the network that the learned rate was learned for.
        num_classes: K, of sets that do not say it.
        precision: of the forward pass.
        teachers: make dynamic labels.
        labels: "own", "hard" or "dynamic"; None: those that the protocol gives to a set.
        at_once: of the evaluation whose network this is to be.
        means: what trains; None: our loop.
        observe: gets the indices (B,) and the logits (B, K) of every update, before it.
    """
    name = ""
    options = {"foreign": True}
    if isinstance(network, str):
        name = network
        options = {}
    if isinstance(of, SyntheticSet):
        config = of.targets.trained_by(config)
    protocol = adapted(config, name)
    if lr is None:
        lr = _usual_rate(of, protocol, name, home)
    if isinstance(of, SyntheticSet):
        num_classes = of.num_outputs
        of = freeze(of, device)
    _, channels, height, width = of.batch(torch.arange(1)).images.shape
    shape = (channels, height, width)
    means = means or usual_means()
    (trained,) = means.train_networks(
        _maker(network, shape, num_classes),
        [of],
        [seed],
        protocol,
        lr,
        device,
        steps=steps,
        precision=precision,
        teachers=teachers,
        labels=labels or set_labels(config),
        at_once=at_once,
        observe=observe,
        **options,
    )
    return trained


def _usual_rate(
    of: SyntheticSet | TrainingSet, protocol: EvalConfig, name: str, home: str
) -> float:
    """The rate learned with a set, where it has one for SGD and this network, else the usual one.

    `home` is the network that it was learned for.
    """
    by_set = protocol.optimiser == "sgd" and protocol.rate != "fixed"
    belongs = bool(name) and name == home and by_set
    if belongs and isinstance(of, SyntheticSet) and of.lr:
        return of.lr
    return protocol.lr


def _maker(
    network: str | Factory | nn.Module, shape: ImageShape, num_classes: int | None
) -> Callable[[Generator], nn.Module]:
    """What makes the network from a generator."""
    if isinstance(network, nn.Module):
        if num_classes is not None:
            brought.check_network(copy.deepcopy(network).cpu(), shape, num_classes)
        return lambda rng: copy.deepcopy(network)
    assert num_classes is not None, "of a set that does not say its classes, give num_classes"
    if isinstance(network, str):
        return partial(build_model, network, shape, num_classes)
    brought.check_factories({brought.name_of(network): network}, shape, num_classes)
    return partial(brought.build, network, shape, num_classes)


def validate_on_each(
    syn: SyntheticSet, data: Data, config: EvalConfig, models: Sequence[str], **options: Any
) -> float | None:
    """The mean over networks of what `validate`, which takes the options, says of each.

    None where one diverged.
    """
    reached = []
    for model in models:
        accuracy = validate(syn, data, config, model, **options)
        if accuracy is None:
            return None
        reached.append(accuracy)
    return sum(reached) / len(reached)


def validate(
    syn: SyntheticSet,
    data: Data,
    config: EvalConfig,
    model: str,
    *,
    seed: int,
    device: torch.device,
    precision: Precision,
    teachers: Sequence[nn.Module] = (),
    means: Means | None = None,
) -> float | None:
    """Accuracy on the validation split of one network trained on `syn`.

    It has the learned rate of the set, or the protocol's usual one. None where it diverged.
    """
    assert data.validation is not None
    means = means or usual_means()
    network = train_one(
        syn,
        model,
        config,
        seed=seed + 3 * SEARCH_SEED,
        device=device,
        home=model,
        precision=precision,
        teachers=teachers,
        labels=config.labels,
        means=means,
    )
    count = means.classified
    said = syn.targets.evaluate(network, data.train, data.validation, precision, count)
    return said.accuracy
