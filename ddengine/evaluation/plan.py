"""The trainings of an evaluation, in their order: what is counted is what is walked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ddengine.evaluation.bench import Bench, Contender, final, search, tried_rates
from ddengine.evaluation.contenders import Looking


@dataclass(frozen=True)
class Piece:
    """Something that takes time and is remembered."""

    label: str  # for people
    do: Callable[[], Any]


def plan(
    bench: Bench, contenders: Sequence[Contender], models: Sequence[str], looking: Looking
) -> dict[str, Piece]:
    """Everything that the rows need, by keys: what several of them need is there once.

    First come choices of images, with what the network needs that looks at them, then of each
    network and contender the search of a learning rate and the networks that are reported.
    """
    pieces: dict[str, Piece] = {}
    for who in contenders:
        selection = who.selection
        if who.looks or (selection is not None and selection.looks):
            _add_searches(pieces, looking.bench, looking.full, looking.model)
        if selection is not None:
            do = partial(bench.memo, selection.key, selection.choose)
            pieces[selection.key] = Piece(selection.label, do)
    for model in models:
        for who in contenders:
            _add_searches(pieces, bench, who, model)
            do = partial(final, bench, who, model)
            pieces[f"final/{who.name}/{model}"] = Piece(f"{who.name} on {model}", do)
    return pieces


def _add_searches(pieces: dict[str, Piece], bench: Bench, who: Contender, model: str) -> None:
    by = "" if bench.train is None else "/own"
    for lr in tried_rates(bench, who, model):
        label = f"{who.name} on {model}, trying learning rate {lr:g}"
        key = f"search/{who.name}/{model}/{lr!r}{by}"
        pieces.setdefault(key, Piece(label, partial(search, bench, who, model, lr)))
