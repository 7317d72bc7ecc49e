"""What lies in a folder or a file, for `inspect`: stores, runs, sets, evaluations, tensors.

Reads headers and small JSON files, and the numbers of small sets to say whether they can be used;
never a large tensor.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ddengine import contents
from ddengine.artefact import folder as folders
from ddengine.artefact import markdown
from ddengine.artefact.card import bytes_by_part
from ddengine.artefact.markdown import at
from ddengine.artefact.results import check_of_set, is_of_set
from ddengine.artefact.target_network import target_in_words, target_network
from ddengine.data.stored import read_preprocess
from ddengine.evaluation.protocol import words
from ddengine.evaluation.tables import notes, table
from ddengine.loop import Said
from ddengine.sets.targets import targets_of
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.log import size
from ddengine.system.visible import visible
from ddengine.types import Evaluation, Facts, Json, Meta

PARQUET = "*.parquet"
CPU = torch.device("cpu")
Shapes = Mapping[str, tuple[list[int], str]]  # shape and type of each tensor by name
SHOWN = 60  # rows of a long list
LONGEST = 60  # characters of a value out of a file's metadata
UNREADABLE = "cannot be read"
RUN_HEAD = ("name", "recipe", "images, ipc", "state", "last loss", "accuracy %", "size")
STORE_HEAD = ("name", "network", "dataset", "experts", "epochs", "validation %", "size")
OF_TRANSFER = ("data", "shots", "way", "model", "set")  # columns of the rows of a transfer.json
SHOWN_CLASSES = 10  # names of classes
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
    for name, read in OF_FOLDERS.items():
        if (path / name).is_file():
            return read(path)
    evaluation = path / "evaluation.json"
    if evaluation.is_file():
        return _evaluation(evaluation)
    parts = _folder_of_folders(path)
    if parts:
        return parts
    raise UserError(
        f"{path} is no expert store, run, distilled set or folder of such; "
        "give a folder that buffer, distill, select or import wrote, or a file in one."
    )


def _folder_of_folders(path: Path) -> list[Part]:
    """Tables of the runs and of the stores in a folder; none of what it does not hold."""
    runs, stores = [], []
    for folder in sorted(path.iterdir()):
        if not folder.is_dir() or folder.name.startswith(files.TEMPORARY):
            continue
        if (folder / "recipe.json").is_file() or (folder / "meta.json").is_file():
            runs.append(_run_row(folder))
        if (folder / "manifest.json").is_file():
            stores.append(_store_row(folder))
    parts = []
    if runs:
        parts.append(Part(f"Runs in {path}: {len(runs)}", runs, RUN_HEAD))
    if stores:
        parts.append(Part(f"Expert stores in {path}: {len(stores)}", stores, STORE_HEAD))
    return parts


def shown(parts: Iterable[Part]) -> Group:
    """The parts for the terminal."""
    drawn = []
    for part in parts:
        drawn += [_drawing(part), ""]
    return Group(*drawn[:-1])


def _drawing(part: Part) -> Table:
    """A part as a table for the terminal."""
    drawing = Table(
        title=Text(part.title),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=bool(part.head),
    )
    if part.head:
        for name in part.head:
            drawing.add_column(Text(name), overflow="fold")
    else:
        drawing.add_column(overflow="fold", no_wrap=True)
        drawing.add_column(overflow="fold")
    for row in part.rows:
        drawing.add_row(*map(_cell, row))
    return drawing


def _cell(text: str) -> Text:
    """A cell, which may come from anywhere, and is one line."""
    return Text(visible(" ".join(text.split("\n"))))


# Facts


def _rows(*pairs: tuple[str, Any]) -> list[tuple[str, ...]]:
    """What is known of (name, value)."""
    rows = []
    for name, value in pairs:
        if value is not None and value != "":
            rows.append((name, str(value)))
    return rows


def _object(path: Path) -> Json:
    """The JSON object in a file. Raises UserError for anything else."""
    content = contents.read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} was not written by this program; restore it or run the command that wrote it "
            "again."
        )
    return content


def _maybe(path: Path) -> Json:
    """The JSON object in a file; empty where there is none, or none that can be read."""
    if not path.is_file():
        return {}
    try:
        return _object(path)
    except UserError:
        return {}


def _bytes_of(path: Path) -> int:
    """Bytes on disk of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _said(say: Callable[[float], str], value: Any) -> str | None:
    """What is said of a number; None for what is no number."""
    if not isinstance(value, int | float):
        return None
    return say(value)


