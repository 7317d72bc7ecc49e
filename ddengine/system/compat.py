"""torchvision, importable also where its compiled operators do not match the installed torch.

A torchvision wheel built for CUDA beside a CPU build of torch cannot load its C++ library, and its
import then fails because it registers Python kernels for two operators (`nms`, `qnms`) that nobody
declared. Nothing here uses those operators, so declaring them is enough. On a matching install the
library loads (torchvision would load the same file) and nothing is declared.

Import torchvision only through this module: `from ddengine.system.compat import torchvision`. The
declaration is made when the engine is imported, so that a program that imports torchvision itself,
after it, works too; torchvision, which takes seconds to import, is imported when it is asked for.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import torchvision

_declared: list[torch.library.Library] = []  # a Library undoes its declarations when collected


def _declare_missing_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    for binary in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


_declare_missing_operators()


def __getattr__(name: str) -> Any:
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for part in ("datasets", "models", "utils"):
        importlib.import_module(f"torchvision.{part}")
    return importlib.import_module("torchvision")


__all__ = ["torchvision"]
