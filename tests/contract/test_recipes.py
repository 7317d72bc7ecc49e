"""What the recipes of this program hold beside the contract of every method."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from loops import for_each

from ddengine.contract import worlds
from synth.catalogue import RECIPES, find
from synth.distribution import DistributionMatching
from synth.gradient import GradientMatching


def test_backprop_policies_agree_on_the_objective(world):
    """The whole objective with augmentation and batches, exact either way."""
    recipe = worlds.shrunk(find("mtt/digits_ipc1"))
    results = []
    for policy in ("replay", "full"):
        objective = replace(recipe.objective, backprop=policy)
        start = worlds.start(replace(recipe, objective=objective), world)
        results.append(worlds.one_step(*start, recipe.outer.optim))
    (losses, gradients), (wanted, exact) = results
    assert losses == pytest.approx(wanted, rel=1e-4)
    for name in recipe.outer.optim:
        ours, theirs = gradients[name], exact[name]
        assert ours is not None and theirs is not None
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


@for_each("name", RECIPES)
def test_published_cells_are_whole(name):
    """They train on all images and select nothing; the last network of a run is finished.

    Their values stand beside the published tables in the unit tests of the recipes.
    """
    recipe = RECIPES[name]
    if name.endswith("_small") or ("-w128" not in recipe.model and not recipe.teachers):
        return
    assert recipe.data.validation == 0 and recipe.outer.evaluate_every == 0
    assert recipe.data.limit is None or (recipe.teachers and recipe.data.name == "imagenet")
    assert all(0 < optim.momentum < 1 for optim in recipe.outer.optim.values())
    if isinstance(recipe.objective, GradientMatching | DistributionMatching):
        syn: Any = SimpleNamespace(images_per_class=lambda: recipe.ipc)
        steps = recipe.outer.steps
        before, after = (recipe.objective.network_at(syn, step) for step in (steps - 1, steps))
        assert after == before + 1 >= 1000
