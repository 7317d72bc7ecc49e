"""The pytest plugin of the contract suite: the option --recipe, and what its tests are given."""

from typing import Any

import pytest

from ddengine.system import program


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option --recipe, once for each recipe.

    Recipes of a package in this folder are known, as they are to the program.
    """
    program.know_packages_here()
    parser.addoption(
        "--recipe",
        action="append",
        default=[],
        help="contract suite: the recipe whose method is tested, of this program or "
        "package.module:recipe; without it one of each method of this program",
    )


def _given(metafunc: pytest.Metafunc) -> set[str]:
    """Arguments that a test gives itself, by a mark; other tests may have such names too."""
    given: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0]
        given |= set(names.replace(" ", "").split(",") if isinstance(names, str) else names)
    return given


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `method` runs for the recipe of every method.

    One with `minimising` runs for those that have outer steps, one with `codec_name` for every
    codec, one with `any_recipe` for every recipe. Only tests of this suite are meant.
    """
    if not metafunc.function.__module__.startswith("ddengine.contract."):
        return
    wanted = {"method", "minimising", "codec_name", "any_recipe"} & set(metafunc.fixturenames)
    wanted -= _given(metafunc)
    if not wanted:
        return
    from ddengine.contract import worlds
    from ddengine.system.errors import UserError

    chosen: list[str] = metafunc.config.getoption("--recipe") or []
    try:
        recipes = worlds.recipes_of_methods(chosen)
    except UserError as error:
        pytest.exit(f"error: {error}", returncode=2)
    minimising = [recipe for recipe in recipes if recipe.outer.steps]
    cases: dict[str, list[Any]] = {"method": recipes, "minimising": minimising}
    cases["any_recipe"] = recipes if chosen else worlds.all_recipes()
    for name in sorted(wanted & cases.keys()):
        metafunc.parametrize(name, cases[name], ids=[recipe.name for recipe in cases[name]])
    if "codec_name" in wanted:
        metafunc.parametrize("codec_name", worlds.codec_names())


EVERY_CODEC = ("dm", "mtt")  # methods that run with every codec also in a short suite


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of all pairs of method and codec those of two methods are quick, and the others slow.

    Recipes that are named run with every codec.
    """
    if config.getoption("--recipe"):
        return
    for item in items:
        if not isinstance(item, pytest.Function) or "codec_name" not in item.fixturenames:
            continue
        # where a test is defined, because other files import it
        if item.function.__module__ != "ddengine.contract.test_method":
            continue
        params: dict[str, Any] = item.callspec.params
        recipe = params.get("method") or params["minimising"]
        if recipe.name.partition("/")[0] not in EVERY_CODEC:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """The mark of pairs that take long."""
    config.addinivalue_line("markers", "slow: minutes")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Digits, a store of two short experts, and two teachers with a store each."""
    from ddengine.contract import worlds

    return worlds.make(tmp_path_factory.mktemp("contract"))
