"""Tables of images and their classes: which column is which, and which classes there are.

This is what the readers of parquet files and of datasets of the Hub have in common.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ddengine.data.decoder import Decoder, Files
from ddengine.data.images import Stored, Unreadable, stamp_of
from ddengine.data.source import Part, Source
from ddengine.data.splits import STAND_INS, composed, listed, sorted_classes
from ddengine.recipe import DataConfig
from ddengine.system import files
from ddengine.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
# of columns of text
PATH_NAMES = (*IMAGE_NAMES, "file_name", "filename", "image_path", "file_path", "filepath", "path")
# in names of columns that are images of something else
NO_PICTURES = ("mask", "segmentation", "depth", "annotation")
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "category",
    "categories",
    "target",
    "targets",
    "species",
    "fine_label",
    "fine_labels",
    "coarse_label",
    "coarse_labels",
)
T = TypeVar("T")  # what is read of a part of a table

ASK_IMAGE = "name it with data.image_column"
ASK_LABEL = "name it with data.label_column"
KEPT = 2**28  # bytes of images that were read last and are kept, or one part of a table
LOOKED_AT = 10  # rows whose paths tell whether the paths of a table lead anywhere


@dataclass(frozen=True)
class ColumnPart:
    """Some rows of a column, one after another."""

    rows: int
    read: Callable[[], "pa.ChunkedArray"]
    # of a column of structs as `read`, or only their field "path" where it is stored apart
    read_paths: Callable[[], "pa.ChunkedArray"]


@dataclass(frozen=True)
class Table:
    """A parquet file, or a split of a dataset of the Hub."""

    name: str  # in messages
    short: str  # the same in fewer words
    place: str  # what its rows are called after in splits.json
    rows: int
    types: Mapping[str, "pa.DataType"]  # of the columns
    # what Hugging Face's metadata say of the columns; empty where there are none
    features: Mapping[str, Mapping[str, Any]]
    read: Callable[[str], "pa.ChunkedArray"]  # gives the values of a column
    # gives parts of a column, in order, that are read when they are asked for
    parts: Callable[[str], Sequence[ColumnPart]]
    stamp: str  # tells it from any other table, and from itself before it was changed
    # gives the file that a path in a row names; None where there is none that is the dataset's
    file_at: Callable[[str], Path | None]

    def declares(self, column: str, kind: str) -> bool:
        """Whether the metadata call a column a feature of this kind, such as Image."""
        return self.features.get(column, {}).get("_type") == kind

    def columns_of(self, fits: Callable[["pa.DataType"], bool]) -> list[str]:
        """The columns whose types fit."""
        return [column for column, kind in self.types.items() if fits(kind)]


# Which columns


def holds_bytes(kind: "pa.DataType") -> bool:
    """Whether a column of this type can hold the bytes of images."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_text(kind: "pa.DataType") -> bool:
    """Whether a column of this type holds texts."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _by_name(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name comes first among `names`, in any case; None without one."""
    for name in names:
        for column in columns:
            if column.lower() == name:
                return column
    return None


def _is_picture(column: str) -> bool:
    """Whether a column of images is not named after a mask and its kin."""
    name = column.lower()
    for word in NO_PICTURES:
        if word in name:
            return False
    return True


def _check_there(
    table: Table,
    column: str,
    flag: str,
) -> None:
    """Raise UserError unless the table has the column that a flag names."""
    if column not in table.types:
        raise UserError(
            f"{table.name} has no column {column!r}, which {flag} names; its columns are "
            f"{listed(list(table.types), 20)}."
        )


def image_column(table: Table, asked: str | None) -> str:
    """The column of images: the one asked for; else by feature, by name, by type.

    Raises UserError where it cannot be told.
    """
    if asked is not None:
        _check_there(table, asked, "data.image_column")
        kind = table.types[asked]
        if not (holds_bytes(kind) or is_text(kind)):
            raise UserError(
                f"The column {asked!r} of {table.name}, which data.image_column names, has values "
                f"of type {kind}, and images are bytes."
            )
        return asked
    of_bytes = table.columns_of(holds_bytes)
    declared = [column for column in of_bytes if table.declares(column, "Image")]
    candidates = declared if any(map(_is_picture, declared)) else of_bytes
    named = _by_name(candidates, IMAGE_NAMES)
    if named is not None:
        return named
    likely = list(filter(_is_picture, candidates)) or candidates
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise UserError(
            f"{table.name} has the columns {listed(candidates)}, and each could be the images; "
            f"{ASK_IMAGE}."
        )
    return _path_column(table)


