"""The features in the middle of a network: what its last stage but one gives."""

from collections import Counter

import torch
from torch import Tensor, nn

from ddengine.system.errors import UserError

POOLINGS = nn.AvgPool2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d


def middle(network: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """The module whose output (B, c, h, w) is the features at the end of the last stage but one,
    for images (C, H, W).

    A stage ends where maps get smaller; a pooling behind the last one does not count. Raises
    UserError when there are no two stages.
    """
    return _find(network, image_shape)[0]


def middle_channels(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """The number c of maps that `middle` gives."""
    return _find(network, image_shape)[1][1]


def _find(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[nn.Module, torch.Size]:
    """(module, shape of its output for two images)."""
    outputs = _trunk(network, image_shape)
    _, height, width = image_shape
    # transformers may keep their channels last, and then two of these numbers are no sides of an
    # image
    upright = all(abs(s[2] * width - s[3] * height) <= 2 * max(height, width) for _, s in outputs)
    # of 1x1 maps nothing can be the last stage: they are what a global pooling left
    ends = [i for i, (_, shape) in enumerate(outputs) if _area(shape) > 1]
    found = (
        [pair for pair in outputs[: ends[-1]] if _area(pair[1]) > _area(outputs[ends[-1]][1])]
        if ends and upright
        else []
    )
    if not found:
        raise UserError(
            f"A {type(network).__name__} for {height}x{width} images has no stage that ends in "
            "smaller maps than another, and so no features in "
            "the middle; name another network, such as resnet18-bn, or set evaluation.loss to "
            "another than uskd."
        )
    return found[-1]


def _area(shape: torch.Size) -> int:
    return shape[2] * shape[3]


def _trunk(
    network: nn.Module, image_shape: tuple[int, int, int]
) -> list[tuple[nn.Module, torch.Size]]:
    """(module, shape) of the modules that give maps (B, c, h, w), in order, up to the last pooling
    and without the inner parts of blocks.

    A block gives maps and is more than a sequence; what is inside lies beside a shortcut or in a
    bottleneck, and is no stage's result.
    """
    names = {module: name for name, module in network.named_modules()}
    calls: list[tuple[nn.Module, torch.Size | None]] = []

    def record(module: nn.Module, inputs: object, output: object) -> None:
        calls.append(
            (module, output.shape if isinstance(output, Tensor) and output.dim() == 4 else None)
        )

    modes = {module: module.training for module in names}
    hooks = [module.register_forward_hook(record) for module in names]
    reference = next(network.parameters())
    try:
        with torch.no_grad():
            network.eval()(
                torch.zeros(2, *image_shape, device=reference.device, dtype=reference.dtype)
            )
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    blocks = tuple(
        f"{names[module]}."
        for module, shape in calls
        if shape is not None and not isinstance(module, nn.Sequential)
    )
    # whoever hooks a module must meet one output in a forward pass
    times = Counter(module for module, _ in calls)
    trunk = [
        (m, s)
        for m, s in calls
        if s is not None
        and times[m] == 1
        and not isinstance(m, nn.Sequential)
        and not names[m].startswith(blocks)
    ]
    while trunk and isinstance(trunk[-1][0], POOLINGS):
        trunk.pop()
    return trunk
