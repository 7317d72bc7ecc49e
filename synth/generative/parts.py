"""The parts of a latent diffusion model as one network, which is what `buffer` stores.

Pixels lie in [0, 1], as everywhere. Latents (B, c, h, w) are means of the encoder's posterior, not
scaled: that is what the fusion sees. The denoiser sees latents times `scale`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddengine.system.errors import UserError
from synth.generative.fusion import Fusion
from synth.generative.schedule import Schedule

VARIANCE = 2  # times as many maps as latents, where a denoiser also says a variance


class Sizes(NamedTuple):
    """What the parts of other makers fix: of the encoder, the text and the denoiser."""

    reduction: int  # sides of an image in units of those of its latents
    channels: int  # of latents
    colours: int  # channels of the images that the encoder takes
    tokens: int  # of a text
    text_width: int
    scale: float | None  # of the latents that the denoiser sees; None: their standard deviation
    labels: int  # classes of the denoiser; the next number stands for none


class Prediction(NamedTuple):
    """What a denoiser predicts of noisy latents."""

    noise: Tensor  # (B, c, h, w)
    variance: Tensor | None  # (B, c, h, w) in [-1, 1], between the least and the largest


class Parts(nn.Module):
    """Encoder and decoder, fusion, text and denoiser.

    Those that were trained here are its modules, and in the store. Those of others are loaded from
    their folders when they are first needed, frozen, and are neither its parameters nor stored.
    """

    scale: Tensor
    tokens: Tensor
    ends: Tensor

    def __init__(
        self,
        sizes: Sizes,
        trained: Mapping[str, nn.Module],
        loaders: Mapping[str, Callable[[], nn.Module]],
        labels: tuple[int, ...],
        schedule: Schedule,
    ):
        """`trained` and `loaders` by name: vae, fusion, denoiser; `labels` of the K classes."""
        super().__init__()
        self.sizes = sizes
        self.schedule = schedule
        self.labels = labels
        for name, module in trained.items():
            self.add_module(name, module)
        self._loaders = dict(loaders)
        self._loaded: dict[str, nn.Module] = {}
        self.register_buffer("scale", torch.tensor(sizes.scale or 1.0))
        num_classes = len(labels)
        self.register_buffer("tokens", torch.zeros(num_classes, sizes.tokens, sizes.text_width))
        self.register_buffer("ends", torch.zeros(num_classes))  # stored as floats, as all buffers

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.scale.device

    def is_trained(self, name: str) -> bool:
        """Whether a part is trained here."""
        return name in self._modules

    def part(self, name: str) -> Any:
        """The vae, the fusion or the denoiser."""
        if self.is_trained(name):
            return self._modules[name]
        if name not in self._loaded:
            loaded = self._loaders[name]()
            self._loaded[name] = loaded.to(self.device).eval().requires_grad_(False)
        return self._loaded[name]

    def forward(self, images: Tensor) -> Tensor:
        """Raise UserError: nothing is output of images, as other experts do."""
        raise UserError(
            "The experts are the parts of a generator, which classify no images; take the buffer "
            "of a recipe whose experts do (--take buffer=RECIPE)."
        )

    @property
    def fusion(self) -> Fusion:
        """The fusion of latents and text."""
        return self.part("fusion")

    def seen(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0, 1] as the encoder sees them: in [-1, 1], of its channels."""
        images = 2 * pixels - 1
        if images.shape[1] == 1 and self.sizes.colours > 1:
            return images.expand(-1, self.sizes.colours, -1, -1)
        return images

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """The latents (B, c, h, w) of pixels (B, C, H, W)."""
        return self.part("vae").encode(self.seen(pixels)).latent_dist.mean

    @torch.no_grad()
    def decode(self, latents: Tensor, channels: int) -> Tensor:
        """Pixels (B, channels, H, W) in [0, 1] of latents; grey is the mean of the colours."""
        images = self.part("vae").decode(latents).sample
        if channels == 1:
            images = images.mean(1, keepdim=True)
        return ((images + 1) / 2).clamp(0, 1)

    def fuse(self, latents: Tensor, classes: Tensor) -> Tensor:
        """Latents fused with the texts of their classes (B,)."""
        return self.fusion(latents, self.tokens[classes])

    def labels_of(self, classes: Tensor) -> Tensor:
        """The denoiser's numbers for classes (B,)."""
        return torch.tensor(self.labels, device=classes.device)[classes]

    def denoise(self, noisy: Tensor, times: Tensor, labels: Tensor) -> Prediction:
        """What the denoiser predicts of noisy scaled latents at times (B,) of its schedule.

        A label is one of the denoiser's, or `sizes.labels` for none.
        """
        output = self.part("denoiser")(noisy, timestep=times, class_labels=labels).sample
        channels = self.sizes.channels
        if output.shape[1] == VARIANCE * channels:
            return Prediction(output[:, :channels], output[:, channels:])
        return Prediction(output, None)


def check_shape(sizes: Sizes, image_shape: tuple[int, int, int]) -> None:
    """Raise UserError for images (C, H, W) that the parts cannot take."""
    channels, height, width = image_shape
    if min(height, width) < 4 * sizes.reduction:
        raise UserError(
            f"Images of {height} x {width} are too small for an encoder that makes their sides "
            f"{sizes.reduction} times shorter, as latents need sides of 4; set data.size to "
            f"{4 * sizes.reduction} {4 * sizes.reduction} or more, or take fewer "
            "buffer.step.vae.widths."
        )
    if height != width or height % sizes.reduction:
        raise UserError(
            f"Images of {height} x {width} do not go through an encoder that makes square latents "
            f"with sides {sizes.reduction} times shorter; set data.size to a square whose side "
            f"{sizes.reduction} divides."
        )
    if channels not in (1, sizes.colours):
        raise UserError(
            f"Images of {channels} channels do not go into an encoder of {sizes.colours}; take "
            "images of its channels."
        )
