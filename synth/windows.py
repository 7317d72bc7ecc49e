"""Where the differentiated steps of a student's training lie.

A window is planned before a step: so many warm steps, then so many differentiated ones, of T steps
at most. Windows that go by how long the gradients of training are ask a probe for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Generator, Tensor

from ddengine.recipe import require_at_least

State = dict[str, Tensor]
# (whether of another student than that of the step) -> norms (T,) of the gradients of its training
Probe = Callable[[bool], Tensor]


class Plan(NamedTuple):
    """Where a window lies."""

    warm: int  # steps before it
    size: int  # steps of it


class Window(Protocol):
    """A frozen dataclass that subclasses this and plans windows."""

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ()

    @property
    def longest(self) -> int:
        """Steps of the longest window."""
        ...

    def state(self, num_steps: int) -> State:
        """What is kept between outer steps, before the first; nothing by default."""
        return {}

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """The window of an outer step, in a training of `num_steps`; updates the state."""
        ...

    def judged(self, state: State, accuracy: Tensor) -> None:
        """Note how right the student of a step was about its real batch; updates the state."""

    def small(self) -> Self:
        """The same within four steps."""
        ...


@dataclass(frozen=True, kw_only=True)
class FromStart(Window):
    """The first steps: a short training, all of which is differentiated (DD)."""

    size: int  # W

    def __post_init__(self) -> None:
        require_at_least("objective.window.size", self.size)

    @property
    def longest(self) -> int:
        """W."""
        return self.size

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """No warm steps."""
        return Plan(0, self.size)

    def small(self) -> Self:
        """Four steps."""
        return replace(self, size=min(self.size, 4))


@dataclass(frozen=True, kw_only=True)
class Last(Window):
    """The last W of T steps (truncated back-propagation)."""

    size: int  # W

    def __post_init__(self) -> None:
        require_at_least("objective.window.size", self.size)

    @property
    def longest(self) -> int:
        """W."""
        return self.size

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """As many warm steps as there is room for."""
        return Plan(num_steps - self.size, self.size)

    def small(self) -> Self:
        """The last two steps."""
        return replace(self, size=min(self.size, 2))


def kept_plan(state: State, step: int, every: int, planned: Callable[[], Plan]) -> Plan:
    """A plan that holds for `every` outer steps, from the state in between."""
    if every == 1:
        return planned()
    warm, size = state["window"].tolist()
    if size and step % every:
        return Plan(warm, size)
    plan = planned()
    state["window"] = torch.tensor(plan)
    return plan


def room_for_a_plan(every: int) -> State:
    """The state of a plan that holds for `every` outer steps, before the first."""
    return {} if every == 1 else {"window": torch.zeros(2, dtype=torch.int64)}


@dataclass(frozen=True, kw_only=True)
class RandomWindow(Window):
    """W steps that begin anywhere in the training (RaT-BPTT; Feng et al., ICLR 2024)."""

    size: int  # W
    fewest: int = 0  # warm steps at least
    every: int = 1  # outer steps that share a window; published: an epoch of real batches

    def __post_init__(self) -> None:
        require_at_least("objective.window.size", self.size)
        require_at_least("objective.window.fewest", self.fewest, 0)
        require_at_least("objective.window.every", self.every)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("feng2024rat",)

    @property
    def longest(self) -> int:
        """W, and the warm steps that are always made."""
        return self.fewest + self.size

    def state(self, num_steps: int) -> State:
        """The window that is shared."""
        return room_for_a_plan(self.every)

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """Uniform in fewest..T - W."""

        def planned() -> Plan:
            end = num_steps - self.size + 1
            return Plan(int(torch.randint(self.fewest, end, (1,), generator=rng)), self.size)

        return kept_plan(state, step, self.every, planned)

    def small(self) -> Self:
        """Two steps."""
        return replace(self, size=min(self.size, 2), fewest=0, every=min(self.every, 3))
