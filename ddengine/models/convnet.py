"""The ConvNet of the field (Gidaris & Komodakis, 2018, as Dataset Condensation uses it).

`depth` blocks of [3x3 convolution with bias, stride 1, padding 1; normalisation; activation; 2x2
pooling], flatten, linear.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddengine.models.convolution import Convolution
from ddengine.models.instance_norm import InstanceNorm
from ddengine.models.pooling import AveragePool
from ddengine.system.runtime import check_memory


class OptionError(ValueError):
    """A part of a network's name that its family does not know, or a value out of range."""


NORMS: dict[str, Callable[[int, int, int], nn.Module | None]] = {
    "in": lambda c, h, w: InstanceNorm(c),
    "bn": lambda c, h, w: nn.BatchNorm2d(c),
    "ln": lambda c, h, w: nn.LayerNorm([c, h, w]),
    "gn": lambda c, h, w: nn.GroupNorm(4, c),
    "nn": lambda c, h, w: None,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.01),
}
POOLS: dict[str, Callable[[], nn.Module | None]] = {
    "ap": AveragePool,
    "mp": lambda: nn.MaxPool2d(2, 2),
    "np": lambda: None,
}


class ConvNet(nn.Module):
    """Blocks of convolution, normalisation, activation and pooling, then one linear layer.

    The parameters are, in this order, of each block the weight and bias of the convolution and of
    the normalisation; then those of the linear layer.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 3,
        width: int | Sequence[int] = 128,
        norm: str = "in",
        act: str = "relu",
        pool: str = "ap",
    ):
        """A `width` for each block takes the place of `depth`."""
        super().__init__()
        widths = [width] * depth if isinstance(width, int) else width
        channels, height, width_px = image_shape
        layers: list[nn.Module] = []
        for block, out in enumerate(widths):
            # one-channel 28x28 becomes 32x32 in the first convolution, as in the published code
            padding = 3 if block == 0 and image_shape == (1, 28, 28) else 1
            layers.append(Convolution(channels, out, 3, padding=padding))
            channels = out
            height += 2 * padding - 2
            width_px += 2 * padding - 2
            normalisation = NORMS[norm](channels, height, width_px)
            if normalisation is not None:
                layers.append(normalisation)
            layers.append(ACTIVATIONS[act]())
            pooling = POOLS[pool]()
            if pooling is not None:
                layers.append(pooling)
                height //= 2
                width_px //= 2
            if min(height, width_px) < 1:
                raise OptionError(
                    f"{len(widths)} poolings leave nothing of a {image_shape[1]}x{image_shape[2]} "
                    "image, use a smaller depth"
                )
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * height * width_px, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the classifier's input."""
        return torch.flatten(self.features(images), 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.classifier(self.embed(images))


def _setting(option: str) -> tuple[str, str | int]:
    """The argument of ConvNet that an option sets, and its value. Raises OptionError."""
    size = {"d": "depth", "w": "width"}.get(option[:1])
    if size is not None and re.fullmatch("[0-9]{1,12}", option[1:]):
        return size, int(option[1:])
    for argument, values in (("norm", NORMS), ("act", ACTIVATIONS), ("pool", POOLS)):
        if option in values:
            return argument, option
    raise OptionError(
        f"{option!r} is not an option of convnet; they are d1..d8, w<width>, "
        f"w<width>x2, {', '.join((*NORMS, *POOLS, *ACTIVATIONS))}"
    )


def _bytes_of(channels: int, widths: Sequence[int]) -> int:
    """Bytes of the weights of the convolutions."""
    numbers = 0
    for width in widths:
        numbers += 9 * channels * width
        channels = width
    return 4 * numbers


def build(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> ConvNet:
    """From `d1`..`d8`, `w<width>`, a norm, a pooling and an activation, in any order.

    `w<width>x2` is the width of the first block, and each further one is twice as wide. The norms
    are in, bn, ln, gn and nn, the poolings ap, mp and np, the activations relu, sigmoid and leaky.
    """
    chosen: dict[str, str | int] = {}
    growth = 1
    for option in options:
        doubling = re.fullmatch(r"(w[0-9]+)x2", option)
        if doubling is not None:
            growth = 2
        key, value = _setting(option if doubling is None else doubling.group(1))
        if key in chosen:
            raise OptionError(f"{option!r} sets the {key} a second time")
        chosen[key] = value
    depth = int(chosen.pop("depth", 3))
    width = int(chosen.pop("width", 128))
    if not 1 <= depth <= 8 or width < 1:
        raise OptionError("the depth must be 1 to 8 and the width at least 1")
    if chosen.get("norm") == "gn" and width % 4:
        raise OptionError("group norm has 4 groups, so the width must be a multiple of 4")
    widths = [width * growth**block for block in range(depth)]
    needed = _bytes_of(image_shape[0], widths)
    check_memory(f"A convnet of width {max(widths)}", needed, "name a narrower one")
    return ConvNet(image_shape, num_classes, width=widths, **chosen)  # type: ignore[arg-type]
