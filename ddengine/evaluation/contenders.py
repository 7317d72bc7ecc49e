"""Which sets a distilled one is compared with."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property, lru_cache, partial

import torch
from torch import Tensor, nn

from ddengine.data import Subset
from ddengine.evaluation import equal_bytes
from ddengine.evaluation.bench import SEARCH_SEED, Bench, Contender, Selection
from ddengine.evaluation.decoded import Decoded, Labelled, eight_bit, freeze
from ddengine.evaluation.rates import adapted
from ddengine.evaluation.trainings import choose_lr, updates
from ddengine.learning import training
from ddengine.learning.training import Labels
from ddengine.recipe import EvalConfig
from ddengine.sets import coreset
from ddengine.sets.codec import Codec
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.typed import Count
from ddengine.types import Facts, TrainingSet

# coresets that look through a network
EMBEDDING = ("herding", "k_centre", "k_means", "facility")


def set_labels(config: EvalConfig) -> Labels:
    """The labels that a distilled set is trained with; uskd uses its classes only."""
    return "hard" if config.loss == "uskd" else config.labels


def has_soft_labels(config: EvalConfig, targets: Tensor) -> bool:
    """Whether hard labels are something else than what the set is trained with."""
    labels = set_labels(config)
    return labels == "dynamic" or (labels == "own" and targets.is_floating_point())


def always(of: TrainingSet, draw: int) -> TrainingSet:
    """The same set for every network."""
    return of


# The set itself, in its forms.


def of_the_set(bench: Bench, syn: SyntheticSet, distilled: Decoded) -> Iterator[Contender]:
    """The set; its last iterate beside a running average; as its PNG files say it."""
    labels = set_labels(bench.config)
    sets = partial(always, distilled)
    first = Contender(bench.name, sets, labels=labels, distilled=True, turn=0)
    yield first
    last_iterate = {}
    for name, tensor in syn.tensors.items():
        if name.startswith("raw."):
            last_iterate[name.removeprefix("raw.")] = tensor
    if last_iterate:
        raw = freeze(syn.with_tensors(last_iterate).shipped(), bench.device)
        yield Contender("raw", partial(always, raw), labels=labels, distilled=True)
    if "eight_bit" in bench.config.baselines:
        rounded = eight_bit(syn, distilled, bench.device)
        if rounded is not None:
            yield Contender(
                f"{bench.name}_8bit",
                partial(always, rounded),
                labels=labels,
                distilled=True,
                rate_of=first,
            )


def of_codec(
    bench: Bench, syn: SyntheticSet, distilled: Decoded, looking: "Looking"
) -> Iterator[Contender]:
    """Beside a set whose codec decodes more examples than it stores, or coarser ones.

    They say what the additional updates are worth, and what the codec alone is. `base` are the real
    images that a set keeps as they are, with their labels, for as many updates as all of it. Of
    other codecs `distilled_same_steps` has as many updates as a plain set of as many images,
    `random_coded` are random real images in the same codec, and `herding_coded` those of a coreset,
    where the protocol has that of herding.
    """
    config, labels = bench.config, set_labels(bench.config)
    stored, steps = len(syn.classes), training.num_updates(len(distilled), config)
    if len(distilled) <= stored and not syn.codec.approximates:
        return
    if natural := syn.codec.natural(syn.tensors):
        base = _base(syn, distilled, natural)
        yield Contender("base", partial(always, base), steps=steps, labels=labels)
        return
    fewer = training.num_updates(stored, config)
    if fewer != steps:
        yield Contender(
            "distilled_same_steps",
            partial(always, distilled),
            steps=fewer,
            labels=labels,
            distilled=True,
        )
    codec, equal = syn.codec.of_real_images(), None
    per_class = codec.per_item * math.ceil(stored / len(syn.class_names))
    members = list(map(len, bench.data.train.members))
    if per_class > min(members):
        few = bench.data.class_names[members.index(min(members))]
        log.say(
            f"no row random_coded: class {few!r} has too few images to fill the codec with real "
            "ones"
        )
        return
    if codec.holding(1) is not None:
        items = _items_within(bench, codec, syn.nbytes, per_class // codec.per_item)
        codec, per_class, equal = codec.holding(items) or codec, items * codec.per_item, steps
    random_sets = coded_once(partial(_random_coded, bench, codec, per_class))
    yield Contender("random_coded", random_sets, several_draws=True, steps=equal)
    if "herding" in config.baselines:
        selection = looking.selection("herding", per_class)
        coded_selection = cache(partial(_selection_coded, bench, codec, selection))
        examples = per_class // codec.per_item * len(distilled) // stored  # of a class
        yield Contender(
            "herding_coded",
            lambda draw: coded_selection(),
            selection=selection,
            num=examples * len(syn.class_names),
            steps=equal,
            through=looking.full,
        )


def coded_once(make: Callable[[int], Decoded]) -> Callable[[int], Decoded]:
    """The same, which remembers its first set, and the last one of others.

    The first is asked for at each learning rate, and a codec that is fitted to images may take
    minutes.
    """
    first = cache(partial(make, 0))
    others = lru_cache(maxsize=1)(make)

    def remembered(draw: int) -> Decoded:
        return first() if draw == 0 else others(draw)

    return remembered


def _base(syn: SyntheticSet, distilled: Decoded, natural: int) -> Decoded:
    """The first `natural` examples of a set, as if they had been distilled alone."""
    classes = len(syn.classes) * 8
    share = natural / len(distilled)
    ledger = distilled.ledger | {"compensators": 0}
    ledger["labels"] = classes + round(share * (ledger["labels"] - classes))
    return replace(
        distilled,
        images=distilled.images[:natural],
        targets=distilled.targets[:natural],
        classes=distilled.classes[:natural],
        ledger=ledger,
    )


def _random_coded(bench: Bench, codec: Codec, per_class: int, draw: int) -> Decoded:
    """Random real images in a codec."""
    return freeze(_random_set(bench, codec, per_class, draw), bench.device)


def _random_set(bench: Bench, codec: Codec, per_class: int, draw: int) -> SyntheticSet:
    """The same before it is decoded."""
    rng = generator(bench.seed, "random_coded", draw)
    index = random_index(bench.data.train, per_class, bench.data.class_names, rng)
    return _coded(bench, codec, index)


def _selection_coded(bench: Bench, codec: Codec, selection: Selection) -> Decoded:
    """The images of a coreset in a codec."""
    index = bench.memo(selection.key, selection.choose)
    return freeze(_coded(bench, codec, torch.tensor(index)), bench.device)


def _coded(bench: Bench, codec: Codec, index: Tensor) -> SyntheticSet:
    """Real images (n,), class by class, as a codec ships them."""
    train, names = bench.data.train, bench.data.class_names
    classes = train.labels[index.to(train.device)][:: codec.per_item]
    return coded(codec, train.images(index), classes, names, train.preprocess).shipped()


def _items_within(bench: Bench, codec: Codec, num_bytes: int, first: int) -> int:
    """Items of a class that so many bytes hold, of random real images in a codec that compresses.

    By the first draw. `first` is a guess.
    """

    def bytes_of(items: int) -> int:
        holding = codec.holding(items)
        assert holding is not None
        return _random_set(bench, holding, items * codec.per_item, draw=0).nbytes

    most = min(map(len, bench.data.train.members)) // codec.per_item
    return most_within(num_bytes, bytes_of, first, most)


def most_within(num_bytes: int, bytes_of: Callable[[int], int], first: int, most: int) -> int:
    """The largest number from 1 to `most` of which so many bytes are enough; 1 where none is.

    `bytes_of` grows nearly evenly, and is asked as seldom as may be, of `first` first.
    """
    fits, too_many = 0, most + 1
    number = min(first, most)
    while True:
        needed = bytes_of(number)
        if needed <= num_bytes:
            fits = number
        else:
            too_many = number
        number = min(max(number * num_bytes // needed, fits + 1), too_many - 1)
        if number <= fits:
            return max(1, fits)


# Real images.


class Looking:
    """A network trained on the full data.

    It looks at images for coresets, and labels them where there are no teachers. It is trained by
    our loop whatever the reported networks are trained by, and whether or not the full data are a
    row, so that no row depends on which others there are.
    """

    def __init__(self, bench: Bench, full: Contender):
        """`full`: the full data, whose learning rate it has."""
        self.bench, self.full = replace(bench, train=None), full

    @property
    def model(self) -> str:
        """Its name: it is the network of the recipe."""
        return self.bench.home

    @property
    def steps(self) -> int | None:
        """Updates on the full data."""
        cut = updates(self.bench, self.full, self.model)
        return self.full.steps if cut is None else cut

    @cached_property
    def network(self) -> nn.Module:
        """In evaluation mode. Raises UserError where it diverged."""
        bench = self.bench
        lr, _ = choose_lr(bench, self.full, self.model)
        (network,) = bench.means.train_networks(
            bench.new_model(self.model),
            [bench.data.train],
            [bench.seed + 2 * SEARCH_SEED],
            adapted(bench.config, self.model),
            lr,
            bench.device,
            steps=self.steps,
            precision=bench.precision,
            labels="hard",
            at_once=bench.at_once,
        )
        if training.diverged(network):
            raise UserError(
                f"The network {self.model} that looks at the full data, to choose images and label "
                f"random ones, diverged at rate {lr:g}; "
                "lower evaluation.lr_grid (or evaluation.lr), or leave herding, k_centre, k_means "
                "and random_soft out of evaluation.baselines."
            )
        return network

    @property
    def choosing_needs_its_rate(self) -> bool:
        """Whether coresets are chosen at the rate of the full data; else at the protocol's."""
        return adapted(self.bench.config, self.model) == self.bench.config

    def choose(self, kind: str, ipc: int) -> list[int]:
        """Indices of `ipc` training images of each class, by a coreset."""
        bench, lr = self.bench, self.bench.config.lr
        # coresets look through networks trained by SGD
        if self.choosing_needs_its_rate:
            lr, _ = choose_lr(bench, self.full, self.model)
        facts = self._facts(kind, ipc, lr)
        known = bench.shared.get(facts, list[Count])
        if known is not None:
            return known
        index = coreset.choose(
            kind,
            bench.data.train,
            ipc,
            bench.data.class_names,
            generator(bench.seed, "coreset", kind),
            embed=lambda: self.network.embed,  # type: ignore[arg-type,return-value]
            new_model=bench.new_model(self.model),
            steps=self._scoring_steps(kind),
            lr=lr,
            train_networks=bench.means.train_networks,
        ).tolist()
        bench.shared.put(facts, index)
        return index

    def _facts(self, kind: str, ipc: int, lr: float) -> Facts:
        """What decides which images a coreset has."""
        return {
            "chosen by": kind,
            "images per class": ipc,
            "network": self.model,
            "seed": self.bench.seed,
            "lr": lr,
            "updates": self.steps,
            "updates of scores": self._scoring_steps(kind),
        }

    def _scoring_steps(self, kind: str) -> int:
        """Updates of networks that score images: no more than those on the full data if cut."""
        most = self.bench.config.full_steps
        cut = updates(self.bench, self.full, self.model) if self.full.by_time else None
        if cut is None:
            return most
        if kind == "forgetting":  # which counts what is unlearned between two epochs
            cut = max(cut, coreset.fewest_steps(len(self.bench.data.train)))
        if kind == "cad":  # which looks at how scores vary from epoch to epoch
            cut = max(cut, coreset.fewest_steps_of_cad(len(self.bench.data.train)))
        return min(most, cut)

    def selection(self, kind: str, ipc: int) -> Selection:
        """What a coreset is remembered by."""
        return Selection(
            key=f"{kind}/{self.model}/{ipc}",
            label=f"{kind}: chosen by {self.model}",
            choose=partial(self.choose, kind, ipc),
            looks=kind in EMBEDDING or self.choosing_needs_its_rate,
        )

    def labelled(self, of: TrainingSet) -> Labelled:
        """A set with the labels of the teachers, or else of this network."""
        return Labelled(of, lambda: self.bench.teachers or [self.network], self.bench.as_labelled)


