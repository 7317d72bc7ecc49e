"""Whether plain data, as JSON files hold them, have the types that are written down for them.

A type is what stands in annotations: numbers, text, None, `Any`, unions, literals, lists, tuples,
mappings, dataclasses and TypedDicts; `Annotated[int, Between(0, 9)]` has bounds. What a file holds
is written down once, as a TypedDict or a dataclass, and read by nobody before it was checked.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar, Union

LONGEST = 60  # characters of a value in a sentence
WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    Mapping: "an object",
}
INFINITE = ("inf", "-inf")  # how recipes write what JSON has no number for


@dataclass(frozen=True)
class Between:
    """The least and the largest number that a field may hold."""

    least: float
    most: float = math.inf

    def in_words(self) -> str:
        """What stands behind the kind of number; nothing where there are no bounds."""
        if self.least == -math.inf:
            return ""
        upper = "" if self.most == math.inf else f" and at most {self.most:g}"
        return f" of at least {self.least:g}{upper}"


Count = Annotated[int, Between(0, 2**53)]
Fraction = Annotated[float, Between(0, 1)]
Positive = Annotated[float, Between(0)]
Number = Annotated[float, Between(-math.inf)]  # one of JSON, so none that recipes write as text


class Misfit(ValueError):
    """Plain data that are not of the type that is written down; names the part and its value."""


def check(value: Any, hint: Any, name: str = "") -> None:
    """Raise Misfit unless plain data have a type; `name` is what the value is called."""
    origin = typing.get_origin(hint)
    if origin in CHECKS:
        CHECKS[origin](value, hint, name)
    elif typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        _check_fields(value, hint, name)
    elif hint is not Any and not isinstance(hint, TypeVar) and not _is(value, hint):
        raise _misfit(value, hint, name)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a plain type. A number is no truth value, and a whole one a number."""
    if kind is float:
        return value in INFINITE if isinstance(value, str) else _is_number(value)
    if kind in (int, str, bool, type(None)):
        return type(value) is kind
    return kind not in WORDS or isinstance(value, kind)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _misfit(value: Any, hint: Any, name: str) -> Misfit:
    return Misfit(f"{name or 'it'} is {shown(value)}, and must be {in_words(hint)}")


def shown(value: Any) -> str:
    """A value for a sentence, in short, and without what moves the cursor of a terminal."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}" if value else f"{kind} of nothing"
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def in_words(hint: Any) -> str:
    """A type for a sentence."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = parts[1]
        return in_words(parts[0]) + bounds.in_words()
    if origin is Literal:
        return " or ".join(map(json.dumps, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, parts))
    if origin in (Required, NotRequired):
        return in_words(parts[0])
    return WORDS.get(origin or hint, "an object")


def _check_bounds(value: Any, hint: Any, name: str) -> None:
    kind, bounds = typing.get_args(hint)
    check(value, kind, name)
    if isinstance(value, str) or not bounds.least <= float(value) <= bounds.most:
        raise _misfit(value, hint, name)


def _check_literal(value: Any, hint: Any, name: str) -> None:
    if not any(type(value) is type(one) and value == one for one in typing.get_args(hint)):
        raise _misfit(value, hint, name)


def _check_union(value: Any, hint: Any, name: str) -> None:
    """One of the kinds must do; of None and another the other one says what is wrong."""
    kinds = typing.get_args(hint)
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) < len(kinds) and value is None:
        return
    if len(others) == 1:
        check(value, others[0], name)
    elif not any(fits(value, kind) for kind in others):
        raise _misfit(value, hint, name)


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data have a type."""
    try:
        check(value, hint)
    except Misfit:
        return False
    return True


def _check_list(value: Any, hint: Any, name: str) -> None:
    if not isinstance(value, list):
        raise _misfit(value, hint, name)
    (kind,) = typing.get_args(hint)
    for number, part in enumerate(value):
        check(part, kind, f"{name}[{number}]")


def _check_tuple(value: Any, hint: Any, name: str) -> None:
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis:
        _check_list(value, list[kinds[0]], name)
        return
    if not isinstance(value, list) or len(value) != len(kinds):
        raise Misfit(f"{name} is {shown(value)}, and must be a list of {len(kinds)}")
    for number, (part, kind) in enumerate(zip(value, kinds, strict=True)):
        check(part, kind, f"{name}[{number}]")


def _check_mapping(value: Any, hint: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise _misfit(value, hint, name)
    _, kind = typing.get_args(hint)
    for key, part in value.items():
        check(part, kind, _below(name, key))


def _check_inner(value: Any, hint: Any, name: str) -> None:
    check(value, typing.get_args(hint)[0], name)


def _check_fields(value: Any, hint: Any, name: str) -> None:
    """The fields that are there and known; those that a TypedDict requires must be there."""
    if not isinstance(value, dict):
        raise _misfit(value, hint, name)
    if typing.is_typeddict(hint):
        for key in sorted(hint.__required_keys__ - value.keys()):
            raise Misfit(f"it lacks {_below(name, key)}")
    for key, kind in _fields(hint).items():
        if key in value:
            check(value[key], kind, _below(name, key))


@cache
def _fields(hint: Any) -> dict[str, Any]:
    return typing.get_type_hints(hint, include_extras=True)


def _below(name: str, key: str) -> str:
    """What a part is called, of a name that a file may have chosen."""
    if not key.isprintable() or len(key) > LONGEST:
        key = shown(key)
    return f"{name}.{key}" if name else key


Check = Callable[[Any, Any, str], None]
CHECKS: Mapping[Any, Check] = {
    Annotated: _check_bounds,
    Literal: _check_literal,
    Union: _check_union,
    types.UnionType: _check_union,
    list: _check_list,
    Sequence: _check_list,
    tuple: _check_tuple,
    dict: _check_mapping,
    Mapping: _check_mapping,
    Required: _check_inner,
    NotRequired: _check_inner,
}
