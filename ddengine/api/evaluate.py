"""What a set is worth: networks trained on it beside its baselines; and a single network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ddengine.api.inputs import Images, Source, check_precision, dataset_of
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact import results, runs
from ddengine.data import Data, Dataset, RealSet
from ddengine.data.torch_dataset import OWN
from ddengine.evaluation import evaluate as evaluation_of
from ddengine.evaluation import tables
from ddengine.evaluation.brought import Factory, Trainer
from ddengine.evaluation.train import train_one
from ddengine.learning.teachers import load_all
from ddengine.models import build_model, middle
from ddengine.pages import figures
from ddengine.recipe import DataConfig, EvalConfig, from_dict, to_dict
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, program, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Experts

NEEDED = {"name", "model", "data", "evaluation"}  # of the recipe in meta.json
CONTROLS = ("random_soft", "hard_labels")  # without which soft labels pass for distillation
Networks = Sequence[str | Factory] | Mapping[str, Factory]


@runtime_checkable
class TeacherSource(Protocol):
    """Where the teachers of a set lie, such as `buffers.SetTeachers`."""

    def teachers(
        self, meta: Mapping[str, Any], data: Data, device: torch.device, *, dynamic: bool
    ) -> list[nn.Module]:
        """The networks; none of a set without. Raises UserError for dynamic labels without."""
        ...


def evaluate(
    of: Distilled | Path | str,
    data: Images | DataConfig = None,
    *,
    models: Networks = (),
    baselines: Sequence[str] | None = None,
    protocol: EvalConfig | Mapping[str, Any] | None = None,
    test: Any = None,
    train: Trainer | None = None,
    experts: Experts | TeacherSource | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    strict: bool = True,
    command: Sequence[str] = (),
    seconds_before: float = 0.0,
) -> Outcome:  # long: its arguments are explained
    """Train networks on a set and on its baselines, and test them on real images.

        table = ddengine.evaluate(result, data, models=["resnet18"], baselines=["random"])
        print(table); table.rows; table.to_pandas()

    Args:
        of: a set, or the folder of one or of its run.
        data: the images that the set was made of, as `distill` takes them, or the data settings of
            a recipe; None: those that the set names.
        models: names of networks, or functions of an image shape (C, H, W) and a number of classes
            that make an nn.Module, alone or by name; none: the recipe's network.
        baselines: random, herding, full and others that the set is compared with; None: those of
            the protocol, with the controls that soft labels ask for.
        protocol: an EvalConfig such as `synth.PROTOCOLS["mtt"]`, or changes of the set's own as a
            dictionary; None: the set's own.
        test: images to test on in place of the test split: as `Dataset.of` takes them.
        train: a function that trains a network in place of ours.
        experts: teachers, for dynamic labels and for random images with soft labels: what
            `buffers.generate` returned, or `buffers.SetTeachers()` for those in their stores.
        folder: where evaluation.json is written; None: the run or the folder of the set, of which
            nothing is kept for a set in memory. What lies there finished is read.
        seed: decides networks, orders, augmentation and random draws.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: evaluate again although evaluation.json is there.
        strict: refuse an evaluation.json of other settings; False takes it as it is.
        command: the words by which a command line asked for this.
        seconds_before: that the caller has spent on it.

    Raises:
        UserError: images that are not those of the set, networks that do not fit, an evaluation of
            something else in the folder.
    """
    check_precision(precision)
    with log.shown(progress):
        asked = opened(of)
        config = with_changes(protocol_of(asked), protocol)
        if baselines is not None:
            config = replace(config, baselines=tuple(baselines))
        names, factories = _networks(models)
        if models:
            config = replace(config, models=names)
        asking = Asking(
            of=asked,
            source=source_of(asked, data),
            config=config,
            seed=seed,
            device=device,
            precision=precision,
            experts=experts,
            test=test,
            factories=factories,
            train=train,
            restart=restart,
            strict=strict,
            words=tuple(command),
        )
        out = Path(folder) if folder is not None else asked.run
        content = asking.evaluation(out, "evaluate", seconds_before)
        if folder is None and asked.folder is not None and not asking.brings_own:
            results.add_results(asked.folder, dict(content))
        return outcome(content, asked, out)


def outcome(content: Mapping[str, Any], of: Distilled, out: Path | None) -> Outcome:
    """An evaluation as a table."""
    on = f" on {content['num_images']['test']} images" if "num_images" in content else ""
    title = f"{of.meta['recipe']['name']}, test accuracy{on}"
    return Outcome(
        content,
        content["rows"],
        partial(tables.table, dict(content), title, "none"),
        tuple(tables.notes(dict(content))),
        out,
        title,
    )


@dataclass(frozen=True, kw_only=True)
class Asking:
    """An evaluation that is asked for."""

    of: Distilled
    source: Source
    config: EvalConfig
    seed: int = 0
    device: str = "auto"
    precision: Precision = "fp32"
    experts: Experts | TeacherSource | None = None
    test: Any = None
    factories: Mapping[str, Factory] | None = None
    train: Trainer | None = None
    restart: bool = False
    strict: bool = True
    words: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The network of the set's recipe."""
        return self.of.meta["recipe"]["model"]

    @property
    def brings_own(self) -> bool:
        """Whether the user brings networks, test images or a training function.

        No other reader of the set's folder has these.
        """
        return bool(self.factories) or self.test is not None or self.train is not None

    def evaluation(
        self, out: Path | None, command: str, seconds_before: float = 0.0
    ) -> dict[str, Any]:
        """The content of evaluation.json in `out`, made where it is not there; None keeps nothing.

        Raises UserError for one that was made with other settings, where that is to be refused.
        """
        if out is not None and (out / "evaluation.json").exists() and not self.restart:
            made = self._made_before(out / "evaluation.json", command)
            log.say(f"{out / 'evaluation.json'} is there; --restart evaluates again")
            return made
        opened_set = self.open()
        teachers = self._teachers(opened_set)
        if out is not None:
            files.make_folder(out)
        content = evaluation_of.evaluate(
            opened_set.syn,
            opened_set.data,
            self.config,
            self.model,
            seed=self.seed,
            device=opened_set.device,
            precision=self.precision,
            memo_path=None if out is None else out / "evaluation.partial.jsonl",
            seconds_before=seconds_before,
            name=row_name(self.of.meta, self.config),
            teachers=teachers,
            test=_test_images(self.test, opened_set),
            factories=self.factories,
            train=self.train,
        )
        content["set_digest"] = self._set_digest()  # as the set itself numbers its classes
        if self.words:
            content["command"] = [*program.stored(), *self.words]
        if out is not None:
            files.write_json(out / "evaluation.json", content)
            picture = out / "real_vs_distilled.png"
            figures.real_vs_distilled(picture, opened_set.data.train, opened_set.syn, content)
        return content

    def open(self) -> "OpenSet":
        """The set and its images, test images too, on the device.

        Raises UserError where they do not belong together, or a network does not fit.
        """
        return open_set(self.of, self.source, self.config, self.device, self.precision)

    def _teachers(self, opened_set: "OpenSet") -> Sequence[nn.Module]:
        dynamic = self.config.labels == "dynamic"
        if isinstance(self.experts, TeacherSource):
            return _from_source(self.experts, self.of, opened_set, dynamic)
        if self.experts is None:
            return []
        return load_all(self.experts, opened_set.device)

    def _made_before(self, path: Path, command: str) -> dict[str, Any]:
        """An evaluation that was made before."""
        try:
            content = files.read_json(path, "rows", "protocol")
        except UserError:
            raise UserError(f"{path} is damaged; evaluate again with --restart.") from None
        digest = self._set_digest()
        if content.get("set_digest", digest) != digest:
            raise UserError(
                f"{path} is of another set; {command} again with --restart, or name another folder "
                "with --out."
            )
        if self.strict and not self._equals(content):
            raise UserError(
                f"{path} was made with other settings; {command} again with --restart, or name a "
                "folder with --out."
            )
        return content

    def _set_digest(self) -> str:
        """The digest of the set as it is stored."""
        return evaluation_of.set_digest(on_device(self.of, torch.device("cpu")))

    def _equals(self, content: Mapping[str, Any]) -> bool:
        """Whether an evaluation was made by these settings."""
        brought = tuple(self.factories or ())
        models = (*self.config.models, *brought) or (self.model,)
        wanted = to_dict(replace(self.config, models=models))
        made = to_dict(from_dict(EvalConfig, content["protocol"]))
        asked = {"seed": self.seed, "precision": self.precision}
        return made == wanted and all(content.get(k, v) == v for k, v in asked.items())


