"""Selections: the real images that a rule chooses, as a set like a distilled one."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ddengine.api import experts as of_experts
from ddengine.api.distill import Bibtex
from ddengine.api.experts import ExpertSource
from ddengine.api.inputs import (
    AUTO,
    Images,
    check_folder,
    check_precision,
    check_recipe,
    dataset_of,
    default_folder,
    pointed_at,
)
from ddengine.api.results import Distilled, load
from ddengine.artefact import runs
from ddengine.data import Data
from ddengine.models import build_model
from ddengine.pages import writing
from ddengine.prepare import ASKS_EXPERTS, check_networks
from ddengine.recipe import Recipe, digest, resolved
from ddengine.sets.codec import Pixels
from ddengine.sets.start import SELECTIONS, selected_index
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log, program, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Experts

DECIDING = ("name", "data", "model", "ipc", "init", "evaluation")  # the other parts play no role
NEAREST = ("herding", "k_centre", "k_means")  # kinds that start from the mean of a class


def select(
    data: Images,
    recipe: Recipe,
    experts: Experts | ExpertSource | None = None,
    *,
    kind: str | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: bool = True,
    restart: bool = False,
    bibtex: Bibtex | None = None,
    command: Sequence[str] = (),
) -> Distilled:
    """The real images that a recipe's init chooses, labelled with their classes, as a set that is
    evaluated, exported and trained on like a distilled one.

        chosen = ddengine.select(my_torch_dataset, recipe, kind="herding")

    Args:
        data: as `distill` takes it.
        recipe: says which images, how many of a class, the network that looks at them, the rule
            (`init`) and how the set is evaluated.
        experts: as `distill` takes them, for the kinds `correct` and `representative`.
        kind: the rule; None: that of the recipe.
        folder: where the run is kept; "auto" is the one that the command line would name; None
            leaves nothing behind.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: whether bars and notes are shown.
        restart: begin anew, deleting what the folder holds of an earlier run.
        bibtex: makes the BibTeX entries for the card of the set, such as `synth.bibtex`.
        command: the words by which a command line asked for this.

    Raises:
        UserError: a kind that chooses no real images, experts that are missing, data that do not
            go, a folder of something else.
    """
    check_recipe(recipe)
    check_precision(precision)
    if kind is not None:
        recipe = replace(recipe, init=replace(recipe.init, kind=kind))
    kind = recipe.init.kind
    if kind not in SELECTIONS:
        raise UserError(
            f"{program.name()} select chooses among real images, and init.kind is {kind}; set "
            f"--init.kind to one of {', '.join(SELECTIONS)}."
        )
    if folder != AUTO:
        check_folder(folder)
    asks_experts = kind in ASKS_EXPERTS
    if not asks_experts:  # then nothing depends on a store that happens to be there
        own_labels = replace(recipe.evaluation, labels="own")
        recipe = replace(recipe, buffer=None, teachers=(), evaluation=own_labels)
        experts = None
    with log.shown(progress):
        recipe, source = pointed_at(recipe, dataset_of(data))
        origin = _source(recipe, experts, seed, precision, asks_experts)
        where = runtime.setup(device, precision)
        loaded = source.load(where, origin.preprocess)
        log.say(f"{recipe.data.name}: {loaded.said()}")
        tiled = recipe.codec.per_item > 1
        recipe = replace(recipe, codec=Pixels())  # the bytes of real images as they are
        wanted = runs.identity(
            recipe,
            loaded.train.digest,
            seed=seed,
            precision=precision,
            compile=False,
            experts=origin.origin(loaded.train.digest),
        ) | {"resolved": _digest(recipe, asks_experts)}
        path = None if folder is None else Path(folder)
        if folder == AUTO:
            path = default_folder(f"select-{kind}", wanted)
        if path is not None and restart:
            runs.check_own(path, runs.MARK)
        elif path is not None and runs.is_finished(path, wanted):
            log.say(f"{path} is finished; --restart begins anew")
            return load(path, str(where))
        check_networks(recipe, loaded, selection=True)
        opened = origin.open(loaded)  # none where the kind asks none
        index = _chosen(recipe, loaded, opened, seed)
        if tiled:
            log.say("images are chosen whole: the recipe's codec plays no role")
        syn = _set_of(recipe, loaded, index)
        names = [loaded.train_names[i] for i in index.tolist()] if loaded.train_names else []
        selected = {"kind": kind, "index": index.tolist(), "names": names}
        meta = runs.meta_of(
            recipe,
            loaded,
            of_experts.summary_of(opened),
            where,
            seed=seed,
            precision=precision,
            **({} if bibtex is None else {"bibtex": bibtex(recipe)}),
            selected=selected,
        )
        if path is None:
            return Distilled(syn, meta, None, loaded.split_names)
        if restart:
            runs.delete(path, runs.MARK)
        runs.begin(path, recipe, wanted, command)
        log.EventLog(path / "metrics.jsonl").close()  # empty, as of a distillation without steps
        writing.write_run(path, syn, loaded, meta)
        if kind in NEAREST and recipe.ipc == 1:
            log.say(f"{kind} with one image per class takes the image nearest to the class mean")
        log.say(f"{len(syn)} images chosen by init.kind {kind}: {path / 'distilled'}")
        return Distilled(syn, meta, path, loaded.split_names)


def _source(
    recipe: Recipe, experts: Any, seed: int, precision: str, asks_experts: bool
) -> ExpertSource:
    """Where the experts that choose come from."""
    if isinstance(experts, ExpertSource):
        return experts.on(recipe.data)
    if asks_experts and experts is None:
        return of_experts.source_of(recipe, None, seed, precision)  # says what is missing
    return of_experts.Given(recipe, experts, seed, precision)


def _digest(recipe: Recipe, asks_experts: bool) -> str:
    """What identifies the parts of a recipe that decide a selection."""
    values = resolved(recipe)
    parts = (*DECIDING, "buffer") if asks_experts else DECIDING
    return digest(["select", {part: values[part] for part in parts}])


def _chosen(recipe: Recipe, data: Data, experts: Experts | None, seed: int) -> Tensor:
    """The training images that are chosen (S,), all of a class in a row."""
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    return selected_index(
        data.train,
        recipe.ipc,
        data.class_names,
        generator(seed, "init"),
        recipe.init,
        experts,
        new_model,
    )


def _set_of(recipe: Recipe, data: Data, index: Tensor) -> SyntheticSet:
    """The images at `index` with their bytes as they are."""
    on_device = index.to(data.train.pixels.device)
    return SyntheticSet(
        {"images": data.train.pixels.index_select(0, on_device)},
        data.train.labels.index_select(0, on_device),
        data.class_names,
        recipe.codec,
        data.train.preprocess,
        space=recipe.codec.space,
    )
