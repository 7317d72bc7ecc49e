"""Training networks on a set, and measuring them.

This is what an evaluation does n times, one network after another or all in one computation.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.learning import augment
from ddengine.learning.class_batches import class_batch, classes_of
from ddengine.learning.ensemble import Ensemble, WeakHead
from ddengine.learning.last_batch import check_last_batch
from ddengine.learning.losses import soft_loss
from ddengine.learning.muon import Muon, muon
from ddengine.learning.torch_steps import torch_optimiser
from ddengine.models.dropout import is_dropout
from ddengine.models.norms import BatchNorm, batch_norms
from ddengine.recipe import EvalConfig
from ddengine.system.rng import generator, scoped
from ddengine.system.runtime import Precision, autocast
from ddengine.types import Batch, TrainingSet

Labels = Literal["own", "hard", "dynamic"]

TEST_BATCH = 1000
# pixels per update of networks in one computation on CUDA: 5 networks of 256 images of 224 x 224
MOST_PIXELS = 2**26
BATCHED_BELOW = 32  # images per update below which that is so whatever their size
# the same on a CPU, where larger computations only leave the cache: together is faster up to about
# that many (5 networks of 50 images of 8 x 8, of 4 of 28 x 28), and a third slower far above
MOST_PIXELS_CPU = 2**14


# When networks are trained in one computation.


@dataclass(frozen=True)
class AtOnce:
    """Which networks are trained in one computation, and which one after another."""

    below: int  # together where an update of each has fewer images than that
    pixels: int  # or where an update of all has at most so many pixels

    def together(self, networks: int, images: int, pixels: int) -> bool:
        """Whether so many networks are trained together.

        Args:
            networks: how many.
            images: in an update of each.
            pixels: of an image.
        """
        few = images < self.below
        return few or networks * images * pixels <= self.pixels


def at_once_on(device: torch.device) -> AtOnce:
    """The rule that is fastest on a device; an evaluation keeps to the one it began with."""
    if device.type == "cuda":
        return AtOnce(BATCHED_BELOW, MOST_PIXELS)
    return AtOnce(0, MOST_PIXELS_CPU)


def pixels(of: TrainingSet) -> int:
    """Height times width of an image."""
    image = of.batch(torch.arange(1)).images
    return math.prod(image.shape[2:])


# How long, and at which rates.


@dataclass(frozen=True)
class ChangePoint:
    """Optimiser settings in force from `epoch` on."""

    epoch: int
    lr: float
    momentum: float
    weight_decay: float
    fresh: bool = True  # the optimiser is made anew, which clears its momentum


def schedule(config: EvalConfig, lr: float, epochs: int | None = None) -> list[ChangePoint]:
    """When the rate changes, epochs counted from 0.

    `epochs` is E where it differs from the protocol's. "half": of E + 1 epochs, after epoch
    E // 2 + 1 (as in most published evaluations). "thirds": of E epochs, from epochs 2 E // 3 and
    5 E // 6 on, the momentum kept (as in IDC); never before the first epoch is over. "steps": the
    same from the fractions `drop_at` of E on, rounded. "cosine": in each of E epochs, all by one
    optimiser.
    """
    if epochs is None:
        epochs = config.epochs
    first = ChangePoint(0, lr, config.momentum, config.weight_decay)
    if config.schedule == "cosine":
        return [first, *_cosine(first, config.stretch, epochs)]
    if config.schedule == "thirds":
        return [first, *_drops(first, config, (2 * epochs // 3, 5 * epochs // 6))]
    if config.schedule == "steps":
        return [first, *_drops(first, config, [round(at * epochs) for at in config.drop_at])]
    drop = replace(
        first,
        epoch=epochs // 2 + 2,
        lr=lr * config.lr_drop,
        momentum=config.momentum_after,
    )
    return [first, drop]


def _cosine(first: ChangePoint, stretch: float, epochs: int) -> Iterator[ChangePoint]:
    for epoch in range(1, epochs):
        angle = math.pi * epoch / (stretch * epochs)
        rate = first.lr * (1 + math.cos(angle)) / 2
        yield replace(first, epoch=epoch, lr=rate, fresh=False)


def _drops(first: ChangePoint, config: EvalConfig, epochs: Sequence[int]) -> Iterator[ChangePoint]:
    """A drop from each of these epochs on, all by one optimiser."""
    drops = 0
    for epoch in epochs:
        if epoch == 0:
            continue
        drops += 1
        rate = first.lr * config.lr_drop**drops
        yield replace(first, epoch=epoch, lr=rate, momentum=config.momentum_after, fresh=False)


def _extra_epochs(config: EvalConfig) -> int:
    """Epochs that run beyond E."""
    return 1 if config.schedule == "half" else 0


def num_epochs(num: int, config: EvalConfig, steps: int | None = None) -> int:
    """E for a set of `num` examples: the protocol's, or as many as `steps` updates take.

    The last epoch that runs may be cut short.
    """
    if steps is None:
        return config.epochs
    per_epoch = math.ceil(num / config.batch)
    return math.ceil(steps / per_epoch) - _extra_epochs(config)


def num_updates(num: int, config: EvalConfig) -> int:
    """Updates of a network on a set of `num` examples, when all epochs of the protocol run.

    Or those that the protocol says in place of epochs.
    """
    if config.updates is not None:
        return config.updates
    epochs = config.epochs + _extra_epochs(config)
    return epochs * math.ceil(num / config.batch)


def updates_on_all(num: int, config: EvalConfig) -> int:
    """Updates of a network on `num` real images: all epochs, whatever updates a set has."""
    return num_updates(num, replace(config, updates=None))


def epoch_batches(num: int, batch: int, rng: Generator) -> Iterator[Tensor]:
    """A random order of `num` examples in batches, the ragged last one kept."""
    yield from torch.randperm(num, generator=rng).split(batch)


# Training.


def train_networks(  # long: half of it is what the arguments are
    new_model: Callable[[Generator], nn.Module],
    sets: Sequence[TrainingSet],
    seeds: Sequence[int],
    config: EvalConfig,
    lr: float,
    device: torch.device,
    *,
    steps: int | None = None,
    precision: Precision = "fp32",
    observe: Callable[[Tensor, Tensor], None] | None = None,
    teachers: Sequence[nn.Module] = (),
    labels: Labels | None = None,
    at_once: AtOnce | None = None,
    foreign: bool = False,
) -> list[nn.Module]:
    """Train one network per seed, and return them in evaluation mode.

    Initialisation, order, augmentation and mixing of a network follow from its own seed alone, so
    its neighbours do not matter. Loss, optimiser and schedule are those of `config`.

    Args:
        new_model: makes a network, initialised from a generator.
        sets: what each network is trained on, equally long.
        seeds: of each network.
        config: the protocol.
        lr: learning rate.
        device: where networks are trained.
        steps: exactly so many updates, over which the schedule is shortened or stretched; None: as
            many as its epochs are.
        precision: of the forward pass.
        observe: gets the indices (B,) and the logits (B, K) of each network's batch at every
            update, before it.
        teachers: give dynamic labels; they stay as they are.
        labels: "own", the targets of the set; "hard", its classes; "dynamic", the mean of the
            logits that `teachers` give each batch, augmented and mixed. None: config.labels.
        at_once: which networks are trained in one computation; None: as is fastest on the device.
        foreign: the network is not one of ours, and nothing is known of it: each is trained alone,
            and has a random stream of its own in every update.
    """
    labels = labels or config.labels
    assert teachers or labels != "dynamic", "dynamic labels need teachers"
    first = new_model(generator(seeds[0], "network"))
    check_last_batch(first, sets[0], config.batch, "evaluation.batch")
    random = foreign or any(map(is_dropout, first.modules()))
    size = 1
    if not random and len(sets) > 1:
        rule = at_once or at_once_on(device)
        if together(rule, config, len(sets), len(sets[0]), pixels(sets[0])):
            size = len(sets)
    labelling: list[nn.Module] = []
    if labels == "dynamic":
        labelling = _copies(teachers, config, device)
    models = _built(new_model, first, seeds)
    networks: list[nn.Module] = []
    for start in range(0, len(seeds), size):
        task = _Task(
            sets=sets[start : start + size],
            seeds=seeds[start : start + size],
            config=config,
            device=device,
            precision=precision,
            observe=observe,
            labels=labels,
            teachers=labelling,
            random=random,
        )
        networks += _trained(task, list(itertools.islice(models, size)), lr, steps)
    return networks


def together(rule: AtOnce, config: EvalConfig, networks: int, examples: int, pixels: int) -> bool:
    """Whether networks that draw nothing at random are trained in one computation.

    Masks of networks trained together would come from one stream, and the middle of a stacked
    network, which uskd looks at, is out of reach.

    Args:
        rule: which are.
        config: the protocol.
        networks: how many.
        examples: of the set of each.
        pixels: of an image.
    """
    if networks < 2 or config.loss == "uskd":
        return False
    if config.students is not None and config.students.batches.classes is not None:
        return False  # where classes are unequal, batches of other classes have another size
    return rule.together(networks, min(config.batch, examples), pixels)


def _built(
    new_model: Callable[[Generator], nn.Module], first: nn.Module, seeds: Sequence[int]
) -> Iterator[nn.Module]:
    """The first network, and the others, each made when it is asked for."""
    yield first
    for seed in seeds[1:]:
        yield new_model(generator(seed, "network"))


@dataclass(frozen=True)
class _Task:
    """What every update of networks in one computation reads."""

    sets: Sequence[TrainingSet]
    seeds: Sequence[int]
    config: EvalConfig
    device: torch.device
    precision: Precision
    observe: Callable[[Tensor, Tensor], None] | None
    labels: Labels
    teachers: Sequence[nn.Module]  # of dynamic labels, in the modes they label in
    random: bool  # the networks draw random numbers of their own


def _trained(
    task: _Task, models: Sequence[nn.Module], lr: float, steps: int | None
) -> list[nn.Module]:
    """The given networks, which are new, trained in one computation."""
    for network in models:
        network.to(task.device).train()
    ensemble = Ensemble(models)
    head = _weak_head(task, models[0])
    if steps is None:
        steps = task.config.updates
    updates = _by_epochs if task.config.students is None else _by_students
    optimiser: torch.optim.Optimizer | Muon | None = None
    for update in updates(task, lr, steps):
        if update.change is not None:
            optimiser = _changed(optimiser, task.config, update.change, ensemble, head)
        assert optimiser is not None
        loss = _step_loss(task, ensemble, head, update.indices, update.at)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    if head is not None:
        head.remove()
    trained = ensemble.unstack()
    for network in trained:
        network.eval()
    return trained


def _weak_head(task: _Task, network: nn.Module) -> WeakHead | None:
    """The second classifier where the loss needs one."""
    if task.config.loss != "uskd":
        return None
    image = task.sets[0].batch(torch.arange(1)).images
    return WeakHead(network, image, generator(task.seeds[0], "weak head"))


class _Update(NamedTuple):
    """What an update sees, and at which rate it is made."""

    at: tuple[int, int]  # epoch, and step within it
    indices: Sequence[Tensor]  # (B,) of each network
    change: ChangePoint | None  # settings of the optimiser from here on; None: as before


def _by_epochs(task: _Task, lr: float, steps: int | None) -> Iterator[_Update]:
    """The updates of a protocol: epochs, of which the last may be cut short."""
    config = task.config
    num = len(task.sets[0])
    epochs = num_epochs(num, config, steps)
    points = {}  # where two fall on one epoch, the later one
    for point in schedule(config, lr, epochs):
        points[point.epoch] = point
    left = num_updates(num, config) if steps is None else steps
    for epoch in range(epochs + _extra_epochs(config)):
        change = points.get(epoch)
        for step, indices in enumerate(itertools.islice(_order(task, num, epoch), left)):
            left -= 1
            yield _Update((epoch, step), indices, change)
            change = None


def _order(task: _Task, num: int, epoch: int) -> Iterator[tuple[Tensor, ...]]:
    """For each update of an epoch the indices (B,) of each network."""
    orders = []
    for seed in task.seeds:
        rng = generator(seed, "order", epoch)
        orders.append(epoch_batches(num, task.config.batch, rng))
    return zip(*orders, strict=True)


def _by_students(task: _Task, lr: float, steps: int | None) -> Iterator[_Update]:
    """The updates of students of the set: batches class by class, at rates of the mean `lr`."""
    config = task.config
    assert config.students is not None and steps is not None
    rates = config.students.rates_of(lr)
    classes = [classes_of(examples) for examples in task.sets]
    for step in range(steps):
        indices = []
        for seed, of_set in zip(task.seeds, classes, strict=True):
            rng = generator(seed, "class batch", step)
            indices.append(class_batch(of_set, config.students.batches, step, rng))
        point = ChangePoint(step, rates[step % len(rates)], 0.0, config.weight_decay, fresh=False)
        yield _Update((0, step), indices, point)


def _step_loss(
    task: _Task,
    ensemble: Ensemble,
    head: WeakHead | None,
    indices: Sequence[Tensor],
    at: tuple[int, int],
) -> Tensor:
    """The loss of one update, summed over networks; `at`: epoch, and step within it."""
    batches = []
    for examples, index in zip(task.sets, indices, strict=True):
        batches.append(examples.batch(index))
    images, mixes = _as_seen(task, batches, at)
    each = images.view(len(batches), -1, *images.shape[1:])
    stream = nullcontext()
    if task.random:
        stream = scoped(generator(task.seeds[0], "dropout", *at))
    with autocast(task.device, task.precision), stream:
        logits = ensemble(each).float()
    if task.observe is not None:
        for index, output in zip(indices, logits.detach(), strict=True):
            task.observe(index, output)
    targets = _targets(task, batches, images)
    weak = None if head is None else head.logits()
    return _loss(task, logits, targets, batches, mixes, weak)


def _as_seen(
    task: _Task, batches: Sequence[Batch], at: tuple[int, int]
) -> tuple[Tensor, list[augment.Mix | None]]:
    """The images of all networks (n B, C, H, W), augmented and mixed, and how each was mixed."""
    config = task.config
    draws = []
    mixes: list[augment.Mix | None] = []
    for seed, batch in zip(task.seeds, batches, strict=True):
        rng = generator(seed, "augment", *at)
        draws.append(augment.sample(config.augment, len(batch.images), rng))
        mix = _mix_draw(config, seed, at, batch.images)
        if mix is not None:
            mix = mix.to(task.device)
        mixes.append(mix)
    images = torch.cat([batch.images for batch in batches])
    draw = augment.concatenate(draws).to(task.device)
    with torch.no_grad():
        images = augment.apply(config.augment, images, draw)
        if any(mixes):
            parts = images.chunk(len(batches))
            mixed = map(augment.mixed, parts, mixes)
            images = torch.cat(list(mixed))
    return images, mixes


def _mix_draw(
    config: EvalConfig, seed: int, at: tuple[int, int], images: Tensor
) -> augment.Mix | None:
    """How a network's images (B, C, H, W) of an update are mixed."""
    num, _, height, width = images.shape
    if config.cutmix:
        rng = generator(seed, "cutmix", *at)
        return augment.sample_cutmix(config.cutmix, num, (height, width), rng)
    if config.mixup:
        rng = generator(seed, "mixup", *at)
        return augment.sample_mixup(config.mixup, num, rng)
    return None


