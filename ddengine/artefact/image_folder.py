"""The decoded examples of a set as image files, in a folder for each class."""

from collections.abc import Sequence
from pathlib import Path

from ddengine.artefact.eight_bit import class_folder, example_name, exported
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log
from ddengine.system.errors import UserError

NOT_IN_FOLDERS = '/\\:*?"<>|'  # what some system forbids in the name of a folder
LONGEST_FOLDER = 255  # bytes


def write_classes(
    folder: Path,
    class_names: Sequence[str],
    pngs: Sequence[bytes],
    classes: Sequence[int],
    folders: Sequence[str] | None = None,
) -> None:
    """Write folder/CLASS/000000.png of each image; the number is that of the example.

    `classes` are those of all examples, of which the images may be the first ones; `folders` says
    what the folder of each class is called, None: by its number and name.
    """
    if folders is None:
        folders = [class_folder(class_names, label) for label in range(len(class_names))]
    for content, i in zip(pngs, range(len(classes)), strict=False):
        of_class = folder / folders[classes[i]]
        of_class.mkdir(parents=True, exist_ok=True)
        (of_class / f"{example_name(i, len(classes))}.png").write_bytes(content)


def write_image_folder(syn: SyntheticSet, folder: Path, *, by_name: bool = False) -> Path:
    """Write the decoded examples as folder/CLASS/000000.png and return the folder.

    The folders are called by number and name, so that they sort like the classes, or `by_name`
    alone. Soft labels and features have no place there, which is said.

    Raises UserError when the folder holds anything, and for names that no folders can have.
    """
    files.refuse_full(folder)
    files.make_folder(folder.parent)
    folders = plain_folders(syn.class_names) if by_name else None
    if syn.targets.column is not None:
        log.say(
            f"the {syn.targets.words} of the set have no place in folders of images and are left "
            "out; set --format hub or webdataset for them"
        )
    export = exported(syn)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        write_classes(temporary, syn.class_names, export.pngs, export.classes, folders)
    return folder


def plain_folders(class_names: Sequence[str]) -> Sequence[str]:
    """The names of the classes, each of which a folder can have on any system.

    Says it where readers that number folders alphabetically would number the classes otherwise.
    Raises UserError for names that cannot be those of folders, or not beside each other.
    """
    taken: dict[str, str] = {}
    for name in class_names:
        unsafe = set(name) & set(NOT_IN_FOLDERS) or not name.isprintable()
        if unsafe or not name or name != name.strip(" .") or len(name.encode()) > LONGEST_FOLDER:
            raise UserError(
                f"No folder can be called {name!r} on every system; set --format imagefolder, "
                "which numbers the folders."
            )
        other = taken.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"The classes {other!r} and {name!r} would be one folder on some systems; set "
                "--format imagefolder, which numbers the folders."
            )
    if sorted(class_names) != list(class_names):
        log.say(
            "the classes of the set are not in alphabetical order, in which most programs number "
            "folders; go by their names"
        )
    return class_names
