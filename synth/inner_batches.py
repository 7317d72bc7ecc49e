"""Which decoded examples a student sees in each step of its training on the set."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.augment import AugmentDraw
from ddengine.recipe import AugmentConfig, ClassBatches
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.runtime import sent
from synth.classes import class_members


@dataclass(frozen=True, kw_only=True)
class InnerBatches(ClassBatches):
    """Batches of a set, drawn for many steps at once."""

    def images(self, syn: SyntheticSet) -> int:
        """Examples of a batch."""
        num_classes = len(syn.class_names)
        each = len(syn) // num_classes
        per_class = min(self.per_class or each, each)
        return per_class * min(self.classes or num_classes, num_classes)

    def of_a_set(self, syn: SyntheticSet) -> ClassBatches:
        """The same of any set, with the number of examples that a batch has of each class."""
        each = len(syn) // len(syn.class_names)
        per_class = min(self.per_class or each, each)
        return ClassBatches(per_class=per_class, classes=self.classes, order=self.order)

    def draw(self, syn: SyntheticSet, num_steps: int, rng: Generator) -> Tensor:
        """The indices (T, B) of the examples of each step, class by class."""
        members = class_members(syn, None, rng)
        num_classes, each = members.shape
        per_class = min(self.per_class or each, each)
        places = self._places(num_steps, num_classes, each, rng)[:, :, :per_class]
        at = sent(places, members.device)
        chosen = members.expand(num_steps, -1, -1).gather(2, at)
        if self.classes is None or self.classes >= num_classes:
            return chosen.flatten(1)
        keys = torch.rand(num_steps, num_classes, generator=rng)
        classes = sent(keys.argsort(1)[:, : self.classes], members.device)
        rows = torch.arange(num_steps, device=members.device)[:, None]
        return chosen[rows, classes].flatten(1)

    def _places(self, num_steps: int, num_classes: int, each: int, rng: Generator) -> Tensor:
        """The order (T, K, n) in which the examples of a class would be taken in each step."""
        if self.order == "random":
            return torch.rand(num_steps, num_classes, each, generator=rng).argsort(2)
        per_class = self.per_class or each
        steps = torch.arange(num_steps)[:, None, None]
        line = torch.arange(each).expand(num_steps, num_classes, each)
        return (line + steps * per_class) % each


@dataclass(frozen=True)
class Draws:
    """How the batches of a training and the real batch behind it are augmented."""

    config: AugmentConfig
    of_steps: list[AugmentDraw]  # of each step, and then of the real batch

    def apply(self, images: Tensor, step: int) -> Tensor:
        """The images of a step, or with -1 the real ones, augmented."""
        return augment.apply(self.config, images, self.of_steps[step])


def draws(
    config: AugmentConfig, sizes: list[int], rng: Generator, device: torch.device, *, one: bool
) -> Draws:
    """Draws for batches of these sizes; `one` of them for all batches and images (as in RTP)."""
    if one:
        draw = augment.sample(config, 1, rng, shared=True).to(device)
        return Draws(config, [draw] * len(sizes))
    return Draws(config, [augment.sample(config, size, rng).to(device) for size in sizes])
