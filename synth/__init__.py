"""Synthesizers, one paper a file, and their recipes.

recipe = synth.find("dm/cifar10_ipc10", ipc=5)
print(list(synth.RECIPES), synth.bibtex(recipe))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synth.catalogue import RECIPES, find, take
    from synth.cite import bibtex
    from synth.recipes.protocols import PROTOCOLS

__all__ = ["PROTOCOLS", "RECIPES", "bibtex", "find", "take"]
WHERE = {
    "PROTOCOLS": "synth.recipes.protocols",
    "RECIPES": "synth.catalogue",
    "bibtex": "synth.cite",
    "find": "synth.catalogue",
    "take": "synth.catalogue",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is asked for: the recipes take a second to import."""
    import importlib

    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(WHERE[name]), name)
