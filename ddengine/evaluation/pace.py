"""How long trainings take: measured, told beforehand, and how the processor is shared out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ddengine.data import RealSet
from ddengine.evaluation.bench import Bench, Contender, Training
from ddengine.evaluation.rates import adapted
from ddengine.evaluation.trainings import has_curve, seconds_for, tried_rates, updates
from ddengine.learning.memory import saved_bytes
from ddengine.system import runtime
from ddengine.system.rng import generator
from ddengine.system.workers import Hands, num_for

MEASURED = 0.5  # seconds of updates that are timed at least
JUDGED = 200  # images on which judging is timed
FULL_SECONDS = 120.0  # that networks on the full data usually may take, on each network
WORTH = 15.0  # seconds of trainings from which on processes are worth their start
PROCESS_BYTES = 6 * 10**8  # of a process before it trains
TOLD = 2**31  # bytes of images, at most, of which other processes are given copies
HELD = 2.5  # bytes that a training holds for one that a forward pass saves
CURVE = 0.75  # of a whole training that a validation curve often takes

# a row to be: what networks are trained on, and which
Asked = tuple[Contender, str]


@dataclass(frozen=True)
class Pace:
    """What networks that are trained in one go take."""

    update: float  # seconds of an update of all of them
    judging: float  # seconds until all of them are judged on the test split


def measured(bench: Bench, asked: Training) -> Pace:
    """How long updates of a training take here; nothing that is reported comes of it."""
    usual = asked.steps or bench.updates(asked.who)
    bench.networks(replace(asked, steps=1))  # the first is slower
    steps, seconds = 1, 0.0
    while True:
        steps = min(2 * steps, usual)
        start = bench.clock()
        networks = bench.networks(replace(asked, steps=steps))
        seconds = bench.clock() - start
        if seconds >= MEASURED or steps == usual:
            break
    train = bench.data.train
    pixels, labels = train.pixels[:JUDGED], train.labels[:JUDGED]
    some = RealSet(pixels, labels, train.num_classes, train.preprocess)
    start = bench.clock()
    bench.means.classified(networks[0], some, bench.precision)
    each = (bench.clock() - start) / len(some)
    tested = len(bench.split("test")) * len(networks)
    return Pace(seconds / steps, each * tested)


@dataclass
class Paces:
    """Seconds of an update of one network, as far as known, by network and images in it."""

    known: dict[str, dict[int, float]] = field(default_factory=dict)

    def learn(self, model: str, images: int, seconds: float) -> None:
        """An update with so many images took so long."""
        self.known.setdefault(model, {})[images] = seconds

    def of(self, model: str, images: int) -> float | None:
        """What an update takes, by the most similar one; None without any of the network."""
        of_model = self.known.get(model)
        if not of_model:
            return None
        nearest = min(of_model, key=lambda known: abs(math.log(known / images)))
        return of_model[nearest] * images / nearest


def images_of(bench: Bench, who: Contender) -> int:
    """In an update on a contender."""
    return min(bench.config.batch, bench.size(who))


def num_searched(bench: Bench, who: Contender, model: str) -> int:
    """Networks that choose the learning rate of a row."""
    return len(tried_rates(bench, who, model)) * bench.config.search_networks


def seconds_of(bench: Bench, asked: Asked, paces: Paces, hands: Hands) -> float | None:
    """What a row will take, roughly; None where nothing like it has been timed."""
    who, model = asked
    update = paces.of(model, images_of(bench, who))
    if update is None:
        return None
    usual, decided = bench.updates(who), updates(bench, who, model)
    if has_curve(bench, who, model) and decided is None:
        # the curve, and networks half as long as it at most
        share = CURVE + (1 + bench.config.num_networks) / 8
        return share * usual * update / min(hands.num, hands.cores)
    each = update * (usual if decided is None else decided)
    rounds = hands.rounds(num_searched(bench, who, model))
    rounds += hands.rounds(bench.config.num_networks)
    return rounds * each


def updates_in_time(bench: Bench, asked: Asked, pace: Pace, hands: Hands, *, beside: int) -> int:
    """Updates of each network of a row that take the seconds that there are, at least 1.

    `pace` is that of one network. `beside` so many networks are trained one after another, too.
    """
    who, model = asked
    seconds = seconds_for(bench, who)
    assert seconds is not None
    rounds = beside + hands.rounds(num_searched(bench, who, model))
    rounds += hands.rounds(bench.config.num_networks)
    if has_curve(bench, who, model):
        rounds += 1  # all shorter lengths together
    each = seconds / rounds - pace.judging
    return min(bench.updates(who), max(1, int(each / pace.update)))


# The processor.


def processes_for(bench: Bench, rows: Sequence[Asked], paces: Paces, allowed: int) -> int:
    """How many processes train networks, one at a time, where so many threads are allowed.

    On several threads a network is trained hardly faster than on one while anything else runs, and
    in one computation networks take up to a third more of the processor than one after another; so
    processes train one network each, as many as do those of a row soonest. A short evaluation has
    one process; its networks have as many threads as in several, so that the numbers are the same.
    """
    if bench.device.type != "cpu" or bench.train is not None or not bench.timed:
        return 1
    cores = min(bench.at_a_time, allowed // bench.threads)
    if cores < 2 or seconds_of_all(bench, rows, paces) < WORTH:
        return 1
    most = _in_memory(bench, rows)
    # networks of several rows, or that choose a rate, are more than those of one
    return max(num_for(bench.config.num_networks, cores, most), min(cores, most))


def seconds_of_all(bench: Bench, rows: Sequence[Asked], paces: Paces) -> float:
    """What rows will take one network after another, as far as it is known."""
    return sum(seconds_of(bench, row, paces, Hands()) or 0.0 for row in rows)


def _in_memory(bench: Bench, rows: Sequence[Asked]) -> int:
    """Processes that have the memory to train at once."""
    data, config = bench.data, bench.config
    pixels = sum(len(real) for real in (data.train, data.validation, data.test) if real is not None)
    of_images = pixels * math.prod(data.image_shape)
    if of_images > TOLD:  # each process would hold a copy of what is mapped into this one
        return 1
    most = PROCESS_BYTES + of_images
    for model in {model for _, model in rows}:
        network = bench.new_model(model)(generator(0))
        saved = saved_bytes(network, data.image_shape, bench.device)
        images = min(adapted(config, model).batch, len(data.train))
        most = max(most, PROCESS_BYTES + int(HELD * saved * images))
    return runtime.available_memory(bench.device) // most
