"""One network on another dataset: a linear classifier of its features, or fine-tuned."""

from dataclasses import dataclass, field

from torch import Tensor

from ddengine.data import RealSet, Subset
from ddengine.evaluation.bench import Split
from ddengine.evaluation.rates import adapted, best_rate
from ddengine.learning import probe, training
from ddengine.learning.probe import Embedded
from ddengine.learning.training import Classified
from ddengine.system import log
from ddengine.system.rng import generator
from ddengine.types import Json
from ddengine.uses.transfer.context import Bench, Context
from ddengine.uses.transfer.images import Downstream
from ddengine.uses.transfer.starts import Start, make_ready, new_network

NAMES = {"finetune": "learning rate", "probe": "weight decay"}  # of what is chosen


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
        return f"{self.data.name}/{self.size}/{self.way}/{self.model}/{self.start.name}"

    @property
    def label(self) -> str:
        """For people."""
        on = self.data.name
        if isinstance(self.size, int):
            on += f", {self.size} a class"
        return f"{self.way} of {self.model} on {on}, from {self.start.name}"


@dataclass
class Seen:
    """What networks said of the images of a dataset, kept while their rows follow each other."""

    of: tuple[str, str, str] | None = None  # dataset, network, start
    splits: dict[tuple[int, str], Embedded] = field(default_factory=dict)  # by seed and split


def draw_of(bench: Bench, seed: int) -> int:
    """Which few-shot draw the network of a seed has; those that choose rates have one more."""
    if seed == bench.search_seed:
        return bench.config.networks
    return seed - bench.seed


@dataclass(frozen=True)
class Piece:
    """A network of a row that is trained and judged, and what is remembered of it."""

    key: str
    label: str
    asked: Question
    seed: int
    value: float  # learning rate, or weight decay of a probe
    split: Split


def searches(bench: Bench, asked: Question) -> list[Piece]:
    """What chooses the rate, or weight decay, of a row; nothing where there is one."""
    values = values_of(bench, asked)
    made = []
    for value in values:
        key = f"search/{asked.key}/{value!r}"
        label = f"{asked.label}, trying {NAMES[asked.way]} {value:g}"
        made.append(Piece(key, label, asked, bench.search_seed, value, "validation"))
    return made if len(values) > 1 else []


def finals(bench: Bench, asked: Question, value: float) -> list[Piece]:
    """The networks that a row reports."""
    made = []
    for number, seed in enumerate(bench.seeds, start=1):
        key = f"final/{asked.key}/{value!r}/{seed}"
        label = f"{asked.label}, network {number}"
        made.append(Piece(key, label, asked, seed, value, "test"))
    return made


def result_of(context: Context, piece: Piece, seen: Seen) -> Json:
    """What came of a network, which is trained where it was not."""

    def compute() -> Json:
        make_ready(context, piece.asked.start, piece.asked.model, piece.seed)
        return tested(context, piece, seen)

    return context.remember(piece.key, piece.label, compute)


def tested(bench: Bench, piece: Piece, seen: Seen) -> Json:
    """Train a network and judge it: its accuracy, and the images of each class it is right about.

    `make_ready` was called for what it starts from.
    """
    result = trained(bench, piece, seen)
    return {"accuracy": result.accuracy, "right": list(result.right)}


def values_of(bench: Bench, asked: Question) -> tuple[float, ...]:
    """Rates, or weight decays, that are tried for a row, ascending; one where none can be."""
    config = bench.config
    protocol = adapted(config.finetuning, asked.model)
    grid, usual = config.values(asked.way), config.usual(asked.way)
    if asked.way == "finetune" and protocol.optimiser != "sgd":
        grid, usual = protocol.lr_grid, protocol.lr
    if asked.data.validation is None:
        return (usual,)
    return grid


def choose(context: Context, asked: Question, seen: Seen) -> tuple[float, float]:
    """(rate or weight decay, seconds): the best of the grid on the validation split.

    One network that is none of the reported ones is trained with each. Test images have no say.
    """
    tried, seconds = [], 0.0
    for piece in searches(context, asked):
        result = result_of(context, piece, seen)
        seconds += result["seconds"]
        tried.append((piece.value, [result["accuracy"]]))
    if not tried:
        return values_of(context, asked)[0], 0.0
    value, diverged = best_rate(tried)
    if diverged:
        log.say(
            f"warning: {asked.label}: the network diverged at every value that was tried, so "
            f"{value:g} is only the least bad"
        )
    return value, seconds


def trained(bench: Bench, piece: Piece, seen: Seen) -> Classified:
    """What a network, probed with that decay or fine-tuned at that rate, makes of a split."""
    asked = piece.asked
    index = asked.data.chosen(asked.size, bench.seed, draw_of(bench, piece.seed))
    if asked.way == "finetune":
        return _finetuned(bench, piece, index)
    known = _embedded(bench, asked, piece.seed, "train", seen)
    on = _embedded(bench, asked, piece.seed, piece.split, seen)
    return probe.probed(known.at(index), on, asked.data.num_classes, piece.value)


def _embedded(bench: Bench, asked: Question, seed: int, split: str, seen: Seen) -> Embedded:
    """What the network that a row starts from says of the images of a split."""
    of = (asked.data.name, asked.model, asked.start.name)
    if seen.of != of:
        seen.of = of
        seen.splits.clear()
    if (seed, split) not in seen.splits:
        start = new_network(bench, asked.start, asked.model, seed, asked.data.num_classes)
        network = start(generator(seed, "network")).to(bench.device)
        for name, real in _splits(asked.data).items():
            features = probe.features(network, real, bench.precision)
            seen.splits[seed, name] = Embedded(features, real.labels)
    return seen.splits[seed, split]


def _splits(data: Downstream) -> dict[str, RealSet]:
    splits = {"train": data.train, "test": data.test}
    if data.validation is not None:
        splits["validation"] = data.validation
    return splits


def _finetuned(bench: Bench, piece: Piece, index: Tensor) -> Classified:
    """What a network makes of a split after it was fine-tuned on the images at `index`."""
    asked, seed = piece.asked, piece.seed
    (network,) = training.train_networks(
        new_network(bench, asked.start, asked.model, seed, asked.data.num_classes),
        [Subset(asked.data.train, index)],
        [seed],
        adapted(bench.config.finetuning, asked.model),
        piece.value,
        bench.device,
        steps=updates_of(bench, asked),
        precision=bench.precision,
        labels="hard",
        foreign=asked.model in bench.factories,
    )
    return training.classified(network, _splits(asked.data)[piece.split], bench.precision)


def updates_of(bench: Bench, asked: Question) -> int | None:
    """Of a network that is fine-tuned; None of one that is probed."""
    if asked.way != "finetune":
        return None
    if isinstance(asked.size, int):
        return bench.config.few_updates
    return bench.config.updates
