"""Parametrisations of the stored tensors: how training examples are made from what is stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Codec(Protocol):
    """A frozen dataclass without state: its fields are its configuration, what is learned lies in the tensors."""

    def source(self, tensors: Tensors) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        ...

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) of N, differentiable in the tensors."""
        ...

    def project(self, tensors: Tensors) -> None:
        """Move the tensors into their valid range, in place; called after each outer step."""
        ...

    def loader(self) -> str:
        """Python source of `decode(tensors)` -> all N examples (N, C, H, W), for the shipped `load.py`; plain torch, no engine."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One stored image is one training example; no valid range (as published: values are free)."""

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images themselves."""
        return tensors["images"].index_select(0, index)

    def project(self, tensors: Tensors) -> None:
        """Nothing: every value is valid."""

    def loader(self) -> str:
        """The stored images themselves."""
        return 'def decode(tensors):\n    return tensors["images"]\n'
