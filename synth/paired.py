"""Paired features: each synthetic image keeps the features of one real image. CIM.

Shang et al., ECCV 2026, arXiv 2607.00916. Of the first `candidates` images of a class those are
anchors that a trained network, the observer, has the lowest cross-entropy of. The set starts from
them, several in a stored image where the codec has several, and

    loss = sum over synthetic images of mean |f(A(anchor, w)) - f(A(decoded, w))|

with f the features in the middle of the observer and the same augmentation w on both. The paper
writes squares and crops; the released program (commit ea71377 of LINs-lab/CIM) has absolute
differences and DSA, as here. It differs in what lies together: there the best images lie in the
first tiles of all stored images, here in all tiles of the first ones. Nothing else of the real data
is looked at, and no network is trained while images are learned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.teachers import predict, target_network
from ddengine.models import middle
from ddengine.objective import Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from synth.classes import class_members

ANCHORS = "anchors"  # in the objective's state: indices (K, n) of real images


@dataclass(frozen=True, kw_only=True)
class PairedFeatures(ObjectiveConfig):
    """Features of each synthetic image and of the real image that it started from."""

    candidates: int = 300  # first training images of a class, of which anchors are chosen
    # of the observer: the output of its last stage but one | the input of its last layer
    features: Literal["middle", "last"] = "middle"
    augment: AugmentConfig = AugmentConfig(ops=("crop", "cutout", "flip"))

    def __post_init__(self) -> None:
        require_at_least("objective.candidates", self.candidates)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("shang2026cim",)

    @property
    def reads_experts(self) -> bool:
        """The observer is the first of them, after its last epoch."""
        return True

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the images of a class, and of their anchors."""
        each = -(-len(syn) // len(syn.class_names))
        return network_bytes(env, images=each, seen=each)

    def kept(
        self, objective: Objective, first: dict[str, Tensor], syn: SyntheticSet, step: int
    ) -> Mapping[str, Tensor]:
        """The anchors, which the first step chooses."""
        if step == 0:
            return first
        of_class = len(syn) // len(syn.class_names)
        return {ANCHORS: torch.zeros(len(syn.class_names), of_class, dtype=torch.int64)}

    def small(self) -> Self:
        """Of few images, by the features of the last layer, which every network has."""
        return replace(self, candidates=16, features="last")

    def make_images(self, env: Env, number: int, rng: Generator) -> Tensor:
        """The anchors (K * number, C, H, W) as pixels, class by class."""
        index = anchors(env, _observer(env), self.candidates, number).flatten()
        return env.real.stored(index).float() / 255

    def build(self, env: Env) -> "PairedObjective":
        """The objective. Raises UserError where there is no observer, or it has no middle."""
        return PairedObjective(self, env)


class PairedObjective(Objective):
    """See the module."""

    def __init__(self, config: PairedFeatures, env: Env):
        self.config = config
        self.env = env
        self.observer = _observer(env)
        self.seen: list[Tensor] = []  # what the middle of the observer gave last
        if config.features == "middle":
            module = middle(self.observer, env.real.image_shape)
            module.register_forward_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen = [output]

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of preprocessed images."""
        if self.config.features == "last":
            return self.observer.embed(images).flatten(1)  # type: ignore[operator]
        self.observer(images)
        return self.seen.pop().flatten(1)

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each class."""
        config, env = self.config, self.env
        members = class_members(syn, None, rng)
        num_classes, each = members.shape
        if ANCHORS not in state:
            state[ANCHORS] = anchors(env, self.observer, config.candidates, each)
        draw = augment.sample(config.augment, each, rng, groups=num_classes).to(env.device)
        for label, of_class in enumerate(members):
            part = draw.part(slice(label, label + 1))
            places = made_places(syn.source.index_select(0, of_class))
            real = env.real.images(state[ANCHORS][label].index_select(0, places))
            with torch.no_grad():
                wanted = self.features(augment.apply(config.augment, real, part))
            images = augment.apply(config.augment, syn.batch(of_class).images, part)
            yield (wanted - self.features(images)).abs().mean(1).sum()


def made_places(items: Tensor) -> Tensor:
    """Of which of the images that a set started from each decoded example (n,) is.

    `items` are the stored items of the examples of a class, in the order of decoding. A codec packs
    the images of an item in a row, and decodes them in the same order within the item.
    """
    by_item = items.argsort(stable=True)
    return by_item.argsort()


@torch.no_grad()
def anchors(env: Env, observer: nn.Module, candidates: int, number: int) -> Tensor:
    """Indices (K, number) of real images of each class, the surest of the observer first.

    A class with fewer, or fewer candidates than that, has some again.
    """
    rows = []
    for label, members in enumerate(env.real.members):
        first = members[:candidates]
        logits = predict(observer, env.real.images(first))
        classes = torch.full((len(first),), label, device=logits.device)
        losses = functional.cross_entropy(logits, classes, reduction="none")
        surest = first[losses.cpu().argsort(stable=True)]
        rows.append(surest[torch.arange(number) % len(surest)])
    return torch.stack(rows).to(env.device)


def _observer(env: Env) -> nn.Module:
    """The network that looks. Raises UserError where there is none."""
    if env.experts is None:
        raise UserError(
            "Paired features need a trained network that looks at the images; give the recipe a "
            "buffer (--take buffer=RECIPE) and run the buffer command."
        )
    return target_network(env.experts, env.device).eval()
