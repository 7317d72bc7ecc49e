"""What a distilled set is worth: networks trained on it, beside random images, herding and the full
data under the same protocol.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddengine.data import Data, RealSet, Subset
from ddengine.data.load import image_digests
from ddengine.evaluation.intervals import NAME, counted, interval
from ddengine.learning import training
from ddengine.learning.teachers import BATCH, ensemble_logits
from ddengine.models import build_model, usual_optimiser
from ddengine.recipe import AugmentConfig, EvalConfig, digest, to_dict
from ddengine.sets import coreset
from ddengine.sets.codec import as_bytes
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import LABELS, SyntheticSet, coded
from ddengine.system import files, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Batch, TrainingSet

_INFER = EvalConfig(
    protocol="infer-static",
    epochs=400,
    batch=64,
    optimiser="adamw",
    weight_decay=0.01,
    schedule="cosine",
    augment=AugmentConfig(always=("crop", "flip"), ops=()),
    mixup=0.8,
    loss="kl",
    temperature=30.0,
    lr=0.001,
    lr_grid=(0.0003, 0.001, 0.003),
    baselines=("random", "random_soft", "hard_labels", "herding", "full"),
    baseline_steps="updates",
)

# Published protocols as data; `fast` is for small work. All report the last epoch (the released
# programs of `ast` and `idc` report the best on the test images too; those of `infer` print both).
# What a dataset has of its own (no flips of digits, no CutMix) is set by recipes.
PROTOCOLS: dict[str, EvalConfig] = {
    "mtt": EvalConfig(protocol="mtt"),
    "datm": EvalConfig(protocol="datm", batch=128),
    "ast": EvalConfig(protocol="ast", weight_decay=1e-3, lr_drop=0.5, momentum_after=0.8),
    "dc": EvalConfig(protocol="dc", epochs=300, augment=AugmentConfig(ops=())),
    "dsa": EvalConfig(protocol="dsa"),
    "idc": EvalConfig(
        protocol="idc",
        batch=64,
        lr_drop=0.2,
        schedule="thirds",
        cutmix=0.5,
        augment=AugmentConfig(always=("flip", "color"), ops=("crop", "scale", "rotate")),
    ),
    "infer-static": _INFER,
    "infer-dynamic": replace(_INFER, protocol="infer-dynamic", epochs=80, labels="dynamic"),
    # on CIFAR; SRe2L's code leaves the teacher in training mode there (teacher_mode train)
    "sre2l": replace(_INFER, protocol="sre2l", batch=128, labels="dynamic"),
    "rded": replace(
        _INFER,
        protocol="rded",
        epochs=300,
        batch=50,
        temperature=20.0,
        stretch=2.0,
        decay_norms=False,
        # of untiled images; see the recipes for others
        augment=AugmentConfig(always=("flip",), ops=()),
        mixup=0.0,
        cutmix=1.0,
        labels="dynamic",
    ),
    "fast": EvalConfig(protocol="fast", epochs=300, num_networks=5, full_steps=1000),
}

Labels = Literal["own", "hard", "dynamic"]
SEARCH_SEED = 1000  # the networks that choose a learning rate are not those that are reported
# of networks that SGD trains badly
ADAMW = {"optimiser": "adamw", "weight_decay": 0.05, "lr": 0.001, "lr_grid": (0.0003, 0.001, 0.003)}
# form of what is remembered of an interrupted evaluation; what an older program left is computed
# again
MEMO = 2
AT_ONCE = 2**24  # pixel values of a set that are decoded at a time
# a quarter of a step of 8 bits: pixels that lie nearer to the steps are 8-bit already
EIGHT_BIT = 1 / 1020


class Memo:
    """Results of finished trainings, one JSON line each, so that an interrupted evaluation goes on
    where it was.
    """

    def __init__(self, path: Path | None, identity: str):
        """Read back the lines of `path` that belong to `identity`; None keeps nothing."""
        self._path, self._identity, self._known = path, identity, dict[str, Any]()
        if path is not None and path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # without the line that a kill cut off
            if len(whole) < len(content):
                os.truncate(path, len(whole))
            try:
                for entry in map(json.loads, whole.splitlines()):
                    if entry["identity"] == identity:
                        self._known[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} is damaged; delete it and evaluate again.") from None
        # of finished trainings
        self.seconds_before = sum(
            v.get("seconds", 0.0) for v in self._known.values() if isinstance(v, dict)
        )

    def __call__(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value stored under `key`, computed and stored when new."""
        if key not in self._known:
            self._known[key] = compute()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(
                        files.to_json(
                            {"identity": self._identity, "key": key, "value": self._known[key]}
                        )
                        + "\n"
                    )
        return self._known[key]

    def clear(self) -> None:
        """Forget everything, the file too."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Contender:
    """A row to be: a set for each network (random: each network its own draw), and which labels it
    is trained with.
    """

    name: str
    sets: Callable[[int], TrainingSet]  # draw -> set
    several_draws: bool = False
    steps: int | None = None  # updates; None: those of the protocol
    labels: Labels = "hard"
    own: bool = False  # the distilled set in one of its forms, to which a learned rate belongs
    rate_of: "Contender | None" = None  # whose learning rate it takes; None: one is chosen for it


@dataclass(frozen=True)
class Bench:
    """What all trainings of an evaluation share."""

    data: Data
    config: EvalConfig
    seed: int
    device: torch.device
    precision: Precision
    memo: Memo
    advance: Callable[[str], None]
    home: str = ""  # the network that the set was distilled with
    learned_lr: float | None = None  # with the distilled set, for the network `home` and SGD
    name: str = "distilled"  # of the set's row
    teachers: Sequence[nn.Module] = ()  # make dynamic labels, and those of random_soft
    label_bytes: float = 0.0  # of a soft label of the set, and so of random_soft
    as_labelled: Callable[[Tensor], Tensor] = lambda logits: logits  # how the set stores labels
    seen: set[str] = field(default_factory=set)  # keys of results
    said: set[str] = field(default_factory=set)  # warnings

    def warn(self, message: str) -> None:
        """Say something once, however often it is found."""
        if message not in self.said:
            self.said.add(message)
            log.say(f"warning: {message}")

    def remember(self, key: str, label: str, compute: Callable[[], Any]) -> Any:
        """The result stored under `key`, computed when new; the progress advances once a key."""
        if key not in self.seen:
            self.seen.add(key)
            self.advance(label)
        return self.memo(key, compute)

    def learned(self, model: str) -> float | None:
        """The learned rate where it belongs: with plain SGD on the network that it was learned for."""
        return (
            self.learned_lr
            if model == self.home and adapted(self.config, model).optimiser == "sgd"
            else None
        )

    def accuracies(
        self, who: Contender, model: str, lr: float, seeds: Sequence[int], on: RealSet
    ) -> list[training.Classified]:
        """What one network per seed makes of the images of `on`."""
        sets = [who.sets(i) for i in range(len(seeds))]
        new_model = partial(build_model, model, self.data.image_shape, self.data.num_classes)
        networks = training.train_networks(
            new_model, sets, seeds, adapted(self.config, model), lr, self.device,
            steps=who.steps, precision=self.precision, teachers=self.teachers, labels=who.labels,
        )  # fmt: skip
        return [training.classified(network, on, self.precision) for network in networks]


def _timed(compute: Callable[[], list[training.Classified]]) -> dict[str, Any]:
    """As it is remembered: of each network its accuracy, None where it diverged, and the images of
    each class that it is right about.
    """
    start = time.perf_counter()
    found = compute()
    return {
        "accuracies": [f.accuracy for f in found],
        "right": [list(f.right) for f in found],
        "seconds": time.perf_counter() - start,
    }


def adapted(config: EvalConfig, model: str) -> EvalConfig:
    """The protocol for a network: the optimiser it needs in place of SGD, where `config.adapt`
    allows that and SGD trains it badly.
    """
    needs = config.adapt and config.optimiser == "sgd" and usual_optimiser(model) == "adamw"
    return replace(config, **ADAMW) if needs else config  # type: ignore[arg-type]


def choose_lr(bench: Bench, who: Contender, model: str) -> tuple[float, float]:
    """(learning rate, seconds): the best on the validation split of the grid and, on the recipe's
    network, the rate learned with the set.

    Without a validation split, and with rate "learned": the learned rate for the distilled set,
    where it belongs, the usual one otherwise.
    """
    if who.rate_of is not None:
        return choose_lr(bench, who.rate_of, model)[0], 0.0
    validation, config, learned = (
        bench.data.validation,
        adapted(bench.config, model),
        bench.learned(model),
    )
    if validation is None or config.rate == "learned":
        return (learned if who.own and learned else config.lr), 0.0
    tried: list[tuple[float, list[float | None]]] = []
    seconds = 0.0
    seeds = [bench.seed + SEARCH_SEED + i for i in range(bench.config.search_networks)]
    for lr in candidates(config, learned):
        run = bench.remember(
            f"search/{who.name}/{model}/{lr!r}",
            f"{who.name} on {model}, trying learning rate {lr:g}",
            lambda lr=lr: _timed(lambda: bench.accuracies(who, model, lr, seeds, validation)),
        )
        seconds += run["seconds"]
        tried.append((lr, run["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        bench.warn(
            f"{who.name} on {model}: networks diverged at every learning rate that was tried, so "
            f"{lr:g} is only the least bad"
        )
    return lr, seconds


def best_rate(tried: Sequence[tuple[float, Sequence[float | None]]]) -> tuple[float, bool]:
    """(the learning rate that its networks recommend, whether networks diverged even there).

    `tried`: rates, ascending, and the accuracies of their networks, None where one diverged. A rate
    at which a network diverged is chosen only where that is so at all rates, then one where fewest
    did; otherwise the highest mean counts, of equal ones the smallest rate.
    """

    def merit(entry: tuple[float, Sequence[float | None]]) -> tuple[int, float]:
        finite = counted(entry[1])
        return len(finite) - len(entry[1]), float(np.mean(finite)) if finite else 0.0

    best = max(tried, key=merit)  # the first of equal ones
    return best[0], None in best[1]


def candidates(config: EvalConfig, learned_lr: float | None) -> list[float]:
    """The learning rates tried for every set on a network, ascending; the learned one is open to
    all sets.
    """
    return sorted({*config.lr_grid, *([learned_lr] if learned_lr else [])})


def row(bench: Bench, who: Contender, model: str) -> dict[str, Any]:
    """One row of the table: choose the rate, train, test.

    Networks that diverged are counted, and left out of all means.
    """
    assert bench.data.test is not None
    test = bench.data.test
    lr, seconds = choose_lr(bench, who, model)
    seeds = [bench.seed + i for i in range(bench.config.num_networks)]
    key = f"final/{who.name}/{model}/{lr!r}"
    run = bench.remember(
        key,
        f"{who.name} on {model}",
        lambda: _timed(lambda: bench.accuracies(who, model, lr, seeds, test)),
    )
    finite = counted(run["accuracies"])
    mean, std, ci95 = interval(finite)
    shown = who.sets(0)
    steps = training.num_updates(len(shown), bench.config) if who.steps is None else who.steps
    examples = _examples_seen(len(shown), steps, bench.config.batch)
    ledger, labels = _ledger(shown, who.labels, bench, steps)
    return {
        "set": who.name,
        "model": model,
        "images": len(shown),
        "bytes": sum(ledger.values()),
        "ledger": ledger,
        **({"dynamic_labels": labels, "labels_counted": min(labels, key=lambda way: labels[way])} if labels else {}),
        "accuracy_mean": mean,
        "accuracy_std": std,
        "ci95": ci95 and list(ci95),
        "n": len(finite),
        "diverged": len(run["accuracies"]) - len(finite),
        **by_class(run, [len(members) for members in test.members], bench.data.class_names),
        "optimiser": adapted(bench.config, model).optimiser,
        "lr": lr,
        "steps": steps,
        "examples_seen": examples,
        "training_flops": 3 * examples * forward_flops(model, bench.data.image_shape, bench.data.num_classes),
        "seconds": round(seconds + run["seconds"], 2),
        "accuracies": [
            {"seed": seed, "draw": i if who.several_draws else 0, "accuracy": a, **({"diverged": True} if a is None else {})}
            for i, (seed, a) in enumerate(zip(seeds, run["accuracies"], strict=True))
        ],
    }  # fmt: skip


def by_class(
    run: Mapping[str, Any], images: Sequence[int], class_names: Sequence[str]
) -> dict[str, Any]:
    """What a row says of the classes: the mean accuracy on each, and the balanced accuracy, the
    mean over classes, with its deviation over networks.

    `run`: as `_timed` returns it; `images`: test images of each class. A class without any has no
    accuracy and does not count. Networks that diverged do not either.
    """
    right = [r for r, a in zip(run["right"], run["accuracies"], strict=True) if a is not None]
    # (networks, classes with images)
    shares = [[r / num for r, num in zip(own, images, strict=True) if num] for own in right]
    mean, std, _ = interval([float(np.mean(own)) for own in shares])
    known = iter(np.mean(shares, axis=0).tolist() if shares else ())
    return {
        "balanced_accuracy_mean": mean,
        "balanced_accuracy_std": std,
        "per_class": {
            name: next(known, None) if num else None
            for name, num in zip(distinct(class_names), images, strict=True)
        },
    }


def distinct(names: Sequence[str]) -> list[str]:
    """The names of classes, with its number behind a name that several have (ImageNet has two
    cranes).
    """
    times = Counter(names)
    return [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]


def _examples_seen(num: int, steps: int, batch: int) -> int:
    """Examples in so many updates on a set of `num`, the last batch of each epoch ragged."""
    epochs, rest = divmod(steps, math.ceil(num / batch))
    return epochs * num + min(rest * batch, num)


@cache
def forward_flops(model: str, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Floating-point operations of matrix products and convolutions for one image through a
    network; training takes about three times as many.
    """
    network = build_model(model, image_shape, num_classes, generator(0)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *image_shape))
    return counter.get_total_flops()


