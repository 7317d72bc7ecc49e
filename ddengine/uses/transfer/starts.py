"""What networks start from: nothing, the set, random real images, the experts of the set."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ddengine.data import RealSet, Subset
from ddengine.evaluation.contenders import set_labels
from ddengine.evaluation.decoded import Decoded, freeze
from ddengine.evaluation.rates import adapted
from ddengine.evaluation.train import train_one
from ddengine.learning.head import embedding, fits, head_of, with_body, without_head
from ddengine.learning.last_batch import check_last_batch
from ddengine.learning.training import TEST_BATCH, Labels, diverged
from ddengine.sets.coreset import random_index
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.types import Json, TrainingSet
from ddengine.uses.transfer.context import Bench, Context

CLASS_BYTES = 8
NOTHING = "nothing"  # in the file of a network that is all head, because no file holds no tensor


@dataclass(frozen=True)
class Lesson:
    """What networks are pre-trained on."""

    of: TrainingSet
    labels: Labels
    outputs: int  # of a network while it is trained on it
    lr: float | None  # None: the usual one of the protocol


@dataclass(frozen=True)
class Start:
    """What the networks of a row start from."""

    name: str
    said: str  # in words
    lesson: Callable[[int], Lesson] | None = None  # seed of a network -> its pre-training
    trained: Sequence[nn.Module] = ()  # networks that were trained already
    bytes: int = 0  # stored of what they were pre-trained on
    is_new: bool = False  # networks are not pre-trained at all

    def suits(self, context: Context, model: str) -> bool:
        """Whether networks of that name can start so: of other networks nothing can be copied."""
        if not self.trained:
            return True
        network = context.new_model(model, 2)(generator(0))
        head = head_of(network, context.image_shape)
        trained = self.trained[0]
        body = without_head(trained, head_of(trained, context.image_shape))
        return fits(body, network, head)


def starts(context: Context) -> tuple[list[Start], list[str]]:
    """(what the rows start from, why others are missing, in sentences)."""
    syn, controls = context.syn, context.config.controls
    said = f"the set, {len(syn)} examples with {syn.targets.words}"
    made = [Start(context.name, said, _on_set(context), (), syn.nbytes)]
    missing = []
    if "none" in controls:
        made.append(Start("none", "the networks are new", is_new=True))
    if "random" in controls:
        random = _random(context)
        if random is None:
            missing.append(
                "no row random: its images need the features of the network whose features the set "
                "has, and that network was not given; --experts names its store"
            )
        else:
            made.append(random)
    if "experts" in controls:
        if context.experts:
            source = context.source
            size = source.bytes if source is not None else 0
            said = _said_of_experts(context)
            made.append(Start("experts", said, trained=context.experts, bytes=size))
        else:
            missing.append(
                "no row experts: no networks that were trained on all source images were given; "
                "--experts names their store"
            )
    return made, missing


def _said_of_experts(context: Context) -> str:
    """What the experts are, and where networks share one that their deviation is not of experts."""
    num, networks = len(context.experts), context.config.networks
    if num >= networks:
        return context.experts_said
    shared = "one body" if num == 1 else f"{num} bodies"
    return (
        f"{context.experts_said}; all {networks} networks of a row start from {shared}, so their "
        "deviation is of what comes after pre-training alone"
    )


def _on_set(context: Context) -> Callable[[int], Lesson]:
    """Pre-training on the set, all of whose networks see the same."""
    syn = context.syn
    decoded = freeze(syn, context.device)
    labels = set_labels(context.pretraining)
    outputs = syn.num_outputs if labels == "own" else len(syn.class_names)

    def lesson(seed: int) -> Lesson:
        return Lesson(decoded, labels, outputs, syn.lr)

    return lesson


def _random(context: Context) -> Start | None:
    """Random real images, as many as the set stores, each network with its own draw.

    They have their classes, or the features that the first expert gives them, where the targets of
    the set are features; None where there is no expert then.
    """
    syn, source = context.syn, context.source
    if source is None:
        return None
    train, shape = source.train, context.image_shape
    if not syn.targets.regressed:
        per_class = min(math.ceil(syn.images_per_class()), *map(len, train.members))
        num = per_class * source.num_classes

        def labelled(seed: int) -> Lesson:
            rng = generator(seed, "transfer", "random")
            index = random_index(train, per_class, source.class_names, rng)
            return Lesson(Subset(train, index), "hard", source.num_classes, None)

        said = f"{num} random real images with their classes"
        return Start("random", said, labelled, (), num * (math.prod(shape) + CLASS_BYTES))
    if not context.experts:
        return None
    num = min(len(train), round(syn.images_per_class() * len(syn.class_names)))
    network = context.experts[0]

    def featured(seed: int) -> Lesson:
        rng = generator(seed, "transfer", "random")
        index = torch.randperm(len(train), generator=rng)[:num]
        return Lesson(_with_features(train, index, network), "own", syn.num_outputs, None)

    said = f"{num} random real images with the features that the target network gives them"
    return Start("random", said, featured, (), num * (math.prod(shape) + 4 * syn.num_outputs))


@torch.no_grad()
def _with_features(train: RealSet, index: torch.Tensor, network: nn.Module) -> Decoded:
    """Real images with what a network says of them before its last layer."""
    embed = embedding(network.eval(), head_of(network, train.image_shape))
    images, features = [], []
    for part in index.split(TEST_BATCH):
        images.append(train.images(part))
        features.append(embed(images[-1]).float())
    classes = train.labels[index.to(train.device)]
    return Decoded(torch.cat(images), torch.cat(features), classes, ledger={})


# Checks.


def check_networks(context: Context) -> None:
    """Raise UserError for networks without a head, and for experts that do not fit the set."""
    shape = context.image_shape
    if set_labels(context.pretraining) == "dynamic" and not context.experts:
        raise UserError(
            "The protocol of the set has dynamic labels, which its experts make at each update; "
            "name their store with --experts, or set --pretraining.labels own."
        )
    for model in context.models:
        network = context.new_model(model, 2)(generator(0))
        head_of(network, shape)
        _check_last_batches(context, network)
    if not context.experts or not context.syn.targets.regressed:
        return
    network = context.experts[0]
    head = head_of(network, shape)
    with torch.no_grad():
        images = torch.zeros(2, *shape, device=context.device)
        width = embedding(network.eval(), head)(images).shape[1]
    if width != context.syn.num_outputs:
        raise UserError(
            f"The features of the set have {context.syn.num_outputs} numbers and those of the "
            f"network that was given {width}, so the set's are of another network; name the store "
            "of that one with --experts, or leave --experts out."
        )


def _check_last_batches(context: Context, network: nn.Module) -> None:
    """Raise UserError where the last batch of an epoch is an image that the network cannot take."""
    check_last_batch(network, context.syn, context.pretraining.batch, "pretraining.batch")
    if "finetune" not in context.config.ways:
        return
    for data in context.datasets:
        for size in context.config.sizes:
            images = Subset(data.train, data.chosen(size, context.seed, 0))
            check_last_batch(network, images, context.config.batch, "batch")


# Networks.


def make_ready(context: Context, start: Start, model: str, seed: int) -> None:
    """Pre-train a network where that was not done, and keep all of it but its head in a file."""
    path = context.path_of(start.name, model, seed)
    if start.is_new or path.is_file():
        return
    files.make_folder(context.folder)

    def train() -> Json:
        if start.trained:
            network = start.trained[(seed - context.seed) % len(start.trained)]
        else:
            network = _train(context, start, model, seed)
        body = without_head(network, head_of(network, context.image_shape))
        files.write_tensors(path, body or {NOTHING: torch.zeros(1)})
        return {"diverged": diverged(network)}

    key = f"pretraining/{start.name}/{model}/{seed}"
    if context.memo.get(key) is None:
        context.remember(key, f"pre-training {model} on {start.name}", train)
    else:  # its file is lost
        train()


def _train(context: Context, start: Start, model: str, seed: int) -> nn.Module:
    """Pre-train a network."""
    assert start.lesson is not None
    lesson = start.lesson(seed)
    protocol = context.pretraining
    learns = model == context.home and adapted(protocol, model).optimiser == "sgd"
    return train_one(
        lesson.of,
        context.factories.get(model, model),
        protocol,
        seed=seed,
        device=context.device,
        lr=lesson.lr if learns else None,
        num_classes=lesson.outputs,
        precision=context.precision,
        teachers=context.experts if lesson.labels == "dynamic" else (),
        labels=lesson.labels,
    )


def new_network(
    bench: Bench, start: Start, model: str, seed: int, num_classes: int
) -> Callable[[torch.Generator], nn.Module]:
    """What makes a network of so many classes, whose head alone is new, from a generator.

    `make_ready` was called for what it starts from.
    """
    build = bench.new_model(model, num_classes)
    if start.is_new:
        return build
    body, _ = files.read_tensors(bench.path_of(start.name, model, seed))
    body.pop(NOTHING, None)

    def started(rng: torch.Generator) -> nn.Module:
        network = build(rng)
        return with_body(body, network, head_of(network, bench.image_shape))

    return started
