"""Knowledge distillation on pruned data: selections, students, distilled sets beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine import naming
from ddengine.api.checks import check_folder, check_recipe, check_run
from ddengine.api.distill import Bibtex
from ddengine.api.inputs import AUTO, Images, Source, dataset_of, pointed_at
from ddengine.api.keeping import content_of, kept_in
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, opened, set_of_images
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.data import Data
from ddengine.models import build_model, middle
from ddengine.pages import of_pruning
from ddengine.recipe import Recipe
from ddengine.sets.codec import Pixels
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, runtime
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Json
from ddengine.uses import pruning
from ddengine.uses.pruning import Beside, Context, Kept, PruningConfig

MARK = "prune.recipe.json"
FILE = "prune.json"
PARTIAL = "prune.partial.jsonl"  # what is finished of a run that is not done
WORK = "work"  # the folder of networks and scores of such a run


def prune(
    data: Images,
    recipe: Recipe,
    config: PruningConfig = PruningConfig(),
    *,
    sets: Sequence[Distilled | Path | str] | Mapping[str, Distilled | Path | str] = (),
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    bibtex: Bibtex | None = None,
    command: Sequence[str] = (),
) -> Outcome:  # long: its arguments are explained
    """Keep a fraction of the images, and train students on it with and without a teacher.

        few = ddengine.PruningConfig(fractions=(0.05, 1.0), selections=("random", "herding"))
        table = ddengine.prune(ddengine.Dataset.named("digits"), recipe, few, folder="runs/pruned")

    Every selection lies in the folder as kept/NAME.json, with the indices and names of its images
    and what decided them.

    Args:
        data: as `distill` takes it, with test images.
        recipe: its data, network, init (updates and rate of networks that score images) and
            evaluation (how networks are trained); the other parts play no role.
        config: fractions, selections, students, teachers.
        sets: distilled sets of the same images and classes, that stand beside selections of as many
            bytes; a dictionary gives them names.
        folder: where prune.json, prune.png and kept/ are written, and an interrupted run is
            continued; "auto" is the one that the command line would name; None leaves nothing.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: begin anew, deleting what the folder holds.
        bibtex: makes the BibTeX entries for the cards of sets, such as `synth.bibtex`.
        command: the words by which a command line asked for this.

    Raises:
        UserError: a fraction that keeps no image of a class, teachers that do not exist, sets of
            other images, a folder of something else.
    """
    check_recipe(recipe)
    check_run(seed, precision)
    if not isinstance(config, PruningConfig):
        raise UserError(f"config is {config!r}; give a ddengine.PruningConfig.")
    if folder != AUTO:
        check_folder(folder)
    with log.shown(progress):
        # what makes no difference here makes no other run
        recipe = replace(recipe, buffer=None, teachers=(), published=None)
        recipe, source = pointed_at(recipe, dataset_of(data))
        where = runtime.setup(device, precision)
        loaded = source.load(where, test=True)
        context = Context(loaded, recipe, config, seed, where, precision, Path())
        beside = _beside(sets, context)
        _check(context, source)
        identity = pruning.identity(context, beside)
        said = {"identity": identity}
        with kept_in(
            folder, recipe, said, command="prune", use="prune", mark=MARK, restart=restart
        ) as path:
            content = _content(context, beside, path, bibtex, command)
        table, notes = partial(of_pruning.table, content), tuple(of_pruning.notes(content))
        return Outcome(content, content["rows"], table, notes, path)


def _check(context: Context, source: Source) -> None:
    """Raise UserError for what would fail later: sizes, networks, no test images."""
    data = context.data
    if data.test is None or not len(data.test):
        raise UserError(
            f"{source.config.name} has no test images, and students are measured on them; give "
            "some, or a dataset that has them."
        )
    pruning.sizes_of(context)
    for model in (context.recipe.model, *context.teachers):
        network = build_model(model, data.image_shape, data.num_classes, generator(0))
        if model == context.recipe.model and "uskd" in context.config.losses:
            middle(network, data.image_shape)


def _beside(
    sets: Sequence[Distilled | Path | str] | Mapping[str, Distilled | Path | str], context: Context
) -> list[Beside]:
    """The distilled sets under their names. Raises UserError for those of other images."""
    if isinstance(sets, Distilled | Path | str):
        sets = [sets]
    if isinstance(sets, Mapping):
        given = {name: opened(of) for name, of in sets.items()}
    else:
        given = _named([opened(of) for of in sets])
    made = []
    for name, of in given.items():
        syn = set_of_images(of, context.data, context.device, f"The set {name}")
        made.append(Beside(name, syn))
    return made


def _named(sets: Sequence[Distilled]) -> dict[str, Distilled]:
    """Sets by the names of their recipes; a number follows a name that another one has."""
    given: dict[str, Distilled] = {}
    for of in sets:
        name = str(of.meta.get("recipe", {}).get("name", "set"))
        given[naming.apart(name, given)] = of
    return given


def _content(
    context: Context,
    sets: Sequence[Beside],
    folder: Path | None,
    bibtex: Bibtex | None,
    command: Sequence[str],
) -> Mapping[str, Any]:
    """The content of prune.json, with the picture and the images that were kept beside it."""

    def make(place: Path) -> Json:
        keep = partial(_keep, context, place / "kept")
        working = replace(context, folder=place / WORK)
        return pruning.run(working, sets, place / PARTIAL, keep)

    content = content_of(folder, FILE, make, command=command, unfinished=(PARTIAL, WORK))
    if folder is not None:
        _write_sets(context, folder / "kept", bibtex)
        of_pruning.plot(folder / "prune.png", content)
    return content


def _keep(context: Context, folder: Path, kept: Kept) -> None:
    """Write which images were kept."""
    file = folder / f"{kept.name}.json"
    facts = _facts(context, kept)
    if not file.is_file():
        files.make_folder(folder)
        files.write_json(file, facts)


def _write_sets(context: Context, folder: Path, bibtex: Bibtex | None) -> None:
    """Write the sets of the first repeat that are asked for and not there."""
    for file in sorted(folder.glob("*_repeat0.json")):
        facts = files.read_json(file, "index", "selection")
        _write_set(context, file.with_suffix(""), facts, bibtex)


def _write_set(
    context: Context, folder: Path, facts: Mapping[str, Any], bibtex: Bibtex | None
) -> None:
    """Write the images that `facts` name as a set, where that is asked for and not done."""
    if context.config.write_sets and not (folder / "meta.json").is_file():
        index = torch.tensor(facts["index"], dtype=torch.int64)
        folders.save(_set_of(context.data, index), folder, _meta(context, facts, bibtex))


def _facts(context: Context, kept: Kept) -> dict[str, Any]:
    """What the file of a selection says: its images, and all that decided which."""
    data, index = context.data, kept.index.tolist()
    return {
        "format": naming.FORMAT,
        "selection": kept.selection,
        "fraction": kept.size.fraction,
        "images_per_class": kept.size.images_per_class,
        "repeat": kept.repeat,
        # of the training images, which leave out those of the validation split
        "index": index,
        "classes": data.train.labels[kept.index.to(data.train.device)].tolist(),
        # of each image: its number in the dataset's own training split, or its file
        "names": [data.train_names[i] for i in index] if data.train_names else [],
        "class_names": list(data.class_names),
        "teacher": context.teachers[0],
        "config": to_dict(context.config),
        "recipe": to_dict(replace(context.recipe, data=context.recipe.data.without_places())),
        "seed": context.seed,
        "precision": context.precision,
        "images": data.train.digest,
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def _set_of(data: Data, index: Tensor) -> SyntheticSet:
    """The training images at `index` (S,) with their bytes as they are."""
    real = data.train
    index = index.to(real.device)
    return SyntheticSet(
        {"images": real.stored(index)},
        real.labels.index_select(0, index),
        data.class_names,
        Pixels(),
        real.preprocess,
        space="pixel",
    )


def _meta(context: Context, facts: Mapping[str, Any], bibtex: Bibtex | None) -> dict[str, Any]:
    """What meta.json of a set says."""
    recipe = replace(context.recipe, codec=Pixels(), ipc=facts["images_per_class"])
    selected = {
        "kind": facts["selection"],
        "index": facts["index"],
        "names": facts["names"],
        "pruning": facts["config"],
        "teacher": facts["teacher"],
    }
    more = {} if bibtex is None else {"bibtex": bibtex(recipe)}
    return runs.meta_of(
        recipe,
        context.data,
        None,
        context.device,
        seed=context.seed,
        precision=context.precision,
        selected=selected,
        **more,
    )
