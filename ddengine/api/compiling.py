"""Whether the inner training of a run is compiled, where that is left to the machine.

Compiling takes up to minutes, and saves a part of each step. So a step is timed as it is; where all
that are left could save what compiling is expected to take, it is compiled and timed too. What
compiling took, and what a compiled step takes of the time of another, is kept beside the runs, with
the compiled code, which a later run of the same shapes starts from.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from ddengine import contents, turns
from ddengine.api.choices import CHOICES
from ddengine.data import Data
from ddengine.objective import Objective
from ddengine.plan.apart import timed
from ddengine.prepare import compiled
from ddengine.recipe import Recipe, resolved
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, files, log, runtime, typed
from ddengine.system.configs import digest
from ddengine.system.runtime import Precision
from ddengine.system.typed import Positive
from ddengine.types import Compile, Experts, Json

FOLDER = ".compiled"  # beside the folders of runs: what was measured, and the code
CODE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps compiled code
UNKNOWN = 60.0  # seconds that compiling is expected to take where it was never measured
MOST_SAVED = 0.5  # of a step; nothing compiled here has saved more
LONG = 10.0  # seconds of a step that is timed once, the first time, which takes longer
COMPILED = 2  # raised where other parts are compiled than when it was measured
DECIDE = ("model", "more_models", "ipc", "codec", "targets", "objective")  # shapes and the loss


class Asked(Protocol):
    """A distillation that is asked for, of images that are loaded."""

    @property
    def recipe(self) -> Recipe:
        """What is to be done."""
        ...

    @property
    def data(self) -> Data:
        """The images."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is done."""
        ...

    @property
    def precision(self) -> Precision:
        """Of its networks."""
        ...

    @property
    def compile(self) -> Compile:
        """Whether it is compiled, or that this is to be chosen."""
        ...


class Measured(NamedTuple):
    """What compiling is worth."""

    seconds: float  # that compiling took
    share: float  # of the time of a step that a compiled one takes


@contextmanager
def code_beside(folder: Path, compile: Compile) -> Iterator[None]:
    """Within the block torch keeps compiled code beside the folder of a run.

    Unless nothing is compiled, or the user has named a place for it.
    """
    if not compile or CODE in os.environ:
        yield
        return
    os.environ[CODE] = str((folder.parent / FOLDER / "code").absolute())
    try:
        yield
    finally:
        os.environ.pop(CODE, None)


def settled(
    asked: Asked,
    syn: SyntheticSet,
    objective: Objective,
    experts: Experts | None,
    folder: Path | None,
) -> tuple[Objective, Json]:
    """The objective of a run, compiled where that was chosen, and the choice as it is stored.

    In the folder of a run that was begun it is as it was chosen then. Where there is nothing to
    choose, the objective as it is and nothing. Of several ranks the first measures and chooses for
    all.
    """
    if asked.compile != "auto":
        return objective, {}

    def make() -> Objective:
        return compiled(objective, asked.recipe, asked.data, asked.device, experts, asked.precision)

    if folder is not None:
        # as the first rank sees it, which may have written the file before another looks
        chosen = dist.told(_stored(folder) if dist.rank() == 0 else None)
        if chosen is not None:
            return (make() if chosen else objective), {"compile": chosen}
    other = None
    if dist.rank() == 0:
        place = None if folder is None else folder.parent / FOLDER
        with dist.alone():  # the others do not take part in what is timed
            other = _if_it_pays(asked, syn, objective, make, place)
    chosen = dist.told(other is not None)
    if not chosen:
        return objective, {"compile": False}
    return other or make(), {"compile": True}


def _stored(folder: Path) -> bool | None:
    """What was chosen when the run in a folder was begun; None where it was not."""
    if not (folder / CHOICES).exists():
        return None
    return bool(contents.read_json(folder / CHOICES, "compile")["compile"])


