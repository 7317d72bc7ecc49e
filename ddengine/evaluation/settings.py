"""Runs that were evaluated: which may be compared, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddengine.recipe import (
    BufferConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
    OptimConfig,
    Recipe,
    TargetConfig,
    without_choices,
)
from ddengine.system.configs import digest, from_dict, late_defaults, to_dict
from ddengine.types import Evaluation, Facts, Json, Meta, Row

PROSE = ("cites", "published", "note", "taken")
# of a recipe: they decide no result, or are told apart from the settings
NO_SETTING = (
    "data.root",
    "data.download",
    "data.cache",
    "buffer.step.folder",
    "outer.checkpoint_every",
    "outer.evaluate_every",
    "outer.picture_every",
)
# of a protocol: they decide nothing of the row of the set, or only how many networks it has
NO_PROTOCOL = ("models", "baselines", "baseline_steps", "full_steps", "num_networks")
# of the data: how many images a set is made of is a setting; on which ones it is tested is not
OF_THE_TEST = ("name", "size", "fit", "background", "classes", "split_seed")
# shown wherever they differ, also beside the name of the recipe that says them
ALWAYS_SHOWN = ("name", "ipc", "model", "data.limit")


@dataclass(frozen=True)
class Evaluated:
    """A run with a set and its evaluation."""

    name: str  # as it is shown
    meta: Meta
    evaluation: Evaluation

    @property
    def seed(self) -> int | None:
        """Of the distillation; None of sets that were imported or merged."""
        return self.meta.get("seed")

    @property
    def models(self) -> list[str]:
        """The networks that were trained on the set."""
        return list(dict.fromkeys(row["model"] for row in self._rows))

    def row(self, model: str) -> Row | None:
        """What networks of a kind reached on the set; None where none were trained."""
        for row in self._rows:
            if row["model"] == model:
                return row
        return None

    @property
    def has_diverged(self) -> bool:
        """Whether there is a network of which none that was trained on the set was finite."""
        return any(row["accuracy_mean"] is None for row in self._rows)

    @property
    def _rows(self) -> list[Row]:
        """The rows of the set itself, among those of its baselines."""
        by_set: dict[str, list[Row]] = {}
        for row in self.evaluation["rows"]:
            by_set.setdefault(row["set"], []).append(row)
        # a selection is called otherwise where a baseline has the name of its kind
        kind = self.meta.get("selected", {}).get("kind")
        for name in (f"selected {kind}", kind, "distilled"):
            if name in by_set:
                return by_set[name]
        return next(iter(by_set.values()))


# What may be compared.


def groups(runs: Sequence[Evaluated], *, across: bool = False) -> list[list[Evaluated]]:
    """Runs that may be compared with each other, in the order of their first ones.

    `across`: also those whose networks were trained by different protocols.
    """
    made: list[list[Evaluated]] = []
    for run in runs:
        for group in made:
            if difference(group, run, across=across) is None:
                group.append(run)
                break
        else:
            made.append([run])
    return made


def difference(group: Sequence[Evaluated], run: Evaluated, *, across: bool) -> str | None:
    """In words why a run cannot be compared with those of a group; None where it can."""
    first, *_ = group
    name = _first_difference(_tested_on(first), _tested_on(run))
    told_by = _tested_on
    if name is None and not across:
        name = _first_difference(protocol_of(first), protocol_of(run))
        told_by = protocol_of
    if name is not None:
        before, now = told_by(first).get(name), told_by(run).get(name)
        return f"{name} is {before} in {first.name} and {now} in {run.name}"
    for one in group:
        same_settings = _training_settings(one) == _training_settings(run)
        if same_settings and one.meta.get("images") != run.meta.get("images"):
            return f"{one.name} and {run.name} were made of different images"
    return None


def _first_difference(one: Facts, other: Facts) -> str | None:
    """The first name under which two differ, or that one has alone; None where nothing does."""
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            return name
    return None


def _tested_on(run: Evaluated) -> Json:
    """What decides on which test images networks are judged."""
    data = _data(run)
    facts: Json = {}
    for name in OF_THE_TEST:
        facts[f"data.{name}"] = data[name]
    facts["the digest of the test images"] = run.evaluation.get("own_test")
    counts = run.evaluation.get("test_images_per_class") or {}
    facts["the number of test images"] = sum(counts.values()) or None
    facts["the number of classes"] = len(run.meta.get("class_names") or ())
    # what a quick evaluation says is never set beside what another one does
    facts["a quick evaluation"] = "quick" in run.evaluation
    return facts


def _training_settings(run: Evaluated) -> tuple[Any, ...]:
    """The settings that decide which training images are used, all others being equal."""
    data = _data(run)
    return data["limit"], data["validation"]


def _data(run: Evaluated) -> Json:
    """The data settings of the recipe; what an older version does not say has its default."""
    return to_dict(from_dict(DataConfig, run.meta["recipe"]["data"]))


def protocol_of(run: Evaluated) -> Json:
    """What decides how networks were trained on the set, by the names of flags."""
    stored = run.evaluation.get("protocol") or {}
    protocol = to_dict(from_dict(EvalConfig, {"protocol": "", **stored}))
    for name in NO_PROTOCOL:
        protocol.pop(name, None)
    facts = flat(protocol, "evaluation")
    first, *_ = run.evaluation["rows"]
    facts["the training function"] = first.get("trained_by")
    facts["the precision of the evaluation"] = run.evaluation.get("precision")
    return facts


# Settings.


def setting(run: Evaluated, *, across: bool = False) -> Json:
    """The values of a run that decide its result, but for its seed, by the names of their flags."""
    recipe = dict(run.meta["recipe"])
    for name in (*PROSE, "evaluation"):
        recipe.pop(name, None)
    if "objective" in recipe:
        recipe["objective"] = without_choices(recipe["objective"])
    values = flat(recipe)
    for name in NO_SETTING:
        values.pop(name, None)
    for name, default in _left_out(recipe).items():
        values.setdefault(name, default)
    values["precision"] = run.meta.get("precision")
    if "selected" in run.meta:
        values["selected"] = run.meta["selected"]["kind"]
    if across:
        values |= protocol_of(run)
    return values


def _left_out(recipe: Facts) -> Json:
    """What a stored recipe does not say because it holds a default, by the names of flags.

    Of the parts of the core; what parts of methods leave out only these know.
    """
    parts: dict[str, Any] = {"": Recipe, "init": InitConfig, "targets": TargetConfig}
    if recipe.get("buffer"):
        parts["buffer"] = BufferConfig
    for name in recipe["outer"].get("optim", {}):
        parts[f"outer.optim.{name}"] = OptimConfig
    defaults: Json = {}
    for prefix, part in parts.items():
        defaults |= flat(late_defaults(part), prefix)
    for name in PROSE:
        defaults.pop(name, None)
    return defaults


def key(values: Facts) -> str:
    """What identifies a setting."""
    return digest(values)


def flat(value: Any, prefix: str = "") -> Json:
    """The values in nested objects by their dotted names."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    values: Json = {}
    for name, part in value.items():
        values |= flat(part, f"{prefix}.{name}".removeprefix("."))
    return values


