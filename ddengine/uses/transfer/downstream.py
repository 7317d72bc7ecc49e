"""One network on another dataset: a linear classifier of its features, or fine-tuned."""

from dataclasses import dataclass, field

from torch import Tensor

from ddengine.data import RealSet, Subset
from ddengine.evaluation.bench import Split
from ddengine.evaluation.rates import ADAMW, adapted, best_rate
from ddengine.learning import probe, training
from ddengine.learning.probe import Embedded
from ddengine.learning.training import Classified
from ddengine.system import log
from ddengine.system.rng import generator
from ddengine.types import Json
from ddengine.uses.transfer.context import Context
from ddengine.uses.transfer.images import Downstream
from ddengine.uses.transfer.starts import Start, body_of, new_network


@dataclass(frozen=True)
class Question:
    """A row: how good networks of a kind are on a dataset, started so and trained so."""

    data: Downstream
    size: int | str  # training images of each class, or ALL
    way: str  # probe or finetune
    model: str
    start: Start

    @property
    def key(self) -> str:
        """What it is remembered by."""
        return "/".join(
            map(str, (self.data.name, self.size, self.way, self.model, self.start.name))
        )

    @property
    def label(self) -> str:
        """For people."""
        way = "probing" if self.way == "probe" else "fine-tuning"
        few = "" if not isinstance(self.size, int) else f", {self.size} a class"
        return f"{way} {self.model} on {self.data.name}{few}, from {self.start.name}"


@dataclass
class Seen:
    """What networks said of the images of a dataset, kept while their rows follow each other."""

    of: tuple[str, str, str] | None = None  # dataset, network, start
    splits: dict[tuple[int, str], Embedded] = field(default_factory=dict)  # by seed and split


def draw_of(context: Context, seed: int) -> int:
    """Which few-shot draw the network of a seed has; those that choose rates have one more."""
    return context.config.networks if seed == context.search_seed else seed - context.seed


def values_of(context: Context, asked: Question) -> tuple[float, ...]:
    """Rates, or weight decays, that are tried for a row, ascending; one where none can be."""
    config = context.config
    optimiser = adapted(config.finetuning, asked.model)
    chosen = asked.data.validation is not None
    if asked.way == "finetune" and optimiser.optimiser != "sgd":
        return tuple(ADAMW["lr_grid"]) if chosen else (optimiser.lr,)  # type: ignore[arg-type]
    return config.values(asked.way) if chosen else (config.usual(asked.way),)


def choose(context: Context, asked: Question, seen: Seen) -> tuple[float, float]:
    """(rate or weight decay, seconds): the best of the grid on the validation split.

    One network that is none of the reported ones is trained with each. Test images have no say.
    """
    values = values_of(context, asked)
    if len(values) == 1:
        return values[0], 0.0
    tried, seconds = [], 0.0
    for value in values:

        def search(value: float = value) -> Json:
            result = trained(context, asked, context.search_seed, value, "validation", seen)
            return {"accuracy": result.accuracy}

        name = "learning rate" if asked.way == "finetune" else "weight decay"
        label = f"{asked.label}, trying {name} {value:g}"
        result = context.remember(f"search/{asked.key}/{value!r}", label, search)
        seconds += result["seconds"]
        tried.append((value, [result["accuracy"]]))
    value, diverged = best_rate(tried)
    if diverged:
        log.say(
            f"warning: {asked.label}: the network diverged at every value that was tried, so "
            f"{value:g} is only the least bad"
        )
    return value, seconds


def trained(
    context: Context, asked: Question, seed: int, value: float, split: Split, seen: Seen
) -> Classified:
    """What a network, probed with that decay or fine-tuned at that rate, makes of a split."""
    index = asked.data.chosen(asked.size, context.seed, draw_of(context, seed))
    if asked.way == "finetune":
        return _finetuned(context, asked, seed, value, split, index)
    known = _embedded(context, asked, seed, "train", seen)
    on = _embedded(context, asked, seed, split, seen)
    return probe.probed(known.at(index), on, asked.data.num_classes, value)


def _embedded(context: Context, asked: Question, seed: int, split: str, seen: Seen) -> Embedded:
    """What the network that a row starts from says of the images of a split."""
    of = (asked.data.name, asked.model, asked.start.name)
    if seen.of != of:
        seen.of = of
        seen.splits.clear()
    if (seed, split) not in seen.splits:
        body = body_of(context, asked.start, asked.model, seed)
        start = new_network(context, asked.model, asked.data.num_classes, body)
        network = start(generator(seed, "network"))
        for name, real in _splits(asked.data).items():
            features = probe.features(network, real, context.precision)
            seen.splits[seed, name] = Embedded(features, real.labels)
    return seen.splits[seed, split]


def _splits(data: Downstream) -> dict[str, RealSet]:
    splits = {"train": data.train, "test": data.test}
    if data.validation is not None:
        splits["validation"] = data.validation
    return splits


def _finetuned(
    context: Context, asked: Question, seed: int, lr: float, split: Split, index: Tensor
) -> Classified:
    """What a network makes of a split after it was fine-tuned on the images at `index`."""
    body = body_of(context, asked.start, asked.model, seed)
    (network,) = training.train_networks(
        new_network(context, asked.model, asked.data.num_classes, body),
        [Subset(asked.data.train, index)],
        [seed],
        adapted(context.config.finetuning, asked.model),
        lr,
        context.device,
        steps=updates_of(context, asked),
        precision=context.precision,
        labels="hard",
        foreign=asked.model in context.factories,
    )
    return training.classified(network, _splits(asked.data)[split], context.precision)


def updates_of(context: Context, asked: Question) -> int | None:
    """Of a network that is fine-tuned; None of one that is probed."""
    if asked.way != "finetune":
        return None
    config = context.config
    return config.few_updates if isinstance(asked.size, int) else config.updates
