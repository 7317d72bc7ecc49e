"""Which split a folder or a file belongs to, by the words that people name them with, and in which order classes come."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

TRAIN = ("train", "training", "trainval")
TEST = ("test", "testing", "eval", "evaluation")
STAND_INS = ("validation", "valid", "val", "dev")  # for a missing test split, in this order
WORDS = (*TRAIN, *TEST, *STAND_INS)


def split_word(name: str) -> str | None:
    """The word of a split that a name is, in lower case and without "set" (trainset); None for any other name."""
    word = name.lower().removesuffix("set")
    return word if word in WORDS else None


def split_word_in(name: str) -> str | None:
    """The first word of a split in a name such as flowers-train-00000-of-00002, whose words dots, dashes, underscores and digits part."""
    return next(filter(None, map(split_word, re.split(r"[-._ 0-9]+", name))), None)


def composed(name: str) -> str:
    """A name with its accents in one form: file systems differ in whether an accent is a letter of its own."""
    return unicodedata.normalize("NFC", name)


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in their order: that of the numbers where all names are whole numbers, alphabetical otherwise."""
    every = sorted(names)
    numbers = all(re.fullmatch(r"-?[0-9]+", name) for name in every)
    return tuple(sorted(every, key=int) if numbers else every)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence: all of them, or the first ones and how many more there are."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])
