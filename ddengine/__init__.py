"""Dataset distillation: a few images per class that networks are trained on in place of a dataset.

    import ddengine, synth

    recipe = synth.find("dm/cifar10_ipc10", ipc=5)
    result = ddengine.distill(ddengine.Dataset.folder("photos"), recipe, folder="runs/mine")
    print(ddengine.evaluate(result, models=["resnet18"]))
    network = ddengine.train(result, "resnet18")

The names below are loaded when they are asked for, so that `import ddengine` takes no time and a
part of the engine can be imported without the others.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ddengine.system import compat as _compat  # noqa: F401  before anyone imports torchvision

if TYPE_CHECKING:
    from ddengine.api.distill import distill
    from ddengine.api.results import Distilled, load
    from ddengine.api.select import select
    from ddengine.data import Dataset
    from ddengine.recipe import EvalConfig, Recipe
    from ddengine.system.errors import UserError

    __version__: str

# name -> the module that it is defined in; no module of this package has a name of these
_PLACES = {
    "Dataset": "ddengine.data",
    "Distilled": "ddengine.api.results",
    "EvalConfig": "ddengine.recipe",
    "Recipe": "ddengine.recipe",
    "UserError": "ddengine.system.errors",
    "distill": "ddengine.api.distill",
    "load": "ddengine.api.results",
    "select": "ddengine.api.select",
}
__all__ = [
    "Dataset",
    "Distilled",
    "EvalConfig",
    "Recipe",
    "UserError",
    "distill",
    "load",
    "select",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ddengine.system import program

        return program.version()
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
