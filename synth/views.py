"""A second network by which the views of a stored image are kept apart (HaBa).

Liu et al., NeurIPS 2022, arXiv 2210.16774: a codec that shows a stored image in several ways
(`Hallucinated`) should show it in ways that differ. An extractor is trained to classify all views
and to see those of an image as alike; the codec is trained so that it does not:

    extractor: CE + 0.1 mean (1 - cos(f(a), f(b))) / 2 + 0.1 supervised contrast
    codec:     0.1 mean (cos(f(a), f(b)) + 1) / 2

for views a and b of one image and features f before the last layer. The contrast is that of Khosla
et al. (NeurIPS 2020): views of one class are near, of others far. Its temperature, the extractor's
optimiser and how many images a step looks at were not read; they are settings of this project.

What the extractor has become is the objective's state, so that it is checkpointed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ddengine.learning.flat import flatten, unflatten_into
from ddengine.learning.optim import updated
from ddengine.models.dropout import is_dropout
from ddengine.objective import Env
from ddengine.recipe import OptimConfig, require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

THETA, KEPT = "views.theta", "views.kept."  # names in the state


@dataclass(frozen=True, kw_only=True)
class ViewsApart:
    """Weights of the losses, and how the extractor is trained."""

    weight: float = 0.1  # of the codec's loss, beside that of the objective
    classify: float = 1.0  # of the extractor's cross-entropy
    alike: float = 0.1  # of its loss that views of an image are alike
    contrast: float = 0.1  # of its loss that views of a class are near
    temperature: float = 0.07  # of the contrast
    items: int = 64  # stored images of a step, two views of each; at most as many as there are
    optim: OptimConfig = OptimConfig(lr=0.01, momentum=0.9)  # of the extractor

    def __post_init__(self) -> None:
        require_at_least("objective.views.items", self.items)
        require(
            self.temperature > 0,
            f"objective.views.temperature must be positive, got {self.temperature:g}.",
        )
        require(
            self.optim.schedule == "constant",
            f"objective.views.optim.schedule {self.optim.schedule} is for the outer loop; set it "
            "to constant.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        contrast = ("khosla2020supcon",) if self.contrast else ()
        return ("liu2022haba", *contrast)

    def small(self) -> "ViewsApart":
        """Four stored images at a step."""
        return replace(self, items=min(4, self.items))

    def check(self, syn: SyntheticSet) -> None:
        """Raise UserError for a set of which no stored image has two views."""
        if int(syn.source.bincount().max()) < 2:
            raise UserError(
                f"objective.views keeps several views of a stored image apart, and the codec "
                f"{type(syn.codec).__name__} shows each in one way; take a codec such as "
                "Hallucinated, or leave objective.views out (--take objective.views=RECIPE, of a "
                "recipe without)."
            )


class Extractor:
    """The second network on one device."""

    def __init__(self, config: ViewsApart, env: Env):
        self.config = config
        self.env = env
        self._module = env.new_model(generator(0)).to(env.device).train()
        for module in self._module.modules():
            if is_dropout(module):  # it has no generator of its own
                module.eval()

    def start(self, rng: Generator) -> dict[str, Tensor]:
        """The state: a new network."""
        return {THETA: flatten(self.env.new_model(rng)).to(self.env.device)}

    def loss(self, syn: SyntheticSet, state: dict[str, Tensor], rng: Generator) -> Tensor:
        """How alike the extractor sees views, after a step of its own on what they are now."""
        index = pairs(syn.source, self.config.items, rng).flatten()
        if not len(index):  # nothing to keep apart
            return 0 * syn.batch(torch.zeros(1, dtype=torch.int64)).images.sum()
        with torch.no_grad():
            seen = syn.batch(index)
        assert seen.classes is not None, "a set says the classes of its examples"
        self._train(state, seen.images, seen.classes)
        network = self._filled(state).requires_grad_(False)
        features = _embedded(network, syn.batch(index).images)
        return self.config.weight * (1 + _cosines(features)).mean() / 2

    def _filled(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The module with what the extractor has become."""
        unflatten_into(self._module, state[THETA], None)
        return self._module

    def _train(self, state: dict[str, Tensor], views: Tensor, classes: Tensor) -> None:
        """A step of the extractor."""
        network = self._filled(state).requires_grad_(True)
        loss = extractor_loss(self.config, network(views), _embedded(network, views), classes)
        slopes = torch.autograd.grad(loss, list(network.parameters()))
        gradient = torch.cat([slope.flatten() for slope in slopes])
        kept = {}
        for name, tensor in state.items():
            if name.startswith(KEPT):
                kept[name.removeprefix(KEPT)] = tensor
        optim = self.config.optim
        new = updated(state[THETA], gradient, kept, optim, optim.lr)
        state[THETA] = new.tensor
        state.update({f"{KEPT}{name}": tensor for name, tensor in new.kept.items()})


def pairs(source: Tensor, num: int, rng: Generator) -> Tensor:
    """Indices (2, n) of two different examples of each of n stored items, at most `num`.

    Of the stored item (N,) of each example; items with a single one are left out.
    """
    of_items = source.cpu()
    counts = of_items.bincount()
    first = counts.cumsum(0) - counts  # where an item's examples begin, in the order of items
    order = of_items.argsort(stable=True)
    several = (counts > 1).nonzero().flatten()
    items = several[torch.randperm(len(several), generator=rng)[:num]]
    numbers = counts[items]
    one = (torch.rand(len(items), generator=rng) * numbers).long()
    further = 1 + (torch.rand(len(items), generator=rng) * (numbers - 1)).long()
    other = (one + further) % numbers
    return torch.stack([order[first[items] + one], order[first[items] + other]])


def extractor_loss(config: ViewsApart, logits: Tensor, features: Tensor, classes: Tensor) -> Tensor:
    """The loss of the extractor on views (2 n), of which i and n + i are of one stored image.

    Of their logits (2 n, K), features (2 n, D) and classes (2 n,).
    """
    classify = functional.cross_entropy(logits, classes)
    alike = (1 - _cosines(features)).mean() / 2
    contrast = supervised_contrast(features, classes, config.temperature)
    return config.classify * classify + config.alike * alike + config.contrast * contrast


def supervised_contrast(features: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """The mean over views of how little they are near to others of their class.

    Of features (N, D) z of length 1: - mean over p of one class with i of log(exp(z_i z_p / T) /
    sum over a of exp(z_i z_a / T)), where neither p nor a is i (Khosla et al., their eq. 2).
    """
    near = functional.normalize(features, dim=1)
    itself = torch.eye(len(near), dtype=torch.bool, device=near.device)
    likeness = (near @ near.T / temperature).masked_fill(itself, -torch.inf)
    log_shares = likeness - likeness.logsumexp(1, keepdim=True)
    of_class = (classes.unsqueeze(0) == classes.unsqueeze(1)) & ~itself
    added = torch.where(of_class, log_shares, 0).sum(1)
    return -(added / of_class.sum(1)).mean()


def _embedded(network: nn.Module, images: Tensor) -> Tensor:
    """What lies before the last layer (B, D)."""
    return network.embed(images).flatten(1)  # type: ignore[operator]


def _cosines(features: Tensor) -> Tensor:
    """(n,) of features (2 n, D): between i and n + i."""
    one, other = features.chunk(2)
    return functional.cosine_similarity(one, other)