def _targets(task: _Task, batches: Sequence[Batch], images: Tensor) -> Sequence[Tensor]:
    """Of each network the targets of its images, which are given as it saw them."""
    if task.labels != "dynamic":
        return [target(batch, task.labels) for batch in batches]
    parts: Sequence[Tensor] = [images]
    if task.config.teacher_mode == "train":
        # a teacher in training mode normalises by the batch of one network
        parts = images.chunk(len(batches))
    said = [teacher_logits(task.teachers, part, task.precision) for part in parts]
    return torch.cat(said).chunk(len(batches))


def target(batch: Batch, labels: Labels) -> Tensor:
    """What a network is trained to say: the targets of a batch, or its classes."""
    if labels == "own" or batch.classes is None:
        return batch.targets
    return batch.classes


def _classes(batch: Batch) -> Tensor | None:
    """(B,) int64; None where a set does not say."""
    if batch.classes is None and not batch.targets.is_floating_point():
        return batch.targets
    return batch.classes


def _loss(
    task: _Task,
    logits: Tensor,
    targets: Sequence[Tensor],
    batches: Sequence[Batch],
    mixes: Sequence[augment.Mix | None],
    weak: Tensor | None,
) -> Tensor:
    """The mean over each network's own batch, summed over networks.

    So each network gets its own gradient. logits (n, B, K).
    """
    loss = partial(soft_loss, task.config, of_mixed=task.labels == "dynamic", weak=weak)
    classes = list(map(_classes, batches))
    if any(mixes):
        losses = list(map(loss, logits, targets, classes, mixes))
        return torch.stack(losses).sum()
    known = [one for one in classes if one is not None]
    all_classes = None
    if len(known) == len(classes):
        all_classes = torch.cat(known)
    all_targets = torch.cat(list(targets))
    mean = loss(logits.flatten(0, 1), all_targets, all_classes, None)
    return mean * len(logits)


