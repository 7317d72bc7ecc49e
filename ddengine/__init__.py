"""Dataset distillation:

`distill` a dataset by a Recipe into a small set, `load` one that was kept in a folder.

Loaded when they are asked for, so that a part of the engine can be imported without the whole.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddengine.artefact import folder as folders
from ddengine.system import compat as _compat  # noqa: F401  before anyone imports torchvision

if TYPE_CHECKING:
    from ddengine.api import distill
    from ddengine.recipe import Recipe
    from ddengine.sets.synthetic import SyntheticSet
    from ddengine.system.errors import UserError

__all__ = ["Recipe", "UserError", "distill", "load"]


def load(folder: "Path | str", device: str = "cpu") -> "SyntheticSet":
    """The distilled set in a folder, or in that of its run, on `device`.

    Raises UserError for a folder that is not one.
    """
    import torch

    from ddengine.artefact import runs

    return folders.load(runs.set_folder(Path(folder)), torch.device(device))[0]


def __getattr__(name: str) -> Any:
    if name == "distill":
        from ddengine.api import distill

        return distill
    if name == "Recipe":
        from ddengine.recipe import Recipe

        return Recipe
    if name == "UserError":
        from ddengine.system.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
