"""The folder of a run: whose it is, whether it is finished, how it is begun anew.

runs/<recipe>-<hash of the resolved recipe and seed>/
    recipe.json   metrics.jsonl   checkpoint/state.safetensors   progress/step_*.png
    distilled/    real_vs_distilled.png   evaluation.json
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddengine import contents, naming
from ddengine.data import Data
from ddengine.data.dataset import LAYOUTS, called
from ddengine.loop import CHECKPOINT
from ddengine.recipe import DataConfig, Recipe, deciding, resolved
from ddengine.system import files, program, runtime, typed
from ddengine.system.configs import differences, digest, listed, to_dict
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from ddengine.types import Facts, Json

MARK = "recipe.json"
ROOT = "data_root"  # in it: the absolute path of data.root, which may have been given otherwise
RUNS = Path("runs")  # where runs lie that nobody put elsewhere
EXPERTS = Path("experts")  # where stores of experts lie so
# of an identity, where the run started from given images or saw them through given preprocessing
SOMETIMES = ("start", "preprocess")
DIGESTS = {  # what a sentence says where parts of an identity differ that are digests
    "images": "the training images are others",
    "experts": "the experts are others",
    "start": "the initial images are others",
    "preprocess": "the images are preprocessed in another way",
    "classes": "the classes have other names",
}
OF_EVERYTHING = ("resolved", "identity")  # digests that say nothing of what differs


def identity(recipe: Recipe, images: str, **options: Any) -> Json:
    """What makes two runs the same run.

    The recipe, the digest of the training images, and the options that decide numbers.
    """
    return {"resolved": digest(resolved(recipe)), "images": images, **options}


def meta_of(
    recipe: Recipe,
    data: Data,
    experts: Facts | None,
    device: torch.device,
    *,
    seed: int,
    precision: Precision,
    **more: Any,
) -> Json:
    """What meta.json says of a set beside what the set says itself.

    `experts` is their summary, None without experts; `more` says how the set was made.
    """
    return {
        "recipe": to_dict(replace(recipe, data=recipe.data.without_places())),
        "seed": seed,
        "precision": precision,
        "images": data.train.digest,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "data_notes": list(data.notes),
        **_of_users(recipe.data),
        "experts": experts,
        **more,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def _of_users(config: DataConfig) -> Json:
    """What images are called that are a user's own, whose place is nobody else's business."""
    if config.name not in LAYOUTS:
        return {}
    return {"source": called(config.name, config.root)}


def check_folder(folder: Path) -> None:
    """Raise UserError for a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file and cannot be written; name a folder with --out.")


def check_own(folder: Path, mark: str, beside: str = "") -> None:
    """Raise UserError for a file, and for a folder that this program has not written.

    Such holds something but `beside`, and not `mark`.
    """
    check_folder(folder)
    if (
        folder.exists()
        and any(p.name != beside for p in files.contents(folder))
        and not (folder / mark).exists()
    ):
        raise UserError(
            f"--restart would delete {folder}, which this program did not write; name another "
            "folder with --out."
        )


def delete(folder: Path, mark: str, beside: str = "") -> None:
    """Empty a folder that this program wrote. Raises UserError for any other."""
    check_own(folder, mark, beside)
    if folder.exists():
        files.empty(folder)


def is_finished(
    folder: Path,
    recipe: Recipe,
    wanted: Json,
    *,
    beside: str = "",
    parts: Collection[str] | None = None,
) -> bool:
    """Whether the run of that recipe and identity is done.

    Raises UserError when the folder belongs to something else, with the settings that differ.

    `beside` may lie in the folder before the run begins. `parts` are those of the recipe that
    decide; None: all do.
    """
    if (folder / MARK).exists():
        try:
            kept = contents.read_json(folder / MARK, "recipe", *wanted)
        except UserError as error:
            raise UserError(
                f"{str(error).split(';')[0]}; name another folder with --out, or begin anew with "
                "--restart."
            ) from None
        if any(kept.get(k) != wanted.get(k) for k in {*wanted, *SOMETIMES}):
            differing = _told(kept, {"recipe": to_dict(recipe), **wanted}, parts)
            of = typed.shown(kept["recipe"].get("name")).strip('"')
            raise UserError(
                f"{folder} holds a run of {of} with other settings{differing}; name another folder "
                "with --out, or begin anew with --restart."
            )
    elif folder.exists() and (any(p.name != beside for p in files.contents(folder))):
        raise UserError(
            f"{folder} is not empty and not a run of this program; name another folder with --out."
        )
    return (folder / "distilled" / "meta.json").exists()


