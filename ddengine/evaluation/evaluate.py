"""What a distilled set is worth.

Networks are trained on it, beside random images, herding and the full data under the same protocol.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddengine import naming
from ddengine.data import Data, RealSet
from ddengine.data.checks import image_digests
from ddengine.evaluation.baselines import of_all
from ddengine.evaluation.bench import Bench, Contender, Economy
from ddengine.evaluation.beside import of_rank
from ddengine.evaluation.brought import Factory, Trainer, check_factories
from ddengine.evaluation.contenders import (
    Looking,
    full_data,
    of_codec,
    of_real_images,
    of_the_set,
    set_labels,
)
from ddengine.evaluation.decoded import freeze
from ddengine.evaluation.intervals import NAME
from ddengine.evaluation.ledger import label_bytes
from ddengine.evaluation.pace import num_searched
from ddengine.evaluation.plan import Plan, Row, in_turn
from ddengine.evaluation.rates import two_of
from ddengine.evaluation.rows import distinct
from ddengine.evaluation.watch import Watch, num_networks
from ddengine.evaluation.work import train_all
from ddengine.learning import muon
from ddengine.learning.training import Means, usual_means
from ddengine.recipe import EvalConfig
from ddengine.sets.codec import as_bytes
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.runtime import Precision
from ddengine.system.shared import Shared
from ddengine.system.workers import Message
from ddengine.types import Facts, Json

# form of what is remembered of an interrupted evaluation; what an older program left is computed
# again
MEMO = 3
QUICK_NETWORKS = 3  # of each row of a quick evaluation
AT_ONCE = 2**24  # pixel values of a set that are decoded at a time


def evaluate(  # long: most of it is what the arguments are
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
    test: RealSet | None = None,
    factories: Mapping[str, Factory] | None = None,
    train: Trainer | None = None,
    means: Means | None = None,
    economy: Economy = Economy(),
) -> Json:
    """Evaluate a distilled set beside its baselines.

    The test split is looked at once per reported network; rates are chosen on the validation split.

    Args:
        syn: the set.
        data: the dataset it was made from.
        config: the protocol. It is adapted to networks that SGD trains badly.
        model: the recipe's network: evaluated when neither `config.models` nor `factories` names
            one, and what herding looks through.
        seed: of the first network; the others count on.
        device: where networks are trained.
        precision: of their forward pass.
        memo_path: file in which finished trainings are remembered. Who keeps what is returned
            removes it then: not before, because a kill in between would lose them all.
        seconds_before: of the same command. They and those of trainings remembered from an
            interrupted evaluation are added to the total.
        name: what the row of the set is called; no baseline may be called so.
        teachers: make dynamic labels, and label random images as the set's were.
        test: images to test on in place of the test split of `data`.
        factories: networks of the user by their names in the rows: functions of the image shape
            (C, H, W) and the number of classes. They follow those of `config.models`.
        train: a training function of the user in place of our loop. Rates are tried by it as well.
        means: what trains and judges networks in place of our loop.
        economy: what it need not spend, and what it tells on the way.

    Returns:
        The content of evaluation.json, in which accuracies are fractions.

    Raises:
        UserError: for dynamic labels without teachers, and for what was brought and does not fit.
    """
    start = time.perf_counter()
    asked = _Asked(
        syn=syn,
        data=data,
        config=config,
        model=model,
        seed=seed,
        device=device,
        precision=precision,
        name=name,
        teachers=teachers,
        test=test,
        factories=dict(factories or {}),
        train=train,
        means=means,
        economy=economy,
    )
    bench = asked.bench(memo_path)
    _say_what_to_know(bench, syn)
    facts = _facts(bench, syn, asked.weights, asked.models) | asked.own_test
    content = {**facts, "rows": _rows(bench, syn, asked.models, facts)}
    seconds = seconds_before + bench.memo.seconds_before + time.perf_counter() - start
    return content | {"processes": bench.memo.get("processes") or 1, "seconds": round(seconds, 2)}


def helping(
    syn: SyntheticSet, data: Data, config: EvalConfig, model: str, beginning: Message, **asked: Any
) -> Callable[[Message], Message]:
    """What trains on this rank what the first one asks for, which `evaluate`s the same.

    The further arguments are those of `evaluate`; `beginning` is what the first rank says first.
    """
    asked["factories"] = dict(asked.get("factories") or {})
    bench = _Asked(syn=syn, data=data, config=config, model=model, **asked).bench(None)
    contenders, _ = _contenders(bench, syn)
    return of_rank(bench, contenders, beginning)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The arguments of `evaluate` that decide what is trained, and how."""

    syn: SyntheticSet
    data: Data
    config: EvalConfig
    model: str
    seed: int
    device: torch.device
    precision: Precision = "fp32"
    name: str = "distilled"
    teachers: Sequence[nn.Module] = ()
    test: RealSet | None = None
    factories: Mapping[str, Factory]
    train: Trainer | None = None
    means: Means | None = None
    economy: Economy = Economy()

    @cached_property
    def weights(self) -> list[str]:
        """What identifies the teachers."""
        return [files.tensor_digest(network.state_dict()) for network in self.teachers]

    @property
    def own_test(self) -> Json:
        """What identifies the user's test images, if any."""
        return {} if self.test is None else {"own_test": self.test.digest}

    @property
    def models(self) -> tuple[str, ...]:
        """The networks of the rows."""
        return tuple(dict.fromkeys([*self.config.models, *self.factories])) or (self.model,)

    def bench(self, memo_path: Path | None) -> Bench:
        """What all trainings share. Raises UserError for what does not fit together."""
        data, test, syn = self.data, self.test, self.syn
        _check(self.config, data, self.teachers, self.factories, self.train)
        if test is not None:
            data = replace(data, test=test, num_test=len(test), held_out=False)
        config = quick(self.config) if self.economy.quick else self.config
        networks = _networks(config, self.model, data, self.seed, self.precision)
        decides = [MEMO, *networks, *_of_set(syn), self.weights]
        bench = Bench(
            data=data,
            config=config,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            memo=Memo(memo_path, digest([*decides, *self.own_test.values()])),
            means=self.means or usual_means(),
            economy=self.economy,
            timed=self.means is None,
            home=self.model,
            learned_lr=syn.lr,
            name=self.name,
            teachers=self.teachers,
            label_bytes=label_bytes(syn),
            as_labelled=syn.as_labelled,
            factories=self.factories,
            train=self.train,
            targets=syn.targets,
            outputs=syn.num_outputs,
        )
        if self.economy.baselines is None:
            return bench
        shared = Shared(self.economy.baselines, of_all(bench), self.economy.renew)
        return replace(bench, shared=shared)


