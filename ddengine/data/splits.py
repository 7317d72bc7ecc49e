"""Which split a folder or a file belongs to, by its name, and in which order classes come."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

TRAIN = ("train", "training", "trainval")
TEST = ("test", "testing", "eval", "evaluation")
STAND_INS = ("validation", "valid", "val", "dev")  # for a missing test split, in this order
WORDS = (*TRAIN, *TEST, *STAND_INS)


def split_word(name: str) -> str | None:
    """The word of a split that a name is, in lower case, also with "set" (trainset); else None."""
    word = name.lower().removesuffix("set")
    if word in WORDS:
        return word
    return None


def split_word_in(name: str) -> str | None:
    """The last word of a split in a name such as seg_train or TestImages; None without any."""
    for part in reversed(words_of(name)):
        word = split_word(part)
        if word is not None:
            return word
    return None


def words_of(name: str) -> list[str]:
    """The words of a name, which dots, dashes, underscores, spaces, digits and capitals part."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.split(r"[-._ 0-9]+", apart)
    return list(filter(None, words))


def rest_of(name: str) -> tuple[str, ...]:
    """The other words of a name, in lower case.

    Splits of one dataset have them in common (seg_train, seg_test), classes do not.
    """
    others = []
    for word in words_of(name):
        if not split_word(word):
            others.append(word.lower())
    return tuple(others)


def composed(name: str) -> str:
    """A name with its accents in one form.

    File systems differ in whether an accent is a letter for itself.
    """
    return unicodedata.normalize("NFC", name)


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in their order.

    It is that of the numbers where all names are whole numbers, and alphabetical otherwise.
    """
    alphabetical = sorted(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in alphabetical):
        return tuple(sorted(alphabetical, key=int))
    return tuple(alphabetical)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence: all of them, or the first ones and how many more there are."""
    if len(names) > most:
        first = ", ".join(names[:most])
        return f"{first} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    *first, last = names
    return f"{', '.join(first)} and {last}"


def training_word(
    names: Mapping[str | None, Sequence[str]], things: str
) -> tuple[str | None, list[str]]:
    """Which group holds the training images, and what to say of the choice.

    It is that of a word for them, else that without a word, else the only one.

    Args:
        names: what the members of each group are called, by the word of its split; None stands for
            those without a word.
        things: what the members are, in the plural.

    Returns:
        The key of the group, and what to say of the choice.

    Raises:
        LookupError: there are several groups and none can be told to be it.
    """
    trains = [word for word in TRAIN if word in names]
    bare = names.get(None, [])
    notes = []
    if trains:
        if bare:
            notes.append(f"not used: {listed(bare)}, which no word calls training or test images")
        for word in trains[1:]:
            notes.append(f"not used: {word}, beside {trains[0]}")
        return trains[0], notes
    if bare:
        if len(names) > 1:
            notes.append(f"{listed(bare)} without a word of a split: training images")
        return None, notes
    if len(names) > 1:
        raise LookupError
    word = next(iter(names))
    return word, [f"there are {word} {things} only, which are taken for training images"]