def _path_column(table: Table) -> str:
    """The column of paths to images, which has a known name. Raises UserError without one."""
    named = _by_name(table.columns_of(is_text), PATH_NAMES)
    if named is None:
        raise UserError(
            f"{table.name} has the columns {listed(list(table.types), 20)}, and none holds images "
            f"(bytes or paths of files); {ASK_IMAGE}."
        )
    return named


def label_column(
    table: Table,
    asked: str | None,
    image: str,
) -> str:
    """The column of classes: the one asked for; else by feature, then by name.

    Raises UserError where it cannot be told.
    """
    if asked is not None:
        _check_there(table, asked, "data.label_column")
        return asked
    column = _likely_labels(table, image)
    if column is None:
        others = list(table.types)
        others.remove(image)
        raise UserError(
            f"{table.name} has no column that is known to be the label (beside {image!r}: "
            f"{listed(others, 20) or 'none'}); {ASK_LABEL}, or call it label."
        )
    return column


def _likely_labels(table: Table, image: str) -> str | None:
    """The column of classes by feature, then by name; None where it cannot be told."""
    others = []
    declared = []
    for column in table.types:
        if column == image:
            continue
        others.append(column)
        if table.declares(column, "ClassLabel"):
            declared.append(column)
    named = _by_name(declared, LABEL_NAMES)
    if named is None and len(declared) == 1:
        return declared[0]
    return named or _by_name(others, LABEL_NAMES)


# Which classes


@dataclass(frozen=True)
class Labels:
    """The labels of a table, as names of classes or, where nobody names them, as numbers."""

    table: Table
    values: np.ndarray  # (N,) of str or int64
    names: tuple[str, ...] | None = None  # all classes that the table names, in its order

    @property
    def unlabelled(self) -> bool:
        """Whether no image has a label.

        In test splits whose labels are kept back every value is missing or negative.
        """
        return len(self.values) == 0

    def named(self) -> np.ndarray:
        """The names of the classes (N,), with their accents in one form."""
        unique, inverse = np.unique(self.values.astype(str), return_inverse=True)
        return np.array(list(map(composed, unique.tolist())))[inverse]


def _no_labels(table: Table) -> Labels:
    return Labels(table, np.empty(0, np.int64))


def read_labels(table: Table, column: str) -> Labels:
    """The labels of a table.

    Raises UserError for values that are no classes, or are missing of some images.
    """
    import pyarrow as pa

    if column not in table.types:
        return _no_labels(table)
    stored = table.read(column)
    if pa.types.is_dictionary(stored.type):
        stored = stored.cast(stored.type.value_type)
    if len(stored) == stored.null_count:
        return _no_labels(table)
    if stored.null_count:
        raise UserError(
            f"{table.name} has rows without a label in {column!r}; give every image its class, or "
            "leave these rows out."
        )
    if is_text(stored.type) or pa.types.is_boolean(stored.type):
        texts = np.array(stored.to_pylist()).astype(str)
        return Labels(table, texts) if (texts != "").any() else _no_labels(table)
    numbers = _whole_numbers(table, column, stored)
    if (numbers < 0).all():
        return _no_labels(table)
    if numbers.min() < 0:
        raise UserError(
            f"{table.name} has negative labels beside others in {column!r}; give every image its "
            "class, or leave these rows out."
        )
    return _named_by_metadata(table, column, numbers)


def _whole_numbers(
    table: Table,
    column: str,
    stored: "pa.ChunkedArray",
) -> np.ndarray:
    """Numbers (N,) int64. Raises UserError for values that are no whole numbers."""
    import pyarrow as pa

    what = f"values of type {stored.type}"
    if pa.types.is_integer(stored.type) or pa.types.is_floating(stored.type):
        values = stored.to_numpy()
        if np.isfinite(values).all() and (values == np.rint(values)).all():
            return values.astype(np.int64)
        what = "numbers that are not whole"
    raise UserError(
        f"The column {column!r} of {table.name} has {what}, and a class is a text or a whole "
        f"number; {ASK_LABEL}."
    )


