"""Optimisers of single tensors as pure functions, so that an update can be taken or left."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.recipe import OptimConfig

ADAM_EPS = 1e-8
CLIP_EPS = 1e-6  # beside a norm that a gradient is divided by, as torch has it

# What is kept of a tensor between updates, by kind: momentum (of Adam the mean gradient), square
# (the mean squared gradient), count (updates made), norm (the running average of gradient norms).
Kept = Mapping[str, Tensor]


@dataclass(frozen=True)
class Updated:
    """What an update makes of a tensor, and what it keeps."""

    tensor: Tensor
    kept: dict[str, Tensor]


def sgd_step(
    tensor: Tensor, grad: Tensor, momentum: Tensor, config: OptimConfig, lr: float
) -> tuple[Tensor, Tensor]:
    """One SGD update as torch.optim.SGD does it.

    Returns the new tensor and the new momentum, which starts at zero.
    """
    if config.weight_decay:
        grad = grad.add(tensor, alpha=config.weight_decay)
    momentum = momentum.mul(config.momentum).add_(grad)
    return tensor.sub(momentum, alpha=lr), momentum


def adam_step(
    tensor: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    count: Tensor,
    config: OptimConfig,
    lr: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One update as torch.optim.Adam does it, or for kind adamw as torch.optim.AdamW does.

    Returns the new tensor, the new means, which start at zero, and how many updates there were.
    """
    if config.weight_decay and config.kind == "adamw":
        tensor = tensor.mul(1 - lr * config.weight_decay)
    elif config.weight_decay:
        grad = grad.add(tensor, alpha=config.weight_decay)
    count = count + 1
    mean = mean.lerp(grad, 1 - config.momentum)
    square = square.mul(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
    # both means start at zero, which is corrected
    corrected_lr = lr / (1 - config.momentum**count)
    corrected_square = square / (1 - config.beta2**count)
    divisor = corrected_square.sqrt() + ADAM_EPS
    moved = tensor - corrected_lr.to(tensor) * mean / divisor.to(tensor)
    return moved, mean, square, count


def clipped(
    grad: Tensor, kept: Kept, config: OptimConfig, norm: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient, made shorter where the configuration says so, and the running average of norms.

    As torch.nn.utils.clip_grad_norm_ does it. The average is of norms before clipping, starts as
    the first of them, and counts that of this gradient too (as in RaT-BPTT; Feng et al., ICLR
    2024). By default nothing is clipped, and nothing kept. `norm` is that of this gradient and
    others that are clipped with it; None: of this one alone.
    """
    if config.clip is None and config.clip_average is None:
        return grad, {}
    if norm is None:
        norm = grad.norm()
    most = torch.full_like(norm, torch.inf)
    if config.clip is not None:
        most = torch.full_like(norm, config.clip)
    averages: dict[str, Tensor] = {}
    if config.clip_average is not None:
        average = kept.get("norm", torch.zeros_like(norm))
        moved = average.lerp(norm, 1 - config.clip_decay)
        average = torch.where(average == 0, norm, moved)
        most = torch.minimum(most, config.clip_average * average)
        averages["norm"] = average
    factor = most / (norm + CLIP_EPS)
    return grad * factor.clamp(max=1.0), averages


def joint_norm(grads: Mapping[str, Tensor], optim: Mapping[str, OptimConfig]) -> Tensor | None:
    """The norm of all gradients, by tensor, that are clipped together; None where none are."""
    squares = []
    for name, grad in grads.items():
        if optim[name].clip_together:
            squares.append(grad.square().sum())
    if not squares:
        return None
    return torch.stack(squares).sum().sqrt()


def may_keep(tensor: Tensor) -> dict[str, Tensor]:
    """What `updated` may keep of a stored tensor, by shapes."""
    number = tensor.new_zeros(())
    return {"momentum": tensor, "square": tensor, "count": number, "norm": number}


def updated(
    tensor: Tensor,
    grad: Tensor,
    kept: Kept,
    config: OptimConfig,
    lr: float,
    norm: Tensor | None = None,
) -> Updated:
    """One update of a stored tensor, at step size `lr`.

    What is not in `kept` yet starts at zero. `norm` is that of all gradients that are clipped with
    this one; None: of this one alone.
    """
    grad, norms = clipped(grad, kept, config, norm)
    zero = torch.zeros_like(tensor)
    mean = kept.get("momentum", zero)
    if config.kind == "sgd":
        new, mean = sgd_step(tensor, grad, mean, config, lr)
        return Updated(new, {"momentum": mean, **norms})
    none_made = torch.zeros((), device=tensor.device, dtype=torch.float64)
    square = kept.get("square", zero)
    count = kept.get("count", none_made)
    new, mean, square, count = adam_step(tensor, grad, mean, square, count, config, lr)
    means = {"momentum": mean, "square": square, "count": count}
    return Updated(new, means | norms)
