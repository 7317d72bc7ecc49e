"""The runs of a sweep: which there are, what must hold of them, and doing one."""

import inspect
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddengine.api import experts as of_experts
from ddengine.api.distill import Bibtex, Job, distill
from ddengine.api.evaluate import evaluate, is_told, networks_of, with_changes
from ddengine.api.inputs import Images, dataset_of, pointed_at
from ddengine.artefact import runs
from ddengine.changes import as_changed, changed, nested
from ddengine.data import Data, Dataset
from ddengine.evaluation.settings import (
    NO_PROTOCOL,
    NO_SETTING,
    OF_THE_TEST,
    PROSE,
    flat,
    short_names,
)
from ddengine.experts import ExpertMaker, ExpertSource
from ddengine.models import build_model
from ddengine.prepare import buffer_models, check_networks, reads_experts
from ddengine.recipe import DataConfig, Recipe
from ddengine.system import files
from ddengine.system.bars import Report
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError, unknown
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Compile

CPU = torch.device("cpu")
# arguments of `evaluate` that a sweep gives
GIVEN = ("of", "data", "experts", "folder", "seed", "device", "precision", "progress", "restart")
DECIDES_NOTHING = {"name", *PROSE, *NO_SETTING, *(f"evaluation.{name}" for name in NO_PROTOCOL)}
QUICK_STARTS = ("real", "noise")  # kinds of initial images that take no time to make
NO_NAME = re.compile(r"[^\w.,=+-]+")  # what the name of a folder has not
LONGEST = 120  # characters of such a name


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all runs of a sweep have in common."""

    data: Images
    experts: ExpertMaker | None
    evaluation: Mapping[str, Any]  # further arguments of `evaluate`
    seed: int  # of the evaluations
    device: str
    precision: Precision
    compile: Compile
    restart: bool
    force: bool
    tensorboard: bool
    bibtex: Bibtex | None
    command: tuple[str, ...]  # the words of `distill` without those that differ

    def source(self, recipe: Recipe) -> ExpertSource | None:
        """Where the experts of a recipe lie. Raises UserError where nobody makes them."""
        if not reads_experts(recipe):
            return None
        if self.experts is None:
            raise UserError(
                f"The recipe {recipe.name} needs experts; pass experts=buffers.ExpertMaker()."
            )
        return self.experts.source(recipe, self.precision)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep."""

    name: str
    folder: Path
    values: Mapping[str, Any]  # the settings that are swept
    seed: int
    recipe: Recipe

    @property
    def flags(self) -> list[str]:
        """The words of `distill` by which it differs from the others."""
        words = []
        for path, value in self.values.items():
            several = value if isinstance(value, tuple) else (value,)
            words += [f"--{path}", *map(str, several)]
        return [*words, "--seed", str(self.seed), "--out", str(self.folder)]

    @property
    def is_finished(self) -> bool:
        """Whether it has a set and its evaluation."""
        meta = self.folder / "distilled" / "meta.json"
        return meta.is_file() and (self.folder / "evaluation.json").is_file()


# Planning.


def planned(
    recipe: Recipe, grid: Mapping[str, Sequence[Any]], seeds: Sequence[int], folder: Path
) -> list[PlannedRun]:
    """All runs: of each seed those of all settings, so that seeds are complete one by one.

    Raises UserError for settings that are none, or do not go together.
    """
    for path, values in grid.items():
        _check_axis(path, values)
    _check_seeds(seeds)
    short = short_names(list(grid), _fields(recipe))
    plans = []
    for seed, values in itertools.product(seeds, itertools.product(*grid.values())):
        chosen = dict(zip(grid, map(_plain, values), strict=True))
        named = dict(zip(map(short.get, grid), chosen.values(), strict=True))
        name = _name(named, seed)
        of_run = as_changed(changed(recipe, nested(chosen)), recipe)
        plans.append(PlannedRun(name, folder / "runs" / name, chosen, seed, of_run))
    return plans


def _check_axis(path: str, values: Sequence[Any]) -> None:
    """Raise UserError for no values, equal ones, and a field that is nothing to sweep."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UserError(
            f"The grid gives {values!r} for {path}; give a list of values, one at least."
        )
    if len(set(map(repr, values))) < len(values):
        raise UserError(f"The grid names a value of {path} twice; name each once.")
    if path in DECIDES_NOTHING:
        raise UserError(f"{path} decides nothing of a set, so there is nothing to sweep.")
    part, _, name = path.partition(".")
    if part == "data" and name in OF_THE_TEST:
        raise UserError(
            f"{path} decides which images are tested on, so what comes of its values cannot be "
            "compared; start a sweep for each of them."
        )


def _check_seeds(seeds: Sequence[int]) -> None:
    are_whole = all(type(seed) is int for seed in seeds)
    if not seeds or not are_whole or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds is {list(seeds)}; give different whole numbers, one at least.")


def _fields(recipe: Recipe) -> list[str]:
    """The dotted names of all fields."""
    return list(flat(to_dict(recipe)))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _name(values: Mapping[str | None, Any], seed: int) -> str:
    """The name of a run's folder, which says its settings."""
    words = []
    for name, value in {**values, "seed": seed}.items():
        words.append(f"{name}={_in_name(value)}")
    name = NO_NAME.sub("-", ",".join(words))
    if len(name) <= LONGEST:
        return name
    return f"{digest([to_dict(values), seed])},seed={seed}"


