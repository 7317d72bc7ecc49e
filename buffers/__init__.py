"""Expert trajectories: training and storing them, and finding those that are stored.

`generate` trains the experts of a recipe on any images, `stores` names those that lie there,
`bring_in` imports what others have trained or distilled, `export` writes stores and sets as such.
"""

from typing import TYPE_CHECKING, Any

from ddengine.system.lazy import loaded as _loaded

if TYPE_CHECKING:
    from buffers.exchange import export as export
    from buffers.imports import bring_in as bring_in
    from buffers.making import ExpertMaker as ExpertMaker
    from buffers.making import generate as generate
    from buffers.open import SetExperts as SetExperts
    from buffers.open import SetTeachers as SetTeachers
    from buffers.open import Stores as Stores
    from buffers.open import stores as stores

# name -> the module that it is defined in
_PLACES = {
    "ExpertMaker": "buffers.making",
    "SetExperts": "buffers.open",
    "SetTeachers": "buffers.open",
    "Stores": "buffers.open",
    "bring_in": "buffers.imports",
    "export": "buffers.exchange",
    "generate": "buffers.making",
    "stores": "buffers.open",
}
__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # recipes import the training steps alone
    return _loaded(__name__, _PLACES, name)
