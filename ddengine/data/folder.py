"""An image folder: class/*.png|jpg|..., or train/class/* with test/class/* or val/class/*."""

from functools import partial
from pathlib import Path

import numpy as np

from ddengine.data.images import decoder, open_image
from ddengine.data.source import Part, Source
from ddengine.errors import UserError
from ddengine.recipe import DataConfig

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _part(folder: Path, classes: list[str], size: tuple[int, int] | None, every: list[Path]) -> Part:
    """One split; its files are added to `every`, those of the whole dataset, of which an error may speak."""
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not found:
            raise UserError(f"The class folder {folder / name} has no images; add some or remove it.")
        paths += found
        labels += [label] * len(found)
    every += paths
    fetch = decoder(
        lambda i: open_image(paths[i], str(paths[i]), upright=True),
        lambda i: str(paths[i]),
        size,
        lambda: [(partial(Path, path), str(path)) for path in every],
    )
    return Part(np.array(labels, np.int64), fetch)


def read(config: DataConfig) -> Source:
    """The folder data.root; classes in alphabetical order of their folders."""
    if config.root is None:
        raise UserError("data.name folder needs data.root, the folder whose subfolders are the classes.")
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder; set it to the folder whose subfolders are the classes.")
    train = root / "train" if (root / "train").is_dir() else root
    classes = _classes(train)
    if len(classes) < 2:
        raise UserError(f"{train} has {len(classes)} class folders and at least 2 are needed; data.root must hold one folder per class.")
    test = next((root / name for name in ("test", "val") if train != root and (root / name).is_dir()), None)
    if test is not None and _classes(test) != classes:
        raise UserError(f"The class folders of {test} are not those of {train}; give both the same names.")
    every: list[Path] = []
    parts = [_part(folder, classes, config.size, every) for folder in (train, test) if folder is not None]
    return Source(parts[0], parts[1] if test else None, tuple(classes))
