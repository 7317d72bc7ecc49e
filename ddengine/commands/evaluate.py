"""`evaluate SET... [flags]`: train networks on distilled sets beside random, herding, full data."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

import ddengine
from ddengine import commands
from ddengine.api.evaluate_all import beside
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled
from ddengine.commands import cli
from ddengine.commands.flags import flag_of
from ddengine.commands.on_set import OnPaths, asked, by_recipe, of_set
from ddengine.commands.options import NamedProtocol, OfEvaluation
from ddengine.commands.process import start
from ddengine.evaluation.pace import FULL_SECONDS
from ddengine.evaluation.tables import Sort
from ddengine.system.errors import UserError

# flags that decide no number: with these alone an evaluation that is there is shown as it is
SHOWING = (
    *("--sort", "--out", "--experts", "--device", "--wait", "--no_wait", "--dist_timeout"),
    *("--reuse_baselines", "--no_reuse_baselines"),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OfEvaluation):
    """Flags of evaluate."""

    # a first answer in a minute: 3 networks a row, two learning rates, as many updates as the
    # validation split shows a set to need, 16 at least and no more than 20 seconds of training
    # allow a row on each network, a sixth of full_seconds; marked as quick everywhere
    quick: bool = False
    # that networks on the full data may take on each network: where they would take longer, they
    # have fewer updates, and their row is marked; None: as long as they take
    full_seconds: float | None = FULL_SECONDS
    # read baselines that an evaluation of another run has trained on the same images, networks and
    # protocol; they lie in .baselines beside the folder of the run
    reuse_baselines: bool = True
    sort: Sort = "none"  # order of the printed table
    evaluation: Annotated[NamedProtocol, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


COMMAND = OnPaths(
    "evaluate", EvaluateOptions, shown="SET...", by_recipe=partial(by_recipe, EvaluateOptions)
)


def evaluate_path(path: Path, args: list[str]) -> tuple[Distilled, Outcome]:
    """Evaluate a run or a distilled folder, write evaluation.json and print it as a table."""
    of, options = of_set(COMMAND, path, args)
    start(options)
    decides = [word for word in args if word.startswith("--") and flag_of(word) not in SHOWING]
    outcome = ddengine.evaluate(
        of,
        strict=bool(decides),
        command=("evaluate", str(path), *args),
        seconds_before=time.perf_counter() - commands.STARTED,
        quick=options.quick,
        full_seconds=options.full_seconds,
        reuse_baselines=options.reuse_baselines,
        sort=options.sort,
        **asked(options),
    )
    cli.show(outcome)
    return of, outcome


def main(args: list[str]) -> None:
    """The command.

    Of several sets it prints one table of every set on every network, and how their accuracies
    spread.
    """
    paths, flags = COMMAND.paths(args)
    if len(paths) > 1 and any(flag_of(word) == "--out" for word in flags):
        raise UserError(
            f"--out names one folder, and {len(paths)} sets are evaluated; leave --out out, or "
            "evaluate them one by one."
        )
    evaluated = [evaluate_path(path, flags) for path in paths]
    if len(evaluated) > 1:
        cli.show(beside(evaluated))
