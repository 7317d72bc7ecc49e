"""Whether the files of a folder are those that were written: every digest that is said is computed.

A file says the digest of itself; meta.json and manifest.json say those of the files beside them,
and an evaluation that of its set. Pictures, cards, parquet files and load.py of a set, and what an
export wrote, are listed with their digests (`listing.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddengine import contents, naming
from ddengine.artefact import listing
from ddengine.artefact.markdown import at
from ddengine.artefact.results import check_of_set
from ddengine.data import cache, decoding
from ddengine.system import digests, files
from ddengine.system.errors import UserError
from ddengine.system.parsing import content_of, parsed
from ddengine.types import Json

SOUND = "sound"
WITHOUT = "says no digest"
META = "meta.json"
DATA = "data.safetensors"
MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
LOG = "metrics.jsonl"
KINDS = (".json", ".jsonl", ".safetensors", decoding.SUFFIX)
SHARD = "expert_"
HIDDEN = "."


@dataclass(frozen=True)
class Checked:
    """A file, and what came of comparing it with its digests."""

    path: Path
    state: str  # SOUND, WITHOUT, or what is wrong in a sentence

    @property
    def is_damaged(self) -> bool:
        """Whether it is another file than was written, or none."""
        return self.state not in (SOUND, WITHOUT)


def verify(path: Path) -> list[Checked]:
    """Compare a file, or all files below a folder, with the digests that are said of them.

    Raises UserError for a path that is not there, or holds no file with a digest.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    checked = []
    for file in _files(path):
        checked.append(Checked(file, _state(file)))
    for folder in dict.fromkeys(one.path.parent for one in checked):
        checked += _missing(folder)
    checked += _listed(path, {one.path for one in checked if one.state != WITHOUT})
    if not checked:
        raise UserError(
            f"{path} holds no file of this program that has a digest; give the folder of a store, "
            "a run or a set."
        )
    return checked


def _files(path: Path) -> Iterator[Path]:
    """The files that can say a digest, but those of a command that is at work."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(HIDDEN) for part in file.relative_to(path).parts)
        if file.suffix in KINDS and not hidden and file.is_file():
            yield file


def _listed(path: Path, known: set[Path]) -> list[Checked]:
    """The files below a path that are listed, but those that say a digest of their own."""
    checked = []
    for listed in sorted(path.rglob(listing.LISTING) if path.is_dir() else ()):
        try:
            for file, wrong in listing.wrong(listed):
                if file not in known:
                    checked.append(Checked(file, wrong or SOUND))
        except UserError as error:
            checked.append(Checked(listed, str(error)))
    return checked


def _state(path: Path) -> str:
    """What came of comparing a file with what it says itself, and what others say of it."""
    try:
        if path.suffix == ".safetensors":
            return _of_tensors(path)
        if path.suffix == ".json":
            return _of_facts(path)
        if path.suffix == decoding.SUFFIX:
            return _of_pixels(path.parent)
        return _of_lines(path)
    except UserError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({error}); restore it."


def _of_tensors(path: Path) -> str:
    stated = files.check_tensors(path)
    for beside in (META, MANIFEST):
        wanted = at(_said(path.with_name(beside)), "digests", path.name)
        if wanted is not None and wanted != stated:
            return f"{path} is not the file that {beside} beside it was written with; restore it."
    is_shard = path.name.startswith(SHARD)
    if stated is None and is_shard and "digests" in _said(path.with_name(MANIFEST)):
        return f"{path} is damaged (it says no digest); run the buffer command again."
    return SOUND if stated is not None else WITHOUT


def _of_pixels(folder: Path) -> str:
    """What came of decoded images, whose digests their manifest says, or what was begun."""
    if (folder / MANIFEST).is_file():
        cache.check(folder)
    else:
        cache.check_begun(folder)
    return SOUND


def _of_facts(path: Path) -> str:
    content = parsed(content_of(path))
    rest = contents.checked(path, files.unsealed(path, content))
    if path.name == EVALUATION:
        for folder in (path.parent / "distilled", path.parent):
            check_of_set(path, naming.as_now(rest), _said(folder / META))
    if rest is not content:
        return SOUND
    data = path.with_name(DATA)
    if path.name == META and at(content, "digests") is None and data.is_file():
        if files.check_tensors(data) is not None:
            return f"{path} is damaged (it does not say what {DATA} beside it is); restore it."
    return WITHOUT


def _of_lines(path: Path) -> str:
    """What came of a log, whose digest its set says, or of lines that say theirs."""
    content = content_of(path)
    if path.name == LOG:
        stated = at(_said(path.parent / "distilled" / META), "distillation", "log_digest")
        if stated is None:
            return WITHOUT
        if stated == digests.of_bytes(content):
            return SOUND
        return f"{path} is not as the run left it; curves made of it may be wrong."
    lines = [parsed(line) for line in content.splitlines()]
    without = [line for line in lines if files.unsealed(path, line) is line]
    return WITHOUT if without or not lines else SOUND


def _said(path: Path) -> Json:
    """What a JSON file says; nothing where there is none that can be read."""
    try:
        content: Any = contents.read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _missing(folder: Path) -> list[Checked]:
    """The files that a folder should hold and does not."""
    missing = []
    for beside in (META, MANIFEST):
        for name in _said(folder / beside).get("digests") or {}:
            if not (folder / name).is_file():
                missing.append(Checked(folder / name, f"{folder / name} is missing; restore it."))
    pixels = folder / decoding.PIXELS
    if (folder / decoding.OF_IMAGES).is_file() and not pixels.is_file():
        missing.append(Checked(pixels, f"{pixels} is missing; delete {folder}."))
    return missing + _missing_shards(folder)


def _missing_shards(folder: Path) -> list[Checked]:
    """Experts of a store that lack while later ones are there."""
    if (folder / decoding.OF_IMAGES).is_file() or not (folder / MANIFEST).is_file():
        return []
    names = {path.name for path in folder.glob(f"{SHARD}*.safetensors")}
    missing, number, left = [], 0, len(names)
    while left:
        name = f"{SHARD}{number:04d}.safetensors"
        if name in names:
            left -= 1
        else:
            said = f"{folder / name} is missing; run the buffer command again, which trains it."
            missing.append(Checked(folder / name, said))
        number += 1
        if number > 10 * len(names) + 1000:  # files of other names
            break
    return missing
