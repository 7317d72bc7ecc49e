"""Archives that torch.save writes, whose checksums torch.load does not compare."""

import zipfile
from pathlib import Path

from ddengine.system.errors import UserError
from ddengine.system.runtime import check_memory


def check_sums(path: Path) -> None:
    """Raise UserError for an archive with a damaged part, or that unpacks to more than memory."""
    if not zipfile.is_zipfile(path):  # as torch wrote before version 1.6
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
        check_memory(f"What {path} says it holds", unpacked, "get another file")
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path} is damaged in {damaged!r}; get the file again.")
