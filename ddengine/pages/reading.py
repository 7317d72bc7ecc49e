"""What the folder of a run says: everything that a page shows is read here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine import contents
from ddengine.artefact import folder as set_folders
from ddengine.artefact.markdown import at
from ddengine.artefact.results import check_of_set
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import digests, files, log
from ddengine.system.errors import UserError
from ddengine.types import Evaluation, Json

OF_SETS = ("scores.json", "ranking.json", "privacy.json", "transfer.json")
# the names of the files that uses of a dataset write -> the parts of a recipe that they read
USES = {
    "prune": ("name", "data", "model", "init", "evaluation"),
    "labels": ("name", "data", "model", "evaluation"),
    "continual": ("name", "data", "model", "init", "codec", "objective", "outer", "evaluation"),
}
OPTIONAL = (*OF_SETS, *(f"{use}.json" for use in USES))
ALWAYS_SHOWN = {"set", "model", "accuracy_mean"}  # what every row of an evaluation must say
OF_A_MACHINE = ("root", "download", "cache")  # where files lie is no part of what was done


@dataclass(frozen=True)
class Run:
    """What is known of a run; None and empty where its folder does not say it."""

    name: str  # as it is shown
    path: Path
    recipe: Json
    settings: Json  # recipe.json but for the recipe: seed, precision, the command
    meta: Json
    syn: SyntheticSet | None
    evaluation: Json
    events: list[Json]
    progress: list[tuple[int, Path]]  # (step, picture), ascending
    samples: dict[str, Tensor]
    extra: Json  # the contents of the files of OPTIONAL

    @property
    def data(self) -> Json:
        """The data settings of the recipe."""
        return self.recipe.get("data") or {}

    @property
    def distillation(self) -> Json:
        """What the set says of its distillation."""
        return self.meta.get("distillation") or {}

    @property
    def rows(self) -> list[Json]:
        """The rows of the evaluation."""
        return self.evaluation.get("rows", [])

    @property
    def models(self) -> list[str]:
        """The networks of the evaluation, in its order."""
        return list(dict.fromkeys(row["model"] for row in self.rows))

    def rows_of(self, model: str) -> list[Json]:
        """The rows of the evaluation on a network."""
        return [row for row in self.rows if row["model"] == model]

    @property
    def result(self) -> Json:
        """The first row of the evaluation, the set itself on the first network; {} without one."""
        if not self.rows:
            return {}
        return self.rows[0]

    @property
    def has_intervals(self) -> bool:
        """Whether any row of the evaluation has a 95 % interval."""
        return any(row.get("ci95") for row in self.rows)

    @property
    def is_of_a_set(self) -> bool:
        """Whether a set lies here, or will when the run goes on."""
        return bool(self.meta or self.settings)

    def fact(self, key: str) -> Any:
        """What the set says under a key, else the run, its evaluation, or what was made of it."""
        for part in (self.meta, self.settings, self.evaluation, *self.extra.values()):
            if part.get(key) is not None:
                return part[key]
        return None


def read(path: Path) -> Run:
    """Read the folder of a run, a distilled folder or a folder of an evaluation.

    Raises UserError for other folders and for damaged files.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder of a run; check the path.")
    folder = _set_folder(path)
    content = _contents(path)
    if folder is None and not content:
        _check_begun(path)
        raise UserError(
            f"{path} is neither a run nor a distilled set nor an evaluation; give the folder that "
            "distill, select, evaluate, prune, buy_labels or continual wrote."
        )
    syn, meta = None, {}
    if folder is not None:
        syn, meta = set_folders.load(folder, torch.device("cpu"))
    settings, evaluation = content.pop("recipe.json", {}), content.pop("evaluation.json", {})
    _check_rows(path / "evaluation.json", evaluation)
    check_of_set(path / "evaluation.json", evaluation, meta)
    recipe = meta.get("recipe") or settings.pop("recipe", None) or _recipe_of_use(path)
    samples = _samples(path / "samples.safetensors")
    extra = {}
    for name, value in content.items():
        extra[name.removesuffix(".json")] = value
    return Run(
        name=_folder_name(path),
        path=path,
        recipe=_without_places(recipe),
        settings=settings,
        meta=meta,
        syn=syn,
        evaluation=evaluation,
        events=_events(path / "metrics.jsonl", at(meta, "distillation", "log_digest")),
        progress=_progress(path / "progress"),
        samples=samples,
        extra=extra,
    )


def _check_begun(path: Path) -> None:
    """Raise UserError where a use of a dataset has begun in a folder, and is not finished."""
    for use in USES:
        if _mark(path, use).is_file():
            raise UserError(
                f"{path} holds no {use}.json yet; the command that began it goes on where it was."
            )