# What is optimised, and how.


def _spared(network: nn.Module) -> set[str]:
    """Names of the biases and of the parameters of normalisation layers.

    That is all of one dimension, and those that layer normalisation has an image of.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, BatchNorm)
    of_norms = set()
    for module in network.modules():
        if isinstance(module, norms):
            of_norms.update(map(id, module.parameters(recurse=False)))
    spared = set()
    for name, parameter in network.named_parameters():
        if parameter.dim() <= 1 or id(parameter) in of_norms:
            spared.add(name)
    return spared


def _optimiser(
    config: EvalConfig, point: ChangePoint, ensemble: Ensemble, head: WeakHead | None
) -> torch.optim.Optimizer | Muon:
    """A new one.

    Its first group has the weight decay; a second one, where some parameters are spared, has none.
    """
    # by the dimensions in one network, which stacked parameters have one more than
    spared = set() if config.decay_norms else _spared(ensemble.networks[0])
    if config.optimiser == "muon" and config.students is None:
        parameters, networks = ensemble.parameters(), len(ensemble.networks)
        return muon(parameters, spared, point.lr, point.weight_decay, networks=networks)
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in ensemble.parameters().items():
        group = rest if name in spared else decayed
        group.append(parameter)
    if head is not None:
        group = decayed if config.decay_norms else rest
        decayed.append(head.linear.weight)
        group.append(head.linear.bias)
    groups = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": point.weight_decay})
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    if config.students is not None:
        return torch_optimiser(config.students.step, groups, point.lr, point.weight_decay)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, point.lr, betas=(0.9, 0.999))
    return torch.optim.SGD(groups, point.lr, point.momentum)


def _changed(
    optimiser: torch.optim.Optimizer | Muon | None,
    config: EvalConfig,
    point: ChangePoint,
    ensemble: Ensemble,
    head: WeakHead | None,
) -> torch.optim.Optimizer | Muon:
    """The optimiser with the settings of a change point, or a new one."""
    if optimiser is None or point.fresh:
        return _optimiser(config, point, ensemble, head)
    for group in optimiser.param_groups:
        group["lr"] = point.lr
        if config.optimiser == "sgd" and config.students is None:
            group["momentum"] = point.momentum
    optimiser.param_groups[0]["weight_decay"] = point.weight_decay
    return optimiser


# Teachers.


def _copies(
    teachers: Sequence[nn.Module], config: EvalConfig, device: torch.device
) -> list[nn.Module]:
    """Copies of the teachers in the mode of config.teacher_mode.

    So the given ones keep their modes and running statistics. In training mode BatchNorm normalises
    by the batch; dropout stays off, because a label must not depend on a global generator.
    """
    copies = []
    for teacher in teachers:
        copied = copy.deepcopy(teacher).to(device)
        copied.eval().requires_grad_(False)
        if config.teacher_mode == "train":
            for norm in batch_norms(copied):
                norm.train()
        copies.append(copied)
    return copies


@torch.no_grad()
def teacher_logits(
    teachers: Sequence[nn.Module], images: Tensor, precision: Precision = "fp32"
) -> Tensor:
    """The mean of what the teachers say of images (B, C, H, W): (B, K) float32.

    They stay in the modes they are in.
    """
    said = []
    with autocast(images.device, precision):
        for teacher in teachers:
            said.append(teacher(images).float())
    return torch.stack(said).mean(0)


# How good.


@dataclass(frozen=True)
class Classified:
    """What a network made of labelled images, class by class."""

    right: tuple[float, ...]  # images classified correctly, of each class
    images: tuple[int, ...]  # all images of each class
    # the network says nothing, and that it is right about a class by chance counts for nothing
    diverged: bool = False

    @property
    def accuracy(self) -> float | None:
        """Fraction of the images classified correctly; None of a network that diverged."""
        if self.diverged:
            return None
        return sum(self.right) / sum(self.images)


def diverged(network: nn.Module) -> bool:
    """Whether a parameter or a buffer of a network is not finite."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return True
    return False


