"""What a person sees of an evaluation: a table that grows, what comes next, a first number."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.table import Table

from ddengine.data import RealSet
from ddengine.evaluation import tables
from ddengine.evaluation.bench import Bench, Contender, Training
from ddengine.evaluation.lengths import shorter
from ddengine.evaluation.pace import Paces, images_of, num_searched
from ddengine.evaluation.plan import Row
from ddengine.evaluation.rows import row as told
from ddengine.evaluation.trainings import Piece, has_curve
from ddengine.learning.training import Classified
from ddengine.system import log
from ddengine.types import Facts, Json

LOOK = 3.0  # seconds of it
LOOK_SEED = 4000  # its network is not one that chooses or is reported
LOOKED_AT = 1000  # images that it is judged on


def num_networks(bench: Bench, row: Row) -> int:
    """That are trained for a row, at most."""
    num = num_searched(bench, row.who, row.model) + bench.config.num_networks
    if has_curve(bench, row.who, row.model) and row.who.rate_of is None:
        num += len(shorter(bench.updates(row.who))) - 1  # all lengths at one of the rates
    return num


@dataclass
class Watch:
    """Rows as they are begun and finished."""

    bench: Bench
    facts: Facts  # what the evaluation says beside its rows
    bar: log.Bar
    rows: list[Json] = field(default_factory=list)  # finished ones
    counted: dict[str, int] = field(default_factory=dict)  # networks trained for rows, by label

    def begins(self, row: Row, seconds: float | None) -> None:
        """Say what a row will take."""
        if not self.bench.economy.looks:
            return
        num = num_networks(self.bench, row)
        most = "at most " if has_curve(self.bench, row.who, row.model) else ""
        text = f"{row.label}: {most}{num} networks"
        if seconds is not None:
            text += f", about {log.duration(seconds)}"
        self.bar.announce(text)

    def says(self, text: str) -> None:
        """What is being done."""
        if self.bench.economy.looks:
            self.bar.announce(text)

    def trained(self, piece: Piece, result: Facts) -> None:
        """Some networks of a row have been trained."""
        asked = piece.training
        label = Row(asked.who, asked.model).label
        for accuracy in result["accuracies"]:
            self.counted[label] = self.counted.get(label, 0) + 1
            reached = f"{tables.percent(accuracy)} % of the {asked.split} images"
            self.bar.advance(f"{piece.label}: {reached}")

    def finished(self, row: Row) -> None:
        """A row has come."""
        made = told(self.bench, row.who, row.model)
        self.rows.append(made)
        for _ in range(num_networks(self.bench, row) - self.counted.get(row.label, 0)):
            self.bar.advance()
        if self.bench.economy.looks:
            self.bar.grow(self._table, _line(made))

    def in_order(self, contenders: Sequence[Contender], models: Sequence[str]) -> list[Json]:
        """All rows as they are told: network by network, in the order of the contenders."""
        by_place = {(row["model"], row["set"]): row for row in self.rows}
        return [by_place[model, who.name] for model in models for who in contenders]

    def _table(self) -> Table:
        """The rows that there are."""
        return tables.table({**self.facts, "rows": self.rows}, "so far")

    def look(self, first: Training, paces: Paces, after: float) -> None:
        """Say a first number, where the first network would take longer than so many seconds.

        It is that of a network that is trained for a few seconds.
        """
        bench = self.bench
        update = paces.of(first.model, images_of(bench, first.who))
        if not self.bench.economy.looks or update is None:
            return
        usual = first.steps or bench.updates(first.who)
        if update * usual <= after:
            return
        steps = min(usual, max(1, int(LOOK / update)))
        asked = replace(first, seeds=(bench.seed + LOOK_SEED,), steps=steps)
        (network,) = bench.networks(asked)
        real, name = bench.data.validation, "validation"
        if real is None:
            real, name = bench.data.train, "training"
        pixels, labels = real.pixels[:LOOKED_AT], real.labels[:LOOKED_AT]
        some = RealSet(pixels, labels, real.num_classes, real.preprocess)
        judged: Classified = bench.means.classified(network, some, bench.precision)
        self.bar.announce(
            f"a first look, one network after {steps} of {usual} updates on {first.who.name}: "
            f"{tables.percent(judged.accuracy)} % of the {name} images"
        )


def _line(row: Facts) -> str:
    """A row where no table can grow."""
    reached = tables.percent(row["accuracy_mean"])
    if row["accuracy_std"] is not None:
        reached += f" ± {100 * row['accuracy_std']:.1f}"
    return f"{row['set']} on {row['model']}: {reached} % (n = {row['n']})"
