"""Values of a run in the words of its page."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddengine.system import log

NONE = "\N{EN DASH}"  # in a table, where there is no number
# (unit, from which value on, what it divides by)
UNITS = (("T", 1e12, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3))


def in_percent(fraction: float | None) -> str:
    """A fraction in percent, nothing for None."""
    return "" if fraction is None else f"{100 * fraction:.1f}"


def interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval of a row in percent, a dash where it has none."""
    ends = row.get("ci95")
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else NONE


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
    return "under 1 s" if 0 <= seconds < 0.5 else log.duration(seconds)


def plain(value: Any) -> str:
    """A value of a recipe or a JSON file as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if value is None or value == {}:
        return "none"
    return str(value)


def number(value: Any) -> str:
    """A number with three places where it has a fraction; anything else as text."""
    return f"{value:.3f}" if isinstance(value, float) else plain(value)


def cell(row: Mapping[str, Any], key: str, in_words: Callable[[Any], str] = plain) -> str:
    """What a row says under `key` in words, nothing where it does not say it."""
    return in_words(row[key]) if key in row else ""


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of everything in nested objects."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from flat(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for i, part in enumerate(value):
            yield from flat(part, f"{prefix}.{i + 1}")
    else:
        yield prefix, plain(value)
