"""What this project measured of its recipes, for `ddengine.advise`.

measured.json is made by benchmarks/measured.py of the tables in docs/results; nothing else may be
written into it.
"""

import json
from functools import cache, partial
from pathlib import Path

from ddengine.api.advise import Candidate, Measurement
from ddengine.artefact.merging import PEOPLES
from synth.catalogue import RECIPES, find

# recipes for any images, the one that does most in the shortest time first; their methods are not
# those of the others, so that a choice is left
FOR_OWN = ("own/folder", "idc/fashion_mnist_ipc10_small", "mtt/fashion_mnist_ipc10_small")
METHODS = ("dm", "idc", "mtt")  # of recipes for images that have a name, in the same order
# the method that a recipe without a table of its own follows
METHOD = {"own/folder": "dm"}


@cache
def measurements() -> tuple[tuple[str, Measurement], ...]:
    """(recipe, what was measured of it) of every row."""
    path = Path(__file__).with_name("measured.json")
    rows = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        rows.append((entry.pop("recipe"), Measurement.of(entry)))
    return tuple(rows)


def _cell(dataset: str, method: str) -> str:
    """The small recipe of a method for a dataset, or the one for Fashion-MNIST."""
    places = [f"{method}/{dataset}_ipc10_small", f"{method}/fashion_mnist_ipc10_small"]
    if dataset == "digits":
        places.insert(0, f"{method}/digits_ipc10")
    return next(name for name in places if name in RECIPES)


def candidates(dataset: str = "own") -> list[Candidate]:
    """Recipes to choose from for a dataset, by its data.name, with what was measured of them.

    ddengine.advise(my_images, synth.candidates(), minutes=10)
    """
    made = []
    for name in FOR_OWN if dataset in PEOPLES else map(partial(_cell, dataset), METHODS):
        method = METHOD.get(name, name.split("/")[0])
        of_method = [row for recipe, row in measurements() if recipe.split("/")[0] == method]
        made.append(Candidate(find(name), tuple(of_method)))
    return made
