"""Parquet with a column of images, as Hugging Face `datasets` writes it, or any other program."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddengine.data.images import Decoder, Stored, Unreadable
from ddengine.data.listing import files_below
from ddengine.data.source import Part, Source
from ddengine.data.splits import (
    STAND_INS,
    TEST,
    TRAIN,
    composed,
    listed,
    sorted_classes,
    split_word,
    split_word_in,
)
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
# of columns of text
PATH_NAMES = (*IMAGE_NAMES, "file_name", "filename", "image_path", "file_path", "filepath", "path")
# in names of columns that are images of something else
NO_PICTURES = ("mask", "segmentation", "depth", "annotation")
LABEL_NAMES = (
    *(
        "label",
        "labels",
        "class",
        "classes",
        "category",
        "categories",
        "target",
        "targets",
        "species",
    ),
    *("fine_label", "fine_labels", "coarse_label", "coarse_labels"),
)
ASK_IMAGE, ASK_LABEL = "name it with data.image_column", "name it with data.label_column"


def files(root: Path) -> list[Path]:
    """All parquet files below a folder."""
    return sorted(
        Path(path)
        for path, regular in files_below(root)
        if regular and path.lower().endswith((".parquet", ".pq"))
    )


def split_of(path: Path, root: Path) -> str | None:
    """The word of a split that a file belongs to: its name, or the word before its number, or the
    nearest folder of such a name, or a word in those.

    None without any.
    """
    name, *folders = reversed(path.relative_to(root).with_suffix("").parts)
    numbered = re.fullmatch(r"(?:.*[-._ ])?([A-Za-z]+)[-._ ]?\d+(?:[-._ ]of[-._ ]\d+)?", name)
    found = [
        split_word(name),
        split_word(numbered[1]) if numbered else None,
        *map(split_word, folders),
        *map(split_word_in, (name, *folders)),
    ]
    return next(filter(None, found), None)


# Which columns


@dataclass(frozen=True)
class File:
    """A parquet file: its columns, and what Hugging Face's metadata says of them."""

    path: Path
    rows: int
    fields: dict[str, "pa.DataType"]
    features: dict[str, Any]


def _open(path: Path) -> File:
    """The head of a file.

    Raises UserError for one that is damaged, or whose metadata are not as Hugging Face writes them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        head = pq.read_metadata(path)
        schema = head.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    return File(
        path,
        head.num_rows,
        {field.name: field.type for field in schema},
        _features(path, schema.metadata or {}),
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({str(error).split('. ')[0]}); download it again.")


def _features(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The features of the columns, by name; empty where there are no metadata of Hugging Face."""
    if b"huggingface" not in metadata:
        return {}
    try:
        content = json.loads(metadata[b"huggingface"])
        info = content.get("info", {})
        features = {} if info is None else info.get("features")
        named = {
            column: feature
            for column, feature in (features if features is not None else {}).items()
            if isinstance(feature, dict)
        }
        lists = [feature["names"] for feature in named.values() if feature.get("names") is not None]
        if not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in lists
        ):
            raise ValueError("class names that are no list of texts")
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"The metadata of {path} are not as Hugging Face writes them ({error}); write the "
            "file again, with them or without."
        ) from None
    return named


def _is_kind(file: File, column: str, kind: str) -> bool:
    return file.features.get(column, {}).get("_type") == kind


