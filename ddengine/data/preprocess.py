"""Preprocessing: per-channel mean and standard deviation, or ZCA whitening; fitted once, stored with what depends on it, invertible."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.errors import UserError
from ddengine.runtime import exact_matmul

ZCA_EPS = 0.1  # added to the eigenvalues, as in MTT
ZCA_MAX_DIM = 12288  # 64x64x3: a covariance of 0.6 GB


@dataclass(frozen=True)
class Preprocess:
    """An invertible map from pixel values in [0, 1] to what networks see.

    Mean/std: (x - mean) / std with mean, std (C,). ZCA: (flatten(x) - mean) matrix with mean (D,), matrix and inverse (D, D),
    D = CHW, on pixels as they are. `origin` is the file it was read from, empty where it was fitted.
    """

    mean: Tensor
    std: Tensor | None = None
    matrix: Tensor | None = None
    inverse: Tensor | None = None
    origin: str = ""

    def forward(self, pixels: Tensor) -> Tensor:
        """[0, 1] pixels (B, C, H, W) -> network input, differentiable."""
        if self.matrix is None:
            assert self.std is not None
            return (pixels - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        with exact_matmul():
            return ((pixels.flatten(1) - self.mean) @ self.matrix).view_as(pixels)

    def backward(self, images: Tensor) -> Tensor:
        """Network input (B, C, H, W) -> pixels, within [0, 1] for real images."""
        if self.inverse is None:
            assert self.std is not None
            return images * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)
        with exact_matmul():
            return (images.flatten(1) @ self.inverse + self.mean).view_as(images)

    def clamp(self, images: Tensor) -> Tensor:
        """Network input (B, C, H, W) moved to what pixels in [0, 1] can be, channel by channel; not for whitened images."""
        assert self.std is not None
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        return torch.maximum(torch.minimum(images, high.to(images).view(-1, 1, 1)), low.to(images).view(-1, 1, 1))

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name, for files."""
        named = {"mean": self.mean, "std": self.std, "matrix": self.matrix, "inverse": self.inverse}
        return {f"preprocess.{k}": v.contiguous() for k, v in named.items() if v is not None}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], origin: str = "") -> "Preprocess":
        """The inverse of `tensors`; other names are ignored. What is read from a file is to be checked by data/stored.py."""
        return Preprocess(tensors["preprocess.mean"], *(tensors.get(f"preprocess.{name}") for name in ("std", "matrix", "inverse")), origin=origin)

    def to(self, device: torch.device) -> "Preprocess":
        """The same on `device`."""
        return Preprocess.from_tensors({k: v.to(device) for k, v in self.tensors().items()}, self.origin)


def fit_zca(pixels: Tensor, eps: float = ZCA_EPS) -> Preprocess:
    """ZCA whitening fitted on pixels (N, C, H, W) in [0, 1], eps added to the eigenvalues of the unbiased covariance."""
    dim = pixels[0].numel()
    if dim > ZCA_MAX_DIM:
        raise UserError(f"data.zca needs a {dim} x {dim} matrix for images of this size; use data.zca False, or data.size of at most 64 64.")
    import kornia  # a second to import, and only ZCA needs it

    with exact_matmul():
        zca = kornia.enhance.ZCAWhitening(dim=0, eps=eps, compute_inv=True).fit(pixels.flatten(1))
    assert isinstance(zca.mean_vector, Tensor) and isinstance(zca.transform_matrix, Tensor) and isinstance(zca.transform_inv, Tensor)
    # kornia computes (x - mean) matrix^T; its matrices are symmetric up to rounding
    return Preprocess(mean=zca.mean_vector.flatten(), matrix=zca.transform_matrix.T.contiguous(), inverse=zca.transform_inv.T.contiguous())


def fit_preprocess(pixels: Tensor, *, zca: bool, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> Preprocess:
    """Preprocessing for training pixels (N, C, H, W) uint8: ZCA, or the given published constants, or the images' own mean and std."""
    if zca:
        return fit_zca(pixels.float() / 255)
    if mean is not None and std is not None and len(mean) == pixels.shape[1]:
        return Preprocess(mean=torch.tensor(mean, device=pixels.device), std=torch.tensor(std, device=pixels.device))
    flat = pixels.transpose(0, 1).flatten(1).double() / 255
    return Preprocess(mean=flat.mean(1).float(), std=flat.std(1).clamp(min=1e-3).float())
