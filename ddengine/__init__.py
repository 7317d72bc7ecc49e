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
    from ddengine.api.compare import compare
    from ddengine.api.continual import continual
    from ddengine.api.describe import inspect
    from ddengine.api.distill import distill
    from ddengine.api.estimate import estimate
    from ddengine.api.evaluate import evaluate, train
    from ddengine.api.export import export, push
    from ddengine.api.merge import merge
    from ddengine.api.outcomes import Outcome
    from ddengine.api.privacy import privacy
    from ddengine.api.report import report
    from ddengine.api.results import Distilled, load
    from ddengine.api.score import rank, score
    from ddengine.api.select import select
    from ddengine.data import Dataset, Preprocess
    from ddengine.recipe import EvalConfig, Recipe
    from ddengine.system.errors import UserError
    from ddengine.uses.continual import ContinualConfig

    __version__: str

# name -> the module that it is defined in; no module of this package has one of these names
_PLACES = {
    "ContinualConfig": "ddengine.uses.continual",
    "Dataset": "ddengine.data",
    "Distilled": "ddengine.api.results",
    "EvalConfig": "ddengine.recipe",
    "Outcome": "ddengine.api.outcomes",
    "Preprocess": "ddengine.data",
    "Recipe": "ddengine.recipe",
    "UserError": "ddengine.system.errors",
    "compare": "ddengine.api.compare",
    "continual": "ddengine.api.continual",
    "distill": "ddengine.api.distill",
    "estimate": "ddengine.api.estimate",
    "evaluate": "ddengine.api.evaluate",
    "export": "ddengine.api.export",
    "inspect": "ddengine.api.describe",
    "load": "ddengine.api.results",
    "merge": "ddengine.api.merge",
    "privacy": "ddengine.api.privacy",
    "push": "ddengine.api.export",
    "rank": "ddengine.api.score",
    "report": "ddengine.api.report",
    "score": "ddengine.api.score",
    "select": "ddengine.api.select",
    "train": "ddengine.api.evaluate",
}
__all__ = [
    "ContinualConfig",
    "Dataset",
    "Distilled",
    "EvalConfig",
    "Outcome",
    "Preprocess",
    "Recipe",
    "UserError",
    "compare",
    "continual",
    "distill",
    "estimate",
    "evaluate",
    "export",
    "inspect",
    "load",
    "merge",
    "privacy",
    "push",
    "rank",
    "report",
    "score",
    "select",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ddengine.system import program

        return program.version()
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
