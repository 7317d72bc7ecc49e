"""The work of decoding images once, into the files that data/cache.py opens.

Block by block, so that a kill loses one block and what was decoded before it goes into the same
file.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddengine.data.block_file import BlockFile
from ddengine.data.checks import looks_of
from ddengine.data.decoder import CHUNK, Decoder, NeedsColour, NeedsScale, Seen, Undecoded
from ddengine.data.images import Unreadable
from ddengine.data.preprocess import histogram
from ddengine.data.realset import images_digest
from ddengine.system import digests, files, log
from ddengine.system.errors import UserError
from ddengine.types import Json

FORMAT = 1
BEGUN, MANIFEST = "begun.json", "manifest.json"
SUFFIX = ".u8"
PIXELS, LINES, OF_IMAGES = f"pixels{SUFFIX}", "blocks.jsonl", "images.safetensors"


@dataclass(frozen=True)
class Wanted:
    """Images that are to be decoded, in their order."""

    undecoded: Undecoded
    index: np.ndarray  # (N,) which of the undecoded ones
    labels: np.ndarray  # (N,) int64
    first: int  # of the first so many a histogram and a digest are taken

    @property
    def decoder(self) -> Decoder:
        """What decodes them."""
        return self.undecoded.decoder

    def identity(self) -> Json:
        """What decides the decoded images. Raises UserError for a file that is gone."""
        stamps = digests.running()
        for i in self.index.tolist():
            stamps.update(self.undecoded.files.stamp_of(i).encode() + b"\n")
        return {
            "format": FORMAT,
            "images": stamps.hexdigest(),
            "labels": digests.of_bytes(self.labels.tobytes()),
            "num": len(self.index),
            "first": self.first,
            "settings": self.decoder.settings(),
            "white": dict(self.decoder.scales.white),  # that of training images, for others
        }


def file_of(folder: Path, said: Json) -> BlockFile:
    """The file of pixels that a manifest, or what was begun, describes."""
    num, channels, height, width = said["shape"]
    return BlockFile(folder / PIXELS, (num, channels, height, width), said["per_block"])


# What is decoded so far.


@dataclass(frozen=True)
class Line:
    """A decoded block, as a line of blocks.jsonl says it."""

    block: int
    digest: str
    seen: Seen

    def text(self) -> str:
        """The line."""
        facts = {"block": self.block, "digest": self.digest, **asdict(self.seen)}
        return files.to_json(files.sealed(facts)) + "\n"


def read_lines(path: Path) -> dict[int, Line]:
    """The blocks that are decoded; a line that was cut or changed does not count."""
    lines: dict[int, Line] = {}
    if not path.is_file():
        return lines
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):  # a UserError is a ValueError
            facts: Any = files.unsealed(path, json.loads(line))
            seen = Seen(tuple(facts["several"]), facts["cut"])
            lines[facts["block"]] = Line(facts["block"], facts["digest"], seen)
    return lines


def _sound_lines(folder: Path, file: BlockFile) -> dict[int, Line]:
    """The blocks that are decoded, and are what they were then."""
    lines = read_lines(folder / LINES)
    said = [lines[k].digest if k in lines else None for k in range(file.num_blocks)]
    for number in file.differing(said):
        del lines[number]
    return lines


def check_unfinished(folder: Path) -> list[int]:
    """The blocks decoded so far that are not what they were then.

    Raises UserError where it cannot be told.
    """
    begun = files.read_json(folder / BEGUN, "of", "shape", "per_block")
    file = file_of(folder, begun)
    lines = read_lines(folder / LINES)
    return sorted({*lines} - {*_sound_lines(folder, file)})


class Making:
    """Decodes images block by block, from the first that is not decoded yet."""

    def __init__(self, wanted: Wanted, of: Json, folder: Path):
        self.wanted = wanted
        self.of = of
        self.folder = folder
        self.settled: list[str] = []  # what was said when scales were settled

    def run(self) -> None:
        """Decode all of them, and say that they are finished.

        Raises UserError for images that cannot be read.
        """
        decoder = self.wanted.decoder
        decoder.take_seen()  # of other splits
        file = self._begun()
        while True:
            try:
                lines = self._decode(file)
                break
            except NeedsColour:
                (self.folder / LINES).unlink(missing_ok=True)
                file = self._begin((file.shape[0], 3, *file.shape[2:]))
            except NeedsScale:
                self._settle(self.wanted.index.tolist())
                file = self._begin(file.shape)
            except Unreadable as error:
                raise decoder.refusal(error) from None
        self._finish(file, lines)

    def _begun(self) -> BlockFile:
        """The file that was begun, or a new one."""
        decoder = self.wanted.decoder
        with suppress(UserError):  # one that cannot be read is begun anew
            begun = files.read_json(self.folder / BEGUN, "of", "shape", "white", "settled")
            if begun["of"] == self.of:
                decoder.scales.white.update(begun["white"])
                self.settled = begun["settled"]
                return self._begin(tuple(begun["shape"]))
        (self.folder / LINES).unlink(missing_ok=True)
        return self._begin((len(self.wanted.index), *self._form()))

    def _form(self) -> tuple[int, int, int]:
        """(C, H, W), as some of the images tell."""
        order = self.wanted.index.tolist()
        try:
            return self._form_of(order)
        except NeedsScale:
            self._settle(order)
            return self._form_of(order)

    def _form_of(self, order: list[int]) -> tuple[int, int, int]:
        decoder = self.wanted.decoder
        try:
            form = decoder.form_of(order, self.wanted.undecoded.files)
        except Unreadable as error:
            raise decoder.refusal(error) from None
        return form.channels, form.height, form.width

    def _settle(self, order: list[int]) -> None:
        decoder = self.wanted.decoder
        known = len(decoder.notes)
        decoder.settle(order, self.wanted.undecoded.files)
        self.settled += decoder.notes[known:]

    def _begin(self, shape: tuple[int, int, int, int]) -> BlockFile:
        """Say what is begun, and have room for it."""
        file = BlockFile.new(self.folder / PIXELS, shape)
        white = dict(self.wanted.decoder.scales.white)
        said = {"of": self.of, "shape": list(shape), "per_block": file.per_block}
        files.write_json(self.folder / BEGUN, {**said, "white": white, "settled": self.settled})
        file.reserve()
        return file

    def _decode(self, file: BlockFile) -> list[Line]:
        """Decode the blocks that are not decoded yet; all blocks as lines."""
        lines = _sound_lines(self.folder, file)
        missing = [k for k in range(file.num_blocks) if k not in lines]
        num = file.shape[0]
        done = num - sum(len(file.images_of(k)) for k in missing)
        already = f", of which {done} are already" if done else ""
        size = log.size(file.bytes)
        log.say(f"{num} images are decoded once into {self.folder} ({size}){already}")
        with log.progress("decoding images", num, done) as bar, self._open_lines() as written:
            for number in missing:
                lines[number] = self._decode_block(file, number)
                with files.naming(self.folder / LINES):
                    written.write(lines[number].text())
                    written.flush()
                bar.move(bar.done + len(file.images_of(number)))
        return [lines[k] for k in range(file.num_blocks)]

    def _open_lines(self) -> Any:
        """blocks.jsonl, to be appended to; a line that was cut is ended."""
        path = self.folder / LINES
        cut = path.is_file() and not path.read_bytes().endswith(b"\n")
        file = path.open("a")
        if cut and path.stat().st_size:
            file.write("\n")
        return file

    def _decode_block(self, file: BlockFile, number: int) -> Line:
        images = file.images_of(number)
        order = self.wanted.index[images.start : images.stop].tolist()
        pixels = np.empty((len(order), *file.shape[1:]), np.uint8)
        decoder = self.wanted.decoder
        chunk = max(1, min(CHUNK, len(order) // 32))
        decoder.read_into(pixels, order, self.wanted.undecoded.files, chunk)
        return Line(number, file.write(number, pixels), decoder.take_seen())

    def _finish(self, file: BlockFile, lines: Sequence[Line]) -> None:
        """Find out what later runs would look at all images for, and say that all is there."""
        pixels = file.mapped()
        first = pixels[: self.wanted.first]
        tensors = self._looked_at(file, pixels)
        digest = images_digest(first, torch.from_numpy(self.wanted.labels[: self.wanted.first]))
        stated = files.write_tensors(self.folder / OF_IMAGES, tensors)
        several: set[str] = set()
        cut: dict[str, float] = {}
        for line in lines:
            several.update(line.seen.several)
            cut |= line.seen.cut
        said = {
            "of": self.of,
            "shape": list(file.shape),
            "per_block": file.per_block,
            "white": dict(self.wanted.decoder.scales.white),
            "settled": self.settled,
            "several": sorted(several),
            "cut": cut,
            "blocks": [line.digest for line in lines],
            "digest": digest,
            "digests": {OF_IMAGES: stated},
        }
        files.write_json(self.folder / MANIFEST, said)

    def _looked_at(self, file: BlockFile, pixels: Tensor) -> dict[str, Tensor]:
        """What `Cached` says of the images."""
        flat, identities = [], []
        counts = torch.zeros(file.shape[1], 256, dtype=torch.int64)
        with log.progress("looking at the decoded images", file.num_blocks) as bar:
            for images in _blocks(file):
                looks = looks_of(pixels[images.start : images.stop])
                flat.append(torch.from_numpy(looks.flat))
                identities.append(torch.from_numpy(looks.digests.copy()))
                part = pixels[images.start : min(images.stop, self.wanted.first)]
                if len(part):
                    counts += histogram(part)
                bar.advance()
        return {"flat": torch.cat(flat), "digests": torch.cat(identities), "counts": counts}


def _blocks(file: BlockFile) -> Iterator[range]:
    """The images of each block."""
    for number in range(file.num_blocks):
        yield file.images_of(number)
