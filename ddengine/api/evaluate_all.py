"""What several sets are worth, beside each other."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddengine.api.evaluate import evaluate
from ddengine.api.inputs import Images
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, opened
from ddengine.evaluation import scores
from ddengine.pages import overview
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError


def evaluate_all(
    sets: Sequence[Distilled | Path | str],
    data: Images | DataConfig = None,
    *,
    folder: None = None,
    **arguments: Any,
) -> Outcome:
    """Evaluate several sets: every set on every network, and how their accuracies spread.

        table = ddengine.evaluate_all(["runs/seed0", "runs/seed1"], models=["resnet18"])

    Each set is evaluated as `evaluate` does it, whose other arguments these are, into its own
    folder. The rows are those of all of them, each with the name of its evaluation. The notes say
    of distillations of one recipe how their accuracies spread between distillations and between
    networks.

    Raises:
        UserError: as `evaluate` does; one folder for several sets.
    """
    if isinstance(sets, str | Path | Distilled) or not sets:
        raise UserError("evaluate_all takes a list of sets or folders; give it at least one.")
    if folder is not None:
        raise UserError(
            f"folder names one folder, and {len(sets)} sets are evaluated; leave it out, or "
            "evaluate them one by one."
        )
    evaluated = []
    for of in sets:
        asked = opened(of)
        evaluated.append((asked, evaluate(asked, data, **arguments)))
    return beside(evaluated)


def beside(evaluated: Sequence[tuple[Distilled, Outcome]]) -> Outcome:
    """Evaluations of several sets, each beside its set, as one table."""
    evaluations, told, rows = [], [], []
    for of, outcome in evaluated:
        name = of.meta["recipe"]["name"] if of.run is None else str(of.run)
        content = dict(outcome.content)
        evaluations.append((name, content))
        told.append((name, of.meta, content))
        for row in outcome.rows:
            rows.append({"evaluation": name, **row})
    spreads = scores.splits(told)
    return Outcome(
        {"evaluations": [content for _, content in evaluations], "spreads": spreads},
        rows,
        partial(overview.cross_table, evaluations),
        tuple(map(scores.said, spreads)),
    )