def _ledger(
    of: TrainingSet, labels: Labels, bench: Bench, steps: int
) -> tuple[dict[str, int], dict[str, int]]:
    """(what is stored of a set, in bytes of images, compensators, labels, other; both ways to count
    dynamic labels).

    Of a distilled one (and of real images in a codec) all tensors as they are shipped, but for
    preprocessing, which can be fitted again; of real images a byte a value and 8 for the class,
    with soft labels those of the distilled set for each. Dynamic labels are either the teachers,
    who make them, or all that they ever say: 2 bytes for each class at each of the examples seen.
    The smaller counts.
    """
    if isinstance(of, _Decoded):
        ledger = dict(of.ledger)
        if labels != "own" and of.hard_bytes is not None:
            ledger["labels"] = of.hard_bytes
    else:
        num = len(of)
        ledger = {
            "images": num * math.prod(bench.data.image_shape),
            "compensators": 0,
            "labels": 8 * num,
            "other": 0,
        }
        if isinstance(of, _Labelled):
            ledger["labels"] += round(bench.label_bytes * num)
    if labels != "dynamic":
        return ledger, {}
    both = {
        "teachers": sum(
            t.numel() * t.element_size()
            for network in bench.teachers
            for t in network.state_dict().values()
        ),
        "stored": 2 * _examples_seen(len(of), steps, bench.config.batch) * bench.data.num_classes,
    }
    ledger["labels"] += min(both.values())
    return ledger, both


