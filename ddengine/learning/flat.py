"""A network as a pure function of one flat parameter vector."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddengine.models.dropout import is_dropout
from ddengine.models.norms import batch_norms, norms_with_statistics
from ddengine.system.runtime import Precision, autocast


def flatten(module: nn.Module) -> Tensor:
    """The parameters of `module` in definition order, as one detached vector (P,).

    It shares no memory with them.
    """
    parts = [parameter.detach().flatten() for parameter in module.parameters()]
    return torch.cat(parts)


def flatten_buffers(module: nn.Module) -> Tensor | None:
    """The buffers of `module` (BatchNorm statistics) as one vector (Q,) of its parameters' type.

    None when it has none.
    """
    dtype = next(module.parameters()).dtype
    parts = []
    for buffer in module.buffers():
        parts.append(buffer.detach().flatten().to(dtype))
    if not parts:
        return None
    return torch.cat(parts)


def unflatten_into(module: nn.Module, theta: Tensor, buffers: Tensor | None = None) -> None:
    """Copy a parameter vector (P,) and a buffer vector (Q,) into `module`."""
    _fill(list(module.parameters()), theta)
    if buffers is not None:
        _fill(list(module.buffers()), buffers)


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copy the numbers of a vector into tensors, one after another."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
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
        self.sizes = [shape.numel() for shape in self.shapes]
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
        parts = theta.split(self.sizes)
        views = {}
        for name, part, shape in zip(self.names, parts, self.shapes, strict=True):
            views[prefix + name] = part.view(shape)
        return views

    def __call__(
        self, theta: Tensor, images: Tensor, statistics: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Logits (B, K) of the network with parameters `theta` (P,).

        BatchNorm uses `statistics` where they are given.
        """
        if statistics is None:
            return self._call(self.module, self._views(theta), images).to(theta.dtype)
        assert self.normed is not None
        state = self._views(theta) | statistics
        return self._call(self.normed, state, images).to(theta.dtype)

    def _call(self, module: nn.Module, state: dict[str, Tensor], images: Tensor) -> Tensor:
        """What a module gives for images, with these tensors in place of its own."""
        with autocast(images.device, self.precision):
            return torch.func.functional_call(module, state, (images,))

    def embed(self, theta: Tensor, images: Tensor) -> Tensor:
        """The input of the last linear layer (B, D)."""
        state = self._views(theta, "network.")
        return self._call(self._embed, state, images).to(theta.dtype)

    @torch.no_grad()
    def statistics(self, theta: Tensor, images: Tensor) -> dict[str, Tensor] | None:
        """The statistics that BatchNorm layers see in a batch.

        None for a network without such layers.
        """
        if self.normed is None:
            return None
        buffers = {}
        for name, buffer in self.normed.named_buffers():
            buffers[name] = buffer.detach().clone()
        state = self._views(theta) | buffers
        norms = batch_norms(self.normed)
        try:
            for norm in norms:
                norm.train()
            self._call(self.normed, state, images)
        finally:
            self.normed.eval()
        return buffers


def _with_statistics(module: nn.Module) -> nn.Module | None:
    """A copy whose BatchNorm layers use running statistics; None without such layers.

    One batch in training mode replaces these.
    """
    if not norms_with_statistics(module):
        return None
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    for norm in batch_norms(copied):
        norm.momentum = 1.0
    return copied


def trainable(model: FlatModel, theta: Tensor) -> nn.Module:
    """A network as `model` computes it, whose own parameters are `theta` (P,) and can be trained.

    Its normalisation and dropout are those of `model`.
    """
    network = copy.deepcopy(model.module).to(theta.dtype)
    unflatten_into(network, theta)
    return network.requires_grad_(True)
