"""`evaluate SET... [flags]`: train networks on distilled sets beside random, herding, full data."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

import buffers
import ddengine
from ddengine import commands, naming
from ddengine.api.evaluate import FULL_SECONDS, data_settings, protocol_of
from ddengine.api.results import Distilled
from ddengine.artefact import runs
from ddengine.commands import cli
from ddengine.commands.options import SET, named_protocol, paths_of
from ddengine.commands.process import alone
from ddengine.commands.words import asks_help, taken_paths
from ddengine.evaluation import scores, tables
from ddengine.pages import figures, overview
from ddengine.recipe import DataConfig, EvalConfig
from ddengine.system import log, program
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from synth.catalogue import find

# flags that decide no number: with these alone an evaluation that is there is shown as it is
SHOWING = ("--sort", "--out", "--experts", "--device", "--reuse_baselines", "--no-reuse_baselines")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Flags of evaluate."""

    seed: int = 0  # decides networks, orders, augmentation and random draws
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of evaluation.json; None: the run, or the distilled folder
    restart: bool = False  # evaluate again although evaluation.json is there
    # the store of the set's experts, or with teachers the folder of their stores; None:
    # experts/FINGERPRINT
    experts: Path | None = None
    sort: Literal["none", "accuracy", "accuracy_per_byte"] = "none"  # order of the printed table
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]

    def asked(self) -> dict[str, Any]:
        """The arguments of the public functions."""
        return {
            "data": self.data,
            "protocol": self.evaluation,
            "experts": buffers.SetTeachers(self.experts),
            "folder": self.out,
            "seed": self.seed,
            "device": self.device,
            "precision": self.precision,
            "restart": self.restart,
        }


@dataclass(frozen=True, kw_only=True)
class OwnOptions(EvaluateOptions):
    """Flags of evaluate alone."""

    # a first answer in a minute: 3 networks a row, two learning rates, as many updates as the
    # validation split shows a set to need, a quarter of full_seconds; marked as quick everywhere
    quick: bool = False
    # that networks on the full data may take on each network: where they would take longer, they
    # have fewer updates, and their row is marked; None: as long as they take
    full_seconds: float | None = FULL_SECONDS
    # read baselines that an evaluation of another run has trained on the same images, networks and
    # protocol; they lie in .baselines beside the folder of the run
    reuse_baselines: bool = True

    def asked(self) -> dict[str, Any]:
        """The arguments of `ddengine.evaluate`."""
        return super().asked() | {
            "quick": self.quick,
            "full_seconds": self.full_seconds,
            "reuse_baselines": self.reuse_baselines,
        }


def set_options(
    path: Path,
    args: list[str],
    command: str = "evaluate",
    flags_of: type[EvaluateOptions] = EvaluateOptions,
) -> tuple[Distilled, EvaluateOptions]:
    """A set and the flags of a command on it, whose defaults are what the set says of itself.

    Those of the protocol may have the prefix that they have beside a recipe, as in
    --evaluation.epochs.
    """
    flags = [_without_prefix(word) for word in args]
    of = ddengine.load(path)
    protocol = protocol_of(of, named_protocol(flags, "--protocol"))
    defaults = flags_of(data=data_settings(of), evaluation=protocol)
    return of, cli.parse(flags_of, flags, defaults, f"{command} {path}")


def show_help(args: list[str], command: str) -> None:
    """Show the flags of a command on a set where a line asks for them and names none."""
    if asks_help(args) and not taken_paths(args, lambda path: False)[0]:
        _general_help(command)


def _general_help(command: str) -> NoReturn:
    """The flags with the defaults of a small recipe."""
    log.say(
        f"{program.name()} {command} SET [flags]: the defaults below are those of {commands.DEMO}; "
        f"{program.name()} {command} SET --help shows those of a set."
    )
    recipe = find(commands.DEMO)
    flags_of = OwnOptions if command == "evaluate" else EvaluateOptions
    defaults = flags_of(data=recipe.data, evaluation=recipe.evaluation)
    cli.parse(flags_of, ["--help"], defaults, f"{command} SET")
    raise SystemExit(0)


def _without_prefix(word: str) -> str:
    return word.replace("--evaluation.", "--", 1) if word.startswith("--evaluation.") else word


def evaluate_path(path: Path, args: list[str]) -> dict[str, Any]:
    """Evaluate a run or a distilled folder, write evaluation.json and print it as a table."""
    of, options = set_options(path, args, flags_of=OwnOptions)
    decides = [word for word in args if word.startswith("--") and word.split("=")[0] not in SHOWING]
    outcome = ddengine.evaluate(
        of,
        strict=bool(decides),
        command=("evaluate", str(path), *args),
        seconds_before=time.perf_counter() - commands.STARTED,
        **options.asked(),
    )
    evaluation, out = dict(outcome.content), options.out or path
    log.console.print(tables.table(evaluation, outcome.title, options.sort))
    for line in outcome.notes:
        log.say(line)
    if len({row["model"] for row in outcome.rows}) > 1:
        figures.heat_map(out / "heat_map.png", [(of.meta["recipe"]["name"], evaluation)])
        log.say(f"accuracy of every set on every network: {out / 'heat_map.png'}")
    return evaluation


def main(args: list[str]) -> None:
    """The command.

    Of several sets it prints one table of every set on every network, and how their accuracies
    spread.
    """
    show_help(args, "evaluate")
    paths, flags = paths_of(args, "evaluate", SET)
    if len(paths) == 1:
        alone("evaluate")
        evaluate_path(paths[0], flags)
        return
    if any(word.split("=")[0] == "--out" for word in flags):
        raise UserError(
            f"--out names one folder, and {len(paths)} sets are evaluated; leave --out out, or "
            "evaluate them one by one."
        )
    alone("evaluate")
    evaluations = [(str(path), evaluate_path(path, flags)) for path in paths]
    log.console.print(overview.cross_table(evaluations))
    told = []
    for path, (name, evaluation) in zip(paths, evaluations, strict=True):
        told.append((name, naming.read_json(runs.set_folder(path) / "meta.json"), evaluation))
    for split in scores.splits(told):
        log.say(scores.said(split))
