"""An image folder:

CLASS/*.png|jpg|..., or train/CLASS/* with test/CLASS/*, in the spellings that people have of these
words.
"""

import os
from pathlib import Path

import numpy as np

from ddengine.data.images import Decoder
from ddengine.data.listing import LeftOut, files_below, has_images, images_below, subfolders
from ddengine.data.source import Part, Source
from ddengine.data.splits import (
    STAND_INS,
    TEST,
    TRAIN,
    composed,
    listed,
    rest_of,
    sorted_classes,
    split_word,
    split_word_in,
)
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError


def _names(folders: list[Path]) -> list[str]:
    return [composed(folder.name) for folder in folders]


def _classes(folder: Path) -> set[str]:
    """Names of the folders in a folder."""
    return set(_names(subfolders(folder)))


def _unwrapped(folder: Path) -> Path:
    """A folder, or the one of the same name that is all it holds, as archives are unpacked
    (seg_train/seg_train).
    """
    inner = subfolders(folder)
    return inner[0] if len(inner) == 1 and inner[0].name == folder.name else folder


def _split_folders(root: Path) -> dict[Path, str]:
    """The folders of splits, and the word each is named after.

    A name with more words, such as seg_train, counts where another one differs from it by the word
    alone, and beside others where it holds the same classes: classes have such names too
    (train_station).
    """
    folders = subfolders(root)
    exact = {_unwrapped(folder): word for folder in folders if (word := split_word(folder.name))}
    loose = {
        _unwrapped(folder): word
        for folder in folders
        if (word := split_word_in(folder.name)) and not split_word(folder.name)
    }
    train = next(
        (folder for folder, word in exact.items() if word in TRAIN and subfolders(folder)), None
    )
    if train is not None:
        return exact | {
            folder: word
            for folder, word in loose.items()
            if word not in TRAIN and len(_classes(folder) & _classes(train)) > 1
        }
    for train in (folder for folder, word in loose.items() if word in TRAIN):
        alike = {
            folder: word
            for folder, word in loose.items()
            if rest_of(folder.name) == rest_of(train.name)
        }
        if len(set(alike.values())) > 1:
            return exact | alike
    beside = {composed(folder.name) for folder in folders}
    return exact | {
        folder: word for folder, word in loose.items() if len(_classes(folder) & beside) > 1
    }


def _training_folder(root: Path, words: dict[Path, str]) -> tuple[Path, list[Path], list[str]]:
    """(the folder whose subfolders are the training classes, these subfolders, what to say of it);
    `words` are those of folders of splits.

    Raises UserError where the folders are named as splits and none holds the training classes.
    """
    folders = subfolders(root)
    others = [folder for folder in folders if _unwrapped(folder) not in words]
    trains = [folder for folder, word in words.items() if word in TRAIN and subfolders(folder)]
    if len(trains) > 1:
        raise UserError(
            f"{root} has the folders {listed(_names(trains))}, which both mean the training "
            "images; keep one of them."
        )
    if trains:
        same = [folder for folder in others if len(_classes(folder) & _classes(trains[0])) > 1]
        if same and len(words) == 1:  # without any other split it may be a class beside others
            raise UserError(
                f"{root} has the folder {trains[0].name} beside {listed(_names(same))}, which "
                "hold the same folders, "
                "so it may be a split or a class; rename it, or move the others away."
            )
        said = [f"not used: {listed(_names(others))}, beside {trains[0].name}"] if others else []
        return trains[0], subfolders(trains[0]), said
    bare = [folder.name for folder in words if not subfolders(folder)]
    if words and (not others or len(bare) > 1):
        what = (
            f"{listed(bare)}, which hold images and no class folders"
            if bare
            else f"{listed(_names(list(words)))}, and no train"
        )
        raise UserError(
            f"{root} has the folders {what}; put the training images into one folder per class, "
            "such as train/cat and train/dog."
        )
    # classes and splits side by side: a split is what holds the classes once more
    classes = set(_names(others))
    held = [folder for folder in words if classes & set(_names(subfolders(folder)))]
    named = [folder.name for folder in words if folder not in held]
    said = [
        f"the folder{'s' if len(named) > 1 else ''} {listed(named)} beside other classes "
        f"{'are classes' if len(named) > 1 else 'is a class'}"
    ]
    return root, [folder for folder in folders if folder not in held], said if named else []


