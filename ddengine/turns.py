"""One objective for networks of several kinds, which take turns."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Generator, Tensor

from ddengine.objective import Env, Objective, ObjectiveConfig, backward
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, log
from ddengine.system.rng import generator
from ddengine.types import Facts, Json

DRAWS = 5  # networks of each kind by which several are given equal weight


def objective_of(config: ObjectiveConfig, environments: Sequence[Env]) -> Objective:
    """The objective of a recipe; of several networks one in which they take turns."""
    first, *others = environments
    objectives = [config.build(first)]
    with log.shown(not others):  # what is said of the images is said once
        objectives += [config.build(env) for env in others]
    return InTurn(config, objectives) if others else objectives[0]


class InTurn(Objective):
    """Networks of several kinds that take turns, each seen by an objective of its own.

    The n-th network that is drawn is of kind n modulo their number, from its first step to its
    last. So all kinds are drawn equally often, and nothing is drawn at random to choose one: of one
    kind alone the steps are those of its objective. The losses of the n-th kind are multiplied by
    the n-th of `scales`, or by 1.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        objectives: Sequence[Objective],
        scales: Sequence[float] = (),
    ):
        self.config = config
        self.objectives = objectives
        self.scales = scales or [1.0] * len(objectives)

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the first keeps: the others put their own in its place when they draw."""
        return self.objectives[0].init(rng)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """Those of the objective whose turn it is."""
        number = self.config.network_at(syn, step) % len(self.objectives)
        for loss in self.objectives[number].losses(syn, state, step, rng):
            yield self.scales[number] * loss


def kept(
    config: ObjectiveConfig,
    objective: Objective,
    first: dict[str, Tensor],
    syn: SyntheticSet,
    step: int,
) -> Mapping[str, Tensor]:
    """What `ObjectiveConfig.kept` says of the objective whose turn the last step was."""
    objectives = alone(objective)
    if len(objectives) == 1:
        return config.kept(objective, first, syn, step)
    last = objectives[config.network_at(syn, max(0, step - 1)) % len(objectives)]
    return config.kept(last, last.init(generator(0)), syn, step)


def alone(objective: Objective) -> Sequence[Objective]:
    """The objectives of one network each that take turns; mostly the objective itself."""
    return objective.objectives if isinstance(objective, InTurn) else [objective]


def balanced(
    config: ObjectiveConfig,
    objective: Objective,
    syn: SyntheticSet,
    learned: Collection[str],
    reference: Objective | None = None,
) -> Objective:
    """With gradients in the initial set that are as long in all networks as in one of them.

    Distances grow with the width and depth of a network, between common ones a thousandfold, and
    one learning rate would be that of the largest alone. `config` built the objective; `learned`
    are the tensors of the set that have an optimiser. `reference` is the objective in the network
    which the learning rates are for; without it that is the first, and an objective of one network
    stays as it is.
    """
    objectives = alone(objective)
    if reference is None and len(objectives) == 1:
        return objective
    lengths = [_slope(one, syn, learned) for one in objectives]
    wanted = lengths[0] if reference is None else _slope(reference, syn, learned)
    scales = torch.ones(len(objectives), device=syn.classes.device)
    for number, length in enumerate(lengths):
        if length > 0 and math.isfinite(wanted / length):
            scales[number] = wanted / length
    dist.from_first([scales])  # ranks need not agree to the last bit
    return InTurn(config, objectives, scales.tolist())


def facts(objective: Objective) -> Json:
    """What meta.json says of networks that take turns: their scales, in their order."""
    return {"scales": list(objective.scales)} if isinstance(objective, InTurn) else {}


def restore(objective: Objective, stored: Facts) -> None:
    """Put back the scales of when a run began; nothing where they were not stored then.

    Measured again, they would differ with the number of threads and the device.
    """
    scales = stored.get("scales")
    if isinstance(objective, InTurn) and scales is not None:
        objective.scales = scales


def _slope(objective: Objective, syn: SyntheticSet, learned: Collection[str]) -> float:
    """The length of the gradient in the learned tensors, the mean over some networks."""
    total = 0.0
    for draw in range(DRAWS):
        total += _length(gradients(objective, syn, learned, draw))
    return total / DRAWS


def gradients(
    objective: Objective, syn: SyntheticSet, learned: Collection[str], draw: int
) -> list[Tensor | None]:
    """The gradients in the learned tensors of a first step that is of no run; `draw` is its number.

    Neither the set nor the objective remembers it.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in syn.tensors.items()}
    for name in learned:
        tensors[name].requires_grad_()
    state = objective.init(generator(0, "balance"))
    rng = generator(0, "balance", draw)
    for loss in objective.losses(syn.with_tensors(tensors), state, 0, rng):
        backward(loss)
    return [tensors[name].grad for name in learned]


def _length(gradients: Iterable[Tensor | None]) -> float:
    """The Euclidean norm of gradients together; a tensor without one adds nothing."""
    square = 0.0
    for gradient in gradients:
        if gradient is not None:
            square += float(gradient.double().square().sum())
    return math.sqrt(square)
