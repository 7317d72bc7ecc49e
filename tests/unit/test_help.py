"""The help of flags: what explains the values of a flag explains each of them, apart from the
others.
"""

import dataclasses
import importlib
import pkgutil
import re
import typing
from collections.abc import Iterator

import pytest
from tyro import _docstrings

import buffers
import ddengine
import synth


def choices(hint) -> list[str]:
    """The values that a Literal, alone or within another type, allows."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in choices(part)]


def configurations() -> Iterator[type]:
    """The dataclasses of all modules, each once."""
    for package in (ddengine, buffers, synth):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "__main__" in info.name:
                continue
            for value in vars(importlib.import_module(info.name)).values():
                if dataclasses.is_dataclass(value) and isinstance(value, type):
                    if value.__module__ == info.name:
                        yield value


def explained(text: str, values: list[str]) -> int:
    """How many parts of a text explain values; 0 for a text that explains none by itself."""
    named = [value for value in values if re.search(rf"(^|\s){value}: ", text)]
    return len(text.split(" | ")) if " | " in text or len(named) > 1 else 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: one | b: two", 2),
        ("a: one b: two", 1),
        ("first: of all; a: one | b: two", 2),
        ("one | two", 2),
        ("of what is kept", 0),
    ],
)
def test_parts_of_a_help_are_counted(text, parts):
    assert explained(text, ["a", "b"]) == parts


def test_each_value_is_explained_apart_from_the_others():
    wrong, seen = [], 0
    for cls in configurations():
        try:
            hints = typing.get_type_hints(cls)
        except NameError:  # of a class that is no configuration: of a module imported late
            continue
        for field in dataclasses.fields(cls):
            values = choices(hints[field.name])
            text = _docstrings.get_field_docstring(cls, field.name, ()) if len(values) > 1 else None
            parts = explained(text, values) if text else 0
            seen += parts > 0
            if parts and parts != len(values):
                wrong.append(f"{cls.__name__}.{field.name}: {len(values)} values, {text!r}")
    assert not wrong and seen > 10, wrong