def _of_codec(
    syn: SyntheticSet,
    distilled: "_Decoded",
    data: Data,
    config: EvalConfig,
    seed: int,
    device: torch.device,
) -> list[Contender]:
    """Beside a set whose codec decodes more examples than it stores: what the additional updates
    are worth, and what the codec alone is.

    `base` are the real images that a set keeps as they are, with their labels, for as many updates
    as the whole. Of other codecs `distilled_same_steps` has as many updates as a plain set of as
    many images, and `random_coded` are random real images in the same codec.
    """
    stored, own = len(syn.tensors["images"]), training.num_updates(len(distilled), config)
    if len(distilled) <= stored:
        return []
    if natural := syn.codec.natural(syn.tensors):
        share = natural / len(distilled)
        ledger = distilled.ledger | {"compensators": 0}
        ledger["labels"] = len(syn.classes) * 8 + round(
            share * (ledger["labels"] - len(syn.classes) * 8)
        )
        base = replace(  # as if they had been distilled alone
            distilled,
            images=distilled.images[:natural],
            targets=distilled.targets[:natural],
            classes=distilled.classes[:natural],
            ledger=ledger,
        )
        return [Contender("base", lambda draw: base, steps=own, labels=_labels(config))]
    found, steps = [], training.num_updates(stored, config)
    if own != steps:
        found.append(
            Contender(
                "distilled_same_steps",
                lambda draw: distilled,
                steps=steps,
                labels=_labels(config),
                own=True,
            )
        )
    train, names, per_item = data.train, data.class_names, syn.codec.per_item
    if per_item * math.ceil(syn.images_per_class()) > min(
        len(members) for members in train.members
    ):
        few = data.class_names[min(range(data.num_classes), key=lambda c: len(train.members[c]))]
        log.say(
            f"no row random_coded: class {few!r} has too few images to fill the codec with real "
            "ones"
        )
        return found

    def random_coded(draw: int) -> _Decoded:
        index = random_index(
            train,
            per_item * math.ceil(syn.images_per_class()),
            names,
            generator(seed, "random_coded", draw),
        )
        classes = train.labels[index.to(train.device)][::per_item]  # images come class by class
        return _freeze(
            coded(syn.codec, train.images(index), classes, names, train.preprocess), device
        )

    return [*found, Contender("random_coded", random_coded, several_draws=True)]


