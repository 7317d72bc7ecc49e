"""Whether a network can learn from the last batch of an epoch, where that is a single image."""

import copy

import torch
from torch import nn

from ddengine.models.norms import batch_norms
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped
from ddengine.types import TrainingSet


def check_last_batch(
    network: nn.Module, of: TrainingSet, batch: int, flag: str, num: int | None = None
) -> None:
    """Raise UserError where BatchNorm would see one number of a channel, which has no spread.

    So it is of one image whose maps are single pixels, as those of a network for large images are
    of small ones. `flag` is what sets the size of batches, `num` how many of the images an
    epoch sees, None: all. The network stays as it is.
    """
    num = len(of) if num is None else num
    if (num - 1) % batch or not batch_norms(network):
        return
    image = of.batch(torch.arange(1)).images
    weight = next(network.parameters())
    try:
        with torch.no_grad(), scoped(generator(0)):
            copy.deepcopy(network).train()(image.to(weight.device, weight.dtype))
    except ValueError:
        raise UserError(
            f"The last batch of {num} images holds one, which shrinks to single pixels in this "
            f"network, and BatchNorm has no spread of one number; set {flag}, now {batch}, to "
            "another number, or name a network for small images."
        ) from None
