"""What lies in a folder or a file: expert stores, runs, distilled sets, evaluations, tensors.

For `run.py inspect`.

Reads headers and small JSON files, and the numbers of small sets to say whether they can be used;
never a large tensor.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ddengine.artefact import folder as folders
from ddengine.data.stored import read_preprocess
from ddengine.evaluation.tables import notes, table
from ddengine.sets.synthetic import counted
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.log import size

PARQUET = "*.parquet"
CPU = torch.device("cpu")
SHOWN = 60  # rows of a long list
LONGEST = 60  # characters of a value out of a file's metadata
UNREADABLE = "cannot be read"
# bytes of the largest file whose numbers are looked at, to say whether they can be used
CHECKED = 2**28


@dataclass(frozen=True)
class Part:
    """A titled list of facts, or with a head a table; nothing in it is markup."""

    title: str
    rows: list[tuple[str, ...]]  # all of one length: (name, value) where there is no head
    head: tuple[str, ...] = ()


def describe(path: Path) -> list[Part]:
    """What `path` is. Raises UserError for what this program did not write."""
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if path.is_file():
        return _file(path)
    if (path / "manifest.json").is_file():
        return _store(path)
    if (path / "recipe.json").is_file():
        return _run(path)
    if (path / "meta.json").is_file():
        return _set(path)
    if (path / "evaluation.json").is_file():
        return _evaluation(path / "evaluation.json")
    folders = sorted(
        p for p in path.iterdir() if p.is_dir() and not p.name.startswith(files.TEMPORARY)
    )
    parts = []
    if found := [
        p for p in folders if (p / "recipe.json").is_file() or (p / "meta.json").is_file()
    ]:
        head = ("name", "recipe", "images, ipc", "state", "last loss", "accuracy %", "size")
        parts.append(Part(f"Runs in {path}: {len(found)}", [_run_row(p) for p in found], head))
    if found := [p for p in folders if (p / "manifest.json").is_file()]:
        head = ("name", "network", "dataset", "experts", "epochs", "validation %", "size")
        parts.append(
            Part(f"Expert stores in {path}: {len(found)}", [_store_row(p) for p in found], head)
        )
    if parts:
        return parts
    raise UserError(
        f"{path} is no expert store, run, distilled set or folder of such; "
        "give a folder that buffer, distill, select or import wrote, or a file in one."
    )


def shown(parts: Iterable[Part]) -> Group:
    """The parts for the terminal."""
    drawn = []
    for part in parts:
        drawing = Table(
            title=Text(part.title),
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            show_header=bool(part.head),
        )
        for i, name in enumerate(part.head or ("", "")):
            drawing.add_column(Text(name), overflow="fold", no_wrap=not part.head and i == 0)
        for row in part.rows:
            # it may come from anywhere
            drawing.add_row(
                *(Text("".join(ch if ch.isprintable() else "?" for ch in cell)) for cell in row)
            )
        drawn += [drawing, ""]
    return Group(*drawn[:-1])


# Facts


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _rows(*pairs: tuple[str, Any]) -> list[tuple[str, ...]]:
    """What is known of (name, value)."""
    return [(name, str(value)) for name, value in pairs if value is not None and value != ""]


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for anything else."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} was not written by this program; restore it or run the command that wrote it "
            "again."
        )
    return content


def _maybe(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or none that can be read."""
    try:
        return _object(path) if path.is_file() else {}
    except UserError:
        return {}


