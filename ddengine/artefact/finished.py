"""Distilled sets in image files: class folders and Hugging Face parquet -> `SyntheticSet`.

Others, or this program, wrote them. They are read as pixels, by the readers of real images, so what
is an image, a label and a class there is one here.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddengine import contents
from ddengine.artefact import exchange
from ddengine.artefact.eight_bit import class_folder
from ddengine.artefact.markdown import at
from ddengine.data import Data, folder, parquet
from ddengine.data.source import Source
from ddengine.data.splits import listed
from ddengine.recipe import DataConfig
from ddengine.sets.codec import Codec, as_pixels
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log
from ddengine.system.errors import UserError

PADDED = re.compile(r"(\d+)_(.*)", re.DOTALL)  # a class folder of this program: number and name
NUMBERED = re.compile(r"(\D*)(\d+)")  # class folders of SRe2L (new003) and RDED (00003)


def read_folder(
    path: Path, data: Data, like: DataConfig, codec: Codec | None, lr: float | None = None
) -> SyntheticSet:
    """The set in a folder with a folder of finished images for each class.

    The images are brought into form as `like` says for the real ones. Raises UserError for folders
    of unknown or missing classes.
    """
    source = folder.read(_config("folder", path, like))
    if _holds_several(codec) and _named_as_ours(source.class_names, data.class_names):
        log.say(
            f"the folders in {path} are named as this program names them, so each image is taken "
            "as one example, and the codec plays no role"
        )
        codec = None
    return _set_of(source, str(path), data, codec, None, lr)


def _holds_several(codec: Codec | None) -> bool:
    """Whether an image holds several examples in this parametrisation."""
    return codec is not None and codec.per_item > 1


def _named_as_ours(folders: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether all folders are named as this program names them, and none as a class."""
    if set(folders) & set(class_names):
        return False
    return all(PADDED.fullmatch(name) for name in folders)


def _config(name: str, root: Path, like: DataConfig) -> DataConfig:
    return DataConfig(
        name=name, root=str(root), size=like.size, fit=like.fit, background=like.background
    )


def read_parquet(
    paths: Sequence[Path],
    data: Data,
    like: DataConfig,
    codec: Codec | None,
    lr: float | None = None,
) -> SyntheticSet:
    """The set in parquet files of images and labels.

    Soft labels lie in a column `logits`, as this program writes it; `like` as of a folder.
    """
    logits = _logits(paths)
    decoded = _written_with(paths[0]) if _holds_several(codec) else None
    if decoded:
        log.say(
            f"{paths[0]} holds the decoded examples of a set ({decoded}), so each image is taken "
            "as one, and the codec plays no role"
        )
        codec = None
    with _together(paths) as root:
        source = parquet.read(_config("parquet", root, like))
        return _set_of(source, ", ".join(map(str, paths[:3])), data, codec, logits, lr)


