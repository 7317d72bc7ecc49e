"""Distilled sets in the files of the published programs <-> `SyntheticSet`.

MTT, FTD, TESLA, DATM   images_X.pt (S, C, H, W) as networks see them; labels_X.pt (S,) classes or
                        (S, K) logits or probabilities; lr_X.pt
DC, DSA, DM             res_*.pt: {"data": [[images, labels], ...], "accs_all_exps": ...}, one pair
                        an experiment
IDC, DREAM              data_best.pt: [images, labels], pixels in [0, 1]; an image may hold several
                        small ones (a codec with a factor)

Image and parquet files are read in finished.py. What comes in has been read from a file of somebody
else: nothing about it is taken for granted.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from ddengine.data import Data
from ddengine.sets.codec import Codec, Identity, Pixels, as_pixels
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import Classes, Logits
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.types import Json

SMALLEST_PROBABILITY = 1e-8  # stands for 0 where the logarithm of a probability is stored
# times the largest value that pixels have in the space of the images is the largest that is taken
# for a value of an image
REACH = 1000
# of the values of a pair must lie in the range of pixels, or nearly, for its images to be taken as
# pixels
PIXEL_SHARE = 0.8
# how far beyond [0, 1] optimisation may have moved pixels that the program does not clamp
PIXEL_MARGIN = 0.1

# names under which dictionaries hold images, and labels
IMAGES = ("images", "image", "imgs", "x", "data")
LABELS = ("labels", "label", "y", "targets", "target")
# dimensions of several images, or classes -> of a single one
SINGLE = {4: 3, 1: 0}

Space = Literal["pixel", "model"]


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file. Raises UserError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --files.") from None


def is_plain(value: Any) -> bool:
    """Whether something out of a file is an ordinary tensor of real numbers.

    Not sparse, nested, quantised, complex or without a storage.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    if value.is_nested or value.is_quantized or value.is_complex():
        return False
    return value.device.type == "cpu" and value.dtype != torch.bool


def shape_of(value: Any) -> str:
    """What something out of a file is, for a sentence."""
    if isinstance(value, Mapping):
        return _dict_of(list(value))
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    dtype = str(value.dtype).removeprefix("torch.")
    kind = "a tensor"
    if value.layout != torch.strided:
        kind = "a sparse tensor"
    return f"{kind} of shape {tuple(value.shape)} ({dtype})"


def described(value: Any, depth: int = 2) -> str:
    """What something out of a file is, with what lies in it, for a sentence."""
    if is_state(value):
        return f"a state dict of {len(value)} tensors ({_some(list(value))})"
    if not isinstance(value, list | tuple):
        return shape_of(value)
    kind = type(value).__name__
    if not value:
        return f"an empty {kind}"
    if depth == 0:
        inner = shape_of(value[0])
    else:
        inner = described(value[0], depth - 1)
    if len(value) == 1:
        return f"a {kind} of 1, which is {inner}"
    return f"a {kind} of {len(value)}, the first {inner}"


def all_are(values: Iterable[Any], kind: Any) -> bool:
    """Whether all values are of a type, or of one of a union of types."""
    return all(isinstance(value, kind) for value in values)


