"""What a distilled set is worth: networks trained on it, beside random images, herding and the full data under the same protocol."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor, nn

from ddengine import coreset, files, log, runtime, training
from ddengine.coreset import random_index
from ddengine.data import Data, RealSet, Subset
from ddengine.errors import UserError
from ddengine.labels import predict
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig, EvalConfig, digest, to_dict
from ddengine.rng import generator
from ddengine.runtime import Precision
from ddengine.synthetic import SyntheticSet, coded
from ddengine.types import Batch, TrainingSet

# Published protocols as data; `fast` is for small work. All report the last epoch (the released programs of `ast` and `idc` report the best on
# the test images too). What a dataset has of its own (no flips of digits, no CutMix) is set by recipes.
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
    "fast": EvalConfig(protocol="fast", epochs=300, num_networks=5, full_steps=1000),
}

SEARCH_SEED = 1000  # the networks that choose a learning rate are not those that are reported


class Memo:
    """Results of finished trainings, one JSON line each, so that an interrupted evaluation goes on where it was."""

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
        self.seconds_before = sum(v.get("seconds", 0.0) for v in self._known.values() if isinstance(v, dict))  # of finished trainings

    def __call__(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value stored under `key`, computed and stored when new."""
        if key not in self._known:
            self._known[key] = compute()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps({"identity": self._identity, "key": key, "value": self._known[key]}) + "\n")
        return self._known[key]

    def clear(self) -> None:
        """Forget everything, the file too."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Contender:
    """A row to be: a set for each network (random: each network its own draw)."""

    name: str
    sets: Callable[[int], TrainingSet]  # draw -> set
    several_draws: bool = False
    max_steps: int | None = None


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
    learned_lr: float | None = None  # with the distilled set; every contender may use it
    name: str = "distilled"  # of the set's row
    seen: set[str] = field(default_factory=set)

    def remember(self, key: str, label: str, compute: Callable[[], Any]) -> Any:
        """The result stored under `key`, computed when new; the progress advances once a key."""
        if key not in self.seen:
            self.seen.add(key)
            self.advance(label)
        return self.memo(key, compute)

    def accuracies(self, who: Contender, model: str, lr: float, seeds: Sequence[int], on: RealSet) -> list[float]:
        """Accuracy on `on` of one network per seed."""
        sets = [who.sets(i) for i in range(len(seeds))]
        new_model = partial(build_model, model, self.data.image_shape, self.data.num_classes)
        networks = training.train_networks(new_model, sets, seeds, self.config, lr, self.device, max_steps=who.max_steps, precision=self.precision)
        return [training.accuracy(network, on, self.precision) for network in networks]


def _timed(compute: Callable[[], list[float]]) -> dict[str, Any]:
    start = time.perf_counter()
    return {"accuracies": compute(), "seconds": time.perf_counter() - start}


def choose_lr(bench: Bench, who: Contender, model: str) -> tuple[float, float]:
    """(learning rate, seconds): the best on the validation split of the grid and the rate learned with the distilled set.

    Without a validation split: the learned rate for the distilled set, the protocol's usual one for the others.
    """
    validation = bench.data.validation
    if validation is None:
        return (who.name in (bench.name, "distilled_same_steps", "raw") and bench.learned_lr) or bench.config.lr, 0.0
    best, seconds = (-1.0, 0.0), 0.0
    seeds = [bench.seed + SEARCH_SEED + i for i in range(bench.config.search_networks)]
    for lr in candidates(bench.config, bench.learned_lr):
        run = bench.remember(
            f"search/{who.name}/{model}/{lr!r}",
            f"{who.name} on {model}, trying learning rate {lr:g}",
            lambda lr=lr: _timed(lambda: bench.accuracies(who, model, lr, seeds, validation)),
        )
        seconds += run["seconds"]
        best = max(best, (float(np.mean(run["accuracies"])), lr), key=lambda pair: pair[0])
    return best[1], seconds


def candidates(config: EvalConfig, learned_lr: float | None) -> list[float]:
    """The learning rates tried for every set, ascending."""
    return sorted({*config.lr_grid, *([learned_lr] if learned_lr else [])})


def interval(values: Sequence[float]) -> tuple[float, float | None, tuple[float, float] | None]:
    """Mean, sample standard deviation, and the 95 % interval of the mean by Student's t; one value has neither of the two."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    std = float(np.std(values, ddof=1))
    half = float(scipy.special.stdtrit(len(values) - 1, 0.975)) * std / len(values) ** 0.5
    return mean, std, (mean - half, mean + half)


