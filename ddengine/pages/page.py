"""The report page: one HTML file that shows runs, and needs nothing beside it.

What a folder lacks is left out.
"""

import base64
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddengine.artefact import folder as folders
from ddengine.evaluation import scores, tables
from ddengine.pages import figures, of_privacy
from ddengine.sets import synthetic
from ddengine.system import files, log
from ddengine.system.errors import UserError

SHOWN_CLASSES, SHOWN_PER_CLASS = 20, 10
LARGEST = 96  # pixels; larger images are made smaller
SHOWN_PIXELS = 56  # about how large images are shown
# pixel values that the pictures of real and distilled images of a page may have together, which
# bounds its size
VALUES = 1_500_000
# pictures of the run's progress: how many of a run at most, and their bytes in a page
FRAMES, FRAME_BYTES = 25, 900_000
BINS = 150  # of a long curve; of each its smallest and largest value are drawn
CHARTS = 6  # networks with a chart of their own; with more of them the heat map says it all
OPTIONAL = ("scores.json", "ranking.json", "privacy.json")
NONE = "\N{EN DASH}"  # in a table, where there is no number
ANONYMOUS = "Distilled is not anonymous: images start from real ones and can still resemble them."


@dataclass(frozen=True)
class Run:
    """What is known of a run; None and empty where its folder does not say it."""

    name: str  # shown
    path: Path
    recipe: dict[str, Any]
    own: dict[str, Any]  # recipe.json beside the recipe: seed, precision
    meta: dict[str, Any]
    syn: synthetic.SyntheticSet | None
    evaluation: dict[str, Any]
    events: list[dict[str, Any]]
    progress: list[tuple[int, Path]]  # (step, picture), ascending
    samples: dict[str, Tensor]
    extra: dict[str, Any]  # content of scores.json, ranking.json, privacy.json

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the evaluation."""
        return self.evaluation.get("rows", [])

    @property
    def models(self) -> list[str]:
        """Networks of the evaluation, in its order."""
        return list(dict.fromkeys(row["model"] for row in self.rows))

    @property
    def result(self) -> dict[str, Any] | None:
        """The row of the set itself on the first network, which is the first row of an evaluation."""
        return self.rows[0] if self.rows else None

    def fact(self, key: str) -> Any:
        """What the set says, else the run, else its evaluation."""
        return next(
            (
                part[key]
                for part in (self.meta, self.own, self.evaluation)
                if part.get(key) is not None
            ),
            None,
        )


MARK = '<meta name="generator" content="ddengine report">'  # near the beginning of every page


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of `runs` to the file `out` and return it.

    Each is the folder of a run, a distilled folder, or a folder that holds an evaluation. Raises
    UserError for any other, for damaged files, and for an `out` that cannot be written.
    """
    if not runs:
        raise UserError("A report needs a run to show; give the folder of one.")
    if out.is_dir():
        raise UserError(f"{out} is a folder, and a report is one file; name a file with --out.")
    if out.is_file() and MARK.encode() not in out.read_bytes()[:500]:
        raise UserError(
            f"{out} is there and no report, so it is left alone; name another file with --out."
        )
    shown = _named([read(path) for path in runs])
    html = _render(shown)
    files.make_folder(out.parent)
    with files.replacing(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out


# Reading.


def read(path: Path) -> Run:
    """What the folder of a run, a distilled folder or a folder of an evaluation says.

    Raises UserError for others and for damaged files.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder of a run; check the path.")
    folder = next((f for f in (path / "distilled", path) if (f / "meta.json").is_file()), None)
    names = ("recipe.json", "evaluation.json", *OPTIONAL)
    content = {name: _object(path / name) for name in names if (path / name).is_file()}
    if folder is None and not content:
        raise UserError(
            f"{path} is neither a run nor a distilled set nor an evaluation; give the folder that "
            "distill, select or evaluate wrote."
        )
    syn, meta = folders.load(folder, torch.device("cpu")) if folder else (None, {})
    own, evaluation = content.pop("recipe.json", {}), content.pop("evaluation.json", {})
    _check_rows(path / "evaluation.json", evaluation)
    recipe = meta.get("recipe") or own.pop("recipe", None) or {}
    # where the files of a machine lie is no part of what was done
    if isinstance(recipe.get("data"), dict):
        recipe = recipe | {
            "data": {k: v for k, v in recipe["data"].items() if k not in ("root", "download")}
        }
    pictures = sorted(
        (int(p.stem[5:]), p) for p in path.glob("progress/step_*.png") if p.stem[5:].isdigit()
    )
    samples = (
        files.read_tensors(path / "samples.safetensors")[0]
        if (path / "samples.safetensors").is_file()
        else {}
    )
    if samples and not (
        {"pixels", "labels"} <= samples.keys() and samples["pixels"].ndim == 4 and samples["pixels"].dtype == torch.uint8
    ):  # fmt: skip
        raise UserError(
            f"{path / 'samples.safetensors'} does not hold images and labels; delete it, and the "
            "page leaves the real images out."
        )
    extra = {name.removesuffix(".json"): value for name, value in content.items()}
    name = path.resolve().name
    name = (
        path.resolve().parent.name
        if name == "distilled" and (path.resolve().parent / "recipe.json").is_file()
        else name
    )
    return Run(
        name,
        path,
        recipe,
        own,
        meta,
        syn,
        evaluation,
        _events(path / "metrics.jsonl"),
        pictures,
        samples,
        extra,
    )


def _object(path: Path) -> Any:
    content = files.read_json(path)
    if isinstance(content, dict):
        return content
    raise UserError(f"{path} is no JSON object; restore it or run the command that wrote it again.")


def _check_rows(path: Path, evaluation: dict[str, Any]) -> None:
    """Raise UserError where an evaluation that is there has no rows, or rows without what is always
    shown.
    """
    needed = {"set", "model", "accuracy_mean"}
    rows = evaluation.get("rows", [])

    def fits(row: Any) -> bool:
        # networks that all diverged have no accuracy
        return (
            isinstance(row, dict)
            and needed <= row.keys()
            and (isinstance(row["accuracy_mean"], float | int) or bool(row.get("diverged")))
        )

    fine = isinstance(rows, list) and all(map(fits, rows))
    if evaluation and not (fine and rows):
        raise UserError(
            f"{path} has no rows with {', '.join(sorted(needed))}; evaluate again with --restart."
        )


def _events(path: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl; a line that a kill cut off is left out."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    try:
        events = [
            json.loads(line)
            for line in content[: content.rfind(b"\n") + 1].splitlines()
            if line.strip()
        ]
    except ValueError:
        raise UserError(
            f"{path} is damaged; restore it, or delete it and the page leaves the curves out."
        ) from None
    return [
        event for event in events if isinstance(event, dict) and isinstance(event.get("step"), int)
    ]


def _named(runs: list[Run]) -> list[Run]:
    """The runs with names of their own: the folder's, with its parent's where two are called the
    same, and a number where that is not enough.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [
            f"{run.path.resolve().parent.name}/{run.name}"
            if names.count(run.name) > 1
            else run.name
            for run in runs
        ]
    return [
        replace(run, name=f"{name} ({i + 1})" if names.count(name) > 1 else name)
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


# Numbers in words.


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f}" if row.get("ci95") else NONE


def _count(value: float | None) -> str:
    """Large counts in the unit that suits them, small ones as they are."""
    if value is None:
        return ""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:g}"