def _mark(path: Path, use: str) -> Path:
    """The file in which a use of a dataset says its recipe."""
    return path / f"{use}.recipe.json"


def _recipe_of_use(path: Path) -> Json:
    """What a use of a dataset reads of its recipe; empty in other folders."""
    for use, parts in USES.items():
        if _mark(path, use).is_file():
            recipe = contents.read_json(_mark(path, use), "recipe")["recipe"]
            return {part: recipe[part] for part in parts if part in recipe}
    return {}


def named(runs: Sequence[Run]) -> list[Run]:
    """Give each of the runs a name that no other has.

    It is the folder's name, with its parent's where two folders are called the same, and a number
    where that is not enough.
    """
    times = Counter(run.name for run in runs)
    with_parents = []
    for run in runs:
        if times[run.name] > 1:
            run = replace(run, name=f"{run.path.resolve().parent.name}/{run.name}")
        with_parents.append(run)
    times = Counter(run.name for run in with_parents)
    numbered = []
    for number, run in enumerate(with_parents, start=1):
        if times[run.name] > 1:
            run = replace(run, name=f"{run.name} ({number})")
        numbered.append(run)
    return numbered


def _set_folder(path: Path) -> Path | None:
    for folder in (path / "distilled", path):
        if (folder / "meta.json").is_file():
            return folder
    return None


def _folder_name(path: Path) -> str:
    """The name of a run's folder, also where its distilled folder was given."""
    folder = path.resolve()
    if folder.name == "distilled" and (folder.parent / "recipe.json").is_file():
        return folder.parent.name
    return folder.name


def _contents(path: Path) -> Json:
    """The JSON files of a run that are there, by their names."""
    content = {}
    for name in ("recipe.json", "evaluation.json", *OPTIONAL):
        if (path / name).is_file():
            content[name] = _object(path / name)
    return content


def _object(path: Path) -> Json:
    content = contents.read_json(path)
    if isinstance(content, dict):
        return content
    raise UserError(f"{path} is no JSON object; restore it or run the command that wrote it again.")


def _without_places(recipe: Json) -> Json:
    data = recipe.get("data")
    if not isinstance(data, dict):
        return recipe
    kept = dict(data)
    for key in OF_A_MACHINE:
        kept.pop(key, None)
    return recipe | {"data": kept}


def _check_rows(path: Path, evaluation: Evaluation) -> None:
    """Raise UserError where an evaluation has no rows, or rows without what is always shown."""
    if not evaluation:
        return
    rows = evaluation.get("rows", [])
    if isinstance(rows, list) and rows and all(map(_can_be_shown, rows)):
        return
    raise UserError(
        f"{path} has no rows with {', '.join(sorted(ALWAYS_SHOWN))}; evaluate again with --restart."
    )


def _can_be_shown(row: Any) -> bool:
    if not isinstance(row, dict) or not row.keys() >= ALWAYS_SHOWN:
        return False
    # networks that all diverged have no accuracy
    return isinstance(row["accuracy_mean"], float | int) or bool(row.get("diverged"))


def _events(path: Path, digest: str | None) -> list[Json]:
    """The events of metrics.jsonl that have a step; lines that are cut off are left out.

    It is said where its bytes have another digest than the run says, None where it says none.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    if digest is not None and digest != digests.of_bytes(content):
        log.say(
            f"warning: {path} is not as the run left it, so its curves may be wrong or incomplete"
        )
    return contents.events(path)


def _progress(folder: Path) -> list[tuple[int, Path]]:
    """(step, picture) of the pictures step_000020.png and so on, ascending."""
    pictures = []
    for picture in folder.glob("step_*.png"):
        step = picture.stem.removeprefix("step_")
        if step.isdecimal() and picture.is_file():
            pictures.append((int(step), picture))
    return sorted(pictures)


def _are_images(samples: dict[str, Tensor]) -> bool:
    if "pixels" not in samples or "labels" not in samples:
        return False
    pixels, labels = samples["pixels"], samples["labels"]
    if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] not in (1, 3):
        return False
    return labels.dtype == torch.int64 and labels.shape == pixels.shape[:1] and pixels.numel() > 0


def _samples(path: Path) -> dict[str, Tensor]:
    """The real images beside a run: "pixels" (M, C, H, W) uint8 and "labels" (M,), or nothing."""
    if not path.is_file():
        return {}
    samples = files.read_tensors(path)[0]
    if samples and not _are_images(samples):
        raise UserError(
            f"{path} does not hold images and labels; delete it, and the "
            "page leaves the real images out."
        )
    return samples
