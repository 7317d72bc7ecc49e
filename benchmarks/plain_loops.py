"""The field's way: the plain loops of published programs, in our own words.

Eager float32, every graph kept, a DataLoader that hands out single samples, networks and classes
one after another. They are what field.py measures the engine against, and pass the golden vectors
of the published implementations (tests/golden/test_golden_field.py).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ddengine.models.convolution import Convolution
from ddengine.models.instance_norm import InstanceNorm
from ddengine.models.pooling import AveragePool

# layers of the engine's networks, and torch's, whose parameters they have
OF_TORCH = {Convolution: nn.Conv2d, InstanceNorm: nn.GroupNorm, AveragePool: nn.AvgPool2d}
Augment = Callable[[Tensor], Tensor]  # images (B, C, H, W), drawn anew at each call


def of_torchs_layers(network: nn.Module) -> nn.Module:
    """A network of the engine, in place, as published programs have it."""
    for layer in network.modules():
        layer.__class__ = OF_TORCH.get(type(layer), type(layer))
    return network


def views(network: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """A vector (P,) as the parameters of a network, each a view of it."""
    named = dict(network.named_parameters())
    parts = theta.split([parameter.numel() for parameter in named.values()])
    return {
        name: part.view(parameter.shape)
        for (name, parameter), part in zip(named.items(), parts, strict=True)
    }


def train_epochs(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    optimiser: torch.optim.Optimizer,
    *,
    batch: int,
    augment: Augment,
    stream: torch.Generator,
) -> None:
    """An expert, or a network of an evaluation: epochs over samples that a DataLoader collects."""
    loader = DataLoader(
        TensorDataset(images, labels), batch_size=batch, shuffle=True, generator=stream
    )
    for _ in range(epochs):
        for seen, targets in loader:
            loss = functional.cross_entropy(network(augment(seen)), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def mtt_loss(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    batches: Sequence[Tensor],
    augment: Augment,
) -> tuple[Tensor, Tensor]:
    """(the loss of a segment from `start` to `target` (P,), where the student arrived (P,)).

    MTT (Cazenavette et al., CVPR 2022), eq. 2; the graphs of all steps are kept.
    """
    theta = start.clone().requires_grad_()
    for index in batches:
        seen = augment(images[index])
        logits = functional_call(network, views(network, theta), (seen,))
        loss = functional.cross_entropy(logits, labels[index])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * gradient
    missed = functional.mse_loss(theta, target, reduction="sum")
    way = functional.mse_loss(start, target, reduction="sum")
    return missed / way, theta


def layerwise_distance(real: Sequence[Tensor], syn: Sequence[Tensor]) -> Tensor:
    """DC's distance of the gradients of two batches (Zhao et al., ICLR 2021, eq. 10).

    Of tensors with at least two dimensions the sum over their rows of 1 - cosine.
    """
    total = torch.zeros((), dtype=syn[0].dtype, device=syn[0].device)
    for r, s in zip(real, syn, strict=True):
        if r.dim() < 2:
            continue
        r = r.flatten(1)
        s = s.flatten(1)
        product = (r * s).sum(-1)
        total = total + (1 - product / (r.norm(dim=-1) * s.norm(dim=-1) + 1e-6)).sum()
    return total


def dsa_loss(
    network: nn.Module,
    real: Sequence[Tensor],
    syn: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The loss of all classes of one step of DSA (Zhao & Bilen, ICML 2021), one class at a time.

    `real` and `syn` are the images of each class; `augment(images, c)` repeats its draw for class
    c, so that both sides see one.
    """
    parameters = list(network.parameters())
    total = torch.zeros((), device=syn[0].device)
    for c, (of_real, of_syn) in enumerate(zip(real, syn, strict=True)):
        labels = torch.full((len(of_real),), c, device=of_real.device)
        loss = functional.cross_entropy(network(augment(of_real, c)), labels)
        wanted = [g.detach().clone() for g in torch.autograd.grad(loss, parameters)]
        labels = torch.full((len(of_syn),), c, device=of_syn.device)
        loss = functional.cross_entropy(network(augment(of_syn, c)), labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        total = total + layerwise_distance(wanted, gradients)
    return total


def dm_loss(
    embed: Callable[[Tensor], Tensor],
    real: Sequence[Tensor],
    syn: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The loss of all classes of one step of DM (Zhao & Bilen, WACV 2023), one class at a time."""
    total = torch.zeros((), dtype=syn[0].dtype, device=syn[0].device)
    for c, (of_real, of_syn) in enumerate(zip(real, syn, strict=True)):
        wanted = embed(augment(of_real, c)).detach().mean(0)
        reached = embed(augment(of_syn, c)).mean(0)
        total = total + (wanted - reached).square().sum()
    return total
