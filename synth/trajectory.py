"""Trajectory matching.

MTT (Cazenavette et al., CVPR 2022, arXiv 2203.11932), and what FTD, TESLA, DATM and AST build on
it.

A student starts at an expert's snapshot, trains N steps on the synthetic images, and should arrive
where the expert was M epochs later:

    loss = |theta_N - theta*_{t+M}|^2 / |theta*_t - theta*_{t+M}|^2       (eq. 2)

The slots hold what later methods change: where segments start, what happens to the start, a factor
on the inner loss, at which steps the student is compared and in which parameters, and how it
steps. Differs from
the released code: expert and start epoch are independent uniform draws (the released loader walks
through shuffled files), and every random number follows from the seed.

TESLA (Cui et al., ICML 2023, arXiv 2211.10586) is `backprop` detached, which is biased although its
paper calls it exact, and for ImageNet-1K `labels` target: each segment trains on the labels that
the expert gives the images at the segment's end.

ATT (Liu et al., ECCV 2024, arXiv 2407.14245) is `match` nearest: the student is compared after the
step that brought it nearest to where it should be, in place of its last. Steps after that one are
made to find it, and cut from the graph.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.flat import flatten
from ddengine.learning.inner import inner_gradient
from ddengine.learning.losses import task_loss
from ddengine.learning.memory import graph_bytes, graphs_that_fit
from ddengine.learning.optim import may_keep
from ddengine.learning.teachers import predict
from ddengine.learning.unroll import BatchFn, unroll
from ddengine.learning.updates import HeavyBall, Sgd, Update
from ddengine.objective import Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig, require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.configs import LATE
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import sent
from ddengine.types import AutoBackprop, Facts, Json
from synth.views import KEPT, THETA, Extractor


class Window(Protocol):
    """Where segments start."""

    def __call__(self, step: int) -> tuple[int, int]:
        """Start epochs low <= t < high at an outer step."""
        ...

    @property
    def last(self) -> int:
        """The latest start epoch over the whole run."""
        ...

    def small(self) -> "Window":
        """The same window within the first two epochs."""
        ...


WindowT = TypeVar("WindowT", bound=Window)
# None or Callable[[Tensor, list[torch.Size], Generator], Tensor]: start (P,) -> start
PerturbT = TypeVar("PerturbT", bound=Any)
# None or Callable[[int, int], float]: (start epoch, one past the last start) -> factor on the loss
LossScaleT = TypeVar("LossScaleT", bound=Any)
# None or Callable[[int, int], ...]: (N, M) -> ((inner step, expert epoch, weight), ...)
MilestonesT = TypeVar("MilestonesT", bound=Any)
# None or an Update: how the student steps
StudentT = TypeVar("StudentT", bound=Any)
# None or Callable[[Tensor], Tensor]: squared errors (P,) -> which of them count (n,)
CoordinatesT = TypeVar("CoordinatesT", bound=Any)
# None or synth.views.ViewsApart: keeps several views of a stored image apart
ViewsT = TypeVar("ViewsT", bound=Any)

EMPTY: Any = None  # a slot without a part; parts are frozen dataclasses
Milestones = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, kw_only=True)
class UniformWindow:
    """Segments start uniformly in low..high - 1, at every outer step."""

    low: int = 0  # first start epoch
    high: int  # one past the last start epoch (MTT's max_start_epoch)

    def __post_init__(self) -> None:
        require(
            0 <= self.low < self.high,
            f"objective.window must have 0 <= low < high, got low {self.low} and high {self.high}.",
        )

    def __call__(self, step: int) -> tuple[int, int]:
        """(low, high) at an outer step."""
        return self.low, self.high

    @property
    def last(self) -> int:
        """The latest start epoch over the whole run."""
        return self.high - 1

    def small(self) -> "UniformWindow":
        """The first two epochs."""
        return UniformWindow(high=2)


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(
    ObjectiveConfig,
    Generic[WindowT, PerturbT, LossScaleT, MilestonesT, StudentT, CoordinatesT, ViewsT],
):
    """Configuration of the objective."""

    inner_steps: int  # N, student updates per segment
    expert_epochs: int  # M, length of a segment
    window: WindowT  # where segments start
    batch: int | None = None  # synthetic examples per student update; None: all
    momentum: float = 0.0  # heavy-ball coefficient of the student
    lr: float = 0.01  # where the learned student learning rate starts
    augment: AugmentConfig = AugmentConfig()
    # full and replay are exact, replay in flat memory; auto is replay that keeps the graphs of as
    # many steps as a quarter of the memory holds, up to all; detached is TESLA's biased form
    backprop: AutoBackprop = "auto"
    # the set's own, or the logits of the network that the segment leads to
    labels: Literal["stored", "target"] = "stored"
    perturb: PerturbT = EMPTY  # what happens to the start of a segment
    loss_scale: LossScaleT = EMPTY  # factor on the inner loss, by the segment's start
    milestones: MilestonesT = EMPTY  # comparisons before the last step
    # how the student steps, such as Adam; None: by SGD with `momentum`
    student: StudentT = field(default=EMPTY, metadata=LATE)
    # after which step the student is compared with the end of the segment: its last | the one that
    # is nearest to that end, by the sum of absolute differences; of equal ones the last
    match: Literal["last", "nearest"] = field(default="last", metadata=LATE)
    coordinates: CoordinatesT = field(default=EMPTY, metadata=LATE)  # which parameters are compared
    # segments start at any point from the first start epoch to the last, whole or not (MCT)
    fractional: bool = field(default=False, metadata=LATE)
    # a second network, by which the views of a stored image are kept apart (HaBa)
    views: ViewsT = field(default=EMPTY, metadata=LATE)

    def __post_init__(self) -> None:
        require_at_least("objective.inner_steps", self.inner_steps)
        require_at_least("objective.expert_epochs", self.expert_epochs)
        require(
            self.batch is None or self.batch >= 1,
            f"objective.batch must be at least 1, got {self.batch}; None means all.",
        )
        require(
            0 <= self.momentum < 1,
            f"objective.momentum must be at least 0 and below 1, got {self.momentum}.",
        )
        require(
            0 < self.lr < float("inf"), f"objective.lr must be positive and finite, got {self.lr}."
        )
        require(
            self.student is None or self.momentum == 0,
            f"objective.momentum {self.momentum} is of SGD, and objective.student steps by "
            f"{type(self.student).__name__}; set objective.momentum 0.",
        )
        require(
            self.match == "last" or not self.milestones,
            "objective.match nearest compares after one step alone, and objective.milestones name "
            "others; take milestones from a recipe without (--take objective.milestones=RECIPE).",
        )
        require(
            not (self.fractional and self.labels == "target"),
            "objective.labels target asks the network at the end of a segment, and with "
            "objective.fractional True that is between epochs; set one of them back.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite for the parts in use, as each part says its own."""
        cited = ["cazenavette2022mtt"]
        if self.backprop == "detached" or self.labels == "target":
            cited.append("cui2023tesla")
        if self.match == "nearest":
            cited.append("liu2024att")
        return tuple(cited)

    @property
    def reads_experts(self) -> bool:
        """Whose segments are matched."""
        return True

    @property
    def follows_experts(self) -> bool:
        """From the start of a segment to its end."""
        return True

    @property
    def reads_between_epochs(self) -> bool:
        """Where segments start anywhere."""
        return self.fractional

    @property
    def makes_labels(self) -> bool:
        """Whether examples are labelled anew in each segment, and so the set in the end."""
        return self.labels == "target"

    def initial(self) -> dict[str, float]:
        """Scalars the objective learns beside the images, with their start."""
        return {"lr": self.lr}

    def update(self) -> Update:
        """How the student steps."""
        if self.student is not None:
            return self.student
        return HeavyBall(momentum=self.momentum) if self.momentum else Sgd()

    def epochs(self) -> list[int]:
        """Expert epochs that a run may read."""
        first, _ = self.window(0)
        read: set[int] = set()
        for start in range(first, self.window.last + 1):
            read.update(range(start, start + self.expert_epochs + 1))
        return sorted(read)

    def check(self, stored: Sequence[int]) -> None:
        """Raise UserError unless these expert epochs cover the window."""
        epochs = self.epochs()
        missing = [epoch for epoch in epochs if epoch not in stored]
        if missing:
            raise UserError(
                f"Segments of {self.expert_epochs} epochs starting at {epochs[0]} to "
                f"{self.window.last} need expert epochs up to "
                f"{epochs[-1]}, and epoch {missing[0]} is not among the {stored[0]} to "
                f"{stored[-1]} there are; lower objective.window.high or "
                "objective.expert_epochs, or train longer experts (buffer.epochs, buffer.keep)."
            )

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the graph of one inner step, or of all that are kept.

        And of parameter vectors of each step: of an update that is not linear in the gradient also
        the gradient and what it keeps.
        """
        images = images_of_update(self, syn)
        if self.backprop == "full":
            images *= self.inner_steps
        update = self.update()
        of_step = 3
        if not update.linear:
            kept = update.start(torch.zeros(0))
            of_step = 4 + len(kept)
        vectors = of_step * self.inner_steps + 10
        return network_bytes(env, images=images, vectors=vectors)

    def advice(self, ipc: int) -> str:
        """Keep one graph, or train on fewer images at once."""
        if self.backprop == "full":
            return "set objective.backprop replay"
        if self.batch is not None:
            return f"lower objective.batch (now {self.batch})"
        return f"lower ipc (now {ipc}) or set objective.batch"

    def small(self) -> Self:
        """Four inner steps of 8 images, towards experts two epochs later, at a rate to suit."""
        return replace(
            self,
            inner_steps=4,
            expert_epochs=2,
            window=self.window.small(),
            batch=8,
            lr=0.3 * (1 - self.momentum),
            views=self.views and self.views.small(),
        )

    def build(self, env: Env) -> "TrajectoryObjective":
        """The objective.

        Raises UserError when there are no experts, or their epochs do not cover the window.
        """
        if env.experts is None:
            raise UserError(
                "Trajectory matching needs experts; give the recipe a buffer (--take "
                "buffer=RECIPE) and run the buffer command."
            )
        if env.experts.num_params != env.model.num_params:
            raise UserError(
                f"The experts have {env.experts.num_params} parameters and the model "
                f"{env.model.num_params}; "
                "distill with the network of the experts, or make a store for this one."
            )
        early = [step for step, _, _ in self.comparisons()[:-1]]
        before_last = all(1 <= step < self.inner_steps for step in early)
        if not before_last or early != sorted(set(early)):
            raise UserError(
                "objective.milestones must be at ascending steps before the last of "
                f"{self.inner_steps}, got {early}; "
                "raise objective.inner_steps."
            )
        self.check(env.experts.epochs)
        return TrajectoryObjective(self, env)

    def kept(
        self, objective: Objective, first: dict[str, Tensor], syn: SyntheticSet, step: int
    ) -> Mapping[str, Tensor]:
        """Of a second network also what its optimiser keeps."""
        if not self.views:
            return first
        of_optimiser = {f"{KEPT}{name}": tensor for name, tensor in may_keep(first[THETA]).items()}
        return first | of_optimiser

    def choices(self, objective: Objective, syn: SyntheticSet, memory: int) -> Json:
        """How many graphs are kept of what auto replays.

        None where the inner gradient is compiled: it is replayed faster than a graph is kept.
        """
        if self.views:
            self.views.check(syn)
        if self.backprop != "auto" or not isinstance(objective, TrajectoryObjective):
            return {}
        if objective.env.compile:
            return {"kept_graphs": 0}
        of_one = graph_bytes(partial(objective.reached_by_one_step, syn))
        return {"kept_graphs": graphs_that_fit(of_one, self.inner_steps, memory)}

    def choose(self, objective: Objective, choices: Facts) -> None:
        """Keep so many graphs."""
        if isinstance(objective, TrajectoryObjective):
            objective.kept_graphs = choices.get("kept_graphs", 0)

    def comparisons(self) -> Milestones:
        """When the student is compared with the expert: on the way, and after its last step."""
        last = (self.inner_steps, self.expert_epochs, 1.0)
        if not self.milestones:
            return (last,)
        return (*self.milestones(self.inner_steps, self.expert_epochs), last)


class TrajectoryObjective(Objective):
    """See the module."""

    def __init__(self, config: TrajectoryMatching, env: Env):
        self.config = config
        self.env = env

        def loss(theta: Tensor, images: Tensor, targets: Tensor, factor: Tensor) -> Tensor:
            return task_loss(env.model(theta, images), targets) * factor

        self.gradient = inner_gradient(loss, env.compile)
        self.kept_graphs = 0  # of the last steps of a segment
        self.extractor = Extractor(config.views, env) if config.views else None

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """The network that looks at views, where there is one."""
        return self.extractor.start(rng) if self.extractor else {}

    def reached_by_one_step(self, syn: SyntheticSet) -> Tensor:
        """The parameters after a step whose graph is kept; of any network and batch."""
        config, device = self.config, self.env.device
        rng = generator(0, "choices")
        index = torch.arange(images_of_update(config, syn), device=device)
        draw = augment.sample(config.augment, len(index), rng).to(device)
        theta = flatten(self.env.new_model(rng)).to(device)
        factor = torch.ones((), device=device)
        inputs = {name: tensor.detach().clone() for name, tensor in syn.tensors.items()}
        for tensor in inputs.values():
            tensor.requires_grad_(tensor.is_floating_point())

        def batch(tensors: Mapping[str, Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
            images, targets = syn.with_tensors(tensors).batch(index)
            return augment.apply(config.augment, images, draw), targets, factor

        lr = inputs.pop("lr")
        reached = unroll(self.gradient, batch, theta, inputs, 1, lr=lr, kept_graphs=1)
        return reached

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss, of one segment of one expert; where views are kept apart theirs too."""
        config = self.config
        device = self.env.device
        segment = self._segment(step, rng)
        batches = student_batches(len(syn), config.batch or len(syn), config.inner_steps, rng)
        sizes = [len(index) for index in batches]
        joined = sent(torch.cat(batches), device)  # one copy, not one in each inner step
        indices = joined.split(sizes)
        if config.labels == "target":
            used = joined.unique()  # the host waits for their number
            labels = self._labels(segment, syn, used)
        else:
            used, labels = joined, None
        draws = [augment.sample(config.augment, size, rng).to(device) for size in sizes]
        factor = self._factor(segment)

        def batch(tensors: Mapping[str, Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
            images, targets = syn.with_tensors(tensors).batch(indices[k])
            if labels is not None:
                targets = labels.index_select(0, torch.searchsorted(used, indices[k]))
            return augment.apply(config.augment, images, draws[k]), targets, factor

        inputs = dict(syn.tensors)
        lr = inputs.pop("lr")
        steps = config.inner_steps
        if config.match == "nearest":
            steps = self._nearest_step(segment, batch, inputs, lr)
        reached = unroll(
            self.gradient,
            batch,
            segment.theta,
            inputs,
            steps,
            lr=lr,
            update=config.update(),
            keep=[k for k, _, _ in segment.milestones[:-1]],
            backprop="replay" if config.backprop == "auto" else config.backprop,
            kept_graphs=min(self.kept_graphs, steps),
        )
        weights = [weight for _, _, weight in segment.milestones]
        yield matching_loss(
            reached, segment.ends, segment.theta, weights, coordinates=config.coordinates
        )
        if self.extractor:
            yield self.extractor.loss(syn, state, rng)

    @torch.no_grad()
    def _nearest_step(
        self, segment: "Segment", batch: BatchFn, inputs: Mapping[str, Tensor], lr: Tensor
    ) -> int:
        """After how many steps the student is nearest to the end of the segment."""
        config = self.config
        num = config.inner_steps
        update, early = config.update(), range(1, num)
        reached = unroll(
            self.gradient, batch, segment.theta, inputs, num, lr=lr, update=update, keep=early
        )
        return nearest(reached, segment.ends[-1])

    def _segment(self, step: int, rng: Generator) -> "Segment":
        """A segment drawn for an outer step."""
        config = self.config
        experts = self.env.experts
        assert experts is not None
        low, high = config.window(step)
        expert = int(torch.randint(experts.num_experts, (1,), generator=rng))
        start: float = int(torch.randint(low, high, (1,), generator=rng))
        if config.fractional:
            start = low + (high - 1 - low) * float(torch.rand((), generator=rng))
        milestones = config.comparisons()
        epochs = [start]
        for _, epoch, _ in milestones:
            epochs.append(start + epoch)
        snapshots = sent(experts.snapshots(expert, epochs), self.env.device)
        theta = snapshots[0]
        if config.perturb:
            theta = config.perturb(theta, self.env.model.shapes, rng)
        return Segment(expert, start, theta, snapshots[1:], milestones)

    def _factor(self, segment: "Segment") -> Tensor:
        """The factor on the inner loss."""
        factor = 1.0
        if self.config.loss_scale:
            factor = self.config.loss_scale(int(segment.start), self.config.window.last + 1)
        return torch.full((), factor, device=self.env.device)

    @torch.no_grad()
    def _labels(self, segment: "Segment", syn: SyntheticSet, used: Tensor) -> Tensor:
        """The logits (n, K) of the network that the segment leads to, of the examples `used`."""
        experts = self.env.experts
        assert experts is not None
        network = experts.load(segment.expert, int(segment.start) + self.config.expert_epochs)
        return predict(network.to(self.env.device), syn.batch(used).images)


@dataclass(frozen=True)
class Segment:
    """What a student is to follow."""

    expert: int
    start: float  # the epoch it starts at
    theta: Tensor  # (P,) where the student starts: the snapshot, perturbed or not
    ends: Tensor  # (J, P) where it should be, at each milestone
    milestones: Milestones  # J, the last after all inner steps


def nearest(reached: Tensor, target: Tensor) -> int:
    """Which of the parameters (N, P) after step 1, 2, ... is nearest to a target (P,).

    By the sum of absolute differences, of equal ones the last (ATT). The released program takes
    none where all sums are above 10,000.
    """
    distances = (reached - target).abs().sum(1)
    return len(distances) - int(distances.flip(0).argmin())


def matching_loss(
    reached: Tensor,
    targets: Tensor,
    start: Tensor,
    weights: list[float],
    *,
    coordinates: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sum over milestones of weight * |reached - target|^2 / |start - target|^2.

    Of reached and targets (J, P) and start (P,). `coordinates` says, of the squared errors (P,) of
    each, which are in both sums; None: all.
    """
    errors = (reached - targets).square()
    lengths = (start - targets).square()
    if coordinates is not None:
        chosen = torch.stack([coordinates(row) for row in errors.detach()])
        errors = errors.gather(1, chosen)
        lengths = lengths.gather(1, chosen)
    distances = errors.sum(1) / lengths.sum(1)
    factors = sent(torch.tensor(weights, dtype=distances.dtype), distances.device)
    return (distances * factors).sum()


def images_of_update(config: TrajectoryMatching, syn: SyntheticSet) -> int:
    """Examples that the student sees in an update."""
    if config.batch is None:
        return len(syn)
    return min(config.batch, len(syn))


def student_batches(num: int, batch: int, num_steps: int, rng: Generator) -> list[Tensor]:
    """Indices of each student update.

    A random order of all examples in chunks, taken from the end (a ragged chunk comes first); then
    a new order.
    """
    chunks: list[Tensor] = []
    batches = []
    for _ in range(num_steps):
        if not chunks:
            chunks = list(torch.randperm(num, generator=rng).split(batch))
        batches.append(chunks.pop())
    return batches
