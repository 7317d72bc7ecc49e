"""What a path holds."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType

from ddengine.artefact import describe
from ddengine.artefact.describe import Part


@dataclass(frozen=True, eq=False, repr=False)
class Description:
    """Titled lists of facts; printing it prints them."""

    parts: Sequence[Part]

    def shown(self) -> RenderableType:
        """The facts for a terminal."""
        return describe.shown(self.parts)

    def __repr__(self) -> str:
        """The facts as text."""
        stream = io.StringIO()
        Console(file=stream, width=100, highlight=False, force_jupyter=False).print(self.shown())
        return stream.getvalue().rstrip("\n")


def inspect(path: Path | str) -> Description:
    """What a store, run, set or file is.

        print(ddengine.inspect("runs/mine"))

    Raises:
        UserError: a path that this program did not write.
    """
    return Description(describe.describe(Path(path)))
