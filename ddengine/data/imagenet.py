"""ImageNet (ILSVRC2012) in class folders, and its subsets of ten classes.

Trajectory matching is reported on these.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ddengine.data.decoder import Decoder, files_at
from ddengine.data.listing import files_below, has_suffix
from ddengine.data.source import Part, Source
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NUM_CLASSES = 1000
DISTRIBUTED = Path("ILSVRC", "Data", "CLS-LOC")  # where the official archive has train and val
FLAT = re.compile(r"ILSVRC2012_val_\d+\.JPEG", re.IGNORECASE)

# WordNet id and name of each class. The position is the label: the order of MTT's lists, not that
# of the ids.
SUBSETS: dict[str, tuple[tuple[str, str], ...]] = {
    "imagenette": (
        ("n01440764", "tench"),
        ("n02102040", "English springer"),
        ("n02979186", "cassette player"),
        ("n03000684", "chain saw"),
        ("n03028079", "church"),
        ("n03394916", "French horn"),
        ("n03417042", "garbage truck"),
        ("n03425413", "gas pump"),
        ("n03445777", "golf ball"),
        ("n03888257", "parachute"),
    ),
    "imagewoof": (
        ("n02096294", "Australian terrier"),
        ("n02093754", "Border terrier"),
        ("n02111889", "Samoyed"),
        ("n02088364", "beagle"),
        ("n02086240", "Shih-Tzu"),
        ("n02089973", "English foxhound"),
        ("n02087394", "Rhodesian ridgeback"),
        ("n02115641", "dingo"),
        ("n02099601", "golden retriever"),
        ("n02105641", "Old English sheepdog"),
    ),
    "imagefruit": (
        ("n07753275", "pineapple"),
        ("n07753592", "banana"),
        ("n07745940", "strawberry"),
        ("n07747607", "orange"),
        ("n07749582", "lemon"),
        ("n07768694", "pomegranate"),
        ("n07753113", "fig"),
        ("n07720875", "bell pepper"),
        ("n07718472", "cucumber"),
        ("n07742313", "Granny Smith"),
    ),
    "imagemeow": (
        ("n02123045", "tabby"),
        ("n02123159", "tiger cat"),
        ("n02123394", "Persian cat"),
        ("n02123597", "Siamese cat"),
        ("n02124075", "Egyptian cat"),
        ("n02129165", "lion"),
        ("n02129604", "tiger"),
        ("n02128925", "jaguar"),
        ("n02128757", "snow leopard"),
        ("n02127052", "lynx"),
    ),
    "imagesquawk": (
        ("n01806143", "peacock"),
        ("n02007558", "flamingo"),
        ("n01818515", "macaw"),
        ("n02051845", "pelican"),
        ("n02056570", "king penguin"),
        ("n01614925", "bald eagle"),
        ("n01843383", "toucan"),
        ("n01518878", "ostrich"),
        ("n01860187", "black swan"),
        ("n01819313", "sulphur-crested cockatoo"),
    ),
    "imageyellow": (
        ("n02206856", "bee"),
        ("n12057211", "yellow lady's slipper"),
        ("n07753592", "banana"),
        ("n07749582", "lemon"),
        ("n12144580", "corn"),
        ("n04146614", "school bus"),
        ("n03530642", "honeycomb"),
        ("n02129165", "lion"),
        ("n01773157", "black and gold garden spider"),
        ("n01531178", "goldfinch"),
    ),
}
NAMES = (*SUBSETS, "imagenet")


def part_of_files(
    paths: list[str],
    labels: list[int],
    root: Path,
    decoder: Decoder,
) -> Part:
    """A split of image files below `root` with a label each, decoded when asked for."""
    undecoded = decoder.undecoded(files_at(paths, root))
    return Part(
        np.array(labels, np.int64),
        undecoded.fetch,
        lambda i: os.path.relpath(paths[i], root),
        undecoded,
    )


def _images_below(folder: Path) -> list[str]:
    """The image files below a folder, sorted.

    They are texts, because a Path for each of a million files takes its time.
    """
    images = []
    for path, regular in files_below(folder):
        if regular and has_suffix(path):
            images.append(path)
    return sorted(images)


def part_of_folders(
    folder: Path,
    wnids: tuple[str, ...],
    root: Path,
    decoder: Decoder,
) -> Part:
    """All images below folder/WNID, at any depth; label i is wnids[i].

    Raises UserError naming a folder that is missing or has no images.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        if not (folder / wnid).is_dir():
            raise UserError(
                f"The class folder {folder / wnid} is missing; put the images of {wnid} there."
            )
        images = _images_below(folder / wnid)
        if not images:
            raise UserError(
                f"The class folder {folder / wnid} has no images; put the images of {wnid} there."
            )
        paths += images
        labels += [label] * len(images)
    return part_of_files(paths, labels, root, decoder)


