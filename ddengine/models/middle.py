"""The features in the middle of a network: what its last stage but one gives."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddengine.system.errors import UserError

POOLINGS = nn.AvgPool2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d


@dataclass(frozen=True)
class _Call:
    """What a module gave in a forward pass."""

    module: nn.Module
    shape: torch.Size | None  # of its output for two images; None where these are no maps

    @property
    def gives_maps(self) -> bool:
        """Whether it is more than a sequence of other modules, and gives maps (B, c, h, w)."""
        return self.shape is not None and not isinstance(self.module, nn.Sequential)

    @property
    def area(self) -> int:
        """Pixels of a map."""
        assert self.shape is not None
        return self.shape[2] * self.shape[3]


def middle(network: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """The module that gives the features (B, c, h, w) at the end of the last stage but one.

    A stage ends where the maps of images (C, H, W) get smaller; a pooling behind the last one does
    not count. Raises UserError when the network has no two stages.
    """
    return _end_of_stage(network, image_shape).module


def middle_channels(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """The number c of maps that `middle` gives."""
    shape = _end_of_stage(network, image_shape).shape
    assert shape is not None
    return shape[1]


def _end_of_stage(network: nn.Module, image_shape: tuple[int, int, int]) -> _Call:
    """The end of the last stage but one. Raises UserError without one."""
    trunk = _trunk(network, image_shape)
    upright = all(_is_upright(call, image_shape) for call in trunk)
    # of 1x1 maps nothing can be the last stage: they are what a global pooling left
    while trunk and trunk[-1].area == 1:
        trunk.pop()
    if trunk and upright:
        for call in reversed(trunk[:-1]):
            if call.area > trunk[-1].area:
                return call
    raise UserError(
        f"A {type(network).__name__} for {image_shape[1]}x{image_shape[2]} images has no stage "
        "that ends in smaller maps than another, and so no features in "
        "the middle; name another network, such as resnet18-bn, or set evaluation.loss to "
        "another than uskd."
    )


def _is_upright(call: _Call, image_shape: tuple[int, int, int]) -> bool:
    """Whether the last two dimensions of a module's output are the sides of an image.

    Transformers may keep their channels last, and then the sides have not the ratio of the image's.
    """
    assert call.shape is not None
    _, height, width = image_shape
    _, _, rows, columns = call.shape
    off = abs(rows * width - columns * height)
    return off <= 2 * max(height, width)


def _trunk(network: nn.Module, image_shape: tuple[int, int, int]) -> list[_Call]:
    """The modules that give maps (B, c, h, w), in order, without the inner parts of blocks.

    A block gives maps and is more than a sequence; what is inside lies beside a shortcut or in a
    bottleneck, and is no stage's result. Poolings at the end are left out.
    """
    names = {module: name for name, module in network.named_modules()}
    calls = _calls(network, image_shape)
    maps = [call for call in calls if call.gives_maps]
    blocks = tuple(f"{names[call.module]}." for call in maps)
    # whoever hooks a module must meet one output in a forward pass
    times = Counter(call.module for call in calls)
    trunk = []
    for call in maps:
        inner = names[call.module].startswith(blocks)
        if times[call.module] == 1 and not inner:
            trunk.append(call)
    while trunk and isinstance(trunk[-1].module, POOLINGS):
        trunk.pop()
    return trunk


def _calls(network: nn.Module, image_shape: tuple[int, int, int]) -> list[_Call]:
    """What the modules of a network give for two images, in the order in which they end."""
    calls = []

    def record(
        module: nn.Module,
        inputs: object,
        output: object,
    ) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4
        calls.append(_Call(module, output.shape if is_map else None))  # type: ignore[union-attr]

    hooks = [module.register_forward_hook(record) for module in network.modules()]
    weight = next(network.parameters())
    images = torch.zeros(2, *image_shape, device=weight.device, dtype=weight.dtype)
    try:
        with _evaluated(network), torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode; afterwards each module is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
