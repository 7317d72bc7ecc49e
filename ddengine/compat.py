"""torchvision, importable also where its compiled operators do not match the installed torch.

A torchvision wheel built for CUDA beside a CPU build of torch cannot load its C++ library, and its import then fails because it
registers Python kernels for two operators (`nms`, `qnms`) that nobody declared. Nothing here uses those operators, so declaring them
is enough. On a matching install the library loads (torchvision would load the same file) and nothing is declared.

Import torchvision only through this module: `from ddengine.compat import torchvision`.
"""

import importlib.util
from pathlib import Path

import torch

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

import torchvision  # noqa: E402
import torchvision.datasets  # noqa: E402
import torchvision.models  # noqa: E402
import torchvision.utils  # noqa: E402

__all__ = ["torchvision"]
