"""What a network holds in memory while gradients flow through it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# bytes of a step's graph, double backward and gradients, for a byte that one forward pass saves: an
# upper bound
PER_STEP = 6.0
# the same of a gradient through which none flows
PER_GRADIENT = 3.0
# of the memory that is available, what graphs may take that are kept to save time
KEPT_SHARE = 0.25


def graph_bytes(make: Callable[[], Any]) -> int:
    """Bytes of the tensors that the graph of what `make` returns keeps for a way back."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = make()
    del made
    return sum(seen.values())


def graphs_that_fit(bytes_of_one: int, wanted: int, memory: int) -> int:
    """How many of the graphs that are wanted may be kept, of so many bytes that are available."""
    return min(wanted, int(KEPT_SHARE * memory) // max(1, bytes_of_one))


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
