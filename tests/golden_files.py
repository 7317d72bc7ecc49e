"""Golden vectors: inputs and outputs of the published implementations."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ddengine.models.convnet import ConvNet

GOLDEN = Path(os.environ.get("DDENGINE_GOLDEN", Path(__file__).parent / "golden"))


def load(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A golden file with its floating-point tensors in `dtype`."""
    tensors = {}
    for key, tensor in load_file(GOLDEN / f"{name}.safetensors").items():
        tensors[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def metadata(name: str) -> dict[str, str]:
    """What a file says of itself."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return file.metadata()


def names(name: str, suffix: str = "", prefix: str = "") -> list[str]:
    """What keys of a file begin with that end and begin so, without both."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        keys = [k for k in file.keys() if k.endswith(suffix) and k.startswith(prefix)]
    return sorted(key.removesuffix(suffix).removeprefix(prefix) for key in keys)


def shapes_of(name: str, key: str = "shapes") -> list[list[int]]:
    """The shapes of the parameters of a file's network, in their order."""
    return [shape for _, shape in json.loads(metadata(name)[key])]


def convnet(
    shapes: Sequence[Sequence[int]], image_shape: Sequence[int], norm: str | None = None
) -> ConvNet:
    """The ConvNet with parameters of these shapes, for images (C, H, W), in float32.

    Widths, depth and classes are theirs. So is the padding of the first convolution, which the
    published programs choose by the number of channels: 3 where only that leads to the features
    that the last layer takes, whatever the size of the images.
    """
    widths = [shape[0] for shape in shapes if len(shape) == 4]
    classes, features = [shape for shape in shapes if len(shape) == 2][-1]
    if norm is None:
        norm = "in" if len(shapes) > 2 * len(widths) + 2 else "nn"
    channels, *sides = image_shape
    for padding in (3, 1) if channels == 1 else (1, 3):
        reached = [side + 2 * (padding - 1) for side in sides]
        pooled = [side // 2 ** len(widths) for side in reached]
        if widths[-1] * pooled[0] * pooled[1] == features:
            break
    # a side more that pooling cuts off, because our network itself pads images of 28 x 28 by 3
    first, second = (side + 1 if side == 28 else side for side in reached)
    net = ConvNet((channels, first, second), classes, width=widths, norm=norm)
    convolution = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.padding = (padding, padding)
    assert [list(p.shape) for p in net.parameters()] == [list(shape) for shape in shapes]
    return net