def _named_by_metadata(
    table: Table,
    column: str,
    numbers: np.ndarray,
) -> Labels:
    """Labels with the names that the metadata give to numbers (N,), where there are any.

    Raises UserError for names that do not fit.
    """
    names = table.features.get(column, {}).get("names")
    if not names:
        return Labels(table, numbers)
    if len(set(map(composed, names))) < len(names):
        raise UserError(
            f"The metadata of {table.name} name a class twice in {column!r}; write the file again, "
            "with a name of its own for every class."
        )
    if numbers.max() >= len(names):
        raise UserError(
            f"{table.name} has label {numbers.max()}, and its metadata name {len(names)} classes, "
            "from 0 on; correct the file."
        )
    return Labels(table, np.array(names)[numbers], tuple(map(composed, names)))


def classes_of(labels: Sequence[Labels]) -> tuple[str, ...]:
    """The names of all classes of the training tables, in their order.

    As the metadata name them; else texts in the order of `sorted_classes`, and all numbers from the
    smallest to the largest. Raises UserError for numbers that cannot count classes.
    """
    if any(part.names for part in labels):
        ordered: dict[str, None] = {}
        for part in labels:
            names = part.names or np.unique(part.named()).tolist()
            ordered |= dict.fromkeys(names)
        return tuple(ordered)
    if any(part.values.dtype.kind == "U" for part in labels):
        texts = np.concatenate(list(map(Labels.named, labels)))
        return sorted_classes(np.unique(texts).tolist())
    numbers = np.unique(np.concatenate([part.values for part in labels]))
    first = numbers[0]
    last = numbers[-1]
    if last - first >= 2 * len(numbers):
        raise UserError(
            f"The labels of {labels[0].table.name} go up to {last}, and only {len(numbers)} "
            "of these numbers occur, "
            "so they do not count classes; name another column with data.label_column, or store "
            "the classes as texts."
        )
    return tuple(map(str, range(first, last + 1)))


