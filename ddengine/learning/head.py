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
    calls: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(_recording(calls, name)))
    device = next(network.parameters()).device
    training = network.training
    try:
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(2, *image_shape, device=device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    if calls:
        name, said = calls[-1]
        once = [called for called, _ in calls].count(name) == 1
        if name and once and said.dim() == 2 and said.shape == outputs.shape:
            if torch.equal(said.nan_to_num(), outputs.nan_to_num()):  # of diverged ones too
                return name
    raise UserError(
        f"A {type(network).__name__} has no last linear layer whose outputs are its own, so there "
        "is no head that could be replaced; name another network, or let it end with an nn.Linear."
    )


def _recording(calls: list[tuple[str, Tensor]], name: str) -> Callable[[Any, Any, Tensor], None]:
    """A hook that keeps what a layer gives."""

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append((name, output))

    return record


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
