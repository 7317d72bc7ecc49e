"""Scores of images that come of a network's training on all of them."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.sets import coreset
from ddengine.sets.pruning import cad_scores
from ddengine.system.rng import generator
from ddengine.uses.pruning.config import PruningConfig
from ddengine.uses.pruning.context import Context


def scores_of(context: Context, repeat: int) -> dict[str, Tensor]:
    """Of every training image, (N,) float64: {"forgetting", "el2n", "cad"}.

    They are means over as many networks as `init.networks` says, which are trained at the rate
    `init.lr`, without augmentation.
    """
    config, recipe = context.config, context.recipe
    label = f"scores of the images, repeat {repeat + 1}"

    def compute() -> dict[str, Tensor]:
        rng = generator(context.seed, "pruning", "looking", repeat)
        made = []
        for _ in range(recipe.init.networks):
            new_model = context.builder(recipe.model)
            made.append(looked_at(context.data.train, new_model, rng, config, recipe.init.lr))
        names = made[0]
        return {name: torch.stack([one[name] for one in made]).mean(0) for name in names}

    return context.kept_tensors(f"scores/{repeat}", label, compute)


def looked_at(
    real: RealSet,
    new_model: Callable[[Generator], nn.Module],
    rng: Generator,
    config: PruningConfig,
    lr: float,
) -> dict[str, Tensor]:
    """The scores by the training of one network. Raises UserError where it is not finite.

    cad is left out where the epochs are fewer than its windows take.
    """
    seen = coreset.watched(real, new_model, rng, epochs=config.looking_epochs, lr=lr)
    scores = {
        "forgetting": seen.forgetting,
        "el2n": seen.el2n[:, config.early_epochs - 1],
    }
    if config.cad_window + config.cad_windows <= config.looking_epochs:
        scores["cad"] = cad_scores(seen.el2n, config.cad_window, config.cad_windows)
    return scores
