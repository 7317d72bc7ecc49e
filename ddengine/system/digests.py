"""Digests that files carry of themselves, so that no bit of one changes unnoticed.

A JSON file says under `blake2b` the digest of all else that it says, whatever the order of its keys
and its white space; a safetensors file says in its metadata that of its header, but for this entry,
and of all bytes behind it. Who changes a file and its digest together is not noticed: this guards
against damage and against edits that nobody meant, not against an adversary.

The shipped load.py computes the same with hashlib alone (`artefact/plain.py`).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ddengine.system.parsing import MOST_OF_HEADER, check_regular, parsed

KEY = "blake2b"  # in JSON files, and in the metadata of safetensors files
SIZE = 16  # bytes of a digest
METADATA = "__metadata__"  # as the header of a safetensors file calls it
LENGTH = 8  # bytes that say how long the header is
ALIGNED = 8  # the bytes of tensors begin at a multiple of so many
BLOCK = 2**20  # bytes that are read at a time


def of_facts(facts: Mapping[str, Any]) -> str:
    """The digest of what a JSON file says, but for its digest."""
    return _digest(facts, ())


def of_header(header: Mapping[str, Any], data: Iterable[bytes | memoryview]) -> str:
    """The digest of a safetensors file, of its header and the bytes behind it."""
    metadata = dict(header.get(METADATA) or {})
    metadata.pop(KEY, None)
    return _digest({**header, METADATA: metadata}, data)


def _digest(facts: Mapping[str, Any], data: Iterable[bytes | memoryview]) -> str:
    said = {key: value for key, value in facts.items() if key != KEY}
    state = running(json.dumps(said, sort_keys=True).encode())
    for part in data:
        state.update(part)
    return state.hexdigest()


def with_digest(content: bytes) -> tuple[str, list[bytes | memoryview]]:
    """(digest, bytes in parts) of a safetensors file that says its digest, of one that does not."""
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH:start])
    data = memoryview(content)[start:]
    digest = of_header(header, [data])
    header[METADATA] = (header.get(METADATA) or {}) | {KEY: digest}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return digest, [len(text).to_bytes(LENGTH, "little"), text, data]


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The header of an open safetensors file, which is left at the bytes behind it.

    Raises ValueError for one that cannot be read.
    """
    length = int.from_bytes(file.read(LENGTH), "little")
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError(f"its header is to have {length} bytes, more than the file")
    if length > MOST_OF_HEADER:
        raise ValueError(f"its header has {length} bytes, and {MOST_OF_HEADER} are taken at most")
    header = parsed(file.read(length))
    if not isinstance(header, dict) or not isinstance(header.get(METADATA) or {}, dict):
        raise ValueError("its header, or the metadata in it, is no JSON object")
    return header


def stated_and_computed(path: Path) -> tuple[str | None, str]:
    """(the digest that a safetensors file says, None where it says none; that of its bytes).

    Raises ValueError for a header that cannot be read, and OSError.
    """
    check_regular(path)
    with path.open("rb") as file:
        header = read_header(file)
        metadata = header.get(METADATA) or {}
        return metadata.get(KEY), of_header(header, _blocks(file))


def of_bytes(content: bytes) -> str:
    """The digest of bytes."""
    return running(content).hexdigest()


def running(content: bytes = b"") -> "hashlib.blake2b":
    """The digest of bytes that more will follow: `update` adds them."""
    return hashlib.blake2b(content, digest_size=SIZE)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """What is left of an open file."""
    while block := file.read(BLOCK):
        yield block
