"""Distilled sets that others, or this program, wrote as image files: class folders and Hugging Face
parquet -> `SyntheticSet`, as pixels.

Read by the readers of real images, so what is an image, a label and a class there is one here.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddengine.artefact import eight_bit, exchange
from ddengine.data import Data, folder, parquet
from ddengine.data.source import Source
from ddengine.data.splits import listed
from ddengine.recipe import DataConfig
from ddengine.sets.codec import Codec, Pixels, as_pixels
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log
from ddengine.system.errors import UserError

PADDED = re.compile(r"(\d+)_(.*)", re.DOTALL)  # a class folder of this program: number and name
NUMBERED = re.compile(r"(\D*)(\d+)")  # class folders of SRe2L (new003) and RDED (00003)


def read_folder(
    path: Path, data: Data, like: DataConfig, codec: Codec | None, lr: float | None = None
) -> SyntheticSet:
    """The set in a folder with a folder of finished images for each class, brought into form as
    `like` says for the real images.

    Raises UserError for folders of unknown or missing classes.
    """
    source = folder.read(_config("folder", path, like))
    ours = all(PADDED.fullmatch(name) for name in source.class_names) and not set(
        source.class_names
    ) & set(data.class_names)
    if ours and codec is not None and codec.per_item > 1:
        log.say(
            f"the folders in {path} are named as this program names them, so each image is taken "
            "as one example, and the codec plays no role"
        )
        codec = None
    return _set_of(source, str(path), data, codec, None, lr)


def _config(name: str, root: Path, like: DataConfig) -> DataConfig:
    return DataConfig(
        name=name, root=str(root), size=like.size, fit=like.fit, background=like.background
    )


def read_parquet(
    found: Sequence[Path],
    data: Data,
    like: DataConfig,
    codec: Codec | None,
    lr: float | None = None,
) -> SyntheticSet:
    """The set in parquet files of images and labels, and soft labels in a column `logits` as this
    program writes it; `like` as of a folder.
    """
    logits = _logits(found)
    if codec is not None and codec.per_item > 1 and (decoded := _written_with(found[0])):
        log.say(
            f"{found[0]} holds the decoded examples of a set ({decoded}), so each image is taken "
            "as one, and the codec plays no role"
        )
        codec = None
    with _together(found) as root:
        source = parquet.read(_config("parquet", root, like))
        return _set_of(source, ", ".join(map(str, found[:3])), data, codec, logits, lr)


@contextmanager
def _together(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder with these files and no others, as the parts of one split, for the reader of
    datasets; its messages name the files themselves.
    """
    with tempfile.TemporaryDirectory() as name:
        links = {
            Path(name) / f"train-{i:05d}-of-{len(paths):05d}.parquet": path
            for i, path in enumerate(paths)
        }
        for link, path in links.items():
            link.symlink_to(path.resolve())
        try:
            yield Path(name)
        except UserError as error:
            said = str(error)
            for link, path in links.items():
                said = said.replace(str(link), str(path)).replace(link.name, path.name)
            raise UserError(said.replace(name, str(paths[0].parent))) from None


def _written_with(path: Path) -> str | None:
    """The codec of the set of this program that a parquet file belongs to, whose rows are decoded
    examples; None where none is known.
    """
    meta = path.parent / "meta.json"
    content = files.read_json(meta) if meta.is_file() else None
    codec = content.get("codec") if isinstance(content, Mapping) else None
    return str(codec["type"]) if isinstance(codec, Mapping) and "type" in codec else None


