"""JSON text that somebody else may have written: limits, and what JSON proper does not have.

Every JSON text of a file is read here.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28  # of a JSON file; ImageNet's splits.json has 2**25
DEEPEST = 64  # of objects and lists within each other; a recipe has 8
LARGEST = 2**63  # of whole numbers, beyond which they are read as floating-point numbers
MOST_DIGITS = 40
MOST_OF_HEADER = 2**27  # bytes of the header of a safetensors file; its library takes 10**8


def parsed(content: bytes | str) -> Any:
    """What a JSON text says.

    NaN and infinities, which JSON does not have and older versions wrote, become null. Raises
    ValueError for what is no JSON: also for numbers that are too large, names that an object has
    twice and halves of characters; and for more than the limits above.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has {len(content)} bytes, and {MOST_BYTES} are taken at most")
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text,
            parse_constant=_null,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_without_twice,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value, DEEPEST)
    if "\\ud" in text or "\\uD" in text:
        _check_characters(value)
    return value


_TOO_DEEP = f"its objects and lists lie more than {DEEPEST} deep in each other"


def _null(name: str) -> None:
    return None


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {_short(digits)}, which is too large")
    return value


def _whole(digits: str) -> int | float:
    """A whole number; one of more than 64 bits as a floating-point number, as FLOP were written."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds the number {_short(digits)}, which is too large")
    value = int(digits)
    return value if -LARGEST <= value < LARGEST else float(value)


def _short(digits: str) -> str:
    return digits if len(digits) <= 24 else f"{digits[:20]}..."


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {json.dumps(twice[:60])} twice")
    return content


def _check_depth(value: Any, left: int) -> None:
    """Raise ValueError for more levels of objects and lists than are left."""
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise ValueError(_TOO_DEEP)
    for part in value.values() if isinstance(value, dict) else value:
        _check_depth(part, left - 1)


def _check_characters(value: Any) -> None:
    """Raise ValueError for halves of characters, which no file can hold and no terminal shows."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None


def content_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file.

    Raises ValueError for more than `most`, and for what is no file, such as a pipe, which nobody
    may ever write to; OSError as reading does.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size} bytes, and {most} are taken at most")
        return file.read(most + 1)


def check_regular(path: Path) -> None:
    """Raise ValueError for what is no file, such as a folder or a pipe; OSError where none is."""
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(kind):
        raise ValueError("it is no file but a pipe, a socket or a device")
