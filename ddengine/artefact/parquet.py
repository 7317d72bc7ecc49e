"""The decoded examples of a set as a parquet file that the `datasets` library reads."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddengine.artefact.eight_bit import Exported, example_name, example_targets
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Json

PARQUET = "train-00000-of-00001.parquet"


def unique_names(names: Sequence[str]) -> list[str]:
    """Class names as ClassLabel wants them: none twice.

    A later one of the same name gets its number.
    """
    seen: set[str] = set()
    unique = []
    for i, name in enumerate(names):
        while name in seen:
            name = f"{name} ({i})"
        seen.add(name)
        unique.append(name)
    return unique


def example_names(num: int) -> list[str]:
    """The names of the image files of `num` examples."""
    return [f"{example_name(i, num)}.png" for i in range(num)]


def write_parquet(path: Path, syn: SyntheticSet, export: Exported) -> None:
    """Write the decoded examples as a table that the `datasets` library reads with its features.

    Columns: `image` (struct of PNG bytes and a file name), `label` int64 and, with soft labels,
    `logits` list<float32> (K), or with features `features` list<float32> (D).
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    features: Json = {
        "image": {"_type": "Image"},
        "label": {"names": unique_names(syn.class_names), "_type": "ClassLabel"},
    }
    contents = pa.array(export.pngs, pa.binary())
    names = pa.array(example_names(len(export.pngs)), pa.string())
    columns: dict[str, pa.Array] = {
        "image": pa.StructArray.from_arrays([contents, names], ["bytes", "path"]),
        "label": pa.array(export.classes, pa.int64()),
    }
    targets, name = example_targets(syn), syn.targets.column
    if targets is not None and name is not None:
        offsets = pa.array(np.arange(len(targets) + 1, dtype=np.int32) * targets.shape[1])
        values = pa.array(targets.flatten().numpy(), pa.float32())
        columns[name] = pa.ListArray.from_arrays(offsets, values)
        # versions of `datasets` below 4 know no List, and later ones read Sequence as one
        features[name] = {
            "feature": {"dtype": "float32", "_type": "Value"},
            "_type": "Sequence",
        }
    info = json.dumps({"info": {"features": features}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": info})
    # a checksum of every page, which readers may compare (`page_checksum_verification`)
    pq.write_table(table, path, compression="zstd", row_group_size=1000, write_page_checksum=True)
