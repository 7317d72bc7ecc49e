"""Sweeps: a recipe distilled and evaluated with all settings of a grid and several seeds."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ddengine import contents, naming
from ddengine.api.checks import check_compile, check_folder, check_recipe, check_run
from ddengine.api.compare import SWEEP, TITLE, evaluated, write_comparison
from ddengine.api.distill import Bibtex
from ddengine.api.inputs import Images, default_folder
from ddengine.api.outcomes import Outcome
from ddengine.api.sweeping import (
    Checks,
    Common,
    DoRun,
    MakeExperts,
    PlannedRun,
    check_arguments,
    planned,
    stores_needed,
    told,
)
from ddengine.evaluation.comparison import Comparison, compare
from ddengine.evaluation.settings import Evaluated
from ddengine.experts import ExpertMaker
from ddengine.pages import comparing
from ddengine.pages.comparison_figure import check_axis
from ddengine.recipe import Recipe, resolved
from ddengine.system import claims, dist, files, log, pool, runtime
from ddengine.system.cluster import Cluster, executor_of, run_all
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.pool import Ended
from ddengine.system.runtime import Precision
from ddengine.types import Compile

JOBS = "jobs"  # the folder of what submitit writes of the jobs of a cluster
FILES = ("comparison.csv", "comparison.tex", "comparison.png")


def sweep(
    data: Images,
    recipe: Recipe,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0,),
    folder: Path | str | None = None,
    jobs: int | None = None,
    experts: ExpertMaker | None = None,
    evaluation: Mapping[str, Any] | None = None,
    to: int | None = None,
    x: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: Compile = False,
    progress: log.Progress = True,
    restart: bool = False,
    force: bool = True,
    tensorboard: bool = False,
    bibtex: Bibtex | None = None,
    command: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> Outcome:  # long: its arguments are explained
    """Distill and evaluate a recipe with all settings of a grid and several seeds.

        table = ddengine.sweep(data, recipe, grid={"outer.optim.images.lr": [10, 100]},
                               seeds=[0, 1, 2], folder="runs/rates")
        print(table)

    Each run has a process of its own, and lies in FOLDER/runs as `distill` and `evaluate` leave it.
    The same call goes on after an interruption, and more values or seeds may be asked of the same
    folder. A run that fails is told in the table, and stops no other. Experts that several runs
    follow are made once. The table is that of `compare`, and lies in the folder too.

    Args:
        data: as `distill` takes it.
        recipe: what all runs start from.
        grid: values by the dotted names of fields; all combinations are run.
        seeds: of the distillations.
        folder: of the sweep; None: runs/sweep-RECIPE-HASH.
        jobs: runs at a time, each on one thread of a CPU; None: as many as cores, on CUDA one.
        experts: `buffers.ExpertMaker()`, for recipes that read experts.
        evaluation: further arguments of `evaluate`: models, baselines, protocol and so on.
        to: the number of the row that others are compared with; None: the first.
        x: of the figure, as `compare` takes it.
        seed: of the evaluations; all have networks of the same seeds.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        compile: whether the inner training step is compiled; "auto" where the steps of a run pay
            for it.
        progress: as `distill` takes it.
        restart: begin all runs anew, deleting what the folder holds of them.
        force: as `distill` takes it.
        tensorboard: also write TensorBoard files into the runs' folders.
        bibtex: makes the BibTeX entries for the cards of the sets, such as `synth.bibtex`.
        command: the words of `distill` by which a command line asked for this.
        cluster: where runs are jobs, of `ddengine.system.cluster`; None: processes of this one.

    Raises:
        UserError: settings of any run that do not go, before the first; a folder of another.
    """
    _check_asked(recipe, seed, precision, folder, compile)
    common = Common(
        data=data,
        experts=experts,
        evaluation=dict(evaluation or {}),
        seed=seed,
        device=device,
        precision=precision,
        compile=compile,
        restart=restart,
        force=force,
        tensorboard=tensorboard,
        bibtex=bibtex,
        command=tuple(command),
    )
    check_arguments(common.evaluation)
    axes = dict(grid or {})
    with log.shown(progress):
        path = _default_folder(recipe, common) if folder is None else Path(folder)
        plans = planned(recipe, axes, seeds, path)
        _check_shown(axes, to, x)
        of = _identity(recipe, common)
        _check_sweep(path, of)
        work = _work(plans, common, path, jobs, cluster)
        with claims.claimed(path, "sweep"):
            dist.on_first_rank(partial(_remember, path, of, plans))
            work.do()
        return _Told(path, plans, work.failed, axes).outcome(to, x)


def _check_asked(recipe: Any, seed: Any, precision: Any, folder: Any, compile: Any) -> None:
    """Raise UserError for what is no recipe, seed, precision, folder or choice of `compile`."""
    check_recipe(recipe)
    check_run(seed, precision)
    check_folder(folder)
    check_compile(compile)


def _work(
    plans: Sequence[PlannedRun],
    common: Common,
    folder: Path,
    jobs: int | None,
    cluster: Cluster | None,
) -> "_Work":
    """What there is to do, which is checked, and what does it.

    Raises UserError for settings that do not go, and where runs cannot be jobs.
    """
    if cluster is None:
        return _Work(plans, _checked(plans, common), _jobs(jobs, common.device))
    if dist.shares():
        raise UserError(f"--cluster {cluster.kind} starts jobs itself; start it without torchrun.")
    without_limit = jobs is None and cluster.kind == "slurm"
    num = len(plans) if without_limit else _jobs(jobs, common.device)
    with tempfile.TemporaryDirectory() as nowhere:  # before there is a folder
        executor_of(cluster, Path(nowhere), num)
    run = partial(run_all, cluster=cluster, folder=folder / JOBS, jobs=num)
    return _Work(plans, _checked(plans, common), num, run)


def _checked(plans: Sequence[PlannedRun], common: Common) -> Checks:
    """What was loaded to check all runs. Raises UserError for settings that do not go."""
    checks = Checks.of(common)
    first, *others = plans
    checks.check(first)
    with log.shown(False):  # what is to be said is said of all runs alike
        for run in others:
            checks.check(run)
    return checks


def _identity(recipe: Recipe, common: Common) -> dict[str, Any]:
    """What all runs of a folder have in common, but for their settings and seeds."""
    return {
        "resolved": digest(resolved(recipe)),
        "evaluation": digest(told(dict(common.evaluation) | {"command": None})),
        "seed": common.seed,
        "precision": common.precision,
        "compile": common.compile,
    }


def _default_folder(recipe: Recipe, common: Common) -> Path:
    return default_folder(f"sweep-{recipe.name}", _identity(recipe, common))


def _check_sweep(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raise UserError for a folder of something else, or of a sweep of another recipe."""
    if not (folder / SWEEP).is_file():
        if folder.exists() and files.contents(folder):
            raise UserError(
                f"{folder} is not empty and not the folder of a sweep; name another with --out."
            )
        return
    stored = contents.read_json(folder / SWEEP, "of", "runs")["of"]
    for name, value in wanted.items():
        if stored.get(name) != value:
            what = name.replace("resolved", "recipe")
            raise UserError(
                f"{folder} holds a sweep of another {what}; name another folder with --out."
            )


