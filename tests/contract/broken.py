"""A method that is broken in one way after the other, to read what the contract suite says of it.

`test_sentences.py` writes this file into a package of its own. The method is that of the example in
the documentation: the mean image of each class is matched in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

import synth
from ddengine.objective import Env, ObjectiveConfig
from ddengine.recipe import OptimConfig, Recipe
from ddengine.sets.synthetic import SyntheticSet

BIBTEX = """
@misc{me2026means,
  title = {Mean Images},
  author = {Me},
  year = {2026}
}
"""


@dataclass(frozen=True, kw_only=True)
class Means(ObjectiveConfig):
    """Mean images, broken as `way` says."""

    way: str = ""

    @property
    def cites(self) -> tuple[str, ...]:
        """The work to cite."""
        return ("me2026means",)

    def build(self, env: Env) -> "MeansObjective":
        """The objective."""
        return MeansObjective(self.way, env)


class MeansObjective:
    """See the module."""

    def __init__(self, way: str, env: Env):
        """Nothing may be kept here between steps."""
        self.way, self.env, self.calls = way, env, 0

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """Nothing is kept between steps."""
        return {}

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """The squared distance of mean images, summed over classes."""
        self.calls += 1
        index = self.env.real.draw_each(8, rng)
        if self.way == "draws nothing":
            index = torch.stack([members[:8] for members in self.env.real.members])
        real = self.env.real.images(index.flatten()).unflatten(0, index.shape).mean(1)
        if self.way == "draws elsewhere":
            real = real + 0.01 * torch.randn(real.shape)
        if self.way == "reads images":
            ours = syn.tensors["images"]
        else:
            ours = syn.batch(torch.arange(len(syn))).images
        if self.way == "detaches":
            ours = ours.detach()
        classes = syn.classes[syn.source][: len(ours)]
        loss = torch.zeros(())
        for label in range(len(real)):
            loss = loss + (ours[classes == label].mean(0) - real[label]).square().sum()
        if self.way == "keeps a number":
            loss = loss * self.calls
        if self.way == "wrong gradient":
            loss = 2 * loss.detach() - loss
        if self.way == "no bound":
            loss = loss + (ours - ours).square().sum().sqrt()
        if self.way == "no dependence":
            loss = 0 * ours.sum() + torch.rand((), generator=rng)
        if self.way == "many":
            loss = loss.repeat(2)
        if self.way != "yields nothing":
            yield loss


WAYS = (
    "draws elsewhere",
    "draws nothing",
    "reads images",
    "detaches",
    "keeps a number",
    "wrong gradient",
    "no bound",
    "no dependence",
    "many",
    "yields nothing",
)


def recipes() -> list[Recipe]:
    """A recipe for each way to break the method, and three that are broken themselves."""
    recipe = replace(
        synth.find("dm/fashion_mnist_ipc1_small"),
        cites=("me2026means",),
        objective=Means(),
        note="Nothing is published.",
    )
    optim = {"images": OptimConfig(lr=0.1)}
    recipe = replace(recipe, name="means", outer=replace(recipe.outer, optim=optim))
    broken = [replace(recipe, name=way, objective=Means(way=way)) for way in WAYS]
    learned = optim | {"weight": OptimConfig(lr=0.1)}
    broken.append(
        replace(recipe, name="learns a ghost", outer=replace(recipe.outer, optim=learned))
    )
    broken.append(replace(recipe, name="says nothing", note=""))
    broken.append(replace(recipe, name="cites nothing", cites=()))
    return [recipe, *broken]
