"""Which networks a row needs, of those not trained yet; and what is known of the others.

A row is asked for its next trainings again and again until it needs none, so that it does not
matter in which order, in which process or in which session they are done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from ddengine.evaluation import baselines
from ddengine.evaluation.bench import SEARCH_SEED, Bench, Contender, Split, Training
from ddengine.evaluation.intervals import counted
from ddengine.evaluation.lengths import FEWEST, long_enough, shorter
from ddengine.evaluation.rates import Tried, adapted, best_rate, candidates, two_of
from ddengine.system.typed import Count, Fraction, Positive
from ddengine.types import Facts, Json

# Groups of networks: what is remembered.


@dataclass(frozen=True)
class Group:
    """Networks that answer one question: how good a contender is at a rate.

    They are trained in one go or one by one.
    """

    kind: str  # search | final
    all: Training  # every network of the group
    cut: bool  # whether its updates are fewer than the contender has otherwise

    @property
    def label(self) -> str:
        """For people."""
        asked = self.all
        text = f"{asked.who.name} on {asked.model}"
        if self.kind == "search":
            text += f", trying learning rate {asked.lr:g}"
        return text


@dataclass(frozen=True)
class Piece:
    """Some networks of a group that are trained in one go, and where they are remembered."""

    key: str
    bench: Bench
    training: Training
    label: str
    keep: bool  # for another process


class Trained(TypedDict):
    """What came of networks that were trained on a contender."""

    accuracies: list[Fraction | None]  # None where one diverged
    right: list[list[Count]]  # of each network: images of each class that it is right about
    seconds: Positive


class Cut(TypedDict):
    """How many updates time allows networks."""

    updates: Count


def key_of(bench: Bench, group: Group) -> tuple[str, bool]:
    """What a group is remembered by, and whether other processes may."""
    asked = group.all
    key = f"{group.kind}/{asked.who.name}/{asked.model}/{asked.lr!r}"
    if group.cut:
        key += f"/{asked.steps} updates"
    names = bench.brought_by_user(asked.model)
    return "/".join([key, *map(str, names)]), None not in names


def pieces_of(bench: Bench, group: Group) -> list[Piece]:
    """A group as it is trained: in one go where its networks are one computation."""
    key, keep = key_of(bench, group)
    asked = group.all
    num = len(asked.seeds)
    if num == 1 or bench.together(asked.who, asked.model, num):
        return [Piece(key, bench, asked, group.label, keep)]
    pieces = []
    for i in range(num):
        one = replace(asked, seeds=asked.seeds[i : i + 1], draws=asked.draws[i : i + 1])
        pieces.append(Piece(f"{key}/network {i}", bench, one, group.label, keep))
    return pieces


def known(bench: Bench, group: Group) -> Json | None:
    """What came of a group; None while networks are missing."""
    key, keep = key_of(bench, group)
    result = bench.memo.get(key, Trained)
    if result is None:
        result = _of_others(bench, group, key, keep)
        if result is not None:
            bench.memo.put(key, result, keep=keep)
            return result
        parts = [bench.memo.get(piece.key, Trained) for piece in pieces_of(bench, group)]
        if None in parts:
            return None
        result = _together(parts)
        bench.memo.put(key, result, keep=False)  # its networks are kept one by one
    _tell_others(bench, group, key, keep, result)
    return result


def is_chosen(bench: Bench, who: Contender) -> bool:
    """Whether it is known which images a contender has, where they are chosen at all."""
    return who.selection is None or bench.memo.get(who.selection.key) is not None


def _of_others(bench: Bench, group: Group, key: str, keep: bool) -> Json | None:
    """What another evaluation has found out about a baseline; None where none has.

    None, too, where its images are not chosen yet: then there is nothing to ask about.
    """
    who = group.all.who
    if not keep or not who.baseline or bench.shared.root is None or not is_chosen(bench, who):
        return None
    if key in bench.asked_others:
        return None
    bench.asked_others.add(key)
    result = bench.shared.get(baselines.of_training(bench, group.all), Trained)
    return None if result is None else {**result, "remembered": True}


def _tell_others(bench: Bench, group: Group, key: str, keep: bool, result: Facts) -> None:
    """Let other evaluations know, once, what came of a baseline here."""
    if not keep or not group.all.who.baseline or bench.shared.root is None:
        return
    if key not in bench.told_others and not result.get("remembered"):
        bench.told_others.add(key)
        bench.shared.put(baselines.of_training(bench, group.all), result)


def _together(parts: Sequence[Any]) -> Json:
    """What came of several networks that were trained one by one."""
    return {
        "accuracies": [part["accuracies"][0] for part in parts],
        "right": [part["right"][0] for part in parts],
        "seconds": sum(part["seconds"] for part in parts),
    }


def missing(bench: Bench, group: Group) -> list[Piece]:
    """What of a group is not trained yet."""
    if known(bench, group) is not None:
        return []
    return [piece for piece in pieces_of(bench, group) if bench.memo.get(piece.key) is None]


def result_of(bench: Bench, group: Group) -> Json:
    """What came of a group that has been trained."""
    result = known(bench, group)
    assert result is not None, f"{group.label} has not been trained"
    return result


# The questions.


def reported_seeds(bench: Bench) -> list[int]:
    """Of the networks of a row."""
    return list(range(bench.seed, bench.seed + bench.config.num_networks))


def _group(
    bench: Bench,
    kind: str,
    who: Contender,
    model: str,
    lr: float,
    seeds: Sequence[int],
    split: Split,
    steps: int | None,
) -> Group:
    cut = steps is not None and steps != bench.updates(who)
    exactly = steps if cut else who.steps
    draws = tuple(range(len(seeds)))
    asked = Training(who, model, lr, tuple(seeds), draws, split, exactly)
    return Group(kind, asked, cut)


def search(bench: Bench, who: Contender, model: str, lr: float, steps: int | None) -> Group:
    """How good a contender is on the validation split, after so many updates."""
    first = bench.seed + SEARCH_SEED
    seeds = range(first, first + bench.config.search_networks)
    return _group(bench, "search", who, model, lr, seeds, "validation", steps)


def final(bench: Bench, who: Contender, model: str) -> Group:
    """How good it is on the test split, at the rate and after the updates that were chosen."""
    lr, _ = choose_lr(bench, who, model)
    seeds = reported_seeds(bench)
    return _group(bench, "final", who, model, lr, seeds, "test", updates(bench, who, model))


def tried_rates(bench: Bench, who: Contender, model: str) -> list[float]:
    """The learning rates that are tried for a contender; none where its rate is not chosen."""
    if who.rate_of is not None or bench.data.validation is None:
        return []
    if bench.config.rate != "validation":
        return []
    protocol, learned = adapted(bench.config, model), bench.learned(model)
    if bench.economy.quick:
        return two_of(protocol, learned)
    return candidates(protocol, learned)


def usual_lr(bench: Bench, who: Contender, model: str) -> float:
    """The rate of a contender for which none is chosen."""
    learned = bench.learned(model)
    if who.distilled and learned:
        return learned
    return adapted(bench.config, model).lr


def choose_lr(bench: Bench, who: Contender, model: str) -> tuple[float, float]:
    """(learning rate, seconds that choosing it took).

    It is the best on the validation split of the grid and, on the recipe's network, the rate
    learned with the set. Without a validation split, and with rate "learned": the learned rate for
    the distilled set, where it belongs, the usual one otherwise.
    """
    if who.rate_of is not None:
        lr, _ = choose_lr(bench, who.rate_of, model)
        return lr, 0.0
    rates = tried_rates(bench, who, model)
    if not rates:
        return usual_lr(bench, who, model), 0.0
    steps = updates(bench, who, model)
    tried: list[Tried] = []
    seconds = 0.0
    for lr in rates:
        run = result_of(bench, search(bench, who, model, lr, steps))
        seconds += run["seconds"]
        tried.append((lr, run["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        bench.warn(
            f"{who.name} on {model}: networks diverged at every learning rate that was tried, so "
            f"{lr:g} is only the least bad"
        )
    return lr, seconds


# How many updates.


def updates(bench: Bench, who: Contender, model: str) -> int | None:
    """Of a network of the row; None: as many as its epochs are, or not decided yet."""
    if who.rate_of is not None:
        return updates(bench, who.rate_of, model)
    if who.by_time:
        choice = bench.memo.get(cut_key(who, model))
        return None if choice is None else choice["updates"]
    if has_curve(bench, who, model):
        return _curve(bench, who, model)[0]
    return who.steps


def has_curve(bench: Bench, who: Contender, model: str) -> bool:
    """Whether the validation split says how many updates a contender needs."""
    return bench.economy.quick and not who.by_time and bench.data.validation is not None


def is_bounded(bench: Bench, who: Contender, model: str) -> bool:
    """Whether time bounds the updates of a row."""
    quickly = bench.economy.quick_seconds is not None and bench.timed
    return who.by_time or (quickly and who.rate_of is None and has_curve(bench, who, model))


def _most_updates(bench: Bench, who: Contender, model: str) -> int:
    """Of a training on a curve: all, or as many as time allows, and never fewer than FEWEST."""
    usual = bench.updates(who)
    choice = bench.memo.get(cut_key(who, model))
    return usual if choice is None else min(usual, max(FEWEST, choice["updates"]))


def _curve(bench: Bench, who: Contender, model: str) -> tuple[int | None, Group | None]:
    """(the updates that are enough, the next length to be tried): one of the two is None."""
    lr = adapted(bench.config, model).lr
    if bench.config.rate != "validation":
        lr = usual_lr(bench, who, model)
    lengths = shorter(_most_updates(bench, who, model))
    images = len(bench.split("validation"))
    chance = 1 / bench.data.num_classes
    reached: list[float | None] = []
    while (enough := long_enough(reached, len(lengths), images, chance)) is None:
        group = search(bench, who, model, lr, lengths[len(reached)])
        run = known(bench, group)
        if run is None:
            return None, group
        finite = counted(run["accuracies"])
        reached.append(sum(finite) / len(finite) if finite else None)
    return lengths[enough], None


def cut_key(who: Contender, model: str) -> str:
    """What the number of updates that a measured time allows is remembered by."""
    return f"updates/{who.name}/{model}"


# What a row needs next.


def next_searches(bench: Bench, who: Contender, model: str) -> list[Piece]:
    """What is to be trained next so that its rate and its updates are known."""
    if who.rate_of is not None:
        return next_searches(bench, who.rate_of, model)
    if has_curve(bench, who, model):
        _, group = _curve(bench, who, model)
        if group is not None:
            return missing(bench, group)
    pieces = []
    steps = updates(bench, who, model)
    for lr in tried_rates(bench, who, model):
        pieces += missing(bench, search(bench, who, model, lr, steps))
    return pieces


def is_measured(bench: Bench, who: Contender, model: str) -> bool:
    """Whether its number of updates is known, where that is a matter of time.

    That which another evaluation has chosen for the same time is taken.
    """
    key = cut_key(who, model)
    if not is_bounded(bench, who, model) or bench.memo.get(key) is not None:
        return True
    if key in bench.asked_others:
        return False
    bench.asked_others.add(key)
    choice = bench.shared.get(_cut_facts(bench, who, model), Cut)
    if choice is not None:
        bench.memo.put(key, choice)
    return choice is not None


def decide(bench: Bench, who: Contender, model: str, num: int) -> None:
    """So many updates are what the time allows, here and for others."""
    choice = {"updates": num}
    bench.memo.put(cut_key(who, model), choice)
    bench.shared.put(_cut_facts(bench, who, model), choice)


def _cut_facts(bench: Bench, who: Contender, model: str) -> Facts:
    """What is asked where updates are cut: how many in these seconds, of these networks?"""
    return {
        "updates of": who.name,
        "network": model,
        "usual": bench.updates(who),
        "seconds": seconds_for(bench, who),
        "searched": len(tried_rates(bench, who, model)) * bench.config.search_networks,
        "reported": bench.config.num_networks,
        "quick": bench.economy.quick,
    }


def seconds_for(bench: Bench, who: Contender) -> float | None:
    """That a row may take on each network; None: as long as it takes."""
    return bench.economy.full_seconds if who.by_time else bench.economy.quick_seconds


def cut_of(bench: Bench, who: Contender, model: str) -> Facts | None:
    """How the updates of a row were cut; None where they were not."""
    steps, usual = updates(bench, who, model), bench.updates(who)
    if steps is None or steps >= usual:
        return None
    by = "time" if who.by_time else "validation"
    return {"updates": steps, "of": usual, "by": by}
