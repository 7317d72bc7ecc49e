"""Expert trajectories: training and storing them, and finding those that are stored.

`generate` trains the experts of a recipe on any images, `stores` names those that lie there.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buffers.open import SetTeachers, Stores, stores
    from buffers.own import generate

__all__ = ["SetTeachers", "Stores", "generate", "stores"]


def __getattr__(name: str) -> Any:
    # loaded when asked for: recipes import the training steps alone
    if name == "generate":
        from buffers.own import generate

        return generate
    if name in ("SetTeachers", "Stores", "stores"):
        from buffers import open

        return getattr(open, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
