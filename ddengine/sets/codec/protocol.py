"""What a parametrisation of the stored tensors is."""

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor

from ddengine.data import Preprocess

Tensors = Mapping[str, Tensor]
Space = Literal["pixel", "model"]


class Codec(Protocol):
    """A frozen dataclass without state: its fields are its configuration, what is learned lies in
    the tensors.
    """

    @property
    def space(self) -> Space:
        """What the stored values are: pixels in [0, 1], preprocessed after decoding, or what
        networks see.
        """
        ...

    @property
    def per_item(self) -> int:
        """Images that one stored item starts from."""
        ...

    def fit(self, ipc: int, num_classes: int) -> "tuple[Codec, int]":
        """(the codec for a budget of `ipc` images per class, items stored per class).

        Raises UserError for a budget below one item.
        """
        ...

    def natural(self, tensors: Tensors) -> int:
        """How many of the decoded examples, the first ones, are images that are stored as they are,
        beside others made of them; 0 where all are.
        """
        ...

    def source(self, tensors: Tensors) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        ...

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) of N, differentiable in the tensors as
        often as wanted.
        """
        ...

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The tensors to start from: "images" (S, C, H, W), made of `per_item` images each, (S *
        per_item, C, H, W), those of an item in a row.

        Raises UserError when the images do not suit the configuration.
        """
        ...

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Move the tensors into their valid range, in place; called after each outer step."""
        ...

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> "tuple[Codec, dict[str, Tensor]]":
        """What is stored in the end, as small as it is meant to be, and the codec that reads it;
        the same again for what is shipped already.
        """
        ...

    def loader(self) -> str:
        """Python source of `decode(tensors)` -> (all N examples (N, C, H, W), their stored items
        (N,)), for the shipped `load.py`.

        Plain torch, which the source may call `torch` and `torch.nn.functional`; no engine.
        """
        ...
