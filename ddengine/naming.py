"""Names of networks of torchvision and timm, of which there are two kinds.

`torchvision/NAME` is torchvision's own network. `torchvision/NAME-small` is the same behind a stem
for images of up to SMALL pixels; larger images meet in both the same network, but in vision
transformers. The same holds for timm.

Files up to format 2 of runs, sets and evaluations, and stores of format 1, know one kind: there
`torchvision/NAME` is what is called `torchvision/NAME-small` now. They are read with today's names,
and digests are made of the names of then, so that what was made before is still the same.
"""

import re
from collections.abc import Container
from typing import Any

from ddengine.types import Json

LIBRARIES = ("torchvision/", "timm/")
SMALL = 64  # pixels of the longer side
SMALL_STEM = "-small"
FORMAT = 3  # of the JSON files of runs, sets and evaluations; the first with both kinds of names
UNCHANGED = ", unchanged"  # behind the name in a digest: not the network of that name of before
# networks of torchvision that were given other patches for images of every size
PATCHED = "torchvision/vit_"
# the name of a network of before, alone or as the value of a flag
OF_BEFORE = re.compile(r"(--[\w.]+=)?(torchvision|timm)/[\w.]+")


def is_small(name: str) -> bool:
    """Whether a network is one of a library behind a stem for small images."""
    return name.startswith(LIBRARIES) and name.endswith(SMALL_STEM)


def is_large(size: tuple[int, ...] | None) -> bool:
    """Whether images (height, width) are larger than small ones; None, where that is not known."""
    return size is not None and max(size) > SMALL


def in_digest(name: str, size: tuple[int, ...] | None) -> str:
    """What stands for a network in digests, for images (height, width), None where not known.

    It is the name that the same network had when there was one kind of them; a network that was
    not to be had then is told apart.
    """
    if not name.startswith(LIBRARIES):
        return name
    if name.endswith(SMALL_STEM):
        return name.removesuffix(SMALL_STEM)
    if is_large(size) and not name.startswith(PATCHED):
        return name
    return name + UNCHANGED


def of_digest(name: str) -> str:
    """The name that a network in a digest has now; the inverse of `in_digest` for small images."""
    if name.endswith(UNCHANGED):
        return name.removesuffix(UNCHANGED)
    return name + SMALL_STEM if name.startswith(LIBRARIES) else name


def explained(name: str) -> str | None:
    """What a network of a library is, for people; None of any other."""
    if not name.startswith(LIBRARIES):
        return None
    library, _, _ = name.partition("/")
    if is_small(name):
        return f"{library}'s network with a stem for images of up to {SMALL} pixels"
    return f"{library}'s own network, stem and all"


def in_words(name: str) -> str:
    """A name, with what it is behind it where a library has it."""
    explanation = explained(name)
    return name if explanation is None else f"{name} ({explanation})"


def warning(name: str, size: tuple[int, ...]) -> str | None:
    """What to say of a stem for small images where images (height, width) are large; else None."""
    if not is_small(name) or not is_large(size) or name.startswith(PATCHED):
        return None
    return (
        f"warning: images of {size[0]}x{size[1]} are too large for the stem of {name}, which is "
        f"{name.removesuffix(SMALL_STEM)} there"
    )


def apart(name: str, taken: Container[str]) -> str:
    """A name that is not taken: a number, from 2 on, follows one that is."""
    number = 1
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique


def as_now(content: Any) -> Any:
    """What a file says, with today's names of networks; what is no JSON object as it is."""
    if not isinstance(content, dict) or _format(content) >= FORMAT:
        return content
    renamed: Json = _renamed(content)
    return renamed | {"format": FORMAT}


def _format(content: Json) -> int:
    stored = content.get("format")
    return stored if isinstance(stored, int) else 1


def _renamed(value: Any) -> Any:
    """JSON data of before, the names in it those of now, keys and words of commands too."""
    if isinstance(value, str):
        return value + SMALL_STEM if OF_BEFORE.fullmatch(value) else value
    if isinstance(value, dict):
        return {_renamed(key): _renamed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part) for part in value]
    return value