def _percent(value: Any) -> str | None:
    """A fraction in percent; None for what is no number."""
    return _said(lambda fraction: f"{100 * fraction:.1f}", value)


def _first(values: Sequence[Any], most: int) -> str:
    """The first of many values in one line."""
    line = ", ".join(map(str, values[:most]))
    if len(values) > most:
        line += ", ..."
    return line


def _ordered(values: Sequence[Any]) -> str:
    """Whole numbers in short: 0 to 10, or 0, 5, 10."""
    if len(values) > 2:
        first = values[0]
        if list(values) == list(range(first, first + len(values))):
            return f"{first} to {values[-1]}"
    return _first(values, SHOWN)


# Expert stores


def _header(path: Path) -> tuple[dict[str, str], Shapes]:
    """(metadata, shape and type of each tensor) of a safetensors file."""
    shapes = {}
    with files.reading_tensors(path) as file:
        for name in file.keys():
            part = file.get_slice(name)
            shapes[name] = (part.get_shape(), part.get_dtype())
        return file.metadata() or {}, shapes


def _metrics(path: Path) -> Json | None:
    """What was measured while an expert was trained; None for a damaged shard."""
    try:
        metadata, _ = _header(path)
        if "metrics" not in metadata:
            return {}
        return contents.said_in_metadata(path, metadata, "metrics", contents.Metrics)
    except UserError:
        return None


def _last_accuracy(metrics: Iterable[Facts | None]) -> list[float]:
    """Validation accuracy after the last epoch, of the experts that have one."""
    last = []
    for measured in metrics:
        accuracies = at(measured, "validation_accuracy")
        if accuracies and accuracies[-1] is not None:
            last.append(accuracies[-1])
    return last


def _shards(path: Path) -> list[Path]:
    """The files of the experts of a store, in the order of their numbers.

    The numbers have more digits from the 10,000th on.
    """
    return sorted(
        path.glob("expert_*.safetensors"), key=lambda shard: (len(shard.name), shard.name)
    )


def _network(manifest: Facts) -> Any:
    """The network of the experts of a store."""
    return manifest.get("model", at(manifest, "identity", "model"))


def _store(path: Path) -> list[Part]:
    """An expert store."""
    manifest = _object(path / "manifest.json")
    identity = manifest.get("identity")
    epochs = manifest.get("epochs")
    if not isinstance(identity, dict) or not isinstance(epochs, list):
        raise UserError(
            f"{path / 'manifest.json'} is not that of an expert store; give the folder that "
            "buffer wrote."
        )
    shards = _shards(path)
    metrics: list[Json] = []
    damaged: list[str] = []
    seconds = 0.0
    for shard in shards:
        measured = _metrics(shard)
        if measured is None:
            damaged.append(shard.name)
        else:
            metrics.append(measured)
            seconds += measured.get("seconds", 0.0)
    damaged += _problem(path / "preprocess.safetensors", read_preprocess)
    last = _last_accuracy(metrics)
    numbers = sum(map(math.prod, manifest.get("shapes", [])))
    rows = _rows(
        ("network", _network(manifest)),
        ("dataset", at(identity, "dataset")),
        ("whitened (ZCA)", at(identity, "zca")),
        ("experts", len(shards)),
        ("epochs of training", at(identity, "buffer", "epochs")),
        ("epochs kept", _ordered(epochs)),
        ("parameters", _said("{:,}".format, numbers or None)),
        ("training step", _step(at(identity, "buffer", "step"))),
        ("validation accuracy %, last epoch", _span_of_experts(last)),
        ("training time", _said(log.duration, seconds or None)),
        ("seed", at(identity, "seed")),
        ("precision", at(identity, "precision")),
        ("digest of the images", at(identity, "images")),
        ("imported from files of digest", at(identity, "imported")),
        ("fingerprint", manifest.get("fingerprint")),
        ("size on disk", _size_of_store(path, shards)),
        ("damaged", ", ".join(damaged)),
    )
    return [Part(f"Expert store {path}", rows)]


