"""The datasets of the field by name: installed files, else torchvision's readers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from ddengine.data.idx import find_idx
from ddengine.data.parquet import files as parquet_files
from ddengine.data.parquet import read as read_parquet
from ddengine.data.source import Part, Source, part_of_array
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError


@dataclass(frozen=True)
class Known:
    """What is fixed about a dataset.

    That is torchvision's class, the names of the classes, and the constants that its papers
    normalise by.
    """

    torchvision: str
    class_names: tuple[str, ...] | None  # None: torchvision's or the file's own
    mean: tuple[float, ...]
    std: tuple[float, ...]
    installed: str | None = None  # where a Debian package puts its IDX files


_DIGITS = tuple(map(str, range(10)))
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# MTT uses CIFAR-10's for CIFAR-100 too
_CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

KNOWN = {
    "mnist": Known("MNIST", _DIGITS, (0.1307,), (0.3081,)),
    "fashion_mnist": Known(
        "FashionMNIST", _FASHION, (0.2861,), (0.3530,), "/usr/share/datasets/fashion-mnist"
    ),
    "svhn": Known("SVHN", _DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": Known("CIFAR10", None, *_CIFAR_STATS),
    "cifar100": Known("CIFAR100", None, *_CIFAR_STATS),
}


def _torchvision_part(dataset: Any) -> Part:
    """The images and labels of one of torchvision's datasets, which it keeps as arrays."""
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[1] != 3:  # CIFAR is stored with channels last, SVHN with channels first
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    listed = "targets" if hasattr(dataset, "targets") else "labels"  # probe: torchvision's names
    return part_of_array(pixels, np.asarray(getattr(dataset, listed)))


def _from_torchvision(
    name: str,
    known: Known,
    config: DataConfig,
) -> Source:
    """What torchvision's own reader gives. Raises UserError where it gives nothing."""
    from ddengine.system.compat import torchvision

    root = Path(config.root or "data")
    make: Callable[..., Any] = getattr(torchvision.datasets, known.torchvision)
    make = partial(make, str(root), download=config.download)
    try:
        if name == "svhn":
            train = make(split="train")
            test = make(split="test")
        else:
            train = make(train=True)
            test = make(train=False)
    except (URLError, OSError, RuntimeError, AssertionError, ValueError, KeyError) as error:
        raise _refusal(known, root, config, error) from None
    names = known.class_names or tuple(train.classes)
    return Source(_torchvision_part(train), _torchvision_part(test), names, known.mean, known.std)


def _refusal(
    known: Known,
    root: Path,
    config: DataConfig,
    error: Exception,
) -> UserError:
    """What to say where torchvision gives nothing."""
    if config.download and isinstance(error, URLError | OSError | RuntimeError):
        why = " ".join(str(error).split()).replace(". ", "; ").rstrip(".")
        return UserError(
            f"{known.torchvision} could not be downloaded into {root} ({why}); check the "
            "network or set data.root."
        )
    if isinstance(error, RuntimeError):
        return UserError(
            f"{known.torchvision} was not found in {root}; set data.root to the folder that "
            "holds it, or data.download True to fetch it."
        )
    return UserError(
        f"{known.torchvision} in {root} cannot be read ({error}); delete it there and set "
        "data.download True."
    )


def _read(name: str, config: DataConfig) -> Source:
    known = KNOWN[name]
    if config.root is not None and not Path(config.root).is_dir():
        raise UserError(
            f"data.root {config.root} is not a folder; set it to the folder that holds {name}."
        )
    if config.root is not None and parquet_files(Path(config.root)):
        source = read_parquet(config)
        names = known.class_names or source.class_names
        return replace(source, class_names=names, mean=known.mean, std=known.std)
    for folder in (config.root, known.installed):
        parts = find_idx(Path(folder)) if folder else None
        if parts and known.class_names:
            return Source(*parts, known.class_names, known.mean, known.std)
    return _from_torchvision(name, known, config)


def reader(name: str) -> Callable[[DataConfig], Source]:
    """The reader of a known dataset.

    It takes parquet or IDX files in data.root, an installed package, or torchvision's layout.
    """
    return partial(_read, name)
