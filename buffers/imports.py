"""`run.py import`: what files of other programs are, by their content, and the store or the
distilled folder that is made of them.

replay_buffer_*.pt, or their folder                     experts: a store
state dicts, plain or in checkpoints, or safetensors    networks, teachers or last snapshots: a store, with teachers one each
images_X.pt, results of DC, pairs as IDC writes them    a distilled folder (ddengine/artefact/exchange.py)
a folder of class folders of images, parquet            a distilled folder (ddengine/artefact/finished.py)
"""

import shlex
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import torch
import tyro
from PIL import Image

from buffers import state_dicts
from buffers.exchange import expand, files_digest, import_experts, load_pt
from buffers.store import ExpertStore, teacher_folder
from ddengine.artefact import class_order, exchange, finished, runs
from ddengine.artefact import folder as folders
from ddengine.data import Data, load_data, parquet
from ddengine.data.listing import files_below
from ddengine.data.splits import listed
from ddengine.data.subset import class_subset
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.prepare import buffer_models, check_networks
from ddengine.recipe import Recipe, digest, to_dict
from ddengine.sets.codec import MultiFormation
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, program, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

EXPERTS = Path("experts")
# times what guessing reaches: a network that others published as a teacher and that reaches less
# was trained on other images
CHANCE = 1.5
# share of images, or agreement of class means, below which it is said that labels cannot be judged
# by it
LITTLE = 0.3
Kind = Literal["experts", "networks", "images", "folder", "parquet"]
RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Generic[RecipeT]):
    """Flags of import.

    The recipe says which images, preprocessing and network the files are of and, for experts, how
    these were trained.

    What the files are, their content says: replay_buffer files; state dicts of networks (with
    --teachers as many files for each, in the order of --teachers); a .pt of images, of a pair of
    images and labels, or a result of DC; a folder of class folders of images; parquet.
    """

    # what to import: files, or a folder of replay_buffer files, of class folders of images, or of
    # parquet files
    files: tuple[Path, ...] = ()
    # names or numbers of all classes in the order in which the files count them; none: as the
    # dataset counts them
    class_order: tuple[str, ...] = ()
    # labels of the images; None: labels_X.pt beside images_X.pt, else the classes in order
    labels: Path | None = None
    lr: float | None = None  # learned learning rate; None: lr_X.pt beside images_X.pt, else none
    experiment: int | None = None  # of a result of DC, DSA or DM, from 0; None: the last
    # what the values of a .pt are: pixels in [0, 1], or what networks see; None: pixels in pairs as
    # IDC writes them, what networks see in others
    space: Literal["pixel", "model"] | None = None
    # folder to write; None: experts/imported-DIGEST or runs/imported-DIGEST
    out: Path | None = None
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


Options = ImportOptions[Recipe]


def bring_in(options: Options) -> None:
    """Import the files that the options name.

    Raises UserError for files that are nothing of the above, or do not fit the recipe.
    """
    kind, paths, content = find(options.files)
    if kind == "experts":
        del content  # of a gigabyte; the files are read one by one
        _refuse_flags(
            options,
            f"{paths[0]} holds experts",
            "belongs to a distilled set",
            ("labels", "lr", "experiment", "space"),
        )
        bring_in_experts(options, paths)
    elif kind == "networks":
        del content
        _refuse_flags(
            options,
            f"{paths[0]} holds a network",
            "belongs to a distilled set",
            ("labels", "lr", "experiment", "space"),
        )
        bring_in_networks(options, paths)
    else:
        if kind != "images":
            _refuse_flags(
                options,
                f"{paths[0]} holds image files",
                "is for sets in files of torch.save",
                ("labels", "experiment", "space"),
            )
        bring_in_set(options, kind, paths, content)


def _refuse_flags(options: Options, what: str, why: str, names: Sequence[str]) -> None:
    if given := [f"--{name}" for name in names if getattr(options, name) is not None]:
        raise UserError(f"{what}, and {given[0]} {why}; leave {given[0]} out.")


# What files are