def is_state(value: Any) -> bool:
    """Whether something out of a file is a state dict: tensors by name."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all_are(value, str) and all_are(value.values(), Tensor)


def _some(words: Sequence[Any]) -> str:
    """The first of many words."""
    first = ", ".join(map(str, words[:4]))
    if len(words) > 4:
        first += ", ..."
    return first


def _dict_of(keys: Sequence[Any]) -> str:
    """What a dictionary of these keys is, for a sentence."""
    if not keys:
        return "an empty dict"
    if len(keys) == 1:
        return f"a dict with the key {keys[0]}"
    return f"a dict with the keys {_some(keys)}"


def beside(path: Path, kind: str) -> Path | None:
    """labels_X.pt or lr_X.pt beside images_X.pt; None where there is none."""
    if not path.name.startswith("images_"):
        return None
    neighbour = path.with_name(kind + path.name.removeprefix("images"))
    if not neighbour.is_file():
        return None
    return neighbour


def read_set(
    path: Path,
    content: Any,
    load: Callable[[Path], Any],
    data: Data,
    *,
    labels: Path | None = None,
    lr: float | None = None,
    experiment: int | None = None,
    space: Space | None = None,
    codec: Codec | None = None,
) -> tuple[SyntheticSet, list[Path]]:
    """(distilled set, the files it came from) of a file whose `content` was read already.

    The file is one of images, a pair of images and labels, or a result of DC. `load` reads the
    files beside it. Labels: `labels`, else the file's own, else labels_X.pt, else `data`'s classes
    in order, as many images each. Learned rate: `lr`, else lr_X.pt, else none. `space` says what
    the values are; None: what the program that writes such files puts there, pixels in a pair and
    what networks see in others. Pixels are decoded by `codec` where it holds several images in one,
    and else are images as they are. Raises UserError for whatever does not fit the images and
    classes of `data`.
    """
    images, stored_labels, pair = _images(path, content, experiment)
    images = _checked(path, images, data)
    if space is None:
        space = _space(path, images, pair)
    check_values(path, images, data, space)
    used = [path]
    labels_file = _labels_file(path, stored_labels, labels)
    if labels_file is not None:
        used.append(labels_file)
        stored_labels = load(labels_file)
    where = f"in {labels_file or path}"
    classes, logits = _targets(where, stored_labels, len(images), data.num_classes)
    tensors = {"images": images.contiguous()}
    if logits is not None:
        tensors["logits"] = logits
    rate_file = beside(path, "lr")
    if lr is not None:
        tensors["lr"] = learned_rate(lr, "--lr")
    elif rate_file is not None:
        used.append(rate_file)
        tensors["lr"] = learned_rate(_rate(rate_file, load(rate_file)), str(rate_file))
    targets = Classes() if logits is None else Logits("stored")
    reader = pixel_codec(codec, data) if space == "pixel" else Identity()
    syn = SyntheticSet(
        tensors, classes, data.class_names, reader, data.train.preprocess, targets, space=space
    )
    return syn, used


def _checked(path: Path, images: Tensor, data: Data) -> Tensor:
    """Images as floats. Raises UserError for another shape than the data's, and for no numbers."""
    if tuple(images.shape[1:]) != data.image_shape:
        raise UserError(
            f"The images in {path} are {tuple(images.shape[1:])} (channels, height, width) and "
            f"those of data.name are {data.image_shape}; "
            "name the recipe of their dataset, or set data.size."
        )
    images = as_pixels(images).float()
    if not images.isfinite().all():
        raise UserError(
            f"{path} holds images with numbers that are not finite; get another file, their "
            "distillation diverged."
        )
    return images


def _space(path: Path, images: Tensor, pair: bool) -> Space:
    """What the program that writes such files puts there, as far as the values agree."""
    if pair and _are_pixels(images):
        return "pixel"
    if pair:
        log.say(
            f"warning: the values in {path} go from {float(images.min()):.3g} to "
            f"{float(images.max()):.3g}, which are no pixels in [0, 1], "
            "so they are taken as networks see them; --space pixel takes them as pixels"
        )
    return "model"


def _labels_file(path: Path, stored_labels: Any, labels: Path | None) -> Path | None:
    """The file of the labels: the one that was named, or labels_X.pt beside images_X.pt.

    None where they lie with the images, or nowhere. Raises UserError where they lie with the images
    and a file is named.
    """
    if stored_labels is None:
        return labels or beside(path, "labels")
    if labels is not None:
        raise UserError(
            f"{path} holds labels of its own, and --labels names others; leave --labels out."
        )
    return None


def learned_rate(rate: float, where: str) -> Tensor:
    """A learned rate as it is stored. Raises UserError for what is none."""
    if not 0 < rate < math.inf:
        raise UserError(
            f"{where} says a learning rate of {rate:g}, which must be positive and finite; give a "
            "usable one with --lr."
        )
    return torch.tensor(rate)


def pixel_codec(codec: Codec | None, data: Data) -> Codec:
    """What decodes imported pixels: the recipe's codec if it holds several images in one.

    Raises UserError where it cannot decode images of this shape.
    """
    if codec is None or codec.per_item == 1:
        return Pixels()
    # refuses a factor that does not go
    codec.pack(
        torch.zeros(codec.per_item, *data.image_shape), data.num_classes, data.train.preprocess
    )
    return codec


