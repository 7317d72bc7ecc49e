"""What a set costs: bytes, and floating-point operations of a training."""

import math
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddengine.evaluation.bench import Bench, Labels
from ddengine.evaluation.decoded import Decoded, Labelled
from ddengine.models import build_model
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.rng import generator
from ddengine.types import TrainingSet


def examples_seen(num: int, steps: int, batch: int) -> int:
    """Examples in so many updates on a set of `num`, the last batch of each epoch ragged."""
    epochs, rest = divmod(steps, math.ceil(num / batch))
    return epochs * num + min(rest * batch, num)


@cache
def forward_flops(model: str, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Floating-point operations of matrix products and convolutions for one image through a
    network; training takes about three times as many.
    """
    network = build_model(model, image_shape, num_classes, generator(0)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *image_shape))
    return counter.get_total_flops()


def ledger_of(
    of: TrainingSet, labels: Labels, bench: Bench, steps: int
) -> tuple[dict[str, int], dict[str, int]]:
    """(what is stored of a set, in bytes of images, compensators, labels, other; both ways to count
    dynamic labels).

    Of a distilled one (and of real images in a codec) all tensors as they are shipped, but for
    preprocessing, which can be fitted again; of real images a byte a value and 8 for the class,
    with soft labels those of the distilled set for each. Dynamic labels are either the teachers,
    who make them, or all that they ever say: 2 bytes for each class at each of the examples seen.
    The smaller counts.
    """
    if isinstance(of, Decoded):
        ledger = dict(of.ledger)
        if labels != "own" and of.hard_bytes is not None:
            ledger["labels"] = of.hard_bytes
    else:
        num = len(of)
        ledger = {
            "images": num * math.prod(bench.data.image_shape),
            "compensators": 0,
            "labels": 8 * num,
            "other": 0,
        }
        if isinstance(of, Labelled):
            ledger["labels"] += round(bench.label_bytes * num)
    if labels != "dynamic":
        return ledger, {}
    both = {
        "teachers": sum(
            t.numel() * t.element_size()
            for network in bench.teachers
            for t in network.state_dict().values()
        ),
        "stored": 2 * examples_seen(len(of), steps, bench.config.batch) * bench.data.num_classes,
    }
    ledger["labels"] += min(both.values())
    return ledger, both


def label_bytes(syn: SyntheticSet) -> float:
    """Bytes of one soft label as the set stores them; of four-byte logits for a set without."""
    if not syn.targets.soft:
        return 4.0 * len(syn.class_names)
    stored = sum(syn.tensors[k].nbytes for k in syn.targets.names if k in syn.tensors)
    return stored / len(syn.tensors["logits"])
