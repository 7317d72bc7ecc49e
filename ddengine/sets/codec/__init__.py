"""Parametrisations of the stored tensors: how training examples are made from what is stored.

One file a parametrisation. `CODECS` names them as `meta.json` does.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddengine.sets.codec.compensated import Compensated
from ddengine.sets.codec.fred import Spectra
from ddengine.sets.codec.gaussians import Gaussians
from ddengine.sets.codec.hallucinated import Hallucinated
from ddengine.sets.codec.linear_bases import LinearBases
from ddengine.sets.codec.mixed import Mixed
from ddengine.sets.codec.multiformation import PADDING, MultiFormation
from ddengine.sets.codec.plain import Identity, Pixels
from ddengine.sets.codec.protocol import Codec, Loader, Space, Tensors
from ddengine.sets.codec.quantised import Quantised
from ddengine.sets.codec.reduced import Reduced
from ddengine.sets.codec.resizing import resize
from ddengine.sets.codec.siren import Siren
from ddengine.sets.codec.speed import SparseTokens
from ddengine.sets.codec.values import as_bytes, as_pixels
from ddengine.system.configs import from_dict

CODECS = {
    "Identity": Identity,
    "Pixels": Pixels,
    "MultiFormation": MultiFormation,
    "Compensated": Compensated,
    "LinearBases": LinearBases,
    "Quantised": Quantised,
    "Reduced": Reduced,
    "Gaussians": Gaussians,
    "Siren": Siren,
    "Spectra": Spectra,
    "SparseTokens": SparseTokens,
    "Hallucinated": Hallucinated,
    "Mixed": Mixed,
}


def codec_of(stored: Mapping[str, Any]) -> Codec:
    """The codec that a meta.json names.

    It is one of those above, or one of the program that imported this package. Raises KeyError for
    one that is not known, and for a field that it does not have.
    """
    fields = dict(stored)
    name = fields.pop("type")
    others = {codec.__name__: codec for codec in Codec.__subclasses__()}
    codec = (others | CODECS)[name]
    known = {field.name for field in dataclasses.fields(codec)}  # type: ignore[arg-type]
    for field in fields:
        if field not in known:
            raise KeyError(f"{name}.{field}")
    return from_dict(codec, fields)


__all__ = [
    "CODECS",
    "PADDING",
    "Codec",
    "Compensated",
    "Gaussians",
    "Hallucinated",
    "Identity",
    "LinearBases",
    "Loader",
    "Mixed",
    "MultiFormation",
    "Pixels",
    "Quantised",
    "Reduced",
    "Siren",
    "Space",
    "SparseTokens",
    "Spectra",
    "Tensors",
    "as_bytes",
    "as_pixels",
    "codec_of",
    "resize",
]
