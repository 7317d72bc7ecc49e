"""What a set costs: bytes, and floating-point operations of a training."""

import math
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddengine.evaluation.bench import Bench
from ddengine.evaluation.decoded import Decoded, Labelled
from ddengine.learning.training import Labels
from ddengine.models import ImageShape, build_model
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.rng import generator
from ddengine.types import TrainingSet


def examples_seen(num: int, steps: int, batch: int) -> int:
    """Examples in so many updates on a set of `num`, the last batch of each epoch ragged."""
    epochs, rest = divmod(steps, math.ceil(num / batch))
    return epochs * num + min(rest * batch, num)


@cache
def forward_flops(model: str, image_shape: ImageShape, num_classes: int) -> int:
    """Floating-point operations for one image through a network, as `count_flops` counts them."""
    return count_flops(build_model(model, image_shape, num_classes, generator(0)), image_shape)


def count_flops(network: nn.Module, image_shape: ImageShape) -> int:
    """Floating-point operations of matrix products and convolutions for one image.

    Training takes about three times as many.
    """
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *image_shape))
    return counter.get_total_flops()


def ledger_of(of: TrainingSet, labels: Labels, bench: Bench) -> dict[str, int]:
    """What is stored of a set, in bytes of images, compensators, labels and other.

    Of a distilled one (and of real images in a codec) all tensors count as they are shipped, but
    for preprocessing, which can be fitted again. Real images count a byte a value and 8 for the
    class, with soft labels those of the distilled set for each. Dynamic labels are counted by
    `dynamic_labels`.
    """
    if isinstance(of, Decoded):
        ledger = dict(of.ledger)
        if labels != "own" and of.hard_bytes is not None:
            ledger["labels"] = of.hard_bytes
        return ledger
    num = len(of)
    soft = round(bench.label_bytes * num) if isinstance(of, Labelled) else 0
    return {
        "images": num * math.prod(bench.data.image_shape),
        "compensators": 0,
        "labels": 8 * num + soft,
        "other": 0,
    }


def dynamic_labels(bench: Bench, examples: int) -> dict[str, int]:
    """Both ways to count labels that teachers make, in bytes; the smaller counts.

    They are either the teachers, or all that these ever say: 2 bytes for each class at each of the
    examples seen.
    """
    teachers = 0
    for network in bench.teachers:
        for tensor in network.state_dict().values():
            teachers += tensor.numel() * tensor.element_size()
    return {"teachers": teachers, "stored": 2 * examples * bench.data.num_classes}


def label_bytes(syn: SyntheticSet) -> float:
    """Bytes of one soft label as the set stores them; of four-byte logits for a set without."""
    if not syn.targets.soft:
        return 4.0 * len(syn.class_names)
    stored = 0
    for name in syn.targets.names:
        if name in syn.tensors:
            stored += syn.tensors[name].nbytes
    return stored / len(syn.tensors["logits"])
