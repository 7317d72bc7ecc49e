"""Networks by name. Every network has `embed(images)`: the input (B, D) of its last linear layer.

Names are a family and options in any order, joined by hyphens: `convnet-d3-w128-in`, `resnet18-bn`, `torchvision/mobilenet_v2`.
"""

from collections.abc import Callable
from typing import Literal

from torch import Generator, nn

from ddengine import rng as streams
from ddengine.errors import UserError, unknown
from ddengine.models import classic, convnet, mobile, resnet, torchvision_models
from ddengine.models.middle import middle, middle_channels

ImageShape = tuple[int, int, int]

# family -> (options, image shape, number of classes) -> network
MODELS: dict[str, Callable[[list[str], ImageShape, int], nn.Module]] = {
    "convnet": convnet.build,
    "mlp": classic.build_mlp,
    "lenet": classic.build_lenet,
    "alexnet": classic.build_alexnet,
    "vgg11": classic.build_vgg11,
    "resnet18": resnet.build,
    "mobilenet_v2": mobile.build_mobilenet_v2,
    "efficientnet_b0": mobile.build_efficientnet_b0,
    "shufflenet_g2": mobile.build_shufflenet_g2,
    "torchvision": torchvision_models.build,
}

EXAMPLES = (
    "convnet-d3-w128-in", "convnet-d4-w128-in", "convnet-d3-w128-bn", "convnet-d3-w128-nn", "mlp", "lenet", "alexnet",
    "vgg11-in", "vgg11-bn", "resnet18-in", "resnet18-bn", "resnet18-ap", "resnet18-bn-x25",
    "mobilenet_v2", "mobilenet_v2-x25", "efficientnet_b0", "efficientnet_b0-x25", "shufflenet_g2", "shufflenet_g2-x25",
)  # fmt: skip


def build_model(name: str, image_shape: ImageShape, num_classes: int, rng: Generator) -> nn.Module:
    """A freshly initialised network for images (C, H, W). Global generators are left as they were.

    Raises UserError for an unknown name (the nearest are named) or an image the network cannot take.
    """
    family, _, rest = name.partition("/" if name.startswith("torchvision/") else "-")
    if family not in MODELS:
        raise unknown("network", name, (*EXAMPLES, *(f"torchvision/{n}" for n in torchvision_models.names())))
    options = rest.split("-") if rest else []
    with streams.scoped(rng):
        try:
            return MODELS[family](options, image_shape, num_classes)
        except convnet.OptionError as error:
            near = unknown("network", name, (*EXAMPLES, *(f"torchvision/{n}" for n in torchvision_models.names())))
            raise UserError(f"{str(near)[:-1]} ({error}).") from None


ADAMW_FAMILIES = ("vit", "deit", "swin", "maxvit", "convnext", "mixer")


def usual_optimiser(name: str) -> Literal["sgd", "adamw"]:
    """The optimiser that published recipes train a network of this name with from scratch."""
    return "adamw" if any(family in name.partition("/")[2] for family in ADAMW_FAMILIES) else "sgd"


__all__ = ["EXAMPLES", "MODELS", "ImageShape", "build_model", "middle", "middle_channels", "usual_optimiser"]