def full_data(bench: Bench, distilled: Decoded) -> Contender:
    """All training images, for no fewer updates than the set where updates are to be equal."""
    config, train = bench.config, bench.data.train
    most = config.full_steps
    if config.baseline_steps == "updates":
        most = max(most, training.num_updates(len(distilled), config))
    steps = min(training.updates_on_all(len(train), config), most)
    by_time = bench.economy.full_seconds is not None and bench.timed
    sets = partial(always, train)
    return Contender("full", sets, steps=steps, baseline=True, by_time=by_time, turn=2)


def of_real_images(
    bench: Bench, looking: Looking, ipc: int, distilled: Decoded
) -> Iterator[Contender]:
    """The baselines of the protocol, `ipc` real images a class, and the set with its classes."""
    config = bench.config
    steps = None
    if config.baseline_steps == "updates":
        steps = training.num_updates(len(distilled), config)
    random = Contender(
        "random",
        partial(_random, bench, ipc),
        several_draws=True,
        steps=steps,
        baseline=True,
        turn=0,
    )
    if "random" in config.baselines:
        yield random
    if "equal_bytes" in config.baselines:
        yield from _of_equal_bytes(bench, ipc, distilled, random)
    if "random_soft" in config.baselines and config.loss != "uskd":  # which uses no soft labels
        yield _with_soft_labels(random, bench, looking, ipc)
    if "hard_labels" in config.baselines and has_soft_labels(config, distilled.targets):
        sets = partial(always, distilled)
        yield Contender(f"{bench.name}_hard", sets, steps=steps, distilled=True)
    yield from _of_coresets(bench, looking, ipc, steps)
    if "full" in config.baselines:
        yield looking.full


