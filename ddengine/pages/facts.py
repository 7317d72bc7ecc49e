"""What was done in a run and with what, what it took, and the bytes of its set."""

from typing import Any

from ddengine import naming
from ddengine.artefact.target_network import target_in_words, target_network
from ddengine.pages.reading import Run
from ddengine.pages.words import cell, count, duration, in_percent, plain
from ddengine.sets.synthetic import counted
from ddengine.system.log import size
from ddengine.types import Facts, Json

IN_ALL = "In all"
DATA_OPTIONS = ("limit", "size", "zca", "validation")


def method(run: Run) -> str:
    """The method of a run, or how its real images were chosen."""
    if "selected" in run.meta:
        return f"real images, chosen by {run.meta['selected'].get('kind', 'a selection')}"
    if not run.is_of_a_set and "objective" not in run.recipe:
        return ""  # it plays no role
    name = str(run.recipe.get("name", "")).split("/")[0]
    for origin in ("imported", "merged"):
        if name and origin in run.meta:
            return f"{name} ({origin})"
    return name


def images_per_class(run: Run) -> str:
    """The images per class that the recipe says."""
    return cell(run.recipe, "ipc")


def seed(run: Run) -> str:
    """The seed of a run in words, nothing where it has none."""
    value = run.fact("seed")
    if value is None:
        return ""
    return str(value)


def facts(run: Run) -> list[tuple[str, str]]:
    """(title, text) of what was done and with what; what is not known is left out."""
    recipe = run.recipe
    pairs = [
        ("Recipe", recipe.get("name")),
        ("Method", method(run)),
        ("Data", _data(run.data)),
        ("Classes", len(run.meta.get("class_names") or [])),
        ("Network", naming.in_words(recipe.get("model") or "")),
        ("In turn with", ", ".join(map(naming.in_words, recipe.get("more_models") or ()))),
        ("Teachers", ", ".join(recipe.get("teachers") or ())),
        ("Images per class", images_per_class(run)),
        ("Stored images", _stored_images(run)),
        ("Targets", _targets(run)),
        ("Seed", seed(run)),
        ("Precision", run.fact("precision")),
        ("Published accuracy", _published(recipe.get("published"))),
        ("Machine", _machine(run.fact("machine"))),
        ("Versions", _versions(run.fact("versions"))),
        ("Commit", run.fact("commit")),
        *_facts_of_evaluation(run),
    ]
    return [(title, str(value)) for title, value in pairs if value]


def _data(data: Facts) -> str:
    parts = []
    if data.get("name"):
        parts.append(data["name"])
    for key in DATA_OPTIONS:
        if data.get(key):
            parts.append(f"{key} {plain(data[key])}")
    return ", ".join(parts)


def _stored_images(run: Run) -> str:
    if not run.syn:
        return ""
    tensors = run.syn.tensors
    if "images" not in tensors:  # a codec that makes them of something else
        learned = run.syn.codec.parameters(tensors)
        return f"none but {' and '.join(learned)}, which train as {len(run.syn)} examples"
    return f"{len(tensors['images'])}, which train as {len(run.syn)} examples"


def _targets(run: Run) -> str:
    """What features a set has; empty for others."""
    if not run.syn or not run.syn.targets.regressed:
        return ""
    share = 100 * run.syn.ledger["labels"] / run.syn.nbytes
    network = target_in_words(target_network(run.meta))
    return (
        f"features of {network}, {run.syn.num_outputs} numbers an image, with classes "
        f"{share:.3g} % of the bytes: networks are fitted to them by squared error, and judged by "
        "a linear probe or fine-tuning; they say no classes by themselves"
    )


def _published(published: Any) -> str:
    if not isinstance(published, dict) or "accuracy" not in published:
        return ""
    accuracy = f"{in_percent(published['accuracy'])} %"
    if published.get("std") is None:
        return accuracy
    return f"{accuracy} ± {in_percent(published['std'])}"


def _machine(machine: Facts | None) -> str:
    if not machine:
        return ""
    parts = []
    cores = cell(machine, "cores", "{} cores".format)
    for part in (machine.get("device"), cores, machine.get("system")):
        if part:
            parts.append(str(part))
    return ", ".join(parts)


def _versions(versions: Facts | None) -> str:
    if not versions:
        return ""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


