"""Who answers which class a point has: simulated errors, a network, or a file."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.types import TrainingSet

COLUMNS = ("index", "name", "class")  # of a file of answers, and of one of questions


class Answers(Protocol):
    """What answers."""

    @property
    def wrong(self) -> float | None:
        """The share of wrong answers; None where nobody knows it."""
        ...

    @property
    def name(self) -> str:
        """What a table calls it."""
        ...

    def ask(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(classes (B,) of the points at `index` (B,), which of them were answered (B,) bool)."""
        ...


@dataclass(frozen=True)
class Simulated:
    """The true classes, some of them wrong.

    A point that is wrong at a share is wrong, with the same class, at every larger share: rules and
    shares are compared with equal luck.
    """

    classes: Tensor  # (N,), of all points, on the CPU
    num_classes: int
    share: float
    seed: int

    @property
    def wrong(self) -> float | None:
        """The share."""
        return self.share

    @property
    def name(self) -> str:
        """How many are wrong."""
        return f"{100 * self.share:g} % wrong"

    def ask(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """All are answered."""
        num = len(self.classes)
        rng = generator(self.seed, "labels", "wrong")
        is_wrong = torch.rand(num, generator=rng, dtype=torch.float64) < self.share
        step = torch.randint(1, self.num_classes, (num,), generator=rng)
        said = torch.where(is_wrong, (self.classes + step) % self.num_classes, self.classes)
        return said[index], torch.ones(len(index), dtype=torch.bool)


@dataclass(frozen=True)
class OfNetwork:
    """What a network says of the points."""

    network: nn.Module
    points: TrainingSet
    model: str

    @property
    def wrong(self) -> float | None:
        """Nobody knows it."""
        return None

    @property
    def name(self) -> str:
        """The name of the network."""
        return self.model

    @torch.no_grad()
    def ask(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """All are answered."""
        said = []
        for part in index.split(1000):
            said.append(self.network(self.points.batch(part).images).argmax(1).cpu())
        return torch.cat(said), torch.ones(len(index), dtype=torch.bool)


@dataclass(frozen=True)
class OfFile:
    """Answers in a CSV file with the columns index and class, or name and class.

    Index is the number of a point in the pool, name what it is called. Points that it does not say
    are not answered yet.
    """

    path: Path
    known: Mapping[int, int]  # class of each answered point

    @classmethod
    def read(cls, path: Path, names: Sequence[str], class_names: Sequence[str]) -> "OfFile":
        """The answers of a file, of points with these names; none of one that is not there yet.

        Raises UserError for a file without these columns, points or classes that do not exist, and
        two answers about one point.
        """
        if not path.exists():
            return cls(path, {})
        numbers = {name: number for number, name in enumerate(names)}
        known: dict[int, int] = {}
        for line, row in enumerate(_rows(path), start=2):
            said = (row.get("class") or "").strip()
            if not said:
                continue
            point = _point(path, line, row, numbers)
            class_ = _class(path, line, said, class_names)
            if known.setdefault(point, class_) != class_:
                raise UserError(
                    f"{path}, line {line}, answers about point {point} otherwise than a line "
                    "before; leave one of them out."
                )
        return cls(path, known)

    @property
    def wrong(self) -> float | None:
        """Nobody knows it."""
        return None

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def ask(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those that the file says; the class of another one is 0."""
        points = index.tolist()
        said = torch.tensor([self.known.get(point, 0) for point in points], dtype=torch.int64)
        return said, torch.tensor([point in self.known for point in points], dtype=torch.bool)


def _rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file. Raises UserError for one without the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file ({error}); check it.") from None
    if "class" not in columns or not columns & {"index", "name"}:
        raise UserError(
            f"{path} has the columns {', '.join(sorted(columns)) or 'none'}; give it class, and "
            "index or name."
        )
    return rows


def _point(path: Path, line: int, row: Mapping[str, str], numbers: Mapping[str, int]) -> int:
    """The point of a line: by its index where that is given, else by its name."""
    given = (row.get("index") or "").strip()
    if given.isdigit() and int(given) < len(numbers):
        return int(given)
    name = (row.get("name") or "").strip()
    if not given and name in numbers:
        return numbers[name]
    raise UserError(
        f"{path}, line {line}, names the point {given or name!r}, and there is none among "
        f"{len(numbers)}; take index and name from the file of questions."
    )


def _class(path: Path, line: int, said: str, class_names: Sequence[str]) -> int:
    """The number of a class that is given by its name, or by its number."""
    if said in class_names:
        return class_names.index(said)
    if said.isdigit() and int(said) < len(class_names):
        return int(said)
    raise UserError(
        f"{path}, line {line}, says the class {said!r}, which is none of "
        f"{', '.join(class_names[:10])}; give its name, or its number from 0."
    )


def write_questions(path: Path, index: Tensor, names: Sequence[str]) -> None:
    """A CSV file with the points that are to be answered, whose class is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in index.tolist():
        writer.writerow([point, names[point], ""])
    files.write_text(path, text.getvalue())
