"""A network as a pure function of one flat parameter vector."""

import copy

import torch
from torch import Tensor, nn

from ddengine.models.dropout import is_dropout
from ddengine.system.runtime import Precision, autocast


def flatten(module: nn.Module) -> Tensor:
    """The parameters of `module` in definition order, as one detached vector (P,).

    It shares no memory with them.
    """
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def flatten_buffers(module: nn.Module) -> Tensor | None:
    """The buffers of `module` (BatchNorm statistics) as one float32 vector (Q,).

    None when it has none.
    """
    buffers = [b.detach().flatten().float() for b in module.buffers()]
    return torch.cat(buffers) if buffers else None


def unflatten_into(module: nn.Module, theta: Tensor, buffers: Tensor | None = None) -> None:
    """Copy a parameter vector (P,) and a buffer vector (Q,) into `module`."""
    for tensors, flat in ((list(module.parameters()), theta), (list(module.buffers()), buffers)):
        if flat is not None:
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.data.copy_(part.view_as(tensor))


class _Embed(nn.Module):
    """The input of a network's last linear layer, as a forward pass."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.network.embed(images)  # type: ignore[operator]


class FlatModel:
    """`module` as a function (theta (P,), images (B, C, H, W)) -> logits (B, K).

    Differentiable in both as often as wanted.

    BatchNorm normalises with the statistics of the batch, or with frozen ones that are given, and
    its running ones are never touched. Dropout is off, because a replayed step must repeat itself.
    The module itself is not changed.
    """

    def __init__(self, module: nn.Module, precision: Precision = "fp32"):
        self.module = copy.deepcopy(module).train().requires_grad_(False)
        torch.func.replace_all_batch_norm_modules_(self.module)
        for part in self.module.modules():
            if is_dropout(part):
                part.eval()
        self.normed = _with_statistics(module)
        self._embed = _Embed(self.module)
        named = dict(self.module.named_parameters())
        self.names = tuple(named)
        self.shapes = tuple(p.shape for p in named.values())
        self.sizes = [p.numel() for p in named.values()]
        self.num_params = sum(self.sizes)
        self.precision: Precision = precision

    def to(self, device: torch.device) -> "FlatModel":
        """The same on `device`."""
        self.module.to(device)
        if self.normed is not None:
            self.normed.to(device)
        return self

    def _views(self, theta: Tensor, prefix: str = "") -> dict[str, Tensor]:
        # split, not slices: its backward is one concatenation instead of a zero-filled vector of P
        # numbers per tensor
        return {
            prefix + n: t.view(s)
            for n, t, s in zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        }

    def __call__(
        self, theta: Tensor, images: Tensor, statistics: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Logits (B, K) of the network with parameters `theta` (P,).

        BatchNorm uses `statistics` where they are given.
        """
        module, buffers = (self.module, {}) if statistics is None else (self.normed, statistics)
        assert module is not None
        with autocast(images.device, self.precision):
            return torch.func.functional_call(
                module, {**self._views(theta), **buffers}, (images,)
            ).to(theta.dtype)

    def embed(self, theta: Tensor, images: Tensor) -> Tensor:
        """The input of the last linear layer (B, D)."""
        with autocast(images.device, self.precision):
            return torch.func.functional_call(
                self._embed, self._views(theta, "network."), (images,)
            ).to(theta.dtype)

    @torch.no_grad()
    def statistics(self, theta: Tensor, images: Tensor) -> dict[str, Tensor] | None:
        """The statistics that BatchNorm layers see in a batch.

        None for a network without such layers.
        """
        if self.normed is None:
            return None
        buffers = {name: b.detach().clone() for name, b in self.normed.named_buffers()}
        norms = [
            part
            for part in self.normed.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm)
        ]
        try:
            for norm in norms:
                norm.train()
            with autocast(images.device, self.precision):
                torch.func.functional_call(
                    self.normed, {**self._views(theta), **buffers}, (images,)
                )
        finally:
            self.normed.eval()
        return buffers


def _with_statistics(module: nn.Module) -> nn.Module | None:
    """A copy whose BatchNorm layers use running statistics; None without such layers.

    One batch in training mode replaces these.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not any(part.track_running_stats for part in norms):
        return None
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    return copied