def _test_folder(
    train: Path, root: Path, classes: tuple[str, ...], words: dict[Path, str]
) -> tuple[Path | None, list[str]]:
    """(the folder of the test images, what to say of it and of those that are not used).

    Raises UserError for a test folder with other classes than those of training.
    """
    order = (*TEST, *STAND_INS)
    splits = [folder for folder, word in words.items() if word in order]
    if train == root:  # beside classes, a folder of such a name can be a class too
        splits = [folder for folder in splits if set(_names(subfolders(folder))) & set(classes)]
    chosen, said = None, []
    for folder in sorted(splits, key=lambda folder: order.index(words[folder])):
        inner = [
            part
            for part in subfolders(folder)
            if composed(part.name) in classes or any(True for _ in files_below(part))
        ]
        if chosen is not None:
            said.append(f"not used: {folder.name}, because {chosen.name} holds the test images")
        elif not inner:
            said.append(
                f"{folder.name} is skipped: it holds no class folders, so its images have no labels"
            )
        else:
            if strange := sorted(set(_names(inner)) - set(classes)):
                raise UserError(
                    f"The class folders of {folder} are not those of {train}: {listed(strange)} "
                    f"{'is' if len(strange) == 1 else 'are'} "
                    "not among the training classes; give both the same names."
                )
            chosen = folder
            if words[folder] in STAND_INS:
                said.append(f"{folder.name} stands in for the test split, which is missing")
            if has_images(folder):
                said.append(
                    f"images that lie in {folder.name} itself, beside the class folders, are not "
                    "used"
                )
    return chosen, said


def _part(
    folder: Path,
    classes: tuple[str, ...],
    root: Path,
    decoder: Decoder,
    left_out: LeftOut,
    *,
    whole: bool,
) -> Part:
    """One split. Raises UserError for a class without images where the split must be `whole`."""
    paths: list[Path] = []
    labels: list[int] = []
    folder_of = {composed(inner.name): inner for inner in subfolders(folder)}
    for label, name in enumerate(classes):
        found = images_below(folder_of[name], left_out) if name in folder_of else []
        if whole and not found:
            left = (
                sum(path.is_relative_to(folder_of[name]) for path in left_out.paths)
                if name in folder_of
                else 0
            )
            why = f", only {left} other file{'s' if left > 1 else ''}" if left else ""
            raise UserError(
                f"The class folder {folder / name} has no images{why}; add some or remove it."
            )
        paths += found
        labels += [label] * len(found)
    fetch = decoder.fetch_of(lambda i: paths[i], lambda i: str(paths[i]), len(paths))
    return Part(np.array(labels, np.int64), fetch, lambda i: os.path.relpath(paths[i], root))


def read(config: DataConfig) -> Source:
    """The folder data.root; classes in the order of `sorted_classes`, matched by name between the
    splits.
    """
    if config.root is None:
        raise UserError(
            "data.name folder needs data.root, the folder whose subfolders are the classes."
        )
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(
            f"data.root {root} is not a folder; set it to the folder whose subfolders are the "
            "classes."
        )
    words = _split_folders(root)
    train, folders, notes = _training_folder(root, words)
    classes = sorted_classes(_names(folders))
    if len(classes) < 2:
        inner = folders[0] if len(folders) == 1 and len(subfolders(folders[0])) > 1 else None
        mend = (
            "data.root must hold one folder per class"
            if inner is None
            else f"perhaps data.root should be {inner}"
        )
        raise UserError(
            f"{train} has {len(classes)} class folder{'s' * (len(classes) != 1)} and at least 2 "
            f"are needed; {mend}."
        )
    test, said = _test_folder(train, root, classes, words)
    notes += said
    if has_images(train):
        notes.append(
            f"images that lie in {train.name or train} itself, beside the class folders, are not "
            "used"
        )
    decoder, left_out = Decoder(config, notes, own=True), LeftOut()
    part = _part(train, classes, root, decoder, left_out, whole=True)
    held = None if test is None else _part(test, classes, root, decoder, left_out, whole=False)
    if test is not None and held is not None and len(held.labels) == 0:
        notes.append(f"{test.name} is skipped: its class folders hold no images")
        held = None
    notes += left_out.said(root)
    return Source(part, held, classes, notes=notes)