def _duration(seconds: float) -> str:
    return "under 1 s" if 0 <= seconds < 0.5 else log.duration(seconds)


def _plain(value: Any) -> str:
    """A value of a recipe or a JSON file as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return (
        "none"
        if value is None or value == {}
        else {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else str(value)
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of everything in nested objects."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for i, part in enumerate(value):
            yield from _flat(part, f"{prefix}.{i + 1}")
    else:
        yield prefix, _plain(value)


def _versions(versions: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items())


def _machine(machine: Mapping[str, Any] | None) -> str:
    m = machine or {}
    parts = (m.get("device"), f"{m['cores']} cores" if "cores" in m else None, m.get("system"))
    return ", ".join(str(part) for part in parts if part)


def _method(run: Run) -> str:
    if "selected" in run.meta:
        return f"real images, chosen by {run.meta['selected'].get('kind', 'a selection')}"
    method = str(run.recipe.get("name", "")).split("/")[0]
    return method and method + (
        " (imported)" if "imported" in run.meta else " (merged)" if "merged" in run.meta else ""
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was done and with what."""
    recipe, data = run.recipe, run.recipe.get("data") or {}
    options = [
        f"{key} {_plain(data[key])}"
        for key in ("limit", "size", "zca", "validation")
        if data.get(key)
    ]
    published = recipe.get("published")
    figure = ""
    if isinstance(published, dict) and "accuracy" in published:
        figure = f"{_percent(published['accuracy'])} %" + (
            f" ± {_percent(published['std'])}" if published.get("std") is not None else ""
        )
    names = run.meta.get("class_names") or []
    facts = [
        ("Recipe", recipe.get("name")),
        ("Method", _method(run)),
        ("Data", ", ".join(filter(None, [data.get("name"), *options]))),
        ("Classes", str(len(names)) if names else None),
        ("Network", recipe.get("model")),
        ("Teachers", ", ".join(recipe.get("teachers") or ())),
        ("Images per class", _plain(recipe["ipc"]) if "ipc" in recipe else None),
        (
            "Stored images",
            f"{len(run.syn.tensors['images'])}, which train as {len(run.syn)} examples"
            if run.syn
            else None,
        ),
        ("Seed", None if run.fact("seed") is None else str(run.fact("seed"))),
        ("Precision", run.fact("precision")),
        ("Published accuracy", figure),
        ("Machine", _machine(run.fact("machine"))),
        ("Versions", _versions(run.fact("versions"))),
        ("Commit", run.fact("commit")),
    ]
    if run.meta:
        theirs = (
            ("Machine", "machine", _machine),
            ("Versions", "versions", _versions),
            ("Commit", "commit", str),
            ("Seed", "seed", str),
        )
        facts += [
            (f"{title} of the evaluation", text(run.evaluation[key]))
            for title, key, text in theirs
            if run.evaluation.get(key) is not None and run.evaluation[key] != run.meta.get(key)
        ]
    return [(key, str(value)) for key, value in facts if value]


