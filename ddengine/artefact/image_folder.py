"""The decoded examples of a set as image files, in a folder for each class."""

from collections.abc import Sequence
from pathlib import Path

from ddengine.artefact.eight_bit import class_folder, example_name, exported
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.errors import UserError


def write_classes(
    folder: Path, class_names: Sequence[str], pngs: Sequence[bytes], classes: Sequence[int]
) -> None:
    """Write folder/CLASS/000000.png of each image; the number is that of the example.

    `classes` are those of all examples, of which the images may be the first ones.
    """
    for content, i in zip(pngs, range(len(classes)), strict=False):
        of_class = folder / class_folder(class_names, classes[i])
        of_class.mkdir(parents=True, exist_ok=True)
        (of_class / f"{example_name(i, len(classes))}.png").write_bytes(content)


def write_image_folder(syn: SyntheticSet, folder: Path) -> Path:
    """Write the decoded examples as folder/CLASS/000000.png and return the folder.

    The folders sort like the classes. Soft labels have no place there.

    Raises UserError when the folder holds anything.
    """
    refuse_full(folder)
    files.make_folder(folder.parent)
    export = exported(syn)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        write_classes(temporary, syn.class_names, export.pngs, export.classes)
    return folder


def refuse_full(folder: Path) -> None:
    """Raise UserError for a folder that holds anything, or is none."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name another folder with --out.")
