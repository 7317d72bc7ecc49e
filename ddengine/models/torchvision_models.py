"""Any torchvision classifier by name, as it is or with a stem for small images."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from ddengine import naming
from ddengine.models.classic import pad_to_32, padded_shape
from ddengine.models.convnet import OptionError
from ddengine.system.errors import UserError


def names() -> list[str]:
    """Names of torchvision's image classifiers."""
    from ddengine.system.compat import torchvision  # seconds to import, and rarely needed

    return torchvision.models.list_models(module=torchvision.models)


class TorchvisionClassifier(nn.Module):
    """A torchvision network split into its body and its last linear layer.

    `name` is torchvision's, `head_path` where the layer was. `small` is whether the stem was
    changed for small images, `pad` whether sides below 32 pixels are padded to 32.
    """

    def __init__(
        self,
        name: str,
        body: nn.Module,
        head: nn.Linear,
        head_path: str,
        *,
        small: bool,
        pad: bool,
    ):
        super().__init__()
        self.name = name
        self.head_path = head_path
        self.small = small
        self.pad = pad
        self.body = body
        self.head = head

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the last linear layer's input."""
        return self.body(pad_to_32(images) if self.pad else images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.head(self.embed(images))

    def load_torchvision(self, state: dict[str, Tensor]) -> None:
        """Take the weights of torchvision's own network of this name, whose keys are torchvision's.

        Raises UserError, naming what differs, when they do not fit; the network is then as it was.
        """
        given = {self._key_here(key): tensor for key, tensor in state.items()}
        self._check_classes(given)
        if self.small:
            raise UserError(
                f"torchvision/{self.name}{naming.SMALL_STEM} has another stem for images of up to "
                f"{naming.SMALL} pixels, which the weights are not for; "
                f"name torchvision/{self.name}, or set data.size to more, such as 224 224."
            )
        self._check_channels(given)
        tensors = self.state_dict()
        self._check_shapes(given, tensors)
        # not load_state_dict: some networks of torchvision ask there for what only their own files
        # say
        for key, tensor in given.items():
            tensors[key].copy_(tensor)

    def _check_classes(self, given: dict[str, Tensor]) -> None:
        """Raise UserError for weights of another number of classes."""
        here = self.head.weight
        weight = given.get("head.weight", here)
        if weight.shape[1:] == here.shape[1:] and len(weight) != len(here):
            raise UserError(
                f"The weights of torchvision/{self.name} are for {len(weight)} classes and the "
                f"data have {len(here)}; "
                "name a dataset of as many classes with data.name, or train experts on this one."
            )

    def _check_channels(self, given: dict[str, Tensor]) -> None:
        """Raise UserError for weights of another number of channels."""
        path, stem = first_convolution(self.body)
        weight = given.get(f"body.{path}.weight", stem.weight)
        if weight.dim() == 4 and weight.shape[1] != stem.weight.shape[1]:
            raise UserError(
                f"The weights of torchvision/{self.name} are for images of {weight.shape[1]} "
                f"channels and the data have {stem.weight.shape[1]}; "
                "name another dataset with data.name, or train experts on this one."
            )

    def _check_shapes(self, given: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """Raise UserError for the first tensor that is missing, too many, or of another shape."""
        # files older than the counters of BatchNorm are without them
        needed = {key for key in tensors if not key.endswith("num_batches_tracked")}
        for key in sorted(needed | set(given)):
            in_file = _shape_of(given, key)
            here = _shape_of(tensors, key)
            if in_file != here:
                raise UserError(
                    f"The weights do not fit torchvision/{self.name}: its {key} is {in_file} in "
                    f"the file and {here} in the network; "
                    "choose another network of torchvision, or weights of this one."
                )

    def _key_here(self, key: str) -> str:
        """The name that a tensor of torchvision's network has in this one."""
        # the files of DenseNet are older than its names
        key = re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
        prefix = f"{self.head_path}."
        return f"head.{key.removeprefix(prefix)}" if key.startswith(prefix) else f"body.{key}"


def replace(
    root: nn.Module,
    path: str,
    module: nn.Module,
) -> None:
    """Put another module at a path."""
    parent, _, child = path.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """(path, layer) of the first convolution that a network defines."""
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    raise ValueError(f"a {type(network).__name__} has no convolution")


def adapt_stem(
    network: nn.Module,
    channels: int,
    small: bool,
) -> None:
    """Make the first convolution of a network take `channels`.

    For small images it also loses its stride, and a max pooling right behind it goes.
    """
    path, first = first_convolution(network)
    kernel: Any = first.kernel_size
    if small and first.kernel_size[0] > 3:
        kernel = 3
    padding: Any = 1 if kernel == 3 else first.padding
    stride: Any = 1 if small else first.stride
    stem = nn.Conv2d(
        channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None
    )
    replace(network, path, stem)
    if not small:
        return
    layers = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            layers.append((path, module))
    if len(layers) > 1 and isinstance(layers[1][1], nn.MaxPool2d):
        replace(network, layers[1][0], nn.Identity())


def _or_small(name: str, shape: tuple[int, int, int]) -> str:
    """What else to do where a network cannot take images (C, H, W)."""
    if name.endswith(naming.SMALL_STEM) or naming.is_large(shape[1:]):
        return ""
    return f", or name torchvision/{name}{naming.SMALL_STEM}"


def _shape_of(tensors: dict[str, Tensor], key: str) -> str:
    """The shape of a tensor in a message."""
    return str(tuple(tensors[key].shape)) if key in tensors else "not there"


def build(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> TorchvisionClassifier:
    """`torchvision/NAME`, and `torchvision/NAME-small`.

    The first is torchvision's network, whose first convolution takes the channels of the images and
    is drawn anew. The second pads sides below 32 pixels to 32, and up to 64 pixels its first
    convolution has no stride and no pooling behind it; vision transformers have patches of an
    eighth of the image, whatever its size.

    Raises OptionError for a name that torchvision has not, and UserError for a network that cannot
    take images (C, H, W) of this shape, or does not end in a linear layer.
    """
    name = "-".join(options)
    small = name.endswith(naming.SMALL_STEM)
    name = name.removesuffix(naming.SMALL_STEM)
    if name not in names():
        raise OptionError("torchvision has no such classifier")
    shape = padded_shape(image_shape) if small else image_shape
    changed = small and not naming.is_large(shape[1:])
    if name.startswith("vit_"):
        make = _small_transformer if small else _vision_transformer
        network = make(name, image_shape, num_classes)
        changed = small
    else:
        network = _made(name, num_classes)
        adapt_stem(network, shape[0], changed)
    path, head = _last_linear(name, network, num_classes)
    replace(network, path, nn.Identity())
    model = TorchvisionClassifier(name, network, head, path, small=changed, pad=small)
    _check_takes("-".join(options), model, shape, num_classes)
    return model.train()


def _vision_transformer(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> nn.Module:
    """A vision transformer of torchvision for images of this size.

    Raises UserError for images that are not square, or not of whole patches.
    """
    channels, height, width = image_shape
    patch = int(name.rpartition("_")[2])
    if height != width or height % patch:
        raise UserError(
            f"torchvision/{name} needs square images with sides that are multiples of its patches "
            f"of {patch} pixels, got {image_shape}; set data.size, or name "
            f"torchvision/{name}{naming.SMALL_STEM}, which has smaller patches."
        )
    network = _made(name, num_classes, image_size=height)
    adapt_stem(network, channels, False)
    return network


def _small_transformer(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> nn.Module:
    """A vision transformer with patches of an eighth of the image.

    Raises UserError for images that are not square, not of whole patches, or not in colour.
    """
    from ddengine.system.compat import torchvision

    channels, height, width = padded_shape(image_shape)
    if height != width or height % 8 or channels != 3:
        raise UserError(
            f"torchvision/{name}{naming.SMALL_STEM} needs square colour images with sides that "
            f"are multiples of 8, got {image_shape}; set data.size."
        )
    # layers, heads, width, width of the layers between
    sizes = {"b": (12, 12, 768, 3072), "l": (24, 16, 1024, 4096), "h": (32, 16, 1280, 5120)}
    layers, heads, inner, between = sizes[name[4]]
    return torchvision.models.VisionTransformer(
        height, height // 8, layers, heads, inner, between, num_classes=num_classes
    )


def _made(name: str, num_classes: int, **more: Any) -> nn.Module:
    """A network of torchvision as it makes it with these settings, without weights of its own."""
    from ddengine.system.compat import torchvision

    maker = torchvision.models.get_model_builder(name)
    settings: dict[str, Any] = {"weights": None, "num_classes": num_classes, **more}
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}
    return maker(**settings)


def _last_linear(
    name: str,
    network: nn.Module,
    num_classes: int,
) -> tuple[str, nn.Linear]:
    """(path, layer) of the last linear layer.

    Raises UserError where it does not give the logits.
    """
    linear = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):
            linear.append((path, module))
    if not linear or linear[-1][1].out_features != num_classes:
        raise UserError(
            f"torchvision/{name} does not end in a linear layer and cannot be used; "
            "torchvision/resnet18 can."
        )
    return linear[-1]


def _check_takes(
    name: str,
    model: nn.Module,
    shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Raise UserError unless a network gives logits of images (C, H, W).

    It is left in evaluation mode.
    """
    hollow = {}  # a forward of nothing but shapes
    for key, tensor in model.state_dict().items():
        hollow[key] = torch.empty_like(tensor, device="meta")
    try:
        with torch.device("meta"), torch.no_grad():
            images = torch.empty(2, *shape)
            logits = torch.func.functional_call(model.eval(), hollow, (images,))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"torchvision/{name} cannot take images of {shape[1]}x{shape[2]} "
            f"({str(error).splitlines()[0]}); set data.size{_or_small(name, shape)}."
        ) from None
    assert logits.shape == (2, num_classes)
