"""Synthesizers, one paper a file, and their recipes.

recipe = synth.find("dm/cifar10_ipc10", ipc=5)
print(list(synth.RECIPES), synth.bibtex(recipe))
"""

from typing import TYPE_CHECKING, Any

from ddengine.system.lazy import loaded as _loaded

if TYPE_CHECKING:
    from synth.catalogue import RECIPES as RECIPES
    from synth.catalogue import find as find
    from synth.catalogue import take as take
    from synth.cite import bibtex as bibtex
    from synth.measured import candidates as candidates
    from synth.recipes.protocols import PROTOCOLS as PROTOCOLS

# name -> the module that it is defined in
_PLACES = {
    "PROTOCOLS": "synth.recipes.protocols",
    "RECIPES": "synth.catalogue",
    "bibtex": "synth.cite",
    "candidates": "synth.measured",
    "find": "synth.catalogue",
    "take": "synth.catalogue",
}
__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # the recipes take a second to import
    return _loaded(__name__, _PLACES, name)