def find(given: Sequence[Path]) -> tuple[Kind, list[Path], Any]:
    """(kind, files or folder, content of the first file where it was read) of what is to be
    imported.

    Raises UserError, saying what was found, for anything else.
    """
    for path in given:
        if path.is_dir():
            _refuse_own(path)
    if len(given) == 1 and given[0].is_dir() and (kind := _folder_kind(given[0])) != "experts":
        return kind, ([given[0]] if kind == "folder" else _parquet_files(given[0])), None
    paths = expand(given)
    first = paths[0]
    kind, content = _file_kind(first)
    if len(paths) > 1 and kind == "images":
        raise UserError(
            f"{first} holds no experts, and only files of experts are imported together; give one "
            "file with --files."
        )
    if kind == "parquet" and (other := [path for path in paths if _head(path) != b"PAR1"]):
        raise UserError(
            f"{first} is a parquet file and {other[0]} is none; import files of one kind with "
            "--files."
        )
    return kind, paths, content


def _parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder, without those of another split than training where there are
    several.
    """
    found = parquet.files(folder)
    used, notes = parquet.training_files(parquet.by_split(found, folder))
    for note in notes:
        log.say(note)
    if left := [path.name for path in found if path not in used]:
        log.say(f"not imported: {listed(left)}")
    return used


def _refuse_own(folder: Path) -> None:
    """Raise UserError for what this program wrote, which needs no import."""
    if (runs.set_folder(folder) / "meta.json").is_file() and (
        runs.set_folder(folder) / "data.safetensors"
    ).is_file():
        raise UserError(
            f"{folder} holds a distilled set of this program already and needs no import; "
            f"evaluate it with {program.as_typed('evaluate', str(folder))}."
        )
    if (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} is an expert store of this program already and needs no import; use it "
            f"with --experts {shlex.quote(str(folder))}."
        )


def _folder_kind(folder: Path) -> Kind:
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if any(name.startswith("replay_buffer_") for name in names):
        return "experts"
    if _has(folder, lambda path: path.suffix.lower() == ".parquet"):
        return "parquet"
    suffixes = set(Image.registered_extensions())
    if _has(folder, lambda path: path.suffix.lower() in suffixes and path.parent != folder):
        return "folder"
    if any(Path(name).suffix.lower() in suffixes for name in names):
        raise UserError(
            f"The folder {folder} holds images and no folders of them, so their classes are not "
            "known; put each class into a folder."
        )
    found = (
        f"it holds {', '.join(sorted(names)[:3])}{' and more' if len(names) > 3 else ''}"
        if names
        else "it is empty"
    )
    raise UserError(
        f"The folder {folder} holds no replay_buffer_*.pt, no class folders of images and no "
        f"parquet files ({found}); give the files with --files."
    )


def _has(folder: Path, wanted: Callable[[Path], bool]) -> bool:
    """Whether any file below a folder that can belong to a dataset is wanted."""
    return any(regular and wanted(Path(path)) for path, regular in files_below(folder))


def _head(path: Path, length: int = 4) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --files.") from None


def _file_kind(path: Path) -> tuple[Kind, Any]:
    """(kind, content) of a file. Raises UserError, saying what it is, for another kind of file."""
    head = _head(path, 16)
    if head.startswith(b"PAR1"):
        return "parquet", None
    wanted = "give replay_buffer files, state dicts, images_X.pt, a pair of images and labels, a result of DC, a folder of images, or parquet"
    if head.startswith(b"\x93NUMPY"):
        raise UserError(
            f"{path} holds a numpy array{_numpy_shape(path)}; save it as a tensor, "
            f"torch.save(torch.from_numpy(...)), or {wanted}."
        )
    if head.startswith(b"PK") and (arrays := _zipped_arrays(path)):
        raise UserError(
            f"{path} holds numpy arrays ({', '.join(arrays[:4])}); save one as a tensor, "
            f"torch.save(torch.from_numpy(...)), or {wanted}."
        )
    if not head.startswith((b"PK", b"\x80")) and (image := _image_format(path)):
        raise UserError(
            f"{path} is an image ({image}); give the folder that holds a folder of images for "
            "each class."
        )
    content = state_dicts.load_any(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list | tuple):
        return "images", content
    if not state_dicts.is_safetensors(path) and (pair := exchange.named_pair(content)) is not None:
        content = pair
    if state_dicts.is_safetensors(path) and {"images", "classes"} <= set(content):
        raise UserError(
            f"{path} belongs to a distilled set of this program, which needs no import; evaluate "
            "its folder with run.py evaluate."
        )
    if state_dicts.find(content) is not None:
        return "networks", content
    if exchange.is_pair(content) or isinstance(content, torch.Tensor):
        return "images", content
    if (
        isinstance(content, list | tuple)
        and content
        and all(isinstance(part, list | tuple) for part in content)
    ):
        return "experts", content
    raise UserError(
        f"{path} holds {exchange.described(content)}, which is no kind of experts, networks or "
        f"images; {wanted}."
    )


def _numpy_shape(path: Path) -> str:
    """' of shape (...)', as far as the head of the file says it."""
    try:
        with path.open("rb") as file:
            major, _ = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if major == 1
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
        return f" of shape {shape} ({dtype})"
    except (OSError, ValueError):
        return ""


def _zipped_arrays(path: Path) -> list[str]:
    """Names of the arrays in a file of numpy.savez."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [
                name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")
            ]
    except (OSError, zipfile.BadZipFile):
        return []


