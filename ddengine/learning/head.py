"""The head of a network, its last linear layer: which it is, what comes before it, another one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddengine.models import ImageShape
from ddengine.system.errors import UserError


def head_of(network: nn.Module, image_shape: ImageShape) -> str:
    """The name of the linear layer whose outputs (B, K) are those of the network.

    Images are (C, H, W). Raises UserError for a network that has none, or asks it more than once.
    """
    calls, outputs = _linear_calls(network, image_shape)
    names = [called for called, _ in calls]
    name, said = "", outputs
    if calls:
        name, said = calls[-1]
    # a network that is nothing but a linear layer has the name ""
    if not name or names.count(name) > 1 or not _equal(said, outputs):
        raise UserError(
            f"A {type(network).__name__} has no last linear layer whose outputs are its own, so "
            "there is no head that could be replaced; name another network, or let it end with an "
            "nn.Linear."
        )
    return name


def _linear_calls(
    network: nn.Module, image_shape: ImageShape
) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """(name and outputs of each linear layer as it is asked, outputs of the network)."""
    calls: list[tuple[str, Tensor]] = []

    def recording(name: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, inputs, output: calls.append((name, output))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(recording(name)))
    images = torch.zeros(2, *image_shape, device=next(network.parameters()).device)
    training = network.training
    try:
        with torch.no_grad():
            outputs = network.eval()(images)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return calls, outputs


def _equal(said: Tensor, outputs: Tensor) -> bool:
    """Whether both are the same numbers (B, K); those of a diverged network are too."""
    return said.dim() == 2 and torch.equal(said.nan_to_num(), outputs.nan_to_num())


def embedding(network: nn.Module, head: str) -> Callable[[Tensor], Tensor]:
    """What gives, for images (B, C, H, W), the input (B, D) of the layer called `head`."""
    layer = network.get_submodule(head)

    def embed(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            network(images)
        finally:
            hook.remove()
        return seen[-1].flatten(1)

    return embed


def without_head(network: nn.Module, head: str) -> dict[str, Tensor]:
    """The parameters and buffers of a network, but for those of the layer called `head`."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        if not name.startswith(f"{head}."):
            tensors[name] = tensor
    return tensors


def fits(body: dict[str, Tensor], network: nn.Module, head: str) -> bool:
    """Whether `body`, what `without_head` gave, has the names and shapes of a network's own."""
    own = without_head(network, head)
    if body.keys() != own.keys():
        return False
    return all(body[name].shape == own[name].shape for name in own)


def with_body(body: dict[str, Tensor], network: nn.Module, head: str) -> nn.Module:
    """A network that keeps its layer called `head`, and has all else from `body`."""
    assert fits(body, network, head), "the networks differ"
    network.load_state_dict(body, strict=False)
    return network
