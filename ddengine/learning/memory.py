"""What a network holds in memory while gradients flow through it."""

import torch
from torch import Tensor, nn

# bytes of a step's graph, double backward and gradients, for a byte that one forward pass saves: an
# upper bound
PER_STEP = 6.0
# the same of a gradient through which none flows
PER_GRADIENT = 3.0


def saved_bytes(
    network: nn.Module, image_shape: tuple[int, int, int], device: torch.device
) -> float:
    """Bytes that one forward pass keeps for the backward pass, an image."""
    parameters = {p.data_ptr() for p in network.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in parameters:
            seen[address] = storage.nbytes()
        return tensor

    network.to(device).train()
    images = torch.zeros(2, *image_shape, device=device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images).sum()
    return sum(seen.values()) / 2


def step_bytes(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    device: torch.device,
    *,
    images: int,
    vectors: int,
    seen: int = 0,
) -> int:
    """Bytes that gradients of gradients in a network hold at most.

    Args:
        network: the network, whose statistics a forward pass changes.
        image_shape: (C, H, W).
        device: where it runs.
        images: whose graphs are alive together.
        vectors: of the size of its parameters, float32, that are alive beside.
        seen: images that only a plain gradient is computed of, at another time than the graphs.
    """
    parameters = sum(p.numel() for p in network.parameters())
    saved = saved_bytes(network, image_shape, device)
    most = max(PER_STEP * images, PER_GRADIENT * seen) * saved
    return int(most + 4 * parameters * vectors)
