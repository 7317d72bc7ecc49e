"""Dataset distillation: `distil` a dataset by a Recipe into a small set, `load` one that was kept in a folder.

Loaded when they are asked for, so that a part of the engine can be imported without the whole.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddengine import compat as _compat  # noqa: F401  before anyone imports torchvision

if TYPE_CHECKING:
    from ddengine.api import distil
    from ddengine.errors import UserError
    from ddengine.recipe import Recipe
    from ddengine.synthetic import SyntheticSet

__all__ = ["Recipe", "UserError", "distil", "load"]


def load(folder: "Path | str", device: str = "cpu") -> "SyntheticSet":
    """The distilled set in a folder, or in that of its run, on `device`. Raises UserError for a folder that is not one."""
    import torch

    from ddengine import runs, synthetic

    return synthetic.load(runs.set_folder(Path(folder)), torch.device(device))[0]


def __getattr__(name: str) -> Any:
    if name == "distil":
        from ddengine.api import distil

        return distil
    if name == "Recipe":
        from ddengine.recipe import Recipe

        return Recipe
    if name == "UserError":
        from ddengine.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
