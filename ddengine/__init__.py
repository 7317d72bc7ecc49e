"""Dataset distillation: a few images per class that networks are trained on in place of a dataset.

    import ddengine, synth

    recipe = synth.find("dm/cifar10_ipc10", ipc=5)
    result = ddengine.distill(ddengine.Dataset.folder("photos"), recipe, folder="runs/mine")
    print(ddengine.evaluate(result, models=["resnet18"]))
    network = ddengine.train(result, "resnet18")

The names below are loaded when they are asked for, so that `import ddengine` takes no time and a
part of the engine can be imported without the others.
"""

from typing import TYPE_CHECKING, Any

from ddengine.system import compat as _compat  # noqa: F401  before anyone imports torchvision
from ddengine.system.lazy import loaded as _loaded

if TYPE_CHECKING:
    from ddengine.api.advise import advise as advise
    from ddengine.api.compare import compare as compare
    from ddengine.api.continual import continual as continual
    from ddengine.api.describe import inspect as inspect
    from ddengine.api.distill import distill as distill
    from ddengine.api.estimate import estimate as estimate
    from ddengine.api.evaluate import evaluate as evaluate
    from ddengine.api.evaluate import train as train
    from ddengine.api.evaluate_all import evaluate_all as evaluate_all
    from ddengine.api.export import export as export
    from ddengine.api.export import push as push
    from ddengine.api.labels import buy_labels as buy_labels
    from ddengine.api.merge import merge as merge
    from ddengine.api.outcomes import Outcome as Outcome
    from ddengine.api.privacy import privacy as privacy
    from ddengine.api.prune import prune as prune
    from ddengine.api.quantise import quantise as quantise
    from ddengine.api.report import report as report
    from ddengine.api.results import Distilled as Distilled
    from ddengine.api.results import load as load
    from ddengine.api.score import rank as rank
    from ddengine.api.score import score as score
    from ddengine.api.select import select as select
    from ddengine.api.sweep import sweep as sweep
    from ddengine.api.thin import thin as thin
    from ddengine.api.transfer import transfer as transfer
    from ddengine.api.verify import verify as verify
    from ddengine.data import Dataset as Dataset
    from ddengine.data import Preprocess as Preprocess
    from ddengine.recipe import EvalConfig as EvalConfig
    from ddengine.recipe import Recipe as Recipe
    from ddengine.recipe import for_networks as for_networks
    from ddengine.system.claims import waiting as waiting
    from ddengine.system.errors import UserError as UserError
    from ddengine.uses.continual import ContinualConfig as ContinualConfig
    from ddengine.uses.labels import LabelsConfig as LabelsConfig
    from ddengine.uses.pruning import PruningConfig as PruningConfig
    from ddengine.uses.transfer import TransferConfig as TransferConfig

    __version__: str

# name -> the module that it is defined in; no module of this package has one of these names
_PLACES = {
    "ContinualConfig": "ddengine.uses.continual",
    "Dataset": "ddengine.data",
    "Distilled": "ddengine.api.results",
    "EvalConfig": "ddengine.recipe",
    "LabelsConfig": "ddengine.uses.labels",
    "Outcome": "ddengine.api.outcomes",
    "Preprocess": "ddengine.data",
    "PruningConfig": "ddengine.uses.pruning",
    "Recipe": "ddengine.recipe",
    "TransferConfig": "ddengine.uses.transfer",
    "UserError": "ddengine.system.errors",
    "advise": "ddengine.api.advise",
    "buy_labels": "ddengine.api.labels",
    "compare": "ddengine.api.compare",
    "continual": "ddengine.api.continual",
    "distill": "ddengine.api.distill",
    "estimate": "ddengine.api.estimate",
    "evaluate": "ddengine.api.evaluate",
    "evaluate_all": "ddengine.api.evaluate_all",
    "export": "ddengine.api.export",
    "for_networks": "ddengine.recipe",
    "inspect": "ddengine.api.describe",
    "load": "ddengine.api.results",
    "merge": "ddengine.api.merge",
    "privacy": "ddengine.api.privacy",
    "prune": "ddengine.api.prune",
    "push": "ddengine.api.export",
    "quantise": "ddengine.api.quantise",
    "rank": "ddengine.api.score",
    "report": "ddengine.api.report",
    "score": "ddengine.api.score",
    "select": "ddengine.api.select",
    "sweep": "ddengine.api.sweep",
    "thin": "ddengine.api.thin",
    "train": "ddengine.api.evaluate",
    "transfer": "ddengine.api.transfer",
    "verify": "ddengine.api.verify",
    "waiting": "ddengine.system.claims",
}
__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ddengine.system import program

        return program.version()
    return _loaded(__name__, _PLACES, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
