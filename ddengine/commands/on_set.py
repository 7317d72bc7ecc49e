"""Commands whose arguments are paths, mostly of distilled sets, and flags in any order."""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import buffers
import ddengine
from ddengine.api.evaluate import data_settings, protocol_of
from ddengine.api.results import Distilled
from ddengine.artefact.runs import is_set
from ddengine.commands import DEMO, cli
from ddengine.commands.flags import values_of
from ddengine.commands.on_recipe import named_protocol
from ddengine.commands.options import as_kind
from ddengine.commands.words import asks_help, taken_flag, taken_paths
from ddengine.recipe import DataConfig, EvalConfig, Recipe, check_students_decide
from ddengine.system import program
from ddengine.system.errors import UserError
from synth.catalogue import find

SET = "the folder of a run or of a distilled set"


@dataclass(frozen=True)
class OnPaths:
    """A command whose arguments are paths and the flags of a dataclass."""

    name: str
    flags: type
    what: str = SET  # that it needs
    shown: str = "SET"  # what stands for the paths in help
    is_meant: Callable[[Path], bool] = is_set  # whether a path is one of them
    # the options by a recipe, where a set decides their defaults; None: it decides none
    by_recipe: Callable[[Recipe], Any] | None = None

    def paths(self, args: Sequence[str]) -> tuple[list[Path], list[str]]:
        """(paths, flags) of a line with both in any order.

        Shows the flags where a line asks for help and names no path. Raises UserError for another
        line without one.
        """
        paths, flags = taken_paths(args, self.is_meant, values_of(self.flags))
        if not paths and asks_help(args):
            self._show_help()
        if not paths:
            raise UserError(f"{program.name()} {self.name} needs {self.what} first.")
        return paths, flags

    def path(self, args: Sequence[str]) -> tuple[Path, list[str]]:
        """(path, flags) of a line with one path."""
        paths, flags = self.paths(args)
        return paths[0], [*map(str, paths[1:]), *flags]

    def parse(self, of: Path | str, args: Sequence[str], defaults: Any = None) -> Any:
        """The options that flags give for a path; without `defaults` those of the dataclass."""
        options = self.flags() if defaults is None else defaults
        return cli.parse(self.flags, list(args), options, f"{self.name} {of}")

    def _show_help(self) -> NoReturn:
        """Show the flags, with the defaults of a small recipe where a set decides them."""
        command = f"{self.name} {self.shown}"
        if self.by_recipe is None:
            cli.show_help(self.flags, command, self.flags())
        started = f"{program.name()} {command}"
        cli.show_help(
            self.flags,
            command,
            self.by_recipe(find(DEMO)),
            f"{started} [flags]: the defaults below are those of {DEMO}; {started} --help shows "
            "those of a set.",
        )


def by_recipe(flags: Any, recipe: Recipe) -> Any:
    """The options of a command that trains networks, by what a recipe says."""
    return _options(flags, recipe.data, recipe.evaluation)


def of_set(command: OnPaths, path: Path, args: Sequence[str]) -> tuple[Distilled, Any]:
    """A set and the options of a command on it, whose defaults are what the set says of itself.

    Those of the protocol may have the prefix that they have beside a recipe, as in
    --evaluation.epochs.
    """
    flags = [_without_prefix(word) for word in args]
    of = ddengine.load(path)
    named = named_protocol(flags, "--protocol")
    protocol = protocol_of(of, named, students=_asks_students(flags))
    defaults = _options(command.flags, data_settings(of), protocol)
    options = command.parse(path, flags, defaults)
    check_students_decide(protocol, _changed(protocol, options.evaluation))
    return of, options


def _asks_students(flags: Sequence[str]) -> bool:
    """Whether no flag says that networks are not to step as students."""
    said, _ = taken_flag(list(flags), "--as_students")
    return said[-1:] != ["False"]


def _changed(protocol: EvalConfig, options: EvalConfig) -> list[str]:
    """The fields of a protocol that flags changed."""
    names = [part.name for part in fields(protocol)]
    return [name for name in names if getattr(options, name) != getattr(protocol, name)]


def _options(flags: Any, data: DataConfig, protocol: EvalConfig) -> Any:
    kind = typing.get_type_hints(flags)["evaluation"]
    return flags(data=data, evaluation=as_kind(kind, protocol))


def asked(options: Any) -> dict[str, Any]:
    """The arguments of the public functions that train networks on a set."""
    return {
        "data": options.data,
        "protocol": as_kind(EvalConfig, options.evaluation),
        "experts": buffers.SetTeachers(options.experts),
        "folder": options.out,
        "seed": options.seed,
        "device": options.device,
        "precision": options.precision,
        "restart": options.restart,
    }


def _without_prefix(word: str) -> str:
    return word.replace("--evaluation.", "--", 1) if word.startswith("--evaluation.") else word
