"""Finished work remembered, so that what was interrupted goes on where it was."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddengine.system import files
from ddengine.system.errors import UserError


class Memo:
    """Results of finished trainings, one JSON line each, so that an interrupted evaluation goes on
    where it was.
    """

    def __init__(self, path: Path | None, identity: str):
        """Read back the lines of `path` that belong to `identity`; None keeps nothing."""
        self._path, self._identity, self._known = path, identity, dict[str, Any]()
        if path is not None and path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # without the line that a kill cut off
            if len(whole) < len(content):
                os.truncate(path, len(whole))
            try:
                for entry in map(json.loads, whole.splitlines()):
                    if entry["identity"] == identity:
                        self._known[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} is damaged; delete it and evaluate again.") from None
        # of finished trainings
        self.seconds_before = sum(
            v.get("seconds", 0.0) for v in self._known.values() if isinstance(v, dict)
        )

    def __call__(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value stored under `key`, computed and stored when new."""
        if key not in self._known:
            self._known[key] = compute()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(
                        files.to_json(
                            {"identity": self._identity, "key": key, "value": self._known[key]}
                        )
                        + "\n"
                    )
        return self._known[key]

    def clear(self) -> None:
        """Forget everything, the file too."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
