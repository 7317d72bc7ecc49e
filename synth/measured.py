"""What this project measured of its recipes, for `ddengine.advise`.

measured.json is made by benchmarks/measured.py of the tables in docs/results; nothing else may be
written into it.
"""

import json
from functools import cache
from pathlib import Path

from ddengine.api.advise import Candidate, Measurement
from ddengine.artefact.merging import PEOPLES
from synth.catalogue import find

# recipes for any images, the one that does most in the shortest time first; their methods are not
# those of the others, so that a choice is left
FOR_OWN = ("own/folder", "idc/fashion_mnist_ipc10_small", "mtt/fashion_mnist_ipc10_small")
FOR_NAMED = ("dm/fashion_mnist_ipc10_small", *FOR_OWN[1:])
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


def candidates(dataset: str = "own") -> list[Candidate]:
    """Recipes to choose from for a dataset, by its data.name, with what was measured of them.

    ddengine.advise(my_images, synth.candidates(), minutes=10)
    """
    made = []
    for name in FOR_OWN if dataset in PEOPLES else FOR_NAMED:
        method = METHOD.get(name, name.split("/")[0])
        of_method = [row for recipe, row in measurements() if recipe.split("/")[0] == method]
        made.append(Candidate(find(name), tuple(of_method)))
    return made
