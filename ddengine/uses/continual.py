"""Class-incremental learning with a memory of a fixed number of bytes: distilled images beside real
ones that are drawn or chosen.

The classes come in stages. After each, a memory of the stage's images joins that of earlier stages,
and a network is tested on the test images of all classes seen so far; it is not told the stage of
an image, and its last layer has all classes from the start. What is made at a stage, distilled
images as well as choices of real ones, is made of the training images of that stage alone.
Preprocessing is that of the whole, fixed before.
"""

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ddengine.artefact import folder as folders
from ddengine.artefact.folder import load
from ddengine.data import Data, RealSet
from ddengine.data.subset import class_subset, of_classes
from ddengine.evaluation.intervals import NAME, counted, interval
from ddengine.evaluation.rates import adapted, best_rate, candidates
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import EvalConfig, Recipe, digest, require, resolved, to_dict
from ddengine.sets import start
from ddengine.sets.codec import Identity, Pixels, as_bytes
from ddengine.sets.merge import merge
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, runtime
from ddengine.system.errors import UserError, unknown
from ddengine.system.memo import Memo
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Batch, TrainingSet

# form of what is remembered of an interrupted run; what an older program left is computed again
MEMO = 2
CLASS_BYTES = 8  # of the class of an image, as everywhere in the engine
# memories of real images
CHOSEN = ("random", "herding", "k_centre", "k_means", "forgetting", "el2n")
MEMORIES = ("distilled", *CHOSEN)
JOINT = "joint"  # all real images of the classes seen so far

