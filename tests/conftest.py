"""Shared by all tests: the number of threads (one a process, because the suite runs on all cores), and the allocator setting of CPU runs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from ddengine import runtime

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
runtime.keep_freed_memory()


@pytest.fixture
def cpu() -> torch.device:
    """The CPU."""
    return torch.device("cpu")
