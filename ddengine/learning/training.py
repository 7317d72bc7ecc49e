"""Training networks on a set, and measuring them: what evaluation does n times, one network after
another or all in one computation.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from ddengine import models
from ddengine.data import RealSet
from ddengine.learning import augment
from ddengine.learning.flat import is_dropout
from ddengine.learning.losses import soft_loss
from ddengine.recipe import EvalConfig
from ddengine.system.rng import generator, scoped
from ddengine.system.runtime import Precision, autocast
from ddengine.types import Batch, TrainingSet

Labels = Literal["own", "hard", "dynamic"]

TEST_BATCH = 1000
# per step of networks in one computation on CUDA: 5 networks of 256 images of 224 x 224
MOST_PIXELS = 2**26
# images per step under which n networks in one computation are faster than one after another on a
# CPU
BATCHED_BELOW = 32


@dataclass(frozen=True)
class ChangePoint:
    """Optimiser settings in force from `epoch` on."""

    epoch: int
    lr: float
    momentum: float
    weight_decay: float
    fresh: bool = True  # the optimiser is made anew, which clears its momentum


def schedule(config: EvalConfig, lr: float, epochs: int | None = None) -> list[ChangePoint]:
    """When the rate changes, epochs counted from 0; `epochs` is E where it differs from the
    protocol's.

    "half": of E + 1 epochs, after epoch E // 2 + 1 (as in most published evaluations). "thirds": of
    E epochs, from epochs 2 E // 3 and 5 E // 6 on, the momentum kept (as in IDC); never before the
    first epoch is over. "cosine": in each of E epochs, all by one optimiser.
    """
    last = config.epochs if epochs is None else epochs
    first = ChangePoint(0, lr, config.momentum, config.weight_decay)
    if config.schedule == "cosine":
        later = [
            replace(
                first,
                epoch=t,
                lr=lr * (1 + math.cos(math.pi * t / (config.stretch * last))) / 2,
                fresh=False,
            )
            for t in range(1, last)
        ]
        return [first, *later]
    if config.schedule == "thirds":
        drops = [epoch for epoch in (2 * last // 3, 5 * last // 6) if epoch > 0]
        rates = [lr * config.lr_drop ** (i + 1) for i in range(len(drops))]
        later = [
            ChangePoint(e, rate, config.momentum_after, config.weight_decay, fresh=False)
            for e, rate in zip(drops, rates, strict=True)
        ]
        return [first, *later]
    second = ChangePoint(
        last // 2 + 2, lr * config.lr_drop, config.momentum_after, config.weight_decay
    )
    return [first, second]


def epoch_batches(num: int, batch: int, rng: Generator) -> Iterator[Tensor]:
    """A random order of `num` examples in batches, the ragged last one kept."""
    yield from torch.randperm(num, generator=rng).split(batch)


class Ensemble:
    """n networks of one architecture as one: (n, B, C, H, W) -> (n, B, K).

    With n = 1 it is the plain network.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        self.networks = list(networks)
        if len(self.networks) > 1:
            self._params, self._buffers = torch.func.stack_module_state(self.networks)
            self._skeleton = self.networks[0]

    def parameters(self) -> dict[str, Tensor]:
        """What an optimiser steps, by name; of several networks each is stacked."""
        return (
            dict(self.networks[0].named_parameters()) if len(self.networks) == 1 else self._params
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of all networks, each on its own images."""
        if len(self.networks) == 1:
            return self.networks[0](images[0])[None]

        def one(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self._skeleton, (params, buffers), (x,))

        return torch.vmap(one)(self._params, self._buffers, images)

    def unstack(self) -> list[nn.Module]:
        """The networks with the state reached so far."""
        if len(self.networks) > 1:
            with torch.no_grad():
                for i, network in enumerate(self.networks):
                    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                        tensor.copy_(
                            (self._params if name in self._params else self._buffers)[name][i]
                        )
        return self.networks


def train_networks(
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
) -> list[nn.Module]:
    """Train one network per seed, network i on sets[i] (equally long), and return them in
    evaluation mode.

    Initialisation, order, augmentation and mixing of a network follow from its own seed alone, so
    its neighbours do not matter. On CUDA, and on a CPU where the batches are tiny, all are trained
    in one computation, else one after another. `steps`: exactly so many updates, over which the
    schedule is shortened or stretched; None: as many as its epochs are. Loss, optimiser and
    schedule are those of `config`. `labels` (None: config.labels): "own", the targets of the set;
    "hard", its classes; "dynamic", the mean of the logits that `teachers` give each batch,
    augmented and mixed; the teachers stay as they are. `observe` gets the indices (B,) and the
    logits (B, K) of each network's batch at every update, before it.
    """
    num, labels = len(sets[0]), labels or config.labels
    first = new_model(generator(seeds[0], "network"))
    batch = min(config.batch, num)
    together = batch < BATCHED_BELOW or (
        device.type == "cuda" and len(seeds) * batch * _pixels(sets[0]) <= MOST_PIXELS
    )
    # masks of networks trained together would come from one stream
    dropout = any(map(is_dropout, first.modules()))
    # the middle of a stacked network is out of reach
    if len(seeds) > 1 and (not together or dropout or config.loss == "uskd"):
        rest: dict[str, Any] = dict(
            steps=steps, precision=precision, observe=observe, teachers=teachers, labels=labels
        )
        return [
            train_networks(new_model, [s], [seed], config, lr, device, **rest)[0]  # type: ignore[arg-type]
            for s, seed in zip(sets, seeds, strict=True)
        ]
    assert teachers or labels != "dynamic", "dynamic labels need teachers"
    epochs = num_epochs(num, config, steps)  # E
    # where two fall on one epoch, the later one
    points = {point.epoch: point for point in schedule(config, lr, epochs)}
    networks = [first, *(new_model(generator(seed, "network")) for seed in seeds[1:])]
    ensemble = Ensemble([network.to(device).train() for network in networks])
    teaching = _copies(teachers, config, device) if labels == "dynamic" else []
    head = (
        WeakHead(first, sets[0].batch(torch.arange(1)).images, generator(seeds[0], "weak head"))
        if config.loss == "uskd"
        else None
    )
    optimiser: torch.optim.Optimizer | None = None
    left = num_updates(num, config) if steps is None else steps
    for epoch in range(epochs + _extra_epochs(config)):
        if point := points.get(epoch):
            if optimiser is None or point.fresh:
                optimiser = _optimiser(config, point, ensemble, head)
            else:
                _change(optimiser, config, point)
        assert optimiser is not None
        orders = [
            epoch_batches(num, config.batch, generator(seed, "order", epoch)) for seed in seeds
        ]
        for step, indices in enumerate(itertools.islice(zip(*orders, strict=True), left)):
            left -= 1
            batches = [s.batch(index) for s, index in zip(sets, indices, strict=True)]
            images = torch.cat([b.images for b in batches])
            draws = [
                augment.sample(config.augment, len(i), generator(seed, "augment", epoch, step))
                for seed, i in zip(seeds, indices, strict=True)
            ]
            with torch.no_grad():
                images = augment.apply(
                    config.augment, images, augment.concatenate(draws).to(device)
                )
                mixes = _mix_draws(config, seeds, epoch, step, images, device)
                if any(mixes):
                    parts = images.chunk(len(seeds))
                    images = torch.cat(
                        [
                            part if draw is None else augment.mix(part, draw)
                            for part, draw in zip(parts, mixes, strict=True)
                        ]
                    )
            own_stream = (
                scoped(generator(seeds[0], "dropout", epoch, step)) if dropout else nullcontext()
            )
            with autocast(device, precision), own_stream:
                logits = ensemble(images.view(len(seeds), -1, *images.shape[1:])).float()
            if observe is not None:
                for index, said in zip(indices, logits.detach(), strict=True):
                    observe(index, said)
            targets: Sequence[Tensor]
            if labels == "dynamic":
                # a teacher in training mode normalises by the batch of one network
                parts = images.chunk(len(seeds) if config.teacher_mode == "train" else 1)
                targets = torch.cat(
                    [teacher_logits(teaching, part, precision) for part in parts]
                ).chunk(len(seeds))
            else:
                targets = [
                    b.targets if labels == "own" or b.classes is None else b.classes
                    for b in batches
                ]
            loss = _loss(
                config,
                logits,
                targets,
                [_classes(b) for b in batches],
                mixes,
                labels == "dynamic",
                head,
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    if head is not None:
        head.remove()
    return [network.eval() for network in ensemble.unstack()]


def _pixels(of: TrainingSet) -> int:
    """Height times width of an image."""
    return math.prod(of.batch(torch.arange(1)).images.shape[2:])


def _mix_draws(
    config: EvalConfig,
    seeds: Sequence[int],
    epoch: int,
    step: int,
    images: Tensor,
    device: torch.device,
) -> list[augment.Mix | None]:
    """Of each network, its own."""
    num, size = len(images) // len(seeds), (images.shape[2], images.shape[3])
    draws: list[augment.Mix | None] = [None] * len(seeds)
    if config.cutmix:
        draws = [
            augment.sample_cutmix(config.cutmix, num, size, generator(seed, "cutmix", epoch, step))
            for seed in seeds
        ]
    elif config.mixup:
        draws = [
            augment.sample_mixup(config.mixup, num, generator(seed, "mixup", epoch, step))
            for seed in seeds
        ]
    return [None if draw is None else draw.to(device) for draw in draws]


def _classes(batch: Batch) -> Tensor | None:
    """(B,) int64; None where a set does not say."""
    return (
        batch.targets
        if batch.classes is None and not batch.targets.is_floating_point()
        else batch.classes
    )


def _loss(
    config: EvalConfig, logits: Tensor, targets: Sequence[Tensor], classes: Sequence[Tensor | None],
    mixes: Sequence[augment.Mix | None], of_mixed: bool, head: "WeakHead | None",
) -> Tensor:  # fmt: skip
    """The mean over each network's own batch, summed over networks: each gets its own gradient.
    logits (n, B, K).
    """
    loss = partial(
        soft_loss, config, of_mixed=of_mixed, weak=None if head is None else head.logits()
    )
    if any(mixes):
        return torch.stack(
            [loss(*own) for own in zip(logits, targets, classes, mixes, strict=True)]
        ).sum()
    known = [c for c in classes if c is not None]
    return loss(
        logits.flatten(0, 1),
        torch.cat(list(targets)),
        torch.cat(known) if len(known) == len(classes) else None,
        None,
    ) * len(logits)


# What is optimised, and how.


def _spared(network: nn.Module) -> set[str]:
    """Names of the biases and of the parameters of normalisation layers: all of one dimension, and
    those that layer normalisation has an image of.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    of_norms = {
        id(p)
        for module in network.modules()
        if isinstance(module, norms)
        for p in module.parameters(recurse=False)
    }
    return {name for name, p in network.named_parameters() if p.dim() <= 1 or id(p) in of_norms}


def _optimiser(
    config: EvalConfig, point: ChangePoint, ensemble: Ensemble, head: "WeakHead | None"
) -> torch.optim.Optimizer:
    """A new one; its first group has the weight decay, a second one, where some parameters have
    none, has not.
    """
    named = ensemble.parameters()
    # by the dimensions in one network, which stacked parameters have one more than
    spared = set() if config.decay_norms else _spared(ensemble.networks[0])
    groups = [
        [p for name, p in named.items() if name not in spared],
        [p for name, p in named.items() if name in spared],
    ]
    if head is not None:
        groups[0].append(head.linear.weight)
        groups[0 if config.decay_norms else 1].append(head.linear.bias)
    given = [
        {"params": params, "weight_decay": decay}
        for params, decay in zip(groups, (point.weight_decay, 0.0), strict=True)
        if params
    ]
    if config.optimiser == "adamw":
        return torch.optim.AdamW(given, point.lr, betas=(0.9, 0.999))
    return torch.optim.SGD(given, point.lr, point.momentum)


def _change(optimiser: torch.optim.Optimizer, config: EvalConfig, point: ChangePoint) -> None:
    """Go on with other settings."""
    for group in optimiser.param_groups:
        group["lr"] = point.lr
        if config.optimiser == "sgd":
            group["momentum"] = point.momentum
    optimiser.param_groups[0]["weight_decay"] = point.weight_decay


# Teachers.


def _copies(
    teachers: Sequence[nn.Module], config: EvalConfig, device: torch.device
) -> list[nn.Module]:
    """Of the teachers, as config.teacher_mode says; so the given ones keep their modes and running
    statistics.

    In training mode BatchNorm normalises by the batch; dropout stays off, because a label must not
    depend on a global generator.
    """
    copied = [
        copy.deepcopy(teacher).to(device).eval().requires_grad_(False) for teacher in teachers
    ]
    if config.teacher_mode == "train":
        for part in itertools.chain.from_iterable(teacher.modules() for teacher in copied):
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.train()
    return copied


@torch.no_grad()
def teacher_logits(
    teachers: Sequence[nn.Module], images: Tensor, precision: Precision = "fp32"
) -> Tensor:
    """(B, K) float32: the mean of what the teachers, in the modes they are in, say of images (B, C,
    H, W).
    """
    with autocast(images.device, precision):
        said = [teacher(images).float() for teacher in teachers]
    return torch.stack(said).mean(0)


class WeakHead:
    """USKD's second classifier, of what the middle of a network says, averaged over space; it is
    trained with the network and then not used.
    """

    def __init__(self, network: nn.Module, images: Tensor, rng: Generator):
        """The head is initialised from `rng`; the network looks at `images` (B, C, H, W) once,
        which changes nothing in it.
        """
        image_shape = (images.shape[1], images.shape[2], images.shape[3])
        self._seen: Tensor | None = None
        self._hook = models.middle(network, image_shape).register_forward_hook(self._see)
        mode = network.training
        with torch.no_grad():
            num_classes = network.eval()(images).shape[1]
        network.train(mode)
        assert self._seen is not None
        with scoped(rng):
            self.linear = nn.Linear(self._seen.shape[1], num_classes)
        self.linear.to(images.device)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # averaged at once: what follows may change the output in place
        self._seen = output.float().mean((2, 3))

    def logits(self) -> Tensor:
        """(B, K) of the batch that the network saw last."""
        assert self._seen is not None
        return self.linear(self._seen)

    def remove(self) -> None:
        """Let the network go."""
        self._hook.remove()


# How long.


def _extra_epochs(config: EvalConfig) -> int:
    """Epochs that run beyond E."""
    return 1 if config.schedule == "half" else 0


def num_epochs(num: int, config: EvalConfig, steps: int | None = None) -> int:
    """E for a set of `num` examples: the protocol's, or as many as `steps` updates take; the last
    epoch that runs may be cut short.
    """
    return (
        config.epochs
        if steps is None
        else math.ceil(steps / math.ceil(num / config.batch)) - _extra_epochs(config)
    )


def num_updates(num: int, config: EvalConfig) -> int:
    """Updates of a network on a set of `num` examples, when all epochs of the protocol run."""
    return (config.epochs + _extra_epochs(config)) * math.ceil(num / config.batch)


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
        return None if self.diverged else sum(self.right) / sum(self.images)


def diverged(network: nn.Module) -> bool:
    """Whether a parameter or a buffer of a network is not finite."""
    return not all(
        bool(t.isfinite().all())
        for t in (*network.parameters(), *network.buffers())
        if t.is_floating_point()
    )


@torch.no_grad()
def classified(network: nn.Module, real: RealSet, precision: Precision = "fp32") -> Classified:
    """What a network, in evaluation mode, makes of images.

    It has diverged where it, or anything that it says of them, is not finite.
    """
    network.eval()
    finite = torch.ones((), dtype=torch.bool, device=real.device)
    hits = []
    for index in torch.arange(len(real)).split(TEST_BATCH):
        batch = real.batch(index)
        with autocast(real.device, precision):
            logits = network(batch.images)
        finite &= logits.isfinite().all()
        hits.append(logits.argmax(1) == batch.targets)
    labels = real.labels.cpu()
    right, images = (
        torch.bincount(chosen, minlength=real.num_classes).tolist()
        for chosen in (labels[torch.cat(hits).cpu()], labels)
    )
    return Classified(tuple(right), tuple(images), diverged=diverged(network) or not bool(finite))


def accuracy(network: nn.Module, real: RealSet, precision: Precision = "fp32") -> float | None:
    """Fraction of images classified correctly, in evaluation mode; None of a network that diverged."""
    return classified(network, real, precision).accuracy