def _bytes_of(path: Path) -> int:
    """Bytes on disk of a file, or of all files in a folder."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    )


def _percent(value: Any) -> str | None:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else None


def _ordered(values: Sequence[Any]) -> str:
    """Whole numbers in short: 0 to 10, or 0, 5, 10."""
    if len(values) > 2 and list(values) == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def _words(value: Any) -> str | None:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else None


# Expert stores


def _header(path: Path) -> tuple[dict[str, str], dict[str, tuple[list[int], str]]]:
    """(metadata, shape and type of each tensor) of a safetensors file."""
    with files.reading_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return file.metadata() or {}, {
            name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()
        }


def _metrics(path: Path) -> dict[str, Any] | None:
    """What was measured while an expert was trained; None for a damaged shard."""
    try:
        found = json.loads(_header(path)[0].get("metrics", "{}"))
    except (UserError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _last_accuracy(metrics: Iterable[dict[str, Any] | None]) -> list[float]:
    """Validation accuracy after the last epoch, of the experts that have one."""
    last = [
        found["validation_accuracy"][-1]
        for found in metrics
        if found and found.get("validation_accuracy")
    ]
    return [accuracy for accuracy in last if accuracy is not None]


def _shards(path: Path) -> list[Path]:
    """The files of the experts of a store, in the order of their numbers, which have more digits
    from the 10,000th on.
    """
    return sorted(
        path.glob("expert_*.safetensors"), key=lambda shard: (len(shard.name), shard.name)
    )


def _store(path: Path) -> list[Part]:
    manifest = _object(path / "manifest.json")
    identity, epochs = manifest.get("identity"), manifest.get("epochs")
    if not isinstance(identity, dict) or not isinstance(epochs, list):
        raise UserError(
            f"{path / 'manifest.json'} is not that of an expert store; give the folder that "
            "buffer wrote."
        )
    shards = _shards(path)
    metrics = {shard: _metrics(shard) for shard in shards}
    damaged = [shard.name for shard, found in metrics.items() if found is None]
    damaged += _problem(path / "preprocess.safetensors", read_preprocess)
    last = _last_accuracy(metrics.values())
    seconds = sum(found.get("seconds", 0.0) for found in metrics.values() if found)
    numbers = sum(_product(shape) for shape in manifest.get("shapes", []))
    step = _at(identity, "buffer", "step")
    rows = _rows(
        ("network", _at(identity, "model")),
        ("dataset", _at(identity, "dataset")),
        ("whitened (ZCA)", _at(identity, "zca")),
        ("experts", len(shards)),
        ("epochs of training", _at(identity, "buffer", "epochs")),
        ("epochs kept", _ordered(epochs) if epochs else None),
        ("parameters", f"{numbers:,}" if numbers else None),
        (
            "training step",
            f"{step.get('type', 'Sgd')}, lr {step['lr']:g}"
            if isinstance(step, Mapping) and "lr" in step
            else _at(step, "type"),
        ),
        (
            "validation accuracy %, last epoch",
            f"{_span(last)} ({len(last)} experts)" if last else None,
        ),
        ("training time", log.duration(seconds) if seconds else None),
        ("seed", _at(identity, "seed")),
        ("precision", _at(identity, "precision")),
        ("digest of the images", _at(identity, "images")),
        ("imported from files of digest", _at(identity, "imported")),
        ("fingerprint", manifest.get("fingerprint")),
        (
            "size on disk",
            f"{size(_bytes_of(path))}, {size(_bytes_of(shards[0]))} an expert"
            if shards
            else size(_bytes_of(path)),
        ),
        ("damaged", ", ".join(damaged) or None),
    )
    return [Part(f"Expert store {path}", rows)]


def _product(shape: Sequence[int]) -> int:
    number = 1
    for side in shape:
        number *= side
    return number


def _span(values: Sequence[float]) -> str:
    """Mean and range of fractions, in percent."""
    mean = f"{100 * sum(values) / len(values):.1f}"
    return (
        mean
        if len(values) == 1
        else f"{mean}, from {100 * min(values):.1f} to {100 * max(values):.1f}"
    )


def _store_row(path: Path) -> tuple[str, ...]:
    manifest = _maybe(path / "manifest.json")
    identity, shards = manifest.get("identity"), _shards(path)
    last = _last_accuracy(map(_metrics, shards))
    if not manifest:
        return (path.name, UNREADABLE, "", str(len(shards)), "", "", size(_bytes_of(path)))
    facts = (
        _at(identity, "model"),
        _at(identity, "dataset"),
        len(shards),
        _at(identity, "buffer", "epochs"),
    )
    return (
        path.name,
        *(str("-" if fact is None else fact) for fact in facts),
        _span(last) if last else "-",
        size(_bytes_of(path)),
    )


# Runs


def _last_event(path: Path, key: str) -> tuple[Any, Any]:
    """(step, value) of the last line of metrics.jsonl that has `key`; (None, None) where no line
    has.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return None, None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # the line that a kill cut off
            continue
        if _at(event, key) is not None:
            return event.get("step"), event[key]
    return None, None


