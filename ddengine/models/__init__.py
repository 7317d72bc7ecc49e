"""Networks by name. Every network has `embed(images)`: the input (B, D) of its last linear layer.

Names of ours are a family and options in any order, joined by hyphens: `convnet-d3-w128-in`,
`resnet18-bn`. `torchvision/resnet18` and `timm/resnet18` are the networks of these libraries, stem
and all; `torchvision/resnet18-small` and `timm/resnet18-small` have a stem for images of up to 64
pixels.
"""

from collections.abc import Callable
from typing import Literal

from torch import Generator, nn

from ddengine import naming
from ddengine.models import classic, convnet, mobile, resnet, timm_models, torchvision_models
from ddengine.models.middle import middle, middle_channels
from ddengine.system import rng as streams
from ddengine.system.errors import UserError, unknown

ImageShape = tuple[int, int, int]

# family -> (options, image shape, number of classes) -> network
MODELS: dict[str, Callable[[list[str], ImageShape, int], nn.Module]] = {
    "convnet": convnet.build,
    "mlp": classic.build_mlp,
    "lenet": classic.build_lenet,
    "alexnet": classic.build_alexnet,
    "vgg11": classic.build_vgg11,
    "resnet18": resnet.build,
    "resnet10": resnet.build_ap10,
    "mobilenet_v2": mobile.build_mobilenet_v2,
    "efficientnet_b0": mobile.build_efficientnet_b0,
    "shufflenet_g2": mobile.build_shufflenet_g2,
    "torchvision": torchvision_models.build,
    "timm": timm_models.build,
}

# parts of names, of torchvision and timm; "vit" is also in maxvit, mobilevit, levit, crossvit,
# davit
ADAMW_FAMILIES = (
    "vit",
    "deit",
    "swin",
    "beit",
    "eva",
    "cait",
    "xcit",
    "pit_",
    "tnt_",
    "twins",
    "pvt",
    "coat",
    "volo",
    "former",
    "sequencer",
    "nest_",
    "maxxvit",
    "hiera",
    "focalnet",
    "convnext",
    "edgenext",
    "convmixer",
    "mixer",
    "resmlp",
    "gmlp",
)

EXAMPLES = (
    "convnet-d3-w128-in",
    "convnet-d4-w128-in",
    "convnet-d3-w128-bn",
    "convnet-d3-w128-nn",
    "mlp",
    "lenet",
    "alexnet",
    "vgg11-in",
    "vgg11-bn",
    "resnet18-in",
    "resnet18-bn",
    "resnet18-ap",
    "resnet18-bn-x25",
    "resnet10-ap",
    "mobilenet_v2",
    "mobilenet_v2-x25",
    "efficientnet_b0",
    "efficientnet_b0-x25",
    "shufflenet_g2",
    "shufflenet_g2-x25",
)


def build_model(
    name: str,
    image_shape: ImageShape,
    num_classes: int,
    rng: Generator,
) -> nn.Module:
    """A freshly initialised network for images (C, H, W). Global generators are left as they were.

    Raises UserError for an unknown name (the nearest are named) or an image the network cannot
    take.
    """
    separator = "/" if name.startswith(naming.LIBRARIES) else "-"
    family, _, rest = name.partition(separator)
    if family not in MODELS:
        raise unknown("network", name, _known(name))
    options = rest.split("-") if rest else []
    with streams.scoped(rng):
        try:
            return MODELS[family](options, image_shape, num_classes)
        except convnet.OptionError as error:
            near = unknown("network", name, _known(name))
            raise UserError(f"{str(near)[:-1]} ({error}).") from None


def is_family(name: str) -> bool:
    """Whether a name begins as that of a network that can be built."""
    return name.startswith(naming.LIBRARIES) or name.partition("-")[0] in MODELS


def _known(name: str) -> tuple[str, ...]:
    """The names that `name` may have been meant to be.

    Those of timm are among them only where it asks for one, because they are more than all others.
    """
    known: list[str] = [*EXAMPLES]
    libraries = {"torchvision": torchvision_models.names()}
    if name.startswith("timm"):
        libraries["timm"] = timm_models.names()
    for library, networks in libraries.items():
        for network in networks:
            known += [f"{library}/{network}", f"{library}/{network}{naming.SMALL_STEM}"]
    return tuple(known)


def usual_optimiser(name: str) -> Literal["sgd", "adamw"]:
    """The optimiser that published recipes train a network of this name with from scratch.

    AdamW for the networks of torchvision and timm with attention (ViT, DeiT, Swin, MaxViT, CoAtNet,
    BEiT, XCiT, ...), for MLP-Mixer and its kin and for ConvNeXt: the papers of DeiT, Swin, MaxViT
    and ConvNeXt train with it, those of ViT and MLP-Mixer with Adam. Their LayerNorm and attention
    make gradients whose sizes differ much between layers, so that SGD's one rate fits few of them.

    SGD with momentum for all others. The papers of AlexNet, VGG, ResNet, ResNeXt, DenseNet,
    MobileNetV2, ShuffleNetV2 and RegNet train with it, and so do the published evaluations of
    distilled sets for the engine's networks, whatever their family. EfficientNet, MobileNetV3 and
    MNASNet were published with RMSProp, whose rate and decay neither of the two has; BatchNorm
    behind each convolution lets SGD train them (torchvision's EfficientNetV2 and timm's
    EfficientNets have recipes with SGD).
    """
    library, _, network = name.partition("/")
    if f"{library}/" not in naming.LIBRARIES:
        return "sgd"
    if any(family in network for family in ADAMW_FAMILIES):
        return "adamw"
    return "sgd"


__all__ = [
    "EXAMPLES",
    "MODELS",
    "ImageShape",
    "build_model",
    "is_family",
    "middle",
    "middle_channels",
    "usual_optimiser",
]
