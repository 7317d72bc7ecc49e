"""Images that are decoded once, into files that are mapped into memory.

Where the pixels of a split are many beside the memory there is, or --data.cache names a folder,
they are decoded into a file of a folder of their own (`block_file.py`), which is named after a
fingerprint of all that decides them: name, size and time of change of every file, the settings of
decoding, the version of Pillow, the labels. Runs that read the same images share it. It holds

    begun.json          what is being decoded
    pixels.u8           (N, C, H, W) uint8
    blocks.jsonl        which blocks are decoded, while it is not finished
    images.safetensors  what was found out of each image, so that no later run looks at all of them
    manifest.json       once it is finished: all the digests

A kill loses the block that was being decoded. Several processes that want the same images decode
them once: the others wait.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddengine.data.checks import Looks
from ddengine.data.decoder import Seen, Undecoded
from ddengine.data.decoding import (
    BEGUN,
    FORMAT,
    LINES,
    MANIFEST,
    OF_IMAGES,
    PIXELS,
    Making,
    Wanted,
    check_unfinished,
    file_of,
)
from ddengine.recipe import DataConfig
from ddengine.system import claims, digests, files
from ddengine.system.errors import UserError
from ddengine.system.runtime import available_memory
from ddengine.types import Json

AUTO, NONE = "auto", "none"  # values of data.cache that name no folder
# the folder of AUTO: that of before, in the folder where a command was started, where it is there,
# else one that all commands of a person find wherever they are started
OF_BEFORE = Path("runs", ".images")
OF_PERSON = Path("ddengine", "images")  # in $XDG_CACHE_HOME, or ~/.cache
SHARE = 0.25  # of the memory there is; pixels that take more are not held in it
MARK = "decoded.json"  # says that a folder is one of caches
KEYS = ("of", "shape", "per_block", "white", "settled", "several", "cut", "blocks", "digest")


@dataclass(frozen=True)
class Cached:
    """Decoded images, and what was found out of them when they were."""

    pixels: Tensor  # (N, C, H, W) uint8, mapped into memory
    looks: Looks  # of all of them
    counts: Tensor  # (C, 256) int64: `histogram` of the first ones
    digest: str  # `images_digest` of the first ones


# Whether there is one.


def check_setting(config: DataConfig, undecoded: Undecoded | None) -> None:
    """Raise UserError for a folder in data.cache that cannot be one, or where none is needed."""
    if config.cache in (AUTO, NONE):
        return
    if undecoded is None:
        raise UserError(
            f"data.cache {config.cache} is a folder for decoded images, and those of {config.name} "
            "are stored as pixels; leave data.cache out."
        )
    folder_of(config)


def is_wanted(undecoded: Undecoded, index: np.ndarray, config: DataConfig) -> bool:
    """Whether images are decoded into files: as data.cache says, or as their number and size do."""
    if config.cache != AUTO:
        return config.cache != NONE
    size = undecoded.decoder.size_at(int(index[0]), undecoded.files)
    if size is None:  # it is said of what cannot be read where it is read
        return False
    needed = 3 * len(index) * math.prod(size)
    return needed > SHARE * available_memory(torch.device("cpu"))


def folder_of(config: DataConfig) -> Path:
    """The folder of caches that data.cache names.

    Raises UserError for one that is a file, holds anything else, or lies where images are read.
    """
    root = default_folder() if config.cache == AUTO else Path(config.cache)
    if root.exists() and not root.is_dir():
        raise UserError(f"data.cache {root} is a file; name a folder, or none.")
    if root.is_dir() and not (root / MARK).is_file() and files.contents(root):
        raise UserError(
            f"data.cache {root} holds other things than decoded images; name a folder of its own."
        )
    _check_outside(root, config)
    return root


def default_folder() -> Path:
    """The absolute path of the folder of caches that is used where none is named."""
    if (OF_BEFORE / MARK).is_file():
        return OF_BEFORE.absolute()
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if stated.is_absolute():  # another is to be ignored, says the XDG Base Directory Specification
        return stated / OF_PERSON
    try:
        return Path.home() / ".cache" / OF_PERSON
    except RuntimeError:  # of a person without a home, as in some containers
        return OF_BEFORE.absolute()


def _check_outside(root: Path, config: DataConfig) -> None:
    """Raise UserError for a folder that was named, and lies among those that images are read of."""
    if config.root is None or config.cache == AUTO:
        return
    if files.without_links(root).is_relative_to(files.without_links(Path(config.root))):
        raise UserError(
            f"data.cache {root} lies in data.root {config.root}, where folders are read as "
            "classes; name a folder elsewhere."
        )


# Making and opening.


def decoded(wanted: Wanted, config: DataConfig) -> Cached:
    """The images, which are decoded where that has not been done yet.

    Raises UserError for images that cannot be read, a folder that cannot be used, a disk without
    room, and decoded images that are damaged.
    """
    root = folder_of(config)
    of = wanted.identity()
    folder = root / digests.of_facts(of)[:16]
    if not (folder / MANIFEST).is_file():
        _make(wanted, of, folder)
    return _opened(wanted, of, folder)


def _make(wanted: Wanted, of: Json, folder: Path) -> None:
    """Decode the images, unless another process does; then wait for it."""
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / MARK).is_file():
            files.write_json(root / MARK, {"format": FORMAT, "holds": "decoded images"})
    except OSError as error:
        raise UserError(
            f"data.cache {root} cannot be written ({error.strerror}); name another folder with "
            "--data.cache, or none to hold the images in memory."
        ) from None
    with claims.waiting(), claims.claimed(folder, "decoding images", every_rank=True):
        if not (folder / MANIFEST).is_file():
            Making(wanted, of, folder).run()


def _opened(wanted: Wanted, of: Json, folder: Path) -> Cached:
    """Finished decoded images. Raises UserError for damaged ones."""
    manifest = check(folder)
    if manifest["of"] != of:
        raise _damaged(folder, "it says that it is of other images")
    for name in (LINES, BEGUN):  # a kill may have left them, and the folder may not be ours
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    tensors, _ = files.read_tensors(folder / OF_IMAGES)
    decoder = wanted.decoder
    decoder.scales.white.update(manifest["white"])
    _add_new(decoder.notes, manifest["settled"])
    decoder.give_seen(Seen(tuple(manifest["several"]), manifest["cut"]))
    decoder.say_what_was_seen()
    looks = Looks(tensors["flat"].numpy(), tensors["digests"].numpy())
    pixels = file_of(folder, manifest).mapped()
    return Cached(pixels, looks, tensors["counts"], manifest["digest"])


def check(folder: Path) -> Json:
    """Compare finished decoded images with their digests; what the manifest says.

    Raises UserError for damaged ones.
    """
    try:
        manifest = files.read_json(folder / MANIFEST, *KEYS)
        stated = files.check_tensors(folder / OF_IMAGES)
    except UserError as error:
        raise _damaged(folder, str(error).partition(";")[0]) from None
    if stated != manifest["digests"][OF_IMAGES]:
        raise _damaged(folder, f"{OF_IMAGES} is not the one that it was made with")
    file = file_of(folder, manifest)
    size = file.path.stat().st_size if file.path.is_file() else 0
    if size != file.bytes:
        raise _damaged(folder, f"{PIXELS} has {size} bytes and should have {file.bytes}")
    differing = file.differing(manifest["blocks"])
    if differing:
        num = file.num_blocks
        raise _damaged(folder, f"{len(differing)} of {num} blocks are not those that were written")
    return manifest


def check_begun(folder: Path) -> None:
    """Compare the blocks that are decoded so far with their digests. Raises UserError."""
    if check_unfinished(folder):
        raise _damaged(folder, "some blocks are not those that were written")


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(
        f"The decoded images in {folder} are damaged ({why}); delete that folder, and the command "
        "that reads them decodes them again."
    )


def _add_new(notes: list[str], more: Sequence[str]) -> None:
    for note in more:
        if note not in notes:
            notes.append(note)