@dataclass(frozen=True)
class OpenSet:
    """A set beside the images that it was made of, test images too."""

    syn: SyntheticSet
    data: Data
    device: torch.device


def open_set(
    of: Distilled, source: Source, config: EvalConfig, device: str, precision: Precision
) -> OpenSet:
    """The set and its images on the device.

    Raises UserError where they do not belong together, or a network does not fit.
    """
    where = runtime.setup(device, precision)
    syn = on_device(of, where)
    data = source.load(where, lambda images: syn.preprocess, test=True)
    name = of.folder or "The set"
    shape = tuple(syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:])
    if source.is_own:
        syn = numbered_as(syn, data.class_names)
    if data.class_names != syn.class_names or data.image_shape != shape:
        raise UserError(
            f"{name} was distilled from other images than data.name {source.config.name} gives; "
            "set the data flags it was made with."
        )
    if data.train.digest != of.meta.get("images", data.train.digest):
        raise UserError(
            f"The training images are not those that {name} was distilled from, so its test "
            "images may have been seen; "
            "set the data flags it was made with (data.limit, data.validation, data.split_seed)."
        )
    for model in config.models or (of.meta["recipe"]["model"],):
        # a wrong name fails before the first training
        network = build_model(model, data.image_shape, data.num_classes, generator(0))
        if config.loss == "uskd":
            middle(network, data.image_shape)
    return OpenSet(syn, data, where)


