"""Expert trajectories: training and storing them.

`generate` trains experts on a dataset of one's own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buffers.own import generate

__all__ = ["generate"]


def __getattr__(name: str) -> Any:
    if name == "generate":  # loaded when asked for: recipes import the training steps alone
        from buffers.own import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