def _in_name(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "x".join(map(_in_name, value))
    return str(value)


# Checking.


@dataclass
class Checks:
    """What must hold before the first run of a sweep begins."""

    common: Common
    dataset: Dataset | None = None
    loaded: dict[str, Data] = field(default_factory=dict)  # by data settings

    @classmethod
    def of(cls, common: Common) -> "Checks":
        """Those of runs on these images."""
        return cls(common, dataset_of(common.data))

    def check(self, run: PlannedRun) -> None:
        """Raise UserError for settings that do not go, and a folder of another run."""
        recipe, source = pointed_at(run.recipe, self.dataset)
        experts = self.common.source(recipe)
        recipe, origin = of_experts.source_of(recipe, experts, self.common.precision)
        job = Job(
            recipe=recipe,
            data=self._data(source.config, partial(source.load, CPU, origin.preprocess)),
            source=source,
            origin=origin,
            device=CPU,
            seed=run.seed,
            precision=self.common.precision,
            compile=self.common.compile,
        )
        check_networks(recipe, job.data)
        self._check_evaluation(recipe, job.data)
        if recipe.buffer is not None and reads_experts(recipe):
            recipe.objective.check(recipe.buffer.kept_epochs())
        elif recipe.init.kind in QUICK_STARTS:
            job.start(None)
        if self.common.restart:
            runs.check_own(run.folder, runs.MARK)
        elif experts is None or not source.is_own:
            # what experts of images that Python holds are, is known when they are made
            runs.is_finished(run.folder, job.recipe, job.identity())

    def images(self, recipe: Recipe) -> str:
        """The digest of the training images of a recipe that was checked."""
        _, source = pointed_at(recipe, self.dataset)
        return self.loaded[digest(to_dict(source.config))].train.digest

    def _data(self, config: DataConfig, load: Callable[[], Data]) -> Data:
        """Images with these settings, which are loaded once."""
        key = digest(to_dict(config))
        if key not in self.loaded:
            self.loaded[key] = load()
        return self.loaded[key]

    def _check_evaluation(self, recipe: Recipe, data: Data) -> None:
        asked = self.common.evaluation
        config = with_changes(recipe.evaluation, asked.get("protocol"), asked.get("baselines"))
        names, _ = networks_of(asked.get("models") or config.models)
        for name in names:
            build_model(name, data.image_shape, data.num_classes, generator(0))


def check_arguments(evaluation: Mapping[str, Any]) -> None:
    """Raise UserError for what `evaluate` does not take, or a sweep gives itself."""
    known = set(inspect.signature(evaluate).parameters) - set(GIVEN)
    for name in evaluation:
        if name not in known:
            raise unknown("argument in evaluation", name, known)


# Doing.


@dataclass(frozen=True)
class MakeExperts:
    """Training the experts that several runs follow, in a process of its own."""

    recipe: Recipe
    common: Common

    def __call__(self, report: Report) -> None:
        """Do it."""
        common = self.common
        assert common.experts is not None
        common.experts.make(
            common.data,
            self.recipe,
            device=common.device,
            precision=common.precision,
            progress=report,
        )


@dataclass(frozen=True)
class DoRun:
    """A distillation and its evaluation, in a process of its own."""

    run: PlannedRun
    common: Common

    def __call__(self, report: Report) -> dict[str, Any]:
        """Do it; what is done already is read. Returns seconds and the accuracy of the set."""
        run, common = self.run, self.common
        began = time.perf_counter()
        process = {"device": common.device, "precision": common.precision, "progress": report}
        command = [*common.command, *run.flags] if common.command else ()
        result = distill(
            common.data,
            run.recipe,
            common.source(run.recipe),
            folder=run.folder,
            seed=run.seed,
            compile=common.compile,
            restart=common.restart,
            force=common.force,
            tensorboard=common.tensorboard,
            bibtex=common.bibtex,
            command=command,
            **process,
        )
        between = time.perf_counter()
        asked = dict(common.evaluation)
        if words := asked.pop("command", ()):
            first, *flags = words
            asked["command"] = (first, str(run.folder), *flags)
        outcome = evaluate(
            result,
            common.data,
            experts=common.experts,
            folder=None if _is_told(asked) else run.folder,
            seed=common.seed,
            restart=common.restart,
            **process,
            **asked,
        )
        row = outcome.rows[0]
        return {
            "distilling": between - began,
            "evaluating": time.perf_counter() - between,
            "accuracy": row["accuracy_mean"],
        }


def _is_told(asked: Mapping[str, Any]) -> bool:
    """Whether `evaluate` keeps an evaluation with these arguments in the run without being told."""
    _, factories = networks_of(asked.get("models", ()))
    return is_told(factories, asked.get("test"), asked.get("train"))


def stores_needed(plans: Sequence[PlannedRun], checks: Checks) -> dict[str, list[PlannedRun]]:
    """The runs that follow the experts of each store that lacks some, by what decides it.

    The first of them asks for the most experts.
    """
    common, needed = checks.common, {}
    for run in plans:
        source = common.source(run.recipe)
        if source is None:
            continue
        images = checks.images(run.recipe)
        _, pointed = pointed_at(run.recipe, checks.dataset)
        if sum(source.on(pointed.config).missing(images).values()):
            needed.setdefault(_store_key(run.recipe, images), []).append(run)
    for following in needed.values():
        following.sort(key=_num_experts, reverse=True)
    return needed


def _store_key(recipe: Recipe, images: str) -> str:
    assert recipe.buffer is not None
    buffer = replace(recipe.buffer, num_experts=1)
    return digest([to_dict(buffer), buffer_models(recipe), images, recipe.data.zca])


def _num_experts(run: PlannedRun) -> int:
    return 0 if run.recipe.buffer is None else run.recipe.buffer.num_experts


def told(value: Any) -> Any:
    """An argument as JSON data that identifies it as far as a name does."""
    if isinstance(value, Mapping):
        return {str(key): told(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [told(part) for part in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    try:
        return files.to_json(to_dict(value))
    except TypeError:
        return f"a {type(value).__name__}"
