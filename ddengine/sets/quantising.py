"""Finished sets of images in fewer bits."""

from dataclasses import replace

import torch

from ddengine.sets.codec import Quantised
from ddengine.sets.codec.quantised import MOST_GROUPS
from ddengine.sets.synthetic import RAW, SyntheticSet
from ddengine.system.errors import UserError


def quantised(syn: SyntheticSet, codec: Quantised) -> SyntheticSet:
    """The set with its images, as networks see them, in few bits.

    Targets and a learned rate stay; the last iterate beside a running average does not. Raises
    UserError for a set whose images are made of other things.
    """
    check(syn)
    with torch.no_grad():
        images = syn.batch(torch.arange(len(syn))).images.float()
    tensors = {}
    for name, tensor in syn.tensors.items():
        if name != "images" and not name.startswith(RAW):
            tensors[name] = tensor
    tensors |= codec.pack(images, len(syn.class_names), syn.preprocess)
    return replace(syn, codec=codec, tensors=tensors, space=codec.space).shipped()


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
