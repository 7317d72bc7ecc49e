"""Finished sets of images in fewer bits."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ddengine.sets.codec import Quantised
from ddengine.sets.codec.quantised import MOST_GROUPS
from ddengine.sets.synthetic import RAW, SyntheticSet
from ddengine.system import log
from ddengine.system.errors import UserError


def quantised(
    syn: SyntheticSet, codec: Quantised, refine: Callable[[Tensor], Tensor] | None = None
) -> SyntheticSet:
    """The set with its images, as networks see them, in few bits.

    `refine` changes them (N, C, H, W) before, such as `refined` does. Targets and a learned rate
    stay; the last iterate beside a running average does not. Raises UserError for a set whose
    images are made of other things.
    """
    check(syn)
    with torch.no_grad():
        images = syn.batch(torch.arange(len(syn))).images.float()
    if refine is not None:
        images = refine(images)
    tensors = {}
    for name, tensor in syn.tensors.items():
        if name != "images" and not name.startswith(RAW):
            tensors[name] = tensor
    tensors |= codec.pack(images, len(syn.class_names), syn.preprocess)
    return replace(syn, codec=codec, tensors=tensors, space=codec.space).shipped()


def refined(
    images: Tensor,
    codec: Quantised,
    embed: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    batch: int = 256,
) -> Tensor:
    """Images (N, C, H, W) whose features in few bits are nearer to those that they had before.

    Steps of Adam on the mean squared error of `embed` (images (B, C, H, W) -> features (B, D)); the
    gradient passes straight through the rounding (Tran & Bae, AAAI 2026, who take 500 steps). Of
    each image the nearest iterate is returned, so that none is farther off than it was. Each region
    has its own scale meanwhile; groups are found afterwards, as published.
    """
    alone = replace(codec, groups=None)
    everything = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        wanted = torch.cat([embed(part) for part in images.split(batch)])
    leaf = images.clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=lr)
    nearest, least = images.clone(), torch.full_like(images[:, 0, 0, 0], torch.inf)
    with torch.enable_grad(), log.progress("features of few bits", steps + 1) as bar:
        for _ in range(steps + 1):
            optimiser.zero_grad()
            for index in everything.split(batch):
                off = embed(alone.decode({"images": leaf}, index)) - wanted[index]
                errors = off.square().mean(1)
                errors.sum().backward()
                closer = index[errors.detach() < least[index]]
                nearest[closer] = leaf.detach()[closer]
                least[index] = torch.minimum(least[index], errors.detach())
            optimiser.step()
            bar.advance(f"error {float(least.mean()):.4g}")
    return nearest


def within(syn: SyntheticSet, codec: Quantised, budget: int) -> int | None:
    """As many groups of regions as a budget of bytes for images holds; None where none is needed.

    Raises UserError for a budget that holds no group.
    """
    check(syn)
    num, shape = len(syn), syn.image_shape
    if codec.groups is None and codec.bytes_of(num, shape) <= budget:
        return None
    most = codec.groups or MOST_GROUPS
    for groups in range(most, 0, -1):
        if replace(codec, groups=groups).bytes_of(num, shape) <= budget:
            return groups
    least = replace(codec, groups=1).bytes_of(num, shape)
    raise UserError(
        f"A budget of {budget} bytes is too small for {num} images at {codec.bits} bits, which "
        f"take at least {least}; raise it, or lower the bits."
    )


def check(syn: SyntheticSet) -> None:
    """Raise UserError unless each stored image is one training example."""
    if not syn.codec.keeps_images:
        raise UserError(
            f"The images of this set are made of other things ({type(syn.codec).__name__}), which "
            "are smaller than they; quantise a set that keeps images."
        )
