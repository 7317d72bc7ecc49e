"""The BatchNorm layers of a network."""

from torch import nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """Its BatchNorm layers, in the order in which they are defined."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def norms_with_statistics(network: nn.Module) -> list[BatchNorm]:
    """Those that keep running statistics of what they have seen."""
    return [norm for norm in batch_norms(network) if norm.track_running_stats]
