"""A distilled set for those who have no engine: parquet and a dataset card beside its tensors,
WebDataset shards, folders of images.

All of these hold pixels of 8 bits. The exact tensors are in data.safetensors; the card says how far
the two are apart.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddengine.evaluation import tables
from ddengine.sets.codec import as_bytes
from ddengine.system import files
from ddengine.system.errors import UserError

if TYPE_CHECKING:  # synthetic.py calls this module
    from ddengine.sets.synthetic import SyntheticSet

PARQUET = "train-00000-of-00001.parquet"
CARD = "README.md"
PER_SHARD = 10_000  # examples in a WebDataset tar
AT_ONCE = 2**24  # pixel values that are decoded at a time
LONGEST_NAME = 60  # characters of a class name in the name of a folder
SHOWN_CLASSES = 100  # class names in the card
EVALUATION = "evaluation.json"
# around the parts of the card that `add_results` writes
BEGIN, END = "<!-- results -->", "<!-- /results -->"
PROTOCOL_BEGIN, PROTOCOL_END = "<!-- protocol -->", "<!-- /protocol -->"

# The licences of source images that are known, as Hugging Face writes them, and in words. All
# others are said to be unknown.
LICENCES = {
    "digits": (
        "cc-by-4.0",
        (
            "The source images, Optical Recognition of Handwritten Digits of the UCI repository, "
            "are under CC BY 4.0."
        ),
    ),
    "fashion_mnist": ("mit", "The source images, Fashion-MNIST, are under the MIT licence."),
}
UNKNOWN = (
    "unknown",
    (
        "The licence of the source images is not known to the program that wrote this; find it "
        "out before passing the set on."
    ),
)


# Pixels of 8 bits


def eight_bit(pixels: Tensor) -> Tensor:
    """Pixel values, of any shape, as uint8: clamped to [0, 1], times 255, rounded as
    torchvision.utils.save_image does (halves up).
    """
    return as_bytes(pixels)


def png(image: Tensor) -> bytes:
    """The PNG file of an image (C, H, W) uint8 with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    array = image.cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)).save(
        buffer, format="png"
    )
    return buffer.getvalue()


def padded(number: int, num: int, least: int) -> str:
    """A number of 0 to num - 1 with as many digits as the last one has, at least `least`, so that
    names sort like their numbers.
    """
    return f"{number:0{max(least, len(str(num - 1)))}d}"


def class_folder(syn: "SyntheticSet", label: int) -> str:
    """The folder name of a class: its number, by which folders sort, and what of its name is safe
    in a path.
    """
    name = "".join(ch if ch.isalnum() or ch in "-_" else "_" for ch in syn.class_names[label])
    return f"{padded(label, len(syn.class_names), 4)}_{name[:LONGEST_NAME]}"


def example_name(i: int, num: int) -> str:
    """The name of example i of `num` in files, without a suffix: its number, six digits or as many
    as it takes.
    """
    return padded(i, num, 6)


@dataclass(frozen=True)
class Exported:
    """The decoded examples of a set in 8 bits."""

    pngs: list[bytes]  # N files
    classes: list[int]  # N
    # fraction of the pixel values that lie outside [0, 1] by more than half a step, so were clamped
    clamped: float
    largest_error: float  # of any pixel value in [0, 1]-units, clamping included

    @property
    def exact(self) -> bool:
        """Whether 8 bits hold everything, up to float rounding."""
        return self.largest_error < 1e-5


