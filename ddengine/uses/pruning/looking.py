"""Scores of images that come of a network's training on all of them."""

import math
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
    per_epoch = math.ceil(len(real) / coreset.LOOKING.batch)
    counter = coreset.Forgetting(len(real))
    labels = real.labels.cpu()
    networks: list[nn.Module] = []
    norms: list[Tensor] = []  # EL2N (N,) after each epoch
    updates = 0

    def built(of_network: Generator) -> nn.Module:
        networks.append(new_model(of_network))
        return networks[0]

    def see(index: Tensor, logits: Tensor) -> None:
        nonlocal updates
        if updates and updates % per_epoch == 0:  # an epoch is over, and its last update done
            norms.append(_norms(real, networks[0]))
        updates += 1
        counter.see(index, logits.argmax(1).cpu() == labels[index])

    steps = per_epoch * config.looking_epochs
    network = coreset.train(real, built, rng, steps=steps, lr=lr, observe=see)
    norms.append(_norms(real, network))
    scores = {
        "forgetting": counter.scores(),
        "el2n": norms[config.early_epochs - 1],
    }
    if config.cad_window + config.cad_windows <= config.looking_epochs:
        scores["cad"] = cad_scores(torch.stack(norms, 1), config.cad_window, config.cad_windows)
    return scores


def _norms(real: RealSet, network: nn.Module) -> Tensor:
    """EL2N (N,) of a network as it is now, which goes on training as it did."""
    training = network.training
    network.eval()
    norms = coreset.el2n_scores(real, [network])
    network.train(training)
    return norms
