"""Experts as the public functions take them: opened already, or where they lie."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ddengine.api.checks import check_experts
from ddengine.data import Data, Preprocess
from ddengine.experts import ExpertSource, StoredExperts
from ddengine.prepare import buffer_models, reads_experts
from ddengine.recipe import Recipe
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.types import Experts

ADVICE = "make them with buffers.generate(data, recipe)"


@dataclass(frozen=True)
class Given(ExpertSource):
    """Experts that were handed in, as an ExpertSource: checked against the images when opened."""

    recipe: Recipe
    experts: Experts | None
    precision: str

    def seed(self) -> int | None:
        """That of all stores; None of imported experts, and of such that say none."""
        if not isinstance(self.experts, StoredExperts):
            return None
        seeds = {identity["seed"] for identity in self.experts.identities()}
        return seeds.pop() if len(seeds) == 1 else None

    def preprocess(self, images: str) -> Preprocess | None:
        """Published constants that experts of these images were trained with are kept."""
        if isinstance(self.experts, StoredExperts):
            for identity, preprocess in _pairs(self.experts):
                if identity["images"] == images:
                    return preprocess
        return None

    def origin(self, images: str) -> str | None:
        """Experts that are not of a store say nothing."""
        if isinstance(self.experts, StoredExperts):
            return self.experts.origin(self.recipe, images, self.precision)
        return None

    def open(self, data: Data) -> Experts | None:
        """The experts, which fit the images as far as they say what they are of."""
        if isinstance(self.experts, StoredExperts):
            _check(self.recipe, data, self.experts)
        return self.experts


def source_of(
    recipe: Recipe, experts: Experts | ExpertSource | None, precision: str
) -> tuple[Recipe, ExpertSource]:
    """(the recipe with the seed of these experts, where they come from).

    Experts that the recipe does not read are ignored. Raises UserError where it needs some and has
    none.
    """
    check_experts(experts)
    if isinstance(experts, ExpertSource):
        source = experts.on(recipe.data)
        return with_expert_seed(recipe, source.seed()), source
    if experts is None and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts, and none were given; pass "
            "experts=buffers.generate(data, recipe)."
        )
    if experts is not None and not reads_experts(recipe):
        log.say(f"warning: the recipe {recipe.name} reads no experts, so those given are ignored")
        experts = None
    recipe = with_expert_seed(recipe, Given(recipe, experts, precision).seed())
    return recipe, Given(recipe, experts, precision)


def with_expert_seed(recipe: Recipe, seed: int | None) -> Recipe:
    """The recipe with this `buffer.seed`; unchanged for None and of a recipe without experts."""
    if recipe.buffer is None or seed is None:
        return recipe
    return replace(recipe, buffer=replace(recipe.buffer, seed=seed))


def fingerprints_of(experts: Experts | None) -> str | None:
    """The fingerprints of the stores behind experts; None where they have none."""
    if not isinstance(experts, StoredExperts):
        return None
    return ", ".join(experts.fingerprints()) or None


def summary_of(experts: Experts | None) -> dict[str, Any] | None:
    """What meta.json says of experts; None where they say nothing."""
    return experts.summary() if isinstance(experts, StoredExperts) else None


def _pairs(experts: StoredExperts) -> list[tuple[dict[str, Any], Preprocess | None]]:
    return list(zip(experts.identities(), experts.preprocesses(), strict=True))


def _check(recipe: Recipe, data: Data, experts: StoredExperts) -> None:
    """Raise UserError for experts of other images, another preprocessing or other networks."""
    for identity in experts.identities():
        if identity["images"] != data.train.digest:
            raise UserError(
                "The experts were trained on other images than this dataset and recipe.data "
                f"give; {ADVICE}."
            )
        if identity["zca"] != recipe.data.zca:
            raise UserError(
                f"The experts were trained with data.zca {identity['zca']}, and the recipe has "
                f"data.zca {recipe.data.zca}; {ADVICE}."
            )
    for preprocess in experts.preprocesses():
        if preprocess is not None and not _same(preprocess, data.train.preprocess):
            raise UserError(
                "The experts saw their images through another preprocessing than these data "
                f"have; {ADVICE}."
            )
    models = {identity["model"] for identity in experts.identities()}
    if models != set(buffer_models(recipe)):
        raise UserError(
            f"The experts are {', '.join(sorted(models))}, and the recipe wants "
            f"{', '.join(sorted(buffer_models(recipe)))}; {ADVICE}."
        )


def _same(one: Preprocess, other: Preprocess) -> bool:
    """Whether two preprocessings are equal up to rounding."""
    cpu = torch.device("cpu")
    first, second = one.to(cpu).tensors(), other.to(cpu).tensors()
    if first.keys() != second.keys():
        return False
    return all(torch.allclose(first[k], second[k], rtol=1e-3, atol=1e-5) for k in first)