def _are_pixels(images: Tensor) -> bool:
    """Whether nearly all values lie where pixels do that were optimised without clamping."""
    inside = (images >= -PIXEL_MARGIN) & (images <= 1 + PIXEL_MARGIN)
    return float(inside.float().mean()) >= PIXEL_SHARE


def check_values(path: Path, images: Tensor, data: Data, space: Space) -> None:
    """Raise UserError where finite values are too large for images.

    Warns of values that hardly can be what they are taken for.
    """
    low = float(images.min()) + 0.0  # -0 becomes 0
    high = float(images.max()) + 0.0
    largest = max(-low, high)
    if space == "pixel":
        reach = 1.0
        limit = "pixels are at most 1"
    else:
        reach = _reach(data)
        limit = f"the training images reach {reach:.3g} as networks see them"
    if largest > REACH * reach:
        raise UserError(
            f"{path} holds values up to {largest:.3g}, which no image has: {limit}, and nothing "
            f"above {REACH * reach:.3g} is taken; "
            "get another file, its distillation diverged."
        )
    flat = images.flatten(1)
    if (flat.amax(1) == flat.amin(1)).all():
        same = "are the same within each image"
        if low == high:
            same = f"are all {low:g}"
        log.say(f"warning: the values in {path} {same}, so there is nothing in these images")
    elif low >= 0 and 32 < high <= 255:
        log.say(
            f"warning: the values in {path} go from {low:g} to {high:g}, as pixels of 8 bits do; "
            "divide such by 255, and say --space pixel"
        )


