"""What this project measured of its recipes, for `ddengine.advise`.

measured.json is made by benchmarks/measured.py of the tables in docs/results; nothing else may be
written into it.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ddengine.api.advise import Candidate, Measurement
from ddengine.data.dataset import PEOPLES
from synth.catalogue import RECIPES, find

# the method that a recipe without a table of its own follows
METHOD = {"own/folder": "dm"}
IPC = 10  # of the recipes that are advised


@cache
def measurements() -> tuple[tuple[str, Measurement], ...]:
    """(recipe, what was measured of it) of every row."""
    path = Path(__file__).with_name("measured.json")
    rows = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        experts = entry.pop("seconds_of_experts") or 0.0
        entry["seconds"] += experts
        rows.append((entry.pop("recipe"), Measurement.of(entry)))
    return tuple(rows)


@cache
def reached() -> Mapping[str, float]:
    """The mean test accuracy, a fraction, of each recipe that a table has as it is."""
    path = Path(__file__).with_name("measured.json")
    means = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        if not entry["flags"]:
            means[entry["recipe"]] = entry["accuracy"]
    return means


def candidates(dataset: str = "own") -> list[Candidate]:
    """Recipes to choose from for a dataset, by its data.name, with what was measured of them.

        ddengine.advise(my_images, synth.candidates(), minutes=10)

    One of every method that has a small recipe: for the dataset itself, or else for Fashion-MNIST.
    The best that was measured comes first, then the best of another kind of objective, and so on.
    """
    made = []
    for name in _names(dataset):
        of_method = [row for recipe, row in measurements() if _method(recipe) == _method(name)]
        made.append(Candidate(find(name), tuple(of_method)))
    return _alternating(sorted(made, key=_worth))


def _method(name: str) -> str:
    """The method of a recipe."""
    return METHOD.get(name, name.split("/")[0])


def _names(dataset: str) -> list[str]:
    """The recipe of each method for a dataset; sets of features say no classes and are left out."""
    names: dict[str, str] = {}
    if dataset in PEOPLES:
        names["dm"] = "own/folder"
    for place in (
        f"{dataset}_ipc{IPC}",
        f"{dataset}_ipc{IPC}_small",
        f"fashion_mnist_ipc{IPC}_small",
    ):
        for name, recipe in RECIPES.items():
            small = place.endswith("_small") or dataset == "digits"
            says_classes = recipe.targets.kind != "features"
            if small and says_classes and name.split("/")[1] == place:
                names.setdefault(_method(name), name)
    return list(names.values())


def _worth(candidate: Candidate) -> tuple[int, float]:
    """By what recipes are sorted: whole percents that its method reached, then the seconds.

    What was not measured at as many images per class comes last.
    """
    at_ipc = [row for row in candidate.measurements if row.ipc == IPC]
    if not at_ipc:
        return 0, math.inf
    best = max(at_ipc, key=lambda row: row.accuracy)
    return -round(100 * best.accuracy), best.seconds or math.inf


def _alternating(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of each kind of objective in their order, then the second of each, and so on."""
    turns: list[list[Candidate]] = []
    seen: Counter[str] = Counter()
    for candidate in candidates:
        kind = type(candidate.recipe.objective).__name__
        if seen[kind] == len(turns):
            turns.append([])
        turns[seen[kind]].append(candidate)
        seen[kind] += 1
    return [candidate for turn in turns for candidate in turn]
