"""Which modules of a network draw random numbers."""

from torch import nn


def is_dropout(module: nn.Module) -> bool:
    """Whether a module draws random numbers while training.

    It draws them from the global generator, because modules take no other.
    """
    name = type(module).__name__
    return "Drop" in name or name == "StochasticDepth"