def _step(step: Any) -> str | None:
    """The training step of the experts, with its rate where it says one."""
    if isinstance(step, Mapping) and isinstance(step.get("lr"), int | float):
        return f"{step.get('type', 'Sgd')}, lr {step['lr']:g}"
    return at(step, "type")


def _size_of_store(path: Path, shards: Sequence[Path]) -> str:
    """Bytes on disk in all, and of an expert."""
    total = size(_bytes_of(path))
    if not shards:
        return total
    of_expert = size(_bytes_of(shards[0]))
    return f"{total}, {of_expert} an expert"


def _span_of_experts(accuracies: Sequence[float]) -> str:
    """Mean and range of the accuracies of experts, and how many there are."""
    if not accuracies:
        return ""
    return f"{_span(accuracies)} ({len(accuracies)} experts)"


def _span(values: Sequence[float]) -> str:
    """Mean and range of fractions, in percent; "-" of none."""
    if not values:
        return "-"
    mean = f"{100 * sum(values) / len(values):.1f}"
    if len(values) == 1:
        return mean
    low = 100 * min(values)
    high = 100 * max(values)
    return f"{mean}, from {low:.1f} to {high:.1f}"


def _store_row(path: Path) -> tuple[str, ...]:
    """A line of a table of expert stores."""
    manifest = _maybe(path / "manifest.json")
    shards = _shards(path)
    on_disk = size(_bytes_of(path))
    if not manifest:
        return (path.name, UNREADABLE, "", str(len(shards)), "", "", on_disk)
    identity = manifest.get("identity")
    last = _last_accuracy(map(_metrics, shards))
    return (
        path.name,
        _or_dash(_network(manifest)),
        _or_dash(at(identity, "dataset")),
        str(len(shards)),
        _or_dash(at(identity, "buffer", "epochs")),
        _span(last),
        on_disk,
    )


def _or_dash(fact: Any) -> str:
    """A fact in words; a dash for one that is not known."""
    if fact is None:
        return "-"
    return str(fact)


# Runs


def _last_event(path: Path, key: str) -> tuple[Any, Any]:
    """(step, value) of the last line of metrics.jsonl that has `key`; (None, None) without one."""
    for event in reversed(contents.events(path)):
        if event.get(key) is not None:
            return event["step"], event[key]
    return None, None


def _checkpoint_step(run: Path) -> int | None:
    """The step a run would go on from; None without a checkpoint."""
    path = run / "checkpoint" / "state.safetensors"
    if not path.is_file():
        return None
    try:
        metadata, _ = _header(path)
        state = contents.said_in_metadata(path, metadata, "state", Said)
        return state["step"]
    except UserError:
        return None


def _state(run: Path, recipe: Any) -> str:
    """Whether a run is finished, and how far it got."""
    if (run / "distilled" / "meta.json").is_file() or (run / "meta.json").is_file():
        return "finished"
    step = _checkpoint_step(run)
    if step is None:
        return "unfinished, before its first checkpoint"
    steps = at(recipe, "outer", "steps")
    if steps is None:
        return f"unfinished, at step {step}"
    return f"unfinished, at step {step} of {steps}"


