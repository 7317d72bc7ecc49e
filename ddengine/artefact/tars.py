"""The decoded examples of a set as a WebDataset: tar files of images, classes and other targets."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ddengine.artefact.eight_bit import Exported, example_name, example_targets, exported
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.errors import UserError

PER_SHARD = 10_000  # examples in a tar

Member = tuple[str, bytes]  # name and content of a file in a tar


@dataclass(frozen=True)
class Named:
    """Targets that lie beside images in files of their own."""

    name: str | None  # None: they are classes
    values: Tensor | None  # (N, outputs) float32


def write_webdataset(syn: SyntheticSet, path: Path, per_shard: int = PER_SHARD) -> list[Path]:
    """Write the decoded examples as a WebDataset and return its files.

    These are one tar `path`, or X-000000.tar, X-000001.tar ... for a `path` X.tar, and X.json
    beside them with the names of the classes and the numbers of examples. An example i is the
    members 00000i.png (8 bits), 00000i.cls (its class as text) and, with soft labels,
    00000i.logits.npy ((K,) float32), with features 00000i.features.npy ((D,) float32). Same set,
    same bytes.

    Raises UserError when a file exists.
    """
    if per_shard < 1:
        raise UserError(f"per_shard must be at least 1, got {per_shard}.")
    starts = range(0, len(syn), per_shard)
    tars = _names(path, len(starts))
    index = path.with_suffix(".json")
    files.refuse_existing([*tars, index])
    files.make_folder(path.parent)
    export = exported(syn)
    targets = Named(syn.targets.column, example_targets(syn))
    counts = {}
    for tar, start in zip(tars, starts, strict=True):
        part = range(start, min(start + per_shard, len(syn)))
        with files.replacing(tar) as temporary:
            _write_tar(temporary, _members(export, targets, part))
        counts[tar.name] = len(part)
    content = {
        "class_names": list(syn.class_names),
        "examples": len(syn),
        "shards": counts,
        "logits": False,
    }
    if targets.name is not None:
        content[targets.name] = targets.values is not None
    files.write_json(index, content)
    return [*tars, index]


def _names(path: Path, num: int) -> list[Path]:
    """The names of `num` tars of a WebDataset."""
    if num <= 1:
        return [path]
    names = []
    for i in range(num):
        name = f"{path.stem}-{example_name(i, num)}{path.suffix}"
        names.append(path.with_name(name))
    return names


def _members(export: Exported, targets: Named, part: range) -> Iterator[Member]:
    """(name in the tar, content) of the examples of a shard."""
    for i in part:
        name = example_name(i, len(export.pngs))
        yield f"{name}.png", export.pngs[i]
        yield f"{name}.cls", str(export.classes[i]).encode()
        if targets.values is not None:
            buffer = io.BytesIO()
            np.save(buffer, targets.values[i].numpy())
            yield f"{name}.{targets.name}.npy", buffer.getvalue()


def _write_tar(path: Path, members: Iterator[Member]) -> None:
    """A tar of these members, with nothing of this machine: times, users and groups are 0."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(content))