def numbered_as(syn: SyntheticSet, names: Sequence[str]) -> SyntheticSet:
    """A set with its classes numbered as images that Python holds have them, by name.

    It may lack classes, or name some that neither it nor the images have. Others, and one with soft
    labels, stay as they are.
    """
    own = [syn.class_names[number] for number in syn.classes.unique().tolist()]
    if syn.targets.soft or not set(own) <= set(names):
        return syn
    numbers = torch.zeros(len(syn.class_names), dtype=torch.long, device=syn.classes.device)
    for number, name in enumerate(syn.class_names):
        if name in own:
            numbers[number] = names.index(name)
    return replace(syn, classes=numbers[syn.classes], class_names=tuple(names))


def protocol_of(of: Distilled, start: EvalConfig | None = None) -> EvalConfig:
    """The protocol of a set, or `start`, with the controls that its labels ask for.

    Raises UserError for a set that does not say its recipe.
    """
    recipe = of.meta.get("recipe", {})
    if not recipe.keys() >= NEEDED:
        where = of.folder / "meta.json" if of.folder is not None else "The set"
        raise UserError(
            f"{where} does not say the recipe of the set, so it cannot be evaluated; distill it "
            "again."
        )
    protocol = start or from_dict(EvalConfig, recipe["evaluation"])
    if "random" in protocol.baselines and of.set.targets.soft:
        protocol = _with_baselines(protocol, ("random_soft",))
    # the controls without which soft labels and more examples pass for distillation
    if recipe.get("teachers"):
        if "random" in protocol.baselines:
            protocol = _with_baselines(protocol, CONTROLS)
        protocol = replace(protocol, baseline_steps="updates")
    return protocol


def _with_baselines(protocol: EvalConfig, names: Sequence[str]) -> EvalConfig:
    """The protocol with more baselines, each once."""
    more = [name for name in names if name not in protocol.baselines]
    return replace(protocol, baselines=(*protocol.baselines, *more))


def with_changes(
    protocol: EvalConfig, changes: EvalConfig | Mapping[str, Any] | None
) -> EvalConfig:
    """A protocol in place of another, or changes of it by name."""
    if changes is None:
        return protocol
    if isinstance(changes, EvalConfig):
        return changes
    known = to_dict(protocol).keys()
    for name in changes:
        if name not in known:
            raise UserError(
                f"protocol names {name!r}, and a protocol has {', '.join(sorted(known))}; correct "
                "the name."
            )
    return replace(protocol, **changes)


