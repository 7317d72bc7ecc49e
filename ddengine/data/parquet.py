"""Parquet with a column of images, as Hugging Face `datasets` writes it, or any other program."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddengine.data.images import stamp_of
from ddengine.data.listing import files_below
from ddengine.data.source import Source
from ddengine.data.splits import (
    STAND_INS,
    TEST,
    listed,
    split_word,
    split_word_in,
    training_word,
)
from ddengine.data.tables import ColumnPart, Table, file_below, source_of
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".pq")
# a word before the number of a file, as in train-00000-of-00002
NUMBERED = re.compile(r"(?:.*[-._ ])?([A-Za-z]+)[-._ ]?\d+(?:[-._ ]of[-._ ]\d+)?")


def files(root: Path) -> list[Path]:
    """All parquet files below a folder."""
    paths = []
    for path, regular in files_below(root):
        if regular and path.lower().endswith(SUFFIXES):
            paths.append(Path(path))
    return sorted(paths)


def split_of(path: Path, root: Path) -> str | None:
    """The word of a split that a file belongs to; None without any.

    It is its name, or the word before its number, or the nearest folder of such a name, or a word
    in those.
    """
    name, *folders = reversed(path.relative_to(root).with_suffix("").parts)
    exact = [name]
    numbered = NUMBERED.fullmatch(name)
    if numbered is not None:
        exact.append(numbered[1])
    for part in (*exact, *folders):
        word = split_word(part)
        if word is not None:
            return word
    for part in (name, *folders):
        word = split_word_in(part)
        if word is not None:
            return word
    return None


# A file


def _open(path: Path, root: Path) -> Table:
    """The head of a file below the folder `root`.

    Raises UserError for one that is damaged, or whose metadata are not as Hugging Face writes them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        head = pq.read_metadata(path)
        schema = head.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    return Table(
        name=str(path),
        short=path.name,
        place=path.relative_to(root).as_posix(),
        rows=head.num_rows,
        types={field.name: field.type for field in schema},
        features=_features(path, schema.metadata or {}),
        read=partial(_column, path),
        file_at=partial(file_below, root, (path.parent, root)),
        parts=partial(_parts, path),
        stamp=stamp_of(path, root),
    )


def _open_all(paths: Sequence[Path], root: Path) -> list[Table]:
    return [_open(path, root) for path in paths]


def _column(path: Path, column: str) -> "pa.ChunkedArray":
    """The values of a column. Raises UserError for a file that is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # chunked: combined, more than 2 GB of bytes would not fit pyarrow's offsets
        table = pq.read_table(path, columns=[column], page_checksum_verification=True)
        return table.column(column)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _parts(path: Path, column: str) -> list[ColumnPart]:
    """A column by the groups of rows that the file was written in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    head = pq.read_metadata(path)
    of_struct = pa.types.is_struct(head.schema.to_arrow_schema().field(column).type)
    paths = f"{column}.path" if of_struct else column
    parts = []
    for number in range(head.num_row_groups):
        rows = head.row_group(number).num_rows
        read = partial(_group, path, column, number)
        parts.append(ColumnPart(rows, partial(read, column), partial(read, paths)))
    return parts


def _group(path: Path, column: str, number: int, field: str) -> "pa.ChunkedArray":
    """The values of a column, or of a field in it, in a group of rows.

    Raises UserError for a file that is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read_row_group(number, columns=[field]).column(column)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({str(error).split('. ')[0]}); download it again.")


def _features(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The features of the columns, by name; empty where there are no metadata of Hugging Face.

    Raises UserError for metadata of another form.
    """
    if b"huggingface" not in metadata:
        return {}
    try:
        return _declared(json.loads(metadata[b"huggingface"]))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"The metadata of {path} are not as Hugging Face writes them ({error}); write the "
            "file again, with them or without."
        ) from None


def _declared(content: Any) -> dict[str, Any]:
    """The features in Hugging Face's metadata. Raises what their form gives rise to."""
    info = content.get("info", {})
    features = None if info is None else info.get("features")
    if features is None:
        return {}
    declared = {}
    for column, feature in features.items():
        if not isinstance(feature, dict):
            continue
        names = feature.get("names")
        if names is not None and not _are_texts(names):
            raise ValueError("class names that are no list of texts")
        declared[column] = feature
    return declared


def _are_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


# A folder


def by_split(paths: Sequence[Path], root: Path) -> dict[str | None, list[Path]]:
    """Files by the word of their split; those without are under None."""
    by_word: dict[str | None, list[Path]] = {}
    for path in paths:
        by_word.setdefault(split_of(path, root), []).append(path)
    return by_word


def training_files(by_word: Mapping[str | None, list[Path]]) -> tuple[list[Path], list[str]]:
    """The files of training images among those of `by_split`, and what to say of the choice.

    Raises UserError where there are several other splits.
    """
    names: dict[str | None, list[str]] = {}
    for word, paths in by_word.items():
        names[word] = [path.name for path in paths]
    try:
        word, notes = training_word(names, "files")
    except LookupError:
        raise UserError(
            f"There are parquet files of {listed(list(map(str, by_word)))} and none of "
            "training images; "
            "add them, or name them so, such as train-00000.parquet."
        ) from None
    return by_word[word], notes


def _said_of_folders(paths: Sequence[Path], root: Path) -> list[str]:
    """A warning where training files of several folders are taken together."""
    folders = set()
    for path in paths:
        if not split_word(path.parent.name):
            folders.add(path.parent.relative_to(root).as_posix())
    if len(folders) < 2:
        return []
    return [
        f"warning: training files of {len(folders)} folders are taken together "
        f"({listed(sorted(folders))}); set data.root to one of them otherwise"
    ]


def read(config: DataConfig) -> Source:
    """The parquet files below data.root.

    The split is a word in a file's name (train-00000.parquet) or in that of the folder it lies in
    (train/0000.parquet); for files without either see `training_word`. Validation files stand in
    for test files where there are none with labels. Labels of all files are matched by name.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(
            f"data.name parquet needs data.root, a folder with parquet files; got {config.root}."
        )
    root = Path(config.root)
    paths = files(root)
    if not paths:
        raise UserError(f"{root} holds no parquet files; set data.root to the folder that does.")
    by_word = by_split(paths, root)
    train, notes = training_files(by_word)
    held_out = []
    for word in (*TEST, *STAND_INS):
        if word in by_word and by_word[word] is not train:
            held_out.append((word, partial(_open_all, by_word[word], root)))
    notes += _said_of_folders(train, root)
    return source_of(_open_all(train, root), held_out, config, notes)
