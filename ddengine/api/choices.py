"""What a run leaves to the machine: chosen once, stored in its folder, obeyed when it goes on."""

from pathlib import Path

import torch

from ddengine import loop, turns
from ddengine.objective import Objective
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files
from ddengine.system.runtime import available_memory
from ddengine.types import Json

CHOICES = "choices.json"  # in the folder of a run


def choose(
    objective: Objective, syn: SyntheticSet, device: torch.device, folder: Path | None = None
) -> Json:
    """What is chosen for the objectives of a run, which do so from now on; {} where nothing is.

    In the folder of a run it is what was chosen when the run began: nothing where that was before
    there was a choice. Of several ranks the first chooses for all.
    """
    of_each = turns.alone(objective)
    if folder is None:
        memory = available_memory(device)
        chosen = [one.choices(syn, memory) for one in of_each]
    else:
        dist.on_first_rank(lambda: _store(objective, syn, device, folder))
        chosen = files.read_json(folder / CHOICES, "objectives")["objectives"]
    for one, choices in zip(of_each, chosen, strict=True):
        one.choose(choices)
    return {"choices": chosen} if any(chosen) else {}


def _store(objective: Objective, syn: SyntheticSet, device: torch.device, folder: Path) -> None:
    """Write what is chosen, unless the folder says it already."""
    path = folder / CHOICES
    if path.exists():
        return
    of_each = turns.alone(objective)
    if (folder / loop.CHECKPOINT).exists():  # begun before anything was chosen
        chosen: list[Json] = [{} for _ in of_each]
    else:
        memory = available_memory(device)
        chosen = [one.choices(syn, memory) for one in of_each]
    files.write_json(path, {"objectives": chosen})
