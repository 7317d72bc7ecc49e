"""The contract suite over every method and codec of this program."""

import pytest

from ddengine.contract.plugin import EVERY_CODEC
from ddengine.contract.test_codec import *  # noqa: F403
from ddengine.contract.test_method import *  # noqa: F403


def test_most_pairs_of_method_and_codec_are_slow_tests(request):
    """Here too, where the tests of the suite are imported."""
    if request.config.getoption("--recipe"):
        pytest.skip("recipes that are named run with every codec")
    quick = set()
    for item in request.session.items:
        if "codec_name" in item.fixturenames and item.get_closest_marker("slow") is None:
            recipe = item.callspec.params.get("method") or item.callspec.params.get("minimising")
            if recipe is not None:
                quick.add(recipe.name.partition("/")[0])
    assert quick <= set(EVERY_CODEC)
