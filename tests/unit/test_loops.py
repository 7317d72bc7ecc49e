"""The loop over cases that other tests use: what it says when cases fail."""

import pytest
from loops import for_each


@pytest.fixture
def ten():
    """A fixture."""
    return 10


seen = []


@for_each("a, b", [(1, 10), (2, 10)])
def test_cases_and_fixtures_meet(a, b, ten):
    """Every case is checked."""
    assert b == ten
    seen.append(a)
    assert seen == list(range(1, a + 1))


def test_all_that_fail_are_named_with_line_and_reason():
    """And those that pass are not."""

    @for_each("number", range(5))
    def check(number):
        if number == 1:
            pytest.fail("one is not wanted")
        if number == 2:
            raise KeyError("two")
        assert number != 4, "four"

    with pytest.raises(AssertionError) as error:
        check()
    lines = str(error.value).splitlines()
    assert lines[0].startswith("3 of 5 failed") and [line.split(":")[0] for line in lines[1:]] == [
        "1",
        "2",
        "4",
    ]
    assert "one is not wanted" in lines[1] and "KeyError" in lines[2] and "four" in lines[3]


def test_no_cases_are_an_error():
    """An empty table must not pass."""
    with pytest.raises(AssertionError, match="no cases"):
        for_each("name", [])