def _origin(meta: Meta) -> str | None:
    """How a set was made, where it was not distilled here."""
    kind = at(meta, "selected", "kind")
    if kind:
        return f"selected by {kind}"
    merged = meta.get("merged")
    if isinstance(merged, list):
        return f"merged from {len(merged)} sets"
    if "imported" in meta:
        return "imported"
    return None


def _words(names: Any) -> str | None:
    """Names of a list, where there are any."""
    if not isinstance(names, list):
        return None
    return ", ".join(map(str, names)) or None


def _run(path: Path) -> list[Part]:
    """A run, and the set that it ended with."""
    content = _object(path / "recipe.json")
    recipe = content.get("recipe", {})
    meta = _maybe(path / "distilled" / "meta.json")
    origin = _origin(meta)
    rows = _rows(
        ("state", _state(path, recipe)),
        ("recipe", at(recipe, "name")),
        ("origin", origin),
        ("dataset", at(recipe, "data", "name")),
        ("images per class", at(recipe, "ipc")),
        ("network", at(recipe, "model")),
        ("in turn with", _words(at(recipe, "more_models"))),
        ("objective", None if origin else at(recipe, "objective", "type")),
        ("seed", content.get("seed")),
        ("precision", content.get("precision")),
        ("checkpoint at step", _checkpoint_step(path)),
        *_progress(path / "metrics.jsonl"),
        ("time of the steps", _said(log.duration, at(meta, "distillation", "seconds"))),
        ("peak memory", _said(size, at(meta, "distillation", "peak_memory_bytes"))),
        ("files", ", ".join(_names(path))),
        ("size on disk", size(_bytes_of(path))),
    )
    parts = [Part(f"Run {path}", rows)]
    if (path / "distilled" / "meta.json").is_file():
        parts += _set(path / "distilled")
    return parts


def _progress(metrics: Path) -> list[tuple[str, Any]]:
    """The last loss and the last validation accuracy of a run, with their steps."""
    step, loss = _last_event(metrics, "loss")
    tested, validation = _last_event(metrics, "validation_accuracy")
    facts = []
    if isinstance(loss, int | float):
        facts.append(("last loss", f"{loss:.6g} at step {step}"))
    if validation is not None:
        accuracy = f"{_percent(validation)} at step {tested}"
        facts.append(("last validation accuracy %", accuracy))
    return facts


def _names(folder: Path) -> list[str]:
    """What lies in a folder, but hidden files; folders end with a slash."""
    names = []
    for path in folder.iterdir():
        if not path.name.startswith("."):
            names.append(f"{path.name}/" if path.is_dir() else path.name)
    return sorted(names)


def _run_row(path: Path) -> tuple[str, ...]:
    """A line of a table of runs; of imported sets, which are a folder without a run, too."""
    content = _maybe(path / "recipe.json")
    meta = _maybe(path / "distilled" / "meta.json") or _maybe(path / "meta.json")
    on_disk = size(_bytes_of(path))
    if not content and not meta:
        return (path.name, UNREADABLE, "", "", "", "", on_disk)
    recipe = content.get("recipe") or meta.get("recipe")
    name = str(at(recipe, "name") or "-")
    origin = _origin(meta)
    if origin:
        name += f" ({origin})"
    dataset = at(recipe, "data", "name") or "-"
    ipc = at(recipe, "ipc") or "-"
    _, loss = _last_event(path / "metrics.jsonl", "loss")
    evaluation = _maybe(path / "evaluation.json")
    if not is_of_set(evaluation, meta):
        evaluation = {}
    return (
        path.name,
        name,
        f"{dataset}, {ipc}",
        _state(path, recipe),
        _said("{:.4g}".format, loss) or "-",
        _short_accuracy(_row_of_set(evaluation)),
        on_disk,
    )


