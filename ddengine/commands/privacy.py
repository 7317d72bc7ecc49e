"""Privacy."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from ddengine.commands import cli
from ddengine.commands.evaluate import open_set, set_defaults
from ddengine.commands.options import SET, paths_of
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.pages import of_privacy
from ddengine.recipe import (
    DataConfig,
)  # fmt: skip
from ddengine.system import files, log, runtime
from ddengine.system.runtime import Precision


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions:
    """Flags of privacy."""

    seed: int = 0  # decides networks, orders and which images are compared
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of privacy.json; None: the run, or the distilled folder
    model: str  # the network in whose embedding images are compared, and which is attacked
    full_steps: int  # most updates of the network that embeds, on the full data
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]


def privacy_of(path: Path, args: list[str]) -> None:
    """Which real images the distilled ones are nearest to, and whether membership shows:
    privacy.json and privacy.png.
    """
    from ddengine.uses import privacy

    folder, meta, defaults = set_defaults(path, [])
    model, config = meta["recipe"]["model"], defaults.evaluation
    options = cli.parse(
        PrivacyOptions,
        args,
        PrivacyOptions(model=model, full_steps=config.full_steps, data=defaults.data),
        f"privacy {path}",
    )
    config = adapted(
        replace(config, full_steps=options.full_steps, models=(options.model,), baselines=()),
        options.model,
    )
    chosen = replace(
        defaults,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        data=options.data,
        evaluation=config,
    )
    out = options.out or path
    syn, data, device = open_set(folder, meta, chosen, "privacy")
    files.make_folder(out)
    build = partial(build_model, options.model, data.image_shape, data.num_classes)
    train = partial(
        training.train_networks,
        build,
        seeds=[options.seed],
        config=config,
        device=device,
        precision=options.precision,
    )
    learned = syn.lr if options.model == model and config.optimiser == "sgd" else None
    facts = {
        "model": options.model,
        "optimiser": config.optimiser,
        "lr": config.lr,
        "lr_on_set": learned or config.lr,
        "full_updates": min(config.full_steps, training.num_updates(len(data.train), config)),
        "labels": "hard" if config.loss == "uskd" else "own",
    }
    with log.progress("privacy", 3) as bar:
        bar.advance(f"{options.model} on the full data")
        full = train(sets=[data.train], lr=facts["lr"], steps=facts["full_updates"], labels="hard")[
            0
        ]
        bar.advance(f"{options.model} on the set")
        own = train(sets=[syn], lr=facts["lr_on_set"], labels=facts["labels"])[0]
        bar.advance("nearest images")
        found = privacy.measure(syn, data, full.embed, own, seed=options.seed)  # type: ignore[arg-type]
    found |= {
        "training": facts,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    files.write_json(out / "privacy.json", found)
    of_privacy.picture(out / "privacy.png", syn, data, found)
    log.console.print(of_privacy.table(found))


def main(args: list[str]) -> None:
    """The command."""
    privacy_of(paths_of(args[:1], "privacy", SET)[0], args[1:])
