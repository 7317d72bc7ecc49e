"""Any classifier of timm by name, as it is or made for small images.

timm is optional and imported only here, when a name asks for it.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ddengine import naming
from ddengine.models.classic import pad_to_32, padded_shape
from ddengine.models.convnet import OptionError
from ddengine.models.dropout import is_dropout
from ddengine.models.torchvision_models import adapt_stem, replace
from ddengine.system import rng as streams
from ddengine.system.errors import UserError

# patches along the shorter side of a small image
# of networks that keep their patches to the end (ViT, MLP-Mixer), as of torchvision's
ONE_RESOLUTION = 8
SEVERAL_RESOLUTIONS = 16  # of those that halve the sides three times after it (Swin, ConvNeXt)
# of networks whose images are of a wrong size
FAILURES = (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError)
# pixels; patches of networks of one resolution are as large by default, those of the others are not
LARGE_PATCH = 8


def installed() -> bool:
    """Whether timm is installed."""
    return importlib.util.find_spec("timm") is not None


def names() -> list[str]:
    """Names of timm's networks; none where it is not installed."""
    return _timm().list_models() if installed() else []


def _timm() -> Any:
    """The package. By importlib, because type checkers need not find it."""
    importlib.import_module("ddengine.system.compat")  # timm imports torchvision
    return importlib.import_module("timm")


class _Keep(nn.Identity):
    """In place of a dropout that drops nothing, whose probability networks may ask for."""

    p = drop_prob = 0.0