def row(bench: Bench, who: Contender, model: str) -> dict[str, Any]:
    """One row of the table: choose the rate, train, test."""
    assert bench.data.test is not None
    test = bench.data.test
    lr, seconds = choose_lr(bench, who, model)
    seeds = [bench.seed + i for i in range(bench.config.num_networks)]
    key = f"final/{who.name}/{model}/{lr!r}"
    run = bench.remember(key, f"{who.name} on {model}", lambda: _timed(lambda: bench.accuracies(who, model, lr, seeds, test)))
    mean, std, ci95 = interval(run["accuracies"])
    shown = who.sets(0)
    return {
        "set": who.name,
        "model": model,
        "images": len(shown),
        "bytes": _nbytes(shown, bench.data),
        "accuracy_mean": mean,
        "accuracy_std": std,
        "ci95": ci95 and list(ci95),
        "n": len(run["accuracies"]),
        "lr": lr,
        "steps": training.num_updates(len(shown), bench.config, who.max_steps),
        "seconds": round(seconds + run["seconds"], 2),
        "accuracies": [
            {"seed": seed, "draw": i if who.several_draws else 0, "accuracy": a}
            for i, (seed, a) in enumerate(zip(seeds, run["accuracies"], strict=True))
        ],
    }  # fmt: skip


def _nbytes(of: TrainingSet, data: Data) -> int:
    """What is stored of a set, in bytes.

    Of a distilled one (and of real images in a codec) all tensors as they are shipped, but for preprocessing, which can be fitted again; of real
    images a byte a value and 8 for the class, with soft labels 4 more for each of their values.
    """
    if isinstance(of, _Decoded):
        return of.nbytes
    if isinstance(of, _Labelled):
        return _nbytes(of.of, data) + 4 * len(of) * data.num_classes
    return len(of) * (math.prod(data.image_shape) + 8)


def _of_codec(syn: SyntheticSet, distilled: "_Decoded", data: Data, config: EvalConfig, seed: int, device: torch.device) -> list[Contender]:
    """Beside a set whose codec decodes more examples than it stores: what the additional updates are worth, and what the codec alone is.

    `distilled_same_steps` has as many updates as a plain set of as many images; `random_coded` are random real images in the same codec.
    """
    stored = len(syn.tensors["images"])
    if len(distilled) <= stored:
        return []
    found, steps = [], training.num_updates(stored, config, None)
    if training.num_updates(len(distilled), config, None) != steps:
        found.append(Contender("distilled_same_steps", lambda draw: distilled, max_steps=steps))
    train, names, per_item = data.train, data.class_names, syn.codec.per_item
    if per_item * max(1, round(syn.images_per_class())) > min(len(members) for members in train.members):
        log.say("no row random_coded: a class has too few images to fill the codec with real ones")
        return found

    def random_coded(draw: int) -> _Decoded:
        index = random_index(train, per_item * max(1, round(syn.images_per_class())), names, generator(seed, "random_coded", draw))
        images = coded(syn.codec, train.images(index), train.preprocess)
        classes = train.labels[index.to(train.device)][::per_item]  # images come class by class
        return _freeze(SyntheticSet({"images": images}, classes, names, syn.codec, train.preprocess, space=syn.codec.space), device)

    return [*found, Contender("random_coded", random_coded, several_draws=True)]


def _baselines(bench: Bench, model: str, ipc: int) -> Iterator[Contender]:
    """The sets the distilled one is compared with; a network trained on the full data embeds for coresets and labels random_soft."""
    train, names = bench.data.train, bench.data.class_names
    build = partial(build_model, model, train.image_shape, train.num_classes)
    full = Contender("full", lambda draw: train, max_steps=bench.config.full_steps)

    def random_draw(draw: int) -> Subset:
        return Subset(train, random_index(train, ipc, names, generator(bench.seed, "random", draw)))

    @cache
    def eyes() -> nn.Module:
        lr = choose_lr(bench, full, model)[0]  # whether or not full is a row, so that no row depends on which others there are
        return training.train_networks(
            build, [train], [bench.seed + 2 * SEARCH_SEED], bench.config, lr, bench.device, max_steps=full.max_steps, precision=bench.precision
        )[0]

    def choose(kind: str) -> list[int]:
        rng, lr = generator(bench.seed, "coreset", kind), choose_lr(bench, full, model)[0]
        return coreset.choose(
            kind, train, ipc, names, rng, embed=lambda: eyes().embed, new_model=build, steps=bench.config.full_steps, lr=lr,  # type: ignore[arg-type,return-value]
        ).tolist()  # fmt: skip

    if "random" in bench.config.baselines:
        yield Contender("random", random_draw, several_draws=True)
    if "random_soft" in bench.config.baselines:
        yield Contender("random_soft", lambda draw: _Labelled(random_draw(draw), eyes), several_draws=True)
    for kind in coreset.KINDS:
        if kind in bench.config.baselines:
            index = torch.tensor(bench.remember(f"{kind}/{model}/{ipc}", f"{kind}: chosen by {model}", partial(choose, kind)))
            yield Contender(kind, lambda draw, index=index: Subset(train, index))
    if "full" in bench.config.baselines:
        yield full


