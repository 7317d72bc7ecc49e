"""How many values each flag takes, as the dataclass that holds them says."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import tyro

SEVERAL = None  # of a flag that takes any number of values, or one of several numbers
Values = Mapping[str, int | None]  # flag -> how many values it takes
HELP = {"-h": 0, "--help": 0}
ARG: Any = type(tyro.conf.arg())


def values_of(cls: Any, recipe: Any = None) -> dict[str, int | None]:
    """The flags of a dataclass of options: 0 values of a switch, 1, or SEVERAL.

    `recipe` is the class that a type parameter stands for, as in the options of a command on a
    recipe. Flags of its parts that come in kinds are not among them.
    """
    return HELP | _fields_of(cls, "", recipe, has_switches=True)


def flag_of(word: str) -> str:
    """The flag that a word starts, spelled as `values_of` does."""
    name = word.partition("=")[0]
    return "--" + name[2:].replace("-", "_") if name.startswith("--") else name


def _fields_of(cls: Any, prefix: str, recipe: Any, *, has_switches: bool) -> dict[str, int | None]:
    """The flags of the fields of a dataclass, which begin with `prefix`."""
    flags: dict[str, int | None] = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for part in dataclasses.fields(cls):
        kind, marks = _without_marks(hints[part.name])
        kind = recipe if isinstance(kind, TypeVar) else kind
        if kind is None or tyro.conf.Suppress in marks:
            continue
        name = _name(part.name, marks)
        switches = has_switches and tyro.conf.FlagConversionOff not in marks
        if dataclasses.is_dataclass(kind):
            inner = f"{prefix}{name}." if name else prefix
            flags |= _fields_of(kind, inner, None, has_switches=switches)
        elif kind is bool and switches:
            flags |= {f"--{prefix}{name}": 0, f"--{prefix}no_{name}": 0}
        else:
            flags[f"--{prefix}{name}"] = _number(kind)
    return flags


def _without_marks(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type, what tyro is told about it) of an annotation."""
    if typing.get_origin(kind) is not typing.Annotated:
        return kind, ()
    inner, *marks = typing.get_args(kind)
    return inner, tuple(marks)


def _name(field: str, marks: tuple[Any, ...]) -> str:
    """What a field is called in its flag; "" where its own fields have no prefix."""
    for mark in marks:
        if isinstance(mark, ARG) and mark.name is not None:
            return mark.name
    return field


def _number(kind: Any) -> int | None:
    """How many values a type takes on a command line."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        numbers = set(map(_number, typing.get_args(kind)))
        return 1 if numbers == {1} else SEVERAL
    if origin is typing.Literal or (isinstance(kind, type) and origin is None):
        return 1
    return SEVERAL