def _cost(run: Run) -> list[tuple[str, str]]:
    """Time, memory, and updates that were skipped."""
    done, experts, found = run.meta.get("distillation") or {}, run.meta.get("experts") or {}, []
    stores = experts.get("stores") or [experts]
    seconds = [
        s["seconds"]
        for s in stores
        if isinstance(s, dict) and isinstance(s.get("seconds"), float | int)
    ]
    entries = [
        ("Training the experts", sum(seconds) if seconds else None, _duration),
        ("Making the initial set", done.get("initial_seconds"), _duration),
        ("Distillation", done.get("seconds"), _duration),
        ("Evaluation", run.evaluation.get("seconds"), _duration),
        ("Peak memory of the distillation", done.get("peak_memory_bytes"), log.size),
        ("Updates skipped, not finite", done.get("updates_skipped_not_finite") or None, str),
        ("Updates skipped, loss too high", done.get("updates_skipped_max_loss") or None, str),
        (
            "Learned rate held at its smallest",
            done.get("learned_lr_held") or None,
            lambda n: f"{n} times",
        ),
    ]
    for name, value, text in entries:
        if value is not None:
            found.append((name, text(value)))
    for name, key in (
        ("Training of all reported networks", "training_flops"),
        ("Examples these saw", "examples_seen"),
    ):
        known = [
            row[key] * row.get("n", 1) for row in run.rows if isinstance(row.get(key), float | int)
        ]
        if known:
            found.append((name, _count(sum(known)) + ("FLOP" if key == "training_flops" else "")))
    return found


def _ledger(run: Run) -> dict[str, Any]:
    """Rows (part, bytes, percentage of the training images) and a note; empty where bytes are not
    known.
    """
    row = run.result or {}
    sizes = run.meta.get("bytes") or (
        {**row["ledger"], "total": row["bytes"]} if "ledger" in row and "bytes" in row else None
    )
    if not sizes or "total" not in sizes:
        return {}
    raw, dataset = run.fact("raw_bytes"), run.fact("dataset_bytes")

    def line(name: str, num: float) -> tuple[str, str, str]:
        return name, log.size(num), f"{100 * num / raw:.3g} %" if raw else ""

    lines = [
        line(part.capitalize(), sizes.get(part, 0))
        for part in ("images", "compensators", "labels", "other")
    ]
    lines.append(line("In all", sizes["total"]))
    if raw:
        lines.append(line("Training images in use", raw))
    if dataset and dataset != raw:
        lines.append(line("Whole training split", dataset))
    counted = {r["labels_counted"] for r in run.rows if "labels_counted" in r}
    note = (
        f"Labels made during the training are counted as {' or '.join(sorted(counted))}, "
        "whichever is less; see the bytes of the rows."
        if counted
        else ""
    )
    return {"lines": lines, "note": note}


def _accuracies(run: Run) -> dict[str, Any]:
    """Head and rows of the table of accuracies; columns that no row has are left out."""
    raw = run.fact("raw_bytes")
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("Accuracy %", lambda r: tables.percent(r["accuracy_mean"])),
        ("95 % interval", _interval),
        ("Std", lambda r: _percent(r.get("accuracy_std"))),
        (
            "Balanced %",
            lambda r: (
                tables.percent(r["balanced_accuracy_mean"]) if "balanced_accuracy_mean" in r else ""
            ),
        ),
        ("n", lambda r: _plain(r["n"]) if "n" in r else ""),
        ("Diverged", lambda r: str(r["diverged"]) if r.get("diverged") else ""),
        ("Images", lambda r: _plain(r["images"]) if "images" in r else ""),
        ("Bytes", lambda r: log.size(r["bytes"]) if "bytes" in r else ""),
        ("% of images", lambda r: f"{100 * r['bytes'] / raw:.3g}" if raw and "bytes" in r else ""),
        ("Optimiser", lambda r: str(r.get("optimiser", ""))),
        ("Rate", lambda r: f"{r['lr']:.4g}" if "lr" in r else ""),
        ("Updates", lambda r: _plain(r["steps"]) if "steps" in r else ""),
        ("Examples seen", lambda r: _count(r.get("examples_seen"))),
        ("Training FLOP", lambda r: _count(r.get("training_flops"))),
        ("Time", lambda r: _duration(r["seconds"]) if "seconds" in r else ""),
    ]
    cells = [(title, [text(row) for row in run.rows]) for title, text in columns]
    cells = [(title, texts) for title, texts in cells if any(texts)]
    own = run.rows[0]["set"] if run.rows else None
    several = len(run.models) > 1
    rows = [
        {
            "set": r["set"],
            "model": r["model"],
            "own": r["set"] == own,
            "cells": [texts[i] for _, texts in cells],
        }
        for i, r in enumerate(run.rows)
    ]
    return {
        "head": [title for title, _ in cells],
        "rows": rows,
        "several": several,
        "model": run.models[0] if run.models else "",
        "interval": tables.interval_of(run.evaluation)
        if any(row.get("ci95") for row in run.rows)
        else "",
        "balanced": "Balanced %" in dict(cells),
    }


