"""The words of a command line: values of a flag, and what is no flag, wherever it stands."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path

# flags with one value that is a path, so never the set that a command is about
PATH_FLAGS = ("--out", "--experts", "--data.root", "--json")


def taken_flag(args: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """(values of `flag VALUE` and `flag=VALUE`, the other words).

    A flag that ends the line has the value "".
    """
    values: list[str] = []
    others: list[str] = []
    words = iter(args)
    for word in words:
        if word == flag:
            values.append(next(words, ""))
        elif word.startswith(f"{flag}="):
            values.append(word.removeprefix(f"{flag}="))
        else:
            others.append(word)
    return values, others


def is_flag(word: str) -> bool:
    """Whether a word starts a flag; a negative number does not."""
    return word.startswith("-") and not word.removeprefix("-")[:1].isdigit()


def asks_help(args: Sequence[str]) -> bool:
    """Whether a line asks for help."""
    return "-h" in args or "--help" in args


def taken_name(args: Sequence[str], known: Container[str]) -> tuple[str | None, list[str]]:
    """(the name that a line is about, the other words); None without any.

    It is the first word; behind flags one that is known, else one that looks like a name and is no
    flag's value.
    """
    words = list(args)
    if words and not is_flag(words[0]):
        return words[0], words[1:]
    for place, word in enumerate(words):
        if word in known:
            return word, words[:place] + words[place + 1 :]
    for place in _free_places(words):
        if "/" in words[place] or ":" in words[place]:
            return words[place], words[:place] + words[place + 1 :]
    return None, words


def taken_paths(
    args: Sequence[str], is_meant: Callable[[Path], bool]
) -> tuple[list[Path], list[str]]:
    """(the paths that a line is about, the other words).

    They are all words before the first flag; where a flag comes first those that `is_meant`
    recognises, else the last word that is no flag's value.
    """
    words = list(args)
    first = next((i for i, word in enumerate(words) if is_flag(word)), len(words))
    if first > 0:
        return [Path(word) for word in words[:first]], words[first:]
    places = _paths_behind_flags(words, is_meant) or _free_places(words)[-1:]
    others = [word for place, word in enumerate(words) if place not in places]
    return [Path(words[place]) for place in places], others


def _paths_behind_flags(words: Sequence[str], is_meant: Callable[[Path], bool]) -> list[int]:
    """Places of the words that are meant, and are not the value of a flag that takes a path."""
    places = []
    for place, word in enumerate(words):
        of_path_flag = place > 0 and words[place - 1] in PATH_FLAGS
        if not is_flag(word) and not of_path_flag and is_meant(Path(word)):
            places.append(place)
    return places


def _free_places(words: Sequence[str]) -> list[int]:
    """Places of the words that are no flags and do not follow one directly."""
    places = []
    for place, word in enumerate(words):
        follows_flag = place > 0 and is_flag(words[place - 1]) and "=" not in words[place - 1]
        if not is_flag(word) and not follows_flag:
            places.append(place)
    return places