def exported(syn: "SyntheticSet") -> Exported:
    """All N decoded examples as PNG files.

    A part at a time is decoded, so that memory holds the files and little else.
    """
    pngs: list[bytes] = []
    outside, values, error = 0, 0, 0.0
    for index in torch.arange(len(syn)).split(max(1, AT_ONCE // syn.tensors["images"][0].numel())):
        pixels = syn.pixels(index).float()
        stored = eight_bit(pixels)
        distance = (pixels - stored.float() / 255).abs()
        outside += int((distance > 0.501 / 255).sum())
        values += pixels.numel()
        error = max(error, float(distance.max()))
        pngs += [png(image) for image in stored.cpu()]
    return Exported(pngs, syn.classes[syn.source].tolist(), outside / max(1, values), error)


def example_logits(syn: "SyntheticSet") -> Tensor | None:
    """Soft labels (N, K) float32 of the decoded examples; None for a set with classes, or with
    another number of labels, which `load` refuses.
    """
    if not syn.targets.soft:
        return None
    logits = syn.logits.detach()
    if len(logits) != (len(syn) if syn.label_of == "decoded" else len(syn.classes)):
        return None
    return (logits if syn.label_of == "decoded" else logits[syn.source]).float().cpu()


# The distilled folder


def write(folder: Path, syn: "SyntheticSet", meta: Mapping[str, Any]) -> None:
    """Put images/, the parquet file and the card into an existing folder.

    `meta` is the content of meta.json; the card says what is in it.
    """
    export = exported(syn)
    # where there are such, sums with them are not written as images
    natural = syn.codec.natural(syn.tensors)
    if natural:
        (folder / "images" / "compensators").mkdir(parents=True)
        added = 0.5 + syn.tensors["compensators"].float() * syn.tensors["unit"].view(-1, 1, 1)
        for i, image in enumerate(added):
            (folder / "images" / "compensators" / f"{example_name(i, len(added))}.png").write_bytes(
                png(eight_bit(image))
            )
    _write_classes(folder / "images", syn, export.pngs[: natural or None], export.classes)
    write_parquet(folder / PARQUET, syn, export)
    (folder / CARD).write_bytes(card(syn, meta, export).encode())


def _write_classes(
    folder: Path, syn: "SyntheticSet", pngs: Sequence[bytes], classes: Sequence[int]
) -> None:
    """folder/CLASS/000000.png of each; the number is that of the example."""
    for c in sorted(set(classes[: len(pngs)])):
        (folder / class_folder(syn, c)).mkdir(parents=True, exist_ok=True)
    for i, (content, c) in enumerate(zip(pngs, classes, strict=False)):
        (folder / class_folder(syn, c) / f"{example_name(i, len(classes))}.png").write_bytes(
            content
        )


def unique_names(names: Sequence[str]) -> list[str]:
    """Class names as ClassLabel wants them: none twice.

    A later one of the same name gets its number.
    """
    seen: set[str] = set()
    found = []
    for i, name in enumerate(names):
        while name in seen:
            name = f"{name} ({i})"
        seen.add(name)
        found.append(name)
    return found


def write_parquet(path: Path, syn: "SyntheticSet", export: Exported) -> None:
    """The decoded examples as a table that the `datasets` library reads with its features.

    Columns: `image` (struct of PNG bytes and a file name), `label` int64 and, with soft labels,
    `logits` list<float32> (K).
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": unique_names(syn.class_names), "_type": "ClassLabel"},
    }
    paths = [f"{example_name(i, len(export.pngs))}.png" for i in range(len(export.pngs))]
    columns: dict[str, pa.Array] = {
        "image": pa.StructArray.from_arrays(
            [pa.array(export.pngs, pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
        ),
        "label": pa.array(export.classes, pa.int64()),
    }
    logits = example_logits(syn)
    if logits is not None:
        offsets = pa.array(np.arange(len(logits) + 1, dtype=np.int32) * logits.shape[1])
        columns["logits"] = pa.ListArray.from_arrays(
            offsets, pa.array(logits.flatten().numpy(), pa.float32())
        )
        # versions of `datasets` below 4 know no List, and later ones read Sequence as one
        features["logits"] = {
            "feature": {"dtype": "float32", "_type": "Value"},
            "_type": "Sequence",
        }
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, path, compression="zstd", row_group_size=1000)


# The card


def quoted(text: str) -> str:
    """A string as a YAML (and JSON) scalar in double quotes, whatever is in it; it cannot hold a
    mark of `add_results` either.
    """
    scalar = json.dumps(text, ensure_ascii=False)
    return re.sub(
        "[<\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]",
        lambda found: f"\\u{ord(found[0]):04x}",
        scalar,
    )


def plain(value: Any) -> str:
    """A value as text of one line, in which Markdown and HTML see nothing of theirs."""
    line = " ".join(str(value).encode(errors="replace").decode().split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _at(meta: Any, *keys: str) -> Any:
    """What lies under nested keys; None where anything on the way is missing."""
    for key in keys:
        meta = meta.get(key) if isinstance(meta, Mapping) else None
    return meta


def _table(rows: Sequence[tuple[str, Any]]) -> list[str]:
    """A Markdown table of what is known."""
    known = [(name, value) for name, value in rows if value is not None]
    return (
        ["| | |", "|---|---|", *(f"| {name} | {plain(value)} |" for name, value in known)]
        if known
        else []
    )


def size_category(num: int) -> str:
    """Hugging Face's word for so many examples."""
    steps = [
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
    ]
    return next((name for limit, name in steps if num < limit), "10M<n<100M")


def card(syn: "SyntheticSet", meta: Mapping[str, Any], export: Exported) -> str:
    """The dataset card:

    YAML that makes `datasets.load_dataset(folder)` read the parquet file, then what meta.json says,
    in words.
    """
    from ddengine.system.log import size  # imports synthetic.py

    source, recipe = _at(meta, "recipe", "data", "name"), _at(meta, "recipe", "name")
    licence, in_words = LICENCES.get(source, UNKNOWN) if isinstance(source, str) else UNKNOWN
    num_classes, natural = len(syn.class_names), syn.codec.natural(syn.tensors)
    selected, imported = _at(meta, "selected", "kind"), _at(meta, "imported", "files")
    merged = _at(meta, "merged")
    num_merged = len(merged) if isinstance(merged, list | tuple) else 0
    kind = "Selected" if selected else "Distilled"
    title = f"{kind} {source}" if isinstance(source, str) else f"{kind} set"
    if num_merged:
        title = f"Merged from {num_merged} sets" + (
            f" of {source}" if isinstance(source, str) else ""
        )
    per_class = f"{syn.images_per_class():.4g}"
    title += f", {per_class} image{'' if per_class == '1' else 's'} per class"
    images = syn.tensors["images"]
    shape = "x".join(map(str, syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:]))
    head = [
        "---",
        f"license: {licence}",
        f"pretty_name: {quoted(title)}",
        "task_categories:",
        "- image-classification",
        "tags:",
        *([] if selected else ["- dataset-distillation", "- synthetic"]),
        *(["- coreset"] if selected else []),
        "size_categories:",
        f"- {size_category(len(syn))}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {PARQUET}",
        "---",
    ]
    of = f" of {plain(source)}" if isinstance(source, str) else ""
    if selected:
        what = f"{len(syn)} real training images{of}, chosen by {plain(selected)}. Nothing was distilled."
    elif imported:
        what = f"{len(syn)} images distilled from the training images{of} by another program, imported from {plain(', '.join(map(str, imported)))}."
    else:
        what = f"{len(syn)} training examples for {num_classes} classes, distilled from the training images{of}: "
        what += "a network that is trained on them is meant to do what one does that was trained on many more real images."
    if num_merged:
        what += f" Merged from {num_merged} sets, which were made one by one; what is said of recipe, network and steps is said of the first."
    labels = f"soft labels, {num_classes} logits each" if syn.targets.soft else "classes"
    facts = _table(
        [
            ("recipe", recipe),
            (
                "method",
                _at(meta, "recipe", "objective", "type") if not (selected or imported) else None,
            ),
            ("source images", source),
            ("images per class (budget)", _at(meta, "recipe", "ipc")),
            ("network", _at(meta, "recipe", "model")),
            (
                "outer steps",
                _at(meta, "recipe", "outer", "steps") if not (selected or imported) else None,
            ),
            ("learned learning rate", f"{syn.lr:.6g}" if syn.lr is not None else None),
            (
                "stored as",
                f"{type(syn.codec).__name__}, {len(images)} images"
                + (f" and {len(syn.tensors['compensators'])} others" if natural else ""),
            ),
            ("training examples", f"{len(syn)} of {shape} (channels x height x width)"),
            ("labels", labels),
        ]
    )
    names = ", ".join(plain(name) for name in syn.class_names[:SHOWN_CLASSES]) + (
        ", ..." if num_classes > SHOWN_CLASSES else ""
    )
    std = syn.preprocess.std
    if std is not None:
        mean, deviation = (
            [float(f"{v:.6g}") for v in values.flatten().tolist()]
            for values in (syn.preprocess.mean, std)
        )
        normalise = f"Networks see `(pixels - mean) / std` with pixels in [0, 1], mean {mean} and std {deviation}, real test images too."
    else:
        normalise = "Networks see whitened pixels: bring real test images into that form with `info['preprocess']`, and these too."
    if export.exact:
        apart = "The 8-bit pixels of the parquet file and of images/ are those of data.safetensors."
    else:
        apart = (
            "The 8-bit pixels of the parquet file and of images/ are an approximation of "
            "data.safetensors: "
            f"{100 * export.clamped:.3g} % of the values lie outside [0, 1] and were cut there, "
            f"and the largest change is {255 * export.largest_error:.3g} of 255 steps; what that "
            "costs is the row distilled_8bit under Accuracy."
        )
    use = [
        "```python",
        "from load import load  # in this folder; needs torch and safetensors",
        "",
        (
            "images, targets, info = load()  # exact, as a network should see them; targets as "
            "torch's cross_entropy takes them"
        ),
        "```",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'examples = load_dataset("PATH/OF/THIS/FOLDER", split="train")  # 8-bit images, label'
        + (", logits" if syn.targets.soft else ""),
        "```",
        "",
        f"{apart} {normalise}",
    ]
    trained = _at(meta, "protocol")
    trained = trained_section(trained) if isinstance(trained, Mapping) else []
    if syn.targets.soft:
        use += [
            "",
            (
                "`logits` are soft labels before the softmax; `label` is the class an image was "
                "made for."
            ),
        ]
    sizes = syn.nbytes()
    parts = ", ".join(
        f"{part} {size(sizes[part])}"
        for part in ("images", "compensators", "labels", "other")
        if sizes[part]
    )
    holders = "data.safetensors" + (
        " and labels.safetensors" if syn.targets.soft else ""
    )
    stored = f"{size(sizes['total'])} in {holders}: {parts}."
    raw, whole = _at(meta, "raw_bytes"), _at(meta, "dataset_bytes")
    if isinstance(raw, int) and raw > 0:
        stored += f" The training images they were made from are {size(raw)}"
        stored += (
            f", the whole training split {size(whole)}."
            if isinstance(whole, int) and whole != raw
            else "."
        )
    network = _at(meta, "recipe", "model")
    limits = [
        "- Fitted to one family of networks"
        + (f" (`{plain(network)}`)" if network else "")
        + ": others may learn less from it, so measure first.",
        "- The 8-bit export is not the exact tensors."
        if not export.exact
        else "- Only the pixels are exact in 8 bits; use load.py for preprocessing.",
        (
            "- Not a benchmark result: nothing here says how it compares with other methods under "
            "their protocols."
        ),
    ]
    if selected:
        anonymous = "- **Not anonymous**: these are real images as they are."
    else:
        anonymous = (
            "- **Distilled is not anonymous**: the images were computed from real ones and may "
            "start from them, nothing bounds what they "
            "show of a single one, and what may not be passed on of the source images may not be "
            "passed on of these without a check."
        )
        if natural:
            anonymous += f" {natural} of them are real images, stored as they are."
    cites = _at(meta, "recipe", "cites")
    bibtex = _at(meta, "bibtex")
    citation: list[str] = []
    if isinstance(cites, list | tuple) and cites:
        citation.append("Works behind it: " + ", ".join(f"`{plain(key)}`" for key in cites) + ".")
    if isinstance(bibtex, str) and bibtex.strip():
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", bibtex)), default=0))
        citation += ["", f"{fence}bibtex", bibtex.strip(), fence]
    machine, versions = _at(meta, "machine"), _at(meta, "versions")
    made = _table(
        [
            ("seed", _at(meta, "seed")),
            ("precision", _at(meta, "precision")),
            ("digest of the training images", _at(meta, "images")),
            ("commit", _at(meta, "commit")),
            (
                "machine",
                ", ".join(f"{k} {v}" for k, v in machine.items())
                if isinstance(machine, Mapping)
                else None,
            ),
            (
                "versions",
                ", ".join(f"{k} {v}" for k, v in versions.items())
                if isinstance(versions, Mapping)
                else None,
            ),
            ("seconds of distillation", _at(meta, "distillation", "seconds")),
        ]
    )
    sections: list[tuple[str, list[str]]] = [
        ("What it is", [what, "", *facts, "", f"Classes: {names}."]),
        ("How to use it", use),
        ("How it was trained on", trained),
        ("Accuracy", [BEGIN, "Not measured yet.", END]),
        ("Bytes", [stored]),
        (
            "Intended use",
            [
                "Research on dataset distillation, and quick training runs (tests, teaching, "
                "searches) where a rough network is enough. "
                "Not for deciding about people, and not in place of the source images where "
                "accuracy matters."
            ],
        ),
        ("Limits", [*limits, anonymous]),
        ("Licence", [f"What is derived from images stays under their licence. {in_words}"]),
        ("Citation", citation),
        (
            "Reproducibility",
            [*made, *([""] if made else []), "meta.json holds everything that was set."],
        ),
    ]
    body = [line for name, lines in sections if lines for line in ("", f"## {name}", "", *lines)]
    return "\n".join([*head, "", f"# {plain(title)}", *body]) + "\n"


def results_table(evaluation: Mapping[str, Any]) -> str:
    """The rows of evaluation.json as a Markdown table, in percent, with what the numbers mean below
    it.
    """
    balanced = tables.uneven(evaluation) and all(
        "balanced_accuracy_mean" in row for row in evaluation["rows"]
    )
    heads = [
        "set",
        "network",
        "test accuracy %",
        "95 % interval",
        *(["balanced accuracy %"] if balanced else []),
        "networks",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in evaluation["rows"]:
        spread = "" if row.get("accuracy_std") is None else f" ± {100 * row['accuracy_std']:.1f}"
        interval = row.get("ci95")
        between = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "-"
        networks = str(row.get("n", "-")) + (
            f", {row['diverged']} diverged" if row.get("diverged") else ""
        )
        cells = (
            plain(row["set"]),
            plain(row["model"]),
            tables.percent(row["accuracy_mean"]) + spread,
            between,
        )
        cells += ((tables.percent(row["balanced_accuracy_mean"]),) if balanced else ()) + (
            networks,
        )
        lines.append(f"| {' | '.join(cells)} |")
    protocol = _at(evaluation, "protocol", "protocol")
    start = f" (protocol {plain(protocol)})" if protocol else ""
    tested = _at(evaluation, "num_images", "test")
    on = f" on {tested} test images" if isinstance(tested, int) else ""
    lines += [
        "",
        f"Measured{on} by the settings of evaluation.json{start}: mean ± standard deviation over "
        "that many networks, each trained anew"
        + (
            f"; 95 % intervals of the mean by {tables.interval_of(evaluation)}."
            if any(row.get("ci95") for row in evaluation["rows"])
            else "."
        ),
    ]
    if any(row["set"] == "distilled_8bit" for row in evaluation["rows"]):
        lines.append(
            "`distilled_8bit` is what the 8-bit export gives, `distilled` the exact tensors."
        )
    if balanced:
        lines.append(
            "Balanced accuracy is the mean over the classes, of which the test split holds "
            "unequal numbers of images."
        )
    return "\n".join(lines)


def trained_section(protocol: Mapping[str, Any]) -> list[str]:
    """Lines of the card that say by which protocol networks are trained on the set, within marks by
    which they are found again.
    """
    from ddengine.artefact import loader  # imports synthetic.py, which imports this module
    from ddengine.evaluation.protocol import words

    how = "`info['protocol']` of `load()` says it in numbers, and `info['augment'](images)` is its augmentation."
    if loader.trainable(protocol):
        how += " `train(network)` of load.py does all of it; without the augmentation, or at another rate, expect other accuracies."
    else:
        how += " load.py cannot train so, because the labels or the loss are not in this folder: expect other accuracies of what is trained on it alone."
    return [PROTOCOL_BEGIN, *_table(words(protocol)), "", how, PROTOCOL_END]


def _put(text: str, begin: str, end: str, heading: str, section: str) -> str:
    """The card with `section`, which has the marks around it, in its place; where there is no such
    place, at the end under a heading.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    return (
        f"{before}{section}{after}"
        if found and closed
        else f"{text.rstrip()}\n\n## {heading}\n\n{section}\n"
    )


def without_paths(command: Sequence[Any]) -> list[str]:
    """The words of a command, in which paths of this machine, those from its root or a home, keep
    their last part only.
    """
    kept = []
    for word in map(str, command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if re.match(r"[/\\~]|[A-Za-z]:[/\\]", value):
            value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        kept.append(flag + equals + value)
    return kept


# Other formats


def _members(export: Exported, logits: Tensor | None, part: range) -> Iterator[tuple[str, bytes]]:
    """(name in the tar, content) of the examples of a shard."""
    for i in part:
        name = example_name(i, len(export.pngs))
        yield f"{name}.png", export.pngs[i]
        yield f"{name}.cls", str(export.classes[i]).encode()
        if logits is not None:
            buffer = io.BytesIO()
            np.save(buffer, logits[i].numpy())
            yield f"{name}.logits.npy", buffer.getvalue()


def write_webdataset(syn: "SyntheticSet", path: Path, per_shard: int = PER_SHARD) -> list[Path]:
    """Write the decoded examples as a WebDataset, and return its files: one tar `path`, or
    X-000000.tar, X-000001.tar ... for a `path` X.tar.

    An example i is the members 00000i.png (8 bits), 00000i.cls (its class as text) and, with soft
    labels, 00000i.logits.npy ((K,) float32). The names of the classes and the numbers of examples
    are in X.json beside the tars. Same set, same bytes. Raises UserError when a file exists.
    """
    if per_shard < 1:
        raise UserError(f"per_shard must be at least 1, got {per_shard}.")
    parts = [range(i, min(i + per_shard, len(syn))) for i in range(0, len(syn), per_shard)]
    tars = (
        [path]
        if len(parts) <= 1
        else [
            path.with_name(f"{path.stem}-{example_name(i, len(parts))}{path.suffix}")
            for i in range(len(parts))
        ]
    )
    index = path.with_suffix(".json")
    files.refuse_existing([*tars, index])
    files.make_folder(path.parent)
    export, logits = exported(syn), example_logits(syn)
    for tar, part in zip(tars, parts, strict=True):
        with (
            files.replacing(tar) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, content in _members(export, logits, part):
                # mtime, uid and gid 0, no names: nothing of this machine
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o644
                archive.addfile(info, io.BytesIO(content))
    counts = {tar.name: len(part) for tar, part in zip(tars, parts, strict=True)}
    files.write_json(
        index,
        {
            "class_names": list(syn.class_names),
            "examples": len(syn),
            "shards": counts,
            "logits": logits is not None,
        },
    )
    return [*tars, index]


def write_image_folder(syn: "SyntheticSet", folder: Path) -> Path:
    """Write the decoded examples as folder/CLASS/000000.png, whose folders sort like the classes;
    returns the folder.

    Classes only: soft labels have no place there. Raises UserError when the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name another folder with --out.")
    files.make_folder(folder.parent)
    export = exported(syn)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        _write_classes(temporary, syn, export.pngs, export.classes)
    return folder