def source_of(of: Distilled, data: Images | DataConfig) -> Source:
    """Where the images of a set come from; None: from where the set says.

    Raises UserError for images that only Python had.
    """
    if isinstance(data, DataConfig):
        config, dataset = data, None
    else:
        config, dataset = data_settings(of), dataset_of(data)
    if dataset is not None:
        return Source(dataset.settings(config), dataset)
    if config.name == OWN:
        given = "result" if of.run is None else repr(str(of.run))
        raise UserError(
            "The set was made of images that Python held, where no command can read them; call "
            f"ddengine.evaluate({given}, data) in Python (or score, rank, privacy), where data is "
            "the Dataset that it was made of."
        )
    return Source(config)


def data_settings(of: Distilled) -> DataConfig:
    """The data settings that a set was made with; a run knows where its files lie, too."""
    if of.run is not None and of.folder != of.run:
        return from_dict(DataConfig, runs.data_of(of.run))
    return from_dict(DataConfig, of.meta["recipe"]["data"])


def row_name(meta: Mapping[str, Any], config: EvalConfig) -> str:
    """What the row of a set is called.

    A selection has the name of its kind, unless a baseline has it.
    """
    kind = meta["selected"]["kind"] if "selected" in meta else "distilled"
    return f"selected {kind}" if kind in config.baselines else kind


def train(
    of: Distilled | Path | str,
    network: str | Factory | nn.Module | None = None,
    *,
    protocol: EvalConfig | Mapping[str, Any] | None = None,
    lr: float | None = None,
    experts: Experts | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
) -> nn.Module:  # long: its arguments are explained
    """A network trained on a set by its protocol, in evaluation mode.

        network = ddengine.train(result, "resnet18")

    Args:
        of: a set, or the folder of one or of its run.
        network: the name of a network, a function of an image shape (C, H, W) and a number of
            classes that makes one, or a network, of which a copy is trained; None: the recipe's.
        protocol: as `evaluate` takes it.
        lr: learning rate; None: the learned one of the set on the network it was learned for, else
            that of the protocol. The `lr` of a row of `evaluate` gives the network of that row.
        experts: teachers, for dynamic labels.
        seed: decides initialisation, order and augmentation.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.

    Raises:
        UserError: a network that does not fit, a protocol that the set cannot be trained by.
    """
    check_precision(precision)
    with log.shown(progress):
        asked = opened(of)
        config = with_changes(protocol_of(asked), protocol)
        where = runtime.setup(device, precision)
        home = asked.meta["recipe"]["model"]
        return train_one(
            on_device(asked, where),
            home if network is None else network,
            config,
            seed=seed,
            device=where,
            lr=lr,
            home=home,
            precision=precision,
            teachers=[] if experts is None else load_all(experts, where),
        )


def _networks(models: Networks) -> tuple[tuple[str, ...], dict[str, Factory]]:
    """The names of our networks, and the functions that make the user's, by name."""
    if isinstance(models, Mapping):
        return (), dict(models)
    names: list[str] = []
    factories: dict[str, Callable[..., nn.Module]] = {}
    for model in models:
        if isinstance(model, str):
            names.append(model)
        else:
            factories[model.__name__] = model  # type: ignore[attr-defined]
    return tuple(names), factories


def _from_source(
    source: TeacherSource, of: Distilled, opened_set: OpenSet, dynamic: bool
) -> list[nn.Module]:
    return source.teachers(of.meta, opened_set.data, opened_set.device, dynamic=dynamic)


def _test_images(test: Any, opened_set: OpenSet) -> RealSet | None:
    """The user's test images as the set's networks see them; None where there are none.

    Raises UserError for images of another form or of classes that the set has not.
    """
    if test is None:
        return None
    data = opened_set.data
    settings = DataConfig(name="own", size=data.image_shape[1:], validation=0.0)
    brought = Dataset.of(test, data.class_names).load(
        settings, opened_set.device, lambda images: data.train.preprocess
    )
    if brought.image_shape != data.image_shape:
        raise UserError(
            f"The test images have the shape {brought.image_shape}, and those of the set "
            f"{data.image_shape}; give images of that form."
        )
    numbers = [data.class_names.index(name) for name in brought.class_names]
    labels = torch.tensor(numbers, device=opened_set.device)[brought.train.labels]
    return RealSet(brought.train.pixels, labels, data.num_classes, data.train.preprocess)
