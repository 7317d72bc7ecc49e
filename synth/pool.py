"""A pool of networks that are trained on what the synthetic images are, a step at a time.

FRePo (Zhou et al., NeurIPS 2022, arXiv 2206.00719) and KRR-ST share it: an outer step draws one of
`size` networks, looks at images through it in evaluation mode, and then trains it by one step on
the synthetic images and their targets. The ages of networks are spread from the start, and one that
has had `steps` steps is replaced by a new one. So outer steps see networks of all ages.

What the networks have become is the objective's state, so that it is checkpointed: for the network
i parameters "theta.i" (P,), statistics "statistics.i" (Q,), what its optimiser keeps, and in "ages"
the steps that each has had.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.flat import flatten, flatten_buffers, unflatten_into
from ddengine.learning.optim import may_keep, updated
from ddengine.learning.teachers import features
from ddengine.models.dropout import is_dropout
from ddengine.objective import Env, Objective, ObjectiveConfig
from ddengine.recipe import AugmentConfig, OptimConfig, require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, log
from ddengine.system.rng import generator, on_device
from ddengine.system.runtime import autocast
from synth.classes import share_of

State = dict[str, Tensor]
KEPT = ("momentum", "square", "count")  # what optimisers keep


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How many networks there are, and how they are trained."""

    size: int = 10  # networks
    steps: int = 1000  # that a network is trained before a new one replaces it
    # networks have fewer steps than this behind them when the first is drawn, one at least; None:
    # fewer than `steps`
    start_below: int | None = None
    # of the networks; published for KRR-ST: SGD with momentum 0.9 and weight decay
    optim: OptimConfig = OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-3)
    batch: int | None = None  # most examples of an update, drawn anew; None: all
    # the steps of a new network are counted from 0. False: not, as KRR-ST's released program has
    # it, so that one that was replaced is replaced at each later draw, and is never trained again
    restart_count: bool = True

    def __post_init__(self) -> None:
        require_at_least("objective.pool.size", self.size)
        require_at_least("objective.pool.steps", self.steps, 2)
        require_at_least("objective.pool.start_below", self.start_below, 2)
        require_at_least("objective.pool.batch", self.batch)
        require(
            self.optim.schedule == "constant",
            (
                f"objective.pool.optim.schedule {self.optim.schedule} has no end to fall to, as "
                "networks come and go; set it to constant."
            ),
        )

    @property
    def vectors(self) -> int:
        """Of the size of a network's parameters, that the pool and one step of it hold."""
        kept = 1 if self.optim.kind == "sgd" else 2
        return (self.size + 2) * (1 + kept) + 2

    def quick_start(self) -> tuple["Pool", float]:
        """The same with a step of each network before the first outer step, and how many it has."""
        return replace(self, start_below=2), (self.start_below or self.steps) / 2

    def small(self) -> "Pool":
        """With two networks of three steps each."""
        steps = min(3, self.steps)
        return replace(self, size=min(2, self.size), steps=steps, start_below=None)


@dataclass(frozen=True, kw_only=True)
class OnPool(ObjectiveConfig):
    """What the options of methods that look through a pool have in common."""

    pool: Pool
    real_batch: int  # real images per step

    def advice(self, ipc: int) -> str:
        """Fewer images or networks."""
        return f"lower ipc (now {ipc}) or objective.pool.size (now {self.pool.size})"

    def quick_start(self) -> tuple[Self, float]:
        """Without most of what the pool is trained before the first step."""
        pool, times = self.pool.quick_start()
        return replace(self, pool=pool), times

    def kept(
        self, objective: Objective, first: State, syn: SyntheticSet, step: int
    ) -> Mapping[str, Tensor]:
        """The pool, and of networks that were trained also what the optimiser keeps."""
        state = dict(first)
        for number in range(self.pool.size):
            for kind, tensor in may_keep(first[f"theta.{number}"]).items():
                state[f"{kind}.{number}"] = tensor
        return state

    def share(self, objective: Objective, moves: bool) -> bool:
        """The real images of a step are shared; every rank trains the pool."""
        assert isinstance(objective, PoolObjective)
        objective.networks.shared = not moves
        return not moves

    def small(self) -> Self:
        """With two networks of few steps, and 8 real images."""
        return replace(self, pool=self.pool.small(), real_batch=8)


