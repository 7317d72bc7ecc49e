"""Finished work that several programs share, in a folder of small files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddengine.system import files, log, typed
from ddengine.system.errors import UserError

OF = "of.json"  # what all files of a folder are of


@dataclass(frozen=True)
class Shared:
    """Values by the facts that decide them.

    A file is there whole or not at all, so several programs may read and write at once. It says
    what it is of, and the digest of what it says: one that does not fit is not believed.
    """

    root: Path | None = None  # None: nothing is shared
    of: dict[str, Any] = field(
        default_factory=dict
    )  # facts that decide all values, and so the folder
    renew: bool = False  # values of others are found out again, and replaced
    written: set[str] = field(default_factory=set)  # names of files of this program

    def get(self, facts: Mapping[str, Any], kind: Any = Any) -> Any:
        """The value that these facts decide; None where nobody has found it out.

        One that is not of `kind`, a type as annotations have it, is not believed.
        """
        path = self._path(facts)
        if path is None or not path.is_file() or (self.renew and path.name not in self.written):
            return None
        try:
            content = files.read_json(path, "of", "value", "digest")
        except UserError:
            content = {"of": None, "value": None, "digest": ""}
        value = content["value"]
        if content["digest"] != _digest([content["of"], value]) or not typed.fits(value, kind):
            log.say(f"{path} is damaged, so what it was to say is found out again")
            return None
        return value if content["of"] == facts else None

    def put(self, facts: Mapping[str, Any], value: Any) -> None:
        """Let others know a value. A folder that cannot be written is only no help."""
        path = self._path(facts)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.parent / OF).is_file():
                _write(path.parent / OF, self.of)
            _write(path, {"of": facts, "value": value, "digest": _digest([facts, value])})
        except OSError as error:
            log.say(f"{path} cannot be written ({error.strerror}), so nothing is kept there")
            return
        self.written.add(path.name)

    def _path(self, facts: Mapping[str, Any]) -> Path | None:
        if self.root is None:
            return None
        return self.root / _digest(self.of)[:12] / f"{_digest(facts)[:24]}.json"


def _digest(value: Any) -> str:
    """SHA-256 of plain data, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, content: Any) -> None:
    """A file that is there whole or not at all, whoever else writes it at the same time."""
    handle, name = tempfile.mkstemp(prefix=files.TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(files.to_json(content, indent=1).encode() + b"\n")
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
