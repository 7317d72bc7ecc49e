"""An image folder: CLASS/*.png, or train/CLASS/* with test/CLASS/*.

The words for splits may be spelled as people spell them.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ddengine.data.decoder import Decoder, files_at
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

Words = dict[Path, str]  # folders of splits, and the word that each is named after


def _names(folders: Iterable[Path]) -> list[str]:
    return [composed(folder.name) for folder in folders]


def _classes(folder: Path) -> set[str]:
    """The names of the folders in a folder."""
    return set(_names(subfolders(folder)))


def _unwrapped(folder: Path) -> Path:
    """A folder, or the one of the same name that is all it holds.

    Archives are unpacked so (seg_train/seg_train).
    """
    inner = subfolders(folder)
    if len(inner) == 1 and inner[0].name == folder.name:
        return inner[0]
    return folder


# Which folders are splits


def _split_folders(root: Path) -> Words:
    """The folders of splits, and the word each is named after.

    A name with more words, such as seg_train, counts where another one differs from it by the word
    alone, and beside others where it holds the same classes: classes have such names too
    (train_station).
    """
    exact, loose = _named_after_splits(root)
    for folder, word in exact.items():
        if word in TRAIN and subfolders(folder):
            return exact | _holding(loose, _classes(folder), but=TRAIN)
    for folder, word in loose.items():
        if word in TRAIN:
            siblings = _siblings(loose, folder)
            if len(set(siblings.values())) > 1:
                return exact | siblings
    return exact | _holding(loose, _classes(root))


def _named_after_splits(root: Path) -> tuple[Words, Words]:
    """(folders named by the word of a split alone, folders with such a word in their names)."""
    exact: Words = {}
    loose: Words = {}
    for folder in subfolders(root):
        word = split_word(folder.name)
        word_in = split_word_in(folder.name)
        if word:
            exact[_unwrapped(folder)] = word
        elif word_in:
            loose[_unwrapped(folder)] = word_in
    return exact, loose


def _siblings(words: Words, train: Path) -> Words:
    """The folders whose names differ from that of `train` by the word of the split alone."""
    rest = rest_of(train.name)
    siblings = {}
    for folder, word in words.items():
        if rest_of(folder.name) == rest:
            siblings[folder] = word
    return siblings


def _holding(
    words: Words,
    classes: set[str],
    but: Sequence[str] = (),
) -> Words:
    """The folders that hold several of the classes, without those named after words in `but`."""
    holding = {}
    for folder, word in words.items():
        if word not in but and len(_classes(folder) & classes) > 1:
            holding[folder] = word
    return holding


# The training classes


def _training_folder(root: Path, words: Words) -> tuple[Path, list[Path], list[str]]:
    """(folder of the training classes, the folders of these classes, what to say of it).

    `words` are those of folders of splits. Raises UserError where the folders are named as splits
    and none holds the training classes.
    """
    others = [folder for folder in subfolders(root) if _unwrapped(folder) not in words]
    trains = []
    for folder, word in words.items():
        if word in TRAIN and subfolders(folder):
            trains.append(folder)
    if len(trains) > 1:
        raise UserError(
            f"{root} has the folders {listed(_names(trains))}, which both mean the training "
            "images; keep one of them."
        )
    if trains:
        train = trains[0]
        _check_no_class(root, train, others, words)
        notes = []
        if others:
            notes.append(f"not used: {listed(_names(others))}, beside {train.name}")
        return train, subfolders(train), notes
    _check_not_only_splits(root, others, words)
    return _classes_beside_splits(root, others, words)


def _check_no_class(
    root: Path,
    train: Path,
    others: list[Path],
    words: Words,
) -> None:
    """Raise UserError where the only folder of a split may be a class beside the others."""
    classes = _classes(train)
    alike = [folder for folder in others if len(_classes(folder) & classes) > 1]
    if alike and len(words) == 1:
        raise UserError(
            f"{root} has the folder {train.name} beside {listed(_names(alike))}, which "
            "hold the same folders, "
            "so it may be a split or a class; rename it, or move the others away."
        )


def _check_not_only_splits(
    root: Path,
    others: list[Path],
    words: Words,
) -> None:
    """Raise UserError where there are folders of splits and no folders of classes."""
    bare = [folder.name for folder in words if not subfolders(folder)]
    if not words or (others and len(bare) < 2):
        return
    what = f"{listed(_names(words))}, and no train"
    if bare:
        what = f"{listed(bare)}, which hold images and no class folders"
    raise UserError(
        f"{root} has the folders {what}; put the training images into one folder per class, "
        "such as train/cat and train/dog."
    )


def _classes_beside_splits(
    root: Path,
    others: list[Path],
    words: Words,
) -> tuple[Path, list[Path], list[str]]:
    """What `_training_folder` says where classes and splits lie side by side.

    A split is what holds the classes once more.
    """
    classes = set(_names(others))
    splits = []
    named = []
    for folder in words:
        if classes & _classes(folder):
            splits.append(folder)
        else:
            named.append(folder.name)
    folders = [folder for folder in subfolders(root) if folder not in splits]
    if not named:
        return root, folders, []
    of_one = f"the folder {named[0]} beside other classes is a class"
    of_several = f"the folders {listed(named)} beside other classes are classes"
    return root, folders, [of_one if len(named) == 1 else of_several]


# The test images


def _test_folder(
    train: Path,
    root: Path,
    classes: tuple[str, ...],
    words: Words,
) -> tuple[Path | None, list[str]]:
    """(the folder of the test images, what to say of it and of those that are not used).

    Raises UserError for a test folder with other classes than those of training.
    """
    chosen: Path | None = None
    notes: list[str] = []
    for folder in _ranked(train, root, classes, words):
        inner = _class_folders(folder, classes)
        if chosen is not None:
            notes.append(f"not used: {folder.name}, because {chosen.name} holds the test images")
        elif not inner:
            notes.append(
                f"{folder.name} is skipped: it holds no class folders, so its images have no labels"
            )
        else:
            _check_same_classes(folder, inner, train, classes)
            chosen = folder
            notes += _said_of(folder, words[folder])
    return chosen, notes


def _ranked(
    train: Path,
    root: Path,
    classes: tuple[str, ...],
    words: Words,
) -> list[Path]:
    """The folders that may hold test images, the best first."""
    order = (*TEST, *STAND_INS)
    splits = []
    for folder, word in words.items():
        # beside classes, a folder of such a name can be a class too
        is_class = train == root and not _classes(folder) & set(classes)
        if word in order and not is_class:
            splits.append(folder)
    return sorted(splits, key=lambda folder: order.index(words[folder]))


def _class_folders(folder: Path, classes: tuple[str, ...]) -> list[Path]:
    """The folders in a test folder that are known classes, or hold any files."""
    inner = []
    for part in subfolders(folder):
        if composed(part.name) in classes or _holds_files(part):
            inner.append(part)
    return inner


def _holds_files(folder: Path) -> bool:
    return next(files_below(folder), None) is not None


def _check_same_classes(
    folder: Path,
    inner: list[Path],
    train: Path,
    classes: tuple[str, ...],
) -> None:
    """Raise UserError for class folders in a test folder that are no training classes."""
    strange = sorted(set(_names(inner)) - set(classes))
    if strange:
        verb = "is" if len(strange) == 1 else "are"
        raise UserError(
            f"The class folders of {folder} are not those of {train}: {listed(strange)} {verb} "
            "not among the training classes; give both the same names."
        )


def _said_of(test: Path, word: str) -> list[str]:
    """What to say of the folder of test images, which is named after `word`."""
    notes = []
    if word in STAND_INS:
        notes.append(f"{test.name} stands in for the test split, which is missing")
    if has_images(test):
        notes.append(_lying_beside(test))
    return notes


def _lying_beside(folder: Path) -> str:
    return (
        f"images that lie in {folder.name or folder} itself, beside the class folders, are not used"
    )


# The images


class _Files:
    """The images of a folder of class folders and what they are called, without those left out."""

    def __init__(
        self,
        folder: Path,
        classes: tuple[str, ...],
        left_out: LeftOut,
    ):
        self.folder = folder
        self.left_out = left_out
        self.paths: list[str] = []  # a million are half as large as paths
        self.labels: list[int] = []
        self.num_of: dict[str, int] = {}  # images of each class
        self._folder_of = {composed(inner.name): inner for inner in subfolders(folder)}
        for label, name in enumerate(classes):
            paths = []
            if name in self._folder_of:
                paths = images_below(self._folder_of[name], left_out)
            self.num_of[name] = len(paths)
            self.paths += map(str, paths)
            self.labels += [label] * len(paths)

    def check_every_class(self) -> None:
        """Raise UserError for the first class without images."""
        for name, num in self.num_of.items():
            if num == 0:
                raise UserError(
                    f"The class folder {self.folder / name} has no images{self._others(name)}; add "
                    "some or remove it."
                )

    def _others(self, name: str) -> str:
        """What is in a class folder without images, for a message."""
        if name not in self._folder_of:
            return ""
        num = 0
        for path in self.left_out.paths:
            num += path.is_relative_to(self._folder_of[name])
        if num == 0:
            return ""
        return f", only {num} other file{'s' if num > 1 else ''}"

    def part(self, root: Path, decoder: Decoder) -> Part:
        """The images as a split; their names are paths below `root`."""
        paths = self.paths
        undecoded = decoder.undecoded(files_at(paths, root))
        labels = np.array(self.labels, np.int64)
        return Part(labels, undecoded.fetch, lambda i: os.path.relpath(paths[i], root), undecoded)


def _root(config: DataConfig) -> Path:
    """The folder data.root. Raises UserError where it is not given or no folder."""
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
    return root


def _check_several(train: Path, folders: list[Path]) -> None:
    """Raise UserError unless there are at least two class folders."""
    num = len(folders)
    if num >= 2:
        return
    mend = "data.root must hold one folder per class"
    if num == 1 and len(subfolders(folders[0])) > 1:
        mend = f"perhaps data.root should be {folders[0]}"
    raise UserError(
        f"{train} has {num} class folder{'s' * (num != 1)} and at least 2 are needed; {mend}."
    )


def read(config: DataConfig) -> Source:
    """The folder data.root; classes are in the order of `sorted_classes`.

    Splits are matched by the names of the classes. Raises UserError where folders of splits,
    classes or images cannot be told, or are missing.
    """
    root = _root(config)
    words = _split_folders(root)
    train, folders, notes = _training_folder(root, words)
    classes = sorted_classes(_names(folders))
    _check_several(train, folders)
    test, test_notes = _test_folder(train, root, classes, words)
    notes += test_notes
    if has_images(train):
        notes.append(_lying_beside(train))
    decoder = Decoder(config, notes, published=False)
    left_out = LeftOut()
    files = _Files(train, classes, left_out)
    files.check_every_class()
    part = files.part(root, decoder)
    test_part = None
    if test is not None:
        test_files = _Files(test, classes, left_out)
        if test_files.paths:
            test_part = test_files.part(root, decoder)
        else:
            notes.append(f"{test.name} is skipped: its class folders hold no images")
    notes += left_out.said(root)
    return Source(part, test_part, classes, notes=notes)
