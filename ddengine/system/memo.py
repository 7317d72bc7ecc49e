"""Finished work remembered, so that what was interrupted goes on where it was."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddengine.system import files, typed
from ddengine.system.errors import UserError
from ddengine.system.parsing import content_of, parsed


class Memo:
    """Results of finished trainings, one JSON line each.

    So an interrupted evaluation goes on where it was.
    """

    def __init__(self, path: Path | None, identity: str):
        """Read back the lines of `path` that belong to `identity`; None keeps nothing."""
        self._path = path
        self._identity = identity
        self._known: dict[str, Any] = {}
        if path is not None and path.exists():
            self._known = _lines_of(path, identity)
        self._unchecked = set(self._known)  # keys of values that nobody has looked at since
        self.seconds_before = 0.0  # of finished trainings
        for value in self._known.values():
            seconds = value.get("seconds") if isinstance(value, dict) else None
            if isinstance(seconds, int | float):
                self.seconds_before += seconds

    def __call__(self, key: str, compute: Callable[[], Any], *, keep: bool = True) -> Any:
        """The value stored under `key`, computed and stored when new.

        What is not to be kept is remembered by this object, and not by the file.
        """
        if key not in self._known:
            self.put(key, compute(), keep=keep)
        return self._known[key]

    def get(self, key: str, kind: Any = Any) -> Any:
        """The value stored under `key`; None without one.

        Raises UserError for one of the file that is not of `kind`, a type as annotations have it.
        """
        if kind is not Any and key in self._unchecked:
            self._unchecked.discard(key)
            try:
                typed.check(self._known[key], kind, key)
            except typed.Misfit as error:
                said = f"{self._path} cannot be read ({error}); delete it and evaluate again."
                raise UserError(said) from None
        return self._known.get(key)

    def put(self, key: str, value: Any, *, keep: bool = True) -> None:
        """Store a value.

        What is not to be kept is remembered by this object, and not by the file.
        """
        self._known[key] = value
        if keep and self._path is not None:
            line = files.sealed({"identity": self._identity, "key": key, "value": value})
            with files.naming(self._path), self._path.open("ab") as file:
                file.write(files.to_json(line).encode() + b"\n")


def _lines_of(path: Path, identity: str) -> dict[str, Any]:
    """The values by their keys; a line that a kill cut off is taken away."""
    try:
        content = content_of(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and evaluate again.") from None
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    known: dict[str, Any] = {}
    try:
        for line in complete.splitlines():
            entry = files.unsealed(path, parsed(line))
            if entry["identity"] == identity:
                known[entry["key"]] = entry["value"]
    except (ValueError, KeyError, TypeError):  # a UserError is a ValueError
        raise UserError(f"{path} is damaged; delete it and evaluate again.") from None
    return known
