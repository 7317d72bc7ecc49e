"""Tiny ImageNet: 200 classes of 64x64 images.

It is read as it is distributed, or with the validation images sorted into class folders.
"""

import os
from pathlib import Path

from ddengine.data.decoder import Decoder
from ddengine.data.imagenet import MEAN, STD, part_of_files, part_of_folders
from ddengine.data.source import Part, Source
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

FOLDER = "tiny-imagenet-200"  # what the archive unpacks to


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises UserError when it is not there."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing; set data.root to the folder {FOLDER} as the archive unpacks it."
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return list(filter(str.strip, lines))


def _class_names(path: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """The first synonym of each class in words.txt, or its WordNet id where the file says none."""
    names = dict.fromkeys(wnids, "")
    if path.is_file():
        for line in _lines(path):
            wnid, _, words = line.partition("\t")
            synonym, *_ = words.split(",")
            names[wnid] = synonym.strip()
    return tuple(names[wnid] or wnid for wnid in wnids)


def _validation(
    folder: Path,
    wnids: tuple[str, ...],
    root: Path,
    decoder: Decoder,
) -> Part:
    """The images of val, in class folders or as val_annotations.txt labels them.

    Class folders may lie below val/images or val.
    """
    for base in (folder / "images", folder):
        if any((base / wnid).is_dir() for wnid in wnids):
            return part_of_folders(base, wnids, root, decoder)
    return _annotated(folder, wnids, root, decoder)


def _annotated(
    folder: Path,
    wnids: tuple[str, ...],
    root: Path,
    decoder: Decoder,
) -> Part:
    """The images of val as val_annotations.txt labels them.

    Raises UserError for a class that is not known, and an image that is missing.
    """
    annotations = folder / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    present: set[str] = set()
    if (folder / "images").is_dir():
        present.update(os.listdir(folder / "images"))
    paths = []
    labels = []
    for line in _lines(annotations):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in label_of:
            raise UserError(
                f"{annotations} gives {name} the class {wnid!r}, which is not in wnids.txt; "
                "unpack the archive again."
            )
        if name not in present:
            raise UserError(
                f"{folder / 'images' / name} is missing, which {annotations.name} lists; unpack "
                "the archive again."
            )
        paths.append(str(folder / "images" / name))
        labels.append(label_of[wnid])
    return part_of_files(paths, labels, root, decoder)


def read(config: DataConfig) -> Source:
    """The folder data.root, or tiny-imagenet-200 in it; val is the test split.

    The official test images have no labels. The classes are in the order of their WordNet ids, as
    in torchvision's ImageFolder. Raises UserError on missing files.
    """
    if config.root is None:
        raise UserError(
            f"data.name tiny_imagenet needs data.root, the folder {FOLDER} as the archive unpacks "
            "it."
        )
    root = Path(config.root)
    folder = root
    if not (root / "wnids.txt").is_file() and (root / FOLDER).is_dir():
        folder = root / FOLDER
    wnids = tuple(sorted(set(map(str.strip, _lines(folder / "wnids.txt")))))
    if len(wnids) < 2:
        raise UserError(
            f"{folder / 'wnids.txt'} lists {len(wnids)} classes and at least 2 are needed; unpack "
            "the archive again."
        )
    notes: list[str] = []
    decoder = Decoder(config, notes, published=True)
    train = part_of_folders(folder / "train", wnids, folder, decoder)
    test = _validation(folder / "val", wnids, folder, decoder)
    return Source(train, test, _class_names(folder / "words.txt", wnids), MEAN, STD, notes)