def _image_format(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return image.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


# Experts and networks


def bring_in_experts(options: Options, paths: list[Path]) -> None:
    """Files of trajectories, as a store."""
    recipe = options.recipe
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
    data, recipe = counted(options)
    model, imported = buffer_models(recipe)[0], files_digest(paths)
    network = build_model(model, data.image_shape, data.num_classes, generator(0))
    folder = options.out or EXPERTS / _store_name(imported, options)
    runs.check_folder(folder)
    count = import_experts(
        paths, imported, folder, data, recipe.data, recipe.buffer, model, network
    )
    log.say(
        f"{count} experts of {recipe.buffer.epochs} epochs in {folder}, taken as {model} on "
        f"{seen(recipe)}"
    )
    log.say(f"classes as the files count them: {class_order.with_numbers(data.class_names)}")
    store, flat = ExpertStore(folder), FlatModel(network)
    last = [
        store.snapshots(i, store.epochs[-1:])[0] for i in range(min(count, class_order.NETWORKS))
    ]
    fit, num = class_order.fit_of_networks(
        [partial(flat, theta) for theta in last], data.train, data.class_names
    )
    say_fit(
        fit,
        f"the last snapshots of {len(last)} experts get right, of {num} training images,",
        data,
        recipe,
    )
    say_next(options, recipe, "use them with", "distill", experts=folder, num_experts=count)


def _store_name(imported: str, options: Options) -> str:
    """imported-DIGEST, of the files and the order in which they count the classes."""
    return (
        f"imported-{digest([imported, *options.class_order]) if options.class_order else imported}"
    )


def bring_in_networks(options: Options, paths: list[Path]) -> None:
    """State dicts, as the store of each network that the recipe names."""
    recipe = options.recipe
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
    recipe = replace(recipe, buffer=replace(recipe.buffer, keep="last", num_experts=each))
    data, recipe = counted(replace(options, recipe=recipe))
    check_networks(recipe, data)
    folder = options.out or EXPERTS / _store_name(files_digest(paths), options)
    runs.check_folder(folder)
    stores = [
        (
            model,
            teacher_folder(folder, model) if recipe.teachers else folder,
            paths[i * each : (i + 1) * each],
        )
        for i, model in enumerate(models)
    ]
    builders = [partial(build_model, model, data.image_shape, data.num_classes) for model in models]
    # all are read before anything is written, so that nothing is when one does not fit
    read = [
        [state_dicts.read(path, model, builder) for path in mine]
        for (model, _, mine), builder in zip(stores, builders, strict=True)
    ]
    log.say(f"classes as the files count them: {class_order.with_numbers(data.class_names)}")
    for (model, place, _), teachers in zip(stores, read, strict=True):
        state_dicts.import_networks(teachers, place, data, recipe.data, recipe.buffer, model)
        for teacher in teachers:
            fit, num = class_order.fit_of_networks([teacher.network], data.train, data.class_names)
            say_fit(
                fit,
                (
                    f"{teacher.path.name}, taken as {model} on {seen(recipe)}, gets right, of "
                    f"{num} training images,"
                ),
                data,
                recipe,
            )
            if fit.order is None and fit.as_numbered < CHANCE / data.num_classes:
                log.say(
                    f"warning: that is hardly more than guessing; {teacher.path.name} may have "
                    "been trained on other images or preprocessing"
                )
    scores = [
        a
        for _, place, _ in stores
        for i in range(each)
        for a in ExpertStore(place).metrics(i)["validation_accuracy"]
        if a is not None
    ]
    shown = (
        f", validation accuracy {', '.join(f'{100 * score:.1f}' for score in scores)} %"
        if scores
        else ""
    )
    log.say(f"{len(paths)} network{'s' if len(paths) > 1 else ''} in {folder}{shown}")
    say_next(options, recipe, "use them with", "distill", experts=folder, num_experts=each)


# Sets


def bring_in_set(options: Options, kind: Kind, paths: list[Path], content: Any) -> None:
    """Images with what lies beside them, as a distilled folder."""
    data, recipe = counted(options)
    if kind == "folder":
        syn, used = (
            finished.read_folder(paths[0], data, recipe.data, recipe.codec, options.lr),
            paths,
        )
    elif kind == "parquet":
        syn, used = finished.read_parquet(paths, data, recipe.data, recipe.codec, options.lr), paths
    else:
        syn, used = exchange.read_set(
            paths[0], content, load_pt, data, labels=options.labels, lr=options.lr, experiment=options.experiment, space=options.space,
            codec=recipe.codec,
        )  # fmt: skip
    said = {
        "lr": options.lr,
        "experiment": options.experiment,
        "space": options.space,
        "class_order": list(options.class_order) or None,
    }
    imported = exchange.provenance(used, **said)
    root = recipe.data.root
    recipe = replace(
        recipe,
        ipc=max(1, round(syn.images_per_class())),
        codec=syn.codec,
        data=replace(recipe.data, root=None),
    )
    folder = options.out or Path("runs") / f"imported-{digest(imported)}"
    runs.check_folder(folder)
    own = {"recipe": to_dict(recipe), "imported": imported}
    if folder.exists() and any(folder.iterdir()):
        there = files.read_json(folder / "meta.json") if (folder / "meta.json").is_file() else {}
        if not isinstance(there, dict) or any(
            there.get(key) != value for key, value in own.items()
        ):
            raise UserError(
                f"{folder} is not empty and not these files imported with this recipe; name "
                "another folder with --out."
            )
        log.say(f"{folder} holds these files already")
        say_next(options, recipe, "evaluate them with", "evaluate", folder=folder, root=root)
        return
    files.make_folder(folder.parent)
    device = torch.device("cpu")
    facts = {
        "images": data.train.digest,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
    }
    folders.save(
        syn,
        folder,
        own | {"seed": None, "precision": None} | facts | {"commit": runtime.commit()},
        data.split_names,
    )
    if syn.lr is None:
        log.say(
            "no learned rate: evaluate chooses one of evaluation.lr_grid, or takes "
            f"{recipe.evaluation.lr:g} where there is no validation split"
        )
    labels = "classes" if syn.target_kind == "class" else "soft labels"
    log.say(
        f"{len(syn.classes)} images with {labels} in {folder}, taken as {_taken_as(syn, recipe)}"
    )
    log.say(f"{recipe.data.name}: {data.said()}")
    log.say(
        f"classes as {'the files count them' if kind == 'images' else 'they are numbered'}: "
        f"{class_order.with_numbers(data.class_names)}"
    )
    fit, compared = class_order.fit_of_set(syn, data.train)
    say_fit(fit, compared, data, recipe)
    images = syn.tensors["images"]
    if syn.space == "model" and 0 <= images.min() < images.max() <= 1:
        log.say(
            "warning: all values lie within 0 and 1, as pixels do, and sets are imported as "
            "networks see them; --space pixel takes them as pixels"
        )
    say_next(options, recipe, "evaluate them with", "evaluate", folder=folder, root=root)


def _taken_as(syn: SyntheticSet, recipe: Recipe) -> str:
    if syn.space == "model":
        return seen(recipe)
    codec = syn.codec
    tiles = (
        f", each of {codec.factor} x {codec.factor} small images (codec.factor)"
        if isinstance(codec, MultiFormation)
        else ""
    )
    return f"pixels of {recipe.data.name}{tiles}"


def seen(recipe: Recipe) -> str:
    """How the networks of a recipe see its images, in words."""
    return f"{recipe.data.name}, {'ZCA-whitened' if recipe.data.zca else 'normalised by mean and standard deviation'}"


# The order of the classes, and the next command


def counted(options: Options) -> tuple[Data, Recipe]:
    """The recipe's data with the classes in the order in which the files count them, and the recipe
    that says so.
    """
    recipe = options.recipe
    data = load_data(recipe.data, torch.device("cpu"))
    if not options.class_order:
        return data, recipe
    numbers = _numbers(recipe, data)
    order = class_order.resolve(options.class_order, data.class_names, numbers)
    if order == tuple(range(data.num_classes)):
        return data, recipe
    return class_subset(data, order), replace(
        recipe, data=replace(recipe.data, classes=tuple(numbers[k] for k in order))
    )


def _numbers(recipe: Recipe, data: Data) -> Sequence[int]:
    """What the dataset counts the classes of the data as."""
    return recipe.data.classes or range(data.num_classes)


def say_fit(fit: class_order.Fit, what: str, data: Data, recipe: Recipe) -> None:
    """Say how well the labels fit and, where another order fits far better, in which one."""
    if fit.order is None or fit.reordered is None:
        few = (
            f"{data.num_classes} classes are too few"
            if data.num_classes < class_order.FEWEST_MEANS
            else "too little"
        )
        little = f", {few} to judge their order by" if fit.as_numbered < LITTLE else ""
        if fit.as_numbered < -LITTLE:
            little = ", less than by chance: they may be counted in another order, and there are too few images to say in which (--class_order)"
        log.say(f"labels checked: {what} {100 * fit.as_numbered:.1f} %{little}")
        return
    words = shlex.join(class_order.in_order(data.class_names, _numbers(recipe, data), fit.order))
    log.say(
        f"warning: the files seem to count the classes in another order: {what} "
        f"{100 * fit.as_numbered:.1f} % as numbered above, and "
        f"{100 * fit.reordered:.1f} % in another one; look up in which order their program counts "
        "and import them again, into another folder, "
        f"with that or with --class_order {words}"
    )


ONLY_IMPORT = ("files", "class_order", "labels", "lr", "experiment", "space", "out")


def say_next(
    options: Options,
    recipe: Recipe,
    what: str,
    command: str,
    *,
    experts: Path | None = None,
    num_experts: int | None = None,
    folder: Path | None = None,
    root: str | None = None,
) -> None:
    """Say the command that uses what was imported, as it can be typed: distillation with the flags
    of this one, or evaluation.
    """
    if folder is not None:
        words = [str(folder), *([] if root is None else ["--data.root", root])]
        if recipe.evaluation.labels == "dynamic":
            words += ["--labels", "own"]  # the teachers of an imported set are not known
    else:
        settled = {"experts": [str(experts)], "buffer.num_experts": [str(num_experts)]}
        if recipe.data.classes != options.recipe.data.classes and recipe.data.classes is not None:
            settled["data.classes"] = list(map(str, recipe.data.classes))
        if recipe.buffer.keep != options.recipe.buffer.keep:
            settled["buffer.keep"] = [str(recipe.buffer.keep)]
        words = kept(options.command[1:], (*ONLY_IMPORT, *settled))
        for name, values in settled.items():
            words += [f"--{name}", *values]
    log.say(f"{what} {program.as_typed(command, *words)}")


def kept(words: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """The words of a command line without some flags and their values."""
    found, keep = [], True
    for word in words:
        if word.startswith("--"):
            keep = word[2:].partition("=")[0].replace("-", "_") not in dropped
        if keep:
            found.append(word)
    return found