def _folder_with_train(name: str, config: DataConfig) -> Path:
    """The folder that holds train and val. Raises UserError when data.root leads to none."""
    if config.root is None:
        raise UserError(
            f"data.name {name} needs data.root, the folder with train/WNID/*.JPEG and "
            "val/WNID/*.JPEG (WNID: such as n01440764)."
        )
    root = Path(config.root)
    for folder in (root, root / DISTRIBUTED):
        if (folder / "train").is_dir():
            if (folder / "val").is_dir():
                return folder
            raise UserError(
                f"{folder} has no folder val for data.name {name}; put the validation images "
                "there, in class folders."
            )
    raise UserError(
        f"data.root {root} has no folder train for data.name {name}; set it to the folder with "
        "train/WNID/*.JPEG and val/WNID/*.JPEG."
    )


def _classes(name: str, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(WordNet ids, names) of the classes of a subset, or of all class folders in `folder`/train.

    Raises UserError where these are not 1,000.
    """
    if name in SUBSETS:
        wnids, names = zip(*SUBSETS[name], strict=True)
        return wnids, names
    wnids = []
    for path in (folder / "train").iterdir():
        if re.fullmatch(r"n\d{8}", path.name) and path.is_dir():
            wnids.append(path.name)
    if len(wnids) != NUM_CLASSES:
        raise UserError(
            f"{folder / 'train'} has {len(wnids)} class folders and data.name imagenet "
            f"needs {NUM_CLASSES}; add the missing ones."
        )
    ordered = tuple(sorted(wnids))
    return ordered, ordered


def _check_sorted(test: Path, wnids: tuple[str, ...]) -> None:
    """Raise UserError where validation images lie beside each other, without class folders."""
    if any((test / wnid).is_dir() for wnid in wnids):
        return
    if any(FLAT.fullmatch(path.name) for path in test.iterdir()):
        raise UserError(
            f"{test} holds the validation images without class folders; sort them into "
            f"folders by class, {test / wnids[0]} and so on."
        )


def _read(name: str, config: DataConfig) -> Source:
    if config.size is None:
        raise UserError(
            f"data.name {name} has images of many sizes and data.size is not set; set "
            "data.size to a height and width, such as 128 128."
        )
    folder = _folder_with_train(name, config)
    wnids, names = _classes(name, folder)
    _check_sorted(folder / "val", wnids)
    notes: list[str] = []
    decoder = Decoder(config, notes, published=True)
    train = part_of_folders(folder / "train", wnids, folder, decoder)
    test = part_of_folders(folder / "val", wnids, folder, decoder)
    return Source(train, test, names, MEAN, STD, notes)


def reader(name: str) -> Callable[[DataConfig], Source]:
    """The reader of "imagenet" or of a subset: train/WNID/* for training, val/WNID/* for testing.

    data.root is ILSVRC2012 in class folders (all of them or the ones needed), or the folder with
    ILSVRC/Data/CLS-LOC, or fastai's imagenette2 or imagewoof2, whose split of train and val is
    another one than that of ILSVRC2012. Raises UserError on missing folders and without data.size.
    """
    return partial(_read, name)
