"""Distillation: images and a recipe in, a distilled set out. The command line calls this too."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine import in_groups, loop, turns
from ddengine.api import experts as of_experts
from ddengine.api.begun import begun, followed, place
from ddengine.api.checks import (
    check_compile,
    check_folder,
    check_recipe,
    check_run,
    say_slow_precision,
)
from ddengine.api.choices import choose
from ddengine.api.compiling import code_beside, settled
from ddengine.api.inputs import (
    AUTO,
    Images,
    Source,
    dataset_of,
    pointed_at,
    preprocess_of,
)
from ddengine.api.results import Distilled, load
from ddengine.artefact import runs
from ddengine.data import Data, Dataset, Preprocess
from ddengine.evaluation.train import validate_on_each
from ddengine.experts import ExpertSource
from ddengine.learning.teachers import load_all
from ddengine.objective import Objective
from ddengine.pages import figures, overview, writing
from ddengine.plan import bounds, jobs
from ddengine.prepare import check_networks, prepare, reads_experts, shipped
from ddengine.recipe import Recipe, as_students, for_networks
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import claims, dist, files, log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from ddengine.types import Compile, Experts

Bibtex = Callable[[Recipe], str]  # the entries to cite for a recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """A distillation of images that are loaded, by settings that are checked."""

    recipe: Recipe
    data: Data
    source: Source
    origin: ExpertSource
    device: torch.device
    seed: int
    precision: Precision
    compile: Compile = False
    images: Tensor | None = None  # to start from

    def __post_init__(self) -> None:
        missing = len(self.class_names) - self.data.num_classes
        kind = self.recipe.targets.kind
        if missing and kind in ("logits", "weights", "centred"):
            raise UserError(
                f"The dataset has {self.data.num_classes} of the {len(self.class_names)} classes, "
                f"and targets.kind {kind} is for those only; leave classes out."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the set that comes out, which may have more classes than the images."""
        dataset = self.source.dataset
        if dataset is not None and dataset.class_names is not None:
            return dataset.class_names
        return self.data.class_names

    def experts(self) -> Experts | None:
        """The experts that the recipe reads. Raises UserError for such that do not fit."""
        return self.origin.open(self.data) if reads_experts(self.recipe) else None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same.

        Experts of this program follow from the recipe and their seed; images without a name and
        what was handed in with them follow from nothing, and are told by digests.
        """
        origin = self.origin.origin(self.data.train.digest)
        more: dict[str, Any] = {"experts": followed(self.recipe, self.seed, origin)}
        start = None if self.images is None else files.tensor_digest({"images": self.images})
        if self.source.is_own:
            fingerprints = of_experts.fingerprints_of(self.experts())
            names = [list(self.data.class_names), list(self.class_names)]
            more = {"experts": fingerprints, "start": start, "classes": digest(names)}
        elif start is not None:
            more["start"] = start
        if self.source.preprocess is not None:
            more["preprocess"] = files.tensor_digest(self.source.preprocess.tensors())
        return runs.identity(
            self.recipe,
            self.data.train.digest,
            seed=self.seed,
            precision=self.precision,
            compile=self.compile,
            **more,
        )

    def start(self, experts: Experts | None) -> tuple[SyntheticSet, Objective, float]:
        """The initial set, the objective and the seconds that making them took.

        Raises UserError for what cannot be distilled.
        """
        began = time.perf_counter()
        syn, objective = prepare(
            self.recipe,
            self.data,
            self.device,
            experts,
            seed=self.seed,
            precision=self.precision,
            compile=self.compile is True,
            images=self.images,
        )
        seconds = round(time.perf_counter() - began, 2)  # what a set that is only chosen costs
        recipe, shared = self.recipe, self.shares(objective)
        loop.check(syn, objective, recipe.outer, recipe.taken, shared=shared)  # before any folder
        return syn, objective, seconds

    def shares(self, objective: Objective) -> bool:
        """Whether the ranks share the work of each draw; an objective that can, does from now."""
        method, outer = self.recipe.objective, self.recipe.outer
        if not loop.must_share(objective, outer):
            return False
        moves = outer.step_after == "each"
        return all([method.share(one, moves) for one in turns.alone(objective)])

    def renumbered(self, syn: SyntheticSet) -> SyntheticSet:
        """The set with its classes numbered as `class_names` has them."""
        names = self.class_names
        if syn.class_names == names:
            return syn
        ids = torch.tensor([names.index(n) for n in syn.class_names], device=syn.classes.device)
        return replace(syn, classes=ids[syn.classes], class_names=names)

    def meta(
        self,
        experts: Experts | None,
        counters: loop.Counters,
        initial_seconds: float,
        objective: Objective,
        bibtex: Bibtex | None,
        result: SyntheticSet,
    ) -> dict[str, Any]:
        """What meta.json says of the `result`."""
        more: dict[str, Any] = {} if bibtex is None else {"bibtex": bibtex(self.recipe)}
        students = self.recipe.objective.students(result)
        if students is not None:
            more["students"] = to_dict(students)
        return runs.meta_of(
            self.recipe,
            self.data,
            of_experts.summary_of(experts),
            self.device,
            seed=self.seed,
            precision=self.precision,
            **more,
            distillation={
                **loop.summary(counters),
                "initial_seconds": initial_seconds,
                **turns.facts(objective),
            },
        )

    def costed(self) -> jobs.Job:
        """The same distillation for a process that tries one step of it."""
        return jobs.Job(
            recipe=self.recipe,
            seed=self.seed,
            device=str(self.device),
            precision=self.precision,
            compile=self.compile is True,
            load=partial(self.source.load, stored=self.origin.preprocess),
            open_store=self.origin.open,
        )


def distill(
    data: Images,
    recipe: Recipe,
    experts: Experts | ExpertSource | None = None,
    *,
    models: Sequence[str] = (),
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: Compile = False,
    progress: log.Progress = True,
    restart: bool = False,
    force: bool = True,
    tensorboard: bool = False,
    classes: Sequence[Any] | None = None,
    images: Tensor | None = None,
    preprocess: Preprocess | Distilled | Images = None,
    bibtex: Bibtex | None = None,
    command: Sequence[str] = (),
    seconds_before: float = 0.0,
) -> Distilled:  # long: its arguments are explained
    """Distill images into a small set.

        recipe = synth.find("dm/cifar10_ipc10", ipc=5)
        result = ddengine.distill(my_torch_dataset, recipe, folder="runs/mine")

    Equal arguments give equal sets, to the bit those of the command line, and torch's random
    numbers are left alone.

    Args:
        data: a `ddengine.Dataset`; a map-style torch Dataset, list of (image, label) or pair of
            tensors (images, labels), all of which are training images; the path of a folder of
            images or parquet files; or None for the images that the recipe names.
        recipe: what to do, of `synth.find`. Its data settings (size, limit, validation, split_seed,
            zca) apply to any images.
        experts: what `buffers.generate(data, recipe)` returns, or `buffers.stores(recipe)` for
            those that lie in experts/; for recipes that read experts.
        models: networks that the images are made for, as `for_networks` says; none: the recipe's.
        folder: where the run is kept: the same call, or the same command, continues an unfinished
            run and reads a finished one. "auto" is the folder that the command line would name;
            None leaves nothing behind.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        compile: whether the inner training step is compiled; "auto" where the steps pay for it.
        progress: whether bars and notes are shown, in a terminal or a notebook; or a function of
            (title, done, total, note) that is told of progress in place of bars. What it raises
            stops the run, which the same call with a folder continues.
        restart: begin anew, deleting what the folder holds.
        force: start although memory or disk are estimated not to do; False looks first.
        tensorboard: also write TensorBoard files into the folder.
        classes: names (or numbers) of all classes where images that Python holds are only of some,
            such as one client's: label i is class i of the set. None: the set has the classes that
            occur, numbered anew; its `class_names` say which they are.
        images: pixels in [0, 1] to start from in place of recipe.init, all those of a class in a
            row (classes x images per class, C, H, W).
        preprocess: what networks see images through, in place of what is fitted to `data`: a
            `Preprocess`, a set, or images that it is fitted to. So clients whose sets are merged
            distill for one network. Experts bring theirs.
        bibtex: makes the BibTeX entries for the card of the set, such as `synth.bibtex`.
        command: the words by which a command line asked for this, for recipe.json.
        seconds_before: that the caller has spent on it.

    Raises:
        UserError: experts that are missing or were made for other images; a folder of something
            else; data or settings that do not go.
    """
    began = time.perf_counter() - seconds_before
    _check_asked(recipe, seed, precision, folder, compile)
    with log.shown(progress):
        job = job_of(
            dataset_of(data) if classes is None else Dataset.of(data, classes),
            for_networks(recipe, models),
            experts,
            seed=seed,
            device=device,
            precision=precision,
            compile=compile,
            images=images,
            preprocess=preprocess_of(preprocess, recipe.data),
        )
        if folder is None:
            return _in_memory(job, bibtex, began)
        path, asked = place(job, folder, job.recipe.name), job.recipe
        if not restart:
            path, job = begun(job, folder, job.recipe.name)
        wanted, words = job.identity(), tuple(command)
        keep = Keep(path, asked, wanted, words, restart, force, tensorboard, bibtex, began)
        return _read_or_kept(job, keep)


def _check_asked(recipe: Any, seed: Any, precision: Any, folder: Any, compile: Any) -> None:
    """Raise UserError for what is no recipe, seed, precision, folder or choice of `compile`.

    And in a group of processes that a user's program has joined.
    """
    check_recipe(recipe)
    check_run(seed, precision)
    check_compile(compile)
    if folder != AUTO:
        check_folder(folder)
    if dist.num_ranks() > 1 and not dist.started_here():
        raise UserError(
            f"distill works in one process, and this is a group of {dist.num_ranks()}; call it "
            "outside the group, or use run.py distill."
        )


def job_of(
    dataset: Dataset | None,
    recipe: Recipe,
    experts: Experts | ExpertSource | None,
    *,
    seed: int,
    device: str,
    precision: Precision,
    compile: Compile = False,
    images: Tensor | None = None,
    preprocess: Preprocess | None = None,
) -> Job:
    """The distillation of these images, which are loaded here.

    Raises UserError for experts that are missing, and images that do not go.
    """
    recipe, source = pointed_at(recipe, dataset)
    source = replace(source, preprocess=preprocess)
    recipe, origin = of_experts.source_of(recipe, experts, precision)
    where = runtime.setup(device, precision)
    say_slow_precision(precision, where)
    data = source.load(where, origin.preprocess)
    _check_preprocess(preprocess, origin.preprocess(data.train.digest))
    return Job(
        recipe=recipe,
        data=data,
        source=source,
        origin=origin,
        device=where,
        seed=seed,
        precision=precision,
        compile=compile,
        images=images,
    )


def _check_preprocess(given: Preprocess | None, seen: Preprocess | None) -> None:
    """Raise UserError where a caller gave another preprocessing than experts had."""
    if given is None or seen is None:
        return
    if files.tensor_digest(given.tensors()) != files.tensor_digest(seen.tensors()):
        raise UserError(
            "The experts saw their images through another preprocessing than preprocess= gives; "
            "leave it out, or take a recipe without experts."
        )


def distill_data(
    data: Data,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device,
    precision: Precision = "fp32",
    experts: Experts | None = None,
) -> SyntheticSet:
    """The set distilled of images that are loaded and split already; nothing is kept.

    They lie on `device`, which `runtime.setup` has prepared. Raises UserError as `distill` does.
    """
    check_recipe(recipe)
    check_run(seed, precision)
    recipe, origin = of_experts.source_of(recipe, experts, precision)
    job = Job(
        recipe=recipe,
        data=data,
        source=Source(recipe.data),
        origin=origin,
        device=device,
        seed=seed,
        precision=precision,
    )
    return _in_memory(job, None, time.perf_counter()).set


def _in_memory(job: Job, bibtex: Bibtex | None, began: float) -> Distilled:
    """A distillation of which nobody could read checkpoints or pictures.

    It began at `began` of time.perf_counter.
    """
    recipe, outer = job.recipe, job.recipe.outer
    check_networks(recipe, job.data)
    experts = job.experts()
    quiet = replace(outer, checkpoint_every=max(1, outer.steps), evaluate_every=0, picture_every=0)
    syn, objective, initial_seconds = job.start(experts)
    objective, shared = _settled(job, syn, objective, experts, None)
    with tempfile.TemporaryDirectory(prefix="ddengine-") as temporary:
        result, counters = in_groups.distill(
            syn,
            objective,
            recipe.objective.groups_apart(objective, syn, quiet),
            quiet,
            Path(temporary),
            seed=job.seed,
            finish=partial(shipped, recipe=recipe, experts=experts),
            began=began,
            shared=shared,
            kept=partial(turns.kept, recipe.objective),
        )
    meta = job.meta(experts, counters, initial_seconds, objective, bibtex, result)
    return Distilled(job.renumbered(result), meta, None, job.data.split_names)


def _settled(
    job: Job, syn: SyntheticSet, objective: Objective, experts: Experts | None, folder: Path | None
) -> tuple[Objective, bool]:
    """The objective once all is chosen that a run leaves to the machine, and whether ranks share.

    Groups that are made of it from then on do as it does.
    """
    objective, chosen = settled(job, syn, objective, experts, folder)
    choose(job.recipe.objective, objective, syn, job.device, folder, chosen)
    return objective, job.shares(objective)


@dataclass(frozen=True)
class Keep:
    """How the folder of a run is kept."""

    folder: Path
    recipe: Recipe  # as it was asked for
    identity: dict[str, Any]
    command: tuple[str, ...]
    restart: bool
    force: bool
    tensorboard: bool
    bibtex: Bibtex | None
    began: float  # of time.perf_counter, when the session did

    def begin(self) -> None:
        """Make the folder, or leave that of an unfinished run as it is."""
        if self.restart:
            runs.delete(self.folder, runs.MARK)
        runs.begin(self.folder, self.recipe, self.identity, self.command)


def _read_or_kept(job: Job, keep: Keep) -> Distilled:
    """The set of the run in a folder, which is read where it is finished."""
    if not _is_finished(keep):
        code = code_beside(keep.folder, job.compile)
        with claims.claimed(keep.folder, "distill"), code:
            if not _is_finished(keep):  # by the command that was waited for
                log.say(f"{job.recipe.data.name}: {job.data.said()}")
                return _kept(job, keep)
    _remove_groups(keep.folder)
    return load(keep.folder, str(job.device))


def _remove_groups(folder: Path) -> None:
    """Remove what the groups of a finished run kept, where a kill came before that."""
    groups = folder / in_groups.FOLDER
    if dist.rank() != 0 or not groups.is_dir():
        return
    # what cannot be claimed is read as it is
    with suppress(UserError, OSError), claims.claimed(folder, "distill"):
        shutil.rmtree(groups, ignore_errors=True)


def _is_finished(keep: Keep) -> bool:
    """Whether the run is done, which is said. Raises UserError for a folder of something else."""
    if keep.restart:
        runs.check_own(keep.folder, runs.MARK)
        return False
    if not runs.is_finished(keep.folder, keep.recipe, keep.identity, beside="experts"):
        return False
    log.say(f"{keep.folder} is finished; --restart begins anew")
    return True


def _kept(job: Job, keep: Keep) -> Distilled:
    """A distillation whose run lies in a folder, which continues it."""
    recipe, data, folder = job.recipe, job.data, keep.folder
    first = dist.rank() == 0
    board = log.Board(folder / "tensorboard") if keep.tensorboard and first else None
    check_networks(recipe, data)
    experts = job.experts()
    syn, objective, initial_seconds = job.start(experts)
    if not keep.force:
        bounds.check(job.costed(), syn, data, folder, job.device)
    dist.on_first_rank(keep.begin)
    objective, shared = _settled(job, syn, objective, experts, folder)
    teachers = []
    if recipe.evaluation.labels == "dynamic" and experts is not None:
        teachers = load_all(experts, job.device)

    def picture(syn: SyntheticSet, step: int) -> None:
        path = folder / "progress" / f"step_{step:06d}.png"
        figures.grid(path, syn)
        if board is not None:
            board.picture(step, path)

    def accuracy(syn: SyntheticSet) -> float | None:
        return validate_on_each(
            syn,
            data,
            as_students(recipe.evaluation, recipe.objective.students(syn)),
            recipe.validated_on,
            seed=job.seed,
            device=job.device,
            precision=job.precision,
            teachers=teachers,
        )

    result, counters = in_groups.distill(
        syn,
        objective,
        recipe.objective.groups_apart(objective, syn, recipe.outer),
        recipe.outer,
        folder,
        seed=job.seed,
        finish=partial(shipped, recipe=recipe, experts=experts),
        validate=accuracy,
        picture=picture,
        board=board,
        began=keep.began,
        run=digest(keep.identity),
        shared=shared,
        kept=partial(turns.kept, recipe.objective),
    )
    began = time.perf_counter() - counters.wall_seconds  # without interruptions
    meta = job.meta(experts, counters, initial_seconds, objective, keep.bibtex, result)
    renumbered = job.renumbered(result)
    if first:
        writing.write_run(folder, renumbered, data, meta, shown=result)
        shutil.rmtree(folder / in_groups.FOLDER, ignore_errors=True)
        seconds = time.perf_counter() - began
        _say_what_came(renumbered, data, meta, folder, seconds, recipe.validated_on)
    return Distilled(renumbered, meta, folder, data.split_names)


def _say_what_came(
    syn: SyntheticSet,
    data: Data,
    meta: dict[str, Any],
    folder: Path,
    seconds: float,
    networks: Sequence[str],
) -> None:
    """How many bytes, and last how many images in how many seconds, and how good they are.

    That is on the `networks`, on which the set was validated.
    """
    log.say(overview.ledger(syn.sizes(), data.bytes, data.dataset_bytes))
    stored, decoded = len(syn.classes), len(syn)
    tiles = "" if stored == decoded else f", which decode to {decoded},"
    cost = meta["distillation"]
    took = f"{log.duration(seconds)}, {log.duration(cost['seconds'])} of it outer steps"
    reached = ""
    if cost["validation_accuracy"] is not None:
        reached = f"; validation accuracy in the end {100 * cost['validation_accuracy']:.1f} %"
        if len(networks) > 1:
            reached += f", the mean of {' and '.join(networks)}"
    log.say(f"distilled {stored} images{tiles} in {took}{reached}: {folder / 'distilled'}")
