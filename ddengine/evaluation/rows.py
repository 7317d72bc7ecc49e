"""Rows of an evaluation: of a set and a network what its trainings reached and cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddengine.evaluation.bench import Bench, Contender, choose_lr, timed
from ddengine.evaluation.intervals import counted, interval
from ddengine.evaluation.ledger import examples_seen, forward_flops, ledger_of
from ddengine.evaluation.rates import adapted
from ddengine.learning import training


def row(bench: Bench, who: Contender, model: str) -> dict[str, Any]:
    """One row of the table: choose the rate, train, test.

    Networks that diverged are counted, and left out of all means.
    """
    assert bench.data.test is not None
    test = bench.data.test
    lr, seconds = choose_lr(bench, who, model)
    seeds = [bench.seed + i for i in range(bench.config.num_networks)]
    key = f"final/{who.name}/{model}/{lr!r}"
    run = bench.remember(
        key,
        f"{who.name} on {model}",
        lambda: timed(lambda: bench.accuracies(who, model, lr, seeds, test)),
    )
    finite = counted(run["accuracies"])
    mean, std, ci95 = interval(finite)
    shown = who.sets(0)
    steps = training.num_updates(len(shown), bench.config) if who.steps is None else who.steps
    examples = examples_seen(len(shown), steps, bench.config.batch)
    ledger, labels = ledger_of(shown, who.labels, bench, steps)
    return {
        "set": who.name,
        "model": model,
        "images": len(shown),
        "bytes": sum(ledger.values()),
        "ledger": ledger,
        **({"dynamic_labels": labels, "labels_counted": min(labels, key=lambda way: labels[way])} if labels else {}),
        "accuracy_mean": mean,
        "accuracy_std": std,
        "ci95": ci95 and list(ci95),
        "n": len(finite),
        "diverged": len(run["accuracies"]) - len(finite),
        **by_class(run, [len(members) for members in test.members], bench.data.class_names),
        "optimiser": adapted(bench.config, model).optimiser,
        "lr": lr,
        "steps": steps,
        "examples_seen": examples,
        "training_flops": 3 * examples * forward_flops(model, bench.data.image_shape, bench.data.num_classes),
        "seconds": round(seconds + run["seconds"], 2),
        "accuracies": [
            {"seed": seed, "draw": i if who.several_draws else 0, "accuracy": a, **({"diverged": True} if a is None else {})}
            for i, (seed, a) in enumerate(zip(seeds, run["accuracies"], strict=True))
        ],
    }  # fmt: skip


def by_class(
    run: Mapping[str, Any], images: Sequence[int], class_names: Sequence[str]
) -> dict[str, Any]:
    """What a row says of the classes: the mean accuracy on each, and the balanced accuracy, the
    mean over classes, with its deviation over networks.

    `run`: as `timed` returns it; `images`: test images of each class. A class without any has no
    accuracy and does not count. Networks that diverged do not either.
    """
    right = [r for r, a in zip(run["right"], run["accuracies"], strict=True) if a is not None]
    # (networks, classes with images)
    shares = [[r / num for r, num in zip(own, images, strict=True) if num] for own in right]
    mean, std, _ = interval([float(np.mean(own)) for own in shares])
    known = iter(np.mean(shares, axis=0).tolist() if shares else ())
    return {
        "balanced_accuracy_mean": mean,
        "balanced_accuracy_std": std,
        "per_class": {
            name: next(known, None) if num else None
            for name, num in zip(distinct(class_names), images, strict=True)
        },
    }


def distinct(names: Sequence[str]) -> list[str]:
    """The names of classes, with its number behind a name that several have (ImageNet has two
    cranes).
    """
    times = Counter(names)
    return [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]
