"""What a run leaves to the machine: chosen once, stored in its folder, obeyed when it goes on."""

from pathlib import Path

import torch

from ddengine import contents, loop, turns
from ddengine.objective import Objective, ObjectiveConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files
from ddengine.system.errors import UserError
from ddengine.types import Json

CHOICES = "choices.json"  # in the folder of a run


def choose(
    config: ObjectiveConfig,
    objective: Objective,
    syn: SyntheticSet,
    device: torch.device,
    folder: Path | None = None,
    more: Json | None = None,
) -> list[Json]:
    """What is chosen for each objective of a run, all of `config`, which do so from now on.

    It is stored with `more` that was chosen for the run.

    In the folder of a run it is what was chosen when the run began: nothing where that was before
    there was a choice. Of several ranks the first chooses for all.
    """
    objectives = turns.alone(objective)

    def here() -> list[Json]:
        memory = dist.share_of_memory(device)
        return [config.choices(one, syn, memory) for one in objectives]

    def store() -> None:
        assert folder is not None
        if (folder / CHOICES).exists():
            return
        begun_before = (folder / loop.CHECKPOINT).exists()  # there was anything to choose
        chosen = [{} for _ in objectives] if begun_before else here()
        scales = {} if begun_before else turns.facts(objective)
        files.write_json(folder / CHOICES, {"objectives": chosen, **scales, **(more or {})})

    if folder is None:
        chosen = dist.told(here())
    else:
        dist.on_first_rank(store)
        stored = contents.read_json(folder / CHOICES, "objectives")
        chosen = stored["objectives"]
        turns.restore(objective, stored)
        if len(chosen) != len(objectives):
            raise UserError(
                f"{folder / CHOICES} says what {len(chosen)} objectives left to the machine, and "
                f"the run has {len(objectives)}; restore it, or begin anew with --restart."
            )
    for one, choices in zip(objectives, chosen, strict=True):
        config.choose(one, choices)
    return chosen