# (data of some classes, recipe, seed, name of the piece) -> set
Distill = Callable[[Data, Recipe, int, str], SyntheticSet]


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Class-incremental learning: stages, the memory, what is compared."""

    # the classes come in so many groups; where they do not divide, earlier ones are larger by one
    stages: int = 5
    # bytes of the whole memory in the end; each class has an equal share from the start
    budget: int = 100_000
    # distilled | random | herding | k_centre | k_means | forgetting | el2n
    memories: tuple[str, ...] = ("distilled", "random", "herding")
    # memory: after each stage a new network is trained on the memory alone (GDumb, Prabhu et al.,
    # ECCV 2020; so in the papers of DC and DM) replay: one network goes on, trained on the real
    # images of the stage and the memory of earlier ones, each class of equal weight
    strategy: Literal["memory", "replay"] = "memory"
    # how a distilled image is kept | uint8: 8 bits a value, as real ones are, so also cut to what
    # pixels can be | float32: exactly, 4 bytes a value
    store: Literal["uint8", "float32"] = "uint8"
    repeats: int = 3  # each with another order of the classes, other images and other networks
    order_seed: int | None = None  # decides the orders of the classes; None: the seed of the run

    def __post_init__(self) -> None:
        require(self.stages >= 2, f"stages must be at least 2, got {self.stages}.")
        require(self.repeats >= 1, f"repeats must be at least 1, got {self.repeats}.")
        require(self.budget >= 1, f"budget must be positive, got {self.budget}.")
        require(
            0 < len(self.memories) == len(set(self.memories)),
            (
                "memories must name at least one memory, each once, got "
                f"{', '.join(self.memories) or 'none'}."
            ),
        )
        for name in self.memories:
            if name not in MEMORIES:
                raise unknown("memory", name, MEMORIES)


def image_bytes(
    memory: str, shape: tuple[int, int, int], recipe: Recipe, config: ContinualConfig
) -> int:
    """Bytes of one image (C, H, W) of a memory, with its class.

    Recipes that ship bytes are not made larger by store float32.
    """
    wide = memory == "distilled" and config.store == "float32" and not _ships_bytes(recipe)
    return int(np.prod(shape)) * (4 if wide else 1) + CLASS_BYTES


def images_per_class(memory: str, data: Data, recipe: Recipe, config: ContinualConfig) -> int:
    """How many images the share of a class holds.

    Raises UserError for a budget below one, or above what the smallest class has.
    """
    smallest = min(range(data.num_classes), key=lambda c: len(data.train.members[c]))
    cost, fewest = (
        image_bytes(memory, data.image_shape, recipe, config),
        len(data.train.members[smallest]),
    )
    num = config.budget // data.num_classes // cost
    if num < 1:
        raise UserError(
            f"budget {config.budget} is less than one image of {cost} bytes for each of "
            f"{data.num_classes} classes (memory {memory}); "
            f"set budget to {cost * data.num_classes} at least."
        )
    if num > fewest:
        raise UserError(
            f"budget {config.budget} holds {num} images per class (memory {memory}), and class "
            f"{data.class_names[smallest]!r} has {fewest} "
            f"training images; set budget to less than {(fewest + 1) * cost * data.num_classes}."
        )
    return num


def class_order(
    num_classes: int, config: ContinualConfig, seed: int, repeat: int
) -> list[list[int]]:
    """The classes of each stage, in the order of a repeat; the same for all memories."""
    order = torch.randperm(
        num_classes,
        generator=generator(
            seed if config.order_seed is None else config.order_seed, "class order", repeat
        ),
    )
    return [part.tolist() for part in np.array_split(order.numpy(), config.stages)]


def forgetting(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """Mean over earlier stages of how far the accuracy on their classes fell from its best;
    negative where it rose.

    matrix[t][s], s <= t: accuracy after stage t on the classes of stage s. The best is that of all
    stages before the last (Chaudhry et al., ECCV 2018). None where the network of a stage diverged,
    and so has no accuracies.
    """
    if any(None in line for line in matrix):
        return None
    last = len(matrix) - 1
    losses = [
        max(matrix[t][s] for t in range(s, last)) - matrix[last][s]  # type: ignore[operator,type-var]
        for s in range(last)
    ]
    return float(np.mean(losses))


def kept(syn: SyntheticSet, store: Literal["uint8", "float32"]) -> SyntheticSet:
    """A plain distilled set as a memory keeps it: images and classes, nothing else (a learned rate
    is not used here).

    "uint8": pixels in [0, 1] as bytes; "float32": as networks see them, exactly; what is bytes
    already stays so. Raises UserError for sets whose images are not stored one by one, and for soft
    labels.
    """
    if not isinstance(syn.codec, Identity | Pixels) or syn.target_kind != "class":
        raise UserError(
            "A memory keeps plain images with their classes, and the set has soft labels or "
            "another codec; use codec Identity or Pixels."
        )
    images = syn.tensors["images"].detach()
    if store == "uint8" or images.dtype == torch.uint8:
        bytes_ = (
            images
            if images.dtype == torch.uint8 and syn.space == "pixel"
            else as_bytes(syn.pixels())
        )
        return replace(syn, tensors={"images": bytes_}, codec=Pixels(), space="pixel")
    exact = syn.batch(torch.arange(len(syn))).images.detach().float()
    return replace(syn, tensors={"images": exact}, codec=Identity(), space="model")


def run(
    data: Data,
    recipe: Recipe,
    config: ContinualConfig,
    distill: Distill,
    *,
    seed: int,
    device: torch.device,
    precision: Precision = "fp32",
    memo_path: Path | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Compare memories of equal bytes in class-incremental learning; returns the content of
    continual.json (accuracies are fractions).

    `distill` gets the data of a stage's classes (numbered anew, with the preprocessing of `data`,
    without test images), the recipe with the ipc that the budget allows, a seed, and a name for the
    piece. Networks are `recipe.model`, trained with hard labels as `recipe.evaluation` says: one
    for each stage, memory and repeat, all memories from equal seeds. The learning rate is chosen
    anew at each stage, from one grid for all memories, by other networks on the validation images
    of the classes seen so far; without a validation split, or with evaluation.rate learned, it is
    evaluation.lr. The row "joint" is trained anew on all real images seen so far, with at most
    `evaluation.full_steps` updates, which also bound the updates of a stage with strategy replay.

    `memo_path` remembers finished trainings of an interrupted run; it is removed in the end. `work`
    (None: beside it) keeps the distilled pieces, which a later run with the same recipe, seed and
    order takes from there, and until the end the networks that go on. Raises UserError for what
    cannot be compared: too many stages, a budget below one image, recipes with soft labels or
    packed images.
    """
    start = time.perf_counter()
    stages = check(data, recipe, config)
    orders = [class_order(data.num_classes, config, seed, r) for r in range(config.repeats)]
    protocol = adapted(recipe.evaluation, recipe.model)
    identity = digest(
        [
            MEMO,
            to_dict(config),
            resolved(recipe),
            seed,
            precision,
            data.train.digest,
            list(data.class_names),
        ]
    )
    work = memo_path.parent / "work" if work is None and memo_path is not None else work
    memo = Memo(memo_path, identity)
    rates = (
        candidates(protocol, None)
        if data.validation is not None and protocol.rate == "validation"
        else [protocol.lr]
    )
    if data.validation is None:
        log.say(f"no validation split: all networks are trained at rate {protocol.lr:g}")
    names = [*config.memories, JOINT]
    trainings = 1 + (len(rates) if len(rates) > 1 else 0)
    total = config.repeats * config.stages * (len(names) * trainings + len(config.memories))
    with log.progress("continual", total) as bar:
        whole = _Run(
            data,
            recipe,
            config,
            protocol,
            distill,
            seed,
            device,
            precision,
            memo,
            bar.advance,
            work,
            identity,
            tuple(rates),
        )
        rows = {
            name: [_stages(whole, name, r, order) for r, order in enumerate(orders)]
            for name in names
        }
    memo.clear()
    if work is not None:
        shutil.rmtree(work / NETWORKS, ignore_errors=True)
    return {
        "config": to_dict(config),
        "protocol": to_dict(protocol),
        "recipe": recipe.name,
        "model": recipe.model,
        "classes": list(data.class_names),
        "interval": NAME,  # of every ci95
        # of each repeat
        "stages": [[[data.class_names[c] for c in part] for part in order] for order in orders],
        "orders": orders,
        "classes_seen": np.cumsum(stages).tolist(),
        "memories": {name: _summary(whole, name, found, orders) for name, found in rows.items()},
        "raw_bytes": data.bytes,
        "seed": seed,
        "precision": precision,
        "seconds": round(memo.seconds_before + time.perf_counter() - start, 2),
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


NETWORKS = "networks"  # folder in the work folder


def _ships_bytes(recipe: Recipe) -> bool:
    return isinstance(recipe.codec, Pixels) or (
        isinstance(recipe.codec, Identity) and recipe.codec.bounded
    )


def check(data: Data, recipe: Recipe, config: ContinualConfig) -> list[int]:
    """How many classes come in each stage.

    Raises UserError for what cannot be run, before any work.
    """
    assert data.test is not None, "load the data with test=True"
    if config.stages * 2 > data.num_classes:
        raise UserError(
            f"stages {config.stages} leave a stage with fewer than 2 of the {data.num_classes} "
            "classes; "
            f"set stages to at most {data.num_classes // 2}."
        )
    plain = isinstance(recipe.codec, Identity | Pixels) and recipe.targets.kind == "class"
    if "distilled" in config.memories and not plain:
        raise UserError(
            f"{recipe.name} packs several examples into an image or has soft labels, and a memory "
            "keeps plain images with their classes; "
            "set codec to Identity or Pixels and targets.kind class."
        )
    for name in config.memories:
        images_per_class(name, data, recipe, config)
    for part, real in (("test", data.test), ("validation", data.validation)):
        for c, members in enumerate(real.members if real is not None else ()):
            if not len(members):
                raise UserError(
                    f"Class {data.class_names[c]!r} has no {part} images, so nothing can be "
                    "measured on it; leave it out of data.classes."
                )
    return [len(part) for part in np.array_split(np.arange(data.num_classes), config.stages)]


@dataclass(frozen=True)
class _Run:
    """What all parts of a run share."""

    data: Data
    recipe: Recipe
    config: ContinualConfig
    protocol: EvalConfig
    distill: Distill
    seed: int
    device: torch.device
    precision: Precision
    memo: Memo
    advance: Callable[[str], None]
    work: Path | None
    identity: str
    rates: tuple[float, ...]

    def remember(
        self, key: str, label: str, compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result under `key` with the seconds it took, computed when new."""

        def timed() -> dict[str, Any]:
            start = time.perf_counter()
            return compute() | {"seconds": time.perf_counter() - start}

        self.advance(label)
        return self.memo(key, timed)

    def seed_of(self, *names: str | int) -> int:
        """A seed for one thing, the same for all memories."""
        return int(torch.randint(2**31, (1,), generator=generator(self.seed, "continual", *names)))

    def train(
        self, on: TrainingSet, lr: float, seed: int, steps: int | None, start: nn.Module | None
    ) -> nn.Module:
        """A network trained on a set: new, or going on from `start`, which stays as it is."""

        def new_model(rng: Generator) -> nn.Module:
            return (
                build_model(self.recipe.model, self.data.image_shape, self.data.num_classes, rng)
                if start is None
                else copy.deepcopy(start)
            )

        return training.train_networks(
            new_model, [on], [seed], self.protocol, lr, self.device, steps=steps, precision=self.precision, labels="hard"
        )[0]  # fmt: skip


def _stages(whole: _Run, memory: str, repeat: int, order: list[list[int]]) -> dict[str, Any]:
    """One repeat with one memory: after each stage the test images that are classified correctly of
    each class, by its name; rates; seconds.

    None in place of the images where the network of a stage diverged.
    """
    data, config = whole.data, whole.config
    assert data.test is not None
    replay = config.strategy == "replay" and memory != JOINT
    so_far: SyntheticSet | None = None
    network: nn.Module | None = None
    right: list[dict[str, int] | None] = []
    rates: list[float] = []
    seconds, size = 0.0, 0
    for stage, classes in enumerate(order):
        seen = [c for part in order[: stage + 1] for c in part]
        where = f"{memory}/{repeat}/{stage}"
        label = f"{memory}, repeat {repeat + 1}, stage {stage + 1}"
        before = so_far
        if memory != JOINT:
            piece, took = _piece(whole, memory, repeat, stage, classes)
            so_far = _joined(piece, classes, before, data)
            seconds, size = seconds + took, so_far.nbytes()["total"]
        on, steps = _training_set(whole, replay, classes, seen, before if replay else so_far)
        lr, took = _choose_lr(
            whole, where, label, on, steps, network if replay else None, repeat, stage, seen
        )
        trained: list[nn.Module] = []
        compute = partial(
            _tested,
            whole,
            where,
            on,
            lr,
            steps,
            network if replay else None,
            repeat,
            stage,
            seen,
            replay,
            trained,
        )
        found = whole.remember(f"final/{where}", label, compute)
        # a remembered training has left its network in the work folder; else it is made again
        if replay and stage + 1 < len(order):
            network = trained[0] if trained else _load_network(whole, where)
            if network is None:
                compute()
                network = trained[0]
        right.append(found["right"])
        rates.append(lr)
        seconds += took + found["seconds"]
    return {"right": right, "lr": rates, "seconds": seconds, "bytes": size}


def _tested(
    whole: _Run, where: str, on: TrainingSet, lr: float, steps: int | None, start: nn.Module | None, repeat: int, stage: int, seen: list[int],
    keep: bool, trained: list[nn.Module],
) -> dict[str, Any]:  # fmt: skip
    """Train the network of a stage, and count its correct test images of each class; the network is
    put into `trained`, and stored to `keep` it.

    Of a network that diverged nothing is counted: None.
    """
    assert whole.data.test is not None
    network = whole.train(on, lr, whole.seed_of("final", repeat, stage), steps, start)
    trained.append(network)
    if keep:
        _save_network(whole, where, network)
    found = training.classified(network, of_classes(whole.data.test, seen), whole.precision)
    return {
        "right": None
        if found.diverged
        else {whole.data.class_names[c]: found.right[c] for c in seen}
    }


def _training_set(
    whole: _Run, replay: bool, classes: list[int], seen: list[int], memory: SyntheticSet | None
) -> tuple[TrainingSet, int | None]:  # fmt: skip
    """What a stage's network is trained on, and for how many updates (None: those of the protocol)."""
    if not replay and memory is not None:
        return _decoded(memory), None
    real = of_classes(whole.data.train, classes if replay else seen)
    on: TrainingSet = real
    if replay and memory is not None:
        on = _Balanced(real, len(classes), _decoded(memory), len(seen) - len(classes))
    return on, min(training.num_updates(len(on), whole.protocol), whole.protocol.full_steps)


def _piece(
    whole: _Run, memory: str, repeat: int, stage: int, classes: list[int]
) -> tuple[SyntheticSet, float]:
    """(the memory of a stage's classes, numbered from 0, the seconds it took); only training images
    of these classes are looked at.
    """
    config, recipe = whole.config, whole.recipe
    num = images_per_class(memory, whole.data, recipe, config)
    subset = replace(class_subset(whole.data, classes), test=None)
    if memory == "distilled":
        return _distilled(whole, subset, num, repeat, stage, classes)
    new_model = partial(build_model, recipe.model, subset.image_shape, subset.num_classes)
    rng = generator(whole.seed, "continual", memory, repeat, stage)
    kind: Any = "real" if memory == "random" else memory

    def choose() -> dict[str, Any]:
        how = replace(recipe.init, kind=kind)
        return {
            "index": start.selected_index(
                subset.train, num, subset.class_names, rng, how, new_model=new_model
            ).tolist()
        }

    found = whole.remember(
        f"piece/{memory}/{repeat}/{stage}",
        f"{memory}, repeat {repeat + 1}, stage {stage + 1}: choosing images",
        choose,
    )
    index = torch.tensor(found["index"], device=subset.train.device)
    tensors = {"images": subset.train.pixels[index]}
    chosen = SyntheticSet(
        tensors,
        subset.train.labels[index],
        subset.class_names,
        Pixels(),
        subset.train.preprocess,
        space="pixel",
    )
    return chosen, found["seconds"]


def _distilled(
    whole: _Run, subset: Data, num: int, repeat: int, stage: int, classes: list[int]
) -> tuple[SyntheticSet, float]:  # fmt: skip
    """The distilled images of a stage as they are kept: from the work folder where they lie, else
    distilled and put there.
    """
    recipe, store = whole.recipe, whole.config.store
    ids = classes if recipe.data.classes is None else [recipe.data.classes[c] for c in classes]
    own = replace(recipe, ipc=num, data=replace(recipe.data, classes=tuple(ids)))
    name, seed = f"repeat{repeat}_stage{stage}", whole.seed_of("distill", repeat, stage)
    preprocess = files.tensor_digest(subset.train.preprocess.tensors())
    identity = digest(
        [resolved(own), seed, store, whole.precision, subset.train.digest, preprocess]
    )
    folder = None if whole.work is None else whole.work / name
    whole.advance(f"distilled, repeat {repeat + 1}, stage {stage + 1}: distilling")
    if folder is not None and (folder / "meta.json").is_file():
        found, meta = load(folder, whole.device)
        if meta.get("identity") == identity:
            return found, meta["seconds"]
    start = time.perf_counter()
    syn = whole.distill(subset, own, seed, name)
    counts = torch.bincount(syn.classes.cpu(), minlength=subset.num_classes).tolist()
    if counts != [num] * subset.num_classes:
        raise UserError(
            f"The distilled set of a stage has {counts} images of its classes, and the budget is "
            f"made for {num} each; use a plain codec."
        )
    syn = kept(syn, store)
    seconds = time.perf_counter() - start
    if folder is not None:
        files.make_folder(folder.parent)
        facts = {
            "recipe": to_dict(replace(own, data=replace(own.data, root=None))),
            "seed": seed,
            "identity": identity,
            "seconds": seconds,
        }
        folders.save(syn, folder, facts)
    return syn, seconds


def _joined(
    piece: SyntheticSet, classes: list[int], before: SyntheticSet | None, data: Data
) -> SyntheticSet:
    """The memory so far, with the class numbers of the whole."""
    everything = list(range(data.num_classes))
    sets, maps = (
        ([piece], [classes]) if before is None else ([before, piece], [everything, classes])
    )
    return merge(sets, maps, data.class_names)


def _decoded(syn: SyntheticSet) -> SyntheticSet:
    """The same examples, preprocessed once."""
    return replace(
        syn,
        tensors={"images": syn.batch(torch.arange(len(syn))).images.detach()},
        codec=Identity(),
        space="model",
    )


class _Balanced:
    """Real images of a stage, and a memory that is repeated until its classes have as many examples
    as the stage's, on average and about.
    """

    def __init__(self, real: RealSet, num_new: int, memory: TrainingSet, num_old: int):
        times = max(1, round(len(real) / num_new / (len(memory) / num_old)))
        self.real, self.memory = real, memory
        self.index = torch.cat(
            [torch.arange(len(real)), len(real) + torch.arange(len(memory)).repeat(times)]
        )

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,), those of the stage first."""
        index = self.index[index]
        new, old = index[index < len(self.real)], index[index >= len(self.real)] - len(self.real)
        parts = [
            part.batch(own) for part, own in ((self.real, new), (self.memory, old)) if len(own)
        ]
        return Batch(torch.cat([p.images for p in parts]), torch.cat([p.targets for p in parts]))


def _choose_lr(
    whole: _Run, where: str, label: str, on: TrainingSet, steps: int | None, start: nn.Module | None, repeat: int, stage: int, seen: list[int]
) -> tuple[float, float]:  # fmt: skip
    """(learning rate, seconds): the best on the validation images of the classes seen so far."""
    if len(whole.rates) == 1:
        return whole.rates[0], 0.0
    assert whole.data.validation is not None
    validation = of_classes(whole.data.validation, seen)
    tried: list[tuple[float, list[float | None]]] = []
    seconds = 0.0
    seeds = [
        whole.seed_of("search", repeat, stage, i) for i in range(whole.protocol.search_networks)
    ]
    for lr in whole.rates:

        def search(lr: float = lr) -> dict[str, Any]:
            return {
                "accuracies": [
                    training.accuracy(
                        whole.train(on, lr, s, steps, start), validation, whole.precision
                    )
                    for s in seeds
                ]
            }

        found = whole.remember(
            f"search/{where}/{lr!r}", f"{label}, trying learning rate {lr:g}", search
        )
        seconds += found["seconds"]
        tried.append((lr, found["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        log.say(
            f"warning: {label}: networks diverged at every learning rate that was tried, so "
            f"{lr:g} is only the least bad"
        )
    return lr, seconds


def _network_path(whole: _Run, where: str) -> Path | None:
    return (
        None
        if whole.work is None
        else whole.work / NETWORKS / f"{where.replace('/', '_')}.safetensors"
    )


def _save_network(whole: _Run, where: str, network: nn.Module) -> None:
    path = _network_path(whole, where)
    if path is not None:
        files.make_folder(path.parent)
        files.write_tensors(path, network.state_dict(), {"identity": whole.identity})


def _load_network(whole: _Run, where: str) -> nn.Module | None:
    """The network that an interrupted run left, None where there is none of this run."""
    path = _network_path(whole, where)
    if path is None or not path.is_file():
        return None
    state, metadata = files.read_tensors(path)
    if metadata.get("identity") != whole.identity:
        return None
    network = build_model(
        whole.recipe.model, whole.data.image_shape, whole.data.num_classes, generator(0)
    )
    network.load_state_dict(state)
    return network.to(whole.device).eval()


def _statistics(
    values: Sequence[float | None], low: float = 0.0, high: float = 1.0
) -> dict[str, Any]:
    """Of values within `low` and `high`, one a repeat; those of networks that diverged are None,
    and do not count.
    """
    finite = counted(values)
    mean, std, ci95 = interval(finite, low, high)
    shown = [None if v is None else float(v) for v in values]
    return {
        "mean": mean,
        "std": std,
        "ci95": ci95 and list(ci95),
        "diverged": len(values) - len(finite),
        "values": shown,
    }


def _summary(
    whole: _Run, memory: str, found: list[dict[str, Any]], orders: list[list[list[int]]]
) -> dict[str, Any]:
    """What continual.json says of a memory."""
    data = whole.data
    assert data.test is not None
    tested = {
        name: len(members)
        for name, members in zip(data.class_names, data.test.members, strict=True)
    }

    def accuracy(right: Mapping[str, int] | None, names: Sequence[str]) -> float | None:
        return (
            None if right is None else sum(right[n] for n in names) / sum(tested[n] for n in names)
        )

    by_stage = [
        [accuracy(repeat["right"][t], list(repeat["right"][t] or ())) for repeat in found]
        for t in range(whole.config.stages)
    ]
    matrices = []
    for repeat, order in zip(found, orders, strict=True):
        parts = [[data.class_names[c] for c in part] for part in order]
        matrices.append(
            [
                [accuracy(right, parts[s]) for s in range(t + 1)]
                for t, right in enumerate(repeat["right"])
            ]
        )
    last = {
        name: _statistics([accuracy(repeat["right"][-1], [name]) for repeat in found])
        for name in data.class_names
    }
    num = None if memory == JOINT else images_per_class(memory, data, whole.recipe, whole.config)
    return {
        "images_per_class": num,
        "bytes": data.bytes + CLASS_BYTES * len(data.train)
        if memory == JOINT
        else found[0]["bytes"],
        # after each stage, on all classes seen so far
        "accuracy": [_statistics(values) for values in by_stage],
        "final": _statistics(by_stage[-1]),
        "final_by_class": last,
        "by_stage": matrices,  # of each repeat: after stage t on the classes of stage s
        "forgetting": _statistics([forgetting(matrix) for matrix in matrices], -1.0),
        "lr": [repeat["lr"] for repeat in found],
        "seconds": round(sum(repeat["seconds"] for repeat in found), 2),
    }
