"""Writing files and folders so that a kill leaves the old or the new one, never half of one."""

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ddengine.system import digests
from ddengine.system.errors import UserError
from ddengine.system.parsing import check_regular, content_of, parsed

TEMPORARY = ".writing-"  # prefix of what is not finished
LONGEST = 150  # characters of a name that a temporary one repeats
OLD = f"{TEMPORARY}old-"  # prefix of a folder that another one is taking the place of
NAME_BEHIND = "~"  # what stands before the name of what is written
APPENDED = (".jsonl",)  # names of files that lines are added to end so
LOCK = ".lock"  # of a folder that a command works in
# what fsync says where a file system has none, of folders too
WITHOUT_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_numbers = itertools.count()


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises UserError when that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(path / "probe")
        probe.touch()
        probe.unlink(missing_ok=True)  # who has just claimed the folder may have cleaned it
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose another folder with --out."
        ) from None
    return path


def check_name(path: Path) -> None:
    """Raise UserError for a name that no file of this program can have, or its folder."""
    if "\0" in str(path) or as_text(str(path)) != str(path):
        raise UserError(
            f"{path} has a name with bytes that are no text (UTF-8); name another with --out."
        )


def without_links(path: Path) -> Path:
    """The absolute path that a path leads to; where links lead in a circle, that of one of them."""
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError there


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise UserError for the first of these files that exists."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists already; name another folder with --out.")


def refuse_full(folder: Path) -> None:
    """Raise UserError for a folder that holds anything, or is none."""
    if folder.exists() and (not folder.is_dir() or contents(folder)):
        raise UserError(f"{folder} exists already; name another folder with --out.")


def contents(folder: Path) -> list[Path]:
    """What lies in a folder, but for what a command that works there needs itself."""
    kept = []
    for path in sorted(folder.iterdir()):
        if path.name != LOCK and not path.name.startswith(TEMPORARY):
            kept.append(path)
    return kept


def refuse_links(folder: Path) -> None:
    """Raise UserError for a symbolic link in a folder through which something would be written.

    That is one to a folder, and one to a file that lines are added to; other files are replaced,
    and with them the link.
    """
    for where, folders, names in os.walk(folder):
        appended = [name for name in names if name.endswith(APPENDED)]
        for name in (*folders, *appended):
            path = Path(where, name)
            if path.is_symlink():
                raise UserError(
                    f"{path} is a symbolic link to {os.readlink(path)}, and nothing is written "
                    f"through links out of {folder}; put what it points to in its place."
                )


def empty(folder: Path) -> None:
    """Remove all that lies in a folder, but for the lock of the command that works there."""
    for path in folder.iterdir():
        if path.name != LOCK:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # of another command, which has finished it


def lock_of(path: Path) -> Path:
    """The lock of a file that is claimed alone."""
    return path.with_name(f".{path.name}{LOCK}")


def clean(folder: Path, name: str | None = None) -> None:
    """Remove what a killed process left unfinished, and put back what it had put aside.

    For a folder in which no other command works, but for files that are claimed alone, which stay
    to who claims them next; or of one file or folder there, by its name.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        place = path.with_name(path.name.partition(NAME_BEHIND)[2] or path.name)
        if lock_of(place).exists() if name is None else place.name != name[-LONGEST:]:
            continue
        if path.name.startswith(OLD) and not place.exists():
            path.rename(place)
        else:
            _remove(path)


def clean_below(folder: Path) -> None:
    """Do what `clean` does in a folder and in all folders below it, of which none is another's."""
    for parent in sorted({path.parent for path in folder.rglob(f"{TEMPORARY}*")}):
        if parent.is_dir():  # and did not go with what was unfinished itself
            clean(parent)


