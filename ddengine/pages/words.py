"""Values of a run in the words of its page."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ddengine.system import log
from ddengine.types import Row

NONE = "\N{EN DASH}"  # in a table, where there is no number
# (unit, from which value on, what it divides by)
UNITS = (("T", 1e12, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3))


def in_percent(fraction: float | None) -> str:
    """A fraction in percent, nothing for None."""
    if fraction is None:
        return ""
    return f"{100 * fraction:.1f}"


def interval(row: Row) -> str:
    """The 95 % interval of a row in percent, a dash where it has none."""
    if not row.get("ci95"):
        return NONE
    low, high = row["ci95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def count(value: float | None) -> str:
    """A large count in the unit that suits it, a small one as it is, nothing for None."""
    if value is None:
        return ""
    for unit, least, divisor in UNITS:
        if abs(value) >= least:
            return f"{value / divisor:.3g} {unit}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min or 2.5 h."""
    if 0 <= seconds < 0.5:
        return "under 1 s"
    return log.duration(seconds)


def plain(value: Any) -> str:
    """A value of a recipe or a JSON file as text."""
    if value is True:
        return "yes"
    if value is False:
        return "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if value is None or value == {}:
        return "none"
    return str(value)


def number(value: Any) -> str:
    """A number with three places where it has a fraction; anything else as text."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return plain(value)


def cell(row: Row, key: str, in_words: Callable[[Any], str] = plain) -> str:
    """What a row says under `key` in words, nothing where it does not say it."""
    if key not in row:
        return ""
    return in_words(row[key])


def filled(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The titles of the columns that any of the lines fills, in the order of the first line."""
    filled_titles = set()
    for line in lines:
        for title, text in line.items():
            if text:
                filled_titles.add(title)
    return [title for title in lines[0] if title in filled_titles]


def cells_of(line: Mapping[str, str], head: Sequence[str]) -> list[str]:
    """The cells of a line under the titles `head`."""
    return [line[title] for title in head]


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of everything in nested objects."""
    parts = _parts(value)
    if not parts:
        yield prefix, plain(value)
    for name, part in parts:
        yield from flat(part, f"{prefix}.{name}".removeprefix("."))


def _parts(value: Any) -> list[tuple[str, Any]]:
    """(name, value) of what an object or a list of objects consists of; nothing of other values."""
    named: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        named = value.items()
    elif isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        named = enumerate(value, start=1)
    return [(str(name), part) for name, part in named]