def _checkpoint_step(run: Path) -> int | None:
    """The step a run would go on from; None without a checkpoint."""
    path = run / "checkpoint" / "state.safetensors"
    if not path.is_file():
        return None
    try:
        return json.loads(_header(path)[0]["state"])["step"]
    except (UserError, KeyError, ValueError, TypeError):
        return None


def _state(run: Path, recipe: Any) -> str:
    """Whether a run is finished, and how far it got."""
    if (run / "distilled" / "meta.json").is_file() or (run / "meta.json").is_file():
        return "finished"
    step, steps = _checkpoint_step(run), _at(recipe, "outer", "steps")
    return "unfinished, " + (
        "before its first checkpoint"
        if step is None
        else f"at step {step}" + (f" of {steps}" if steps is not None else "")
    )


def _origin(meta: Mapping[str, Any]) -> str | None:
    """How a set was made, where it was not distilled here."""
    if kind := _at(meta, "selected", "kind"):
        return f"selected by {kind}"
    if isinstance(merged := meta.get("merged"), list):
        return f"merged from {len(merged)} sets"
    return "imported" if "imported" in meta else None


def _run(path: Path) -> list[Part]:
    content = _object(path / "recipe.json")
    recipe = content.get("recipe", {})
    meta = _maybe(path / "distilled" / "meta.json")
    step, loss = _last_event(path / "metrics.jsonl", "loss")
    at, validation = _last_event(path / "metrics.jsonl", "validation_accuracy")
    seconds = _at(meta, "distillation", "seconds")
    peak = _at(meta, "distillation", "peak_memory_bytes")
    there = sorted(
        f"{p.name}/" if p.is_dir() else p.name for p in path.iterdir() if not p.name.startswith(".")
    )
    rows = _rows(
        ("state", _state(path, recipe)),
        ("recipe", _at(recipe, "name")),
        ("origin", _origin(meta)),
        ("dataset", _at(recipe, "data", "name")),
        ("images per class", _at(recipe, "ipc")),
        ("network", _at(recipe, "model")),
        ("objective", _at(recipe, "objective", "type") if not _origin(meta) else None),
        ("seed", content.get("seed")),
        ("precision", content.get("precision")),
        ("checkpoint at step", _checkpoint_step(path)),
        ("last loss", f"{loss:.6g} at step {step}" if isinstance(loss, int | float) else None),
        (
            "last validation accuracy %",
            f"{_percent(validation)} at step {at}" if validation is not None else None,
        ),
        ("time of the steps", log.duration(seconds) if isinstance(seconds, int | float) else None),
        ("peak memory", size(peak) if isinstance(peak, int | float) else None),
        ("files", ", ".join(there)),
        ("size on disk", size(_bytes_of(path))),
    )
    parts = [Part(f"Run {path}", rows)]
    if (path / "distilled" / "meta.json").is_file():
        parts += _set(path / "distilled")
    return parts


def _run_row(path: Path) -> tuple[str, ...]:
    """A line of a table of runs; of imported sets, which are a folder without a run, too."""
    content, meta = (
        _maybe(path / "recipe.json"),
        _maybe(path / "distilled" / "meta.json") or _maybe(path / "meta.json"),
    )
    if not content and not meta:
        return (path.name, UNREADABLE, "", "", "", "", size(_bytes_of(path)))
    recipe = content.get("recipe") or meta.get("recipe")
    _, loss = _last_event(path / "metrics.jsonl", "loss")
    row = _own_row(_maybe(path / "evaluation.json"))
    origin = _origin(meta)
    return (
        path.name,
        str(_at(recipe, "name") or "-") + (f" ({origin})" if origin else ""),
        f"{_at(recipe, 'data', 'name') or '-'}, {_at(recipe, 'ipc') or '-'}",
        _state(path, recipe),
        f"{loss:.4g}" if isinstance(loss, int | float) else "-",
        _percent(_at(row, "accuracy_mean")) or ("diverged" if _at(row, "diverged") else "-"),
        size(_bytes_of(path)),
    )


