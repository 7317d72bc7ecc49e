"""Networks that label: what they say of images, alone and as an ensemble."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddengine.types import Experts

BATCH = 256


def load_all(
    experts: Experts, device: torch.device, epochs: Sequence[int] | None = None
) -> list[nn.Module]:
    """Every expert after each of `epochs`, in evaluation mode and not to be trained.

    None: after the last stored one.
    """
    teachers = []
    for expert in range(experts.num_experts):
        for epoch in epochs or [experts.epochs[-1]]:
            network = experts.load(expert, epoch)
            teachers.append(network.to(device).requires_grad_(False))
    return teachers


def target_network(experts: Experts, device: torch.device) -> nn.Module:
    """The network whose features are targets: the first expert after its last stored epoch.

    It is in evaluation mode and not to be trained.
    """
    network = experts.load(0, experts.epochs[-1])
    return network.to(device).requires_grad_(False)


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> Tensor:
    """What lies before the last layer (N, D) of a network, for images (N, C, H, W)."""
    embed = network.embed
    said = [embed(part).flatten(1) for part in images.split(BATCH)]  # type: ignore[operator]
    return torch.cat(said)


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W)."""
    said = [network(part) for part in images.split(BATCH)]
    return torch.cat(said)


def ensemble_logits(teachers: Sequence[nn.Module], images: Tensor) -> Tensor:
    """The mean of the teachers' logits: (N, K) of images (N, C, H, W).

    That is what an ensemble says (INFER; its released code).
    """
    said = [predict(teacher, images) for teacher in teachers]
    return torch.stack(said).mean(0)
