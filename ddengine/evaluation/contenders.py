"""Which sets a distilled one is compared with."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from ddengine.data import Data, Subset
from ddengine.evaluation.bench import SEARCH_SEED, Bench, Contender, Labels, choose_lr
from ddengine.evaluation.decoded import Decoded, Labelled, freeze
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.sets import coreset
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator


def of_codec(
    syn: SyntheticSet,
    distilled: Decoded,
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
    stored, own = len(syn.classes), training.num_updates(len(distilled), config)
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
        return [Contender("base", lambda draw: base, steps=own, labels=set_labels(config))]
    found, steps = [], training.num_updates(stored, config)
    if own != steps:
        found.append(
            Contender(
                "distilled_same_steps",
                lambda draw: distilled,
                steps=steps,
                labels=set_labels(config),
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

    def random_coded(draw: int) -> Decoded:
        index = random_index(
            train,
            per_item * math.ceil(syn.images_per_class()),
            names,
            generator(seed, "random_coded", draw),
        )
        classes = train.labels[index.to(train.device)][::per_item]  # images come class by class
        return freeze(
            coded(syn.codec, train.images(index), classes, names, train.preprocess), device
        )

    return [*found, Contender("random_coded", random_coded, several_draws=True)]


def baselines(bench: Bench, model: str, ipc: int, distilled: Decoded) -> Iterator[Contender]:
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
                "random_soft", lambda draw: Labelled(random_draw(draw), lambda: bench.teachers or [eyes()], bench.as_labelled),
                several_draws=True, steps=steps, labels="own",
            )  # fmt: skip
    if "hard_labels" in config.baselines and has_soft_labels(config, distilled.targets):
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


def set_labels(config: EvalConfig) -> Labels:
    """The labels that a distilled set is trained with; uskd uses its classes only."""
    return "hard" if config.loss == "uskd" else config.labels


def has_soft_labels(config: EvalConfig, targets: Tensor) -> bool:
    """Whether hard labels are something else than what the set is trained with."""
    return set_labels(config) == "dynamic" or (
        set_labels(config) == "own" and targets.is_floating_point()
    )
