"""Recipes of installed packages: found by name, listed, and not in the way of others."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

import synth
from ddengine.system.errors import UserError
from synth import installed as module
from synth.catalogue import RECIPES, find

BASE = RECIPES["dm/fashion_mnist_ipc1_small"]
ONE = replace(BASE, name="theirs/one")
TWO = [replace(BASE, name="theirs/two"), replace(BASE, name="theirs/three")]


def several():
    """What an entry point may name."""
    return TWO


@pytest.fixture
def points(monkeypatch):
    """Sets the entry points that are installed."""

    def install(**values: str) -> None:
        made = [EntryPoint(name, place, module.GROUP) for name, place in values.items()]
        monkeypatch.setattr(module, "entry_points", lambda group: made)
        module.installed.cache_clear()

    yield install
    module.installed.cache_clear()


def test_a_recipe_a_list_and_a_function_are_found_by_name(points):
    points(one="test_installed:ONE", two="test_installed:several", three="test_installed:TWO")
    assert list(module.installed()) == ["theirs/one", "theirs/two", "theirs/three"]
    assert find("theirs/one") is ONE and find("theirs/three", ipc=2).ipc == 2
    assert synth.take(BASE, ["objective=theirs/two"]).objective == BASE.objective
    with pytest.raises(UserError, match=r"Unknown recipe 'theirs/on'.*theirs/one"):
        find("theirs/on")
    assert find("dm/fashion_mnist_ipc1_small") is BASE


def test_a_broken_package_is_warned_of_and_keeps_nobody_from_the_others(points, capsys):
    points(gone="no.such.module:x", number="test_installed:FIVE", one="test_installed:ONE")
    assert list(module.installed()) == ["theirs/one"]
    said = capsys.readouterr().out.replace("\n", " ")
    assert "cannot be loaded from no.such.module:x (ModuleNotFoundError" in said
    assert "cannot be loaded from test_installed:FIVE (UserError: test_installed:FIVE gives" in said


FIVE = 5


def test_two_recipes_of_a_name_are_told(points, capsys):
    points(one="test_installed:ONE", again="test_installed:ONE")
    assert list(module.installed()) == ["theirs/one"]
    assert "only the latter is used" in capsys.readouterr().out


def test_nothing_is_loaded_for_recipes_of_this_program(monkeypatch):
    def entry_points(group: str):
        raise AssertionError("looked for")

    monkeypatch.setattr(module, "entry_points", entry_points)
    module.installed.cache_clear()
    assert find("mtt/digits_ipc1").name == "mtt/digits_ipc1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_installed:FIVE", "test_installed:FIVE gives a int; name a Recipe"),
        ("test_installed:TWO", "Unknown recipe in test_installed:TWO ''"),
    ],
)
def test_what_names_no_recipe_is_a_sentence(name, message):
    with pytest.raises(UserError, match=message):
        find(name)