def _classes(run: Run) -> dict[str, Any]:
    """A line for each class and a column for each row: its mean accuracy; empty where no row says
    them.
    """
    rows = [row for row in run.rows if isinstance(row.get("per_class"), dict)]
    if not rows:
        return {}
    counts = run.evaluation.get("test_images_per_class") or {}
    names = list(dict.fromkeys(name for row in rows for name in row["per_class"]))
    several = len(run.models) > 1
    head = [
        "Class",
        *(["Test images"] if counts else []),
        *(f"{row['set']}, {row['model']}" if several else row["set"] for row in rows),
    ]

    def cells(name: str) -> list[str]:
        shares = [row["per_class"].get(name) for row in rows]
        return [NONE if share is None else _percent(share) for share in shares]

    return {
        "head": head,
        "rows": [
            [name, *([str(counts.get(name, ""))] if counts else []), *cells(name)] for name in names
        ],
    }


def _commands(run: Run) -> dict[str, Any]:
    """The commands that make the run again, as far as its files say, and how sure that is."""
    recipe, name = run.recipe, run.recipe.get("name")
    commands, flags = [], []
    if name:
        taken = re.match(
            re.escape(str(name)) + r" with parts of others \((.*?)\)", str(recipe.get("note", ""))
        )
        for part in taken[1].split(", ") if taken else []:
            flags += ["--take", part]
        data = recipe.get("data") or {}
        for flag, value in (
            ("--data.name", data.get("name")),
            ("--data.limit", data.get("limit")),
            ("--model", recipe.get("model")),
        ):
            flags += [flag, _word(value)] if value is not None else []
        flags += ["--ipc", _word(recipe["ipc"])] if "ipc" in recipe else []
        for flag in ("seed", "precision"):
            value = run.meta.get(flag, run.own.get(flag))
            flags += [f"--{flag}", _word(value)] if value is not None else []
        command = (
            "select"
            if "selected" in run.meta
            else "import"
            if "imported" in run.meta
            else "distill"
        )
        if command == "import":
            flags = [word for word in flags if word not in ("--seed", "--precision")]
            flags += ["--files", "FILES"]
        if recipe.get("buffer") and run.meta.get("experts"):
            commands.append(["buffer", name, *flags])
        if command == "select":
            flags += ["--init.kind", _word(run.meta["selected"].get("kind"))]
        elif command == "distill" and (recipe.get("outer") or {}).get("steps") is not None:
            flags += ["--outer.steps", _word(recipe["outer"]["steps"])]
        commands.append([command, name, *flags, "--out", f"runs/{run.name}"])
    protocol = run.evaluation.get("protocol") or {}
    if run.rows:
        flags = ["--protocol", _word(protocol["protocol"])] if "protocol" in protocol else []
        for key in ("models", "baselines"):
            flags += [f"--{key}", *map(_word, protocol[key])] if protocol.get(key) else []
        for key in ("epochs", "num_networks", "full_steps", "search_networks", "labels", "rate"):
            flags += [f"--{key}", _word(protocol[key])] if key in protocol else []
        for key in ("seed", "precision"):
            flags += (
                [f"--{key}", _word(run.evaluation[key])]
                if run.evaluation.get(key) is not None
                else []
            )
        commands.append(["evaluate", f"runs/{run.name}", *flags])
    # as they were given; else as far as the stored facts say
    said, judged = run.own.get("command"), run.evaluation.get("command")
    if said:
        words = [str(word) for word in said]
        before = (
            [
                [
                    *words[:2],
                    "buffer",
                    *_without(words[3:], "--out", "--restart", "--force", "--tensorboard"),
                ]
            ]
            if run.meta.get("experts")
            else []
        )
        given = [*(before if words[2:3] == ["distill"] else []), words]
        commands = [
            *given,
            *([["python", "run.py", *map(str, c)] for c in commands[-1:]] if run.rows else []),
        ]
    else:
        commands = [["python", "run.py", *map(str, words)] for words in commands]
    if judged and run.rows:
        commands[-1:] = [] if said and words[2:3] == ["demo"] else [[str(word) for word in judged]]
    return {
        "text": "\n".join(map(_shell, commands)),
        "exact": bool(said) and (bool(judged) or not run.rows),
        "json": json.dumps(recipe, indent=1, ensure_ascii=False) if recipe else "",
        "protocol": json.dumps(protocol, indent=1, ensure_ascii=False) if protocol else "",
    }


def _without(words: Sequence[str], *flags: str) -> list[str]:
    """The words of a command without these flags; --out has a value, the others have none."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = word == "--out"
        elif not word.startswith("--out="):
            kept.append(word)
    return kept


def _word(value: Any) -> str:
    return str(value)


def _shell(words: Sequence[str], width: int = 100) -> str:
    """A command line for a shell, long ones in several lines."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + len(word) > width and word.startswith("--"):
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


