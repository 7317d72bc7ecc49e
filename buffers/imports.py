"""Files of other programs brought in: experts and networks as a store, images as a set's folder.

What a file is, `buffers.kinds` says. How it is read: replay buffers in buffers/exchange.py, state
dicts in buffers/state_dicts.py, sets in ddengine/artefact/exchange.py and finished.py.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from buffers import kinds, state_dicts
from buffers.exchange import files_digest, import_experts, load_pt
from buffers.kinds import Kind
from buffers.state_dicts import Teacher
from buffers.store import ExpertStore, teacher_folder
from ddengine import contents
from ddengine.api.checks import check_recipe
from ddengine.api.inputs import Images, Source, dataset_of, pointed_at
from ddengine.artefact import class_order, exchange, finished, runs
from ddengine.artefact import folder as folders
from ddengine.artefact.runs import EXPERTS, RUNS
from ddengine.data import Data
from ddengine.data.subset import class_subset
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.prepare import buffer_models, check_networks
from ddengine.recipe import Recipe
from ddengine.sets.codec import MultiFormation
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import claims, files, log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

# times what guessing reaches: a network that others published as a teacher and that reaches less
# was trained on other images
CHANCE = 1.5
# share of images, or agreement of class means, below which it is said that labels cannot be judged
# by it
LITTLE = 0.3
Space = Literal["pixel", "model"]
_OF_SETS = ("belongs to a distilled set", ("labels", "lr", "experiment", "space"))
_OF_TENSORS = ("is for sets in files of torch.save", ("labels", "experiment", "space"))
# of kinds of files: what they hold, and why which options have no meaning for them
WITHOUT = {
    "experts": ("experts", *_OF_SETS),
    "networks": ("a network", *_OF_SETS),
    "folder": ("image files", *_OF_TENSORS),
    "parquet": ("image files", *_OF_TENSORS),
}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import made."""

    kind: Kind  # of the files
    folder: Path  # a store, the folder of several stores, or the folder of a set
    # what was imported fits it: classes in the order of the files, the number of experts
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class _Given:
    """The arguments of `bring_in`, the recipe with the settings of the images."""

    recipe: Recipe
    source: Source
    class_order: tuple[str, ...]
    labels: Path | None
    lr: float | None
    experiment: int | None
    space: Space | None
    out: Path | None


def bring_in(
    recipe: Recipe,
    paths: Path | str | Sequence[Path | str],
    *,
    data: Images = None,
    class_order: Sequence[str] = (),
    labels: Path | str | None = None,
    lr: float | None = None,
    experiment: int | None = None,
    space: Space | None = None,
    out: Path | str | None = None,
) -> Imported:
    """Import files of another program; what they are, their content says.

        buffers.bring_in(recipe, ["replay_buffer_0.pt", "replay_buffer_1.pt"])

    Args:
        recipe: which images, preprocessing and network the files are of and, for experts, how these
            were trained.
        paths: replay_buffer files; state dicts of networks (with teachers as many files for each,
            in the order of `recipe.teachers`); a file of images, of a pair of images and labels, or
            a result of DC; a folder of class folders of images; parquet files; or a folder of such.
            One path, or several.
        data: the images that the files are of, as `ddengine.distill` takes them; None: those that
            the recipe names.
        class_order: names or numbers of all classes in the order in which the files count them;
            none: as the dataset counts them.
        labels: labels of the images; None: labels_X.pt beside images_X.pt, else the classes in
            order.
        lr: learned learning rate; None: lr_X.pt beside images_X.pt, else none.
        experiment: of a result of DC, DSA or DM, from 0; None: the last.
        space: what the values of a .pt are, "pixel" in [0, 1] or what networks see, "model"; None:
            pixels in pairs as IDC writes them, what networks see in others.
        out: folder to write; None: experts/imported-DIGEST or runs/imported-DIGEST.

    Raises:
        UserError: files that are nothing of the above, or do not fit the recipe.
    """
    check_recipe(recipe)
    recipe, source = pointed_at(recipe, dataset_of(data))
    given = _Given(
        recipe=recipe,
        source=source,
        class_order=tuple(class_order),
        labels=None if labels is None else Path(labels),
        lr=lr,
        experiment=experiment,
        space=space,
        out=None if out is None else Path(out),
    )
    several = [paths] if isinstance(paths, Path | str) else paths
    kind, files_of, content = kinds.find(list(map(Path, several)))
    _refuse_options(given, kind, files_of[0])
    if kind == "experts":
        del content  # of a gigabyte; the files are read one by one
        return _bring_in_experts(given, files_of)
    if kind == "networks":
        del content
        return _bring_in_networks(given, files_of)
    return _bring_in_set(given, kind, files_of, content)


