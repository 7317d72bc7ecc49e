"""The datasets of the field by name: their files where they are installed, else torchvision's
readers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
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
    """What is fixed about a dataset: torchvision's class, class names, the normalisation constants
    its papers use.
    """

    torchvision: str
    class_names: tuple[str, ...] | None  # None: torchvision's or the file's own
    mean: tuple[float, ...]
    std: tuple[float, ...]
    installed: str | None = None  # where a Debian package puts its IDX files


_DIGITS = tuple(str(d) for d in range(10))
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


def _torchvision_part(dataset: object) -> Part:
    pixels = np.asarray(getattr(dataset, "data"))
    labels = np.asarray(
        getattr(dataset, "targets", None)
        if hasattr(dataset, "targets")
        else getattr(dataset, "labels")
    )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[1] != 3:  # CIFAR is stored with channels last, SVHN with channels first
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return part_of_array(pixels, labels)


def _from_torchvision(
    name: str, known: Known, config: DataConfig
) -> tuple[Part, Part, tuple[str, ...]]:
    from ddengine.system.compat import torchvision

    root = Path(config.root or "data")
    make: Callable[..., object] = getattr(torchvision.datasets, known.torchvision)
    key = "split" if name == "svhn" else "train"
    try:
        parts = [
            make(str(root), **{key: value}, download=config.download)
            for value in (("train", "test") if name == "svhn" else (True, False))
        ]
    except (URLError, OSError, RuntimeError, AssertionError, ValueError, KeyError) as error:
        if config.download and isinstance(error, URLError | OSError | RuntimeError):
            why = " ".join(str(error).split()).replace(". ", "; ").rstrip(".")
            raise UserError(
                f"{known.torchvision} could not be downloaded into {root} ({why}); check the "
                "network or set data.root."
            ) from None
        if isinstance(error, RuntimeError):
            raise UserError(
                f"{known.torchvision} was not found in {root}; set data.root to the folder that "
                "holds it, or data.download True to fetch it."
            ) from None
        raise UserError(
            f"{known.torchvision} in {root} cannot be read ({error}); delete it there and set "
            "data.download True."
        ) from None
    names = known.class_names or tuple(getattr(parts[0], "classes"))
    return _torchvision_part(parts[0]), _torchvision_part(parts[1]), names


def reader(name: str) -> Callable[[DataConfig], Source]:
    """The reader of a known dataset: parquet or IDX files in data.root, an installed package, or
    torchvision's own layout.
    """
    known = KNOWN[name]

    def read(config: DataConfig) -> Source:
        if config.root is not None and not Path(config.root).is_dir():
            raise UserError(
                f"data.root {config.root} is not a folder; set it to the folder that holds {name}."
            )
        if config.root is not None and parquet_files(Path(config.root)):
            source = read_parquet(config)
            return replace(
                source,
                class_names=known.class_names or source.class_names,
                mean=known.mean,
                std=known.std,
            )
        for folder in (config.root, known.installed):
            parts = find_idx(Path(folder)) if folder else None
            if parts and known.class_names:
                return Source(*parts, known.class_names, known.mean, known.std)
        train, test, names = _from_torchvision(name, known, config)
        return Source(train, test, names, known.mean, known.std)

    return read