def _of_coresets(
    bench: Bench, looking: Looking, ipc: int, steps: int | None
) -> Iterator[Contender]:
    """The coresets of the protocol."""
    for kind in coreset.KINDS:
        if kind in bench.config.baselines:
            selection = looking.selection(kind, ipc)
            sets = partial(_selected, bench, selection)
            num = ipc * bench.data.num_classes
            yield Contender(
                kind,
                sets,
                steps=steps,
                selection=selection,
                num=num,
                baseline=True,
                through=looking.full if selection.looks else None,
            )


def _of_equal_bytes(
    bench: Bench, ipc: int, distilled: Decoded, random: Contender
) -> Iterator[Contender]:
    """As many random images as the bytes of the set hold, where these are not as many anyway."""
    num = equal_bytes.num_images(sum(distilled.ledger.values()), bench.data.train)
    if num == ipc * bench.data.num_classes:
        log.say("no row equal_bytes: the bytes of the set hold as many images as random has")
    if num in (0, ipc * bench.data.num_classes):
        return
    sets = partial(_random_in_bytes, bench, num)
    # more images cost more time, and a quick evaluation has none for a curve of their own
    rate_of = random if bench.economy.quick and "random" in bench.config.baselines else None
    yield replace(random, name="equal_bytes", sets=sets, rate_of=rate_of, turn=1)


