"""How good a network's features are: a linear classifier of them, fitted to labelled images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddengine.data import RealSet
from ddengine.learning.head import embedding, head_of
from ddengine.learning.training import TEST_BATCH, Classified, diverged, of_classes
from ddengine.system.runtime import Precision, autocast

DECAY = 1e-4  # weight of half the squared norm of the classifier's weights
MOST_ITERATIONS = 500  # of L-BFGS


@torch.no_grad()
def features(network: nn.Module, real: RealSet, precision: Precision = "fp32") -> Tensor:
    """(N, D) float32: what a network, in evaluation mode, says of images before its last layer."""
    embed = embedding(network.eval(), head_of(network, real.image_shape))
    parts = []
    for index in torch.arange(len(real)).split(TEST_BATCH):
        with autocast(real.device, precision):
            said = embed(real.batch(index).images)
        parts.append(said.float())
    return torch.cat(parts)


def linear_probe(
    network: nn.Module, labelled: RealSet, on: RealSet, precision: Precision = "fp32"
) -> Classified:
    """What a linear classifier of the network's features makes of the images of `on`.

    The classifier is multinomial logistic regression on standardised features of the images of
    `labelled`, with a little weight decay, fitted by L-BFGS from zero; nothing in it is random, and
    the network stays as it is. It has diverged where the network, or its features, are not finite.
    """
    known = Embedded(features(network, labelled, precision), labelled.labels)
    asked = Embedded(features(network, on, precision), on.labels)
    result = probed(known, asked, on.num_classes)
    return replace(result, diverged=True) if diverged(network) else result


@dataclass(frozen=True)
class Embedded:
    """Images as what a network says of them before its last layer."""

    features: Tensor  # (N, D) float32
    labels: Tensor  # (N,) int64

    def at(self, index: Tensor) -> "Embedded":
        """Those at `index` (B,)."""
        features = self.features[index.to(self.features.device)]
        return Embedded(features, self.labels[index.to(self.labels.device)])


def probed(known: Embedded, asked: Embedded, num_classes: int, decay: float = DECAY) -> Classified:
    """What a linear classifier, fitted to `known`, makes of `asked`; as `linear_probe` has it.

    `decay` is the weight of half the squared norm of its weights. It has diverged where features
    are not finite.
    """
    finite = bool(known.features.isfinite().all() and asked.features.isfinite().all())
    std, mean = torch.std_mean(known.features, dim=0)
    scale = std.clamp(min=1e-6)
    standardised = (known.features - mean) / scale
    weight, bias = _fitted(standardised, known.labels, num_classes, decay)
    said = ((asked.features - mean) / scale) @ weight + bias
    labels = asked.labels.cpu()
    hits = said.argmax(1).cpu() == labels
    return of_classes(labels, hits, num_classes, diverged=not finite)


def _fitted(known: Tensor, labels: Tensor, num_classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weights (D, K) and biases (K,) of the classifier of features (N, D) of these classes (N,)."""
    labels = labels.to(known.device)
    weight = known.new_zeros(known.shape[1], num_classes, requires_grad=True)
    bias = known.new_zeros(num_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        error = functional.cross_entropy(known @ weight + bias, labels)
        error = error + decay / 2 * weight.square().sum()
        error.backward()
        return error

    optimiser.step(loss)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()
