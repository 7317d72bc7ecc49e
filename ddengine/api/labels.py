"""Labels bought in rounds from a teacher that errs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine.api.checks import check_folder, check_recipe, check_run
from ddengine.api.inputs import AUTO, Images, dataset_of, pointed_at
from ddengine.api.keeping import content_of, kept_in
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, opened, set_of_images
from ddengine.data import Data
from ddengine.evaluation.decoded import freeze
from ddengine.evaluation.evaluate import set_digest
from ddengine.models import build_model
from ddengine.pages import of_labels
from ddengine.recipe import Recipe
from ddengine.system import log, runtime
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Json
from ddengine.uses import labels as buying
from ddengine.uses.labels import Context, LabelsConfig, OfFile, Pool
from ddengine.uses.labels.answers import write_questions

MARK = "labels.recipe.json"
FILE = "labels.json"
PARTIAL = "labels.partial.jsonl"  # what is finished of a run that is not done
QUESTIONS = "ask.csv"


def buy_labels(
    data: Images,
    recipe: Recipe,
    config: LabelsConfig = LabelsConfig(),
    *,
    pool: Distilled | Path | str | None = None,
    answers: Path | str | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    command: Sequence[str] = (),
) -> Outcome:  # long: its arguments are explained
    """Choose in rounds which points to ask a teacher about, whose answers may be wrong.

        few = ddengine.LabelsConfig(rules=("rad", "uniform"), wrong=(0.0, 0.3), points=50)
        table = ddengine.buy_labels(ddengine.Dataset.named("digits"), recipe, few)

    With `answers` a person or a service is asked: what the file does not say yet lies in ask.csv of
    the folder, and the same call goes on when the file says it.

    Args:
        data: as `distill` takes it, with test images.
        recipe: its data, network and evaluation (how networks are trained); the other parts play no
            role.
        config: rules, rounds, how many points, who answers how wrongly.
        pool: a set whose images are the points, such as the candidates of a distillation; None: the
            training images.
        answers: a CSV file with the columns index or name, and class; None: config says who
            answers.
        folder: where labels.json, labels.png and ask.csv are written, and an interrupted run is
            continued; "auto" is the one that the command line would name; None leaves nothing.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: begin anew, deleting what the folder holds.
        command: the words by which a command line asked for this.

    Raises:
        UserError: more points than the pool has, answers about points or classes that do not exist,
            a set of other classes, a folder of something else.
    """
    check_recipe(recipe)
    check_run(seed, precision)
    if not isinstance(config, LabelsConfig):
        raise UserError(f"config is {config!r}; give a ddengine.LabelsConfig.")
    _check_answers(config, answers, folder)
    if folder != AUTO:
        check_folder(folder)
    with log.shown(progress):
        # what makes no difference here makes no other run
        recipe = replace(recipe, buffer=None, teachers=(), published=None)
        recipe, source = pointed_at(recipe, dataset_of(data))
        where = runtime.setup(device, precision)
        loaded = source.load(where, test=True)
        context = _context(loaded, recipe, config, pool, seed, where, precision)
        file = None
        if answers is not None:
            file = OfFile.read(Path(answers), context.pool.names, context.class_names)
        identity = buying.identity(context, None if file is None else file.path)
        said = {"identity": identity}
        with kept_in(
            folder, recipe, said, command="buy_labels", use="labels", mark=MARK, restart=restart
        ) as path:
            content, notes = _content(context, path, file, command)
        table = partial(of_labels.table, content)
        return Outcome(content, content["rows"], table, (*notes, *of_labels.notes(content)), path)


def _check_answers(
    config: LabelsConfig, answers: Path | str | None, folder: Path | str | None
) -> None:
    """Raise UserError where a file cannot answer what these settings ask."""
    if answers is None:
        return
    if config.teacher is not None:
        raise UserError(
            f"Both the teacher {config.teacher} and the file {answers} would answer; leave one out."
        )
    if len(config.rules) > 1 or config.repeats > 1:
        raise UserError(
            f"A file answers one course, and {len(config.rules)} rules in {config.repeats} repeats "
            "are asked for; set labels.rules to one, such as rad, and labels.repeats to 1."
        )
    if folder is None:
        raise UserError(
            "A file answers round by round, and what it is asked has to lie somewhere; name a "
            "folder."
        )


def _context(
    data: Data,
    recipe: Recipe,
    config: LabelsConfig,
    pool: Distilled | Path | str | None,
    seed: int,
    device: torch.device,
    precision: Precision,
) -> Context:
    """What the rounds need. Raises UserError for what would fail later."""
    if data.test is None or not len(data.test):
        raise UserError(
            f"{recipe.data.name} has no test images, and networks are measured on them; give some, "
            "or a dataset that has them."
        )
    for model in (recipe.model, *filter(None, [config.teacher])):
        build_model(model, data.image_shape, data.num_classes, generator(0))
    context = Context(
        pool=_real_pool(data) if pool is None else _pool_of(opened(pool), data, device),
        test=data.test,
        validation=data.validation,
        class_names=data.class_names,
        model=recipe.model,
        protocol=recipe.evaluation,
        config=config,
        seed=seed,
        device=device,
        precision=precision,
    )
    buying.check(context)
    return context


def _real_pool(data: Data) -> Pool:
    """The training images."""
    names = list(map(str, data.train_names or range(len(data.train))))
    return Pool(data.train, data.train.labels.cpu(), names, data.train.digest)


def _pool_of(of: Distilled, data: Data, device: torch.device) -> Pool:
    """The images of a set. Raises UserError for one of other images or without classes."""
    syn = set_of_images(of, data, device, "The set")
    decoded = freeze(syn, device)
    names = [str(number) for number in range(len(decoded))]
    return Pool(decoded, decoded.classes.cpu(), names, digest(["set", set_digest(syn)]))


class _Waiting(Exception):
    """Rounds whose answers a file does not hold yet: nothing is written, and it is said."""

    def __init__(self, content: Json, points: Tensor):
        """What is known so far, and the points (B,) that are asked for."""
        super().__init__()
        self.content = content
        self.points = points


def _content(
    context: Context, folder: Path | None, file: OfFile | None, command: Sequence[str]
) -> tuple[Mapping[str, Any], list[str]]:
    """(the content of labels.json, with the picture beside it; what to say first)."""

    def make(place: Path) -> Json:
        content, waiting = buying.run(context, file, place / PARTIAL)
        if waiting is not None:
            raise _Waiting(content, waiting)
        return content

    try:
        content = content_of(folder, FILE, make, command=command, unfinished=(PARTIAL,))
    except _Waiting as stop:
        assert folder is not None and file is not None, "a file answers in a folder"
        return stop.content, [_asked(folder / QUESTIONS, stop.points, context.pool, file.path)]
    if folder is not None:
        (folder / QUESTIONS).unlink(missing_ok=True)
        of_labels.plot(folder / "labels.png", content)
    return content, []


def _asked(questions: Path, points: Tensor, pool: Pool, answers: Path) -> str:
    """Write the questions about points (B,); returns what is to be done."""
    write_questions(questions, points, pool.names)
    return (
        f"{len(points)} points wait for their classes: {questions}; put its lines with the classes "
        f"into {answers}, and the same command goes on"
    )