def _short_accuracy(row: Any) -> str:
    """The accuracy that a row of an evaluation says, for a table."""
    accuracy = _percent(at(row, "accuracy_mean"))
    if accuracy:
        return accuracy
    if at(row, "diverged"):
        return "diverged"
    return "-"


def _row_of_set(evaluation: Evaluation) -> Any:
    """The row of the set itself, which is the first."""
    rows = evaluation.get("rows")
    if isinstance(rows, list) and rows:
        return rows[0]
    return None


# Distilled sets and evaluations


def _set(path: Path) -> list[Part]:
    """The folder of a set."""
    meta = _object(path / "meta.json")
    if "codec" not in meta and "class_names" not in meta:
        raise UserError(
            f"{path / 'meta.json'} is not that of a distilled set; give the folder that distill "
            "wrote, or the run that holds it."
        )
    recipe = meta.get("recipe")
    tensors = _shapes(path / "data.safetensors")
    labels = _shapes(path / "labels.safetensors")
    lost = _lost(path, meta)
    # of a folder that lacks files the rest is described all the same
    damaged = [] if lost else _problem(path / "data.safetensors", _load_beside)
    rows = _rows(
        ("recipe", at(recipe, "name")),
        ("origin", _origin(meta)),
        ("dataset", at(recipe, "data", "name")),
        ("classes", _classes(meta.get("class_names"))),
        ("stored images", _stored_images(tensors)),
        ("images per class", _said("{:g}".format, meta.get("images_per_class"))),
        ("space", meta.get("space")),
        ("codec", _codec(meta.get("codec"))),
        ("labels", _targets(meta, labels)),
        ("learned lr", _learned_lr(path) if "lr" in tensors else None),
        ("bytes", _bytes_in_all(meta.get("bytes"))),
        ("of the training images", _said(size, meta.get("raw_bytes"))),
        ("parquet", ", ".join(_parquet(path)) or "none: written before sets had one"),
        *_trained(meta.get("protocol")),
        ("accuracy %", _measured(path, meta) or "not evaluated"),
        ("evaluation", _shipped_evaluation(path)),
        ("seed", meta.get("seed")),
        ("versions", markdown.words(meta.get("versions"))),
        ("machine", markdown.words(meta.get("machine"))),
        ("commit", meta.get("commit")),
        ("missing", ", ".join(lost)),
        ("damaged", "; ".join(damaged)),
    )
    return [Part(f"Distilled set {path}", rows), *_tensors({**tensors, **labels})]


def _targets(meta: Meta, labels: Shapes) -> Any:
    """What networks are trained towards; of features whose they are, and how many bytes they take.

    An unknown kind is said as meta.json says it.
    """
    kind = meta.get("target_kind")
    try:
        targets = targets_of(str(kind), "stored")
    except KeyError:
        return kind
    if not targets.regressed or targets.names[0] not in labels:
        return targets.words
    shape, dtype = labels[targets.names[0]]
    network = target_in_words(target_network(meta))
    said = f"{targets.words} of {network}, {'x'.join(map(str, shape))}, {dtype}"
    total, of_labels = at(meta, "bytes", "total"), at(meta, "bytes", "labels")
    if not isinstance(total, int) or not isinstance(of_labels, int):
        return said
    return f"{said}; with classes {100 * of_labels / total:.3g} % of the bytes"


def _shapes(path: Path) -> Shapes:
    """Shape and type of each tensor of a file; none where there is no file."""
    if not path.is_file():
        return {}
    _, shapes = _header(path)
    return shapes


def _lost(path: Path, meta: Meta) -> list[str]:
    """Files that the folder of a set should hold and does not."""
    needed = ["data.safetensors"]
    if meta.get("labels_digest"):
        needed.append("labels.safetensors")
    return [name for name in needed if not (path / name).is_file()]


def _load_beside(tensors: Path) -> None:
    """Load the set that a file of tensors belongs to, which raises UserError where it cannot be."""
    folders.load(tensors.parent, CPU)