def _random_in_bytes(bench: Bench, num: int, draw: int) -> Subset:
    """So many random images, as many of each class as there are."""
    rng = generator(bench.seed, "equal bytes", draw)
    train = bench.data.train
    return Subset(train, equal_bytes.random_index(train, num, rng))


def _with_soft_labels(random: Contender, bench: Bench, looking: Looking, ipc: int) -> Contender:
    """Random images with soft labels of the kind that the set has."""
    if set_labels(bench.config) == "dynamic":
        return replace(random, name="random_soft", labels="dynamic", baseline=False, turn=1)
    return replace(
        random,
        name="random_soft",
        sets=lambda draw: looking.labelled(_random(bench, ipc, draw)),
        labels="own",
        looks=not bench.teachers,
        through=None if bench.teachers else looking.full,
        baseline=False,
        turn=1,
    )


def _random(bench: Bench, ipc: int, draw: int) -> Subset:
    """As many random images of each class."""
    train = bench.data.train
    rng = generator(bench.seed, "random", draw)
    index = random_index(train, ipc, bench.data.class_names, rng)
    return Subset(train, index)


def _selected(bench: Bench, selection: Selection, draw: int) -> Subset:
    """The images of a coreset, chosen when it is first asked for."""
    index = bench.memo(selection.key, selection.choose)
    return Subset(bench.data.train, torch.tensor(index))