def _networks(
    config: EvalConfig, model: str, data: Data, seed: int, precision: Precision
) -> list[Any]:
    """What decides how networks are made and trained, and on which real images."""
    size = data.image_shape[1:]
    protocol = to_dict(config)
    protocol["models"] = [naming.in_digest(name, size) for name in config.models]
    # as before there was that row, on which no other depends
    protocol["baselines"] = [name for name in config.baselines if name != "equal_bytes"]
    return [protocol, seed, precision, data.train.digest, naming.in_digest(model, size)]


def _of_set(syn: SyntheticSet) -> list[Any]:
    """What identifies a set, and how it is read."""
    return [set_digest(syn), [type(syn.codec).__name__, to_dict(syn.codec)]]


def _facts(bench: Bench, syn: SyntheticSet, weights: list[str], models: tuple[str, ...]) -> Json:
    """What an evaluation of networks says beside its rows; `weights` identify the teachers."""
    data = bench.data
    labelled_by = "a network trained on the full data"
    if weights:
        labelled_by = f"{len(weights)} teachers"
    facts = {
        "format": naming.FORMAT,
        "protocol": to_dict(replace(bench.config, models=models)),
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "interval": NAME,  # of every ci95
        "num_images": data.counts,
        "test_images_per_class": _tested(data),
        "set_digest": set_digest(syn),
        "seed": bench.seed,
        "precision": bench.precision,
        "labelled_by": labelled_by,  # random_soft, and all with dynamic labels
        "teachers": weights,
        "seconds": 0.0,  # known at the end
        "machine": runtime.machine(bench.device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
        "at_once": asdict(bench.at_once),
        "threads": bench.threads,
    }
    if bench.targets.regressed and set_labels(bench.config) == "own":
        facts["judged_by"] = "linear probe"
    if bench.economy.quick:
        facts["quick"] = True
    if bench.economy.quick_seconds is not None:
        facts["quick_seconds"] = bench.economy.quick_seconds
    if bench.economy.full_seconds is not None:
        facts["full_seconds"] = bench.economy.full_seconds
    return facts


def _check(
    config: EvalConfig,
    data: Data,
    teachers: Sequence[nn.Module],
    factories: Mapping[str, Factory],
    train: Trainer | None,
) -> None:
    """Raise UserError for what does not fit together."""
    if config.labels == "dynamic" and not teachers:
        raise UserError(
            "evaluation.labels dynamic needs the teachers of the set; name the folder of their "
            "stores with --experts, or set it to own."
        )
    if config.labels == "dynamic" and train is not None:
        raise UserError(
            "evaluation.labels dynamic says a label for each batch as our loop augments it, and a "
            "training function of your own augments by itself; set it to own or hard."
        )
    if config.optimiser == "muon":
        muon.check()
    check_factories(factories, data.image_shape, data.num_classes)


def _say_what_to_know(bench: Bench, syn: SyntheticSet) -> None:
    """How rates are chosen without a validation split, and images of the set that are tested on."""
    config = bench.config
    if bench.data.validation is None and config.rate == "validation":
        who = "the distilled set is trained with its learned rate, the others are"
        if syn.lr is None:
            who = "all sets are"
        log.say(
            f"no validation split to choose a learning rate on: {who} trained with {config.lr:g}"
        )
    if config.as_students and config.students is None:
        log.say(
            "the set does not say how its students were trained, because it had none or was made "
            f"by an older version: networks are trained by {config.optimiser} at {config.lr:g}"
        )
    for warning in of_held_out(syn, bench.data):
        log.say(warning)


def quick(config: EvalConfig) -> EvalConfig:
    """The protocol of a quick evaluation: as few networks as random draws need, and two rates."""
    num = min(config.num_networks, QUICK_NETWORKS)
    rates = tuple(two_of(config, None))
    return replace(config, num_networks=num, lr_grid=rates, search_networks=1)


def _rows(bench: Bench, syn: SyntheticSet, models: Sequence[str], facts: Facts) -> list[Json]:
    """Train everything that is planned, and tell it.

    `facts` are what the evaluation says beside its rows.
    """
    contenders, looking = _contenders(bench, syn)
    needed = any(map(_looks, contenders))
    rows = in_turn(contenders, models)
    num = sum(num_networks(bench, row) for row in rows)
    if needed and Row(looking.full, looking.model) not in rows:
        num += num_searched(looking.bench, looking.full, looking.model)
    with log.progress("evaluate", num) as bar:
        watch = Watch(bench, facts, bar)
        train_all(Plan(bench, looking, needed), rows, watch)
    return watch.in_order(contenders, models)


def _contenders(bench: Bench, syn: SyntheticSet) -> tuple[list[Contender], Looking]:
    """The sets that are compared, and the network that looks at the full data for some of them."""
    distilled = freeze(syn, bench.device)
    looking = Looking(bench, full_data(bench, distilled))
    contenders = [*of_the_set(bench, syn, distilled), *of_codec(bench, syn, distilled, looking)]
    ipc = _images_per_class(bench, syn)
    contenders += of_real_images(bench, looking, ipc, distilled)
    return contenders, looking


def _looks(who: Contender) -> bool:
    """Whether a row needs the network that looks at the full data."""
    return who.looks or (who.selection is not None and who.selection.looks)


def _images_per_class(bench: Bench, syn: SyntheticSet) -> int:
    """What baselines have: what the set does not use of its last image, they may."""
    ipc = math.ceil(syn.images_per_class())
    fewest = min(map(len, bench.data.train.members))
    # of some classes the set has more than of others
    unequal = len(syn.classes.bincount(minlength=bench.data.num_classes).unique()) > 1
    if unequal and ipc > fewest:
        log.say(
            f"the set has {ipc} images per class on average, and a class {fewest} training "
            f"images: baselines have {fewest} per class"
        )
        return fewest
    return ipc


def _tested(data: Data) -> dict[str, int]:
    """Test images of each class."""
    if data.test is None:
        return {}
    return dict(zip(distinct(data.class_names), map(len, data.test.members), strict=True))


def of_held_out(syn: SyntheticSet, data: Data) -> list[str]:
    """Warnings that count the images of a set that are validation or test images.

    Such are equal pixel for pixel, at 8 bits.
    """
    size = max(1, AT_ONCE // math.prod(data.image_shape))
    digests: list[bytes] = []
    for part in torch.arange(len(syn)).split(size):
        digests += image_digests(as_bytes(syn.pixels(part)))
    warnings = []
    for name, real in (("validation", data.validation), ("test", data.test)):
        if real is None:
            continue
        held = set(image_digests(real.pixels))
        count = sum(map(held.__contains__, digests))
        if count:
            warnings.append(
                f"warning: {count} of the {len(syn)} images of the set are {name} images, so its "
                "accuracy says nothing"
            )
    return warnings


def set_digest(syn: SyntheticSet) -> str:
    """12 hexadecimal digits that identify what a set stores."""
    return files.tensor_digest(syn.tensors)