def _logits(paths: Sequence[Path]) -> Tensor | None:
    """Soft labels (S, K) in the column `logits` of all files in order; None without such a column.

    Raises UserError for rows of unequal length.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    parts: list[np.ndarray[Any, Any]] = []
    for path in paths:
        try:
            if "logits" not in pq.read_schema(path).names:
                continue
            rows = pq.read_table(path, columns=["logits"]).column("logits").to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({str(error).split('. ')[0]}); get the file again."
            ) from None
        try:
            parts.append(np.array(rows, np.float32).reshape(len(rows), -1))
        except (TypeError, ValueError):
            raise UserError(
                f"The column logits in {path} does not hold as many numbers in every row; take it "
                "out, or correct the file."
            ) from None
    if not parts:
        return None
    if len(parts) < len(paths) or len({part.shape[1] for part in parts}) > 1:
        raise UserError(
            "Some of the parquet files have a column logits of another length, or none; import "
            "files of one set."
        )
    return torch.from_numpy(np.concatenate(parts))


def _set_of(
    source: Source,
    where: str,
    data: Data,
    codec: Codec | None,
    logits: Tensor | None,
    lr: float | None,
) -> SyntheticSet:
    """The set of all images of the training split that a reader found."""
    number = torch.tensor(_numbers(source.class_names, where, data))
    pixels = _channels(
        torch.from_numpy(source.train.fetch(np.arange(len(source.train.labels)))),
        data.image_shape[0],
    )
    if tuple(pixels.shape[1:]) != data.image_shape:
        raise UserError(
            f"The images in {where} are {tuple(pixels.shape[1:])} (channels, height, width) and "
            f"those of data.name are {data.image_shape}; "
            "name the recipe of their dataset, or set data.size."
        )
    for note in source.notes:
        log.say(note)
    labels = number[torch.from_numpy(source.train.labels)]
    order = labels.argsort(stable=True)  # classes in their order, as in every set
    if missing := [name for c, name in enumerate(data.class_names) if not (labels == c).any()]:
        raise UserError(
            f"{where} has no image of class {missing[0]!r}; give images of all {data.num_classes} "
            "classes, or set data.classes."
        )
    reader = exchange.pixel_codec(codec, data)
    images = pixels[order]
    tensors = {"images": (images if isinstance(reader, Pixels) else as_pixels(images)).contiguous()}
    if lr is not None:
        tensors["lr"] = exchange.learned_rate(lr, "--lr")
    exchange.check_values(Path(where), as_pixels(images), data, "pixel")
    syn = SyntheticSet(
        tensors, labels[order], data.class_names, reader, data.train.preprocess, space="pixel"
    )
    if logits is None:
        return syn
    if tuple(logits.shape) != (len(labels), data.num_classes) or not logits.isfinite().all():
        raise UserError(
            f"The column logits in {where} has shape {tuple(logits.shape)} or numbers that are "
            f"not finite, and {len(labels)} images of "
            f"{data.num_classes} classes need {(len(labels), data.num_classes)}; take it out, or "
            "correct the file."
        )
    columns = logits if list(number) == sorted(number) else logits[:, number.argsort()]
    return syn.with_labels(columns[order])


def _channels(pixels: Tensor, wanted: int) -> Tensor:
    """Images (S, C, H, W) uint8 with as many channels as the dataset: programs write grey images in
    colour too.
    """
    if pixels.shape[1] == 1 and wanted == 3:
        return pixels.expand(-1, 3, -1, -1)
    if pixels.shape[1] == 3 and wanted == 1:
        return pixels.float().mean(1, keepdim=True).round().to(torch.uint8)
    return pixels


def _numbers(names: Sequence[str], where: str, data: Data) -> list[int]:
    """The class of the dataset that each class of the files is.

    By name; by number and name where they are called as this program calls class folders; by number
    where all are called so, with one prefix, and the dataset's classes are not. Raises UserError
    for a class that the dataset has not.
    """
    known = list(data.class_names)
    safe = [eight_bit.class_folder(known, c).partition("_")[2] for c in range(len(known))]
    by_number = _by_number(names, known)
    if by_number is not None:
        return by_number
    found = []
    for name in names:
        padded = PADDED.fullmatch(name)
        if known.count(name) == 1:
            found.append(known.index(name))
        elif padded and int(padded[1]) < len(known) and safe[int(padded[1])] == padded[2]:
            found.append(int(padded[1]))
        elif safe.count(name) == 1:
            found.append(safe.index(name))
        elif padded and padded[2] in safe:
            there = " or ".join(str(c) for c, other in enumerate(safe) if other == padded[2])
            raise UserError(
                f"The class folder {name} in {where} says number {int(padded[1])}, and the class "
                f"of that name is {there}; rename it, or give the "
                "order in which the files count the classes with --class_order."
            )
        else:
            raise UserError(
                f"The class {name} in {where} is none of the dataset's ({listed(known, 10)}); "
                "name the recipe of its dataset, or rename the folder or class."
            )
    if twice := [known[c] for c in found if found.count(c) > 1]:
        raise UserError(
            f"Several classes in {where} are the dataset's {twice[0]!r}; join them into one."
        )
    return found


def _by_number(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Classes that are called by number with one prefix, as far as none is a name; None where they
    are not.
    """
    numbered = [NUMBERED.fullmatch(name) for name in names]
    if set(names) <= set(known) or len({match[1] for match in numbered if match}) > 1:
        return None
    numbers = [int(match[2]) for match in numbered if match]
    return (
        numbers
        if len(numbers) == len(names)
        and max(numbers) < len(known)
        and len(set(numbers)) == len(numbers)
        else None
    )
