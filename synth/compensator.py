"""INFER: universal feature compensators (Zhang, Du, Liu & Zhou, ICLR 2025, arXiv 2408.06927).

A compensator u_k, one image-shaped tensor shared by all classes, is added to a set of natural images, one of every class (codec `Compensated`). It
minimises the loss of `synth.statistics` over that set in one trained network m(k):

    u_k = argmin of CE(f_m(x + u), y) + alpha (BatchNorm statistics of the x + u, one of every class),       u_k = 0 at first

so the M compensators of a set each see another architecture. All of one architecture share a forward pass, with statistics of each alone.
"""

from dataclasses import dataclass

import torch

from ddengine.codec import Compensated
from ddengine.synthetic import SyntheticSet
from synth.statistics import Group, OnePerClass


@dataclass(frozen=True, kw_only=True)
class BaseSets:
    """The images under one compensator together; its teacher is the one of its number: first those of all sets for teacher 0, then for teacher 1 ...

    With more compensators than sets times teachers they begin anew; those of one set and one teacher see different augmentations. Under a codec
    without compensators the j-th images of all classes are together, as in SRe2L.
    """

    def groups(self, syn: SyntheticSet, num_teachers: int) -> list[Group]:
        """By compensator, in order."""
        if not isinstance(syn.codec, Compensated):
            return OnePerClass(classes=len(syn.class_names)).groups(syn, num_teachers)
        sets = syn.codec.base
        assert sets is not None
        first = syn.codec.natural(syn.tensors)
        index = torch.arange(first, len(syn), device=syn.classes.device).view(-1, len(syn.class_names))  # (K, C)
        return [(i % num_teachers, part) for i, part in enumerate(index.split(sets))]
