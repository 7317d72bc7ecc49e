"""The commands that make a run again.

A file may come from a stranger, and a person copies what stands here into a shell. So nothing is
copied out of the words of the command that a file says: they only say which command it was, and
which flags it had. The program is this one, its commands are those below, and the values of flags
are those of the recipe, the protocol and the stated facts.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ddengine.artefact.markdown import at
from ddengine.pages.reading import USES, Run
from ddengine.system import program
from ddengine.types import Facts, Json

WIDTH = 100  # characters of a line
# what buffer does not take of the words of distill
NOT_OF_BUFFER = ("--compile", "--force", "--tensorboard")
MAKING = ("distill", "select", "import")  # commands that make a set of a recipe
# flags without a value that change what is computed, or how
BARE = (
    "--force",
    "--tensorboard",
    "--quick",
    "--no-reuse_baselines",
)
# flags whose value is a place, which only the person knows who types the command
PLACES: Facts = {
    "data.root": "FOLDER_OF_IMAGES",
    "experts": "FOLDER_OF_EXPERTS",
    "files": "FILES",
    "labels": "FILE",
    "preprocess": "SET_OR_IMAGES",
    "buffer.step.folder": "FOLDER_OF_WEIGHTS",
}
COMPILE = {"True": "on", "auto": "auto"}  # values of --compile, by what a run says
# a value of a recipe as a word: no blank, nothing that a shell knows, and no flag
WORD = re.compile(r"(?!-[^\d.])[\w.,:/=+@-]+")
COMMANDS_OF_USES = {"labels": "buy_labels"}  # that are called otherwise than the use
PREFIXES = {"prune": "pruning"}  # of the flags of a use, where it is not called so
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

    They have the flags that were given where the run says that, and else those of its stored facts;
    "exact" says which. Beside them stand the recipe and the protocol of the evaluation as JSON.
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
    for use in ("transfer", *USES):
        said = run.extra.get(use) or {}
        typed = _typed(said)
        command = COMMANDS_OF_USES.get(use, use)
        if typed[:1] != [command]:
            continue
        of = _word(run.recipe.get("name")) if use in USES else f"runs/{run.name}"
        protocol = run.recipe.get("evaluation") or {}
        config = said.get("config") or {}
        facts = {**protocol, **run.recipe, **config, **said, PREFIXES.get(use, use): config}
        words = _flags(typed[1:], facts | {"to": list(said.get("datasets") or ())})
        yield [*_program(said), command, of, *words]


def _json(content: Any) -> str:
    if not content:
        return ""
    return json.dumps(content, indent=1, ensure_ascii=False)


def _making(run: Run) -> list[list[str]]:
    """The commands that made the set, and its experts before it."""
    if not run.is_of_a_set:
        return []
    typed = _typed(run.settings)
    if typed[:1] == ["demo"]:
        return [[*_program(run.settings), "demo"]]
    if run.recipe.get("name") is None or not set(typed[:1]) & set(MAKING):
        return _making_by_facts(run)
    return _making_as_typed(run, typed)


def _making_as_typed(run: Run, typed: Sequence[str]) -> list[list[str]]:
    """The same with the flags of the command that a run says, of which these are the words."""
    called, name = _program(run.settings), _word(run.recipe["name"])
    facts = {**run.recipe, **_stated_facts(run)}
    flags = _flags(typed[1:], facts)
    made = []
    if typed[0] == "distill" and run.meta.get("experts"):
        if "--buffer.seed" not in flags:
            flags += _expert_seed(run)
        words = [word for word in typed[1:] if word.partition("=")[0] not in NOT_OF_BUFFER]
        of_buffer = _flags(words, facts)
        if "--buffer.seed" not in of_buffer:
            of_buffer += _expert_seed(run)
        made.append([*called, "buffer", name, *of_buffer])
    return [*made, [*called, typed[0], name, *flags, *_out(typed, run)]]


def _stated_facts(run: Run) -> Json:
    """What decides a run beside its recipe, by the names of flags."""
    recipe = run.recipe
    networks = [recipe.get("model"), *(recipe.get("more_models") or ())]
    return {
        "take": list(recipe.get("taken") or ()),
        "for": list(recipe.get("teachers") or networks),
        "seed": _stated(run, "seed"),
        "precision": _stated(run, "precision"),
        "compile": COMPILE.get(str(run.settings.get("compile"))),
    }


def _out(typed: Sequence[str], run: Run) -> list[str]:
    """The flag of the folder, where one was given."""
    given = any(word.split("=")[0] == "--out" for word in typed)
    return ["--out", f"runs/{run.name}"] if given else []


def _flags(typed: Sequence[str], facts: Facts) -> list[str]:
    """The flags among the words of a command, each with what the facts say of it.

    Those of which they say nothing are left out.
    """
    names = [word.partition("=")[0] for word in typed if word.startswith("--")]
    flags = []
    for flag in dict.fromkeys(names):
        if flag in BARE:
            flags.append(flag)
        else:
            flags += _flag_by_facts(flag.removeprefix("--"), facts)
    return flags


def _flag_by_facts(name: str, facts: Facts) -> list[str]:
    """A flag with what the facts say under its name, a place in words; nothing without a value."""
    if name in PLACES:
        return [f"--{name}", PLACES[name]]
    value = at(facts, *name.split("."))
    if name == "take":
        return [word for taken in value or () for word in _flag(name, taken)]
    if isinstance(value, list) and value:
        return [f"--{name}", *map(_word, value)]
    return [] if isinstance(value, dict | list) else _flag(name, value)


def _word(value: Any) -> str:
    """A value as a word of a command; what no value of a recipe looks like is left to the person.

    Such as one that begins as a flag does.
    """
    return str(value) if WORD.fullmatch(str(value)) else "VALUE"


def _under(facts: Facts, name: str) -> Any:
    """What lies under a dotted name; None where nothing does."""
    return at(facts, *name.split("."))


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
    if not typed or typed[0] != "evaluate":
        return [_evaluating_by_facts(run)]
    if _typed(run.settings)[:1] == ["demo"]:
        return []
    protocol = run.evaluation.get("protocol") or {}
    said = {key: run.evaluation.get(key) for key in ("seed", "precision", "full_seconds")}
    words = _flags(typed[1:], {**protocol, **said})
    return [[*_program(run.evaluation), "evaluate", f"runs/{run.name}", *words]]


def _program(content: Facts) -> list[str]:
    """The words that name the program in a stored command: one of its names, or that of now."""
    words = list(map(str, content.get("command") or ()))
    for called in program.NAMES:
        if words[: len(called)] == [*called]:
            return [*called]
    return program.stored()


def _typed(content: Facts) -> list[str]:
    """The words of a stored command without the program; empty where there is none, or another."""
    words = list(map(str, content.get("command") or ()))
    for called in program.NAMES:
        if words[: len(called)] == [*called] and len(words) > len(called):
            return words[len(called) :]
    return []


def _making_by_facts(run: Run) -> list[list[str]]:
    name = run.recipe.get("name")
    if not name:
        return []
    name = _word(name)
    made = []
    if run.recipe.get("buffer") and run.meta.get("experts"):
        made.append([*program.stored(), "buffer", name, *_recipe_flags(run), *_process_flags(run)])
    made.append([*program.stored(), *_command_by_facts(run, name), "--out", f"runs/{run.name}"])
    return made


def _command_by_facts(run: Run, name: str) -> list[str]:
    """The command that made a set, by what the set says, without the program and the folder."""
    if "selected" in run.meta:
        kind = _word(run.meta["selected"].get("kind"))
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
        flags += ["--take", _word(taken)]
    flags += _flag("data.name", run.data.get("name"))
    flags += _flag("data.limit", run.data.get("limit"))
    flags += _network_flags(run)
    flags += _flag("ipc", run.recipe.get("ipc"))
    return flags


def _network_flags(run: Run) -> list[str]:
    """The flags of the network, or of those that took turns."""
    name, others = run.recipe.get("model"), run.recipe.get("more_models")
    if others or run.recipe.get("scaled_to"):
        return ["--for", _word(name), *map(_word, others or ())]
    return _flag("model", name)


def _flag(name: str, value: Any) -> list[str]:
    """A flag with its value, nothing for None."""
    if value is None:
        return []
    return [f"--{name}", _word(value)]


def _evaluating_by_facts(run: Run) -> list[str]:
    protocol = run.evaluation.get("protocol") or {}
    words = [*program.stored(), "evaluate", f"runs/{run.name}"]
    if "protocol" in protocol:
        words += ["--protocol", _word(protocol["protocol"])]
    for key in ("models", "baselines"):
        if protocol.get(key):
            words += [f"--{key}", *map(_word, protocol[key])]
    for key in OF_PROTOCOL:
        if key in protocol:
            words += [f"--{key}", _word(protocol[key])]
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