def _by_name(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name comes first among `names`, in any case."""
    ranked = [column for name in names for column in columns if column.lower() == name]
    return ranked[0] if ranked else None


def image_column(file: File, asked: str | None) -> str:
    """The column of images: the one asked for; else by feature, by name, by type.

    Raises UserError where it cannot be told.
    """
    import pyarrow as pa

    def holds_bytes(kind: "pa.DataType") -> bool:
        inner = [child.name for child in kind] if pa.types.is_struct(kind) else []
        return "bytes" in inner or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_text(kind: "pa.DataType") -> bool:
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    if asked is not None:
        kind = file.fields[_there(file, asked, "data.image_column")]
        if not (holds_bytes(kind) or is_text(kind)):
            raise UserError(
                f"The column {asked!r} of {file.path}, which data.image_column names, has values "
                f"of type {kind}, and images are bytes."
            )
        return asked
    of_bytes = [column for column, kind in file.fields.items() if holds_bytes(kind)]
    declared = [column for column in of_bytes if _is_kind(file, column, "Image")]
    named = [
        column for column in declared if not any(word in column.lower() for word in NO_PICTURES)
    ]
    pool = declared if named else of_bytes
    pictures = [
        column for column in pool if not any(word in column.lower() for word in NO_PICTURES)
    ]
    if found := _by_name(pool, IMAGE_NAMES):
        return found
    if len(pictures or pool) == 1:
        return (pictures or pool)[0]
    if pool:
        raise UserError(
            f"{file.path} has the columns {listed(pool)}, and each could be the images; "
            f"{ASK_IMAGE}."
        )
    texts = [column for column, kind in file.fields.items() if is_text(kind)]
    if found := _by_name(texts, PATH_NAMES):
        return found
    raise UserError(
        f"{file.path} has the columns {listed(list(file.fields), 20)}, and none holds images "
        f"(bytes or paths of files); {ASK_IMAGE}."
    )


def label_column(file: File, asked: str | None, image: str) -> str:
    """The column of classes: the one asked for; else by feature, then by name.

    Raises UserError where it cannot be told.
    """
    if asked is not None:
        return _there(file, asked, "data.label_column")
    columns = [column for column in file.fields if column != image]
    declared = [column for column in columns if _is_kind(file, column, "ClassLabel")]
    found = (
        _by_name(declared, LABEL_NAMES)
        or (declared[0] if len(declared) == 1 else None)
        or _by_name(columns, LABEL_NAMES)
    )
    if found is None:
        others = listed(columns, 20) or "none"
        raise UserError(
            f"{file.path} has no column that is known to be the label (beside {image!r}: "
            f"{others}); {ASK_LABEL}, or call it label."
        )
    return found


def _there(file: File, column: str, flag: str) -> str:
    if column not in file.fields:
        raise UserError(
            f"{file.path} has no column {column!r}, which {flag} names; its columns are "
            f"{listed(list(file.fields), 20)}."
        )
    return column


# Which classes


@dataclass(frozen=True)
class Labels:
    """The labels of a file, as names of classes or, where nobody names them, as numbers."""

    file: File
    values: np.ndarray  # (N,) of str or int64
    names: tuple[str, ...] | None  # all classes that the file names, in its order

    @property
    def unlabelled(self) -> bool:
        """Whether there is no label at all: every value is missing or negative, as in test splits
        whose labels are kept back.
        """
        return len(self.values) == 0

    def named(self) -> np.ndarray:
        """(N,) names."""
        return _composed(self.values.astype(str))


def _composed(names: np.ndarray) -> np.ndarray:
    """Names (N,) with their accents in one form."""
    unique, inverse = np.unique(names, return_inverse=True)
    return np.array([composed(name) for name in unique.tolist()])[inverse]


def read_labels(file: File, column: str) -> Labels:
    """The labels of a file.

    Raises UserError for values that are no classes, or are missing of some images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = file.path
    try:
        stored = pq.read_table(path, columns=[column]).column(column)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    if pa.types.is_dictionary(stored.type):
        stored = stored.cast(stored.type.value_type)
    if len(stored) == stored.null_count:
        return Labels(file, np.empty(0, np.int64), None)
    if stored.null_count:
        raise UserError(
            f"{path} has rows without a label in {column!r}; give every image its class, or leave "
            "these rows out."
        )
    kind = stored.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        texts = np.array(stored.to_pylist()).astype(str)
        return Labels(file, texts if (texts != "").any() else np.empty(0, np.int64), None)
    values = stored.to_numpy() if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None
    if values is None or not np.isfinite(values).all() or (values != np.rint(values)).any():
        what = f"values of type {kind}" if values is None else "numbers that are not whole"
        raise UserError(
            f"The column {column!r} of {path} has {what}, and a class is a text or a whole "
            f"number; {ASK_LABEL}."
        )
    numbers = values.astype(np.int64)
    if (numbers < 0).all():
        return Labels(file, np.empty(0, np.int64), None)
    if numbers.min() < 0:
        raise UserError(
            f"{path} has negative labels beside others in {column!r}; give every image its class, "
            "or leave these rows out."
        )
    names = file.features.get(column, {}).get("names")
    if not names:
        return Labels(file, numbers, None)
    if len(set(map(composed, names))) < len(names):
        raise UserError(
            f"The metadata of {path} name a class twice in {column!r}; write the file again, with "
            "a name of its own for every class."
        )
    if numbers.max() >= len(names):
        raise UserError(
            f"{path} has label {numbers.max()}, and its metadata name {len(names)} classes, from "
            "0 on; correct the file."
        )
    return Labels(file, np.array(names)[numbers], tuple(map(composed, names)))


def classes_of(labels: Sequence[Labels]) -> tuple[str, ...]:
    """The names of all classes of the training files, in their order.

    As the files' metadata name them; else texts in the order of `sorted_classes`, and all numbers
    from the smallest to the largest. Raises UserError for numbers that cannot count classes.
    """
    if any(of.names for of in labels):
        return tuple(
            dict.fromkeys(
                name for of in labels for name in of.names or np.unique(of.named()).tolist()
            )
        )
    if any(of.values.dtype.kind == "U" for of in labels):
        return sorted_classes(np.unique(np.concatenate([of.named() for of in labels])).tolist())
    numbers = np.unique(np.concatenate([of.values for of in labels]))
    if numbers[-1] - numbers[0] >= 2 * len(numbers):
        raise UserError(
            f"The labels of {labels[0].file.path} go up to {numbers[-1]}, and only {len(numbers)} "
            "of these numbers occur, "
            "so they do not count classes; name another column with data.label_column, or store "
            "the classes as texts."
        )
    return tuple(map(str, range(numbers[0], numbers[-1] + 1)))


def _number(labels: Sequence[Labels], classes: tuple[str, ...]) -> np.ndarray:
    """(N,) int64: the number in `classes` of every label, matched by name.

    Raises UserError for a name that is not there.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    found = []
    for of in labels:
        names, inverse = np.unique(of.named(), return_inverse=True)
        if strange := [name for name in names.tolist() if name not in number_of]:
            raise UserError(
                f"{of.file.path} has the classes {listed(strange)}, which are not among those of "
                f"the training files ({listed(classes)}); "
                "give all files the same names."
            )
        found.append(np.array([number_of[name] for name in names.tolist()], np.int64)[inverse])
    return np.concatenate(found)


# Images


class Rows:
    """The rows of several files, numbered through: the image of each, and what it is called.

    Images are loaded when the first is asked for.
    """

    def __init__(self, files: Sequence[File], counts: Sequence[int], column: str, root: Path):
        """`counts`: rows of each file."""
        self.files, self.column, self.root = files, column, root
        self.firsts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        """Rows of all files."""
        return int(self.firsts[-1])

    def _at(self, i: int) -> tuple[int, int]:
        """(number of the file, row in it)."""
        file = int(np.searchsorted(self.firsts, i, side="right")) - 1
        return file, i - int(self.firsts[file])

    def called(self, i: int) -> str:
        """A row in a message."""
        file, row = self._at(i)
        return f"Row {row} of {self.files[file].path.name}"

    def named(self, i: int) -> str:
        """A row as a name below data.root."""
        file, row = self._at(i)
        return f"{self.files[file].path.relative_to(self.root).as_posix()} row {row}"

    def source(self, i: int) -> Stored:
        """The bytes of an image, or the file that holds it.

        Raises Unreadable where there is neither.
        """
        file, row = self._at(i)
        contents, paths = self._columns[file]
        if contents is not None and (content := contents[row].as_py()):
            return content
        path = None if paths is None else paths[row].as_py()
        found = _beside(self.files[file].path, self.root, path)
        if found is None:
            why = (
                f"no bytes are stored, and there is no file {path} beside "
                f"{self.files[file].path.name}"
                if path
                else "no bytes and no path are stored"
            )
            raise Unreadable(self.called(i), why)
        return found

    @cached_property
    def _columns(self) -> list[tuple[Any, Any]]:
        """(bytes, paths) of every file; None for what it does not have.

        Raises UserError for a file of paths that lead nowhere.
        """
        found = [_contents(file.path, self.column) for file in self.files]
        for file, (contents, paths) in zip(self.files, found, strict=True):
            no_bytes = contents is None or contents.null_count == len(contents)
            if no_bytes and (
                paths is None
                or not any(
                    _beside(file.path, self.root, path) for path in paths.slice(0, 10).to_pylist()
                )
            ):
                such_as = (
                    ""
                    if paths is None
                    else f", only paths such as {paths[0].as_py()}, which are not beside it"
                )
                raise UserError(
                    f"{file.path} stores no bytes of its images in {self.column!r}{such_as}; "
                    "put the image files there, or write the bytes into the file."
                )
        return found


def _contents(path: Path, column: str) -> tuple[Any, Any]:
    """(bytes, paths) of a column of images; None for what it does not have."""
    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.parquet as pq

    try:
        # chunked: combined, more than 2 GB of bytes would not fit pyarrow's offsets
        stored = pq.read_table(path, columns=[column]).column(column)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    if not pa.types.is_struct(stored.type):
        of_text = pa.types.is_string(stored.type) or pa.types.is_large_string(stored.type)
        return (None, stored) if of_text else (stored, None)
    inner = [child.name for child in stored.type]
    contents, paths = (
        compute.struct_field(stored, name) if name in inner else None  # type: ignore[attr-defined]
        for name in ("bytes", "path")
    )  # type: ignore[attr-defined]
    return contents, paths


def _beside(file: Path, root: Path, path: str | None) -> Path | None:
    """The file that a path in a parquet file names, beside it or below data.root: a dataset may
    name its own files and no others.
    """
    for folder in (file.parent, root):
        try:
            found = (folder / (path or "")).resolve()
            if path and found.is_relative_to(root.resolve()) and found.is_file():
                return found
        except (OSError, ValueError):  # a text that is no path
            return None
    return None


# All together


def _split(
    paths: Sequence[Path], config: DataConfig, like: File | None
) -> tuple[str, str, list[Labels]]:
    """(column of images, column of labels, labels of every file) of a split; its columns are those
    of `like`, or of its own first file.
    """
    opened = [file for file in map(_open, paths) if file.rows]
    if not opened:
        raise UserError(
            f"{paths[0]} has no rows; give every split images with labels, or move the file away."
        )
    like = like or opened[0]
    image = image_column(like, config.image_column)
    label = label_column(like, config.label_column, image)
    if config.label_column is None and not any(label in file.fields for file in opened):
        label = _own_label(opened[0], image) or label
    for file in opened:
        if image not in file.fields:
            raise UserError(
                f"{file.path} has no column {image!r}, which {like.path.name} has its images in; "
                "give all files the same columns."
            )
    return (
        image,
        label,
        [
            read_labels(file, label)
            if label in file.fields
            else Labels(file, np.empty(0, np.int64), None)
            for file in opened
        ],
    )


def _own_label(file: File, image: str) -> str | None:
    """The column of classes of a file that does not have that of the training files; None where it
    has none that is known.
    """
    try:
        return label_column(file, None, image)
    except UserError:
        return None


def _part(
    labels: Sequence[Labels], classes: tuple[str, ...], column: str, root: Path, decoder: Decoder
) -> Part:
    rows = Rows([of.file for of in labels], [len(of.values) for of in labels], column, root)
    return Part(
        _number(labels, classes), decoder.fetch_of(rows.source, rows.called, len(rows)), rows.named
    )


def _no_labels(labels: Sequence[Labels], label: str) -> bool:
    """Whether a split has no labels.

    Raises UserError where some of its files have and some have not.
    """
    bare = [of.file.path for of in labels if of.unlabelled]
    if bare and len(bare) < len(labels):
        raise UserError(
            f"{bare[0]} has no labels in {label!r}, and other files of the split have; give every "
            "image its class, or move the file away."
        )
    return bool(bare)


def by_split(found: Sequence[Path], root: Path) -> dict[str | None, list[Path]]:
    """Files by the word of their split; those without are under None."""
    words: dict[str | None, list[Path]] = {}
    for path in found:
        words.setdefault(split_of(path, root), []).append(path)
    return words


def training_files(by_word: Mapping[str | None, list[Path]]) -> tuple[list[Path], list[str]]:
    """(files of training images, what to say of it): those that a word calls so, else those without
    a word, else those of the only split.

    Raises UserError where there are several other splits.
    """
    trains = [word for word in TRAIN if word in by_word]
    bare = by_word.get(None, [])
    if trains:
        notes = (
            [
                f"not used: {listed([path.name for path in bare])}, which no word calls training "
                "or test images"
            ]
            if bare
            else []
        )
        return by_word[trains[0]], notes + [
            f"not used: {word}, beside {trains[0]}" for word in trains[1:]
        ]
    if bare:
        return bare, [
            f"{listed([path.name for path in bare])} without a word of a split: training images"
        ] if len(by_word) > 1 else []
    if len(by_word) == 1:
        ((word, only),) = by_word.items()
        return only, [f"there are {word} files only, which are taken for training images"]
    raise UserError(
        f"There are parquet files of {listed([str(word) for word in by_word])} and none of "
        "training images; "
        "add them, or name them so, such as train-00000.parquet."
    )


def read(config: DataConfig) -> Source:
    """The parquet files below data.root.

    The split is a word in a file's name (train-00000.parquet) or in that of the folder it lies in
    (train/0000.parquet); for files without either see `training_files`. Validation files stand in
    for test files where there are none with labels. Labels of all files are matched by name.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(
            f"data.name parquet needs data.root, a folder with parquet files; got {config.root}."
        )
    root = Path(config.root)
    found = files(root)
    if not found:
        raise UserError(f"{root} holds no parquet files; set data.root to the folder that does.")
    by_word = by_split(found, root)
    train_paths, notes = training_files(by_word)
    held_words = [
        word for word in (*TEST, *STAND_INS) if word in by_word and by_word[word] != train_paths
    ]
    image, label, train = _split(train_paths, config, None)
    if _no_labels(train, label):
        raise UserError(
            f"{train[0].file.path} has no labels in {label!r}, only missing or negative ones; "
            "give every training image its class."
        )
    classes = classes_of(train)
    if len(classes) < 2:
        raise UserError(
            f"{train[0].file.path} has {len(classes)} class in {label!r} and at least 2 are "
            f"needed; {ASK_LABEL}."
        )
    places = sorted(
        {
            path.parent.relative_to(root).as_posix()
            for path in train_paths
            if not split_word(path.parent.name)
        }
    )
    if len(places) > 1:
        notes.append(
            f"warning: training files of {len(places)} folders are taken together "
            f"({listed(places)}); set data.root to one of them otherwise"
        )
    notes += [f"columns: images from {image!r}, classes from {label!r}"]
    decoder = Decoder(config, notes, own=True)
    part = _part(train, classes, image, root, decoder)
    chosen, held = None, None
    for word in held_words:
        if chosen is not None:
            notes.append(f"not used: {word}, because {chosen} holds the test images")
            continue
        if not any(_open(path).rows for path in by_word[word]):
            notes.append(f"{word} is skipped: its files have no rows")
            continue
        *_, labels = _split(by_word[word], config, train[0].file)
        if _no_labels(labels, label):
            notes.append(f"{word} is skipped: its images have no labels")
            continue
        chosen, held = word, _part(labels, classes, image, root, decoder)
        if word in STAND_INS:
            notes.append(f"{word} stands in for the test split, which is missing")
    return Source(part, held, classes, notes=notes)
