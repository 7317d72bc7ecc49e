"""Which recipe suits images and a time: what it takes here, and what was measured of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ddengine.api.estimate import Costs, costs
from ddengine.api.experts import ExpertSource
from ddengine.api.inputs import Images, Source, dataset_of
from ddengine.api.outcomes import Outcome
from ddengine.artefact.runs import RUNS
from ddengine.data import Data, Dataset
from ddengine.data.torch_dataset import OWN
from ddengine.prepare import reads_experts
from ddengine.recipe import DataConfig, Recipe
from ddengine.sets.codec.within_bytes import fitted
from ddengine.system import log, program
from ddengine.system.errors import UserError
from ddengine.system.shared import Shared

MOST = 3  # recipes that are named, of those that fit into the time
SHARE = 0.25  # of the time given that calibrations may take
FACTOR = 2.0  # sides, numbers of classes and IPCs that differ by more are not compared
FACTOR_OF_IMAGES = 10.0
FEWEST_STEPS = 0.1  # of a recipe's own; with fewer nothing is left of it
DEEPEST = 4  # layers of the ConvNet that is advised


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of a table of results: what a recipe reached, on which images."""

    row: str  # what the table calls it
    data: str
    images: int
    shape: tuple[int, int, int]  # C, H, W
    classes: int
    ipc: int
    accuracy: float  # mean, a fraction
    std: float | None
    networks: int
    beside: Mapping[str, float]  # mean accuracies of baselines, by name
    device: str
    source: str  # the file with the table
    seconds: float | None = None  # that experts and distillation took there

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Measurement":
        """From JSON data, which may hold more."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in entry:
                values[field.name] = entry[field.name]
        values["shape"] = tuple(entry["shape"])
        return cls(**values)

    def said(self) -> str:
        """Accuracy in percent, beside baselines, and on what."""
        spread = "" if self.std is None else f" ± {100 * self.std:.1f}"
        beside = [f"{name} {100 * value:.1f}" for name, value in self.beside.items()]
        channels, height, width = self.shape
        colour = "grey" if channels == 1 else "colour"
        return (
            f"{100 * self.accuracy:.1f}{spread} % (n = {self.networks}"
            f"{''.join(f'; {each}' for each in beside)}) on {self.images} images of {self.data}, "
            f"{height}x{width} {colour}, {self.classes} classes, IPC {self.ipc}, by {self.row!r} "
            f"of {self.source}"
        )


@dataclass(frozen=True)
class Candidate:
    """A recipe to choose from, and what was measured of its method."""

    recipe: Recipe
    measurements: tuple[Measurement, ...] = ()


def advise(
    data: Images | DataConfig,
    candidates: Sequence[Candidate],
    *,
    minutes: float | None = None,
    experts: Callable[[Recipe], ExpertSource] | None = None,
    device: str = "auto",
    calibrations: Path | None = None,
    progress: log.Progress = True,
) -> Outcome:  # long: its arguments are explained
    """Recipes for images and a time: what each takes here, and what to expect.

        print(ddengine.advise(my_images, synth.candidates(), minutes=10))

    Candidates are calibrated in their order, as those of `estimate`, until three fit into the time,
    or until a quarter of it is over; the others are named without a time. What to expect is only
    said where something comparable was measured: the same dataset, or one of the same channels
    whose side, classes and images per class differ by a factor of 2 at most, and images by one of
    10.

    Args:
        data: as `distill` takes it, or the data settings of a recipe.
        candidates: recipes to choose from, such as `synth.candidates()`.
        minutes: for experts and distillation; None: as long as it takes.
        experts: where the experts of a recipe lie, such as `buffers.stores`; None: recipes with
            experts are left out.
        device: auto, cpu, cuda or cuda:N.
        calibrations: folder in which calibrations are kept, and read where they are of the same
            recipe, images and machine; None: nothing is kept.
        progress: as `distill` takes it.

    Raises:
        UserError: images that cannot be read, no candidate that will do.
    """
    began = time.monotonic()
    if minutes is not None and not minutes > 0:
        raise UserError(f"minutes must be positive, got {minutes}.")
    until = None if minutes is None else began + SHARE * 60 * minutes
    with log.shown(progress):
        dataset = None if isinstance(data, DataConfig) else dataset_of(data)
        usable = _usable(candidates, with_experts=experts is not None)
        adapted, facts = _adapted(usable, data, dataset)

        def costs_of(recipe: Recipe) -> Costs | None:
            source = None if experts is None else experts(recipe)
            return costs(
                dataset, recipe, source, device=device, kept=Shared(calibrations), until=until
            )

        tried = _tried(adapted, facts, minutes, costs_of)
    title = f"{facts.num_classes} classes, {len(facts.train)} training images"
    rows = [row for _, row in tried]
    content = {"rows": rows, "minutes": minutes}
    return Outcome(content, rows, partial(table, rows, title), tuple(_notes(tried, minutes)))


def _notes(tried: Sequence["Tried"], minutes: float | None) -> list[str]:
    """The commands, what was measured, and whether there was no time to calibrate."""
    notes = []
    for _, row in tried:
        if row["fits"] is not False:
            notes.append(f"{row['recipe']}: {row['command']}")
    notes += _measured(tried)
    if minutes is not None and any(row["seconds"] is None for _, row in tried):
        notes.append(
            "calibrations may take a quarter of the time given, "
            f"{log.duration(SHARE * 60 * minutes)}, which was not enough for all; give more "
            "minutes, or none"
        )
    return notes


Tried = tuple[Candidate, dict[str, Any]]  # and its row


def _tried(
    candidates: Sequence[Candidate],
    facts: Data,
    minutes: float | None,
    costs_of: Callable[[Recipe], Costs | None],
) -> list[Tried]:
    """Candidates in their order until enough of them fit into the time, those that fit first.

    Of those for which there was no time to calibrate as many are named as are missing. Those that
    cannot be done here, where a library is missing or these images do not suit, are left out.
    Raises UserError where none can be done.
    """
    fitting: list[Tried] = []
    unknown: list[Tried] = []
    too_long: list[Tried] = []
    refused: UserError | None = None
    for candidate in candidates:
        if len(fitting) == MOST:
            break
        try:
            cost = costs_of(candidate.recipe)
        except UserError as error:
            log.say(f"{candidate.recipe.name} is left out: {error}")
            refused = error
            continue
        row = _row(candidate, cost, facts, minutes)
        kind = {True: fitting, None: unknown, False: too_long}[row["fits"]]
        kind.append((candidate, row))
    tried = [*fitting, *unknown[: MOST - len(fitting)], *too_long]
    if not tried and refused is not None:
        raise refused
    return tried


def _usable(candidates: Sequence[Candidate], *, with_experts: bool) -> list[Candidate]:
    """The candidates that can be tried. Raises UserError where none can."""
    usable = []
    for candidate in candidates:
        if with_experts or not reads_experts(candidate.recipe):
            usable.append(candidate)
    if not usable:
        raise UserError("No candidate can be tried; give some, and experts=buffers.stores.")
    return usable


def _adapted(
    candidates: Sequence[Candidate], data: Any, dataset: Dataset | None
) -> tuple[list[Candidate], Data]:
    """The candidates with these images and a network of their size; and the images."""
    made = []
    facts = None
    for candidate in candidates:
        recipe = candidate.recipe
        config = _settings(recipe, data, dataset)
        if facts is None:
            facts = Source(config, dataset).load(torch.device("cpu"))
        try:
            ipc = _most_images(recipe, facts)
        except UserError:  # a codec that these images do not fit
            continue
        if ipc == 0:
            log.say(f"{recipe.name} starts from more images than the smallest class has")
            continue
        model = network_for(min(facts.image_shape[1:]))
        config = replace(config, size=config.size or (facts.image_shape[1], facts.image_shape[2]))
        recipe = replace(recipe, data=config, model=model, ipc=ipc)
        made.append(replace(candidate, recipe=replace(recipe, published=None)))
    if facts is None or not made:
        raise UserError("Every class needs more images for these candidates; add some.")
    return made, facts


def _most_images(recipe: Recipe, facts: Data) -> int:
    """The recipe's images per class, or as many as the smallest class has to start from.

    Raises UserError where the codec does not hold so many images of this kind.
    """
    fewest = min(map(len, facts.train.members))
    codec, _ = fitted(recipe, facts.image_shape, facts.num_classes)
    ipc = min(recipe.ipc, fewest // codec.per_item)
    if ipc > 0:
        recipe.codec.fit(ipc, facts.image_shape, facts.num_classes)
    return ipc


def _settings(recipe: Recipe, data: Any, dataset: Dataset | None) -> DataConfig:
    """The data settings of a recipe, pointed at these images; all of them are used."""
    if isinstance(data, DataConfig):
        size = data.size or recipe.data.size
        return replace(data, size=size, fit=recipe.data.fit if data.size is None else data.fit)
    config = replace(recipe.data, limit=None)
    if dataset is None:
        return config
    pointed = dataset.settings(config)
    return replace(pointed, size=_native_size(pointed, dataset))


def _native_size(config: DataConfig, dataset: Dataset) -> tuple[int, int] | None:
    """The size for images that Python holds: their own where it is one, and no larger than asked.

    Files are brought to the size of the recipe: photographs would fill the memory.
    """
    if config.name != OWN or config.size is None:
        return config.size
    try:
        shape = dataset.load(replace(config, size=None), torch.device("cpu")).image_shape
    except UserError:  # of different sizes
        return config.size
    return None if max(shape[1:]) <= max(config.size) else config.size


def network_for(side: int) -> str:
    """The ConvNet for images whose shorter side has so many pixels: it ends at about 4 x 4."""
    depth = 1
    while depth < DEEPEST and side >= 2 ** (depth + 3):
        depth += 1
    return f"convnet-d{depth}-w32-in"


def _row(
    candidate: Candidate, cost: Costs | None, facts: Data, minutes: float | None
) -> dict[str, Any]:
    """What a recipe takes, how many of its steps fit into the time, and what to expect.

    Without its costs nothing is known of the time, and "fits" is None.
    """
    recipe = candidate.recipe
    steps, share, seconds, memory = recipe.outer.steps, None, None, None
    if cost is not None:
        memory = cost.memory
        share = _share(cost, minutes)
        seconds = cost.buffer + (share or 1.0) * cost.distill
        steps = int(share * steps)
    comparable = [each for each in candidate.measurements if is_comparable(each, recipe, facts)]
    best = max(comparable, key=lambda each: each.accuracy, default=None)
    return {
        "recipe": recipe.name,
        "seconds": seconds,
        "steps": steps,
        "of_steps": recipe.outer.steps,
        "memory": memory,
        "fits": None if share is None else share > 0,
        "expect": None if best is None else best.said(),
        "command": _commands(recipe, steps),
    }


def _share(cost: Costs, minutes: float | None) -> float:
    """The share of its steps for which a recipe has time, 0 where that is too little."""
    if minutes is None or cost.buffer + cost.distill <= 60 * minutes:
        return 1.0
    left = 60 * minutes - cost.buffer
    return left / cost.distill if left > FEWEST_STEPS * cost.distill else 0.0


def is_comparable(row: Measurement, recipe: Recipe, facts: Data) -> bool:
    """Whether a measurement says something of a recipe on these images."""
    if not _near(row.ipc, recipe.ipc, FACTOR):
        return False
    if row.data == recipe.data.name:
        return True
    channels, height, _ = facts.image_shape
    return (
        row.shape[0] == channels
        and _near(row.shape[1], height, FACTOR)
        and _near(row.classes, facts.num_classes, FACTOR)
        and _near(row.images, len(facts.train), FACTOR_OF_IMAGES)
    )


def _near(one: float, other: float, factor: float) -> bool:
    """Whether two positive numbers differ by no more than a factor."""
    return max(one, other) <= factor * min(one, other)


def _commands(recipe: Recipe, steps: int) -> str:
    """The line that distills these images by a recipe, and says what the set is worth.

    That is for images that a command can read.
    """
    data = recipe.data
    words = [recipe.name, "--data.name", data.name]
    if data.root is not None:
        words += ["--data.root", data.root]
    if data.size is not None:
        words += ["--data.size", *map(str, data.size)]
    words += ["--data.fit", data.fit, "--data.limit", str(data.limit), "--model", recipe.model]
    words += ["--ipc", str(recipe.ipc), "--outer.steps", str(steps)]
    folder = str(RUNS / recipe.name.replace("/", "-"))
    commands = [program.as_typed("distill", *words, "--out", folder)]
    if reads_experts(recipe):
        commands.insert(0, program.as_typed("buffer", *words))
    commands.append(program.as_typed("evaluate", folder))
    return " && ".join(commands)


def _measured(tried: Sequence[Tried]) -> list[str]:
    """What was measured of each recipe, or, where nothing comparable was, of its method."""
    notes = []
    for candidate, row in tried:
        if row["expect"] is not None:
            notes.append(f"{row['recipe']}: measured {row['expect']}")
            continue
        note = f"{row['recipe']}: nothing comparable was measured"
        if candidate.measurements:
            nearest = min(
                candidate.measurements, key=lambda each: abs(each.ipc - candidate.recipe.ipc)
            )
            note += f"; of its method there is {nearest.said()}"
        notes.append(note)
    return notes


def table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The advice for a terminal."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("recipe", no_wrap=True)
    for head in ("time", "steps", "memory"):
        shown.add_column(head, justify="right", no_wrap=True)
    shown.add_column("expect", no_wrap=True)  # what of it, stands below
    for row in rows:
        taken, memory = "not calibrated", "-"
        if row["seconds"] is not None:
            taken, memory = f"about {log.duration(row['seconds'])}", log.size(row["memory"])
        if row["fits"] is False:
            taken += ", too long"
        steps = f"{row['steps']} of {row['of_steps']}"
        expect = "see below"
        if row["expect"] is not None:
            expect = row["expect"].partition("% ")[0] + "%"
        shown.add_row(row["recipe"], taken, steps, memory, expect)
    return shown
