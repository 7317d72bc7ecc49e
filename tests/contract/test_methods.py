"""The contract suite over every method and codec of this program."""

from ddengine.contract.test_codec import *  # noqa: F403
from ddengine.contract.test_method import *  # noqa: F403
