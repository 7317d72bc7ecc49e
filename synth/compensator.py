"""INFER: universal feature compensators (Zhang, Du, Liu & Zhou, ICLR 2025, arXiv 2408.06927).

A compensator u_k, one image-shaped tensor shared by all classes, is added to a set of natural
images, one of every class (codec `Compensated`). It minimises the loss of `synth.statistics` over
that set in one trained network m(k):

    u_k = argmin of CE(f_m(x + u), y) + alpha (BatchNorm statistics of the x + u)

over one x + u of every class, starting from u_k = 0,

so the M compensators of a set each see another architecture. All of one architecture share a
forward pass, with statistics of each alone.
"""

from dataclasses import dataclass

import torch

from ddengine.sets.codec import Compensated
from ddengine.sets.synthetic import SyntheticSet
from synth.statistics import Batches, InTeacher, OnePerClass


@dataclass(frozen=True, kw_only=True)
class BaseSets(Batches):
    """The images under one compensator together.

    Of K compensators the first K / M are of teacher 0, the next of teacher 1, and so on. So with K
    = M n, as published, each set has one compensator of each teacher. With more some pairs have
    several, which see different augmentations. Under a codec without compensators the j-th images
    of all classes are together, as in SRe2L.
    """

    @property
    def parts_teachers(self) -> bool:
        """A compensator is of one."""
        return True

    def groups(self, syn: SyntheticSet, num_teachers: int) -> list[InTeacher]:
        """By compensator, in order."""
        num_classes = len(syn.class_names)
        if not isinstance(syn.codec, Compensated):
            return OnePerClass(classes=num_classes).groups(syn, num_teachers)
        first = syn.codec.natural(syn.tensors)
        index = torch.arange(first, len(syn), device=syn.classes.device)
        index = index.view(-1, num_classes)  # (K, C)
        num = len(index)
        groups = []
        start = 0
        for teacher in range(num_teachers):
            # compensator k has teacher k M // K
            end = -(-(teacher + 1) * num // num_teachers)
            if end > start:
                groups.append((teacher, index[start:end]))
            start = end
        return groups