def _check_shown(axes: Mapping[str, Sequence[Any]], to: int | None, x: str | None) -> None:
    """Raise UserError for a row that there will not be, and an axis that no row says."""
    rows = _num_settings(axes)
    if to is not None and not 1 <= to <= rows:
        raise UserError(f"--to {to} names no row: there are {rows} settings, counted from 1.")
    if x is not None:
        check_axis(x, axes)


def _jobs(jobs: int | None, device: str) -> int:
    """How many runs are at work at a time. Raises UserError for none."""
    where = runtime.setup(device)
    if jobs is None:
        cores = int(runtime.machine(where)["cores"])
        return 1 if where.type == "cuda" else max(1, cores // dist.ranks_here())
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise UserError(f"jobs is {jobs!r}; give a whole number, 1 at least.")
    return jobs


def _remember(folder: Path, wanted: Mapping[str, Any], plans: Sequence[PlannedRun]) -> None:
    """Write which runs there are, beside those of the same folder before."""
    mark = folder / SWEEP
    known = contents.read_json(mark, "runs")["runs"] if mark.is_file() else {}
    for run in plans:
        known[run.name] = {"seed": run.seed, "settings": to_dict(run.values)}
    files.write_json(mark, {"format": naming.FORMAT, "of": wanted, "runs": known})


@dataclass
class _Work:
    """What a sweep has to do."""

    plans: Sequence[PlannedRun]
    checks: Checks
    jobs: int
    on_cluster: Callable[[Mapping[str, pool.Task], pool.Watcher], None] | None = None
    failed: dict[str, Ended] = field(default_factory=dict)  # by the names of runs

    def do(self) -> None:
        """Make the experts, then the runs; finished ones are left as they are."""
        common = self.checks.common
        unfinished = [run.name for run in self.plans if common.restart or not run.is_finished]
        left = self._named(dist.told(unfinished))
        self._say(len(left))
        self._make_experts(left)
        tasks = {}
        for run in left:
            if run.name not in self.failed:
                tasks[run.name] = DoRun(run, common)
        with log.progress("sweep", len(self.plans), len(self.plans) - len(tasks)) as bar:
            watcher = _Watcher(bar, self.failed)
            self._run(tasks, watcher, jobs=self.jobs, threads=1)
        self.failed = _of_all_ranks(self.failed)

    def _run(
        self, tasks: Mapping[str, pool.Task], watcher: pool.Watcher, jobs: int, threads: int
    ) -> None:
        """Run tasks, here or as jobs of a cluster."""
        if self.on_cluster is None:
            pool.run_all(tasks, watcher, jobs=jobs, threads=threads)
        else:
            self.on_cluster(tasks, watcher)

    def _named(self, names: Sequence[str]) -> list[PlannedRun]:
        """Runs by their names."""
        by_name = {run.name: run for run in self.plans}
        return list(map(by_name.__getitem__, names))

    def _say(self, left: int) -> None:
        """How many runs there are to do, and how many at a time."""
        runs = f"{len(self.plans)} runs"
        if not left:
            log.say(f"all {runs} are finished; --restart begins anew")
            return
        if left < len(self.plans):
            runs += f", {len(self.plans) - left} of them finished"
        at_a_time = min(self.jobs * dist.num_ranks(), left)
        ranks = f" on {dist.num_ranks()} ranks" if dist.shares() else ""
        log.say(f"{runs}; {at_a_time} at a time{ranks}, each on one thread (--jobs)")

    def _make_experts(self, left: Sequence[PlannedRun]) -> None:
        """Make the experts that runs lack; of a store that fails no run can be made."""
        following = stores_needed(left, self.checks).values()
        names = [[run.name for run in runs] for runs in following]
        needed = list(map(self._named, dist.told(names)))
        if not needed:
            return
        tasks = {}
        for first, *_ in needed:
            tasks[first.name] = MakeExperts(first.recipe, self.checks.common)
        log.say(f"experts: {len(tasks)} of the stores that the runs follow lack some")
        failed: dict[str, Ended] = {}
        at_a_time = min(self.jobs, len(tasks))
        with log.progress("experts", len(tasks)) as bar:
            watcher = _Watcher(bar, failed, halves=False)
            threads = max(1, self.jobs // at_a_time)
            self._run(tasks, watcher, jobs=at_a_time, threads=threads)
        failed = _of_all_ranks(failed)
        for first, *others in needed:
            if first.name in failed:
                for run in (first, *others):
                    self.failed[run.name] = failed[first.name]


def _of_all_ranks(failed: Mapping[str, Ended]) -> dict[str, Ended]:
    """What failed on any rank, once all have done their tasks."""
    everything: dict[str, Ended] = {}
    for of_rank in dist.gathered({name: asdict(end) for name, end in failed.items()}):
        everything |= {name: Ended(**end) for name, end in of_rank.items()}
    return everything


class _Watcher:
    """Shows how far all runs together are, and says how each has ended."""

    def __init__(self, bar: log.Bar, failed: dict[str, Ended], *, halves: bool = True):
        """`halves`: a task distills, and then evaluates. What fails goes into `failed`."""
        self._bar = bar
        self._failed = failed
        self._halves = halves
        self._ended = bar.done
        self._parts: dict[str, float] = {}  # how much of each task that runs is done
        self._share = 0.5  # of the time of a run that its distillation takes
        self._seconds = {"distilling": 0.0, "evaluating": 0.0}

    def progress(self, name: str, title: str, done: int, total: int) -> None:
        """A task has done so many of what its title says."""
        part = done / max(1, total)
        if self._halves and title.startswith("evaluate"):
            part = self._share + (1 - self._share) * part
        elif self._halves:
            part *= self._share
        self._parts[name] = part
        self._bar.move(self._ended + sum(self._parts.values()), f"{name}: {title} {done}/{total}")

    def ended(self, name: str, end: Ended) -> None:
        """A task has ended."""
        self._parts.pop(name, None)
        self._ended += 1
        if end.error is not None:
            self._failed[name] = end
            log.say(f"{name} failed: {end.error}")
        elif self._halves:
            self._learn(end.value)
            log.say(f"{name}: {_in_words(end.value)} ({self._ended}/{self._bar.total})")
        self._bar.move(self._ended + sum(self._parts.values()), name)

    def _learn(self, took: Mapping[str, Any]) -> None:
        """What share of the time distillations take, by those that are done."""
        for name in self._seconds:
            self._seconds[name] += took[name]
        self._share = self._seconds["distilling"] / max(sum(self._seconds.values()), 1e-9)


def _in_words(value: Mapping[str, Any]) -> str:
    accuracy = value["accuracy"]
    reached = "all networks diverged" if accuracy is None else f"{100 * accuracy:.1f} %"
    return f"{reached} in {log.duration(value['distilling'] + value['evaluating'])}"


@dataclass(frozen=True)
class _Told:
    """What a sweep says in the end."""

    folder: Path
    plans: Sequence[PlannedRun]
    failed: Mapping[str, Ended]  # by the names of runs
    axes: Mapping[str, Sequence[Any]]

    def outcome(self, to: int | None, x: str | None) -> Outcome:
        """The table, which is written into the folder too."""
        failures = list(map(self._failure, filter(self._has_failed, self.plans)))
        notes = tuple(f"failed: {one['run']}: {one['error']}" for one in failures)
        content = {"failed": failures, "rows": []}
        read = {}
        for run in self.plans:
            if not self._has_failed(run):
                read[run.name] = evaluated(run.folder)
        if not read:
            table = partial(_only_failures, failures, list(self.axes))
            return Outcome(content, [], table, notes, self.folder, TITLE)
        comparison = compare(
            list(read.values()), to=self._reference(read, to), across=True, always=list(self.axes)
        )
        csv, latex, figure = (self.folder / name for name in FILES)
        if dist.rank() == 0:
            write_comparison(comparison, TITLE, csv=csv, latex=latex, figure=figure, x=x)
        return Outcome(
            {**content, **asdict(comparison)},
            comparison.rows,
            partial(_table, comparison, failures),
            (comparing.SHORT_TITLES, *comparison.notes, *notes),
            self.folder,
            TITLE,
        )

    def _has_failed(self, run: PlannedRun) -> bool:
        return run.name in self.failed

    def _failure(self, run: PlannedRun) -> dict[str, Any]:
        """What is said of a run that failed; what only a programmer reads lies in a file."""
        end = self.failed[run.name]
        if end.details and dist.rank() == 0:
            files.make_folder(self.folder / "failed")
            files.write_text(self.folder / "failed" / f"{run.name}.txt", end.details)
        settings = dict(run.values)
        return {"run": run.name, "settings": settings, "seed": run.seed, "error": end.error}

    def _reference(self, read: Mapping[str, Evaluated], to: int | None) -> Evaluated | None:
        """A finished run of the setting with this number; None without any."""
        if to is None:
            return None
        for run in self.plans[to - 1 :: _num_settings(self.axes)]:
            if run.name in read:
                return read[run.name]
        return None


def _num_settings(axes: Mapping[str, Sequence[Any]]) -> int:
    return math.prod(map(len, axes.values()))


def _table(comparison: Comparison, failures: Sequence[Mapping[str, Any]]) -> Table:
    """The table of a comparison, and a line for each run that failed."""
    shown = comparing.table(comparison, TITLE)
    if failures:
        shown.add_section()
    for one in failures:
        words = comparing.settings_in_words(one, comparison.fields)
        shown.add_row("", *words, f"seed {one['seed']} failed")
    return shown


def _only_failures(failures: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Table:
    """A table of a sweep without any finished run."""
    shown = Table(title=TITLE, title_justify="left")
    for name in (*fields, "seed", ""):
        shown.add_column(name)
    for one in failures:
        words = comparing.settings_in_words(one, fields)
        shown.add_row(*words, str(one["seed"]), "failed")
    return shown