def _refuse_options(given: _Given, kind: Kind, path: Path) -> None:
    """Raise UserError for the first option that has no meaning for such files."""
    if kind == "images":
        return
    what, why, names = WITHOUT[kind]
    for name in names:
        if getattr(given, name) is not None:
            raise UserError(f"{path} holds {what}, and --{name} {why}; leave --{name} out.")


# Experts and networks


def _bring_in_experts(given: _Given, paths: list[Path]) -> Imported:
    """Files of trajectories, as a store."""
    recipe = given.recipe
    if recipe.teachers:
        raise UserError(
            f"{paths[0]} holds experts, and the recipe {recipe.name} has teachers, which need "
            "BatchNorm statistics; "
            "run the buffer command, or import the state dicts of networks."
        )
    if recipe.buffer is None:
        raise UserError(
            f"{paths[0]} holds experts and the recipe {recipe.name} needs none; name a recipe "
            "that says how they were trained."
        )
    data, recipe = _counted(given)
    assert recipe.buffer is not None
    model = buffer_models(recipe)[0]
    imported = files_digest(paths)
    network = build_model(model, data.image_shape, data.num_classes, generator(0))
    folder = given.out or EXPERTS / _store_name(imported, given)
    runs.check_folder(folder)
    with claims.claimed(folder, "import"):
        count = import_experts(
            paths, imported, folder, data, recipe.data, recipe.buffer, model, network
        )
    log.say(
        f"{count} experts of {recipe.buffer.epochs} epochs in {folder}, taken as {model} on "
        f"{seen(recipe)}"
    )
    log.say(f"classes as the files count them: {class_order.with_numbers(data.class_names)}")
    store = ExpertStore(folder)
    flat = FlatModel(network)
    num_asked = min(count, class_order.NETWORKS)
    last = [store.snapshots(i, store.epochs[-1:])[0] for i in range(num_asked)]
    networks = [partial(flat, theta) for theta in last]
    fit, num = class_order.fit_of_networks(networks, data.train, data.class_names)
    asked = f"the last snapshots of {len(last)} experts get right, of {num} training images,"
    say_fit(fit, asked, data, recipe)
    recipe = replace(recipe, buffer=replace(recipe.buffer, num_experts=count))
    return Imported(kind="experts", folder=folder, recipe=recipe)


def _store_name(imported: str, given: _Given) -> str:
    """imported-DIGEST, of the files and the order in which they count the classes."""
    if given.class_order:
        imported = digest([imported, *given.class_order])
    return f"imported-{imported}"


@dataclass(frozen=True)
class _Place:
    """A network of the recipe, with the files that hold it and the store that it goes to."""

    model: str
    folder: Path
    teachers: list[Teacher]


def _bring_in_networks(given: _Given, paths: list[Path]) -> Imported:
    """State dicts, as the store of each network that the recipe names."""
    recipe = _of_networks(given.recipe, paths)
    data, recipe = _counted(replace(given, recipe=recipe))
    check_networks(recipe, data)
    assert recipe.buffer is not None
    folder = given.out or EXPERTS / _store_name(files_digest(paths), given)
    runs.check_folder(folder)
    # all are read before anything is written, so that nothing is when one does not fit
    places = _read_networks(recipe, data, folder, paths)
    log.say(f"classes as the files count them: {class_order.with_numbers(data.class_names)}")
    for place in places:
        with claims.claimed(place.folder, "import"):
            state_dicts.import_networks(
                place.teachers, place.folder, data, recipe.data, recipe.buffer, place.model
            )
        for teacher in place.teachers:
            _say_fit_of_teacher(teacher, place.model, data, recipe)
    accuracies = []
    for place in places:
        accuracies += _accuracies(ExpertStore(place.folder))
    shown = ""
    if accuracies:
        percents = ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
        shown = f", validation accuracy {percents} %"
    log.say(f"{len(paths)} network{'s' if len(paths) > 1 else ''} in {folder}{shown}")
    return Imported(kind="networks", folder=folder, recipe=recipe)


