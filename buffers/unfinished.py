"""The checkpoint of experts that are being trained, beside the shards of their store.

`unfinished_0003.safetensors` holds the network, what its step keeps, the snapshots taken so far and
how far the training is. It is written when a signal asks to end, and every minute, so that a kill
loses no more. An expert that goes on has the numbers that it would have had.

Experts that are trained together have one file, of the expert whose shard is written last.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from ddengine import contents
from ddengine.system import files
from ddengine.system.errors import UserError

EVERY = 60.0  # seconds between two checkpoints
PREFIX = "unfinished_"


@dataclass
class Progress:
    """How far the training of an expert is, or of several, which are as far as each other."""

    epoch: int = 0  # that is being trained
    batch: int = 0  # of that epoch, the next one
    seconds: float = 0.0  # of the sessions before this one
    # on the validation images, by epoch; of several experts each, one after another
    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # mean of each epoch, in the same order


def path_of(folder: Path, expert: int) -> Path:
    """The file of an expert."""
    return folder / f"{PREFIX}{expert:04d}.safetensors"


class Checkpoint:
    """The file of one expert of a store, or of several that are trained together."""

    def __init__(self, path: Path, fingerprint: str):
        """`fingerprint` is that of the store, whose checkpoints no other one continues."""
        self.path = path
        self._fingerprint = fingerprint
        self._began = self._last = time.monotonic()
        self._seconds_before = 0.0

    def is_due(self) -> bool:
        """Whether the last one is so long ago that one is written."""
        return time.monotonic() - self._last > EVERY

    def write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Write the tensors of a training, and how far it is."""
        progress.seconds = self.seconds()
        said = {"fingerprint": self._fingerprint, "progress": files.to_json(asdict(progress))}
        files.write_tensors(self.path, tensors, said)
        self._last = time.monotonic()

    def read(self) -> tuple[dict[str, Tensor], Progress] | None:
        """What was written; None where nothing was, or nothing that can be continued."""
        if not self.path.is_file():
            return None
        try:
            tensors, said = files.read_tensors(self.path)
            if said.get("fingerprint") != self._fingerprint:
                return None
            facts = contents.said_in_metadata(self.path, said, "progress", Progress)
            progress = Progress(**facts)
        except (UserError, TypeError):
            return None
        self._seconds_before = progress.seconds
        return tensors, progress

    def seconds(self) -> float:
        """That the training has taken, in all sessions."""
        return self._seconds_before + time.monotonic() - self._began

    def remove(self) -> None:
        """Remove the file, where there is one."""
        self.path.unlink(missing_ok=True)
