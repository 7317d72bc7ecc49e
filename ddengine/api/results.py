"""A distilled set in the hand: what `distill`, `select`, `merge` and `load` return."""

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddengine.api.checks import check_folder
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.data import Data, Preprocess
from ddengine.pages import figures
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import claims, files
from ddengine.system.errors import UserError
from ddengine.types import Batch


@dataclass(frozen=True, eq=False, repr=False)
class Distilled:
    """A small set of images, and what is known of it.

    It is what networks are trained on: `len(result)` examples, `result.batch(index)` gives images
    and targets. It prints itself, `show()` draws it, `save(folder)` writes the folder that is
    shipped.
    """

    set: SyntheticSet  # the stored tensors and what makes examples of them
    meta: Mapping[str, Any]  # what meta.json of the folder says
    run: Path | None = None  # the folder of the run, or of the set alone; None: in memory
    splits: Mapping[str, Any] = field(default_factory=dict)  # which real images were held out

    @property
    def folder(self) -> Path | None:
        """The folder that is shipped; None for a set in memory."""
        return None if self.run is None else runs.set_folder(self.run)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name: images, logits, a learned rate."""
        return self.set.tensors

    @property
    def classes(self) -> Tensor:
        """(S,) int64: the class of each stored image."""
        return self.set.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.set.class_names

    @property
    def preprocess(self) -> Preprocess:
        """What images are seen through by networks."""
        return self.set.preprocess

    @property
    def lr(self) -> float | None:
        """The learned rate; None where none was learned."""
        return self.set.lr

    def __len__(self) -> int:
        """Examples that the set decodes to."""
        return len(self.set)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,): images (B, C, H, W) as networks see them, and targets."""
        return self.set.batch(index)

    def pixels(self, index: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1], to look at; None: all."""
        return self.set.pixels(index)

    @property
    def nbytes(self) -> int:
        """Bytes stored, in all; `ledger` says what for."""
        return self.set.nbytes

    @property
    def ledger(self) -> dict[str, int]:
        """Bytes stored for images, compensators, labels and other."""
        return self.set.ledger

    def save(self, folder: Path | str) -> "Distilled":
        """Write a folder that is shipped, and return the set that lies there.

        It explains itself: tensors, load.py, card, PNG and parquet files.

            result.save("sets/mine")

        Raises:
            UserError: a folder that holds anything, unless it is this very set, or in which a
                command works.
        """
        check_folder(folder)
        path = Path(folder)
        runs.check_folder(path)
        if not _lies_in(path, self):
            with claims.claimed(path, "save"):
                if not _lies_in(path, self):  # written by the command that was waited for
                    folders.save(self.set, path, self.meta, self.splits or None)
                    return Distilled(self.set, self.meta, path, self.splits)
        return load(path)

    def show(self) -> Image.Image:
        """A grid of the images, a class a column: a picture, which a notebook shows.

        result.show().save("grid.png")
        """
        with Image.open(io.BytesIO(self._repr_png_())) as picture:
            return picture.convert("RGB")

    def _repr_png_(self) -> bytes:
        """The grid as a notebook shows it."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "grid.png"
            figures.grid(path, self.set)
            return path.read_bytes()

    def __repr__(self) -> str:
        """How many images of how many classes, by which recipe, where they lie."""
        stored, examples = len(self.classes), len(self)
        decoded = "" if stored == examples else f", which decode to {examples}"
        name = self.meta.get("recipe", {}).get("name")
        by = "" if name is None else f" by {name}"
        where = "in memory" if self.run is None else f"in {self.run}"
        return (
            f"Distilled({stored} images{decoded} of {len(self.class_names)} classes{by}, "
            f"{self.nbytes:,} bytes, {where})"
        )


def load(folder: Path | str, device: str = "cpu") -> Distilled:
    """The distilled set in a folder, or in that of its run, on `device`.

        again = ddengine.load("sets/mine")
        images, targets = again.batch(torch.arange(10))

    Raises:
        UserError: a folder that is no distilled set.
    """
    path = Path(folder)
    syn, meta = folders.load(runs.set_folder(path), torch.device(device))
    return Distilled(syn, meta, path)


def _lies_in(folder: Path, of: Distilled) -> bool:
    """Whether a set lies in a folder, which may be empty. Raises UserError for anything else."""
    if not folder.is_dir() or not files.contents(folder):
        return False
    if not _holds(folder, of):
        raise UserError(
            f"{folder} exists already and holds something else than this set; name another "
            "folder, or remove it."
        )
    return True


def _holds(folder: Path, of: Distilled) -> bool:
    """Whether a folder is that of a set: the same tensors, said to be the same thing."""
    if not (folder / "meta.json").is_file():
        return False
    there = load(folder)
    tensors, others = there.set.tensors, on_device(of, torch.device("cpu")).tensors
    if tensors.keys() != others.keys() or there.meta.get("recipe") != of.meta.get("recipe"):
        return False
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


def opened(of: Distilled | Path | str) -> Distilled:
    """A set that was given as itself or by its folder."""
    return of if isinstance(of, Distilled) else load(of)


def on_device(of: Distilled, device: torch.device) -> SyntheticSet:
    """The set with its tensors on `device`."""
    tensors = {name: tensor.to(device) for name, tensor in of.set.tensors.items()}
    classes, preprocess = of.set.classes.to(device), of.set.preprocess.to(device)
    return replace(of.set, tensors=tensors, classes=classes, preprocess=preprocess)


def set_of_images(of: Distilled, data: Data, device: torch.device, called: str) -> SyntheticSet:
    """A set on `device` whose images stand beside others in the same networks.

    Raises UserError for one without classes, of other classes or sizes than the images, or seen
    through another preprocessing; `called` names it in the sentence.
    """
    syn = on_device(of, device)
    if syn.targets.regressed:
        raise UserError(
            f"{called} has features and no classes, and its images are used by their classes; give "
            "a set of images with classes."
        )
    if syn.class_names != data.class_names:
        raise UserError(
            f"{called} has other classes than the images ({', '.join(syn.class_names[:3])} ...); "
            "give the images that it was made of."
        )
    if syn.image_shape != data.image_shape:
        raise UserError(
            f"{called} has images of {_sides(syn.image_shape)}, and the data of "
            f"{_sides(data.image_shape)}; give the images that it was made of."
        )
    seen_through = files.tensor_digest(of.set.preprocess.tensors())
    if seen_through != files.tensor_digest(data.train.preprocess.tensors()):
        raise UserError(
            f"{called} is seen through another preprocessing than these images; use the data "
            "settings (limit, validation, split_seed, zca) that it was made with."
        )
    return syn


def _sides(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def path_of(of: Distilled) -> Path:
    """Where a set lies. Raises UserError for one in memory."""
    if of.run is None:
        raise UserError("The set lies in memory alone; write it with save(folder) first.")
    return of.run