class TimmClassifier(nn.Module):
    """A network of timm split into its body and its last linear layer.

    `pad` is whether sides below 32 pixels are padded to 32.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        *,
        pad: bool,
    ):
        super().__init__()
        self.body = body
        self.head = head
        self.pad = pad

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the last linear layer's input."""
        return self.body(pad_to_32(images) if self.pad else images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.head(self.embed(images))


def build(
    options: list[str],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> TimmClassifier:
    """`timm/NAME`, and `timm/NAME-small`, weights drawn from torch's global generator.

    The first is timm's network for images of this size. The second pads sides below 32 pixels to
    32, and for images of up to 64 pixels it has a stem to suit: smaller patches, or a first
    convolution without stride.
    """
    name = "-".join(options)
    small = name.endswith(naming.SMALL_STEM)
    name = name.removesuffix(naming.SMALL_STEM)
    if not installed():
        raise UserError(
            f"timm/{name} needs the package timm; pip install timm, or name a network of "
            "torchvision, such as torchvision/resnet18."
        )
    if name not in names():
        raise OptionError("timm has no such classifier")
    shape = padded_shape(image_shape) if small else image_shape
    return _make(name, shape, num_classes, _plan(name, shape, small))


@dataclass(frozen=True)
class _Plan:
    """How a network is made for one shape of image."""

    small: bool  # whether it is made for small images
    settings: tuple[tuple[str, Any], ...] = ()  # for timm
    stem: bool = False  # the first convolution loses its stride
    patch: int | None = None  # pixels; the sides of patches where timm lets nobody choose them


def _make(
    name: str,
    shape: tuple[int, int, int],
    num_classes: int,
    plan: _Plan,
) -> TimmClassifier:
    """A new network, its classifier split off."""
    network: nn.Module = _timm().create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=shape[0], **dict(plan.settings)
    )
    if plan.stem:
        adapt_stem(network, shape[0], True)
    if plan.patch is not None:
        patches: Any = network.stem
        patches.proj = nn.Conv2d(shape[0], patches.proj.out_channels, plan.patch, plan.patch)
        patches.img_size = shape[1:]
        patches.patch_size = (plan.patch, plan.patch)
    _make_plain(network)
    head = network.get_classifier()  # type: ignore[operator]
    path = _path_of(head, network)
    if path is None or not isinstance(head, nn.Linear) or head.out_features != num_classes:
        raise UserError(
            f"timm/{name} does not end in one linear layer and cannot be used; timm/resnet18 can."
        )
    replace(network, path, nn.Identity())
    return TimmClassifier(network, head, pad=plan.small).train()


def _make_plain(network: nn.Module) -> None:
    """Leave out of a network what its gradients must not go through, and what does nothing."""
    for path, module in list(network.named_modules()):
        # the fused kernels have no second derivative, and no deterministic first one on CUDA
        if getattr(module, "fused_attn", False):  # probe: of some modules of timm
            module.fused_attn = False  # type: ignore[assignment]
        # nothing is dropped: so nobody need look out for it
        if is_dropout(module) and not _drop_rate(module):
            replace(network, path, _Keep())


def _drop_rate(module: nn.Module) -> float | None:
    """How much a dropout drops, by either of the names that timm and torch have for it."""
    for name in ("p", "drop_prob"):
        if hasattr(module, name):  # probe: of modules of others
            return getattr(module, name)  # probe: the same
    return 1.0


def _path_of(wanted: object, network: nn.Module) -> str | None:
    """Where a module lies in a network; None where it does not."""
    for path, module in network.named_modules():
        if module is wanted:
            return path
    return None


@lru_cache
def _plan(
    name: str,
    shape: tuple[int, int, int],
    small: bool,
) -> _Plan:
    """How the network takes images (C, H, W).

    It is found by trying, once for each name and shape, so that one made later costs no more than
    itself. Raises UserError where it cannot take them at all.
    """
    with streams.scoped(streams.generator(0, "timm")):
        plain = _Plan(small, (("img_size", shape[1:]),))
        try:
            try:
                network = _make(name, shape, 2, plain)
            except TypeError:  # an argument that its architecture has not
                plain = _Plan(small)
                network = _make(name, shape, 2, plain)
        except FAILURES as error:
            if isinstance(error, UserError):
                raise
            raise _unfit(name, shape, small, _reason(error)) from None
        for plan in _adapted(network, shape, plain):
            try:
                if _refusal(_make(name, shape, 2, plan), shape) is None:
                    return plan
            except (TypeError, *FAILURES):
                continue
        if (reason := _refusal(network, shape)) is not None:
            raise _unfit(name, shape, small, reason)
        return plain


def _adapted(
    network: TimmClassifier,
    shape: tuple[int, int, int],
    plain: _Plan,
) -> Iterator[_Plan]:
    """What suits small images better than the network as it is, the best first."""
    first = _first(network)
    if not plain.small or naming.is_large(shape[1:]) or first is None:
        return
    if not _is_patches(first):
        yield replaced(plain, stem=True)
        return
    large = first.stride[0] >= LARGE_PATCH
    side = min(shape[1:]) // (ONE_RESOLUTION if large else SEVERAL_RESOLUTIONS)
    yield replaced(plain, settings=(*plain.settings, ("patch_size", side)))
    # MLP-Mixer and its kin: as many patches of the usual size, made smaller
    stem = getattr(network.body, "stem", None)  # probe: of some networks of timm
    cuts = hasattr(stem, "patch_size")  # probe: the same
    if cuts and getattr(stem, "proj", None) is first:  # probe: the same
        scaled = tuple(length // side * first.stride[0] for length in shape[1:])
        yield _Plan(True, (("img_size", scaled),), patch=side)


def _first(network: TimmClassifier) -> nn.Conv2d | None:
    for module in network.body.modules():
        if isinstance(module, nn.Conv2d):
            return module
    return None


def _is_patches(first: nn.Conv2d) -> bool:
    """Whether a first convolution cuts the image into patches that do not overlap."""
    return first.kernel_size == first.stride and first.stride[0] > 1


def _refusal(network: TimmClassifier, shape: tuple[int, int, int]) -> str | None:
    """Why a network cannot classify images (C, H, W); None where it can."""
    first = _first(network)
    if first is not None and _is_patches(first) and not _divides(first.stride, shape):
        return f"the sides are no multiples of its patches of {first.stride[0]} pixels"
    try:
        with torch.no_grad():
            embedded = network.eval().embed(torch.zeros(2, *shape))
    except FAILURES as error:
        return _reason(error)
    if embedded.shape == (2, network.head.in_features):
        return None
    return f"its features are {tuple(embedded.shape[1:])}"


def _divides(stride: tuple[int, ...], shape: tuple[int, int, int]) -> bool:
    """Whether images (C, H, W) are whole numbers of strides high and wide."""
    return shape[1] % stride[0] == 0 and shape[2] % stride[1] == 0


def _reason(error: Exception) -> str:
    """Its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _unfit(
    name: str,
    shape: tuple[int, int, int],
    small: bool,
    reason: str,
) -> UserError:
    if small:
        name += naming.SMALL_STEM
    advice = "set data.size, such as 224 224"
    if not small and not naming.is_large(shape[1:]):
        advice += f", or name timm/{name}{naming.SMALL_STEM}"
    return UserError(
        f"timm/{name} cannot take images of {shape[1]}x{shape[2]} ({reason}); {advice}."
    )
