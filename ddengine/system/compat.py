"""torchvision, importable also where its compiled operators do not match the installed torch.

A torchvision wheel built for CUDA beside a CPU build of torch cannot load its C++ library, and its
import then fails because it registers Python kernels for two operators (`nms`, `qnms`) that nobody
declared. Nothing here uses those operators, so declaring them is enough. On a matching install the
library loads (torchvision would load the same file) and nothing is declared.

Import torchvision only through this module: `from ddengine.system.compat import torchvision`. The
declaration is made just before the first import of torchvision, also by a program that imports it
itself after the engine: this module puts a finder in front of Python's own, which looks for that
one name, declares, and finds nothing. Neither torch nor torchvision is imported before.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torchvision

_declared: list[Any] = []  # a Library undoes its declarations when collected


def _declare_missing_operators() -> None:
    import torch  # seconds to import

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


class _BeforeTorchvision:
    """A finder that finds nothing, and declares the operators when torchvision is looked for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """None, so that Python's own finders go on."""
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            _declare_missing_operators()


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for part in ("datasets", "models", "utils"):
        importlib.import_module(f"torchvision.{part}")
    return importlib.import_module("torchvision")


__all__ = ["torchvision"]