def _of_networks(recipe: Recipe, paths: Sequence[Path]) -> Recipe:
    """The recipe for stores of these networks, one snapshot each.

    Raises UserError for a recipe that asks for no networks, for trajectories, or for another number
    of them.
    """
    if recipe.buffer is None:
        raise UserError(
            f"{paths[0]} holds a network and the recipe {recipe.name} needs none; name a recipe "
            "with teachers or experts."
        )
    if recipe.objective.follows_experts:
        raise UserError(
            f"{paths[0]} holds one network after its training, and the recipe {recipe.name} "
            "follows experts through theirs; "
            "give replay_buffer files, or name a recipe with teachers."
        )
    models = buffer_models(recipe)
    each, rest = divmod(len(paths), len(models))
    if rest or not each:
        raise UserError(
            f"--files names {len(paths)} networks for the {len(models)} of --teachers "
            f"({', '.join(models)}); "
            "give as many files for each, those of the first network first, or name one network "
            "with --teachers."
        )
    return replace(recipe, buffer=replace(recipe.buffer, keep="last", num_experts=each))


def _read_networks(recipe: Recipe, data: Data, folder: Path, paths: Sequence[Path]) -> list[_Place]:
    """The networks in the files, as many for each of the recipe's, those of the first one first."""
    models = buffer_models(recipe)
    each = len(paths) // len(models)
    places = []
    first = 0
    for model in models:
        builder = partial(build_model, model, data.image_shape, data.num_classes)
        teachers = []
        for path in paths[first : first + each]:
            teachers.append(state_dicts.read(path, model, builder))
        first += each
        place = folder
        if recipe.teachers:
            place = teacher_folder(folder, model)
        places.append(_Place(model, place, teachers))
    return places


def _accuracies(store: ExpertStore) -> list[float]:
    """Validation accuracies of the experts of a store, where they were measured."""
    accuracies = []
    for expert in range(store.num_experts):
        for accuracy in store.metrics(expert)["validation_accuracy"]:
            if accuracy is not None:
                accuracies.append(accuracy)
    return accuracies


def _say_fit_of_teacher(teacher: Teacher, model: str, data: Data, recipe: Recipe) -> None:
    """Say how well the labels fit what a network predicts, and warn where it hardly knows them."""
    fit, num = class_order.fit_of_networks([teacher.network], data.train, data.class_names)
    name = teacher.path.name
    asked = f"{name}, taken as {model} on {seen(recipe)}, gets right, of {num} training images,"
    say_fit(fit, asked, data, recipe)
    if fit.order is None and fit.as_numbered < CHANCE / data.num_classes:
        log.say(
            f"warning: that is hardly more than guessing; {name} may have been trained on other "
            "images or preprocessing"
        )


# Sets


def _bring_in_set(given: _Given, kind: Kind, paths: list[Path], content: Any) -> Imported:
    """Images with what lies beside them, as a distilled folder."""
    data, recipe = _counted(given)
    syn, used = _read_set(given, kind, paths, content, data)
    imported = exchange.provenance(
        used,
        lr=given.lr,
        experiment=given.experiment,
        space=given.space,
        class_order=list(given.class_order) or None,
    )
    recipe = replace(recipe, ipc=max(1, round(syn.images_per_class())), codec=syn.codec)
    public = replace(recipe, data=recipe.data.without_places())
    identity = {"recipe": to_dict(public), "imported": imported}
    folder = given.out or RUNS / f"imported-{digest(imported)}"
    runs.check_folder(folder)
    made = Imported(kind=kind, folder=folder, recipe=recipe)
    with claims.claimed(folder, "import"):
        if _is_there(folder, identity):
            log.say(f"{folder} holds these files already")
            return made
        _save(syn, folder, identity, data)
    _say_set(syn, made, data)
    return made


def _read_set(
    given: _Given, kind: Kind, paths: list[Path], content: Any, data: Data
) -> tuple[SyntheticSet, list[Path]]:
    """(the set, the files that it came from)."""
    recipe = given.recipe
    if kind == "folder":
        return finished.read_folder(paths[0], data, recipe.data, recipe.codec, given.lr), paths
    if kind == "parquet":
        return finished.read_parquet(paths, data, recipe.data, recipe.codec, given.lr), paths
    return exchange.read_set(
        paths[0],
        content,
        load_pt,
        data,
        labels=given.labels,
        lr=given.lr,
        experiment=given.experiment,
        space=given.space,
        codec=recipe.codec,
    )


