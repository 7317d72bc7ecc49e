"""`import RECIPE --files PATH...`: others' experts, networks or sets as a store or a set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal

import tyro

from buffers.imports import Imported, bring_in
from ddengine.commands.on_recipe import of_recipe
from ddengine.commands.options import OfRecipe, RecipeT, Waits
from ddengine.commands.words import without_flags
from ddengine.recipe import Recipe
from ddengine.system import log, program
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImportOptions(OfRecipe, Waits, Generic[RecipeT]):
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
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


# flags that the next command does not have
ONLY_IMPORT = ("files", "class_order", "labels", "lr", "experiment", "space", "out")


def main(args: list[str]) -> None:
    """Bring files of other programs in: experts and networks as a store, images as a set's folder.

    What a file is, its content says.
    """
    options = of_recipe("import", args, ImportOptions)
    if options is None:
        return
    if not options.files:
        raise UserError(
            f"{program.name()} import needs the files to import; name them with --files."
        )
    run(options)


def run(options: ImportOptions[Recipe]) -> None:
    """Import the files that the options name, and say the command that uses them."""
    imported = bring_in(
        options.recipe,
        options.files,
        class_order=options.class_order,
        labels=options.labels,
        lr=options.lr,
        experiment=options.experiment,
        space=options.space,
        out=options.out,
    )
    if imported.kind in ("experts", "networks"):
        words = ["distill", *_distill_words(options, imported)]
        log.say(f"use them with {program.as_typed(*words)}")
    else:
        words = ["evaluate", *_evaluate_words(imported)]
        log.say(f"evaluate them with {program.as_typed(*words)}")


def _distill_words(options: ImportOptions[Recipe], imported: Imported) -> list[str]:
    """The flags of this command, and those that say what was imported."""
    given, recipe = options.recipe, imported.recipe
    assert given.buffer is not None and recipe.buffer is not None
    settled = {
        "experts": [str(imported.folder)],
        "buffer.num_experts": [str(recipe.buffer.num_experts)],
    }
    if recipe.data.classes is not None and recipe.data.classes != given.data.classes:
        settled["data.classes"] = list(map(str, recipe.data.classes))
    if recipe.buffer.keep != given.buffer.keep:
        settled["buffer.keep"] = [str(recipe.buffer.keep)]
    words = without_flags(options.command[1:], (*ONLY_IMPORT, *settled))
    for name, values in settled.items():
        words += [f"--{name}", *values]
    return words


def _evaluate_words(imported: Imported) -> list[str]:
    """The folder of an imported set, and the flags without which it cannot be evaluated."""
    words = [str(imported.folder)]
    if imported.recipe.data.root is not None:
        words += ["--data.root", imported.recipe.data.root]
    if imported.recipe.evaluation.labels == "dynamic":
        words += ["--labels", "own"]  # the teachers of an imported set are not known
    return words