def columns(settings: Sequence[Facts]) -> tuple[list[str], list[str]]:
    """(the fields in which settings differ, those of them that the name of the recipe says).

    The second are no columns of a table: where methods are compared, dozens of their parts differ.
    """
    fields: dict[str, None] = {}  # in the order of the settings
    for values in settings:
        fields |= dict.fromkeys(values)
    shown, said = [], []
    for name in fields:
        values_of = _values_by_recipe(name, settings)
        in_all = set().union(*values_of.values())
        follows = all(len(values) == 1 for values in values_of.values())
        if len(in_all) == 1:
            continue
        if follows and name not in ALWAYS_SHOWN:
            said.append(name)
        else:
            shown.append(name)
    return shown, said


def _values_by_recipe(name: str, settings: Sequence[Facts]) -> dict[str, set[str]]:
    """The values that a field has in the settings of each recipe."""
    values: dict[str, set[str]] = {}
    for one in settings:
        values.setdefault(one["name"], set()).add(repr(one.get(name)))
    return values


def short_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """As much of the end of each dotted name as tells it from all that are `known`."""
    short = {}
    for name in names:
        short[name] = _short_name(name, known)
    return short


def _short_name(name: str, known: Sequence[str]) -> str:
    *_, end = parts = name.split(".")
    for part in reversed(parts[:-1]):
        alike = [other for other in known if f".{other}".endswith(f".{end}")]
        if len(alike) < 2:
            break
        end = f"{part}.{end}"
    return end