def _reach(data: Data) -> float:
    """The largest value of pixels as networks see them: black, white, some training images."""
    train = data.train
    black = torch.zeros(1, *data.image_shape, device=train.device)
    white = torch.ones(1, *data.image_shape, device=train.device)
    some = torch.arange(0, len(train), max(1, len(train) // 100))
    pixels = [train.preprocess.forward(black), train.preprocess.forward(white), train.images(some)]
    return float(torch.cat(pixels).abs().max())


# Content of files


def named_pair(content: Any) -> list[Any] | None:
    """[images, labels] of a dictionary that holds both under usual names; None of anything else."""
    if not isinstance(content, Mapping):
        return None
    images = [content[name] for name in IMAGES if name in content]
    labels = [content[name] for name in LABELS if name in content]
    pair = [*images, *labels]
    if len(images) != 1 or len(labels) != 1 or not all_are(pair, Tensor):
        return None
    if images[0].dim() != 4 or len(images[0]) != len(labels[0]):
        return None
    return pair


def is_pair(content: Any) -> bool:
    """Whether the content of a file is [images, labels], or a list of images for each class.

    IDC and others write their sets so.
    """
    if not isinstance(content, list | tuple) or len(content) < 2:
        return False
    if _are_images(content):
        shapes = {images.shape[1:] for images in content}
        if len(shapes) == 1:
            return True
    if len(content) != 2:
        return False
    images, labels = content
    return _joined(images, 4) is not None and _joined(labels, 2, 1) is not None


def _are_images(parts: Sequence[Any]) -> bool:
    """Whether all parts are tensors (S, C, H, W)."""
    return all(isinstance(part, Tensor) and part.dim() == 4 for part in parts)


def _joined(part: Any, *dims: int) -> Tensor | None:
    """A tensor of one of these numbers of dimensions; None of anything that is not one.

    A list of such tensors, one for each class, is joined, and so are a list of numbers, lists of
    single images and lists of single classes.
    """
    if isinstance(part, Tensor):
        return part if part.dim() in dims else None
    if not isinstance(part, list | tuple) or not part:
        return None
    if all(map(_is_number, part)):
        return torch.tensor(part) if 1 in dims else None
    inner_dims = {*dims, *(SINGLE[dim] for dim in dims if dim in SINGLE)}
    return _concatenated([_joined(value, *inner_dims) for value in part])


def _is_number(value: Any) -> bool:
    """Whether a value is a whole number, which in Python a truth value is too."""
    return isinstance(value, int) and not isinstance(value, bool)


def _concatenated(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of all tensors, of which single images and classes are rows; None of unlike ones."""
    rows: list[Tensor] = []
    kinds = set()
    for tensor in tensors:
        if tensor is None or not is_plain(tensor):
            return None
        if tensor.dim() in SINGLE.values():
            tensor = tensor[None]
        rows.append(tensor)
        kinds.add((tensor.dtype, tensor.shape[1:]))
    if len(kinds) > 1:
        return None
    return torch.cat(rows)


def _images(path: Path, content: Any, experiment: int | None) -> tuple[Tensor, Any, bool]:
    """(images (S, C, H, W), the labels that lie with them, whether they are a pair) of a file.

    Labels are None where none lie there; a pair is as IDC writes it.
    """
    has_experiments = isinstance(content, dict) and "data" in content
    if experiment is not None and not has_experiments:
        raise UserError(
            f"--experiment {experiment} chooses from a result of DC, DSA or DM, which {path} is "
            "not; leave --experiment out."
        )
    pair = is_pair(content)
    if pair:
        images, labels = _of_pair(content)
    elif has_experiments:
        images, labels = _of_experiment(path, content["data"], experiment)
    else:
        images, labels = content, None
    if not _can_be_images(images, pair):
        raise UserError(
            f"{path} holds {described(images)} and not images, which are a float tensor (S, "
            "channels, height, width); "
            "give an images_X.pt, a pair of images and labels, a result of DC, a folder of images, "
            "or replay_buffer files."
        )
    return images.detach(), labels, pair


def _can_be_images(value: Any, pair: bool) -> TypeGuard[Tensor]:
    """Whether a value is a tensor (S, C, H, W) of floats, or in a pair of bytes."""
    if not isinstance(value, Tensor) or not is_plain(value):
        return False
    if value.dim() != 4 or len(value) == 0:
        return False
    return value.is_floating_point() or (pair and value.dtype == torch.uint8)


def _of_pair(content: Any) -> tuple[Tensor | None, Tensor | None]:
    """(images, labels) of a pair, or of a list of images for each class."""
    if not _are_images(content):
        images, labels = content
        return _joined(images, 4), _joined(labels, 2, 1)
    counts = torch.tensor(list(map(len, content)))
    classes = torch.arange(len(content))
    return _joined(content, 4), classes.repeat_interleave(counts)


def _of_experiment(path: Path, pairs: Any, experiment: int | None) -> tuple[Tensor, Tensor]:
    """(images, labels) of one experiment of a result of DC, DSA or DM; None: of the last one."""
    if not isinstance(pairs, list | tuple) or not pairs:
        raise UserError(
            f"The data in {path} is {shape_of(pairs)} and not a list of experiments; get a "
            "result that DC, DSA or DM wrote."
        )
    number = experiment
    if number is None:
        number = len(pairs) - 1
    if not 0 <= number < len(pairs):
        raise UserError(
            f"--experiment {number} is not in {path}, which holds experiments 0 to "
            f"{len(pairs) - 1}; choose one of those."
        )
    pair = pairs[number]
    is_list = isinstance(pair, list | tuple) and len(pair) == 2
    if not is_list or not all_are(pair, Tensor):
        raise UserError(
            f"Experiment {number} in {path} is not a pair of images and labels, it is "
            f"{described(pair)}; get a result that DC, DSA or DM wrote."
        )
    return pair[0], pair[1]


def _targets(where: str, labels: Any, size: int, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """(classes (S,), logits (S, K) or None) from the labels of a file.

    Labels None: the classes in order, as many images each.
    """
    per_class, rest = divmod(size, num_classes)
    in_order = torch.arange(num_classes).repeat_interleave(per_class)
    if labels is None:
        if rest:
            raise UserError(
                f"{size} images {where} are not as many for each of {num_classes} classes; give "
                "their labels with --labels."
            )
        log.say(f"no labels {where}: the classes in order, {per_class} images each")
        return in_order, None
    _check_labels(where, labels, size, num_classes)
    logits = None
    if labels.is_floating_point():
        logits = _logits(where, labels.detach().float())
        # the published programs keep their images sorted by class, and a soft label need not be
        # right about its image
        classes = logits.argmax(1) if rest else in_order
    else:
        classes = labels.detach().long()
    if classes.min() < 0 or classes.max() >= num_classes:
        raise UserError(
            f"The labels {where} go from {int(classes.min())} to {int(classes.max())}, and "
            f"the classes from 0 to {num_classes - 1}; "
            "name the recipe of their dataset, or give other labels with --labels."
        )
    missing = sorted({*range(num_classes)} - {*classes.tolist()})
    if missing:
        raise UserError(
            f"The labels {where} leave class {missing[0]} of 0 to {num_classes - 1} without an "
            "image; give all labels with --labels."
        )
    return classes, logits


def _check_labels(where: str, labels: Any, size: int, num_classes: int) -> None:
    """Raise UserError for labels that are no tensor of numbers of the right shape."""
    if not is_plain(labels):
        raise UserError(
            f"The labels {where} are {shape_of(labels)} and not a tensor of numbers; give other "
            "labels with --labels."
        )
    kind, wanted = "one class", (size,)
    if labels.is_floating_point():
        kind, wanted = "one number for each class", (size, num_classes)
    if tuple(labels.shape) != wanted:
        raise UserError(
            f"The labels {where} have shape {tuple(labels.shape)}, and {size} images of "
            f"{num_classes} classes need {wanted}, {kind} an image; "
            "give the labels of these images with --labels."
        )


def _logits(where: str, labels: Tensor) -> Tensor:
    """Soft labels (S, K) as logits: of probabilities (TESLA) the logarithm, others as they are."""
    if not labels.isfinite().all():
        raise UserError(
            f"The labels {where} hold numbers that are not finite; give other labels with --labels."
        )
    ones = torch.ones(len(labels))
    if (labels >= 0).all() and torch.allclose(labels.sum(1), ones, atol=1e-3):
        return labels.clamp(min=SMALLEST_PROBABILITY).log()
    return labels.contiguous()


def _rate(path: Path, value: Any) -> float:
    """The learning rate in a file."""
    if isinstance(value, float):
        return value
    if not is_plain(value) or value.numel() != 1:
        raise UserError(
            f"{path} holds {described(value)} and not one learning rate; move it away, or give "
            "the rate with --lr."
        )
    return float(value.detach())


def provenance(paths: Sequence[Path], **options: Any) -> Json:
    """What says where something was imported from, in meta.json.

    Names and digests of the files, or folders of files, and the options that were set.
    """
    names: list[str] = []
    digests: dict[str, str] = {}
    for path in paths:
        name = path.resolve().name
        names.append(name)
        if path.is_dir():
            digests[name] = folder_sha256(path)
        else:
            digests[name] = sha256(path)
    content: Json = {"files": names, "sha256": digests}
    for name, value in options.items():
        if value is not None:
            content[name] = value
    return content


def folder_sha256(folder: Path) -> str:
    """The hexadecimal digest of the names and contents of all files below a folder.

    Hidden files, and files in hidden folders, do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = "/." in f"/{name}"
        if path.is_file() and not hidden:
            digest.update(f"{sha256(path)} {name}\n".encode())
    return digest.hexdigest()


def save_pt(path: Path, value: Any) -> None:
    """A file of torch.save.

    It is made in memory first: a full disk is then an error of writing like any other.
    """
    content = io.BytesIO()
    torch.save(value, content)
    with files.replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def export_set(syn: SyntheticSet, name: str, out: Path) -> list[Path]:
    """Write images_NAME.pt, labels_NAME.pt and, with a learned rate, lr_NAME.pt into `out`.

    Images are decoded and preprocessed, labels are classes (S,) or raw logits (S, K). Returns the
    files. Raises UserError when one of them exists.
    """
    if syn.targets.regressed:
        raise UserError(
            "The labels of this set are features, which the published programs have no file for; "
            "export a set with classes or logits."
        )
    with torch.no_grad():
        images, targets = syn.batch(torch.arange(len(syn)))
    contents = {"images": images, "labels": targets}
    if "lr" in syn.tensors:
        contents["lr"] = syn.tensors["lr"]
    paths = {kind: out / f"{kind}_{name}.pt" for kind in contents}
    files.refuse_existing(paths.values())
    files.make_folder(out)
    for kind, path in paths.items():
        save_pt(path, contents[kind].detach().cpu().clone())
    return list(paths.values())
