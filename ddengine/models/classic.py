"""MLP, LeNet, AlexNet and VGG11 in the 32-pixel forms of the field.

They are the networks of Dataset Condensation.
"""

import torch
from torch import Tensor, nn

from ddengine.models.convnet import NORMS, OptionError
from ddengine.models.convolution import Convolution


def padded_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape after zero-padding sides below 32 to 32."""
    return (image_shape[0], max(32, image_shape[1]), max(32, image_shape[2]))


def pad_to_32(images: Tensor) -> Tensor:
    """Zero-pad sides below 32 to 32, centred (28 -> 2 on each side)."""
    height, width = images.shape[2:]
    rows = max(0, 32 - height)
    columns = max(0, 32 - width)
    if rows == 0 and columns == 0:
        return images
    left = columns // 2
    top = rows // 2
    return nn.functional.pad(images, [left, columns - left, top, rows - top])


class Classifier(nn.Module):
    """Features, then one linear layer.

    With `pad` images smaller than 32 pixels are zero-padded first.
    """

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        num_classes: int,
        *,
        pad: bool = True,
    ):
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(num_features, num_classes)
        self.pad = pad

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the classifier's input."""
        return torch.flatten(self.features(pad_to_32(images) if self.pad else images), 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.classifier(self.embed(images))


def _no_options(family: str, options: list[str]) -> None:
    if options:
        raise OptionError(f"{family} has no options, got {'-'.join(options)!r}")


def build_mlp(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """Two hidden layers of 128."""
    _no_options("mlp", options)
    channels, height, width = image_shape
    features = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
    )
    return Classifier(features, 128, num_classes, pad=False)


def build_lenet(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """6 and 16 maps of 5x5, 120, 84."""
    _no_options("lenet", options)
    channels, height, width = padded_shape(image_shape)
    flat = 16 * _lenet_side(height) * _lenet_side(width)
    features = nn.Sequential(
        Convolution(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Convolution(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(flat, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
    return Classifier(features, 84, num_classes)


def _lenet_side(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2


def build_alexnet(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """Five convolutions, three 2x2 max poolings, no dropout, one linear layer."""
    _no_options("alexnet", options)
    channels, height, width = padded_shape(image_shape)
    features = nn.Sequential(
        Convolution(channels, 128, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Convolution(128, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Convolution(192, 256, 3, padding=1),
        nn.ReLU(),
        Convolution(256, 192, 3, padding=1),
        nn.ReLU(),
        Convolution(192, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return Classifier(features, 192 * (height // 8) * (width // 8), num_classes)


def build_vgg11(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> Classifier:
    """Eight convolutions with a norm each, five 2x2 max poolings, one linear layer.

    The norm is an option: in, the field's default, or bn.
    """
    norm = options[0] if options else "in"
    if norm not in ("in", "bn") or len(options) > 1:
        raise OptionError(f"vgg11 has the options in and bn, got {'-'.join(options)!r}")
    channels, height, width = padded_shape(image_shape)
    layers: list[nn.Module] = []
    for size in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(size, str):
            layers.append(nn.MaxPool2d(2))
            continue
        normalise = NORMS[norm](size, 0, 0)
        assert normalise is not None
        layers += [Convolution(channels, size, 3, padding=1), normalise, nn.ReLU()]
        channels = size
    return Classifier(nn.Sequential(*layers), 512 * (height // 32) * (width // 32), num_classes)
