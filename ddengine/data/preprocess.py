"""Preprocessing: mean and standard deviation of each channel, or ZCA whitening.

It is fitted once, stored with what depends on it, and can be undone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddengine.system.errors import UserError
from ddengine.system.runtime import available_memory, exact_matmul

ZCA_EPS = 0.1  # added to the eigenvalues, as in MTT
ZCA_MAX_DIM = 12288  # 64x64x3: a covariance of 0.6 GB
# while it is fitted: bytes a pixel value, and matrices of the covariance's size (measured)
ZCA_MEMORY, ZCA_MATRICES = 8, 16
ZCA_IN_PARTS = 2**31  # pixel values from which on ZCA whitening is fitted part by part
AT_ONCE = 2**24  # pixel values that are looked at, counted or turned into floats at a time


@dataclass(frozen=True)
class Preprocess:
    """An invertible map from pixel values in [0, 1] to what networks see.

    Mean/std: (x - mean) / std with mean, std (C,). ZCA: (flatten(x) - mean) matrix with mean (D,),
    matrix and inverse (D, D), D = CHW, on pixels as they are. `origin` is the file it was read
    from, empty where it was fitted.
    """

    mean: Tensor
    std: Tensor | None = None
    matrix: Tensor | None = None
    inverse: Tensor | None = None
    origin: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        """Images as networks see them, such as those that a trained network is to be tested on.

            outputs = network(result.preprocess(images))

        Args:
            images: (B, C, H, W) or (C, H, W), uint8 or floats in [0, 1].

        Returns:
            floats of the same shape.
        """
        if not isinstance(images, Tensor):
            raise UserError(
                f"Images are a {type(images).__name__}, and a preprocessing takes a tensor; give "
                "torch.as_tensor(images)."
            )
        if images.dim() not in (3, 4):
            raise UserError(
                f"Images have shape {tuple(images.shape)}; give (B, C, H, W) or (C, H, W)."
            )
        pixels = images / 255 if images.dtype == torch.uint8 else images
        if pixels.dim() == 3:
            return self.forward(pixels[None])[0]
        return self.forward(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """[0, 1] pixels (B, C, H, W) -> network input, differentiable."""
        if self.matrix is None:
            assert self.std is not None
            mean = self.mean.view(-1, 1, 1)
            std = self.std.view(-1, 1, 1)
            return (pixels - mean) / std
        with exact_matmul():
            centred = pixels.flatten(1) - self.mean
            return (centred @ self.matrix).view_as(pixels)

    def backward(self, images: Tensor) -> Tensor:
        """Network input (B, C, H, W) -> pixels, within [0, 1] for real images."""
        if self.inverse is None:
            assert self.std is not None
            mean = self.mean.view(-1, 1, 1)
            std = self.std.view(-1, 1, 1)
            return images * std + mean
        with exact_matmul():
            centred = images.flatten(1) @ self.inverse
            return (centred + self.mean).view_as(images)

    def clamp(self, images: Tensor) -> Tensor:
        """Network input (B, C, H, W) moved to what pixels in [0, 1] can be, channel by channel.

        It is not for whitened images.
        """
        assert self.std is not None
        black = -self.mean / self.std
        white = (1 - self.mean) / self.std
        low = black.to(images).view(-1, 1, 1)
        high = white.to(images).view(-1, 1, 1)
        return torch.maximum(torch.minimum(images, high), low)

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name, for files."""
        named = {"mean": self.mean, "std": self.std, "matrix": self.matrix, "inverse": self.inverse}
        tensors = {}
        for name, tensor in named.items():
            if tensor is not None:
                tensors[f"preprocess.{name}"] = tensor.contiguous()
        return tensors

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float]) -> "Preprocess":
        """That of a mean and a standard deviation of each channel, of values in [0, 1].

        Several clients can agree on it without showing any images.

            ddengine.Preprocess.of((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))

        Raises UserError for unequally many of each.
        """
        if len(mean) != len(std):
            raise UserError(
                f"Preprocess.of has means {tuple(mean)} and deviations {tuple(std)}; give one of "
                "each for every channel."
            )
        return Preprocess(torch.tensor(mean, dtype=torch.float32), torch.tensor(std).float())

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], origin: str = "") -> "Preprocess":
        """The inverse of `tensors`; other names are ignored.

        What is read from a file is to be checked by data/stored.py.
        """
        return Preprocess(
            tensors["preprocess.mean"],
            tensors.get("preprocess.std"),
            tensors.get("preprocess.matrix"),
            tensors.get("preprocess.inverse"),
            origin,
        )

    def to(self, device: torch.device) -> "Preprocess":
        """The same on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return Preprocess.from_tensors(moved, self.origin)


def _check_memory(pixels: Tensor) -> None:
    """Raise UserError where there is not enough memory to whiten pixels (N, C, H, W)."""
    dim = pixels[0].numel()
    of_images = 0 if pixels.numel() > ZCA_IN_PARTS else ZCA_MEMORY * pixels.numel()
    needed = of_images + ZCA_MATRICES * 4 * dim**2
    available = available_memory(pixels.device)
    if needed > available:
        raise UserError(
            f"data.zca needs about {needed / 1e9:.1f} GB of memory to be fitted to {len(pixels)} "
            f"images, and {available / 1e9:.1f} GB are available; "
            "set data.zca False, or lower data.limit or data.size."
        )


def fit_zca(pixels: Tensor, eps: float = ZCA_EPS) -> Preprocess:
    """ZCA whitening fitted on pixels (N, C, H, W), floats in [0, 1] or uint8.

    `eps` is added to the eigenvalues of the unbiased covariance. More than ZCA_IN_PARTS values are
    looked at part by part. Raises UserError for images that are too large, and where memory does
    not suffice.
    """
    dim = pixels[0].numel()
    if dim > ZCA_MAX_DIM:
        raise UserError(
            f"data.zca needs a {dim} x {dim} matrix for images of this size; use data.zca False, "
            "or data.size of at most 64 64."
        )
    _check_memory(pixels)
    if pixels.numel() > ZCA_IN_PARTS:
        return _fit_zca_in_parts(pixels, eps)
    import kornia  # a second to import, and only ZCA needs it

    values = pixels
    if pixels.dtype == torch.uint8:
        values = pixels.float().div_(255)
    whitening = kornia.enhance.ZCAWhitening(dim=0, eps=eps, compute_inv=True)
    with exact_matmul():
        fitted: Any = whitening.fit(values.flatten(1))  # its annotations leave its tensors open
    # kornia computes (x - mean) matrix^T; its matrices are symmetric up to rounding
    return Preprocess(
        mean=fitted.mean_vector.flatten(),
        matrix=fitted.transform_matrix.T.contiguous(),
        inverse=fitted.transform_inv.T.contiguous(),
    )


def _fit_zca_in_parts(pixels: Tensor, eps: float) -> Preprocess:
    """What `fit_zca` returns, of pixels (N, C, H, W) of which a part is in memory at a time.

    Sums over parts are of float64, so that it matters little how many there are.
    """
    num, dim = len(pixels), pixels[0].numel()
    total = torch.zeros(dim, dtype=torch.float64, device=pixels.device)
    for part in pieces(pixels):
        total += _values(part).double().sum(0)
    mean = (total / num).float()
    products = torch.zeros(dim, dim, dtype=torch.float64, device=pixels.device)
    with exact_matmul():
        for part in pieces(pixels):
            centred = _values(part) - mean
            products += centred.T @ centred
        variances, vectors = torch.linalg.eigh((products / (num - 1)).float())
        roots = (variances.clamp(min=0) + eps).sqrt()
        matrix = (vectors / roots) @ vectors.T
        inverse = (vectors * roots) @ vectors.T
    return Preprocess(mean=mean, matrix=matrix.contiguous(), inverse=inverse.contiguous())


def _values(pixels: Tensor) -> Tensor:
    """Pixels (B, C, H, W), uint8 or floats in [0, 1], as float32 (B, D) in [0, 1]."""
    values = pixels.flatten(1).float()
    return values / 255 if pixels.dtype == torch.uint8 else values


def fit_preprocess(
    pixels: Tensor,
    *,
    zca: bool,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    counts: Tensor | None = None,
) -> Preprocess:
    """Preprocessing for training pixels (N, C, H, W) uint8.

    It is ZCA whitening, or the given published constants, or the mean and std of these images.
    `counts` is their `histogram` where it is known.
    """
    if zca:
        return fit_zca(pixels)
    device = pixels.device
    if mean is not None and std is not None and len(mean) == pixels.shape[1]:
        return Preprocess(torch.tensor(mean, device=device), torch.tensor(std, device=device))
    if counts is None:
        counts = histogram(pixels)
    shares = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    num = shares[0].sum()
    means = shares @ values / num
    squares = (values - means.unsqueeze(1)).square()
    sums = (shares * squares).sum(1)
    variances = sums / (num - 1).clamp(min=1)
    stds = variances.sqrt().clamp(min=1e-3)
    return Preprocess(mean=means.float().to(device), std=stds.float().to(device))


def pieces(images: Tensor, values: int = AT_ONCE) -> tuple[Tensor, ...]:
    """Images (N, C, H, W), N at least 1, in parts of at most so many values, or of one image."""
    num = max(1, values // images[0].numel())
    return images.split(num)


def histogram(pixels: Tensor) -> Tensor:
    """How often each channel of pixels (N, C, H, W) uint8 has each value.

    Returns (C, 256) int64 on the CPU. A piece is in memory at a time.
    """
    channels = pixels.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64, device=pixels.device)
    for part in pieces(pixels):
        for channel in range(channels):
            values = part[:, channel].flatten()
            counts[channel] += torch.bincount(values, minlength=256)
    return counts.cpu()
