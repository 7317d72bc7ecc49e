"""The objective of back-propagation through training: how right a trained student is."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Generator, Tensor

from ddengine.learning.losses import task_loss
from ddengine.learning.through import Student
from ddengine.objective import Env, Objective
from ddengine.recipe import AugmentConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.rng import generator
from synth.inner_batches import Draws, InnerBatches, draws
from synth.networks import fresh
from synth.windows import Window


class Training(Protocol):
    """What is asked of the configuration (`bptt.ThroughTraining`)."""

    @property
    def inner_steps(self) -> int:
        """T."""
        ...

    @property
    def batches(self) -> InnerBatches:
        """What the student sees."""
        ...

    @property
    def real_batch(self) -> int:
        """Real images that it is judged by."""
        ...

    @property
    def augment(self) -> AugmentConfig:
        """How all of them are augmented."""
        ...

    @property
    def one_draw(self) -> bool:
        """Whether all in the same way."""
        ...

    @property
    def window(self) -> Window:
        """Which steps gradients flow through."""
        ...

    def rates(self, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """The step size of all steps, or of each (T,)."""
        ...


class JudgedStudent(Objective):
    """A new student at each step, trained on the set and judged by real images."""

    def __init__(self, config: Training, env: Env, student: Student):
        self.config = config
        self.env = env
        self.student = student

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the window keeps."""
        return self.config.window.state(self.config.inner_steps)

    def reached_by_one_step(self, syn: SyntheticSet) -> Tensor:
        """The parameters after a step whose graph is kept; of any network and batch."""
        config = self.config
        rng = generator(0, "choices")
        tensors = {name: tensor.detach().clone() for name, tensor in syn.tensors.items()}
        for tensor in tensors.values():
            tensor.requires_grad_(tensor.is_floating_point())
        learned = syn.with_tensors(tensors)
        indices = config.batches.draw(learned, 1, rng)
        batch = batches(learned, indices, self._draws(indices, rng))
        rates = config.rates(tensors, self.env.device)
        return self.student.through(batch, fresh(self.env, rng), tensors, 0, 1, rates)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss: of one student."""
        config = self.config
        env = self.env
        theta = fresh(env, rng)
        rates = config.rates(syn.tensors, env.device)

        def probe(another: bool) -> Tensor:
            start = fresh(env, rng) if another else theta
            return self._norms(syn, start, rates.detach(), rng)

        warm, window = config.window.plan(state, step, config.inner_steps, probe, rng)
        index = torch.randperm(len(env.real), generator=rng)[: config.real_batch]
        indices = config.batches.draw(syn, warm + window, rng)
        seen = self._draws(indices, rng, real=len(index))
        batch = batches(syn, indices, seen)
        reached = self.student.through(batch, theta, syn.tensors, warm, window, rates)
        images, targets = env.real.batch(index)
        outputs = env.model(reached, seen.apply(images, -1))
        right = outputs.detach().argmax(1) == targets
        config.window.judged(state, right.double().mean())
        yield task_loss(outputs, targets)

    def _norms(self, syn: SyntheticSet, theta: Tensor, rates: Tensor, rng: Generator) -> Tensor:
        """The norms (T,) of the gradients of a training from theta (P,)."""
        num_steps = self.config.inner_steps
        indices = self.config.batches.draw(syn, num_steps, rng)
        batch = batches(syn, indices, self._draws(indices, rng))
        norms: list[Tensor] = []
        watch = self.student.watched
        watch(batch, theta, syn.tensors, num_steps, rates, lambda g: norms.append(g.norm()))
        return torch.stack(norms)

    def _draws(self, indices: Tensor, rng: Generator, real: int | None = None) -> Draws:
        """How the batches (T, B) of a training are augmented, and so many real images."""
        sizes = [indices.shape[1]] * len(indices)
        if real is not None:
            sizes.append(real)
        config = self.config
        return draws(config.augment, sizes, rng, self.env.device, one=config.one_draw)


def batches(
    syn: SyntheticSet, indices: Tensor, seen: Draws
) -> Callable[[Mapping[str, Tensor], int], tuple[Tensor, ...]]:
    """(stored tensors, k) -> the images of step k, as the student sees them, and their targets."""

    def batch(tensors: Mapping[str, Tensor], k: int) -> tuple[Tensor, ...]:
        images, targets = syn.with_tensors(tensors).batch(indices[k])
        return seen.apply(images, k), targets

    return batch
