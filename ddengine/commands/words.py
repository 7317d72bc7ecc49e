"""The words of a command line: values of a flag, and what is no flag, wherever it stands."""

from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Literal

from ddengine.commands.flags import SEVERAL, Values, flag_of

# what a word is: a flag | a value of one | the value of a flag that nobody knows | a further value
# of a flag with several, or none | no value of any flag
Kind = Literal["flag", "value", "guessed", "perhaps", "free"]


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


def with_values(args: Sequence[str]) -> list[str]:
    """The words of a line in which --compile has its value, where it stands for on alone, and off.

    So it was when it was a switch.
    """
    words: list[str] = []
    for word, after in zip(args, [*args, ""][1:], strict=True):
        if flag_of(word) == "--no_compile":
            words += ["--compile", "off"]
        elif word == "--compile" and after not in ("auto", "on", "off"):
            words += [word, "on"]
        else:
            words.append(word)
    return words


def asks_help(args: Sequence[str]) -> bool:
    """Whether a line asks for help."""
    return "-h" in args or "--help" in args


def taken_name(
    args: Sequence[str], known: Container[str], values: Values
) -> tuple[str | None, list[str]]:
    """(the name that a line is about, the other words); None without any.

    It is the first word; behind flags one that is known, else one that is no flag's value, else one
    that may be a flag's value and looks like a name. `values` says how many each flag takes.
    """
    words = list(args)
    place = _place_of_name(words, _kinds(words, values), known)
    if place is None:
        return None, words
    return words[place], _without(words, [place])


def _place_of_name(
    words: Sequence[str], kinds: Sequence[Kind], known: Container[str]
) -> int | None:
    """Where the name stands among words of these kinds."""
    if words and kinds[0] != "flag":
        return 0
    for place, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        if kind not in ("flag", "value") and word in known:
            return place
    if "free" in kinds:
        return kinds.index("free")
    for place, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        if kind == "perhaps" and ("/" in word or ":" in word):
            return place
    return None


def taken_paths(
    args: Sequence[str], is_meant: Callable[[Path], bool], values: Values
) -> tuple[list[Path], list[str]]:
    """(the paths that a line is about, the other words).

    They are all words that are no flag's value; on a line without any, those that may be one and
    that `is_meant` recognises, else the last that may be. `values` says how many each flag takes.
    """
    words = list(args)
    kinds = _kinds(words, values)
    places = [place for place, kind in enumerate(kinds) if kind == "free"]
    if not places:
        places = _meant(words, kinds, is_meant)
    if not places and "perhaps" in kinds:
        places = [len(words) - 1 - kinds[::-1].index("perhaps")]
    return [Path(words[place]) for place in places], _without(words, places)


def _meant(
    words: Sequence[str], kinds: Sequence[Kind], is_meant: Callable[[Path], bool]
) -> list[int]:
    """Places of the words that may be a flag's value, and are recognised."""
    places = []
    for place, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        if kind in ("perhaps", "guessed") and is_meant(Path(word)):
            places.append(place)
    return places


def without_flags(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command line without some flags and their values."""
    kept, keep = [], True
    for word in words:
        if word.startswith("--"):
            keep = flag_of(word).removeprefix("--") not in flags
        if keep:
            kept.append(word)
    return kept


def _without(words: Sequence[str], places: Iterable[int]) -> list[str]:
    """The words that do not stand in these places."""
    left_out = set(places)
    return [word for place, word in enumerate(words) if place not in left_out]


def _kinds(words: Sequence[str], values: Values) -> list[Kind]:
    """What each word of a line is."""
    kinds: list[Kind] = []
    last_kind: Kind = "free"  # of words behind the values that the last flag must have
    first_kind: Kind = "value"
    missing = 0  # values that the last flag must still have
    for word in words:
        if is_flag(word):
            kinds.append("flag")
            number = values.get(flag_of(word), SEVERAL)
            alone = "=" in word or number == 0
            missing = 0 if alone else number or 1
            first_kind = "value" if flag_of(word) in values else "guessed"
            last_kind = "perhaps" if number is SEVERAL and not alone else "free"
        elif missing:
            kinds.append(first_kind)
            missing -= 1
        else:
            kinds.append(last_kind)
    return kinds
