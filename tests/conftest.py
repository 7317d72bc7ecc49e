"""Shared by all tests: the number of threads (one a process, because the suite runs on all cores),
and what makes them quick.
"""

import functools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tyro import _docstrings

from ddengine.system import log, runtime

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
runtime.keep_freed_memory()

# tyro reads the source of every class anew for every command line, a third of the time of a small
# command; here once is enough
if hasattr(_docstrings, "_ClassTokenization") and hasattr(
    _docstrings._ClassTokenization.make, "__wrapped__"
):
    _docstrings._ClassTokenization.make = staticmethod(
        functools.cache(_docstrings._ClassTokenization.make.__wrapped__)
    )


@pytest.fixture(autouse=True)
def shown():
    """Lines are shown again after a test of what shows none."""
    yield
    was_quiet, log.console.quiet = log.console.quiet, False
    assert not was_quiet, "the test left the terminal quiet for all tests after it"


@pytest.fixture
def cpu() -> torch.device:
    """The CPU."""
    return torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def no_picture(request):
    """Commands do not draw the picture of a run, which takes as long as all else in a tiny one, but
    in modules that are marked with `pictures`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("pictures") is None:
            patch.setattr(
                "ddengine.pages.figures.real_vs_distilled",
                lambda path, real, syn, evaluation: path.write_bytes(b"a picture"),
            )
        yield
