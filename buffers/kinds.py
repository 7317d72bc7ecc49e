"""What files of other programs are, by their content.

replay_buffer_*.pt, or their folder                     experts
state dicts, plain or in checkpoints, or safetensors    networks
images_X.pt, results of DC, pairs as IDC writes them    images
a folder of class folders of images                     folder
parquet files, or their folder                          parquet
"""

import shlex
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from buffers import state_dicts
from buffers.exchange import expand
from ddengine.artefact import exchange, runs
from ddengine.data import parquet
from ddengine.data.listing import files_below
from ddengine.data.splits import listed
from ddengine.system import log, program
from ddengine.system.errors import UserError

Kind = Literal["experts", "networks", "images", "folder", "parquet"]

WANTED = (
    "give replay_buffer files, state dicts, images_X.pt, a pair of images and labels, a result of "
    "DC, a folder of images, or parquet"
)


def find(given: Sequence[Path]) -> tuple[Kind, list[Path], Any]:
    """(kind, files or folder, content of the first file where it was read) of what is given.

    Raises UserError, saying what is there, for anything that cannot be imported.
    """
    for path in given:
        if path.is_dir():
            _refuse_ours(path)
    if len(given) == 1 and given[0].is_dir():
        kind = _folder_kind(given[0])
        if kind == "folder":
            return kind, [given[0]], None
        if kind == "parquet":
            return kind, _parquet_files(given[0]), None
    paths = expand(given)
    kind, content = _file_kind(paths[0])
    _check_together(kind, paths)
    return kind, paths, content


def _check_together(kind: Kind, paths: Sequence[Path]) -> None:
    """Raise UserError for files that are not imported together, the first being of this kind."""
    if kind == "images" and len(paths) > 1:
        raise UserError(
            f"{paths[0]} holds no experts, and only files of experts are imported together; give "
            "one file with --files."
        )
    for path in paths:
        if kind == "parquet" and _head(path) != b"PAR1":
            raise UserError(
                f"{paths[0]} is a parquet file and {path} is none; import files of one kind with "
                "--files."
            )


def _refuse_ours(folder: Path) -> None:
    """Raise UserError for what this program wrote, which needs no import."""
    of_set = runs.set_folder(folder)
    if (of_set / "meta.json").is_file() and (of_set / "data.safetensors").is_file():
        raise UserError(
            f"{folder} holds a distilled set of this program already and needs no import; "
            f"evaluate it with {program.as_typed('evaluate', str(folder))}."
        )
    if (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} is an expert store of this program already and needs no import; use it "
            f"with --experts {shlex.quote(str(folder))}."
        )


# Folders


def _folder_kind(folder: Path) -> Kind:
    """What a folder holds. Raises UserError where that is nothing to import."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    suffixes = set(Image.registered_extensions())
    images = False
    for name in names:
        if name.startswith("replay_buffer_"):
            return "experts"
        if Path(name).suffix.lower() in suffixes:
            images = True
    if _has(folder, lambda path: path.suffix.lower() == ".parquet"):
        return "parquet"
    if _has(folder, lambda path: path.suffix.lower() in suffixes and path.parent != folder):
        return "folder"
    if images:
        raise UserError(
            f"The folder {folder} holds images and no folders of them, so their classes are not "
            "known; put each class into a folder."
        )
    raise UserError(
        f"The folder {folder} holds no replay_buffer_*.pt, no class folders of images and no "
        f"parquet files ({_held(names)}); give the files with --files."
    )


def _held(names: Sequence[str]) -> str:
    """What a folder of these names holds, in words."""
    if not names:
        return "it is empty"
    first = ", ".join(sorted(names)[:3])
    return f"it holds {first} and more" if len(names) > 3 else f"it holds {first}"


def _has(folder: Path, wanted: Callable[[Path], bool]) -> bool:
    """Whether any file below a folder that can belong to a dataset is wanted."""
    for path, regular in files_below(folder):
        if regular and wanted(Path(path)):
            return True
    return False


def _parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder.

    Where there are several splits, those of another one than training are left out.
    """
    paths = parquet.files(folder)
    used, notes = parquet.training_files(parquet.by_split(paths, folder))
    for note in notes:
        log.say(note)
    left_out = [path.name for path in paths if path not in used]
    if left_out:
        log.say(f"not imported: {listed(left_out)}")
    return used


# Files


def _head(path: Path, length: int = 4) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --files.") from None


def _file_kind(path: Path) -> tuple[Kind, Any]:
    """(kind, content) of a file. Raises UserError, saying what it is, for another kind of file."""
    head = _head(path, 16)
    if head.startswith(b"PAR1"):
        return "parquet", None
    _refuse_arrays(path, head)
    if not head.startswith((b"PK", b"\x80")) and (image := _image_format(path)):
        raise UserError(
            f"{path} is an image ({image}); give the folder that holds a folder of images for "
            "each class."
        )
    content = state_dicts.load_any(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list | tuple):
        return "images", content
    if state_dicts.is_safetensors(path):
        if {"images", "classes"} <= set(content):
            raise UserError(
                f"{path} belongs to a distilled set of this program, which needs no import; "
                "evaluate its folder with run.py evaluate."
            )
    else:
        content = exchange.named_pair(content) or content
    kind = _content_kind(content)
    if kind is None:
        raise UserError(
            f"{path} holds {exchange.described(content)}, which is no kind of experts, networks or "
            f"images; {WANTED}."
        )
    return kind, content


def _content_kind(content: Any) -> Kind | None:
    """What the content of a file of torch.save or safetensors is; None for anything unknown."""
    if state_dicts.find(content) is not None:
        return "networks"
    if exchange.is_pair(content) or isinstance(content, torch.Tensor):
        return "images"
    if not isinstance(content, list | tuple) or not content:
        return None
    return "experts" if exchange.all_are(content, list | tuple) else None


def _refuse_arrays(path: Path, head: bytes) -> None:
    """Raise UserError for arrays of numpy, alone in a file or several."""
    if head.startswith(b"\x93NUMPY"):
        raise UserError(
            f"{path} holds a numpy array{_numpy_shape(path)}; save it as a tensor, "
            f"torch.save(torch.from_numpy(...)), or {WANTED}."
        )
    arrays = _zipped_arrays(path) if head.startswith(b"PK") else []
    if arrays:
        raise UserError(
            f"{path} holds numpy arrays ({', '.join(arrays[:4])}); save one as a tensor, "
            f"torch.save(torch.from_numpy(...)), or {WANTED}."
        )


def _numpy_shape(path: Path) -> str:
    """' of shape (...)', as far as the head of the file says it."""
    try:
        with path.open("rb") as file:
            major, _ = np.lib.format.read_magic(file)
            if major == 1:
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        return f" of shape {shape} ({dtype})"
    except (OSError, ValueError):
        return ""


def _zipped_arrays(path: Path) -> list[str]:
    """Names of the arrays in a file of numpy.savez."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # damage, also names that are no text (ValueError), and what zipfile does not know
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error):
        return []
    arrays = []
    for name in names:
        if name.endswith(".npy"):
            arrays.append(name.removesuffix(".npy"))
    return arrays


def _image_format(path: Path) -> str | None:
    """The format of an image file; None for any other file."""
    try:
        with Image.open(path) as image:
            return image.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