def _if_it_pays(
    asked: Asked,
    syn: SyntheticSet,
    objective: Objective,
    make: Callable[[], Objective],
    place: Path | None,
) -> Objective | None:
    """The compiled objective where it pays, else None; both are said."""
    steps = asked.recipe.outer.steps
    # what compiling saves depends on how many graphs are kept without it
    left = _left_to_the_machine(asked, syn, objective)
    path = None if place is None else place / f"{_key(asked, left)}.json"
    known = _known(path)
    eager, _ = _seconds(asked, syn, objective, twice=False)
    expected = UNKNOWN if known is None else known.seconds
    if steps * eager * MOST_SAVED <= expected:
        log.say(
            f"not compiled: that takes about {expected:.0f} s, and {steps} steps of {eager:.2g} s "
            f"could save {steps * eager * MOST_SAVED:.0f} s at most"
        )
        return None
    if known is not None:
        pays = worth(steps, eager, known)
        log.say(f"{'compiled' if pays else 'not compiled'}, by what was measured before")
        return make() if pays else None
    other = make()
    try:
        _left_to_the_machine(asked, syn, other)
        each, more = _seconds(asked, syn, other, twice=True)
    except RuntimeError as error:  # of the compiler, such as that there is none
        log.say(f"not compiled, as that failed: {str(error).strip().splitlines()[0]}")
        return None
    if path is not None:
        files.make_folder(path.parent)
        files.write_json(path, Measured(more, each / eager)._asdict())
    faster = each < eager  # what was compiled costs no more
    log.say(
        f"{'compiled' if faster else 'not compiled'}: a step takes {each:.2g} s compiled, "
        f"{eager:.2g} s otherwise, and compiling took {more:.0f} s"
    )
    return other if faster else None


def worth(steps: int, eager: float, measured: Measured) -> bool:
    """Whether so many steps of `eager` seconds save more than compiling takes."""
    return steps * eager * (1 - measured.share) > measured.seconds


def _known(path: Path | None) -> Measured | None:
    """What was measured before; None where nothing was, or nothing that can be read."""
    if path is None or not path.is_file():
        return None
    try:
        content = files.read_json(path, "seconds", "share")
        typed.check(content, dict[str, Positive])
    except ValueError:  # which a UserError is
        log.say(f"{path} is damaged, so what compiling takes is measured again")
        return None
    return Measured(float(content["seconds"]), float(content["share"]))


def _left_to_the_machine(
    asked: Asked, syn: SyntheticSet, objective: Objective
) -> list[dict[str, bool]]:
    """Choose for each objective what a run leaves to the machine; of every number whether it is 0.

    The numbers follow the memory that is free at the moment.
    """
    config, left = asked.recipe.objective, []
    for one in turns.alone(objective):
        chosen = config.choices(one, syn, dist.share_of_memory(asked.device))
        config.choose(one, chosen)
        left.append({name: bool(value) for name, value in chosen.items()})
    return left


def _key(asked: Asked, left: list[dict[str, bool]]) -> str:
    """What decides how long compiling takes, and what it saves."""
    values = resolved(asked.recipe)
    parts = {part: values.get(part) for part in DECIDE}
    kernels = torch.backends.cpu.get_cpu_capability()
    where = [COMPILED, runtime.machine(asked.device), kernels, runtime.versions()["torch"]]
    where.append(torch.get_num_threads())
    shape = [list(asked.data.image_shape), asked.data.num_classes, asked.precision]
    return digest([parts, *shape, *where, left])


def _seconds(
    asked: Asked, syn: SyntheticSet, objective: Objective, *, twice: bool
) -> tuple[float, float]:
    """Seconds of a step, the mean over networks that take turns, and what all first ones take more.

    Unless `twice`, a long step is not made a second time.
    """
    learned = syn.by_tensor(asked.recipe.outer.optim)
    seconds, more = 0.0, 0.0
    objectives = turns.alone(objective)
    for one in objectives:
        first, _ = timed(asked.device, partial(turns.gradients, one, syn, learned, 0))
        second = first
        if twice or first < LONG:
            second, _ = timed(asked.device, partial(turns.gradients, one, syn, learned, 1))
        seconds += min(first, second)
        more += max(0.0, first - second)
    return seconds / len(objectives), more
