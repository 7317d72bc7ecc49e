"""Distill."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from buffers.store import (
    ExpertStore,
    StoreGroup,
)
from ddengine import api
from ddengine import loop as outer
from ddengine.api import check_networks, reads_experts
from ddengine.artefact import folder as set_folders
from ddengine.artefact import runs
from ddengine.commands.options import Options, of_recipe
from ddengine.commands.process import on_first_rank, start
from ddengine.commands.stores import EXPERTS, load_for, open_store, run_identity, teachers_of
from ddengine.data import Data
from ddengine.evaluation.train import validate
from ddengine.objective import Objective
from ddengine.pages import figures, overview
from ddengine.plan import bounds, jobs
from ddengine.recipe import (
    Recipe,
)  # fmt: skip
from ddengine.sets import synthetic
from ddengine.system import dist, log
from synth.cite import bibtex


def prepare(
    options: Options[Recipe], data: Data, device: torch.device, root: Path = EXPERTS
) -> tuple[synthetic.SyntheticSet, Objective, ExpertStore | StoreGroup | None]:
    """What a distillation starts from: the labelled initial set, the objective, the experts."""
    recipe = options.recipe
    check_networks(recipe, data)
    store = open_store(options, data, root) if reads_experts(recipe) else None
    syn, objective = api.prepare(
        recipe,
        data,
        device,
        store,
        seed=options.seed,
        precision=options.precision,
        compile=options.compile,
    )
    return syn, objective, store


def meta_of(
    options: Options[Recipe],
    recipe: Recipe,
    data: Data,
    store: ExpertStore | StoreGroup | None,
    device: torch.device,
    **more: Any,
) -> dict[str, Any]:
    """What meta.json says of a set beside what the set says itself."""
    return api.meta_of(
        recipe,
        data,
        store,
        device,
        seed=options.seed,
        precision=options.precision,
        bibtex=bibtex(recipe),
        **more,
    )


def distill(options: Options[Recipe], root: Path = EXPERTS) -> Path:
    """Distill the recipe's dataset; returns the run's folder. Continues an unfinished run."""
    recipe, seed, precision = options.recipe, options.seed, options.precision
    if options.out is not None:
        runs.check_folder(options.out)
    device = start(options)
    data = load_for(options, device, root)
    wanted = run_identity(options, data.train.digest, root)
    folder = options.out or runs.default_folder(recipe, wanted)
    if options.restart:
        runs.check_own(folder, runs.MARK)
    elif runs.is_finished(folder, wanted, beside=root.name):
        log.say(f"{folder} is finished; --restart begins anew")
        return folder
    log.say(f"{recipe.data.name}: {data.said()}")
    board = log.Board(folder / "tensorboard") if options.tensorboard and dist.rank() == 0 else None
    began = time.perf_counter()
    syn, objective, store = prepare(options, data, device, root)
    initial_seconds = round(time.perf_counter() - began, 2)  # what a set that is only chosen costs
    outer.check(syn, objective, recipe.outer)  # before the folder is there
    if not options.force:
        bounds.check(jobs.job(options, load_for, open_store, root), syn, data, folder, device)

    def begin() -> None:
        if options.restart:
            runs.delete(folder, runs.MARK)
        runs.begin(folder, recipe, wanted, options.command)

    def picture(syn: synthetic.SyntheticSet, step: int) -> None:
        path = folder / "progress" / f"step_{step:06d}.png"
        figures.grid(path, syn)
        if board is not None:
            board.picture(step, path)

    on_first_rank(begin)
    teachers = teachers_of(store, device) if recipe.evaluation.labels == "dynamic" else []
    result, counters = outer.distill(
        syn, objective, recipe.outer, folder, seed=seed,
        finish=partial(api.shipped, recipe=recipe, experts=store),
        validate=lambda s: validate(s, data, recipe.evaluation, recipe.model, seed=seed, device=device, precision=precision, teachers=teachers),
        picture=picture, board=board,
    )  # fmt: skip
    if dist.rank() == 0:
        meta = meta_of(
            options,
            recipe,
            data,
            store,
            device,
            distillation=outer.summary(counters) | {"initial_seconds": initial_seconds},
        )
        figures.real_vs_distilled(folder / "real_vs_distilled.png", data.train, result, None)
        figures.save_samples(folder / "samples.safetensors", data.train)
        set_folders.save(result, folder / "distilled", meta, data.split_names)
        stored = len(result.classes)
        tiles = "" if stored == len(result) else f", which decode to {len(result)},"
        log.say(
            f"distilled {stored} images{tiles} in "
            f"{log.duration(counters.seconds + initial_seconds)}: {folder / 'distilled'}"
        )
        log.say(overview.ledger(result.nbytes(), data.bytes, data.dataset_bytes))
    return folder


def main(args: list[str]) -> None:
    """The command."""
    if (options := of_recipe("distill", args)) is not None:
        distill(options)