def _numbered(labels: Sequence[Labels], classes: tuple[str, ...]) -> np.ndarray:
    """(N,) int64: the number in `classes` of every label, matched by name.

    Raises UserError for a name that is not among them.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    parts = []
    for part in labels:
        names, inverse = np.unique(part.named(), return_inverse=True)
        numbers = []
        strange = []
        for name in names.tolist():
            if name not in number_of:
                strange.append(name)
            numbers.append(number_of.get(name, -1))
        if strange:
            raise UserError(
                f"{part.table.name} has the classes {listed(strange)}, which are not among those "
                f"of the training files ({listed(classes)}); "
                "give all files the same names."
            )
        parts.append(np.array(numbers, np.int64)[inverse])
    return np.concatenate(parts)


# Images


class _Part:
    """The images of some rows of a table."""

    def __init__(self, table: Table, column: str, stored: "pa.ChunkedArray"):
        """Raises UserError for paths that lead nowhere."""
        self.table = table
        self.column = column
        self.contents, self.paths = _contents(stored)
        if self.contents is None or self.contents.null_count == len(self.contents):
            self._check_paths()

    def content(self, row: int) -> bytes | None:
        """The bytes of an image; None where there are none."""
        return None if self.contents is None else self.contents[row].as_py() or None

    def path(self, row: int) -> str | None:
        """The path of an image; None where there is none."""
        return None if self.paths is None else self.paths[row].as_py() or None

    def _check_paths(self) -> None:
        """Raise UserError unless one of the first paths leads to a file."""
        such_as = ""
        if self.paths is not None:
            for path in self.paths.slice(0, LOOKED_AT).to_pylist():
                if path and self.table.file_at(path) is not None:
                    return
            such_as = f", only paths such as {self.paths[0].as_py()}, which are not beside it"
        raise UserError(
            f"{self.table.name} stores no bytes of its images in {self.column!r}{such_as}; "
            "put the image files there, or write the bytes into the file."
        )


class _Kept(Generic[T]):
    """What was read last of parts of tables, by their number, up to KEPT bytes.

    Called from several threads.
    """

    def __init__(self, read: Callable[[int], tuple[T, int]]):
        """`read` gives what a part is and its bytes."""
        self._read = read
        self._kept: OrderedDict[int, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def part(self, number: int) -> T:
        """A part, which is read where it is not kept."""
        with self._lock:
            kept = self._kept.pop(number, None) or self._read(number)
            self._kept[number] = kept
            while len(self._kept) > 1 and self._bytes() > KEPT:
                self._kept.popitem(last=False)
        return kept[0]

    def _bytes(self) -> int:
        return sum(size for _, size in self._kept.values())


class Rows:
    """The rows of several tables, numbered through: the image of each, and what it is called.

    Images are loaded when they are asked for, a part of a table at a time, and the parts that were
    asked for last are kept, up to KEPT bytes. Called from several threads.
    """

    def __init__(self, tables: Sequence[Table], column: str):
        """`column`: that of the images, which all tables have."""
        self.tables = tables
        self.column = column
        self.firsts = np.cumsum([0, *(table.rows for table in tables)])
        self._images = _Kept(self._read)
        self._paths = _Kept(self._read_paths)

    def __len__(self) -> int:
        """Rows of all tables."""
        return int(self.firsts[-1])

    def _at(self, i: int) -> tuple[int, int]:
        """(number of the table, row in it)."""
        number = int(np.searchsorted(self.firsts, i, side="right")) - 1
        return number, i - int(self.firsts[number])

    def called(self, i: int) -> str:
        """A row in a message."""
        number, row = self._at(i)
        return f"Row {row} of {self.tables[number].short}"

    def named(self, i: int) -> str:
        """A row as splits.json names it."""
        number, row = self._at(i)
        return f"{self.tables[number].place} row {row}"

    def stamp(self, i: int) -> str:
        """See `Files`: of the table and the row, and of the file that the row names.

        No bytes of images are read for it: the table's stamp stands for those that it stores.
        """
        number, row = self._at(i)
        table = self.tables[number]
        said = f"{table.stamp} {row}"
        if not _names_files(table.types[self.column]):
            return said
        part, row_of_part = self._part_of(i)
        path = self._paths.part(part)[row_of_part].as_py()
        file = table.file_at(path) if path else None
        return said if file is None else f"{said} {stamp_of(file, file.parent)}"

    def source(self, i: int) -> Stored:
        """The bytes of an image, or the file that holds it.

        Raises Unreadable where there is neither.
        """
        number, row = self._part_of(i)
        part = self._images.part(number)
        content = part.content(row)
        if content is not None:
            return content
        path = part.path(row)
        if path is None:
            raise Unreadable(self.called(i), "no bytes and no path are stored")
        file = part.table.file_at(path)
        if file is None:
            raise Unreadable(
                self.called(i),
                f"no bytes are stored, and there is no file {path} beside {part.table.short}",
            )
        return file

    def _part_of(self, i: int) -> tuple[int, int]:
        """(number of the part of a table that holds row i, row in it)."""
        number = int(np.searchsorted(self._firsts_of_parts, i, side="right")) - 1
        return number, i - int(self._firsts_of_parts[number])

    def _read(self, number: int) -> tuple[_Part, int]:
        """The images of a part, and their bytes."""
        table, part = self._parts[number]
        stored = part.read()
        return _Part(table, self.column, stored), stored.nbytes

    def _read_paths(self, number: int) -> tuple[Any, int]:
        """The paths of a part whose rows name files, and their bytes."""
        _, paths = _contents(self._parts[number][1].read_paths())
        return paths, paths.nbytes

    @cached_property
    def _parts(self) -> list[tuple[Table, ColumnPart]]:
        """The parts of all tables that have rows."""
        parts = []
        for table in self.tables:
            for part in table.parts(self.column):
                if part.rows:
                    parts.append((table, part))
        return parts

    @cached_property
    def _firsts_of_parts(self) -> np.ndarray:
        """The first row of each part, and their number."""
        return np.cumsum([0, *(part.rows for _, part in self._parts)])


def _names_files(kind: "pa.DataType") -> bool:
    """Whether images in a column of this type can be files that it names."""
    import pyarrow as pa

    return is_text(kind) or (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _contents(stored: "pa.ChunkedArray") -> tuple[Any, Any]:
    """(bytes, paths) of a column of images; None for what it does not have."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if is_text(stored.type):
        return None, stored
    if not pa.types.is_struct(stored.type):
        return stored, None
    columns = []
    for name in ("bytes", "path"):
        stands = stored.type.get_field_index(name) >= 0
        columns.append(compute.struct_field(stored, name) if stands else None)  # type: ignore[attr-defined]
    return columns[0], columns[1]


def file_below(
    root: Path,
    folders: Iterable[Path],
    path: str,
) -> Path | None:
    """The file that a path in a table names, in one of the folders; None where it names none.

    It must lie below `root`: a dataset may name its own files and no others.
    """
    for folder in folders:
        try:
            file = files.without_links(folder / path)
            if file.is_relative_to(files.without_links(root)) and file.is_file():
                return file
        except (OSError, ValueError):  # a text that is no path
            return None
    return None


# All together