def of_classes(labels: Tensor, hits: Tensor, num_classes: int, *, diverged: bool) -> Classified:
    """What the classes (N,) of images, and which of them were hit (N,) bool, come to."""
    right = torch.bincount(labels[hits], minlength=num_classes)
    images = torch.bincount(labels, minlength=num_classes)
    return Classified(tuple(right.tolist()), tuple(images.tolist()), diverged)


@torch.no_grad()
def classified(network: nn.Module, real: RealSet, precision: Precision = "fp32") -> Classified:
    """What a network, in evaluation mode, makes of images.

    It has diverged where it, or anything that it says of them, is not finite.
    """
    network.eval()
    finite = torch.ones((), dtype=torch.bool, device=real.device)
    hits = []
    for index in torch.arange(len(real)).split(TEST_BATCH):
        images, classes = real.batch(index)
        with autocast(real.device, precision):
            logits = network(images)
        finite &= logits.isfinite().all()
        hits.append(logits.argmax(1) == classes)
    lost = diverged(network) or not bool(finite)
    labels = real.labels.cpu()
    all_hits = torch.cat(hits).cpu()
    return of_classes(labels, all_hits, real.num_classes, diverged=lost)


def accuracy(network: nn.Module, real: RealSet, precision: Precision = "fp32") -> float | None:
    """Fraction of images classified correctly, in evaluation mode.

    None of a network that diverged.
    """
    return classified(network, real, precision).accuracy


# Both together, as an evaluation uses them.


@dataclass(frozen=True)
class Means:
    """How networks are trained and judged.

    Something else than this module stands in for it where that is wanted: an estimate of the time,
    which only notes what it was asked for, or a training function of the user.
    """

    train_networks: Callable[..., list[nn.Module]]
    classified: Callable[[nn.Module, RealSet, Precision], Classified]


def usual_means() -> Means:
    """The two functions of this module."""
    return Means(train_networks, classified)
