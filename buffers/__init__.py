"""Expert trajectories: training and storing them, and finding those that are stored.

`generate` trains the experts of a recipe on any images, `stores` names those that lie there,
`bring_in` imports what others have trained or distilled, `export` writes stores and sets as such.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buffers.exchange import export
    from buffers.imports import bring_in
    from buffers.maker import ExpertMaker
    from buffers.open import SetTeachers, Stores, stores
    from buffers.own import generate

# name -> the module that it is defined in
_PLACES = {
    "ExpertMaker": "buffers.maker",
    "SetTeachers": "buffers.open",
    "Stores": "buffers.open",
    "bring_in": "buffers.imports",
    "export": "buffers.exchange",
    "generate": "buffers.own",
    "stores": "buffers.open",
}
__all__ = ["ExpertMaker", "SetTeachers", "Stores", "bring_in", "export", "generate", "stores"]


def __getattr__(name: str) -> Any:
    # loaded when asked for: recipes import the training steps alone
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
