"""Runs compared by their settings, from their folders alone."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ddengine import contents
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, path_of
from ddengine.artefact import runs as run_folders
from ddengine.artefact.results import check_of_set
from ddengine.evaluation import settings
from ddengine.evaluation.comparison import Comparison
from ddengine.evaluation.comparison import compare as compared
from ddengine.evaluation.settings import Evaluated
from ddengine.pages import comparing
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.types import Evaluation, Meta

TITLE = "test accuracy by setting"
NEEDED = {"name", "data", "outer", "ipc", "model"}  # of a recipe
SWEEP = "sweep.json"  # marks the folder of a sweep, which stands for its runs


def compare(
    runs: Sequence[Distilled | Path | str],
    *,
    to: Distilled | Path | str | int | None = None,
    across: bool = False,
    csv: Path | str | None = None,
    latex: Path | str | None = None,
    figure: Path | str | None = None,
    x: str | None = None,
) -> Outcome:
    """A row for each setting of several runs: mean, spreads, and the difference to one of them.

        table = ddengine.compare(["runs/a0", "runs/a1", "runs/b0", "runs/b1"], to="runs/a0")
        print(table); table.to_pandas()

    Runs that differ in nothing but their seed are distillations of one setting. Accuracies are
    fractions, and those that the runs' evaluations say; nothing is trained.

    Args:
        runs: folders of runs that were evaluated, or of sweeps; or sets that lie in such a folder.
        to: the run whose setting the others are compared with, or the number of a row from 1; None:
            the first. Differences are paired by the seed of the distillation, p-values are
            corrected for all of them together (Holm).
        across: compare runs of different protocols too, by the fields that differ.
        csv: file to write, with every field and number.
        latex: file to write, a table for the package booktabs.
        figure: PNG file to write.
        x: what the figure shows accuracy against: ipc, bytes, seconds or a setting; None: the first
            setting that is a number.

    Raises:
        UserError: a run that was not evaluated; runs that were tested on other images, or whose
            networks were trained by another protocol.
    """
    read = _read(runs)
    first, *others = settings.groups(read, across=across)
    if others:
        (other, *_), *_ = others
        reason = settings.difference(first, other, across=across)
        advice = "."
        if not across and settings.difference(first, other, across=True) is None:
            advice = ", or all of them with --across, which shows in which fields protocols differ."
        raise UserError(
            f"{reason}, so they cannot be compared; compare each group of runs for itself{advice}"
        )
    comparison = compared(read, to=_reference(to, read), across=across)
    write_comparison(comparison, TITLE, csv=csv, latex=latex, figure=figure, x=x)
    return Outcome(
        asdict(comparison),
        comparison.rows,
        partial(comparing.table, comparison, TITLE),
        (comparing.SHORT_TITLES, *comparison.notes),
        title=TITLE,
    )


def write_comparison(
    comparison: Comparison,
    title: str,
    *,
    csv: Path | str | None,
    latex: Path | str | None,
    figure: Path | str | None,
    x: str | None,
) -> None:
    """Write the files that are named; `x` is as `compare` takes it."""
    if csv is not None:
        _write(Path(csv), comparing.csv_text(comparison))
    if latex is not None:
        _write(Path(latex), comparing.latex_text(comparison, title))
    if figure is not None:
        from ddengine.pages import comparison_figure

        files.make_folder(Path(figure).parent)
        comparison_figure.draw(Path(figure), comparison, x)


def _write(path: Path, text: str) -> None:
    files.make_folder(path.parent)
    files.write_text(path, text)


def _read(of: Sequence[Distilled | Path | str]) -> list[Evaluated]:
    """What the runs' files say. Raises UserError for no runs, and for one without evaluation."""
    if isinstance(of, Distilled | Path | str):
        of = [of]
    paths: list[Path] = []
    for one in of:
        paths += runs_in(path_of(one) if isinstance(one, Distilled) else Path(one))
    if not paths:
        raise UserError("compare was given no runs; name the folders of two at least.")
    return list(map(evaluated, paths))


def runs_in(path: Path) -> list[Path]:
    """The finished runs of a sweep; of any other folder itself.

    Raises UserError for a sweep, such as of a stranger, that names a run elsewhere.
    """
    if not (path / SWEEP).is_file():
        return [path]
    finished = []
    for name in contents.read_json(path / SWEEP, "runs")["runs"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{path / SWEEP} names the run {name!r}, which lies elsewhere; restore it or run "
                "the sweep again."
            )
        if (path / "runs" / name / "evaluation.json").is_file():
            finished.append(path / "runs" / name)
    return finished


def evaluated(path: Path) -> Evaluated:
    """What the files of a run say. Raises UserError for one that was not evaluated."""
    folder = run_folders.set_folder(path)
    if not (folder / "meta.json").is_file():
        raise UserError(f"{path} holds no distilled set; name the folder of a run.")
    evaluation = path / "evaluation.json"
    if not evaluation.is_file():
        evaluation = folder / "evaluation.json"  # a copy that travels with the set
    if not evaluation.is_file():
        raise UserError(f"{path} was not evaluated; run evaluate {path} first.")
    meta = contents.read_json(folder / "meta.json", "recipe")
    content = contents.read_json(evaluation, "rows")
    check_of_set(evaluation, content, meta)
    _check_complete(folder / "meta.json", evaluation, meta, content)
    return Evaluated(str(path), meta, content)


def _check_complete(meta_path: Path, path: Path, meta: Meta, evaluation: Evaluation) -> None:
    """Raise UserError where files lack what runs are compared by."""
    missing = NEEDED - meta["recipe"].keys()
    if missing:
        raise UserError(
            f"{meta_path} does not say recipe.{min(missing)}, so its run cannot be compared; "
            "distill it again."
        )
    if not evaluation["rows"]:
        raise UserError(f"{path} has no rows; evaluate again with --restart.")


def _reference(
    to: Distilled | Path | str | int | None, read: Sequence[Evaluated]
) -> Evaluated | int | None:
    """The run or the number of the row that others are compared with."""
    if to is None or isinstance(to, int):
        return to
    if isinstance(to, str) and to.isdigit():
        return int(to)
    path = path_of(to) if isinstance(to, Distilled) else Path(to)
    for run in read:
        if files.without_links(Path(run.name)) == files.without_links(path):
            return run
    raise UserError(f"--to {path} is none of the runs that are compared; name one of them.")