OF_EVALUATION = (
    ("Machine", "machine", _machine),
    ("Versions", "versions", _versions),
    ("Commit", "commit", str),
    ("Seed", "seed", str),
)


def _facts_of_evaluation(run: Run) -> list[tuple[str, str]]:
    """Where and by what the set was evaluated, as far as that differs from its distillation."""
    if not run.meta:
        return []
    pairs = []
    for title, key, in_words in OF_EVALUATION:
        value = run.evaluation.get(key)
        if value is not None and value != run.meta.get(key):
            pairs.append((f"{title} of the evaluation", in_words(value)))
    return pairs


def cost(run: Run) -> list[tuple[str, str]]:
    """(title, text) of time, memory, computation, and updates that were skipped."""
    done = run.distillation
    not_finite = done.get("updates_skipped_not_finite") or None
    loss_too_high = done.get("updates_skipped_max_loss") or None
    rate_held = done.get("learned_lr_held") or None
    entries = [
        ("Training the experts", _expert_seconds(run), duration),
        ("Making the initial set", done.get("initial_seconds"), duration),
        ("Outer steps of the distillation", done.get("seconds"), duration),
        ("Distillation, all of it", done.get("wall_seconds"), duration),
        ("Evaluation", run.evaluation.get("seconds"), duration),
        ("Peak memory of the distillation", done.get("peak_memory_bytes"), size),
        ("Updates skipped, not finite", not_finite, str),
        ("Updates skipped, loss too high", loss_too_high, str),
        ("Learned rate held at its smallest", rate_held, "{} times".format),
        ("Training of all reported networks", _of_all(run, "training_flops"), _flops),
        ("Examples these saw", _of_all(run, "examples_seen"), count),
    ]
    return [(title, in_words(value)) for title, value, in_words in entries if value is not None]


def _flops(value: float) -> str:
    return f"{count(value)}FLOP"


def _expert_seconds(run: Run) -> float | None:
    experts = run.meta.get("experts") or {}
    stores = experts.get("stores") or [experts]
    known = []
    for store in stores:
        if not isinstance(store, dict):
            continue
        seconds = store.get("seconds")
        if isinstance(seconds, float | int):
            known.append(seconds)
    if not known:
        return None
    return sum(known)


def _of_all(run: Run, key: str) -> float | None:
    """The sum over all networks of the evaluation of what one network of a row has under `key`."""
    known = []
    for row in run.rows:
        of_network = row.get(key)
        if isinstance(of_network, float | int):
            known.append(of_network * row.get("n", 1))
    if not known:
        return None
    return sum(known)


def ledger(run: Run) -> Json:
    """The bytes of the set, for the template: lines (part, bytes, share of the images), and a note.

    Empty where bytes are not known.
    """
    sizes = _sizes(run)
    if sizes is None:
        return {}
    raw = run.fact("raw_bytes")
    dataset = run.fact("dataset_bytes")
    entries = {}
    for part, num in counted(sizes).items():
        entries[part.capitalize()] = num
    entries[IN_ALL] = sizes["total"]
    if raw:
        entries["Training images in use"] = raw
    if dataset and dataset != raw:
        entries["Whole training split"] = dataset
    lines = []
    for name, num in entries.items():
        share = ""
        if raw:
            share = f"{100 * num / raw:.3g} %"
        lines.append((name, size(num), share))
    return {"lines": lines, "note": _how_labels_count(run)}


def bytes_in_all(run: Run) -> tuple[str, str]:
    """(bytes of the set, percentage of the training images), both empty where not known."""
    for name, num, share in ledger(run).get("lines", []):
        if name == IN_ALL:
            return num, share.removesuffix(" %")
    return "", ""


def _sizes(run: Run) -> dict[str, int] | None:
    """The bytes of each part of the set and their "total"; None where they are not known."""
    sizes = run.meta.get("bytes")
    row = run.result
    if not sizes and "ledger" in row and "bytes" in row:
        sizes = {**row["ledger"], "total": row["bytes"]}
    if not sizes or "total" not in sizes:
        return None
    return sizes


def _how_labels_count(run: Run) -> str:
    ways = set()
    for row in run.rows:
        if "labels_counted" in row:
            ways.add(row["labels_counted"])
    if not ways:
        return ""
    return (
        f"Labels made during the training are counted as {' or '.join(sorted(ways))}, "
        "whichever is less; see the bytes of the rows."
    )