def temporary_name(path: Path, prefix: str = TEMPORARY) -> Path:
    """A path beside `path` that no other process, here or on another machine, writes to."""
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())[:32]
    who = f"{host}-{os.getpid()}-{next(_numbers)}"
    return path.with_name(f"{prefix}{who}{NAME_BEHIND}{path.name[-LONGEST:]}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds.

    Both are a file or a folder.

    Raises UserError, and leaves `path` as it is, where a file would take the place of a folder or a
    folder that of a file.
    """
    if not path.name:
        raise UserError(f"'{path}' is a folder, and a file is to be written; give it a name.")
    temporary = temporary_name(path)
    try:
        with naming(path):
            yield temporary
            _put_in_place(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an error of the file system that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def final_name(name: object) -> str:
    """The path that a temporary one is to become; of any other itself."""
    path = Path(os.fsdecode(name) if isinstance(name, bytes) else str(name))
    if not path.name.startswith(TEMPORARY):
        return str(path)
    return str(path.with_name(path.name.partition(NAME_BEHIND)[2] or path.name))


def _put_in_place(temporary: Path, path: Path) -> None:
    """Let what is at `temporary` take the place of `path`, both a file or a folder."""
    if path.is_dir() and not temporary.is_dir():
        raise UserError(f"{path} is a folder; name a file.")
    if path.exists() and temporary.is_dir() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder.")
    replaces = path.exists()
    if replaces:  # else a power cut could leave neither the old nor the new one
        _flush_all(temporary)
    if path.is_dir():  # a folder cannot be renamed onto a full one
        old = temporary_name(path, OLD)
        path.rename(old)
        temporary.rename(path)
        _remove(old)
    else:
        os.replace(temporary, path)
    if replaces:
        _flush(path.parent)


def _flush_all(path: Path) -> None:
    """Let the disk have a file, or all that lies below a folder."""
    if path.is_dir():
        for below in path.rglob("*"):
            _flush(below)
    _flush(path)


def _flush(path: Path) -> None:
    """Let the disk have the bytes of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in WITHOUT_FSYNC:
            raise
    finally:
        os.close(handle)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of plain data.

    Numbers that are not finite, which JSON does not have, become null, and bytes of names of files
    that are no text question marks.
    """
    text = json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else as_text(text)


def as_text(name: str) -> str:
    """A name that can be written in UTF-8, which Linux does not ask of the names of files."""
    return name.encode(errors="replace").decode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8, its lines ended as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode(errors="replace"))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the digest of what its JSON text says."""
    content = json.loads(to_json(value))
    content.pop(digests.KEY, None)
    return content | {digests.KEY: digests.of_facts(content)}


def write_json(path: Path, value: Any, *, seal: bool = True) -> None:
    """JSON with a final newline; see `to_json`. An object says its digest, but not without `seal`.

    Nobody else reads what has one.
    """
    content = sealed(value) if seal and isinstance(value, Mapping) else value
    with replacing(path) as temporary:
        temporary.write_bytes(to_json(content, indent=1).encode() + b"\n")


def unsealed(path: Path, content: Any) -> Any:
    """What a JSON file says, but for its digest, where it says one.

    Raises UserError where that is not the digest of the rest.
    """
    if not isinstance(content, dict) or digests.KEY not in content:
        return content
    rest = dict(content)
    if rest.pop(digests.KEY) != digests.of_facts(rest):
        raise UserError(
            f"{path} was changed after it was written, so its digest no longer fits; restore it or "
            f"run the command that wrote it again (or take {digests.KEY!r} out of it, where you "
            "changed it yourself)."
        )
    return rest


def read_json(path: Path, *keys: str) -> Any:
    """The content of a JSON file, without its digest.

    Raises UserError when it is missing, damaged, changed, or not an object with these keys.
    """
    content, _ = read_sealed(path, *keys)
    return content


def read_sealed(path: Path, *keys: str) -> tuple[Any, bool]:
    """The content of a JSON file, as `read_json` reads it, and whether it says its digest."""
    try:
        stored = parsed(content_of(path))
        content = unsealed(path, stored)
        held = content.keys() if isinstance(content, dict) else ()
        missing = [key for key in keys if key not in held]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return content, content is not stored
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, str(error)) from None


def unreadable(path: Path, why: str) -> UserError:
    """The error for a file that does not hold what belongs there."""
    return UserError(
        f"{path} cannot be read ({why}); restore it or run the command that wrote it again."
    )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, which says its digest, and return that."""
    stored = {}
    for name, tensor in tensors.items():
        stored[name] = tensor.detach().cpu().contiguous()
    digest, parts = digests.with_digest(save(stored, dict(metadata or {})))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)
    return digest


@contextmanager
def reading_tensors(path: Path) -> Iterator[Any]:
    """The open safetensors file. Raises UserError when it is missing, truncated or damaged."""
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise error if isinstance(error, UserError) else damaged(path, str(error)) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises UserError when it is missing, damaged or changed.
    """
    check_tensors(path)
    tensors = {}
    with reading_tensors(path) as file:
        for name in file.keys():
            tensors[name] = file.get_tensor(name)
        return tensors, file.metadata() or {}


def read_tensor(path: Path, name: str, shape: Sequence[int]) -> Tensor:
    """A tensor of a safetensors file, whose shape must be `shape`; -1 stands for any number.

    Raises UserError when the file is missing, damaged or changed, or holds no such tensor.
    """
    tensors, _ = read_tensors(path)
    if name not in tensors:
        raise damaged(path, f"it does not hold {name!r}")
    held = tuple(tensors[name].shape)
    fits = [wanted in (-1, size) for wanted, size in zip(shape, held, strict=False)]
    if len(held) != len(shape) or not all(fits):
        raise damaged(path, f"{name!r} is of shape {held}, and must be of {tuple(shape)}")
    return tensors[name]


def check_tensors(path: Path) -> str | None:
    """Compare the bytes of a safetensors file with the digest that it says.

    Returns the digest; None where it says none, as those of before. Raises UserError when it is
    missing, damaged or changed.
    """
    try:
        stated, computed = digests.stated_and_computed(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from None
    if stated is not None and stated != computed:
        raise damaged(path, "its bytes are not those that were written")
    return stated


def damaged(path: Path, why: str) -> UserError:
    """The error for a file that holds something else than was written."""
    return UserError(
        f"{path} is damaged ({why}); delete it and run the command that wrote it again."
    )


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits that identify named tensors to the bit."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        shape = tuple(tensor.shape)
        sha.update(repr((name, tensor.dtype, shape)).encode())
        plain = tensor.detach().cpu().contiguous()
        if plain.dtype == torch.bfloat16:  # which numpy does not know
            plain = plain.view(torch.int16)
        sha.update(memoryview(plain.numpy()))  # type: ignore[arg-type]
    return sha.hexdigest()[:12]
