"""Datasets of the Hugging Face Hub, and folders that are laid out like one.

They are read through the package `datasets`, which is only needed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddengine.data.source import Source
from ddengine.data.splits import (
    STAND_INS,
    TEST,
    WORDS,
    listed,
    split_word,
    split_word_in,
    training_word,
)
from ddengine.data.tables import ColumnPart, Table, file_below, source_of
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

if TYPE_CHECKING:
    import datasets

INSTALL = "pip install ddengine[hub]"


def _package() -> Any:
    """The package datasets, which takes seconds to import. Raises UserError where it is missing."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data.name hub needs the package datasets; {INSTALL}, or download the dataset's files "
            "and use data.name parquet or folder."
        ) from None
    return datasets


@contextmanager
def without_bars(package: Any) -> Iterator[None]:
    """No bars of the package datasets, which says "Generating train split" of what it copies.

    Those of downloads are another package's, and stay.
    """
    shown = not package.are_progress_bars_disabled()
    package.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            package.enable_progress_bars()


def _place(root: str) -> tuple[str, str | None]:
    """(name or path, configuration or None) of a data.root such as user/name:configuration."""
    name, colon, configuration = root.rpartition(":")
    if not colon or Path(root).is_dir():
        return root, None
    return name, configuration


def _loaded(root: str) -> "Mapping[str, datasets.Dataset]":
    """The splits of a dataset by name. Raises UserError where it cannot be had."""
    package = _package()
    name, configuration = _place(root)
    try:
        with without_bars(package):
            return package.load_dataset(name, configuration)
    except (OSError, ValueError, RuntimeError, package.exceptions.DatasetsError) as error:
        raise _refusal(root, error) from None


def _refusal(root: str, error: Exception) -> UserError:
    """What to say of an error of `datasets`, by what can be done about it."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectionError | FileNotFoundError):
        mend = (
            "correct data.root, or check the network, or log in with `hf auth login` where the "
            "dataset is private"
        )
    elif "onfig" in said:  # it has several, or not the one that was named; the error lists them
        mend = "name one of its configurations, as in user/name:configuration"
    else:
        mend = "download its files and use data.name parquet or folder"
    reason = said.partition(" Example of usage")[0].rstrip(".")
    return UserError(f"data.root {root} cannot be read as a dataset of the Hub ({reason}); {mend}.")


def _file_at(folders: Sequence[Path], path: str) -> Path | None:
    """The file that a path in a split names, below one of the folders that hold the dataset."""
    for folder in folders:
        file = file_below(folder, (folder,), path)
        if file is not None:
            return file
    return None


def _folders(root: str) -> list[Path]:
    """Where the image files of a dataset may lie.

    That is its own folder, or where the packages of the Hub keep what they download.
    """
    import huggingface_hub

    folder = Path(_place(root)[0])
    if folder.is_dir():
        return [folder]
    kept = _package().config
    caches = (kept.HF_CACHE_HOME, kept.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return [Path(cache) for cache in caches]


def _table(
    split: str,
    rows: "datasets.Dataset",
    root: str,
    folders: Sequence[Path],
) -> Table:
    """A split as a table; its columns stay where they are until they are asked for."""
    declared: Any = rows.features.to_dict()
    features = {}
    for column, feature in declared.items():
        if isinstance(feature, dict):
            features[column] = feature
    return Table(
        name=f"The split {split} of {root}",
        short=f"the split {split} of {root}",
        place=split,
        rows=rows.num_rows,
        types={field.name: field.type for field in rows.data.schema},
        features=features,
        read=rows.data.column,
        file_at=partial(_file_at, folders),
        parts=partial(_parts, rows),
        stamp=f"{split} {rows._fingerprint}",
    )


def _parts(rows: "datasets.Dataset", column: str) -> list[ColumnPart]:
    """A column in one part: its file is mapped, and no row is read before it is asked for."""
    read = partial(rows.data.column, column)
    return [ColumnPart(rows.num_rows, read, read)]


def by_word(splits: Sequence[str]) -> dict[str | None, list[str]]:
    """The names of splits by the word that each is named after; those without are under None.

    A name with more words, such as test_clean, counts where no split is named by the word alone.
    """
    groups: dict[str | None, list[str]] = {}
    for split in splits:
        word = split_word(split)
        if word is not None:
            groups.setdefault(word, []).append(split)
    exact = set(groups)
    for split in splits:
        if split_word(split) is not None:
            continue
        word = split_word_in(split)
        groups.setdefault(None if word in exact else word, []).append(split)
    return groups


def read(config: DataConfig) -> Source:
    """The dataset data.root: user/name, user/name:configuration, or a folder laid out like one.

    It is made of parquet files or of folders of images, with a README.md that may declare its
    features. Splits are told by their names, columns by their features and then by their names; the
    classes are those of the feature ClassLabel where there is one. The pixels are those that the
    readers of parquet files and folders give. The files are kept where `datasets` keeps them.

    Raises UserError where the package is missing, the dataset cannot be had, or splits, columns or
    classes cannot be told.
    """
    if config.root is None:
        raise UserError(
            "data.name hub needs data.root, a dataset of the Hub such as ylecun/mnist, or a folder "
            "that is laid out like one."
        )
    splits = _loaded(config.root)
    folders = _folders(config.root)
    tables = {}
    for split, rows in splits.items():
        tables[split] = _table(split, rows, config.root, folders)
    groups = by_word(list(tables))
    try:
        train_word, notes = training_word(groups, "images")
    except LookupError:
        raise UserError(
            f"{config.root} has the splits {listed(list(tables))} and none of training images; "
            f"give one of them such a name ({listed(WORDS[:3])}), or use data.name parquet on its "
            "files."
        ) from None
    for word, names in groups.items():
        if word is not None and len(names) > 1:
            notes.append(f"taken together as {word}: {listed(names)}")
    held_out = []
    for word in (*TEST, *STAND_INS):
        if word in groups and word != train_word:
            held_out.append((word, partial(_tables_of, groups[word], tables)))
    return source_of(_tables_of(groups[train_word], tables), held_out, config, notes)


def _tables_of(splits: Sequence[str], tables: Mapping[str, Table]) -> list[Table]:
    return [tables[split] for split in splits]
