"""An objective of your own against distribution matching, over three seeds.

    python own_objective.py

Matches the mean and, with a weight, the standard deviation of the features of each class in random
networks; without the weight it is distribution matching (DM). The digits of scikit-learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Generator, Tensor

import ddengine
import synth
from ddengine.objective import Env, StatelessConfig
from ddengine.sets.synthetic import SyntheticSet


@dataclass(frozen=True, kw_only=True)
class Moments(StatelessConfig):
    """Squared distances of two moments, one loss a class."""

    weight: float = 1.0  # of the second moment

    def step_losses(self, env: Env, syn: SyntheticSet, rng: Generator) -> Iterator[Tensor]:
        """In a network that is drawn for the step."""
        embed = env.new_model(rng).to(env.device).embed
        class_of = syn.classes[syn.source]
        for label in range(len(syn.class_names)):
            real = embed(env.real.draw(label, 64, rng)).detach()
            ours = embed(syn.batch((class_of == label).nonzero().flatten()).images)
            mean, spread = real.mean(0) - ours.mean(0), real.std(0) - ours.std(0)
            yield mean.square().sum() + self.weight * spread.square().sum()


recipe = synth.find("dm/digits_ipc10", name="moments/digits_ipc10", cites=(), objective=Moments())

if __name__ == "__main__":
    grid = {"objective.weight": [0.0, 0.1, 1.0]}
    print(ddengine.sweep(None, recipe, grid=grid, seeds=[0, 1, 2], folder="runs/moments"))
