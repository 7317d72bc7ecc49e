"""Names of a package that are loaded when they are asked for."""

import importlib
from collections.abc import Mapping
from typing import Any


def loaded(package: str, places: Mapping[str, str], name: str) -> Any:
    """What `name` is in the module that `places` says.

    Raises AttributeError, as a package does, for a name that is not among them.
    """
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(places[name]), name)
