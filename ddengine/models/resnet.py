"""ResNet18 in the 32-pixel forms of the field, and ResNetAP-10.

They have a 3x3 stem without pooling, and instance norm, BatchNorm, or average pooling for strides.
`x<percent>` scales all widths (`resnet18-bn-x25` starts with 16 maps instead of 64).
"""

import re

from torch import Tensor, nn

from ddengine.models.classic import Classifier, padded_shape
from ddengine.models.convnet import NORMS, OptionError
from ddengine.models.convolution import Convolution


def _norm(kind: str, channels: int) -> nn.Module:
    layer = NORMS[kind](channels, 0, 0)
    assert layer is not None
    return layer


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    `average`: a stride becomes a 2x2 average pooling, after the activation in the body.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        norm: str,
        average: bool,
    ):
        super().__init__()
        pool = [nn.AvgPool2d(2)] if average and stride > 1 else []
        step = 1 if average else stride
        self.body = nn.Sequential(
            Convolution(channels, out, 3, step, padding=1, bias=False),
            _norm(norm, out),
            nn.ReLU(),
            *pool,
            Convolution(out, out, 3, padding=1, bias=False),
            _norm(norm, out),
        )
        # made where it is not needed too: its weights are drawn, and what is drawn after them stays
        self.shortcut: nn.Module = nn.Sequential(
            Convolution(channels, out, 1, step, bias=False), *pool, _norm(norm, out)
        )
        if stride == 1 and channels == out:
            self.shortcut = nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        return self.relu(self.body(images) + self.shortcut(images))


def split_percent(options: list[str]) -> tuple[int, list[str]]:
    """(percent of an option x<percent>, 100 without one; the other options).

    Raises OptionError for a second one, or one out of range.
    """
    given = [option for option in options if re.fullmatch(r"x[0-9]+", option)]
    if len(given) > 1:
        raise OptionError(f"{given[1]!r} sets the width a second time")
    if not given:
        return 100, options
    percent = int(given[0][1:])
    if not 10 <= percent <= 400:
        raise OptionError(f"the width must be x10 to x400, got {given[0]!r}")
    return percent, [option for option in options if option not in given]


def build(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """Options: in (default), bn, or ap, and x<percent>, in any order.

    ap is instance norm with average pooling for strides, and no global pooling.
    """
    percent, rest = split_percent(options)
    kind = rest[0] if rest else "in"
    if kind not in ("in", "bn", "ap") or len(rest) > 1:
        raise OptionError(
            f"resnet18 has the options in, bn and ap, and x<percent>, got {'-'.join(rest)!r}"
        )
    average = kind == "ap"
    norm = "in" if average else kind
    channels, height, width = padded_shape(image_shape)
    first = round(64 * percent / 100)
    layers: list[nn.Module] = [
        Convolution(channels, first, 3, padding=1, bias=False),
        _norm(norm, first),
        nn.ReLU(),
    ]
    channels = first
    for out, stride in ((first, 1), (2 * first, 2), (4 * first, 2), (8 * first, 2)):
        layers.append(BasicBlock(channels, out, stride, norm, average))
        layers.append(BasicBlock(out, out, 1, norm, average))
        channels = out
    if average:
        num_features = channels * (height // 8) * (width // 8)
        return Classifier(nn.Sequential(*layers), num_features, num_classes)
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), channels, num_classes)


def build_ap10(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """ResNetAP-10 (IDC, Kim et al., ICML 2022): a block a stage, average pooling for strides.

    Instance norm, and a stem by the longer side: up to 64 pixels a 3x3 convolution, up to 128 the
    same and a pooling of 2, above a 7x7 convolution and a pooling of 4. Options: ap (default), and
    x<percent>, in any order.
    """
    percent, rest = split_percent(options)
    if rest not in ([], ["ap"]):
        raise OptionError(f"resnet10 has the option ap, and x<percent>, got {'-'.join(rest)!r}")
    channels, height, width = padded_shape(image_shape)
    first = round(64 * percent / 100)
    longest = max(height, width)
    kernel, pool = (7, 4) if longest > 128 else (3, 2 if longest > 64 else 1)
    layers: list[nn.Module] = [
        Convolution(channels, first, kernel, padding=kernel // 2, bias=False),
        _norm("in", first),
        nn.ReLU(),
        nn.AvgPool2d(pool),
    ]
    channels = first
    for out, stride in ((first, 1), (2 * first, 2), (4 * first, 2), (8 * first, 2)):
        layers.append(BasicBlock(channels, out, stride, "in", average=True))
        channels = out
    network = Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), channels, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
