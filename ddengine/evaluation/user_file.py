"""Networks that a file of the user defines, named as `path/to/file.py:NAME`.

NAME is a function, or a class, of the image shape (C, H, W) and the number of classes that makes an
nn.Module.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ddengine.models import ImageShape
from ddengine.system.errors import UserError, unknown

SUFFIX = ".py"


@dataclass(frozen=True)
class FromFile:
    """A function of a file of the user that makes networks; it can be sent to other processes."""

    path: Path  # absolute
    name: str
    digest: str  # 12 hexadecimal digits of the content of the file

    def __call__(self, image_shape: ImageShape, num_classes: int) -> nn.Module:
        """What the function makes of an image shape (C, H, W) and a number of classes.

        Raises UserError where the file has changed since it was named.
        """
        return _function(self)(image_shape, num_classes)

    @property
    def stable_name(self) -> str:
        """What identifies it in another process: its name, and the digest of its file."""
        return f"{self.name}@{self.digest}"


def names_file(network: str) -> bool:
    """Whether the name of a network is that of a file."""
    path, colon, _ = network.rpartition(":")
    return network.endswith(SUFFIX) or (bool(colon) and path.endswith(SUFFIX))


def from_file(network: str) -> FromFile:
    """The function that `path/to/file.py:NAME` names.

    Raises UserError for a file that is not there or cannot be imported, and for a name that it has
    not.
    """
    if network.endswith(SUFFIX):
        raise UserError(f"{network} names a file alone; write {network}:NAME, a function in it.")
    path, _, name = network.rpartition(":")
    try:
        content = Path(path).read_bytes()
    except OSError:
        raise UserError(
            f"{path}, which {network} names, cannot be read; correct the path to your file."
        ) from None
    brought = FromFile(Path(path).resolve(), name, _digest(content))
    _function(brought)
    return brought


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _function(brought: FromFile) -> Any:
    """The function itself. Raises UserError for a name that the file has not."""
    module = _module(brought.path, brought.digest)
    functions = {}
    for name, value in vars(module).items():
        if callable(value):
            functions[name] = value
    if brought.name not in functions:
        public = [name for name in functions if not name.startswith("_")]
        raise unknown(f"function in {brought.path.name}", brought.name, public)
    return functions[brought.name]


@lru_cache
def _module(path: Path, digest: str) -> ModuleType:
    """The file as a module, run once. Raises UserError for one that has another content."""
    if _digest(path.read_bytes()) != digest:
        raise UserError(f"{path} has changed since the evaluation began; start it again.")
    name = f"networks_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as for any import: dataclasses and pickles look there
    try:
        with _beside(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(
            f"{path} cannot be imported ({type(error).__name__}: {error}); mend it."
        ) from error
    return module


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """While a file is imported, it may import those beside it, as a script may."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
