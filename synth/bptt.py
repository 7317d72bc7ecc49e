"""Back-propagation through training.

A new student is trained on the synthetic images, and should then be right about real ones:

    loss = cross-entropy of a real batch under the student after all its steps

with gradients through a window of its steps (DD, Wang et al., arXiv 1811.10959, eq. 3; RTP, Deng &
Russakovsky, NeurIPS 2022; windows in RaT-BPTT, Feng et al., ICLR 2024, and AT-BPTT, Li et al.,
NeurIPS 2025), and slots for window and update. Real batches come at random, by the seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ddengine.learning.by_higher import ByHigher, TorchOptimiser, check
from ddengine.learning.inner import inner_gradient, with_weight_decay
from ddengine.learning.memory import graph_bytes, graphs_that_fit
from ddengine.learning.through import ByUnroll
from ddengine.learning.updates import Adam, HeavyBall, Update
from ddengine.objective import VECTORS, Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig, StudentTraining, require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Facts, Json
from synth.inner_batches import InnerBatches
from synth.judged import JudgedStudent
from synth.students import before_softplus, students_of, training_loss
from synth.windows import Window

WindowT = TypeVar("WindowT", bound=Window)
UpdateT = TypeVar("UpdateT", bound=Update | TorchOptimiser)


@dataclass(frozen=True, kw_only=True)
class ThroughTraining(ObjectiveConfig, Generic[WindowT, UpdateT]):
    """Configuration of the objective."""

    inner_steps: int  # T, steps of a student's training at most
    window: WindowT  # which of them gradients flow through
    update: UpdateT  # how the student steps
    lr: float = 0.001  # step size of the student; where rates are learned they start at it
    weight_decay: float = 0.0  # of the student, added to its gradient
    learned_rates: bool = False  # a step size of each step is learned ("rates")
    batches: InnerBatches = InnerBatches()  # what the student sees
    real_batch: int = 1024  # real images that the trained student is judged by
    augment: AugmentConfig = AugmentConfig(ops=())  # of the student's batches and the real one
    one_draw: bool = False  # the same augmentation in all steps and of the real batch (RTP)
    # unroll: our updates, exact gradients | higher: any optimiser of torch that `higher` knows, all
    # graphs kept | auto: unroll for our updates, higher for others
    inner: Literal["auto", "unroll", "higher"] = "auto"
    # of unroll: full keeps the graphs of all steps, replay that of one, auto those of as many as a
    # quarter of the memory holds; all are exact
    backprop: Literal["auto", "full", "replay"] = "auto"

    def __post_init__(self) -> None:
        require_at_least("objective.inner_steps", self.inner_steps)
        require_at_least("objective.real_batch", self.real_batch)
        require_at_least("objective.weight_decay", self.weight_decay, 0)
        require(
            0 < self.lr < float("inf"), f"objective.lr must be positive and finite, got {self.lr}."
        )
        require(
            self.window.longest <= self.inner_steps,
            f"objective.window may take {self.window.longest} steps, objective.inner_steps "
            f"{self.inner_steps}; raise objective.inner_steps or shorten the window.",
        )
        require(
            self.inner != "unroll" or not isinstance(self.update, TorchOptimiser),
            "objective.inner unroll differentiates Sgd, HeavyBall and Adam, and objective.update "
            "is an optimiser of torch; set objective.inner higher, or another objective.update.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite for the parts in use, as each part says its own."""
        of_higher = ("grefenstette2019higher",) if self.by_higher else ()
        return ("wang2018dd", *of_higher)

    @property
    def target_kinds(self) -> tuple[str, ...]:
        """Classes, logits, or weights of the classes."""
        return ("class", "logits", "weights")

    @property
    def draws_networks(self) -> bool:
        """A new student at each step."""
        return True

    @property
    def by_higher(self) -> bool:
        """Whether `higher` differentiates the student's steps."""
        if self.inner == "auto":
            return isinstance(self.update, TorchOptimiser)
        return self.inner == "higher"

    def initial(self) -> dict[str, float | tuple[float, ...]]:
        """The step sizes where they are learned: those whose softplus they are."""
        if not self.learned_rates:
            return {}
        return {"rates": (before_softplus(self.lr),) * self.inner_steps}

    def rates(self, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """The step size of all steps, or where they are learned of each (T,)."""
        if self.learned_rates:
            return functional.softplus(tensors["rates"])
        return torch.full((), self.lr, device=device)

    def students(self, syn: SyntheticSet) -> StudentTraining | None:
        """A student's training; None for an update that has no form of torch's."""
        return students_of(self, syn)

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the graph of one step, or of all that are kept, and of what each step stores."""
        images = self.batches.images(syn)
        if self.by_higher or self.backprop == "full":
            images *= self.window.longest
        vectors = VECTORS + 4 * self.window.longest
        return network_bytes(env, images=max(images, self.real_batch), vectors=vectors)

    def advice(self, ipc: int) -> str:
        """Keep one graph, or look at fewer images at once."""
        if self.by_higher or self.backprop == "full":
            return "set objective.inner unroll and objective.backprop replay"
        return f"lower objective.real_batch (now {self.real_batch})"

    def small(self) -> Self:
        """Six steps of a rate to suit, judged by 64 real images."""
        momentum = self.update.momentum if isinstance(self.update, HeavyBall) else 0.0
        adaptive = isinstance(self.update, Adam | TorchOptimiser)
        return replace(
            self,
            inner_steps=6,
            window=self.window.small(),
            lr=0.03 if adaptive else 0.3 * (1 - momentum),
            real_batch=64,
        )

    def build(self, env: Env) -> Objective:
        """The objective. Raises UserError for an optimiser that `higher` does not know."""
        update = self.update
        if self.by_higher or isinstance(update, TorchOptimiser):
            check(update)
            by_higher = ByHigher(env.model, env.loss, update, self.weight_decay)
            return JudgedStudent(self, env, by_higher)
        decayed = with_weight_decay(partial(training_loss, env), self.weight_decay)
        inner = inner_gradient(decayed, env.compile)
        way = "replay" if self.backprop == "auto" else self.backprop
        return JudgedStudent(self, env, ByUnroll(inner, update, way))

    def choices(self, objective: Objective, syn: SyntheticSet, memory: int) -> Json:
        """How many graphs are kept of what auto replays.

        None where the inner gradient is compiled: it is replayed faster than a graph is kept.
        """
        if self.backprop != "auto" or not isinstance(objective, JudgedStudent):
            return {}
        if not isinstance(objective.student, ByUnroll):
            return {}
        if objective.env.compile:
            return {"kept_graphs": 0}
        student = replace(objective.student, kept_graphs=1)
        kept = JudgedStudent(self, objective.env, student)
        of_one = graph_bytes(partial(kept.reached_by_one_step, syn))
        return {"kept_graphs": graphs_that_fit(of_one, self.window.longest, memory)}

    def choose(self, objective: Objective, choices: Facts) -> None:
        """Keep so many graphs."""
        if isinstance(objective, JudgedStudent) and isinstance(objective.student, ByUnroll):
            kept = choices.get("kept_graphs", 0)
            objective.student = replace(objective.student, kept_graphs=kept)
