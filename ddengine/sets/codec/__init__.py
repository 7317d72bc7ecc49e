"""Parametrisations of the stored tensors: how training examples are made from what is stored.

One file a parametrisation. `CODECS` names them as `meta.json` does.
"""

from ddengine.sets.codec.compensated import Compensated
from ddengine.sets.codec.multiformation import PADDING, MultiFormation
from ddengine.sets.codec.plain import Identity, Pixels
from ddengine.sets.codec.protocol import Codec, Space, Tensors
from ddengine.sets.codec.resizing import resize
from ddengine.sets.codec.values import as_bytes, as_pixels

CODECS = {
    "Identity": Identity,
    "Pixels": Pixels,
    "MultiFormation": MultiFormation,
    "Compensated": Compensated,
}

__all__ = [
    "CODECS",
    "PADDING",
    "Codec",
    "Compensated",
    "Identity",
    "MultiFormation",
    "Pixels",
    "Space",
    "Tensors",
    "as_bytes",
    "as_pixels",
    "resize",
]