def _own_row(evaluation: Mapping[str, Any]) -> Any:
    """The row of the set itself, which is the first."""
    rows = evaluation.get("rows")
    return rows[0] if isinstance(rows, list) and rows else None


# Distilled sets and evaluations


def _set(path: Path) -> list[Part]:
    meta = _object(path / "meta.json")
    if "codec" not in meta and "class_names" not in meta:
        raise UserError(
            f"{path / 'meta.json'} is not that of a distilled set; give the folder that distill "
            "wrote, or the run that holds it."
        )
    recipe, names = meta.get("recipe"), meta.get("class_names")
    names = names if isinstance(names, list) else []
    tensors = _header(path / "data.safetensors")[1] if (path / "data.safetensors").is_file() else {}
    labels = (
        _header(path / "labels.safetensors")[1] if (path / "labels.safetensors").is_file() else {}
    )
    images = tensors.get("images")
    codec = meta.get("codec")
    options = {k: v for k, v in codec.items() if k != "type"} if isinstance(codec, Mapping) else {}
    kind = {"class": "classes", "logits": "soft labels"}.get(
        str(meta.get("target_kind")), meta.get("target_kind")
    )
    own = [
        p
        for p in (path.parent, path)
        if (p / "evaluation.json").is_file() and (p == path or path.name == "distilled")
    ]
    row = _own_row(_maybe(own[0] / "evaluation.json")) if own else None
    measured = None
    if _at(row, "diverged") and _at(row, "accuracy_mean") is None:
        measured = f"all networks diverged, with {_at(row, 'model')}"
    elif mean := _percent(_at(row, "accuracy_mean")):
        spread = _percent(_at(row, "accuracy_std"))
        measured = f"{mean}{f' ± {spread}' if spread else ''} with {_at(row, 'model')}, n = {_at(row, 'n')}"
    lost = [
        name
        for name in (
            "data.safetensors",
            *(["labels.safetensors"] if meta.get("labels_digest") else []),
        )
        if not (path / name).is_file()
    ]
    parquet = sorted(p.name for p in path.glob(PARQUET))
    total = _at(meta, "bytes", "total")
    rows = _rows(
        ("recipe", _at(recipe, "name")),
        ("origin", _origin(meta)),
        ("dataset", _at(recipe, "data", "name")),
        (
            "classes",
            f"{len(names)}: {', '.join(map(str, names[:10]))}{', ...' if len(names) > 10 else ''}",
        ),
        (
            "stored images",
            f"{images[0][0]} of {'x'.join(map(str, images[0][1:]))}, {images[1]}"
            if images
            else None,
        ),
        (
            "images per class",
            f"{meta['images_per_class']:g}"
            if isinstance(meta.get("images_per_class"), int | float)
            else None,
        ),
        ("space", meta.get("space")),
        ("codec", " ".join([str(_at(codec, "type")), *(f"{k}={v}" for k, v in options.items())])),
        ("labels", kind),
        ("learned lr", _learned_lr(path) if "lr" in tensors else None),
        (
            "bytes",
            f"{size(total)} in all: {_parts(meta['bytes'])}" if isinstance(total, int) else None,
        ),
        (
            "of the training images",
            size(meta["raw_bytes"]) if isinstance(meta.get("raw_bytes"), int) else None,
        ),
        ("parquet", ", ".join(parquet) or "none: written before sets had one"),
        *_trained(meta.get("protocol")),
        ("accuracy %", measured or "not evaluated"),
        (
            "evaluation",
            "evaluation.json, shipped with the set"
            if (path / "evaluation.json").is_file()
            else None,
        ),
        ("seed", meta.get("seed")),
        ("versions", _words(meta.get("versions"))),
        ("machine", _words(meta.get("machine"))),
        ("commit", meta.get("commit")),
        ("missing", ", ".join(lost) or None),
        (
            "damaged",
            "; ".join(
                []
                if lost
                else _problem(
                    path / "data.safetensors", lambda file: folders.load(file.parent, CPU)
                )
            )
            or None,
        ),
    )
    return [Part(f"Distilled set {path}", rows), *_tensors({**tensors, **labels})]