@contextmanager
def _together(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder with these files and no others, as the parts of one split.

    The reader of datasets wants one. Its messages name the files themselves.
    """
    with tempfile.TemporaryDirectory() as name:
        links = {}
        for i, path in enumerate(paths):
            link = Path(name) / f"train-{i:05d}-of-{len(paths):05d}.parquet"
            link.symlink_to(path.resolve())
            links[link] = path
        try:
            yield Path(name)
        except UserError as error:
            said = str(error)
            for link, path in links.items():
                said = said.replace(str(link), str(path)).replace(link.name, path.name)
            raise UserError(said.replace(name, str(paths[0].parent))) from None


def _written_with(path: Path) -> str | None:
    """The codec of the set of this program that a parquet file of decoded examples belongs to.

    None where none is known.
    """
    meta = path.parent / "meta.json"
    if not meta.is_file():
        return None
    codec = at(contents.read_json(meta), "codec", "type")
    if codec is None:
        return None
    return str(codec)


def _logits(paths: Sequence[Path]) -> Tensor | None:
    """Soft labels (S, K) in the column `logits` of all files in order; None without such a column.

    Raises UserError for rows of unequal length.
    """
    parts = []
    for path in paths:
        part = _column_of_logits(path)
        if part is not None:
            parts.append(part)
    if not parts:
        return None
    if len(parts) < len(paths) or len({part.shape[1] for part in parts}) > 1:
        raise UserError(
            "Some of the parquet files have a column logits of another length, or none; import "
            "files of one set."
        )
    return torch.from_numpy(np.concatenate(parts))


def _column_of_logits(path: Path) -> np.ndarray[Any, Any] | None:
    """The column `logits` (S, K) of a parquet file; None where it has none."""
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    try:
        if "logits" not in pq.read_schema(path).names:
            return None
        table = pq.read_table(path, columns=["logits"], page_checksum_verification=True)
        rows = table.column("logits").to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).split('. ')[0]}); get the file again."
        ) from None
    try:
        return np.array(rows, np.float32).reshape(len(rows), -1)
    except (TypeError, ValueError):
        raise UserError(
            f"The column logits in {path} does not hold as many numbers in every row; take it "
            "out, or correct the file."
        ) from None


def _set_of(
    source: Source,
    where: str,
    data: Data,
    codec: Codec | None,
    logits: Tensor | None,
    lr: float | None,
) -> SyntheticSet:
    """The set of all images of the training split that a reader found."""
    class_of = torch.tensor(_numbers(source.class_names, where, data))
    pixels = _pixels(source, where, data)
    for note in source.notes:
        log.say(note)
    labels = class_of[torch.from_numpy(source.train.labels)]
    _check_classes(labels, where, data)
    order = labels.argsort(stable=True)  # classes in their order, as in every set
    reader = exchange.pixel_codec(codec, data)
    images = pixels[order]
    if not reader.keeps_pixels:
        images = as_pixels(images)
    tensors = {"images": images.contiguous()}
    if lr is not None:
        tensors["lr"] = exchange.learned_rate(lr, "--lr")
    exchange.check_values(Path(where), as_pixels(images), data, "pixel")
    syn = SyntheticSet(
        tensors, labels[order], data.class_names, reader, data.train.preprocess, space="pixel"
    )
    if logits is None:
        return syn
    wanted = (len(labels), data.num_classes)
    if tuple(logits.shape) != wanted or not logits.isfinite().all():
        raise UserError(
            f"The column logits in {where} has shape {tuple(logits.shape)} or numbers that are "
            f"not finite, and {len(labels)} images of "
            f"{data.num_classes} classes need {wanted}; take it out, or "
            "correct the file."
        )
    if list(class_of) != sorted(class_of):
        logits = logits[:, class_of.argsort()]
    return syn.with_labels(logits[order])


def _check_classes(labels: Tensor, where: str, data: Data) -> None:
    """Raise UserError where a class of the dataset has no image among those with labels (N,)."""
    present = set(labels.tolist())
    for c, name in enumerate(data.class_names):
        if c not in present:
            raise UserError(
                f"{where} has no image of class {name!r}; give images of all {data.num_classes} "
                "classes, or set data.classes."
            )


def _pixels(source: Source, where: str, data: Data) -> Tensor:
    """All training images (S, C, H, W) uint8, of the shape of the dataset's."""
    images = torch.from_numpy(source.train.fetch(np.arange(len(source.train.labels))))
    pixels = _channels(images, data.image_shape[0])
    if tuple(pixels.shape[1:]) != data.image_shape:
        raise UserError(
            f"The images in {where} are {tuple(pixels.shape[1:])} (channels, height, width) and "
            f"those of data.name are {data.image_shape}; "
            "name the recipe of their dataset, or set data.size."
        )
    return pixels


def _channels(pixels: Tensor, wanted: int) -> Tensor:
    """Images (S, C, H, W) uint8 with as many channels as the dataset's.

    Programs write grey images in colour, too.
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
    by_number = _by_number(names, known)
    if by_number is not None:
        return by_number
    # what class folders say of the names of classes
    safe = [class_folder(known, c).partition("_")[2] for c in range(len(known))]
    numbers = [_number(name, where, known, safe) for name in names]
    for c in numbers:
        if numbers.count(c) > 1:
            raise UserError(
                f"Several classes in {where} are the dataset's {known[c]!r}; join them into one."
            )
    return numbers


def _number(name: str, where: str, known: Sequence[str], safe: Sequence[str]) -> int:
    """The class of the dataset that a class is by its name, or as this program calls its folder.

    `known` are the names of the dataset's classes, `safe` what their folders say of them.
    """
    if known.count(name) == 1:
        return known.index(name)
    numbered = PADDED.fullmatch(name)
    if numbered:
        number = int(numbered[1])
        if number < len(known) and safe[number] == numbered[2]:
            return number
    if safe.count(name) == 1:
        return safe.index(name)
    if numbered and numbered[2] in safe:
        others = " or ".join(str(c) for c in range(len(safe)) if safe[c] == numbered[2])
        raise UserError(
            f"The class folder {name} in {where} says number {int(numbered[1])}, and the class "
            f"of that name is {others}; rename it, or give the "
            "order in which the files count the classes with --class_order."
        )
    raise UserError(
        f"The class {name} in {where} is none of the dataset's ({listed(known, 10)}); "
        "name the recipe of its dataset, or rename the folder or class."
    )


def _by_number(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Classes that are called by number with one prefix, as far as none is a name.

    None where they are not called so.
    """
    if set(names) <= set(known):
        return None
    numbers: list[int] = []
    prefixes = set()
    for name in names:
        match = NUMBERED.fullmatch(name)
        if match is None or int(match[2]) >= len(known):
            return None
        prefixes.add(match[1])
        numbers.append(int(match[2]))
    return numbers if len(prefixes) == 1 and len(set(numbers)) == len(numbers) else None
