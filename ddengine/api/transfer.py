"""What pre-training on a set is worth on other datasets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddengine import naming
from ddengine.api.checks import check_experts, check_folder, check_run
from ddengine.api.evaluate import (
    Networks,
    is_told,
    networks_of,
    open_set,
    protocol_of,
    source_of,
    teachers_of,
    with_changes,
)
from ddengine.api.inputs import Images, dataset_of
from ddengine.api.keeping import content_of, kept_beside
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact.markdown import at
from ddengine.artefact.target_network import target_in_words, target_network
from ddengine.data import Data, Dataset
from ddengine.data.dataset import called
from ddengine.evaluation.protocol import students_of
from ddengine.experts import TeacherSource
from ddengine.recipe import DataConfig, EvalConfig, as_students
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log, runtime
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from ddengine.types import Experts, Json
from ddengine.uses import transfer as testing
from ddengine.uses.transfer import Context, TransferConfig

FILE = "transfer.json"
PARTIAL = "transfer.partial.jsonl"  # what is finished of a run that is not done
NETWORKS = "transfer.networks"  # the folder of networks of such a run


def transfer(
    of: Distilled | Path | str,
    data: Images | DataConfig = None,
    targets: Sequence[Images] | Mapping[str, Images] = (),
    *,
    models: Networks = (),
    config: TransferConfig = TransferConfig(),
    protocol: EvalConfig | Mapping[str, Any] | None = None,
    experts: Experts | TeacherSource | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    command: Sequence[str] = (),
) -> Outcome:  # long: its arguments are explained
    """Pre-train networks on a set, and test them on other datasets, beside controls.

        digits = ddengine.Dataset.named("digits")
        few = ddengine.TransferConfig(shots=(5,))
        table = ddengine.transfer(result, data, [digits], config=few)

    Args:
        of: a set, or the folder of one or of its run.
        data: the images that the set was made of, for the controls on real images, as `evaluate`
            takes them; None: those that the set names.
        targets: datasets to test on, with test images: as `Dataset.of` or a path of a folder takes
            them, or `Dataset`s; a dictionary gives them names.
        models: as `evaluate` takes them; none: the recipe's network.
        config: what is tried, how long, and on which of the images.
        protocol: how networks are pre-trained: an EvalConfig, or changes of the set's own protocol,
            which on features is that of KRR-ST for the epochs of the set's.
        experts: those of the set, for the rows experts and, of sets with features, random: as
            `distill` takes them, or `buffers.SetExperts()` for those that the set names.
        folder: where transfer.json is written, and an interrupted command goes on; None: as
            `evaluate` has it.
        seed: decides networks, orders, augmentation and every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: test again although transfer.json is there.
        command: the words by which a command line asked for this.

    Raises:
        UserError: no dataset, one without labels or of one class, few-shot rows of more images than
            a class has, networks without a head, features of another width than the experts give, a
            transfer.json of other settings.
    """
    check_run(seed, precision)
    check_folder(folder)
    check_experts(experts)
    if not isinstance(config, TransferConfig):
        raise UserError(f"config is {config!r}; give a ddengine.TransferConfig.")
    with log.shown(progress):
        asked = opened(of)
        where = runtime.setup(device, precision)
        names, factories = networks_of(models or (asked.meta["recipe"]["model"],))
        pretraining = replace(_pretraining(asked, protocol), models=names, baselines=())
        syn, source = _source(asked, data, pretraining, config, device, precision, experts)
        networks, said = _experts(asked, experts, source, where)
        context = Context(
            syn=syn,
            image_shape=syn.image_shape,
            name=_row_name(asked),
            source=source,
            datasets=_datasets(targets, config, syn, where),
            config=config,
            pretraining=replace(pretraining, models=()),
            models=(*names, *factories),
            home=asked.meta["recipe"]["model"],
            factories=factories,
            experts=networks,
            experts_said=said,
            experts_model=_model_of_experts(asked),
            seed=seed,
            device=where,
            precision=precision,
            folder=Path(),
        )
        for dataset in context.datasets:
            testing.check_shots(dataset, config.shots)
        testing.check_networks(context)
        told = is_told(factories, None, None)
        with kept_beside(asked, folder, "transfer", told=told) as out:
            content = _content(context, out, restart=restart, command=command)
        return _outcome(content, asked, out)


def _pretraining(of: Distilled, protocol: EvalConfig | Mapping[str, Any] | None) -> EvalConfig:
    """How networks are pre-trained: as on the set, with changes."""
    targets = of.set.targets
    changed = with_changes(testing.pretraining_of(protocol_of(of), targets), protocol)
    return targets.trained_by(as_students(changed, students_of(of.meta)))


def _row_name(of: Distilled) -> str:
    """What the rows of a set are called: that of a selection has the name of its kind."""
    kind = at(of.meta, "selected", "kind")
    if kind is None:
        return "distilled"
    return f"selected {kind}" if kind in testing.CONTROLS else str(kind)


def _outcome(content: Mapping[str, Any], of: Distilled, out: Path | None) -> Outcome:
    """What came of it as a table."""
    from ddengine.pages import of_transfer

    title = f"{of.meta['recipe']['name']}, test accuracy on other datasets"
    table, notes = partial(of_transfer.table, content, title), tuple(of_transfer.notes(content))
    return Outcome(content, content["rows"], table, notes, out, title)


def _content(
    context: Context, folder: Path | None, *, restart: bool, command: Sequence[str]
) -> Mapping[str, Any]:
    """The content of transfer.json, made where it is not there."""

    def make(place: Path) -> Json:
        working = replace(context, folder=place / NETWORKS)
        return testing.run(working, place / PARTIAL)

    return content_of(
        folder,
        FILE,
        make,
        identity=testing.identity(context),
        restart=restart,
        command=command,
        unfinished=(PARTIAL, NETWORKS),
    )


def _source(
    of: Distilled,
    data: Images | DataConfig,
    protocol: EvalConfig,
    config: TransferConfig,
    device: str,
    precision: Precision,
    experts: Any,
) -> tuple[SyntheticSet, Data | None]:
    """The set on the device, and the images that it was made of where a row needs them.

    Raises UserError where these are not those of the set.
    """
    asks_experts = experts is not None and "experts" in config.controls
    dynamic = protocol.labels == "dynamic"
    if not (asks_experts or dynamic or "random" in config.controls):
        return on_device(of, runtime.setup(device, precision)), None
    source = source_of(of, data)
    beside = open_set(of, source, protocol, device, precision, test=False)
    return beside.syn, beside.data


def _experts(
    of: Distilled,
    experts: Experts | TeacherSource | None,
    source: Data | None,
    device: torch.device,
) -> tuple[Sequence[nn.Module], str]:
    """(networks that were trained on all source images, what they are in words)."""
    if experts is None or source is None:
        return (), ""
    networks = teachers_of(of, experts, source, device, dynamic=False)
    named = target_in_words(target_network(of.meta))
    if not of.set.targets.regressed:
        named = _model_of_experts(of) or "experts"
    if at(of.meta, "recipe", "buffer", "step", "type") is not None:
        named += f", trained by {of.meta['recipe']['buffer']['step']['type']}"
    return networks, f"{len(networks)} of {named} on all {len(source.train)} source images"


def _model_of_experts(of: Distilled) -> str | None:
    """The name of the network of a set's experts; None where the set does not say it."""
    if of.set.targets.regressed:
        return at(target_network(of.meta), "model")
    return at(of.meta, "experts", "model")