def _problem(path: Path, read: Callable[[Path], Any]) -> list[str]:
    """What reading a file, which may be absent or too large to be read here, complains about: one
    sentence or none.
    """
    if not path.is_file() or path.stat().st_size > CHECKED:
        return []
    try:
        read(path)
    except UserError as error:
        return [str(error)]
    return []


def _trained(protocol: Any) -> list[tuple[str, Any]]:
    """How networks were trained on the set; nothing where its meta.json does not say it as this
    program does.
    """
    from ddengine.evaluation.protocol import words

    try:
        return [(name, value) for name, value in words(protocol) if name != "network"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _parts(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{part} {size(num)}" for part, num in counted(sizes).items() if num)


def _learned_lr(path: Path) -> str:
    """The one number that is read."""
    with files.reading_tensors(path / "data.safetensors") as file:
        rates = file.get_tensor("lr").flatten().tolist()
    return ", ".join(f"{rate:.6g}" for rate in rates)


def _evaluation(path: Path) -> list[Part]:
    evaluation = _object(path)
    if not isinstance(evaluation.get("rows"), list):
        raise UserError(
            f"{path} is not an evaluation (it has no rows); evaluate again with --restart."
        )
    rows = _rows(
        ("protocol", _at(evaluation, "protocol", "protocol")),
        ("seed", evaluation.get("seed")),
        ("precision", evaluation.get("precision")),
        (
            "time",
            log.duration(evaluation["seconds"])
            if isinstance(evaluation.get("seconds"), int | float)
            else None,
        ),
        ("versions", _words(evaluation.get("versions"))),
        ("machine", _words(evaluation.get("machine"))),
        ("commit", evaluation.get("commit")),
    )
    try:
        drawn = table(evaluation, "") if evaluation["rows"] else None
        head = tuple(str(column.header) for column in drawn.columns) if drawn else ()
        cells = (
            list(zip(*(map(str, column.cells) for column in drawn.columns), strict=True))
            if drawn
            else []
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} was not written by this version of the engine ({error!r} is missing); "
            "evaluate again with --restart."
        ) from None
    if evaluation["rows"]:
        rows += _rows(("notes", "; ".join(notes(evaluation))))
    models = sorted({str(row["model"]) for row in evaluation["rows"]})
    return [
        Part(f"Evaluation {path}", rows),
        Part(f"Test accuracy, {', '.join(models)}", cells, head),
    ]


# Files


def _tensors(tensors: Mapping[str, tuple[list[int], str]]) -> list[Part]:
    rows = [
        (name, "x".join(map(str, shape)) or "one number", dtype)
        for name, (shape, dtype) in sorted(tensors.items())
    ]
    more = [(f"... {len(rows) - SHOWN} more", "", "")] if len(rows) > SHOWN else []
    return (
        [Part(f"Tensors: {len(rows)}", rows[:SHOWN] + more, ("tensor", "shape", "type"))]
        if rows
        else []
    )


def _file(path: Path) -> list[Part]:
    """A file that this program writes."""
    if path.suffix == ".safetensors":
        metadata, tensors = _header(path)
        short = [
            (name, value if len(value) <= LONGEST else f"{value[:LONGEST]}...")
            for name, value in sorted(metadata.items())
        ]
        facts = [
            ("size on disk", size(_bytes_of(path))),
            *((name, " ".join(value.split())) for name, value in short),
        ]
        return [Part(f"File {path}", facts), *_tensors(tensors)]
    if path.suffix in (".pt", ".pth"):
        raise UserError(
            f"{path} is a file of another program, which may ask for code to be run; bring it in "
            f"with run.py import RECIPE --files {path}."
        )
    if path.suffix == ".json":
        content = _object(path)
        if "rows" in content and "protocol" in content:
            return _evaluation(path)
        for name, mark in (("manifest.json", _store), ("recipe.json", _run), ("meta.json", _set)):
            if path.name == name:
                return mark(path.parent)
    raise UserError(
        f"{path} is not a file that inspect reads; give a .safetensors, an evaluation.json, or "
        "the folder of a store, run or distilled set."
    )
