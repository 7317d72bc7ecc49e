"""Parquet with an `Image` column, as Hugging Face `datasets` writes it."""

import json
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from ddengine.data.images import decoder, open_image
from ddengine.data.source import Part, Source
from ddengine.errors import UserError
from ddengine.recipe import DataConfig

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
SPLITS = ("train", "test", "validation", "valid", "val")  # words that files and folders are named after; the later ones stand in for test


def files(root: Path) -> list[Path]:
    """All parquet files below a folder."""
    return sorted(root.rglob("*.parquet"))


def _read_table(paths: list[Path]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, path = [], paths[0]
    try:
        for path in paths:
            tables.append(pq.read_table(path))
        return pa.concat_tables(tables)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).split('. ')[0]}); download it again.") from None


def _columns(table, path: Path) -> tuple[str, str]:
    import pyarrow as pa

    fields = list(table.schema)
    image = next((f.name for f in fields if pa.types.is_struct(f.type) and any(c.name == "bytes" for c in f.type)), None)
    image = image or next((f.name for f in fields if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)), None)
    integers = [f.name for f in fields if pa.types.is_integer(f.type)]
    label = next((name for name in LABEL_COLUMNS if name in integers), integers[0] if integers else None)
    if image is None or label is None:
        raise UserError(f"{path} has the columns {', '.join(table.column_names)}; an image column (struct of bytes) and an integer label are needed.")
    return image, label


Rows = list[tuple[Callable[[], bytes], str]]  # what reads a row's image, and what the row is called


def _part(paths: list[Path], size: tuple[int, int] | None, every: list[Callable[[], Rows]]) -> tuple[Part, tuple[str, ...] | None]:
    """One split and the names of its classes; what lists its rows is added to `every`, that of the whole dataset, of which an error may speak."""
    import pyarrow as pa
    import pyarrow.compute as compute

    table = _read_table(paths)
    image, label = _columns(table, paths[0])
    column = table.column(image)  # chunked: combined, more than 2 GB of bytes would not fit pyarrow's offsets
    content = compute.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column  # type: ignore[attr-defined]
    if table.column(label).null_count:
        raise UserError(f"{paths[0]} has rows without a label; images with labels from 0 up are needed.")
    labels = table.column(label).to_numpy().astype(np.int64)
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{paths[0]} has {'no rows' if len(labels) == 0 else 'negative labels'}; images with labels from 0 up are needed.")
    names = None
    meta = (table.schema.metadata or {}).get(b"huggingface")
    if meta:
        features = json.loads(meta).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names")

    def where(i: int) -> str:
        return f"Row {i} of {paths[0].name}"

    def read(i: int) -> bytes:
        return content[i].as_py() or b""

    every.append(lambda: [(partial(read, i), where(i)) for i in range(len(labels))])
    fetch = decoder(
        lambda i: open_image(read(i), where(i), upright=True),
        where,
        size,
        lambda: list(chain.from_iterable(rows() for rows in every)),  # type: ignore[arg-type]
    )
    return Part(labels, fetch), tuple(names) if names else None


def read(config: DataConfig) -> Source:
    """The parquet files below data.root.

    The split is the first word of a file's name (train-00000.parquet) or of the folder it lies in (train/0000.parquet); without either it is
    train. Validation files stand in for test files where there are none.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(f"data.name parquet needs data.root, a folder with parquet files; got {config.root}.")
    root = Path(config.root)
    found = files(root)
    if not found:
        raise UserError(f"{root} holds no parquet files; set data.root to the folder that does.")

    def split_of(path: Path) -> str:
        words = [part.split("-")[0].split(".")[0].lower() for part in reversed(path.relative_to(root).parts)]
        return next((word for word in words if word in SPLITS), "train")

    by_split = {split: [p for p in found if split_of(p) == split] for split in SPLITS}
    every: list[Callable[[], Rows]] = []
    train, names = _part(by_split["train"] or found, config.size, every)
    rest = next((by_split[split] for split in SPLITS[1:] if by_split[split]), [])
    test = _part(rest, config.size, every)[0] if rest and by_split["train"] else None
    return Source(train, test, names or tuple(str(c) for c in range(int(train.labels.max()) + 1)))
