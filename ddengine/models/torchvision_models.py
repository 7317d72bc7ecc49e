"""Any torchvision classifier by name, with a stem for small images."""

import inspect
import re

import torch
from torch import Tensor, nn

from ddengine.models.classic import pad_to_32, padded_shape
from ddengine.models.convnet import OptionError
from ddengine.system.errors import UserError

# pixels; up to here the first convolution loses its stride and the first pooling is dropped
SMALL = 64


def names() -> list[str]:
    """Names of torchvision's image classifiers."""
    from ddengine.system.compat import torchvision  # seconds to import, and rarely needed

    return torchvision.models.list_models(module=torchvision.models)


class TorchvisionClassifier(nn.Module):
    """A torchvision network split into its body and its last linear layer.

    `name` is torchvision's, `head_path` where the layer was, `small` whether the stem was changed
    for small images.
    """

    def __init__(self, name: str, body: nn.Module, head: nn.Linear, head_path: str, small: bool):
        super().__init__()
        self.name, self.head_path, self.small = name, head_path, small
        self.body, self.head = body, head

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the last linear layer's input."""
        return self.body(pad_to_32(images))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.head(self.embed(images))

    def load_torchvision(self, state: dict[str, Tensor]) -> None:
        """Take the weights of torchvision's own network of this name, whose keys are torchvision's.

        Raises UserError, naming what differs, when they do not fit; the network is then as it was.
        """
        given = {self._own_key(key): tensor for key, tensor in state.items()}
        own = self.state_dict()
        classes = given.get("head.weight", self.head.weight)
        if classes.shape[1:] == self.head.weight.shape[1:] and len(classes) != len(
            self.head.weight
        ):
            raise UserError(
                f"The weights of torchvision/{self.name} are for {len(classes)} classes and the "
                f"data have {len(self.head.weight)}; "
                "name a dataset of as many classes with data.name, or train experts on this one."
            )
        if self.small:
            raise UserError(
                f"torchvision/{self.name} has another stem for images of up to {SMALL} pixels, "
                "which the weights are not for; "
                "set data.size to more, such as 224 224."
            )
        path, stem = next(
            (f"body.{n}", m) for n, m in self.body.named_modules() if isinstance(m, nn.Conv2d)
        )
        theirs = given.get(f"{path}.weight", stem.weight)
        if theirs.dim() == 4 and theirs.shape[1] != stem.weight.shape[1]:
            raise UserError(
                f"The weights of torchvision/{self.name} are for images of {theirs.shape[1]} "
                f"channels and the data have {stem.weight.shape[1]}; "
                "name another dataset with data.name, or train experts on this one."
            )
        # files older than the counters of BatchNorm are without them
        needed = {key for key in own if not key.endswith("num_batches_tracked")}
        for key in sorted(needed | set(given)):
            there, here = (
                str(tuple(tensors[key].shape)) if key in tensors else "not there"
                for tensors in (given, own)
            )
            if there != here:
                raise UserError(
                    f"The weights do not fit torchvision/{self.name}: its {key} is {there} in the "
                    f"file and {here} in the network; "
                    "choose another network of torchvision, or weights of this one."
                )
        # not load_state_dict: some networks of torchvision ask there for what only their own files
        # say
        for key, tensor in given.items():
            own[key].copy_(tensor)

    def _own_key(self, key: str) -> str:
        """The name that a tensor of torchvision's network has in this one."""
        # the files of DenseNet are older than its names
        key = re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
        prefix = f"{self.head_path}."
        return f"head.{key.removeprefix(prefix)}" if key.startswith(prefix) else f"body.{key}"


def replace(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module at a path."""
    parent, _, child = path.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def adapt_stem(network: nn.Module, channels: int, small: bool) -> None:
    """The first convolution takes `channels` and, for small images, has stride 1; the first max
    pooling goes.
    """
    path, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    kernel = 3 if small and first.kernel_size[0] > 3 else first.kernel_size
    padding = 1 if kernel == 3 else first.padding
    stride = 1 if small else first.stride
    assert isinstance(padding, int | tuple)
    stem = nn.Conv2d(
        channels,
        first.out_channels,
        kernel,  # type: ignore[arg-type]
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    replace(network, path, stem)
    pool = next((n for n, m in network.named_modules() if isinstance(m, nn.MaxPool2d)), None)
    convolutions_before = [
        n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)
    ]
    if small and pool is not None and convolutions_before.index(pool) == 1:  # right behind the stem
        replace(network, pool, nn.Identity())


def build(
    options: list[str], image_shape: tuple[int, int, int], num_classes: int
) -> TorchvisionClassifier:
    """`torchvision/NAME`. Vision transformers get patches of an eighth of the image."""
    from ddengine.system.compat import torchvision

    name = "-".join(options)
    if name not in names():
        raise OptionError("torchvision has no such classifier")
    shape = padded_shape(image_shape)
    settings: dict[str, object] = {"weights": None, "num_classes": num_classes}
    maker = torchvision.models.get_model_builder(name)
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}
    small = max(shape[1:]) <= SMALL and not name.startswith("vit_")
    if name.startswith("vit_"):
        if shape[1] != shape[2] or shape[1] % 8 or shape[0] != 3:
            raise UserError(
                f"torchvision/{name} needs square colour images with sides that are multiples of "
                f"8, got {image_shape}; set data.size."
            )
        vision = torchvision.models.VisionTransformer
        config = {"b": (12, 12, 768, 3072), "l": (24, 16, 1024, 4096), "h": (32, 16, 1280, 5120)}[
            name[4]
        ]
        network: nn.Module = vision(shape[1], shape[1] // 8, *config, num_classes=num_classes)
    else:
        network = maker(
            **{
                k: v
                for k, v in settings.items()
                if k in inspect.signature(maker).parameters
                or k in ("weights", "num_classes", "aux_logits", "init_weights")
            }
        )
        adapt_stem(network, shape[0], small)
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if (
        not linear
        or not isinstance(head := network.get_submodule(linear[-1]), nn.Linear)
        or head.out_features != num_classes
    ):
        raise UserError(
            f"torchvision/{name} does not end in a linear layer and cannot be used; "
            "torchvision/resnet18 can."
        )
    replace(network, linear[-1], nn.Identity())
    model = TorchvisionClassifier(name, network, head, linear[-1], small)
    try:  # a forward of nothing but shapes
        with torch.device("meta"), torch.no_grad():
            meta = torch.func.functional_call(
                model.eval(),
                {k: torch.empty_like(v, device="meta") for k, v in model.state_dict().items()},
                (torch.empty(2, *shape),),
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"torchvision/{name} cannot take images of {shape[1]}x{shape[2]} "
            f"({str(error).splitlines()[0]}); set data.size."
        ) from None
    assert meta.shape == (2, num_classes)
    return model.train()
