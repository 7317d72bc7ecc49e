"""Pixels in a file that is mapped into memory, with a digest for each block of images.

The file holds (N, C, H, W) uint8 and nothing else. Only the pages of images that are looked at are
read, and the system gives them up where memory is short, because the file still has them.
"""

import errno
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddengine.system import digests, files, log
from ddengine.system.errors import UserError

BLOCK = 2**24  # bytes of a block, but at least one image
THREADS = 8  # at most, that compare blocks with their digests
SHOWN = 64  # blocks; where there are more, it is shown how many have been compared
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class BlockFile:
    """Such a file."""

    path: Path
    shape: tuple[int, int, int, int]  # (N, C, H, W)
    per_block: int  # images of a block; the last may have fewer

    @classmethod
    def new(cls, path: Path, shape: tuple[int, int, int, int]) -> "BlockFile":
        """One with blocks of the usual size; nothing is written yet."""
        return cls(path, shape, max(1, BLOCK // math.prod(shape[1:])))

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape)

    @property
    def num_blocks(self) -> int:
        """Blocks of the file."""
        return math.ceil(self.shape[0] / self.per_block)

    def images_of(self, number: int) -> range:
        """The images of a block."""
        first = number * self.per_block
        return range(first, min(first + self.per_block, self.shape[0]))

    def reserve(self) -> None:
        """Make the file as large as it is to be; what it holds already stays.

        Raises UserError where the disk has no room for it.
        """
        with self._opened(os.O_RDWR | os.O_CREAT) as handle:
            try:
                os.posix_fallocate(handle, 0, self.bytes)
            except OSError as error:
                if error.errno not in (*NO_ROOM, *CANNOT_RESERVE):
                    raise
                if error.errno in NO_ROOM:
                    os.ftruncate(handle, 0)
                    raise UserError(
                        f"{self.path.parent} has no room for the decoded images, which take "
                        f"{log.size(self.bytes)} ({error.strerror}); name a folder on another disk "
                        "with --data.cache, or lower data.size or data.limit."
                    ) from None
            os.ftruncate(handle, self.bytes)

    def write(self, number: int, pixels: np.ndarray) -> str:
        """Write the images of a block (B, C, H, W); their digest, once the disk has them."""
        content = np.ascontiguousarray(pixels).tobytes()
        with self._opened(os.O_RDWR) as handle:
            written = 0
            while written < len(content):
                at = self._start(number) + written
                written += os.pwrite(handle, content[written:], at)
            os.fsync(handle)
        return digests.of_bytes(content)

    def digest_of(self, number: int) -> str:
        """That of the bytes that a block has now."""
        size = len(self.images_of(number)) * math.prod(self.shape[1:])
        with self._opened(os.O_RDONLY) as handle:
            return digests.of_bytes(os.pread(handle, size, self._start(number)))

    def differing(self, wanted: Sequence[str | None]) -> list[int]:
        """The blocks whose digests are not those that are wanted; None asks for none."""
        asked = [number for number, digest in enumerate(wanted) if digest is not None]
        differing = []
        shown = len(asked) > SHOWN
        with _counted("comparing decoded images", len(asked), shown) as bar, _threads() as pool:
            for number, digest in zip(asked, pool.map(self.digest_of, asked), strict=True):
                if digest != wanted[number]:
                    differing.append(number)
                if bar is not None:
                    bar.advance()
        return differing

    def mapped(self) -> Tensor:
        """The pixels (N, C, H, W), which cannot be changed."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(np.memmap(self.path, np.uint8, "r", shape=self.shape))

    def _start(self, number: int) -> int:
        """Where a block begins, in bytes."""
        return number * self.per_block * math.prod(self.shape[1:])

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        with files.naming(self.path):
            handle = os.open(self.path, flags | os.O_CLOEXEC, 0o666)
            try:
                yield handle
            finally:
                os.close(handle)


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))


@contextmanager
def _counted(title: str, total: int, shown: bool) -> Iterator[log.Bar | None]:
    """A bar, or None where it is not shown."""
    if not shown:
        yield None
        return
    with log.progress(title, total) as bar:
        yield bar