class _Labelled:
    """Images with the logits that a network gives them as they are, for targets; the network is made when it is first needed."""

    def __init__(self, of: TrainingSet, teacher: Callable[[], nn.Module]):
        self.of, self.teacher = of, teacher

    def __len__(self) -> int:
        return len(self.of)

    @cached_property
    def logits(self) -> Tensor:
        """(N, K)."""
        images = self.of.batch(torch.arange(len(self.of))).images
        return predict(self.teacher(), images)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        return Batch(self.of.batch(index).images, self.logits[index.to(self.logits.device)])


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
) -> dict[str, Any]:
    """Evaluate a distilled set beside its baselines; returns the content of evaluation.json (accuracies are fractions).

    `model` is the recipe's network: evaluated when `config.models` names none, and the eyes of herding. The test split of `data` is
    looked at once per reported network; rates are chosen on the validation split. `seconds_before` (of the same command) and those of
    trainings remembered from an interrupted evaluation are added to the total. `name` is what the row of the set is called; no baseline may be.
    """
    start = time.perf_counter()
    models = config.models or (model,)
    distilled = _freeze(syn, device)
    codec = [type(syn.codec).__name__, to_dict(syn.codec)]
    identity = digest([to_dict(config), seed, precision, data.train.digest, model, files.tensor_digest(syn.tensors), codec])
    memo = Memo(memo_path, identity)
    tried = len(candidates(config, syn.lr)) if data.validation is not None else 0
    if data.validation is None:
        log.say(f"no validation split: the distilled set is trained with its learned rate, the others with {config.lr:g}")
    last_iterate = {k.removeprefix("raw."): v for k, v in syn.tensors.items() if k.startswith("raw.")}
    total = len(models) * (1 + bool(last_iterate) + len(config.baselines)) * (tried + 1) + len({*coreset.KINDS} & {*config.baselines})
    of_codec = _of_codec(syn, distilled, data, config, seed, device)
    total += len(models) * len(of_codec) * (tried + 1)
    total += tried * ("full" not in config.baselines and bool({*coreset.KINDS, "random_soft"} & {*config.baselines}))
    with log.progress("evaluate", total) as bar:
        bench = Bench(data, config, seed, device, precision, memo, bar.advance, syn.lr, name)
        ipc = max(1, round(syn.images_per_class()))
        own = [Contender(name, lambda draw: distilled)]
        if last_iterate:  # the last iterate beside its running average, on networks of its own
            raw = _freeze(syn.with_tensors(last_iterate), device)
            own.append(Contender("raw", lambda draw: raw))
        contenders = [*own, *of_codec, *_baselines(bench, model, ipc)]
        rows = [row(bench, who, network) for network in models for who in contenders]
    memo.clear()
    return {
        "protocol": to_dict(replace(config, models=models)),
        "rows": rows,
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
    nbytes: int  # of what is stored

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        index = index.to(self.images.device)
        return Batch(self.images.index_select(0, index), self.targets.index_select(0, index))


def _freeze(syn: SyntheticSet, device: torch.device) -> _Decoded:
    with torch.no_grad():
        images, targets = syn.batch(torch.arange(len(syn)))
    return _Decoded(images.detach().to(device), targets.to(device), syn.nbytes()["total"])


def validate(syn: SyntheticSet, data: Data, config: EvalConfig, model: str, *, seed: int, device: torch.device, precision: Precision) -> float:
    """Accuracy on the validation split of one network trained on `syn` with its learned (or the protocol's usual) rate."""
    assert data.validation is not None
    frozen = _freeze(syn, device)
    build = partial(build_model, model, data.image_shape, data.num_classes)
    networks = training.train_networks(build, [frozen], [seed + 3 * SEARCH_SEED], config, syn.lr or config.lr, device, precision=precision)
    return training.accuracy(networks[0], data.validation, precision)