def _classes(names: Any) -> str:
    """How many classes there are, and the first names."""
    if not isinstance(names, list):
        names = []
    return f"{len(names)}: {_first(names, SHOWN_CLASSES)}"


def _stored_images(tensors: Shapes) -> str | None:
    """Number, shape and type of the images that are stored."""
    if "images" not in tensors:
        return None
    shape, dtype = tensors["images"]
    num, *sides = map(str, shape)
    return f"{num} of {'x'.join(sides)}, {dtype}"


def _codec(codec: Any) -> str:
    """The parametrisation with its settings."""
    parts = [str(at(codec, "type"))]
    if isinstance(codec, Mapping):
        for name, value in codec.items():
            if name != "type":
                parts.append(f"{name}={value}")
    return " ".join(parts)


def _bytes_in_all(sizes: Any) -> str | None:
    """What the set takes, in all and part by part."""
    total = at(sizes, "total")
    if not isinstance(total, int):
        return None
    return f"{size(total)} in all: {bytes_by_part(sizes)}"


def _parquet(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob(PARQUET))


def _measured(path: Path, meta: Meta) -> str | None:
    """The accuracy of the set, by the evaluation of its run or the one that lies in its folder.

    Of one that cannot be believed, why not.
    """
    evaluations = [path / "evaluation.json"]
    if path.name == "distilled":
        evaluations.insert(0, path.parent / "evaluation.json")
    for evaluation in evaluations:
        if evaluation.is_file():
            return _believed(evaluation, meta)
    return None


def _believed(path: Path, meta: Meta) -> str | None:
    """The accuracy that an evaluation says of this set, or why it says none."""
    try:
        content = _object(path)
        check_of_set(path, content, meta)
    except UserError as error:
        return f"unknown: {error}"
    return _accuracy(_row_of_set(content))


def _accuracy(row: Any) -> str | None:
    """The accuracy that a row of an evaluation says, in words."""
    mean = _percent(at(row, "accuracy_mean"))
    spread = _percent(at(row, "accuracy_std"))
    model = at(row, "model")
    if at(row, "diverged") and at(row, "accuracy_mean") is None:
        return f"all networks diverged, with {model}"
    if not mean:
        return None
    if spread:
        mean += f" ± {spread}"
    return f"{mean} with {model}, n = {at(row, 'n')}"


def _shipped_evaluation(path: Path) -> str | None:
    if (path / "evaluation.json").is_file():
        return "evaluation.json, shipped with the set"
    return None


def _problem(path: Path, read: Callable[[Path], Any]) -> list[str]:
    """What reading a file complains about: one sentence or none.

    The file may be absent, or too large to be read here.
    """
    if not path.is_file() or path.stat().st_size > CHECKED:
        return []
    try:
        read(path)
    except UserError as error:
        return [str(error)]
    return []