class Networks:
    """The networks of a pool on one device, one of which is built into a module at a time."""

    def __init__(self, pool: Pool, env: Env):
        self.pool = pool
        self.env = env
        self.shared = False  # over the ranks
        self._module = env.new_model(generator(0)).to(env.device)

    def state(self, rng: Generator) -> State:
        """New networks, none of which has been trained."""
        ages = torch.full((self.pool.size,), -1, device=self.env.device)
        state = {"ages": ages, "last": ages[0].clone()}
        for number in range(self.pool.size):
            self._renew(state, number, rng)
        return state

    def next(self, syn: SyntheticSet, state: State, rng: Generator) -> nn.Module:
        """The network of an outer step, in evaluation mode and not to be trained.

        Before it is drawn, that of the step before is trained on what the images have become since,
        and before the first step all are, by 1 to `start_below` - 1 steps.
        """
        last = int(state["last"])
        if last < 0:
            self._begin(syn, state, rng)
        else:
            self._go_on(syn, state, last, rng)
        if self.shared:  # ranks need not agree to the last bit
            dist.from_first(state.values())
        number = int(torch.randint(self.pool.size, (1,), generator=rng))
        state["last"] = torch.full_like(state["last"], number)
        return self._filled(state, number).eval().requires_grad_(False)

    def _begin(self, syn: SyntheticSet, state: State, rng: Generator) -> None:
        """Train all networks, each for another time."""
        below = self.pool.start_below or self.pool.steps
        ages = torch.randint(1, below, (self.pool.size,), generator=rng)
        log.say(f"the {self.pool.size} networks of the pool are trained for {ages.sum()} steps")
        for number, age in enumerate(ages.tolist()):
            for _ in range(age):
                self._train(syn, state, number, rng)
        state["ages"] = ages.to(self.env.device)

    def _go_on(self, syn: SyntheticSet, state: State, number: int, rng: Generator) -> None:
        """Train a network by a step, or replace it by a new one where it has had enough of them."""
        ages = state["ages"].clone()
        if int(ages[number]) < self.pool.steps:
            self._train(syn, state, number, rng)
            ages[number] += 1
        else:
            self._renew(state, number, rng)
            if self.pool.restart_count:
                ages[number] = 0
        state["ages"] = ages

    def _renew(self, state: State, number: int, rng: Generator) -> None:
        """Put a new network in the place of one."""
        network = self.env.new_model(rng).to(self.env.device)
        state[f"theta.{number}"] = flatten(network)
        _keep_statistics(state, number, network)
        for kind in KEPT:  # the optimiser starts anew
            state.pop(f"{kind}.{number}", None)

    def _filled(self, state: State, number: int) -> nn.Module:
        """The module, which holds a network of the pool until another is asked for."""
        statistics = state.get(f"statistics.{number}")
        unflatten_into(self._module, state[f"theta.{number}"], statistics)
        return self._module

    def _train(self, syn: SyntheticSet, state: State, number: int, rng: Generator) -> None:
        """One step of a network towards the targets of the images, by mean squared error."""
        network = self._filled(state, number).train().requires_grad_(True)
        for module in network.modules():
            if is_dropout(module):  # it has no generator of its own
                module.eval()
        with torch.no_grad():
            images, targets = syn.batch(_some(len(syn), self.pool.batch, rng))
        with autocast(self.env.device, self.env.model.precision):
            outputs = network(images)
        loss = functional.mse_loss(outputs.to(targets.dtype), targets)
        slopes = torch.autograd.grad(loss, list(network.parameters()))
        gradient = torch.cat([slope.flatten() for slope in slopes])
        optim = self.pool.optim
        theta = state[f"theta.{number}"]
        new = updated(theta, gradient, _kept(state, number), optim, optim.lr)
        state[f"theta.{number}"] = new.tensor
        for kind, kept in new.kept.items():
            state[f"{kind}.{number}"] = kept
        _keep_statistics(state, number, network)


class PoolObjective(Objective):
    """What looks at a batch of real images through a network of a pool in each step."""

    def __init__(self, pool: Pool, env: Env):
        self.env = env
        self.networks = Networks(pool, env)

    def init(self, rng: Generator) -> State:
        """The pool."""
        return self.networks.state(rng)

    def mine(self, images: Tensor) -> slice:
        """Which of the real images (B, ...) of a step are this rank's; of one rank all."""
        everything = slice(0, len(images))
        return share_of(everything) if self.networks.shared else everything


def _keep_statistics(state: State, number: int, network: nn.Module) -> None:
    """Those of its BatchNorm layers, where it has any."""
    statistics = flatten_buffers(network)
    if statistics is not None:
        state[f"statistics.{number}"] = statistics


def _kept(state: Mapping[str, Tensor], number: int) -> State:
    """What the optimiser keeps of a network, by kind."""
    kept = {}
    for kind in KEPT:
        if f"{kind}.{number}" in state:
            kept[kind] = state[f"{kind}.{number}"]
    return kept


def _some(num: int, most: int | None, rng: Generator) -> Tensor:
    """Indices of all examples, or of `most` drawn ones, on the CPU."""
    if most is None or num <= most:
        return torch.arange(num)
    return torch.randperm(num, generator=rng)[:most]


def embedded(env: Env, network: nn.Module, images: Tensor) -> Tensor:
    """What lies before a network's last layer (B, D), differentiable in images (B, C, H, W)."""
    embed = network.embed
    with autocast(env.device, env.model.precision):
        return embed(images).flatten(1)  # type: ignore[operator]


def constant(env: Env, network: nn.Module, images: Tensor) -> Tensor:
    """The same without a graph, part by part."""
    with autocast(env.device, env.model.precision):
        return features(network, images)


def real_images(env: Env, num: int, config: AugmentConfig, rng: Generator) -> tuple[Tensor, Tensor]:
    """(index (B,) of random real images of any class, these images (B, C, H, W) augmented).

    Without repetition; all where there are fewer. No label is read.
    """
    source = on_device(rng, env.device)
    order = torch.randperm(len(env.real), generator=source, device=env.device)
    index = order[:num]
    draw = augment.sample(config, len(index), rng).to(env.device)
    return index, augment.apply(config, env.real.images(index), draw)
