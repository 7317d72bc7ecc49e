"""Training networks on a set, and measuring them: what evaluation does n times, one network after another or all in one computation."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ddengine import augment
from ddengine.data import RealSet
from ddengine.flat import is_dropout
from ddengine.losses import mixed_loss, task_loss
from ddengine.recipe import EvalConfig
from ddengine.rng import generator, scoped
from ddengine.runtime import Precision, autocast
from ddengine.types import TrainingSet

TEST_BATCH = 1000
BATCHED_BELOW = 32  # images per step under which n networks in one computation are faster than one after another on a CPU


@dataclass(frozen=True)
class ChangePoint:
    """Optimiser settings in force from `epoch` on."""

    epoch: int
    lr: float
    momentum: float
    weight_decay: float
    fresh: bool = True  # the optimiser is made anew, which clears its momentum


def schedule(config: EvalConfig, lr: float, epochs: int | None = None) -> list[ChangePoint]:
    """When the rate changes, epochs counted from 0; `epochs` is E where it differs from the protocol's.

    "half": of E + 1 epochs, after epoch E // 2 + 1 (as in most published evaluations). "thirds": of E epochs, from epochs 2 E // 3 and 5 E // 6
    on, the momentum kept (as in IDC); never before the first epoch is over.
    """
    last = config.epochs if epochs is None else epochs
    first = ChangePoint(0, lr, config.momentum, config.weight_decay)
    if config.schedule == "thirds":
        drops = [epoch for epoch in (2 * last // 3, 5 * last // 6) if epoch > 0]
        rates = [lr * config.lr_drop ** (i + 1) for i in range(len(drops))]
        later = [ChangePoint(e, rate, config.momentum_after, config.weight_decay, fresh=False) for e, rate in zip(drops, rates, strict=True)]
        return [first, *later]
    second = ChangePoint(last // 2 + 2, lr * config.lr_drop, config.momentum_after, config.weight_decay)
    return [first, second]


def epoch_batches(num: int, batch: int, rng: Generator) -> Iterator[Tensor]:
    """A random order of `num` examples in batches, the ragged last one kept."""
    yield from torch.randperm(num, generator=rng).split(batch)


class Ensemble:
    """n networks of one architecture as one: (n, B, C, H, W) -> (n, B, K). With n = 1 it is the plain network."""

    def __init__(self, networks: Sequence[nn.Module]):
        self.networks = list(networks)
        if len(self.networks) > 1:
            self._params, self._buffers = torch.func.stack_module_state(self.networks)
            self._skeleton = self.networks[0]

    def parameters(self) -> list[nn.Parameter | Tensor]:
        """What an optimiser steps."""
        return list(self.networks[0].parameters()) if len(self.networks) == 1 else list(self._params.values())

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
                        tensor.copy_((self._params if name in self._params else self._buffers)[name][i])
        return self.networks


def train_networks(
    new_model: Callable[[Generator], nn.Module],
    sets: Sequence[TrainingSet],
    seeds: Sequence[int],
    config: EvalConfig,
    lr: float,
    device: torch.device,
    *,
    max_steps: int | None = None,
    precision: Precision = "fp32",
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> list[nn.Module]:
    """Train one network per seed, network i on sets[i] (equally long), and return them in evaluation mode.

    Initialisation, order, augmentation and CutMix of a network follow from its own seed alone, so its neighbours do not matter. On CUDA, and on a CPU
    where the batches are tiny, all are trained in one computation, else one after another. `max_steps`: at most so many updates, over
    which the schedule is stretched. Cross-entropy (with soft targets where the set has them), SGD, the schedule of `config`.
    `observe` gets the indices (B,) and the logits (B, K) of each network's batch at every update, before it.
    """
    num = len(sets[0])
    first = new_model(generator(seeds[0], "network"))
    together = device.type == "cuda" or min(config.batch, num) < BATCHED_BELOW
    dropout = any(map(is_dropout, first.modules()))  # masks of networks trained together would come from one stream
    if len(seeds) > 1 and (not together or dropout):
        rest = dict(max_steps=max_steps, precision=precision, observe=observe)
        return [train_networks(new_model, [s], [seed], config, lr, device, **rest)[0] for s, seed in zip(sets, seeds, strict=True)]  # type: ignore[arg-type]
    epochs = num_epochs(num, config, max_steps)  # E
    points = schedule(config, lr, epochs)
    networks = [first, *(new_model(generator(seed, "network")) for seed in seeds[1:])]
    ensemble = Ensemble([network.to(device).train() for network in networks])
    optimiser: torch.optim.Optimizer | None = None
    left = num_updates(num, config, max_steps)
    for epoch in range(epochs + _extra_epochs(config)):
        for point in points:
            if point.epoch == epoch and (optimiser is None or point.fresh):
                optimiser = torch.optim.SGD(ensemble.parameters(), point.lr, point.momentum, weight_decay=point.weight_decay)
            elif point.epoch == epoch and optimiser is not None:
                optimiser.param_groups[0].update(lr=point.lr, momentum=point.momentum, weight_decay=point.weight_decay)
        assert optimiser is not None
        orders = [epoch_batches(num, config.batch, generator(seed, "order", epoch)) for seed in seeds]
        for step, indices in enumerate(itertools.islice(zip(*orders, strict=True), left)):
            left -= 1
            batches = [s.batch(index) for s, index in zip(sets, indices, strict=True)]
            images = torch.cat([b.images for b in batches])
            draws = [augment.sample(config.augment, len(i), generator(seed, "augment", epoch, step)) for seed, i in zip(seeds, indices, strict=True)]
            with torch.no_grad():
                images = augment.apply(config.augment, images, augment.concatenate(draws).to(device))
                mixes = _cutmix_draws(config, seeds, epoch, step, images, device)
                if any(mixes):
                    parts = images.chunk(len(seeds))
                    images = torch.cat([part if mix is None else augment.cutmix(part, mix) for part, mix in zip(parts, mixes, strict=True)])
            own_stream = scoped(generator(seeds[0], "dropout", epoch, step)) if dropout else nullcontext()
            with autocast(device, precision), own_stream:
                logits = ensemble(images.view(len(seeds), -1, *images.shape[1:])).float()
            if observe is not None:
                for index, said in zip(indices, logits.detach(), strict=True):
                    observe(index, said)
            targets = torch.cat([b.targets for b in batches])
            # the mean over each network's own batch, summed over networks: each gets its own gradient
            if any(mixes):
                loss = torch.stack([mixed_loss(*own) for own in zip(logits, targets.chunk(len(seeds)), mixes, strict=True)]).sum()
            else:
                loss = task_loss(logits.flatten(0, 1), targets) * len(seeds)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return [network.eval() for network in ensemble.unstack()]


def _cutmix_draws(
    config: EvalConfig, seeds: Sequence[int], epoch: int, step: int, images: Tensor, device: torch.device
) -> list[augment.CutMix | None]:
    """Of each network, its own."""
    num, size = len(images) // len(seeds), (images.shape[2], images.shape[3])
    draws = [augment.sample_cutmix(config.cutmix, num, size, generator(seed, "cutmix", epoch, step)) if config.cutmix else None for seed in seeds]
    return [None if draw is None else draw.to(device) for draw in draws]


def _extra_epochs(config: EvalConfig) -> int:
    """Epochs that run beyond E."""
    return 1 if config.schedule == "half" else 0


def num_epochs(num: int, config: EvalConfig, max_steps: int | None) -> int:
    """E for a set of `num` examples: the protocol's, or as few as `max_steps` updates take; the last epoch that runs may be cut short."""
    if max_steps is None:
        return config.epochs
    return min(config.epochs, math.ceil(max_steps / math.ceil(num / config.batch)) - _extra_epochs(config))


def num_updates(num: int, config: EvalConfig, max_steps: int | None) -> int:
    """Updates of a network on a set of `num` examples."""
    updates = (config.epochs + _extra_epochs(config)) * math.ceil(num / config.batch)
    return updates if max_steps is None else min(updates, max_steps)


@torch.no_grad()
def accuracy(network: nn.Module, real: RealSet, precision: Precision = "fp32") -> float:
    """Fraction of images classified correctly, in evaluation mode."""
    network.eval()
    right = torch.zeros((), dtype=torch.long, device=real.device)
    for index in torch.arange(len(real)).split(TEST_BATCH):
        batch = real.batch(index)
        with autocast(real.device, precision):
            right += (network(batch.images).argmax(1) == batch.targets).sum()
    return right.item() / len(real)