def of_held_out(syn: SyntheticSet, data: Data) -> list[str]:
    """Warnings that count the images of a set that are, pixel for pixel at 8 bits, validation or
    test images.
    """
    parts = torch.arange(len(syn)).split(max(1, AT_ONCE // math.prod(data.image_shape)))
    own = [digest for part in parts for digest in image_digests(as_bytes(syn.pixels(part)))]
    found = []
    for name, real in (("validation", data.validation), ("test", data.test)):
        held = set() if real is None else set(image_digests(real.pixels))
        if count := sum(digest in held for digest in own):
            found.append(
                f"warning: {count} of the {len(syn)} images of the set are {name} images, so its "
                "accuracy says nothing"
            )
    return found


def _baselines(bench: Bench, model: str, ipc: int, distilled: "_Decoded") -> Iterator[Contender]:
    """The sets the distilled one is compared with; a network trained on the full data embeds for
    coresets and labels where there are no teachers.
    """
    train, names, config = bench.data.train, bench.data.class_names, bench.config
    build = partial(build_model, model, train.image_shape, train.num_classes)
    own = training.num_updates(len(distilled), config)
    equal = config.baseline_steps == "updates"
    # the full data have no fewer updates than the set
    most = max(config.full_steps, own) if equal else config.full_steps
    full = Contender(
        "full", lambda draw: train, steps=min(training.num_updates(len(train), config), most)
    )
    steps = own if equal else None

    def random_draw(draw: int) -> Subset:
        return Subset(train, random_index(train, ipc, names, generator(bench.seed, "random", draw)))

    @cache
    def eyes() -> nn.Module:
        # whether or not full is a row, so that no row depends on which others there are
        lr = choose_lr(bench, full, model)[0]
        network = training.train_networks(
            build,
            [train],
            [bench.seed + 2 * SEARCH_SEED],
            adapted(config, model),
            lr,
            bench.device,
            steps=full.steps,
            precision=bench.precision,
            labels="hard",
        )[0]
        if training.diverged(network):
            raise UserError(
                f"The network {model} that looks at the full data, to choose images and label "
                f"random ones, diverged at rate {lr:g}; "
                "lower evaluation.lr_grid (or evaluation.lr), or leave herding, k_centre, k_means "
                "and random_soft out of evaluation.baselines."
            )
        return network

    def choose(kind: str) -> list[int]:
        rng = generator(bench.seed, "coreset", kind)
        # coresets look through networks trained by SGD
        lr = config.lr if adapted(config, model) != config else choose_lr(bench, full, model)[0]
        return coreset.choose(
            kind, train, ipc, names, rng, embed=lambda: eyes().embed, new_model=build, steps=config.full_steps, lr=lr,  # type: ignore[arg-type,return-value]
        ).tolist()  # fmt: skip

    if "random" in config.baselines:
        yield Contender("random", random_draw, several_draws=True, steps=steps)
    if "random_soft" in config.baselines and config.loss != "uskd":  # which uses no soft labels
        if config.labels == "dynamic":
            yield Contender(
                "random_soft", random_draw, several_draws=True, steps=steps, labels="dynamic"
            )
        else:
            yield Contender(
                "random_soft", lambda draw: _Labelled(random_draw(draw), lambda: bench.teachers or [eyes()], bench.as_labelled),
                several_draws=True, steps=steps, labels="own",
            )  # fmt: skip
    if "hard_labels" in config.baselines and _has_soft_labels(config, distilled.targets):
        yield Contender(f"{bench.name}_hard", lambda draw: distilled, steps=steps, own=True)
    for kind in coreset.KINDS:
        if kind in config.baselines:
            index = torch.tensor(
                bench.remember(
                    f"{kind}/{model}/{ipc}", f"{kind}: chosen by {model}", partial(choose, kind)
                )
            )
            yield Contender(kind, lambda draw, index=index: Subset(train, index), steps=steps)
    if "full" in config.baselines:
        yield full


def _labels(config: EvalConfig) -> Labels:
    """The labels that a distilled set is trained with; uskd uses its classes only."""
    return "hard" if config.loss == "uskd" else config.labels


def _has_soft_labels(config: EvalConfig, targets: Tensor) -> bool:
    """Whether hard labels are something else than what the set is trained with."""
    return _labels(config) == "dynamic" or (
        _labels(config) == "own" and targets.is_floating_point()
    )


class _Labelled:
    """Images with the mean logits that teachers give them as they are, for targets; the teachers
    are made when they are first needed.

    `stored` brings the logits into the form in which labels are stored.
    """

    def __init__(
        self,
        of: TrainingSet,
        teachers: Callable[[], Sequence[nn.Module]],
        stored: Callable[[Tensor], Tensor],
    ):
        self.of, self.teachers, self.stored = of, teachers, stored

    def __len__(self) -> int:
        return len(self.of)

    @cached_property
    def logits(self) -> Tensor:
        """(N, K)."""
        parts = torch.arange(len(self.of)).split(BATCH)
        return self.stored(
            torch.cat(
                [ensemble_logits(self.teachers(), self.of.batch(part).images) for part in parts]
            )
        )

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        images, classes = self.of.batch(index)
        return Batch(images, self.logits[index.to(self.logits.device)], classes)


def num_trainings(bench: Bench, models: Sequence[str], own: Sequence[Contender], soft: bool) -> int:
    """Entries of the memo that an evaluation makes: for `own` contenders and the baselines a search
    for each rate and a row, and each coreset.

    `soft`: whether hard labels are something else than the set's own.
    """
    config, model = bench.config, bench.home
    searched = bench.data.validation is not None and config.rate == "validation"

    def tried(network: str) -> int:
        return len(candidates(adapted(config, network), bench.learned(network))) if searched else 0

    absent = (
        {"eight_bit"}
        | ({"hard_labels"} if not soft else set())
        | ({"random_soft"} if config.loss == "uskd" else set())
    )
    baselines = set(config.baselines) - absent
    coresets = baselines & {*coreset.KINDS}
    taking = sum(who.rate_of is not None for who in own)  # a rate that another contender has chosen
    rows = sum(
        (tried(network) + 1) * (len(own) + len(baselines)) - tried(network) * taking
        for network in models
    )
    eyes = coresets or "random_soft" in baselines  # a network on the full data, with its rate
    return (
        rows
        + len(coresets)
        + (tried(model) if eyes and not ("full" in baselines and model in models) else 0)
    )


def evaluate(
    syn: SyntheticSet,
    data: Data,
    config: EvalConfig,
    model: str,
    *,
    seed: int,
    device: torch.device,
    precision: Precision = "fp32",
    memo_path: Path | None = None,
    seconds_before: float = 0.0,
    name: str = "distilled",
    teachers: Sequence[nn.Module] = (),
) -> dict[str, Any]:
    """Evaluate a distilled set beside its baselines; returns the content of evaluation.json
    (accuracies are fractions).

    `model` is the recipe's network: evaluated when `config.models` names none, and the eyes of
    herding. The test split of `data` is looked at once per reported network; rates are chosen on
    the validation split. `seconds_before` (of the same command) and those of trainings remembered
    from an interrupted evaluation are added to the total. `name` is what the row of the set is
    called; no baseline may be. `teachers` make dynamic labels, and label random images as the set's
    were. Raises UserError for dynamic labels without teachers.
    """
    if config.labels == "dynamic" and not teachers:
        raise UserError(
            "evaluation.labels dynamic needs the teachers of the set; name the folder of their "
            "stores with --experts, or set it to own."
        )
    start = time.perf_counter()
    models = config.models or (model,)
    distilled = _freeze(syn, device)
    codec = [type(syn.codec).__name__, to_dict(syn.codec)]
    weights = [files.tensor_digest(network.state_dict()) for network in teachers]
    identity = digest(
        [
            MEMO,
            to_dict(config),
            seed,
            precision,
            data.train.digest,
            model,
            set_digest(syn),
            codec,
            weights,
        ]
    )
    memo = Memo(memo_path, identity)
    if data.validation is None and config.rate == "validation":
        who = (
            "all sets are"
            if syn.lr is None
            else "the distilled set is trained with its learned rate, the others are"
        )
        log.say(
            f"no validation split to choose a learning rate on: {who} trained with {config.lr:g}"
        )
    for warning in of_held_out(syn, data):
        log.say(warning)
    last_iterate = {
        k.removeprefix("raw."): v for k, v in syn.tensors.items() if k.startswith("raw.")
    }
    bench = Bench(
        data,
        config,
        seed,
        device,
        precision,
        memo,
        lambda label: None,
        model,
        syn.lr,
        name,
        teachers,
        label_bytes(syn),
        syn.as_labelled,
    )
    first = Contender(name, lambda draw: distilled, labels=_labels(config), own=True)
    contenders = [first]
    if last_iterate:  # the last iterate beside its running average, on networks of its own
        raw = _freeze(syn.with_tensors(last_iterate), device)
        contenders.append(Contender("raw", lambda draw: raw, labels=_labels(config), own=True))
    if "eight_bit" in config.baselines and (eight := eight_bit(syn, distilled, device)) is not None:
        contenders.append(
            Contender(
                f"{name}_8bit", lambda draw: eight, labels=_labels(config), own=True, rate_of=first
            )
        )
    contenders += _of_codec(syn, distilled, data, config, seed, device)
    # what a set does not use of its last image, the others may
    ipc = math.ceil(syn.images_per_class())
    fewest = min(len(members) for members in data.train.members)
    # of some classes it has more than of others
    if len(syn.classes.bincount(minlength=data.num_classes).unique()) > 1 and ipc > fewest:
        log.say(
            f"the set has {ipc} images per class on average, and a class {fewest} training "
            f"images: baselines have {fewest} per class"
        )
        ipc = fewest
    with log.progress(
        "evaluate",
        num_trainings(bench, models, contenders, _has_soft_labels(config, distilled.targets)),
    ) as bar:
        bench = replace(bench, advance=bar.advance)
        contenders += _baselines(bench, model, ipc, distilled)
        rows = [row(bench, who, network) for network in models for who in contenders]
    memo.clear()
    return {
        "protocol": to_dict(replace(config, models=models)),
        "rows": rows,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "interval": NAME,  # of every ci95
        "num_images": data.counts,
        "test_images_per_class": dict(
            zip(distinct(data.class_names), (len(m) for m in data.test.members), strict=True)
        )
        if data.test
        else {},
        "set_digest": set_digest(syn),
        "seed": seed,
        "precision": precision,
        # random_soft, and all with dynamic labels
        "labelled_by": f"{len(teachers)} teachers"
        if teachers
        else "a network trained on the full data",
        "teachers": weights,
        "seconds": round(seconds_before + memo.seconds_before + time.perf_counter() - start, 2),
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


@dataclass(frozen=True)
class _Decoded:
    """A distilled set decoded once: training on it then only indexes."""

    images: Tensor
    targets: Tensor
    classes: Tensor
    ledger: dict[str, int]  # bytes of what is stored
    # of the labels, where only classes are used; None: as in the ledger
    hard_bytes: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        index = index.to(self.images.device)
        return Batch(
            *(tensor.index_select(0, index) for tensor in (self.images, self.targets, self.classes))
        )


def _freeze(syn: SyntheticSet, device: torch.device) -> _Decoded:
    with torch.no_grad():
        batch = syn.batch(torch.arange(len(syn)))
    assert batch.classes is not None
    sizes = syn.nbytes()
    ledger = {part: sizes[part] for part in ("images", "compensators", "labels", "other")}
    images, targets, classes = (
        t.detach().to(device) for t in (batch.images, batch.targets, batch.classes)
    )
    return _Decoded(
        images, targets, classes, ledger, syn.classes.numel() * syn.classes.element_size()
    )


def eight_bit(syn: SyntheticSet, distilled: _Decoded, device: torch.device) -> _Decoded | None:
    """The set as its PNG files say it: pixels within 0 and 1 in 256 steps, its labels as they are.

    None where that changes nothing.
    """
    pixels = syn.pixels()
    rounded = as_bytes(pixels).float() / 255
    if (rounded - pixels).abs().max() < EIGHT_BIT:
        return None
    ledger = distilled.ledger | {"images": pixels.numel(), "compensators": 0}
    return replace(distilled, images=syn.preprocess.forward(rounded).to(device), ledger=ledger)


def set_digest(syn: SyntheticSet) -> str:
    """12 hexadecimal digits that identify what a set stores."""
    return files.tensor_digest(syn.tensors)


def label_bytes(syn: SyntheticSet) -> float:
    """Bytes of one soft label as the set stores them; of four-byte logits for a set without."""
    if syn.target_kind == "class":
        return 4.0 * len(syn.class_names)
    return sum(
        syn.tensors[k].numel() * syn.tensors[k].element_size() for k in LABELS if k in syn.tensors
    ) / len(syn.tensors["logits"])


def validate(
    syn: SyntheticSet,
    data: Data,
    config: EvalConfig,
    model: str,
    *,
    seed: int,
    device: torch.device,
    precision: Precision,
    teachers: Sequence[nn.Module] = (),
) -> float | None:
    """Accuracy on the validation split of one network trained on `syn` with its learned (or the
    protocol's usual) rate; None where it diverged.
    """
    assert data.validation is not None
    frozen, config = _freeze(syn, device), adapted(config, model)
    build = partial(build_model, model, data.image_shape, data.num_classes)
    networks = training.train_networks(
        build,
        [frozen],
        [seed + 3 * SEARCH_SEED],
        config,
        (config.optimiser == "sgd" and syn.lr) or config.lr,
        device,
        precision=precision,
        teachers=teachers,
    )
    return training.accuracy(networks[0], data.validation, precision)