def _is_there(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder holds just this import. Raises UserError where it holds anything else."""
    if not folder.exists() or not files.contents(folder):
        return False
    stored: Any = {}
    if (folder / "meta.json").is_file():
        stored = contents.read_json(folder / "meta.json")
    if isinstance(stored, dict) and _holds(stored, identity):
        return True
    raise UserError(
        f"{folder} is not empty and not these files imported with this recipe; name "
        "another folder with --out."
    )


def _holds(stored: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether what is stored has all entries of an identity."""
    for key, value in identity.items():
        if stored.get(key) != value:
            return False
    return True


def _save(syn: SyntheticSet, folder: Path, identity: dict[str, Any], data: Data) -> None:
    """Write the folder of an imported set."""
    facts = {
        "seed": None,
        "precision": None,
        "images": data.train.digest,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "machine": runtime.machine(torch.device("cpu")),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    folders.save(syn, folder, identity | facts, data.split_names)


def _say_set(syn: SyntheticSet, made: Imported, data: Data) -> None:
    """Say what was imported, as what it was taken, and how well its labels fit the data."""
    recipe = made.recipe
    if syn.lr is None:
        log.say(
            "no learned rate: evaluate chooses one of evaluation.lr_grid, or takes "
            f"{recipe.evaluation.lr:g} where there is no validation split"
        )
    log.say(
        f"{len(syn.classes)} images with {syn.targets.words} in {made.folder}, taken as "
        f"{_taken_as(syn, recipe)}"
    )
    log.say(f"{recipe.data.name}: {data.said()}")
    counted = "the files count them" if made.kind == "images" else "they are numbered"
    log.say(f"classes as {counted}: {class_order.with_numbers(data.class_names)}")
    fit, compared = class_order.fit_of_set(syn, data.train)
    say_fit(fit, compared, data, recipe)
    images = syn.tensors["images"]
    if syn.space == "model" and 0 <= images.min() < images.max() <= 1:
        log.say(
            "warning: all values lie within 0 and 1, as pixels do, and sets are imported as "
            "networks see them; --space pixel takes them as pixels"
        )


def _taken_as(syn: SyntheticSet, recipe: Recipe) -> str:
    """What the values of a set were taken as, in words."""
    if syn.space == "model":
        return seen(recipe)
    pixels = f"pixels of {recipe.data.name}"
    codec = syn.codec
    if isinstance(codec, MultiFormation):
        return f"{pixels}, each of {codec.factor} x {codec.factor} small images (codec.factor)"
    return pixels


def seen(recipe: Recipe) -> str:
    """How the networks of a recipe see its images, in words."""
    form = "ZCA-whitened" if recipe.data.zca else "normalised by mean and standard deviation"
    return f"{recipe.data.name}, {form}"


# The order of the classes


def _counted(given: _Given) -> tuple[Data, Recipe]:
    """(the recipe's data with the classes as the files count them, the recipe that says so)."""
    recipe = given.recipe
    data = given.source.load(torch.device("cpu"))
    if not given.class_order:
        return data, recipe
    numbers = _numbers(recipe, data)
    order = class_order.resolve(given.class_order, data.class_names, numbers)
    if order == tuple(range(data.num_classes)):
        return data, recipe
    if given.source.is_own:
        raise UserError(
            "class_order counts the classes of a dataset with a name in another order; give your "
            "own images with labels as the files count them."
        )
    classes = tuple(numbers[k] for k in order)
    recipe = replace(recipe, data=replace(recipe.data, classes=classes))
    return class_subset(data, order), recipe


def _numbers(recipe: Recipe, data: Data) -> Sequence[int]:
    """What the dataset counts the classes of the data as."""
    return recipe.data.classes or range(data.num_classes)


def say_fit(fit: class_order.Fit, what: str, data: Data, recipe: Recipe) -> None:
    """Say how well the labels fit and, where another order fits far better, in which one."""
    if fit.order is None or fit.reordered is None:
        doubt = _doubt(fit.as_numbered, data.num_classes)
        log.say(f"labels checked: {what} {100 * fit.as_numbered:.1f} %{doubt}")
        return
    words = shlex.join(class_order.in_order(data.class_names, _numbers(recipe, data), fit.order))
    log.say(
        f"warning: the files seem to count the classes in another order: {what} "
        f"{100 * fit.as_numbered:.1f} % as numbered above, and "
        f"{100 * fit.reordered:.1f} % in another one; look up in which order their program counts "
        "and import them again, into another folder, "
        f"with that or with --class_order {words}"
    )


def _doubt(fit: float, num_classes: int) -> str:
    """What is to be said of a fit that is no proof of the order."""
    if fit < -LITTLE:
        return (
            ", less than by chance: they may be counted in another order, and there are too few "
            "images to say in which (--class_order)"
        )
    if fit >= LITTLE:
        return ""
    few = "too little"
    if num_classes < class_order.FEWEST_MEANS:
        few = f"{num_classes} classes are too few"
    return f", {few} to judge their order by"
