"""Self-supervised experts, for which images need no labels.

Barlow Twins: Zbontar et al., ICML 2021, arXiv 2103.03230.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from buffers.steps import Kept, Step, StepConfig, optimiser_state, restore_optimiser
from ddengine.recipe import require, require_at_least


def redundancy(first: Tensor, second: Tensor, off_diagonal: float) -> Tensor:
    """The loss (): sum over i of (1 - C_ii)^2 + off_diagonal * sum over i != j of C_ij^2.

    C (D, D) is the cross-correlation of two outputs (B, D), each of whose columns is standardised
    over the batch.
    """
    first = functional.batch_norm(first, None, None, training=True)
    second = functional.batch_norm(second, None, None, training=True)
    correlation = first.T @ second / len(first)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * others


def projector(num_features: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths without biases, with BatchNorm and ReLU between them."""
    layers: list[nn.Module] = []
    before = num_features
    for width in widths[:-1]:
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    layers.append(nn.Linear(before, widths[-1], bias=False))
    return nn.Sequential(*layers)


@dataclass(frozen=True, kw_only=True)
class BarlowTwins(StepConfig):
    """Two augmented views of an image should say the same, each output something else.

    What is trained, by Adam (the paper: LARS), are the features, which are the input of the
    network's last linear layer. That layer stays as it was initialised. A projector behind the
    features is trained beside the network and not stored.
    """

    lr: float = 1e-3  # falls to 0 along half a cosine, epoch by epoch
    weight_decay: float = 1e-6
    off_diagonal: float = 0.005  # weight of the correlations of different outputs
    widths: tuple[int, ...] = (2048, 2048, 2048)  # of the layers of the projector

    def __post_init__(self) -> None:
        require(
            0 < self.lr < math.inf,
            f"buffer.step.lr must be positive and finite, got {self.lr}.",
        )
        for name in ("weight_decay", "off_diagonal"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf,
                f"buffer.step.{name} must be finite and not negative, got {value}.",
            )
        require(
            len(self.widths) > 0,
            "buffer.step.widths names no layer of the projector; give one width at least.",
        )
        for width in self.widths:
            require_at_least("buffer.step.widths", width)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("zbontar2021barlow",)

    @property
    def reads_labels(self) -> bool:
        """None."""
        return False

    @property
    def views(self) -> int:
        """Two."""
        return 2

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs."""
        last_layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head = projector(last_layer.in_features, self.widths)
        head.to(last_layer.weight.device)
        optimiser = torch.optim.Adam(
            [*model.parameters(), *head.parameters()], self.lr, weight_decay=self.weight_decay
        )

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            first, second = images.chunk(2)
            said = [head(model.embed(view)).float() for view in (first, second)]  # type: ignore[operator]
            loss = redundancy(said[0], said[1], self.off_diagonal)
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
            optimiser.step()
            return loss.detach()

        return Step(step, _Projecting(head, optimiser))


@dataclass(frozen=True)
class _Projecting(Kept):
    """The projector, and what the optimiser keeps."""

    head: nn.Module
    optimiser: torch.optim.Optimizer

    def state(self) -> dict[str, Tensor]:
        """Both, by prefixes."""
        tensors = {f"head/{name}": value for name, value in self.head.state_dict().items()}
        for name, value in optimiser_state(self.optimiser).items():
            tensors[f"optimiser/{name}"] = value
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with them."""
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "optimiser": {}}
        for key, value in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        self.head.load_state_dict(parts["head"])
        restore_optimiser(self.optimiser, parts["optimiser"])
