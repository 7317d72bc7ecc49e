"""Scores, rankings: what is made of evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddengine import naming
from ddengine.api.checks import check_experts, check_folder, check_run
from ddengine.api.evaluate import (
    Asking,
    asked_protocol,
    networks_of,
    source_of,
)
from ddengine.api.inputs import Images
from ddengine.api.keeping import kept_beside
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, opened
from ddengine.evaluation import intervals, scores
from ddengine.experts import TeacherSource
from ddengine.recipe import DataConfig, EvalConfig
from ddengine.system import dist, files, log
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from ddengine.types import Evaluation, Experts, Json

FACTS = ("machine", "versions", "commit", "seed", "precision")  # of the evaluation, kept


def score(
    of: Distilled | Path | str,
    data: Images | DataConfig = None,
    *,
    models: Sequence[str] = (),
    protocol: EvalConfig | Mapping[str, Any] | None = None,
    experts: Experts | TeacherSource | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    command: Sequence[str] = (),
) -> Outcome:  # long: its arguments are explained
    """DD-Ranking's label-robust and augmentation-robust scores of a set on every network.

        ddengine.score(result, data, models=["resnet18"])

    The arguments are those of `evaluate`; scores.json is written into `folder`, and the two
    evaluations that it is made of below scores/. Raises UserError as `evaluate` does.
    """
    check_run(seed, precision)
    check_folder(folder)
    check_experts(experts)
    _check_names(models)
    with log.shown(progress):
        asked = opened(of)
        config = asked_protocol(asked, protocol)
        names, factories = networks_of(tuple(models) or config.models)
        config = replace(config, models=names)
        asking = Asking(
            of=asked,
            source=source_of(asked, data),
            config=config,
            factories=factories,
            seed=seed,
            device=device,
            precision=precision,
            experts=experts,
            restart=restart,
            words=tuple(command),
        )
        _check_says_classes(asked)
        soft = asked.set.targets.of_classes or config.labels == "dynamic"
        evaluations = []
        pair = scores.protocols(config, soft)
        with kept_beside(asked, folder, "score") as out:
            for name, used in zip(("augmented", "plain"), pair, strict=True):
                where = None if out is None else out / "scores" / name
                evaluations.append(replace(asking, config=used).evaluation(where, "score"))
            content = _content(evaluations)
            if out is not None and dist.rank() == 0:
                files.write_json(out / "scores.json", {"format": naming.FORMAT, **content})
        made = content["scores"]
        title = f"{asked.meta['recipe']['name']}, accuracies as fractions"
        return Outcome(content, made, partial(scores.table, made, title), _notes(made), out)


def _content(evaluations: Sequence[Evaluation]) -> Json:
    """The content of scores.json, made of the evaluations with and without augmentation."""
    made = scores.of(*evaluations, name=evaluations[0]["rows"][0]["set"])
    seconds = sum(evaluation["seconds"] for evaluation in evaluations)
    kept = {key: evaluations[0].get(key) for key in FACTS}
    return {"scores": made, "interval": intervals.NAME, "seconds": seconds, **kept}


def _check_says_classes(of: Distilled) -> None:
    """Raise UserError for a set whose networks say no classes."""
    if of.set.targets.regressed:
        raise UserError(
            "score compares a set with its classes and with its soft labels, and the targets of "
            "this set are features; evaluate judges it by a linear probe, and transfer on other "
            "datasets."
        )


def _check_names(models: Sequence[Any]) -> None:
    """Raise UserError for what is no name."""
    for model in models:
        if not isinstance(model, str):
            raise UserError(
                f"models has {model!r}, and scores and rankings are of networks by name; "
                "evaluate takes functions that make networks."
            )


def _notes(made: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What to know of the scores."""
    notes = [f"95 % intervals are of the mean over networks, by {intervals.NAME}"]
    for entry in made:
        if entry["diverged"]:
            notes.append(
                f"warning: with {entry['diverged']} of the seeds a network on {entry['model']} "
                "diverged, and these do not count"
            )
    return tuple(notes)


def rank(
    of: Distilled | Path | str,
    data: Images | DataConfig = None,
    *,
    models: Sequence[str] = (),
    baselines: Sequence[str] = ("random", "herding"),
    protocol: EvalConfig | Mapping[str, Any] | None = None,
    experts: Experts | TeacherSource | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    command: Sequence[str] = (),
) -> Outcome:  # long: its arguments are explained
    """Do networks trained on a set come in the order that they have on the full data?

        ddengine.rank(result, data)

    The arguments are those of `evaluate`; without `models` twelve of ours are ranked, and `full` is
    always among the baselines. ranking.json and ranking.png are written into `folder`, and the
    evaluation that they are made of below ranking/. Raises UserError as `evaluate` does.
    """
    from ddengine.evaluation import ranking  # scipy.stats takes a second to import

    check_run(seed, precision)
    check_folder(folder)
    check_experts(experts)
    _check_names(models)
    with log.shown(progress):
        asked = opened(of)
        config = asked_protocol(asked, protocol)
        pixels = asked.set.pixels(torch.zeros(1, dtype=torch.long))
        channels, height, width = pixels.shape[1:]
        chosen = tuple(models) or config.models or ranking.grid((channels, height, width))
        others = [name for name in baselines if name != "full"]
        names, factories = networks_of(chosen)
        config = replace(config, models=names, baselines=(*others, "full"))
        if len(set(chosen)) < ranking.FEWEST:
            raise UserError(
                f"--models names {len(set(chosen))} networks, and a ranking needs "
                f"{ranking.FEWEST}; name more, or none for twelve of ours."
            )
        asking = Asking(
            of=asked,
            source=source_of(asked, data),
            config=config,
            factories=factories,
            seed=seed,
            device=device,
            precision=precision,
            experts=experts,
            restart=restart,
            words=tuple(command),
        )
        with kept_beside(asked, folder, "rank") as out:
            where = None if out is None else out / "ranking"
            evaluation = asking.evaluation(where, "rank")
            content = ranking.correlations(evaluation, seed=seed)
            if out is not None and dist.rank() == 0:
                files.write_json(out / "ranking.json", {"format": naming.FORMAT, **content})
                ranking.plot(out / "ranking.png", evaluation, content)
        return Outcome(content, _ranks(content), partial(ranking.table, content), (), out)


def _ranks(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each set that is ranked by."""
    return [dict(entry) for entry in content["sets"]]