def _told(kept: Json, wanted: Json, parts: Collection[str] | None = None) -> str:
    """What differs, in brackets for a sentence; nothing where only digests of everything say it.

    Of both their recipes, and of these only some `parts`, and what else `wanted` has.
    """
    said = []
    of_recipe = differences(deciding(kept.get("recipe", {})), deciding(wanted.get("recipe", {})))
    for name, text in of_recipe.items():
        if parts is None or name.split(".")[0] in parts:
            said.append(text)
    others = {*wanted, *SOMETIMES} - {"recipe", *OF_EVERYTHING}
    for name, text in differences(kept, wanted).items():
        if name.split(".")[0] in others:
            said.append(DIGESTS.get(name, text))
    return f" ({listed(said)})" if said else ""


def begin(folder: Path, recipe: Recipe, wanted: Json, command: Sequence[str] = ()) -> None:
    """Make the folder and write what the run is, leaving an unfinished run's files alone.

    `command` are the words by which it was asked for.
    """
    files.make_folder(folder)
    for written in (folder, folder / CHECKPOINT.parent, folder / "progress"):
        files.clean(written)
    said = {"command": [*program.stored(), *command]} if command else {}
    recipe = replace(recipe, data=recipe.data.from_anywhere())
    content = {"format": naming.FORMAT, "recipe": to_dict(recipe), **wanted, **said}
    if recipe.data.root is not None and Path(recipe.data.root).exists():
        content[ROOT] = str(Path(recipe.data.root).absolute())
    files.write_json(folder / MARK, content)
    files.make_folder(folder / "progress")


def set_folder(path: Path) -> Path:
    """The distilled folder of a run.

    Of anything else, such as a distilled folder itself, the path as it is.
    """
    return path / "distilled" if (path / "distilled").is_dir() else path


def is_set(path: Path) -> bool:
    """Whether a path is that of a run with a set, or of a set."""
    return (path / "distilled").is_dir() or (path / "meta.json").is_file()


def data_of(folder: Path) -> Json:
    """The data part of a run's recipe, with the root that its artefact leaves out.

    The root is where the images lie now, seen from the current folder.
    """
    content = contents.read_json(folder / MARK, "recipe")
    recipe = content["recipe"]
    if "data" not in recipe:
        raise UserError(
            f"{folder / MARK} was not written by this version of the engine; distill it again."
        )
    data = recipe["data"]
    if data.get("root") is None:
        return data
    return data | {"root": str(_found_again(data["root"], content.get(ROOT), folder))}


def _found_again(root: str, absolute: str | None, folder: Path) -> Path | str:
    """Where the images of a run lie: where they lay when it began, or `root` as it was given.

    That is relative to the current folder or to one that the run lies in, as of runs whose
    recipe.json says no absolute path. What is nowhere there stays as it was given.
    """
    places = [Path(root), *(above / root for above in folder.absolute().parents)]
    if absolute is not None:
        places.insert(0, Path(absolute))
    for place in places:
        if place.exists():
            return place
    return root


def claim(folder: Path, mark: str, content: Json) -> None:
    """Make a folder that says in `mark` what it is of, or check that one says the same.

    Raises UserError when it belongs to something else.
    """
    check_folder(folder)
    content = {"format": naming.FORMAT, **content}
    if (folder / mark).is_file():
        kept = contents.read_json(folder / mark)
        if kept != content:
            raise UserError(
                f"{folder} was made with other settings{_told(kept, content)}; name another folder "
                "with --out, or begin anew with --restart."
            )
        return
    if folder.exists() and files.contents(folder):
        raise UserError(
            f"{folder} is not empty and not a folder of this command; name another folder with "
            "--out."
        )
    files.make_folder(folder)
    files.write_json(folder / mark, content)
