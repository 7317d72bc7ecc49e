"""Folders that a command works in, so that no second one works in them at the same time.

A claim is a file, `.lock` in a folder or `.NAME.lock` beside a file, that says who works there, and
that the kernel locks (`flock`) for as long as the process lives. A killed process leaves the file
and no lock, so the next command takes it over. On network file systems the lock reaches as far as
theirs do: NFS passes it on to other machines (Linux 2.6.12 and newer, with a lock service); where
there are no locks at all this is said, and nothing is kept apart.

`flock` costs 23 microseconds; the package filelock, measured beside it, 134 and 45 milliseconds to
import, and has no room for who works there.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

from ddengine.system import dist, files, log
from ddengine.system.errors import UserError

# what flock says on file systems without locks
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# the claims of this command, which may claim again what it has
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
_patient: ContextVar[bool] = ContextVar("patient", default=False)


@contextmanager
def waiting(wanted: bool = True) -> Iterator[None]:
    """Within the block a folder that another command works in is waited for.

        with ddengine.waiting():
            ddengine.distill(data, recipe, folder="runs/mine")

    Otherwise it is refused.
    """
    token = _patient.set(wanted)
    try:
        yield
    finally:
        _patient.reset(token)


def wait_for_others() -> None:
    """Let all that is claimed from now on be waited for, as `waiting` does."""
    _patient.set(True)


def waits() -> bool:
    """Whether what is claimed is waited for."""
    return _patient.get()


@contextmanager
def claimed(folder: Path | None, command: str, *, every_rank: bool = False) -> Iterator[None]:
    """Within the block no other command works in a folder, which is made where it is not there.

    What a killed command left unfinished in the folder itself is removed (`files.clean`). Of
    several ranks the first holds the claim. None claims nothing.

    Args:
        folder: that is worked in; one that is made and still empty in the end is removed, with
            the parents that were made for it.
        command: what works there, for the sentence that another one gets.
        every_rank: whether all ranks claim it, one after another.

    Raises:
        UserError: where another command works there and is not waited for, and where a symbolic
            link in the folder leads out of it.
    """
    if folder is None:
        yield
        return
    with _locked(folder, folder / files.LOCK, command, every_rank) as is_new:
        files.refuse_links(folder)
        if is_new:
            files.clean(folder)
        yield


@contextmanager
def claimed_file(path: Path, command: str) -> Iterator[None]:
    """Within the block no other command writes a file; otherwise as `claimed`."""
    if not path.name:
        raise UserError(f"'{path}' is a folder, and a file is to be written; give it a name.")
    with _locked(path, files.lock_of(path), command) as is_new:
        if is_new:
            files.clean(path.parent, path.name)
        yield


@contextmanager
def _locked(of: Path, lock: Path, command: str, every_rank: bool = False) -> Iterator[bool]:
    """Within the block `lock` is this command's, which works in `of`.

    Gives whether it was not before, and this process holds it.
    """
    files.check_name(of)
    key = files.without_links(lock)
    if key in _held.get() or (dist.rank() != 0 and not every_rank):
        yield False
        return
    new = [folder for folder in lock.parents if not folder.exists()]
    handle = _acquired(of, lock, command)
    token = _held.set(_held.get() | {key})
    try:
        yield True
    finally:
        _held.reset(token)
        if _is_at(handle, lock):  # and not that of another command, where ours went with a folder
            lock.unlink()
        os.close(handle)
        with suppress(OSError):  # one that is not empty stays
            for folder in new:
                folder.rmdir()


# Folders that are read: not deleted by another command, and read by any number.

_readers: dict[tuple[int, int], set[int]] = {}  # open files of this process, by device and inode


def reads(reader: object, file: Path) -> None:
    """No other command deletes the folder of a file (`refuse_read`) before `reader` is gone.

    It may write there. Where there are no locks nothing is kept apart.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it is said of it where it is read
        return
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    key = _key(handle)
    _readers.setdefault(key, set()).add(handle)
    weakref.finalize(reader, _read_no_more, key, handle)


def _read_no_more(key: tuple[int, int], handle: int) -> None:
    _readers[key].discard(handle)
    os.close(handle)


def refuse_read(file: Path) -> None:
    """Raise UserError where another command reads the folder of a file."""
    if not file.is_file():
        return
    handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    own = _readers.get(_key(handle), set())
    try:
        for reader in own:
            fcntl.flock(reader, fcntl.LOCK_UN)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except BlockingIOError:
        raise UserError(
            f"Another command reads {file.parent}, which cannot be deleted meanwhile; end it or "
            "wait for its end, or name another folder with --out."
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    finally:
        os.close(handle)
        for reader in own:
            with suppress(OSError):
                fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _key(handle: int) -> tuple[int, int]:
    """What tells an open file from any other."""
    facts = os.fstat(handle)
    return facts.st_dev, facts.st_ino


def _acquired(of: Path, lock: Path, command: str) -> int:
    """The open lock file, which is locked and says who works in `of`."""
    said = False
    while True:
        files.make_folder(lock.parent)
        handle = _opened(lock)
        try:
            if not _try(handle, of):
                said = said or _say_or_refuse(of, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, lock):
                _write_who(handle, command)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who had it has removed the file since


def _opened(lock: Path) -> int:
    """The open lock file, which is made where it is not there.

    Raises UserError for what is no file, such as a link, which could lead anywhere, or a pipe.
    """
    how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    other = UserError(f"{lock} is no file of this program; remove it.")
    try:
        handle = os.open(lock, how, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise other from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise other
    return handle


def _try(handle: int, of: Path) -> bool:
    """Take the lock of an open file; False where another process holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        log.say(
            f"warning: the file system of {of} has no locks, so take care that no other command "
            "works there"
        )
    return True


def _say_or_refuse(of: Path, handle: int) -> bool:
    """Say whom this command waits for. Raises UserError where it does not."""
    who = _who(handle)
    if not waits():
        raise UserError(
            f"Another command works in {of} ({who}); wait for it (--wait does), or name another "
            "folder with --out."
        )
    log.say(f"waiting for another command that works in {of} ({who})")
    return True


def _is_at(handle: int, lock: Path) -> bool:
    """Whether an open file is still the one with that name."""
    try:
        at = lock.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(handle)
    return (opened.st_dev, opened.st_ino) == (at.st_dev, at.st_ino)


def _write_who(handle: int, command: str) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    facts = {"command": command, "process": os.getpid(), "host": socket.gethostname()}
    os.ftruncate(handle, 0)
    os.pwrite(handle, files.to_json(facts | {"since": since}).encode(), 0)


def _who(handle: int) -> str:
    """What a lock file says of who holds it, in words."""
    try:
        facts = json.loads(os.pread(handle, 4096, 0))
        command, process = str(facts["command"]), int(facts["process"])
        return f"{command}, process {process} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):  # it has begun this very moment
        return "since a moment ago"
