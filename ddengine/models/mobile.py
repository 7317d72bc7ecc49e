"""MobileNetV2, EfficientNet-B0 and ShuffleNet in the 32-pixel forms of the field.

Their strides are small, so that 4x4 or 2x2 maps are left of 32 pixels. `x<percent>` scales all
widths (`mobilenet_v2-x25`). Weights start at torch's defaults, as in the rest of the field's
networks.
"""

import torch
from torch import Tensor, nn

from ddengine.models.classic import Classifier
from ddengine.models.convnet import OptionError
from ddengine.models.resnet import split_percent


def _percent(family: str, options: list[str]) -> int:
    percent, rest = split_percent(options)
    if rest:
        raise OptionError(f"{family} has the option x<percent>, got {'-'.join(rest)!r}")
    return percent


def _finish(body: nn.Sequential, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """The body of a torchvision network for these images.

    The stem takes their channels with stride 1, and all weights start at torch's defaults.
    """
    stem = body[0]
    assert isinstance(stem, nn.Sequential)
    first = stem[0]
    assert isinstance(first, nn.Conv2d)
    stem[0] = nn.Conv2d(image_shape[0], first.out_channels, 3, padding=1, bias=False)
    for part in body.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            part.reset_parameters()
    return body


def build_mobilenet_v2(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """The blocks of torchvision with stride 1 in the stem and in the 24 maps, and no dropout.

    As its authors have it, the last 1280 maps do not become fewer below x100. The field's own form
    has ReLU where this has ReLU6, one more 1x1 convolution in the first block, and convolutions on
    the shortcuts of blocks that change nothing but the width, where this has no shortcut (2.30M
    parameters for 2.24M here, at 10 classes).
    """
    from ddengine.system.compat import torchvision  # seconds to import, and rarely needed

    scale = _percent("mobilenet_v2", options) / 100
    # expansion, maps, blocks, stride of the first
    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    network = torchvision.models.MobileNetV2(width_mult=scale, inverted_residual_setting=stages)
    body = _finish(network.features, image_shape)
    return Classifier(
        nn.Sequential(body, nn.AdaptiveAvgPool2d(1)), network.last_channel, num_classes
    )


def build_efficientnet_b0(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """The blocks of torchvision with stride 1 in the stem.

    Squeeze-and-excitation is to a quarter, dropout 0.2, stochastic depth up to 0.2. The field's
    form has no last 1x1 convolution to 1280 maps, and one more in the first block (3.60M parameters
    for 4.02M here, at 10 classes).
    """
    from ddengine.system.compat import torchvision

    scale = _percent("efficientnet_b0", options) / 100
    block = torchvision.models.efficientnet.MBConvConfig
    # expansion, kernel, stride of the first, maps before, maps, blocks
    setting = [
        block(1, 3, 1, 32, 16, 1, width_mult=scale),
        block(6, 3, 2, 16, 24, 2, width_mult=scale),
        block(6, 5, 2, 24, 40, 2, width_mult=scale),
        block(6, 3, 2, 40, 80, 3, width_mult=scale),
        block(6, 5, 1, 80, 112, 3, width_mult=scale),
        block(6, 5, 2, 112, 192, 4, width_mult=scale),
        block(6, 3, 1, 192, 320, 1, width_mult=scale),
    ]
    network = torchvision.models.EfficientNet(setting, dropout=0.2, stochastic_depth_prob=0.2)
    body = _finish(network.features, image_shape)
    return Classifier(
        nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2)),
        4 * setting[-1].out_channels,
        num_classes,
    )


class ShuffleUnit(nn.Module):
    """Two 1x1 group convolutions around a 3x3 depthwise one, beside a shortcut.

    Channels are shuffled behind the first. `channels` maps come in, `out` maps come out. With
    stride 2 the shortcut is an average pooling, and its maps are among those that come out.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        groups: int,
        first_groups: int,
    ):
        super().__init__()
        made = out - channels if stride == 2 else out
        narrow = made // 4
        self.enter = nn.Sequential(
            nn.Conv2d(channels, narrow, 1, groups=first_groups, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
        )
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.leave = nn.Sequential(
            nn.Conv2d(narrow, narrow, 3, stride, padding=1, groups=narrow, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, made, 1, groups=groups, bias=False),
            nn.BatchNorm2d(made),
        )
        self.pool = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        made = self.leave(self.shuffle(self.enter(images)))
        if self.pool is None:
            return self.relu(images + made)
        return self.relu(torch.cat([made, self.pool(images)], 1))


def _maps(maps: int, percent: int) -> int:
    """A share of maps in multiples of 8.

    A quarter of these, and of what they differ by, divides into two groups.
    """
    return max(8, (maps * percent + 400) // 800 * 8)


def build_shufflenet_g2(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """ShuffleNet v1 of two groups.

    Behind a 1x1 stem of 24 maps without stride come stages of 4, 8 and 4 units with 200, 400 and
    800 maps. As in the field's form, there is a ReLU behind the depthwise convolution, which the
    paper has not.
    """
    percent = _percent("shufflenet_g2", options)
    channels = _maps(24, percent)
    layers: list[nn.Module] = [
        nn.Conv2d(image_shape[0], channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    first_groups = 1  # the few maps of the stem are not divided
    for maps, units in ((200, 4), (400, 8), (800, 4)):
        out = _maps(maps, percent)
        layers.append(ShuffleUnit(channels, out, 2, 2, first_groups))
        for _ in range(units - 1):
            layers.append(ShuffleUnit(out, out, 1, 2, 2))
        channels = out
        first_groups = 2
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), channels, num_classes)
