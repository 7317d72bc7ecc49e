"""The rows of an evaluation in the order in which they are trained, and what each needs next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ddengine.evaluation.bench import Bench, Contender
from ddengine.evaluation.contenders import Looking
from ddengine.evaluation.trainings import (
    Piece,
    final,
    is_chosen,
    is_measured,
    missing,
    next_searches,
)


@dataclass(frozen=True)
class Row:
    """A contender on a network."""

    who: Contender
    model: str

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.who.name} on {self.model}"


@dataclass(frozen=True)
class Choice:
    """Images that are chosen, in this process."""

    label: str
    choose: Callable[[], Any]


@dataclass(frozen=True)
class Measure:
    """A question: how long does an update take? Its answer decides how many there are."""

    bench: Bench
    row: Row
    beside: int  # networks that are trained on the same, one after another, beside those of the row


Step = Piece | Choice | Measure


def in_turn(contenders: Sequence[Contender], models: Sequence[str]) -> list[Row]:
    """The rows: what is asked first on every network, then the others, the full data last."""
    rows = []
    for turn in (0, 1, 2):
        for model in models:
            for who in contenders:
                if who.turn == turn:
                    rows.append(Row(who, model))
    return rows


@dataclass(frozen=True)
class Plan:
    """What the rows of an evaluation need."""

    bench: Bench
    looking: Looking
    looks: bool  # whether any row needs the network that looks at the full data

    def next(self, row: Row) -> list[Step]:
        """What can be done next for a row; nothing once it is finished.

        First its images are chosen, with what the network needs that looks at them, then come the
        search of a learning rate and the networks that are reported.
        """
        steps = self._for_choosing(row.who) or self._searches(self.bench, row)
        if steps:
            return steps
        return list(missing(self.bench, final(self.bench, row.who, row.model)))

    def _for_choosing(self, who: Contender) -> list[Step]:
        """What is needed until the images of a contender, or their labels, are known."""
        selection, looking = who.selection, self.looking
        if selection is not None and is_chosen(self.bench, who):
            return []
        if who.looks or (selection is not None and selection.looks):
            steps = self._searches(looking.bench, Row(looking.full, looking.model))
            if steps:
                return steps
        if selection is None:
            return []
        choose = partial(self.bench.memo, selection.key, selection.choose)
        return [Choice(selection.label, choose)]

    def _searches(self, bench: Bench, row: Row) -> list[Step]:
        """What is needed until the updates and the rate of a row are known."""
        decides = Row(row.who.rate_of or row.who, row.model)
        if not is_measured(bench, decides.who, decides.model):
            beside = int(self.looks and decides.who.by_time and row.model == bench.home)
            # by our loop: what a training function of the user takes is not known
            return [Measure(self.looking.bench, decides, beside)]
        return list(next_searches(bench, row.who, row.model))
