"""Rows of an evaluation: of a set and a network what its trainings reached and cost."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ddengine.evaluation import brought
from ddengine.evaluation.bench import Bench, Contender
from ddengine.evaluation.intervals import counted, interval
from ddengine.evaluation.ledger import (
    count_flops,
    dynamic_labels,
    examples_seen,
    forward_flops,
    ledger_of,
)
from ddengine.evaluation.rates import adapted
from ddengine.evaluation.trainings import choose_lr, cut_of, final, reported_seeds, result_of
from ddengine.learning.training import Labels
from ddengine.system.rng import generator
from ddengine.types import Facts, Json, TrainingSet


def row(bench: Bench, who: Contender, model: str) -> Json:
    """One row of the table.

    Networks that diverged are counted, and left out of all means.
    """
    assert bench.data.test is not None
    lr, seconds = choose_lr(bench, who, model)
    run = result_of(bench, final(bench, who, model))
    accuracies = run["accuracies"]
    finite = counted(accuracies)
    mean, std, ci95 = interval(finite)
    shown = who.sets(0)
    images = len(shown)
    cut = cut_of(bench, who, model)
    steps = bench.updates(who) if cut is None else cut["updates"]
    examples = _examples(bench, images, steps)
    tested = [len(members) for members in bench.data.test.members]
    return {
        "set": who.name,
        "model": model,
        "images": images,
        **_bytes(bench, shown, who.labels, examples),
        "accuracy_mean": mean,
        "accuracy_std": std,
        "ci95": ci95 and list(ci95),
        "n": len(finite),
        "diverged": len(accuracies) - len(finite),
        **by_class(run, tested, bench.data.class_names),
        **_training(bench, model, lr, steps, examples),
        "seconds": round(seconds + run["seconds"], 2),
        **_economies(bench, who, run, cut),
        "accuracies": _networks(bench, who, accuracies),
    }


def _examples(bench: Bench, images: int, steps: int) -> int:
    """Examples in so many updates on a set of `images`."""
    if bench.config.students is not None:
        return steps * bench.config.batch
    return examples_seen(images, steps, bench.config.batch)


def _economies(bench: Bench, who: Contender, run: Facts, cut: Facts | None) -> Json:
    """What was not done: updates that were cut, trainings that others had done."""
    economies: Json = {}
    if cut is not None:
        economies["cut"] = dict(cut)
    looked = None if who.through is None else cut_of(bench, who.through, bench.home)
    if looked is not None:
        economies["looked_cut"] = looked["updates"]
    if run.get("remembered"):
        economies["remembered"] = True
    return economies


def _bytes(bench: Bench, of: TrainingSet, labels: Labels, examples: int) -> Json:
    """What is stored of a set; of dynamic labels both ways to count them, and the one that counts.

    `examples`: so many are seen in a training.
    """
    ledger = ledger_of(of, labels, bench)
    if labels != "dynamic":
        return {"bytes": sum(ledger.values()), "ledger": ledger}
    ways = dynamic_labels(bench, examples)
    smaller = min(ways, key=ways.__getitem__)
    ledger["labels"] += ways[smaller]
    return {
        "bytes": sum(ledger.values()),
        "ledger": ledger,
        "dynamic_labels": ways,
        "labels_counted": smaller,
    }


def _training(bench: Bench, model: str, lr: float, steps: int, examples: int) -> Json:
    """How networks were trained.

    What a training function of the user does with rate and updates is not known.
    """
    if bench.train is not None:
        return {"trained_by": brought.name_of(bench.train), "lr": lr, "steps": steps}
    shape = bench.data.image_shape
    if model in bench.factories:
        network = bench.new_model(model)(generator(0))
        flops = count_flops(network, shape)
    else:
        flops = forward_flops(model, shape, bench.data.num_classes)
    return {
        "optimiser": adapted(bench.config, model).optimiser,
        "lr": lr,
        "steps": steps,
        "examples_seen": examples,
        "training_flops": 3.0 * examples * flops,  # more than whole numbers of 64 bits hold
    }


def _networks(bench: Bench, who: Contender, accuracies: Sequence[float | None]) -> list[Json]:
    """Of each network its seed, the draw of images it was trained on, and its accuracy."""
    networks = []
    seeds = reported_seeds(bench)
    for i, (seed, accuracy) in enumerate(zip(seeds, accuracies, strict=True)):
        draw = i if who.several_draws else 0
        network: Json = {"seed": seed, "draw": draw, "accuracy": accuracy}
        if accuracy is None:
            network["diverged"] = True
        networks.append(network)
    return networks


def by_class(run: Facts, images: Sequence[int], class_names: Sequence[str]) -> Json:
    """What a row says of the classes.

    That is the mean accuracy on each, and the balanced accuracy, the mean over classes, with its
    deviation over networks. A class without test images has no accuracy and does not count.
    Networks that diverged do not either.

    Args:
        run: "accuracies" of networks, None where one diverged, and "right", of each network the
            images of each class that it is right about.
        images: test images of each class.
        class_names: of each class.
    """
    tested = [c for c, num in enumerate(images) if num]
    shares = []  # (networks, classes with images)
    for right, accuracy in zip(run["right"], run["accuracies"], strict=True):
        if accuracy is not None:
            shares.append([right[c] / images[c] for c in tested])
    balanced = [float(np.mean(of_network)) for of_network in shares]
    mean, std, _ = interval(balanced)
    names = distinct(class_names)
    per_class: dict[str, float | None] = dict.fromkeys(names)
    if shares:
        of_classes = np.mean(shares, axis=0).tolist()
        for c, share in zip(tested, of_classes, strict=True):
            per_class[names[c]] = share
    return {
        "balanced_accuracy_mean": mean,
        "balanced_accuracy_std": std,
        "per_class": per_class,
    }


def distinct(names: Sequence[str]) -> list[str]:
    """The names of classes, with its number behind a name that several have.

    ImageNet has two cranes.
    """
    times = Counter(names)
    return [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]