# Datasets.


def _datasets(
    targets: Sequence[Images] | Mapping[str, Images],
    config: TransferConfig,
    syn: SyntheticSet,
    device: torch.device,
) -> list[testing.Downstream]:
    """The datasets in the form that networks of the set take. Raises UserError for none."""
    if isinstance(targets, str | Path | Dataset):
        targets = [targets]
    if not targets:
        raise UserError(
            "transfer needs datasets to test on; name one at least with targets=, or --to."
        )
    if not isinstance(targets, Mapping):
        targets = by_name([(None, images) for images in targets])
    shape = syn.image_shape
    made = []
    for name, images in targets.items():
        dataset = dataset_of(images)
        if dataset is None:
            raise UserError(
                "A dataset to test on is None; give a Dataset, a path, or leave it out."
            )
        data = _loaded(name, dataset, config.data(shape), device)
        load: Callable[[DataConfig], Data] = partial(_few, dataset)
        stored = testing.stored_shape(load, replace(config.data(shape), limit=data.num_classes))
        made.append(testing.brought_to(name, data, stored, shape, syn.preprocess))
    return made


def _loaded(name: str, dataset: Dataset, config: DataConfig, device: torch.device) -> Data:
    """The splits of a dataset; all images of one that has fewer than the limit for all datasets.

    Raises UserError for what cannot be read.
    """
    try:
        return dataset.load(config, device, test=True)
    except UserError as error:
        if config.limit is not None:
            everything = _loaded(name, dataset, replace(config, limit=None), device)
            if everything.counts["train"] + everything.counts["validation"] < config.limit:
                return everything
        raise UserError(f"{name} cannot be tested on: {error}") from None


def _few(dataset: Dataset, config: DataConfig) -> Data:
    """A few images of a dataset as they are stored, without a word about them."""
    with log.shown(False):
        return dataset.load(config, torch.device("cpu"))


def by_name(targets: Sequence[tuple[str | None, Images]]) -> dict[str, Images]:
    """Datasets by what they are called: the given name, or None for their own or their folder's.

    A number follows a name that another one has.
    """
    given: dict[str, Images] = {}
    for name, images in targets:
        dataset = dataset_of(images)
        if name is None and dataset is not None:
            name = called(dataset.name, dataset.root) or "own images"
        given[naming.apart(name or "own", given)] = dataset
    return given