# Pictures.


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _image(pixels: Tensor) -> str:
    """(C, H, W) uint8, grey or colour, as a data URI; not larger than LARGEST."""
    from PIL import Image

    array = (
        pixels[0].numpy() if len(pixels) == 1 else pixels[:3].permute(1, 2, 0).contiguous().numpy()
    )
    if max(array.shape[:2]) > LARGEST:
        small = Image.fromarray(array)
        small.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
        array = np.asarray(small)
    return _data_uri(_png(array))


def _learned(syn: synthetic.SyntheticSet) -> list[Tensor]:
    """Indices of the decoded images of each shown class, without real ones that the codec keeps as
    they are, which show nothing new.
    """
    labels = syn.classes[syn.source].cpu()
    learned = torch.arange(len(labels)) >= syn.codec.natural(syn.tensors) % max(1, len(labels))
    return [
        ((labels == c) & learned).nonzero().flatten()
        for c in range(min(len(syn.class_names), SHOWN_CLASSES))
    ]


def _grids(run: Run, values: int) -> dict[str, Any]:
    """Real and distilled images by class; `values` bounds how many pixel values are shown.

    Empty without a set.
    """
    if run.syn is None:
        return {}
    names, real, labels = run.syn.class_names, run.samples.get("pixels"), run.samples.get("labels")
    members = _learned(run.syn)
    none = torch.zeros(0, dtype=torch.long)
    reals = [
        none if labels is None else (labels == c).nonzero().flatten() for c in range(len(members))
    ]
    shape = run.syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:]
    each = shape[0] * min(shape[1], LARGEST) * min(shape[2], LARGEST)
    kinds = 1 + (real is not None)
    most = max(1, min(SHOWN_PER_CLASS, values // max(1, each * len(members) * kinds)))
    rows = []
    for c, (mine, theirs) in enumerate(zip(members, reals, strict=True)):
        distilled = (
            (run.syn.pixels(mine[:most]).clamp(0, 1) * 255).round().byte().cpu()
            if len(mine)
            else ()
        )
        rows.append({
            "name": names[c],
            "real": [_image(image) for image in (real[theirs[:most]] if real is not None else ())],
            "distilled": [_image(image) for image in distilled],
            "more": max(0, len(mine) - most),
        })  # fmt: skip
    scale = max(1, round(SHOWN_PIXELS / min(LARGEST, shape[2])))
    return {
        "rows": rows,
        "more": max(0, len(names) - len(members)),
        "classes": len(names),
        "width": min(LARGEST, shape[2]) * scale,
        "columns": " ".join(
            f"minmax(0, {max(2, *(len(row[kind]) for row in rows), 0)}fr)"
            for kind in ("real", "distilled")
        ),
        "real": real is not None,
        "word": "chosen" if "selected" in run.meta else "distilled",
        "size": f"{shape[1]} \N{MULTIPLICATION SIGN} {shape[2]} pixels",
        "smaller": max(shape[1:]) > LARGEST,
    }


def _spread(num: int, most: int) -> list[int]:
    """At most `most` of num places, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, num - 1, min(num, most))})


def _frame(path: Path, tile: tuple[int, int] | None) -> tuple[bytes, int]:
    """(PNG, width at which it is shown) of a picture of the progress, without the enlargement that
    figures.grid made, which the browser does.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            array = np.asarray(file.convert("RGB"))
    except (OSError, ValueError):
        raise UserError(f"{path} is no picture; delete it, and the page leaves it out.") from None
    width = array.shape[1]
    if tile is not None:
        height_of, width_of = tile
        zoom = max(1, 64 // width_of)
        steps = height_of * zoom + 2, width_of * zoom + 2
        if zoom > 1 and all(
            (side - 2) % step == 0 for side, step in zip(array.shape, steps, strict=False)
        ):
            rows, columns = (
                (side - 2) // step for side, step in zip(array.shape, steps, strict=False)
            )
            small = np.full(
                (rows * (height_of + 1) - 1, columns * (width_of + 1) - 1, 3), 255, np.uint8
            )
            for r in range(rows):
                for c in range(columns):
                    part = array[2 + r * steps[0] :, 2 + c * steps[1] :][
                        : height_of * zoom : zoom, : width_of * zoom : zoom
                    ]
                    small[r * (height_of + 1) :, c * (width_of + 1) :][:height_of, :width_of] = part
            array = small
    if (array == array[..., :1]).all():
        array = array[..., 0]
    return _png(np.ascontiguousarray(array)), width


def _frames(run: Run, most_bytes: int) -> list[dict[str, Any]]:
    """Pictures of the progress: step, data URI, width; so many as stay below `most_bytes`, the
    first and the last always.
    """
    tile = None
    if run.syn is not None and len(run.syn):
        height, width = run.syn.pixels(torch.zeros(1, dtype=torch.long)).shape[-2:]
        tile = (height, width)
    made: dict[int, tuple[bytes, int]] = {}
    for most in (FRAMES, 17, 12, 8, 5, 3, 2):
        chosen, total = _spread(len(run.progress), most), 0
        for i in chosen:
            made[i] = made[i] if i in made else _frame(run.progress[i][1], tile)
            total += len(made[i][0]) * 4 // 3
            if total > most_bytes and most > 2:
                break
        else:
            return [
                {"step": run.progress[i][0], "src": _data_uri(made[i][0]), "width": made[i][1]}
                for i in chosen
            ]
    return []


# Figures.

# stand for currentColor and the page's colours --c0 to --c7
INK, SERIES = "#010203", [f"#0102{i:02x}" for i in range(16, 24)]
DASHES = ("-", "--", ":")


def _svg(figure: Any, number: int, label: str) -> str:
    """A figure as SVG that lies in the page: its colours and fonts are the page's, its ids are its
    own.
    """
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sid="([^"]*)"', rf' id="f{number}-\1"', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#f{number}-', text)
    text = re.sub(r"url\(#", f"url(#f{number}-", text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace(INK, "currentColor")
    for i, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--c{i})")
    head = text[: text.index(">")]
    box = re.search(r'viewBox="([^"]*)"', head)
    words = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{words}"{text[text.index(">") :]}'


def _figure(height: float = 2.5) -> tuple[Any, Any]:
    """A figure of 4.4 inches, so that its letters are readable on a telephone, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "page", "text.parse_math": False, "font.size": 9, "axes.unicode_minus": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK),
}  # fmt: skip


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """A curve with at most two points for each of BINS parts: its smallest and its largest value
    there, in order. Values that are not finite go.
    """
    points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if len(points) > 2 * BINS:
        parts = np.array_split(np.arange(len(points)), BINS)
        kept = {0, len(points) - 1}
        for part in parts:
            inside = [points[i][1] for i in part]
            kept |= {int(part[int(np.argmin(inside))]), int(part[int(np.argmax(inside))])}
        points = [points[i] for i in sorted(kept)]
    return [s for s, _ in points], [v for _, v in points]


CURVES = (
    ("loss", "Loss of the distillation"),
    ("lr", "Learned learning rate"),
    ("validation_accuracy", "Validation accuracy, %"),
)


def _curves(runs: Sequence[Run], count: Iterator[int]) -> list[dict[str, Any]]:
    """Figures of what the runs logged, several in one where there are several."""
    import matplotlib

    found = []
    for key, title in CURVES:
        logged = [
            (
                [
                    (e["step"], float(e[key]))
                    for e in run.events
                    if isinstance(e.get(key), float | int)
                ],
                i % len(SERIES),
                DASHES[i // len(SERIES) % 3],
            )
            for i, run in enumerate(runs)
        ]
        if not any(points for points, *_ in logged):
            continue
        with matplotlib.rc_context(STYLE):
            figure, axes = _figure()
            drawn: list[float] = []
            thin = False
            for points, colour, dash in logged:
                factor = 100 if key == "validation_accuracy" else 1
                steps, values = thinned([s for s, _ in points], [factor * v for _, v in points])
                thin |= len(points) > 2 * BINS
                mark = (
                    "o"
                    if len(values) == 1 or (len(values) < 30 and key == "validation_accuracy")
                    else None
                )
                axes.plot(
                    steps,
                    values,
                    color=SERIES[colour],
                    linestyle=dash,
                    linewidth=1.3,
                    marker=mark,
                    markersize=3,
                )
                drawn += values
            if key == "loss" and drawn and min(drawn) > 0 and max(drawn) > 30 * min(drawn):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_minor_formatter(lambda value, _: "")
            axes.set_xlabel("step")
            axes.grid(True, alpha=0.15, linewidth=0.6)
            svg = _svg(figure, next(count), f"{title} by step")
        note = (
            " Of a long curve the smallest and largest values of each part are drawn."
            if thin
            else ""
        )
        found.append({"svg": svg, "title": title, "caption": f"{title}.{note}"})
    return found


def _bars(run: Run, model: str, number: int) -> dict[str, Any]:
    """The accuracies of all sets on a network with their intervals."""
    import matplotlib

    rows = [row for row in run.rows if row["model"] == model]
    means = [100 * (row["accuracy_mean"] or 0.0) for row in rows]
    shown, errors = [tables.percent(row["accuracy_mean"]) for row in rows], figures.error_bars(rows)
    own = run.rows[0]["set"]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(0.65 + 0.27 * len(rows))
        axes.barh(
            range(len(rows)),
            means,
            color=[SERIES[0] if row["set"] == own else SERIES[7] for row in rows],
            height=0.62,
        )
        axes.errorbar(
            means,
            range(len(rows)),
            xerr=errors,
            fmt="none",
            ecolor=INK,
            elinewidth=1.1,
            capsize=2.5,
        )
        for i, mean in enumerate(means):
            axes.text(max(mean + errors[1][i], 0) + 1.5, i, shown[i], va="center")
        axes.set_yticks(range(len(rows)), [_short(row["set"]) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("test accuracy, %")
        said = "; ".join(f"{row['set']} {text}" for row, text in zip(rows, shown, strict=True))
        svg = _svg(figure, number, f"Test accuracy in percent on {model}: {said}")
    counts = {row["n"] for row in rows if "n" in row}
    n = f" of {counts.pop()} networks" if len(counts) == 1 else ""
    by = f" by {tables.interval_of(run.evaluation)}" if any(row.get("ci95") for row in rows) else ""
    return {
        "svg": svg,
        "title": model,
        "caption": f"Mean test accuracy{n} {model} on each set; lines are 95 % intervals of the mean{by}.",
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _heat(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Accuracies as a table of (row name, evaluation row) x network, with colours that a
    colour-blind reader tells apart and legible numbers.
    """
    import matplotlib

    scale = matplotlib.colormaps["cividis"]
    models = list(dict.fromkeys(row["model"] for _, row in rows))
    names = list(dict.fromkeys(name for name, _ in rows))
    at = {(name, row["model"]): row for name, row in rows}
    values = [row["accuracy_mean"] for row in at.values() if _is_number(row["accuracy_mean"])]
    low, high = min(values, default=0.0), max(values, default=1.0)

    def colour(share: float) -> tuple[str, str]:
        rgb = [round(255 * v) for v in scale(share)[:3]]
        linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return "#" + "".join(f"{v:02x}" for v in rgb), "#000" if (light + 0.05) / 0.05 > 1.05 / (
            light + 0.05
        ) else "#fff"

    def cell(name: str, model: str) -> dict[str, str] | None:
        row = at.get((name, model))
        if row is not None and row.get("diverged") and row["accuracy_mean"] is None:
            return {
                "text": tables.DIVERGED,
                "title": "all networks diverged",
                "back": "transparent",
                "ink": "inherit",
            }
        if row is None or not _is_number(row["accuracy_mean"]):
            return None
        back, ink = colour((row["accuracy_mean"] - low) / (high - low) if high > low else 0.5)
        return {
            "text": _percent(row["accuracy_mean"]),
            "title": f"95 % interval {_interval(row)}",
            "back": back,
            "ink": ink,
        }

    return {
        "models": models,
        "rows": [(name, [cell(name, model) for model in models]) for name in names],
        "low": _percent(low),
        "high": _percent(high),
        "bar": ", ".join(colour(i / 8)[0] for i in range(9)),
    }


# Several runs.


def _comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Head and rows of the table of runs."""

    def cells(run: Run) -> dict[str, str]:
        row, recipe, ledger = run.result or {}, run.recipe, _ledger(run)
        whole = next(
            (line for line in ledger.get("lines", []) if line[0] == "In all"), ("", "", "")
        )
        seconds = (run.meta.get("distillation") or {}).get("seconds")
        return {
            "Method": _method(run),
            "Data": str((recipe.get("data") or {}).get("name", "")),
            "ipc": _plain(recipe["ipc"]) if "ipc" in recipe else "",
            "Seed": "" if run.fact("seed") is None else str(run.fact("seed")),
            "Network": str(row.get("model", "")),
            "Accuracy %": tables.percent(row["accuracy_mean"]) if row else "",
            "95 % interval": _interval(row) if row else "",
            "Bytes": whole[1],
            "% of images": whole[2].removesuffix(" %"),
            "Distillation": "" if seconds is None else _duration(seconds),
        }

    found = [cells(run) for run in runs]
    head = [key for key in found[0] if any(row[key] for row in found)]
    named = sorted(
        {tables.interval_of(run.evaluation) for run in runs if run.rows and run.rows[0].get("ci95")}
    )
    by = f"; 95 % intervals by {' or, of older ones, '.join(named)}" if named else ""
    return {
        "by": by,
        "head": ["Run", *head],
        "rows": [
            [run.name, *(row[key] for key in head)] for run, row in zip(runs, found, strict=True)
        ],
    }


def _variance(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of runs of one recipe with several seeds: how accuracies vary between distillations and
    between networks, for each network that all know.
    """
    shown = []
    for found in scores.splits([(run.name, run.meta, run.evaluation) for run in runs]):
        split = found["split"]
        cells = [
            *(_percent(split[k]) for k in ("mean", "between_std", "within_std")),
            *(_plain(split[k]) for k in ("num_distillations", "num_networks")),
        ]
        shown.append(
            {
                "recipe": found["recipe"],
                "model": found["model"],
                "runs": ", ".join(found["runs"]),
                "cells": cells,
            }
        )
    return shown


# Scores, ranking, privacy.


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else _plain(value)


def _scores(content: Any) -> list[dict[str, Any]]:
    """Small tables of scores.json, one for each network."""
    drawn = []
    for entry in content.get("scores") or []:
        made = entry.get("scores") if isinstance(entry, dict) else None
        if not isinstance(made, dict):
            continue
        rows = []
        for name, value in made.items():
            value = value if isinstance(value, dict) else {"mean": value}
            ci95 = value.get("ci95")
            between = (
                f"{_number(ci95[0])} to {_number(ci95[1])}"
                if isinstance(ci95, list | tuple) and len(ci95) == 2
                else NONE
            )
            title = scores.SHOWN.get(name, str(name).replace("_", " ")).capitalize()
            mean = (
                tables.DIVERGED
                if entry.get("diverged") and value.get("mean") is None
                else _number(value.get("mean"))
            )
            rows.append([title, mean, between, _plain(value["n"]) if "n" in value else ""])
        title = f"on {entry['model']}" if entry.get("model") else ""
        title += (
            f"; 95 % intervals of the mean by {tables.interval_of(content)}"
            if any(row[2] != NONE for row in rows)
            else ""
        )
        drawn.append({"title": title, "rows": rows})
    return drawn


def _ranking(content: dict[str, Any]) -> dict[str, Any]:
    """Rank correlations of ranking.json by set."""
    sets = (
        [entry for entry in content.get("sets", []) if isinstance(entry, dict)]
        if isinstance(content.get("sets"), list)
        else []
    )
    rows = []
    for entry in sets:
        cells = [str(entry.get("set", ""))]
        for key in ("kendall", "spearman"):
            ci95 = entry.get(f"{key}_ci95")
            cells.append(_number(entry[key]) if entry.get(key) is not None else NONE)
            cells.append(
                f"{_number(ci95[0])} to {_number(ci95[1])}"
                if isinstance(ci95, list) and len(ci95) == 2
                else NONE
            )
        rows.append(cells)
    others = [
        (k, v)
        for k, v in content.items()
        if k not in ("sets", "note") and isinstance(v, str | int | float)
    ]
    return {
        "rows": rows,
        "note": str(content.get("note") or ""),
        "others": [(k.replace("_", " "), _number(v)) for k, v in others],
    }


def _privacy(run: Run) -> dict[str, Any]:
    """The note, the numbers and the picture of a privacy check.

    Raises UserError for a file that it did not write.
    """
    content = run.extra.get("privacy")
    if content is None:
        return {}

    try:
        rows = of_privacy.lines(content)
        title, note = of_privacy.title(content), str(content["note"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{run.path / 'privacy.json'} does not hold what the privacy command writes; run it "
            "again."
        ) from None
    picture = run.path / "privacy.png"
    return {
        "note": note,
        "title": title,
        "heads": ["Measure", *of_privacy.HEADS[1:]],
        "rows": [list(cells) for cells in rows],
        "picture": _data_uri(picture.read_bytes()) if picture.is_file() else "",
    }


# Putting it together.


def _section(run: Run, shares: int, count: Iterator[int], key: str) -> dict[str, Any]:
    """Everything that the template shows of a run; `shares` runs have the page together."""
    from markupsafe import Markup

    curves = _curves([run], count)
    charts = (
        [_bars(run, model, next(count)) for model in run.models]
        if len(run.models) <= CHARTS
        else []
    )
    for figure in (*curves, *charts):
        figure["svg"] = Markup(figure["svg"])
    overview = run.path / "real_vs_distilled.png"
    grids = _grids(run, VALUES // shares)
    validated = (run.recipe.get("data") or {}).get("validation")
    return {
        "key": key,
        "name": run.name,
        "facts": _facts(run),
        "note": run.recipe.get("note") or "",
        "recipe": list(
            _flat({k: v for k, v in run.recipe.items() if k not in ("note", "cites", "published")})
        ),
        "grids": grids,
        "overview": _data_uri(overview.read_bytes())
        if overview.is_file() and not grids.get("real")
        else "",
        "frames": _frames(run, FRAME_BYTES // shares) if run.progress else [],
        "pictures": len(run.progress),
        "curves": curves,
        "charts": charts,
        "accuracies": _accuracies(run) if run.rows else {},
        "classes": _classes(run),
        "chosen": not run.recipe
        or (bool(validated) and (run.evaluation.get("protocol") or {}).get("rate") != "learned"),
        "heat": _heat([(row["set"], row) for row in run.rows]) if len(run.models) > 1 else {},
        "ledger": _ledger(run),
        "cost": _cost(run),
        "commands": _commands(run),
        "scores": _scores(run.extra["scores"]) if "scores" in run.extra else [],
        "ranking": _ranking(run.extra["ranking"]) if "ranking" in run.extra else {},
        "privacy": _privacy(run),
        "finished": bool(run.meta) or not run.own,
    }


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    return Environment(
        loader=folder,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    ).get_template("report.html")


def _render(runs: Sequence[Run]) -> str:
    from markupsafe import Markup

    numbers = iter(range(1, 10**6))
    several = len(runs) > 1
    overlaid = _curves(runs, numbers) if several else []
    for figure in overlaid:
        figure["svg"] = Markup(figure["svg"])
    legend = [
        (run.name, i % len(SERIES), DASHES[i // len(SERIES) % 3])
        for i, run in enumerate(runs)
        if run.events
    ]
    pairs = [(f"{run.name}: {row['set']}", row) for run in runs for row in run.rows]
    return _template().render(
        title=f"{len(runs)} runs" if several else runs[0].name,
        several=several,
        runs=[_section(run, len(runs), numbers, f"run{i + 1}") for i, run in enumerate(runs)],
        comparison=_comparison(runs) if several else {},
        overlaid=overlaid,
        legend=legend,
        heat=_heat(pairs) if several and pairs else {},
        variance=_variance(runs) if several else [],
        anonymous=ANONYMOUS,
    )