def _trained(protocol: Any) -> list[tuple[str, Any]]:
    """How networks were trained on the set; nothing where meta.json does not say it as we do."""
    try:
        return [(name, value) for name, value in words(protocol) if name != "network"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _learned_lr(path: Path) -> str:
    """The learned rates, the only numbers that are read to be shown."""
    with files.reading_tensors(path / "data.safetensors") as file:
        rates = file.get_tensor("lr").flatten().tolist()
    return ", ".join(f"{rate:.6g}" for rate in rates)


def _evaluation(path: Path) -> list[Part]:
    """An evaluation.json, with its rows as a table."""
    evaluation = _object(path)
    if not isinstance(evaluation.get("rows"), list):
        raise UserError(
            f"{path} is not an evaluation (it has no rows); evaluate again with --restart."
        )
    rows = _rows(
        ("protocol", at(evaluation, "protocol", "protocol")),
        ("seed", evaluation.get("seed")),
        ("precision", evaluation.get("precision")),
        ("time", _said(log.duration, evaluation.get("seconds"))),
        ("versions", markdown.words(evaluation.get("versions"))),
        ("machine", markdown.words(evaluation.get("machine"))),
        ("commit", evaluation.get("commit")),
    )
    head, cells, said = _cells(path, evaluation)
    rows += _rows(("notes", said))
    models = sorted({str(row["model"]) for row in evaluation["rows"]})
    return [
        Part(f"Evaluation {path}", rows),
        Part(f"Test accuracy, {', '.join(models)}", cells, head),
    ]


def _transfer(path: Path, content: Facts) -> list[Part]:
    """A transfer.json: what was tested, and the accuracies."""
    rows = _rows(
        ("datasets", ", ".join(content.get("datasets") or ())),
        ("networks", ", ".join(content.get("models") or ())),
        ("seed", content.get("seed")),
        ("precision", content.get("precision")),
        ("time", _said(log.duration, content.get("seconds"))),
        ("versions", markdown.words(content.get("versions"))),
        ("commit", content.get("commit")),
    )
    cells = []
    for row in content["rows"]:
        named = [str(at(row, name)) for name in OF_TRANSFER]
        cells.append((*named, _short_accuracy(row)))
    head = (*OF_TRANSFER, "accuracy %")
    return [Part(f"Transfer {path}", rows), Part("Test accuracy on other datasets", cells, head)]


def _cells(
    path: Path, evaluation: Evaluation
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """(head, rows) of the table of an evaluation, and its notes; empty where it has no rows."""
    if not evaluation["rows"]:
        return (), [], ""
    try:
        columns = table(evaluation, "").columns
        said = "; ".join(notes(evaluation))
        cells = [list(map(str, column.cells)) for column in columns]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} was not written by this version of the engine ({error!r} is missing); "
            "evaluate again with --restart."
        ) from None
    head = tuple(str(column.header) for column in columns)
    return head, list(zip(*cells, strict=True)), said


# Files


def _tensors(tensors: Shapes) -> list[Part]:
    """The tensors of a file as a table, which of many shows the first."""
    if not tensors:
        return []
    rows = []
    for name, (shape, dtype) in sorted(tensors.items()):
        rows.append((name, "x".join(map(str, shape)) or "one number", dtype))
    shown = rows[:SHOWN]
    if len(rows) > SHOWN:
        shown.append((f"... {len(rows) - SHOWN} more", "", ""))
    return [Part(f"Tensors: {len(rows)}", shown, ("tensor", "shape", "type"))]


def _file(path: Path) -> list[Part]:
    """A file that this program writes."""
    if path.suffix == ".safetensors":
        return _file_of_tensors(path)
    if path.suffix in (".pt", ".pth"):
        raise UserError(
            f"{path} is a file of another program, which may ask for code to be run; bring it in "
            f"with run.py import RECIPE --files {path}."
        )
    if path.suffix == ".json":
        content = _object(path)
        if "rows" in content and "protocol" in content:
            return _evaluation(path)
        if "rows" in content and "starts" in content:
            return _transfer(path, content)
        if path.name in OF_FOLDERS:
            return OF_FOLDERS[path.name](path.parent)
    raise UserError(
        f"{path} is not a file that inspect reads; give a .safetensors, an evaluation.json, or "
        "the folder of a store, run or distilled set."
    )


def _file_of_tensors(path: Path) -> list[Part]:
    """A file of tensors, with what its metadata say."""
    metadata, tensors = _header(path)
    facts = [("size on disk", size(_bytes_of(path)))]
    for name, value in sorted(metadata.items()):
        if len(value) > LONGEST:
            value = f"{value[:LONGEST]}..."
        facts.append((name, " ".join(value.split())))
    return [Part(f"File {path}", facts), *_tensors(tensors)]


# What a folder is that holds a file of this name; the first that it holds decides.
OF_FOLDERS = {"manifest.json": _store, "recipe.json": _run, "meta.json": _set}
