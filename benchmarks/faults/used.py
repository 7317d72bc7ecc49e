"""What the uses of a set and of a dataset, and other programs, would have written: small files.

`made` puts them where `strange.py` keeps what it spoils. The commands are those of the program;
what they would train for minutes is put in its place.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ddengine import commands
from ddengine.system import files
from ddengine.uses import continual, labels, pruning, transfer

# the command of each use of a dataset, its folder, and the module whose `run` does its work
USES = {
    "prune": ("pruned", pruning),
    "buy_labels": ("bought", labels),
    "continual": ("learned", continual),
}
# settings of which 200 images are enough
FEW = {
    "prune": ("--pruning.fractions", "0.1"),
    "buy_labels": ("--labels.first_per_class", "1", "--labels.points", "5"),
    "continual": ("--continual.budget", "2000"),
}
FEW_OF_SET = ("--to", "digits", "--controls", "none", "--limit", "200")
PAIR = [0.4, 0.6]  # a 95 % interval
MEAN = {"mean": 0.5, "std": 0.1, "ci95": PAIR, "values": [0.4, 0.6], "diverged": 0}
DIFFERENCE = {"difference": 0.1, "difference_ci95": [0.05, 0.15], "p": 0.01, "paired": 2}
ACCURACY = {"accuracy_mean": 0.5, "accuracy_std": 0.1, "ci95": PAIR, "diverged": 0}
INTERVAL = {"interval": "Student's t on the logit scale", "seconds": 2.5, "seed": 0}


def scores() -> dict[str, Any]:
    """scores.json."""
    entry = {"model": "mlp", "diverged": 0, "scores": {"label_robust_score": MEAN | {"n": 2}}}
    return {"format": 3, "scores": [entry, entry | {"model": "other"}], **INTERVAL}


def ranking() -> dict[str, Any]:
    """ranking.json."""
    correlations = {"kendall": 0.5, "kendall_ci95": PAIR, "spearman": None, "spearman_ci95": None}
    sets = [{"set": "distilled", **correlations}, {"set": "random", **correlations}]
    return {"format": 3, "networks": ["a", "b", "c"], "sets": sets, "note": "few", **INTERVAL}


def privacy() -> dict[str, Any]:
    """privacy.json."""
    near = dict.fromkeys(("median_train", "median_held_out", "nearest_in_train"), 0.5)
    near |= {"images": 10, "near_copies": 1, "much_nearer": 0, "balanced_nearest_in_train": 0.5}
    near |= {"nearest_in_train_by_chance": 0.5, "balanced_by_chance": 0.5, "balanced_ci95": PAIR}
    area = {"auc": 0.5, "ci95": PAIR, "tpr_at_1_fpr": 0.01}
    attack = {"score": "distance, pixels", **area, "control": area}
    return {
        **{"format": 3, "images": 10, "train": 180, "held_out": 359, "near_copy_rms": 0.02},
        "neighbours": {"pixels": {"distilled": near, "control": near}},
        "membership": [attack, attack | {"control": None}],
        **{"note": "Distilled is not anonymous.", "seed": 0},
    }


def transferred() -> dict[str, Any]:
    """transfer.json, but for its identity."""
    row = {"data": "digits", "shots": 2, "images": 20, "way": "probe", "model": "mlp", "n": 2}
    row |= ACCURACY
    facts = {"stored_shape": [3, 32, 32], "shape": [1, 8, 8], "channels": 3}
    counts = {"train": 180, "validation": 0, "test": 359}
    return {
        **{"format": 3, "models": ["mlp", "other"], "missing": [], "warnings": []},
        "starts": {"distilled": {"said": "the set", "bytes": 9}, "none": {"said": "new"}},
        "datasets": {"digits": facts | {"num_images": counts}},
        "rows": [row | {"set": "none"}, row | DIFFERENCE | {"set": "distilled", "shots": "all"}],
        **INTERVAL,
    }


def pruned() -> dict[str, Any]:
    """prune.json, but for its identity."""
    row: dict[str, Any] = {"selection": "random", "fraction": 0.1, "images": 18, "bytes": 1296}
    row |= {"loss": "kd", "alpha": 0.5, "teacher": "mlp", "lr": 0.01, **ACCURACY}
    size = {"size": "0.1", "fraction": 0.1}
    other = row | {"loss": "ce", "alpha": 0.0, "teacher": None, "fraction": 1.0, "selection": "all"}
    return {
        "config": {"steps": 3, "repeats": 2},
        **{"model": "mlp", "data": "digits", "images": 180},
        "teachers": [{"teacher": "mlp", "repeat": 0, "accuracy": 0.9}],
        "rows": [row, other],
        "findings": {
            "alphas": [size | {"best": 0.5, "level": [0.5]}] * 2,
            "selections": [size | DIFFERENCE | {"selection": "herding"}],
            "teachers": [size | DIFFERENCE | {"teacher": "other"}],
        },
        **INTERVAL,
    }


def bought() -> dict[str, Any]:
    """labels.json, but for its identity."""
    row = {"rule": "rad", "answers": "30 % wrong", "bought": 10, "wrong_bought": [0.4, 0.3]}
    compared = {"answers": "30 % wrong", "rule": "uniform", **DIFFERENCE}
    return {
        "config": {"rounds": 2, "points": 5, "repeats": 2},
        **{"model": "mlp", "points": 180, "known": 10},
        "rows": [row | {"rounds": [MEAN] * 3}],
        "differences": [compared],
        **INTERVAL,
    }


def learned() -> dict[str, Any]:
    """continual.json."""
    memory = {"images_per_class": 1, "bytes": 720, "accuracy": [MEAN, MEAN], "final": MEAN}
    return {
        "config": {"stages": 2, "repeats": 2, "budget": 720, "strategy": "replay"},
        **{"model": "mlp", "classes_seen": [5, 10]},
        "memories": {"distilled": memory | {"forgetting": MEAN}},
        **INTERVAL,
    }


# the commands, in whose words {} is the folder with everything


def of_dataset(command: str, data: Sequence[str]) -> list[str]:
    """A use of a dataset, which is the same command when it goes on."""
    out = f"{{}}/{USES[command][0]}"
    return [command, "dm/fashion_mnist_ipc1_small", *data, *FEW[command], "--out", out]


def of_set() -> list[str]:
    """A transfer of the set in `run`, which is the same command when it goes on."""
    return ["transfer", "{}/run", *FEW_OF_SET]


CONTENTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "prune": pruned,
    "buy_labels": bought,
    "continual": learned,
}


def made(place: Path, data: Sequence[str]) -> None:
    """Write all of it into the folder that has the run."""
    for name, content in (("scores", scores), ("ranking", ranking), ("privacy", privacy)):
        files.write_json(place / "run" / f"{name}.json", content())
    with ExitStack() as stack:
        for command, (_, module) in USES.items():
            content = CONTENTS[command]()
            stack.enter_context(patch.object(module, "run", _instead(command, content)))
        stack.enter_context(patch.object(transfer, "run", _of_identity))
        for command in USES:
            assert commands.main(_at(place, of_dataset(command, data))) == 0
        assert commands.main(_at(place, of_set())) == 0
    _foreign(place / "foreign")


def _at(place: Path, words: Sequence[str]) -> list[str]:
    return [word.format(place) for word in words]


def _instead(command: str, content: dict[str, Any]) -> Callable[..., Any]:
    """What stands in for the work of a use."""

    def run(context: Any, *_: Any, **__: Any) -> Any:
        if command == "continual":
            return content
        told = content | {"identity": context.identity}
        return (told, None) if command == "buy_labels" else told

    return run


def _of_identity(context: Any, *_: Any) -> dict[str, Any]:
    return transferred() | {"identity": context.identity}


@contextmanager
def without_work(reached: Callable[..., Any]) -> Any:
    """Within the block uses call `reached` where they would begin to work."""
    with ExitStack() as stack:
        for module in (pruning, labels, continual, transfer):
            stack.enter_context(patch.object(module, "run", reached))
        yield


def _foreign(place: Path) -> None:
    """Files of other programs, for digits of 8x8: sets, a result of DC, experts."""
    place.mkdir()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(10, 1, 8, 8, generator=draw)
    torch.save(images, place / "images_best.pt")
    torch.save(torch.arange(10), place / "labels_best.pt")
    torch.save(torch.tensor(0.01), place / "lr_best.pt")
    torch.save([images.sigmoid(), torch.arange(10)], place / "data_best.pt")
    result = {"data": [[images, torch.arange(10)]], "accs_all_exps": {"mlp": [0.5]}}
    torch.save(result, place / "res.pt")
