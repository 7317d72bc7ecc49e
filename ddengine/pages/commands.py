"""The commands that make a run again."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ddengine.pages.reading import USES, Run
from ddengine.system import program
from ddengine.types import Facts, Json

WIDTH = 100  # characters of a line
# what buffer does not take of the words of distill
NOT_OF_BUFFER = ("--restart", "--compile", "--force", "--tensorboard")
OF_PROTOCOL = (
    "epochs",
    "updates",
    "num_networks",
    "full_steps",
    "search_networks",
    "labels",
    "rate",
)


def commands(run: Run) -> Json:
    """The commands that make the run again as far as its files say, for the template.

    They are as they were given where the run says that, and else made of its stored facts; "exact"
    says which. Beside them stand the recipe and the protocol of the evaluation as JSON.
    """
    asked = [*_making(run), *_evaluating(run), *_using(run)]
    lines = list(map(_shell, asked))
    typed = bool(_typed(run.settings)) or not run.is_of_a_set
    evaluation_typed = bool(_typed(run.evaluation)) or not run.rows
    return {
        "text": "\n".join(lines),
        "exact": typed and evaluation_typed,
        "json": _json(run.recipe),
        "protocol": _json(run.evaluation.get("protocol")),
    }


def _using(run: Run) -> Iterator[list[str]]:
    """The commands that used the set, or the dataset, where their files say them."""
    for name in ("transfer", *USES):
        typed = _typed(run.extra.get(name) or {})
        if typed:
            yield typed


def _json(content: Any) -> str:
    if not content:
        return ""
    return json.dumps(content, indent=1, ensure_ascii=False)


def _making(run: Run) -> list[list[str]]:
    """The commands that made the set, and its experts before it."""
    if not run.is_of_a_set:
        return []
    typed = _typed(run.settings)
    if not typed:
        return _making_by_facts(run)
    at = program.after_program(typed)
    if typed[at] == "distill" and run.meta.get("experts"):
        if not any(word.split("=")[0] == "--buffer.seed" for word in typed):
            typed = [*typed, *_expert_seed(run)]
        words = _of_buffer(typed[at + 1 :])
        return [[*typed[:at], "buffer", *words], typed]
    return [typed]


def _expert_seed(run: Run) -> list[str]:
    """The flag that gives a run its experts, where that is needed.

    Sets that do not say the seed of their experts are of the time when it was that of the run.
    """
    experts = run.meta.get("experts") or {}
    for store in experts.get("stores") or [experts]:
        seed = store.get("seed", run.meta.get("seed"))
        if seed:
            return _flag("buffer.seed", seed)
    return []


def _evaluating(run: Run) -> list[list[str]]:
    """The command that evaluated the set; none where the command that made it did."""
    if not run.rows:
        return []
    typed = _typed(run.evaluation)
    if not typed:
        return [_evaluating_by_facts(run)]
    made_by = _typed(run.settings)
    if made_by and made_by[program.after_program(made_by)] == "demo":
        return []
    return [typed]


def _typed(content: Facts) -> list[str]:
    """The words of the command that wrote a file, as they were given; empty where it has none."""
    words = list(map(str, content.get("command") or ()))
    if len(words) <= program.after_program(words):
        return []
    return words


def _of_buffer(words: Sequence[str]) -> Iterator[str]:
    """Those of the words of distill that buffer takes too: not --out and its value, for example."""
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word == "--out":
            is_value = True
        elif word not in NOT_OF_BUFFER and not word.startswith("--out="):
            yield word


def _making_by_facts(run: Run) -> list[list[str]]:
    name = run.recipe.get("name")
    if not name:
        return []
    made = []
    if run.recipe.get("buffer") and run.meta.get("experts"):
        made.append([*program.stored(), "buffer", name, *_recipe_flags(run), *_process_flags(run)])
    made.append([*program.stored(), *_command_by_facts(run, name), "--out", f"runs/{run.name}"])
    return made


def _command_by_facts(run: Run, name: str) -> list[str]:
    """The command that made a set, by what the set says, without the program and the folder."""
    if "selected" in run.meta:
        kind = str(run.meta["selected"].get("kind"))
        flags = _recipe_flags(run) + _process_flags(run)
        return ["select", name, *flags, "--init.kind", kind]
    if "imported" in run.meta:
        return ["import", name, *_recipe_flags(run), "--files", "FILES"]
    outer = run.recipe.get("outer") or {}
    steps = _flag("outer.steps", outer.get("steps"))
    return ["distill", name, *_recipe_flags(run), *_process_flags(run), *steps]


def _process_flags(run: Run) -> list[str]:
    """The flags of what a recipe does not say: seeds and precision."""
    flags = _expert_seed(run)
    flags += _flag("seed", _stated(run, "seed"))
    flags += _flag("precision", _stated(run, "precision"))
    return flags


def _stated(run: Run, key: str) -> Any:
    """What the set says under `key`, be it None, else what recipe.json beside it says."""
    return run.meta.get(key, run.settings.get(key))


def _recipe_flags(run: Run) -> list[str]:
    flags = []
    for taken in run.recipe.get("taken") or ():  # "PART=RECIPE"
        flags += ["--take", str(taken)]
    flags += _flag("data.name", run.data.get("name"))
    flags += _flag("data.limit", run.data.get("limit"))
    flags += _network_flags(run)
    flags += _flag("ipc", run.recipe.get("ipc"))
    return flags


def _network_flags(run: Run) -> list[str]:
    """The flags of the network, or of those that took turns."""
    name, others = run.recipe.get("model"), run.recipe.get("more_models")
    if others or run.recipe.get("scaled_to"):
        return ["--for", str(name), *map(str, others or ())]
    return _flag("model", name)


def _flag(name: str, value: Any) -> list[str]:
    """A flag with its value, nothing for None."""
    if value is None:
        return []
    return [f"--{name}", str(value)]


def _evaluating_by_facts(run: Run) -> list[str]:
    protocol = run.evaluation.get("protocol") or {}
    words = [*program.stored(), "evaluate", f"runs/{run.name}"]
    if "protocol" in protocol:
        words += ["--protocol", str(protocol["protocol"])]
    for key in ("models", "baselines"):
        if protocol.get(key):
            words += [f"--{key}", *map(str, protocol[key])]
    for key in OF_PROTOCOL:
        if key in protocol:
            words += [f"--{key}", str(protocol[key])]
    words += _flag("seed", run.evaluation.get("seed"))
    words += _flag("precision", run.evaluation.get("precision"))
    return words


def _shell(words: Sequence[str]) -> str:
    """A command line for a shell; a long one in several lines, which begin with flags."""
    lines = [""]
    for word in map(shlex.quote, words):
        line = lines[-1]
        is_full = bool(line.strip()) and len(line) + len(word) > WIDTH
        if is_full and word.startswith("--"):
            lines.append("   ")
        if lines[-1]:
            lines[-1] += " "
        lines[-1] += word
    return " \\\n".join(lines)