@dataclass(frozen=True)
class _Split:
    """The tables of a split that have rows, with their columns and labels."""

    image: str
    label: str
    labels: list[Labels]

    @property
    def unlabelled(self) -> bool:
        """Whether no image has a label.

        In test splits whose labels are kept back every value is missing or negative.
        """
        bare = [part.table for part in self.labels if part.unlabelled]
        if bare and len(bare) < len(self.labels):
            raise UserError(
                f"{bare[0].name} has no labels in {self.label!r}, and other files of the split "
                "have; give every image its class, or move the file away."
            )
        return bool(bare)

    def part(self, classes: tuple[str, ...], decoder: Decoder) -> Part:
        """Its images and the numbers of their classes."""
        rows = Rows([part.table for part in self.labels], self.image)
        files = Files(rows.source, rows.called, len(rows), rows.stamp)
        undecoded = decoder.undecoded(files)
        return Part(_numbered(self.labels, classes), undecoded.fetch, rows.named, undecoded)


def _split(
    tables: Sequence[Table],
    config: DataConfig,
    like: Table | None,
) -> _Split:
    """A split, whose columns are those of `like`, or of its own first table."""
    filled = []
    for table in tables:
        if table.rows:
            filled.append(table)
    if not filled:
        raise UserError(
            f"{tables[0].name} has no rows; give every split images with labels, or move the file "
            "away."
        )
    like = like or filled[0]
    image = image_column(like, config.image_column)
    label = label_column(like, config.label_column, image)
    if config.label_column is None:
        label = _label_of_split(filled, image, label)
    for table in filled:
        if image not in table.types:
            raise UserError(
                f"{table.name} has no column {image!r}, which {like.short} has its images in; "
                "give all files the same columns."
            )
    return _Split(image, label, [read_labels(table, label) for table in filled])


def _label_of_split(tables: Sequence[Table], image: str, label: str) -> str:
    """The column of classes in tables of a split, which may not be that of the training tables.

    It is `label` if one of them has it, else what the first one has of such a name.
    """
    for table in tables:
        if label in table.types:
            return label
    return _likely_labels(tables[0], image) or label


def source_of(
    train: Sequence[Table],
    held_out: Sequence[tuple[str, Callable[[], Sequence[Table]]]],
    config: DataConfig,
    notes: list[str],
) -> Source:
    """The dataset of tables of training images and of tables that may hold test images.

    Args:
        train: the tables of the training images.
        held_out: (word of the split, what opens its tables), the best test split first. The first
            one with labels is taken.
        config: which columns were asked for, and how images become pixels.
        notes: what was said so far; what is decided here is added.

    Raises:
        UserError: training images without labels or of one class, columns that cannot be told,
            labels that do not fit.
    """
    split = _split(train, config, None)
    first = split.labels[0].table
    if split.unlabelled:
        raise UserError(
            f"{first.name} has no labels in {split.label!r}, only missing or negative ones; "
            "give every training image its class."
        )
    classes = classes_of(split.labels)
    if len(classes) < 2:
        raise UserError(
            f"{first.name} has {len(classes)} class in {split.label!r} and at least 2 are "
            f"needed; {ASK_LABEL}."
        )
    notes.append(f"columns: images from {split.image!r}, classes from {split.label!r}")
    decoder = Decoder(config, notes, published=False)
    part = split.part(classes, decoder)
    test, test_notes = _test_split(held_out, config, first)
    # the notes come after what matching the classes may raise, so that nothing is said in vain
    held = None if test is None else test.part(classes, decoder)
    notes += test_notes
    return Source(part, held, classes, notes=notes)


def _test_split(
    held_out: Sequence[tuple[str, Callable[[], Sequence[Table]]]],
    config: DataConfig,
    like: Table,
) -> tuple[_Split | None, list[str]]:
    """(the first split with labels, what to say of all)."""
    notes: list[str] = []
    chosen: tuple[str, _Split] | None = None
    for word, opened in held_out:
        if chosen is not None:
            notes.append(f"not used: {word}, because {chosen[0]} holds the test images")
            continue
        tables = opened()
        if not any(table.rows for table in tables):
            notes.append(f"{word} is skipped: its files have no rows")
            continue
        split = _split(tables, config, like)
        if split.unlabelled:
            notes.append(f"{word} is skipped: its images have no labels")
            continue
        chosen = (word, split)
        if word in STAND_INS:
            notes.append(f"{word} stands in for the test split, which is missing")
    return (None if chosen is None else chosen[1]), notes
