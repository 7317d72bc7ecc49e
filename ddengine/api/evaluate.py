"""What a set is worth: networks trained on it beside its baselines; and a single network."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddengine import contents, naming
from ddengine.api.checks import check_experts, check_folder, check_run
from ddengine.api.inputs import Images, Source, dataset_of
from ddengine.api.keeping import kept_beside
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, on_device, opened
from ddengine.artefact import results, runs
from ddengine.changes import changed
from ddengine.data import Data, Dataset, RealSet
from ddengine.data.torch_dataset import OWN
from ddengine.evaluation import evaluate as evaluation_of
from ddengine.evaluation import tables
from ddengine.evaluation.baselines import FOLDER
from ddengine.evaluation.bench import Economy
from ddengine.evaluation.brought import Factory, Trainer, name_of, stable_name
from ddengine.evaluation.pace import FULL_SECONDS
from ddengine.evaluation.protocol import students_of
from ddengine.evaluation.train import train_one
from ddengine.evaluation.user_file import FromFile, from_file, names_file
from ddengine.experts import TeacherSource
from ddengine.learning.teachers import load_all
from ddengine.models import build_model, middle
from ddengine.pages import figures
from ddengine.recipe import OF_STUDENTS, DataConfig, EvalConfig, as_students, check_students_decide
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import Targets
from ddengine.system import claims, crew, dist, files, log, program, runtime
from ddengine.system.configs import from_dict, to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.system.workers import Message
from ddengine.types import Experts, Json

NEEDED = {"name", "model", "data", "evaluation"}  # of the recipe in meta.json
CONTROLS = ("random_soft", "hard_labels")  # without which soft labels pass for distillation
PARTIAL = "evaluation.partial.jsonl"  # what is finished of an evaluation that is not done
QUICK_SHARE = 1 / 6  # of full_seconds in a quick evaluation
# of training of every other row there, on each network; updates are cut to what validation needs,
# 16 at least, and to what this time allows
QUICK_SECONDS = 20.0
Networks = Sequence[str | Factory] | Mapping[str, Factory]


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
    quick: bool = False,
    full_seconds: float | None = FULL_SECONDS,
    reuse_baselines: bool = True,
    sort: tables.Sort = "none",
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
        models: names of networks, functions of an image shape (C, H, W) and a number of classes
            that make an nn.Module, alone or by name, or such functions in a file of yours as
            "path/to/file.py:NAME"; none: the recipe's network.
        baselines: random, herding, full and others that the set is compared with; None: those of
            the protocol, with the controls that soft labels ask for.
        protocol: an EvalConfig such as `synth.PROTOCOLS["mtt"]`, or changes of the set's own as a
            dictionary; None: the set's own.
        test: images to test on in place of the test split: as `Dataset.of` takes them.
        train: a function that trains a network in place of ours.
        experts: teachers of dynamic labels and of random images with soft labels, as `distill`
            takes them, or `buffers.SetTeachers()` for those that the set names.
        folder: where evaluation.json is written; one of the same settings there is read. None: the
            run or the folder of the set; nothing is kept of a set in memory, nor with functions,
            test images or a training function of yours (networks of a file are kept).
        seed: decides networks, orders, augmentation and random draws.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        quick: a first answer, see QUICK_SECONDS: 3 networks a row, two rates, updates cut.
        full_seconds: that the row of full data may take on a network, else cut; None: no limit.
        reuse_baselines: read what other evaluations keep in .baselines, beside their runs.
        sort: by what the rows of the table are ordered.
        progress: as `distill` takes it.
        restart: evaluate again although evaluation.json is there, with baselines trained again.
        strict: refuse an evaluation.json of other settings; False takes it as it is.
        command: the words by which a command line asked for this.
        seconds_before: that the caller has spent on it.

    Raises:
        UserError: images that are not those of the set, networks that do not fit, an evaluation of
            something else in the folder.
    """
    check_run(seed, precision)
    check_folder(folder)
    check_experts(experts)
    with log.shown(progress):
        asked = opened(of)
        config = asked_protocol(asked, protocol, baselines)
        names, factories = networks_of(models or config.models)
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
            economy=_economy(quick, full_seconds, restart),
            reuse_baselines=reuse_baselines,
            restart=restart,
            strict=strict,
            words=tuple(command),
        )
        return _told(asking, folder, sort, seconds_before)


def _told(
    asking: "Asking", folder: Path | str | None, sort: tables.Sort, seconds_before: float
) -> Outcome:
    """An evaluation as a table; that of a set by what it says itself also lies in its folder."""
    of = asking.of
    # its results go into the set's folder too, which may have been named in place of the run
    own = of.folder if folder is None and asking.is_told else None
    with (
        kept_beside(of, folder, "evaluate", told=asking.is_told) as out,
        claims.claimed(own, "evaluate"),
    ):
        return _kept(asking, out, folder is None, sort, seconds_before)


def _kept(
    asking: "Asking", out: Path | None, is_own: bool, sort: tables.Sort, seconds_before: float
) -> Outcome:
    """An evaluation as a table, which `out` keeps; `is_own` says that it is the set's own."""
    of = asking.of
    content = asking.evaluation(out, "evaluate", seconds_before)
    told = outcome(content, of, out, sort)
    if dist.rank() != 0:
        return told
    shared = asking.of_everybody(content)
    if is_own and of.folder is not None and shared is not None:
        results.add_results(of.folder, shared)
    if out is None or len({row["model"] for row in told.rows}) == 1:
        return told
    picture = out / "heat_map.png"
    figures.heat_map(picture, [(of.meta["recipe"]["name"], content)])
    return replace(told, notes=(*told.notes, f"accuracy of every set on every network: {picture}"))


def _economy(quick: bool, full_seconds: float | None, restart: bool) -> Economy:
    """What an evaluation need not spend. Raises UserError for no seconds."""
    most = QUICK_SECONDS if quick else None
    if full_seconds is None:
        return Economy(quick=quick, quick_seconds=most, renew=restart, looks=True)
    if not 0 < full_seconds < math.inf:
        raise UserError(
            f"full_seconds must be positive and finite, got {full_seconds}; None lets the full "
            "data take as long as they take."
        )
    share = QUICK_SHARE if quick else 1.0
    return Economy(full_seconds * share, quick, most, renew=restart, looks=True)


def outcome(
    content: Mapping[str, Any], of: Distilled, out: Path | None, sort: tables.Sort = "none"
) -> Outcome:
    """An evaluation as a table."""
    on = f" on {content['num_images']['test']} images" if "num_images" in content else ""
    title = f"{tables.marked(of.meta['recipe']['name'], content)}, test accuracy{on}"
    return Outcome(
        content,
        content["rows"],
        partial(tables.table, dict(content), title, sort),
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
    economy: Economy = Economy()
    reuse_baselines: bool = True
    restart: bool = False
    strict: bool = True
    words: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The network of the set's recipe."""
        return self.of.meta["recipe"]["model"]

    def of_everybody(self, content: Mapping[str, Any]) -> Json | None:
        """What an evaluation says to other readers of the set's folder, None where nothing.

        Networks that the user brings are left out, because no other reader has them; the same goes
        for all of an evaluation with test images or a training function that the user brings.
        """
        if self.test is not None or self.train is not None:
            return None
        if not self.factories:
            return dict(content)
        rows = [row for row in content["rows"] if row["model"] not in self.factories]
        if not rows:
            return None
        models = [name for name in content["protocol"]["models"] if name not in self.factories]
        left = {name: value for name, value in content.items() if name != "brought"}
        if "command" in left:
            left["command"] = [word for word in left["command"] if word not in self.factories]
        return {**left, "rows": rows, "protocol": {**content["protocol"], "models": models}}

    @property
    def is_told(self) -> bool:
        """Whether what the user brings, if anything, can be told from anything else."""
        return is_told(self.factories or {}, self.test, self.train)

    def evaluation(
        self, out: Path | None, command: str, seconds_before: float = 0.0
    ) -> dict[str, Any]:
        """The content of evaluation.json in `out`, made where it is not there; None keeps nothing.

        Of several ranks the first makes it, and the others train what it gives them. Raises
        UserError for one that was made with other settings, where that is to be refused.
        """
        if not dist.shares():
            return self._evaluation(out, command, seconds_before)
        content = None
        if dist.rank() == 0:
            with crew.led():
                content = self._evaluation(out, command, seconds_before)
        else:
            crew.serve(self._helping)
        return dist.told(content)

    def _helping(self, beginning: Message) -> Callable[[Message], Message]:
        """What trains for the first rank."""
        opened_set = self.open()
        asked = self._trained(opened_set, None)
        return evaluation_of.helping(
            opened_set.syn, opened_set.data, self.config, self.model, beginning, **asked
        )

    def _trained(self, opened_set: "OpenSet", out: Path | None) -> dict[str, Any]:
        """Further arguments of `evaluate` that decide what is trained, and how."""
        return {
            "seed": self.seed,
            "device": opened_set.device,
            "precision": self.precision,
            "name": row_name(self.of.meta, self.config),
            "teachers": self._teachers(opened_set),
            "test": _test_images(self.test, opened_set),
            "factories": self.factories,
            "train": self.train,
            "economy": replace(self.economy, baselines=self._baselines(out)),
        }

    def _evaluation(self, out: Path | None, command: str, seconds_before: float) -> dict[str, Any]:
        """The same, of the only rank, or of the first."""
        if out is not None and (out / "evaluation.json").exists() and not self.restart:
            made = self._made_before(out / "evaluation.json", command)
            if made is not None:
                log.say(f"{out / 'evaluation.json'} is there; --restart evaluates again")
                (out / PARTIAL).unlink(missing_ok=True)  # which a kill has left
                return made
        opened_set = self.open()
        asked = self._trained(opened_set, out)
        if out is not None:
            files.make_folder(out)
        content = evaluation_of.evaluate(
            opened_set.syn,
            opened_set.data,
            self.config,
            self.model,
            memo_path=None if out is None else out / PARTIAL,
            seconds_before=seconds_before,
            **asked,
        )
        if brought := self._brought():
            content["brought"] = brought
        content["set_digest"] = self._set_digest()  # as the set itself numbers its classes
        if self.words:
            content["command"] = [*program.stored(), *self.words]
        if out is not None:
            picture = out / "real_vs_distilled.png"
            figures.real_vs_distilled(picture, opened_set.data.train, opened_set.syn, content)
            # last of what is written, because with it the evaluation is done
            files.write_json(out / "evaluation.json", content)
            (out / PARTIAL).unlink(missing_ok=True)
        return content

    def open(self) -> "OpenSet":
        """The set and its images, test images too, on the device.

        Raises UserError where they do not belong together, or a network does not fit.
        """
        reads_test = self.test is None
        return open_set(
            self.of, self.source, self.config, self.device, self.precision, test=reads_test
        )

    def _teachers(self, opened_set: "OpenSet") -> Sequence[nn.Module]:
        """The networks that label, given opened or by where they lie; none where none were."""
        if self.experts is None:
            return []
        dynamic = self.config.labels == "dynamic"
        data, device = opened_set.data, opened_set.device
        return teachers_of(self.of, self.experts, data, device, dynamic=dynamic)

    def _brought(self) -> dict[str, str | None]:
        """What identifies the functions that the user brings, by what they are for.

        None of such that cannot be told from others.
        """
        brought = {}
        for name, factory in (self.factories or {}).items():
            brought[f"network {name}"] = stable_name(factory)
        if self.train is not None:
            brought["training"] = stable_name(self.train)
        return brought

    def _baselines(self, out: Path | None) -> Path | None:
        """The folder in which evaluations of all runs share baselines; None: they are not shared.

        It lies beside the run of the set, or beside the folder that was named for an evaluation.
        """
        run = self.of.run or out
        if run is None or out is None or not self.reuse_baselines:
            return None
        run = run.absolute()
        if (run.parent / runs.MARK).is_file():  # the set within a run was named
            run = run.parent
        return run.parent / FOLDER

    def _made_before(self, path: Path, command: str) -> dict[str, Any] | None:
        """An evaluation that was made before.

        None of a quick one where that is not enough, and where nobody can tell whether it is the
        same.
        """
        if None in self._brought().values():
            log.say("a function that you bring has no file to tell it by, so it is trained again")
            return None
        try:
            content = contents.read_json(path, "rows", "protocol")
        except UserError:
            raise UserError(f"{path} is damaged; evaluate again with --restart.") from None
        digest = self._set_digest()
        if content.get("set_digest", digest) != digest:
            raise UserError(
                f"{path} is of another set; {command} again with --restart, or name another folder "
                "with --out."
            )
        if content.get("quick") and not self.economy.quick:
            log.say(f"{path} is of a quick evaluation, in whose place this one comes")
            return None
        differing = self._differing(content) if self.strict else []
        if differing:
            self.open()  # a misspelt network is told as one
            raise UserError(
                f"{path} was made with other settings ({', '.join(differing)}); keep it and name a "
                f"folder for this one with --out, or {command} again in its place with --restart."
            )
        return content

    def _set_digest(self) -> str:
        """The digest of the set as it is stored."""
        return evaluation_of.set_digest(on_device(self.of, torch.device("cpu")))

    def _differing(self, content: Mapping[str, Any]) -> list[str]:
        """The settings by which an evaluation was made otherwise."""
        models = (*self.config.models, *(self.factories or ())) or (self.model,)
        config = replace(self.config, models=models)
        if content.get("quick"):
            config = evaluation_of.quick(config)
        wanted = _but_equal_bytes(config)
        made = _but_equal_bytes(from_dict(EvalConfig, content["protocol"]))
        names = [name for name in wanted if wanted[name] != made.get(name)]
        names += [name for name in made if name not in wanted]
        cut = tables.cut_rows(content["rows"])
        if cut and content.get("full_seconds") != self.economy.full_seconds:
            names.append("full_seconds")
        for name, value in (("seed", self.seed), ("precision", self.precision)):
            if content.get(name, value) != value:
                names.append(name)
        # other test images, networks of one name or another training are seen in the rows alone
        if content.get("brought", {}) != self._brought():
            names.append("what you bring")
        if content.get("own_test") != self._test_digest():
            names.append("test images")
        return names

    def _test_digest(self) -> str | None:
        """The digest of the user's test images; None where there are none."""
        if self.test is None:
            return None
        test = _test_images(self.test, self.open())
        assert test is not None
        return test.digest


def _but_equal_bytes(config: EvalConfig) -> dict[str, Any]:
    """A protocol as JSON data, without the baseline that evaluations of before have not."""
    names = tuple(name for name in config.baselines if name != "equal_bytes")
    return to_dict(replace(config, baselines=names))


@dataclass(frozen=True)
class OpenSet:
    """A set beside the images that it was made of, test images too."""

    syn: SyntheticSet
    data: Data
    device: torch.device


def open_set(
    of: Distilled,
    source: Source,
    config: EvalConfig,
    device: str,
    precision: Precision,
    *,
    test: bool = True,
) -> OpenSet:
    """The set and its images on the device, those of the test split too unless told otherwise.

    Raises UserError where they do not belong together, or a network does not fit.
    """
    where = runtime.setup(device, precision)
    syn = on_device(of, where)
    data = source.load(where, lambda images: syn.preprocess, test=test)
    name = of.folder or "the set"
    shape = tuple(syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:])
    if source.is_own:
        syn = numbered_as(syn, data.class_names)
    if data.class_names != syn.class_names or data.image_shape != shape:
        raise UserError(
            f"{of.folder or 'The set'} was distilled from other images than data.name "
            f"{source.config.name} gives; set the data flags it was made with."
        )
    if data.train.digest != of.meta.get("images", data.train.digest):
        raise UserError(
            f"The training images are not those of which {name} was distilled, so its test "
            "images may have been seen; "
            "set the data flags it was made with (data.limit, data.validation, data.split_seed)."
        )
    for model in config.models or (of.meta["recipe"]["model"],):
        warning = naming.warning(model, data.image_shape[1:])
        if warning is not None:
            log.say(warning)
        # a wrong name fails before the first training
        network = build_model(model, data.image_shape, data.num_classes, generator(0))
        if config.loss == "uskd":
            middle(network, data.image_shape)
    return OpenSet(syn, data, where)


def teachers_of(
    of: Distilled,
    experts: Experts | TeacherSource,
    data: Data,
    device: torch.device,
    *,
    dynamic: bool,
) -> Sequence[nn.Module]:
    """The networks of a set, given opened or by where they lie; `data` are its images."""
    if isinstance(experts, TeacherSource):
        return experts.teachers(of.meta, data, device, dynamic=dynamic)
    return load_all(experts, device)


def numbered_as(syn: SyntheticSet, names: Sequence[str]) -> SyntheticSet:
    """A set with its classes numbered as images that Python holds have them, by name.

    It may lack classes, or name some that neither it nor the images have. Others, and one whose
    labels have a number for each class, stay as they are.
    """
    own = [syn.class_names[number] for number in syn.classes.unique().tolist()]
    if syn.targets.of_classes or not set(own) <= set(names):
        return syn
    numbers = torch.zeros(len(syn.class_names), dtype=torch.long, device=syn.classes.device)
    for number, name in enumerate(syn.class_names):
        if name in own:
            numbers[number] = names.index(name)
    return replace(syn, classes=numbers[syn.classes], class_names=tuple(names))


def protocol_of(
    of: Distilled, start: EvalConfig | None = None, *, students: bool = True
) -> EvalConfig:
    """The protocol of a set, or `start`, with the controls that its labels ask for.

    One that trains networks as the students of the set has what the set says of these, unless
    `students` is False.

    Raises UserError for a set that does not say its recipe.
    """
    recipe = of.meta.get("recipe", {})
    if not recipe.keys() >= NEEDED:
        where = of.folder / "meta.json" if of.folder is not None else "The set"
        raise UserError(
            f"{where} does not say the recipe of the set, so it cannot be evaluated; distill it "
            "again."
        )
    protocol = start or _without_code(from_dict(EvalConfig, recipe["evaluation"]))
    if not students:
        protocol = replace(protocol, as_students=False)
    if "random" in protocol.baselines:
        protocol = _with_baselines(protocol, _controls(of.set.targets))
    # the controls without which soft labels and more examples pass for distillation
    if recipe.get("teachers"):
        if "random" in protocol.baselines:
            protocol = _with_baselines(protocol, CONTROLS)
        protocol = replace(protocol, baseline_steps="updates")
    return as_students(protocol, students_of(of.meta))


def _without_code(protocol: EvalConfig) -> EvalConfig:
    """The protocol of a set, which may be a stranger's, without networks of files: they are run."""
    kept = []
    for model in protocol.models:
        if names_file(model):
            log.say(
                f"warning: the set asks for {model}, a file of Python that would be run, so it is "
                "left out; --models names it, if you trust it"
            )
        else:
            kept.append(model)
    return replace(protocol, models=tuple(kept))


def _controls(targets: Targets) -> tuple[str, ...]:
    """The baselines that a set asks for beside random, by the labels that it has."""
    if targets.soft:
        return ("equal_bytes", "random_soft")
    if targets.of_classes:
        return ("equal_bytes", "hard_labels")
    return ("equal_bytes",)


def _with_baselines(protocol: EvalConfig, names: Sequence[str]) -> EvalConfig:
    """The protocol with more baselines, each once."""
    more = [name for name in names if name not in protocol.baselines]
    return replace(protocol, baselines=(*protocol.baselines, *more))


def asked_protocol(
    of: Distilled,
    changes: EvalConfig | Mapping[str, Any] | None,
    baselines: Sequence[str] | None = None,
) -> EvalConfig:
    """The protocol of a set with changes, or another, as `with_changes` takes them.

    Changes by name hold whatever the set says of its students.
    """
    config = with_changes(protocol_of(of), changes, baselines)
    config = as_students(config, students_of(of.meta))
    if not isinstance(changes, Mapping):
        return config
    check_students_decide(config, changes)
    return with_changes(config, {name: changes[name] for name in OF_STUDENTS if name in changes})


def with_changes(
    protocol: EvalConfig,
    changes: EvalConfig | Mapping[str, Any] | None,
    baselines: Sequence[str] | None = None,
) -> EvalConfig:
    """A protocol in place of another, or changes of it by name; with other baselines, if any.

    Raises UserError for changes that do not fit.
    """
    if isinstance(changes, EvalConfig):
        protocol, changes = changes, None
    values = dict(changes or {})
    if baselines is not None:
        values["baselines"] = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    return changed(protocol, values, ("protocol",))


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
            classes that makes one, "path/to/file.py:NAME" for one of a file, or a network, of which
            a copy is trained; None: the recipe's.
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
    check_run(seed, precision)
    check_experts(experts)
    if isinstance(network, str) and names_file(network):
        network = from_file(network)
    if lr is not None and not 0 < lr < math.inf:
        raise UserError(f"lr is {lr!r}; give a rate above 0, or None for that of the protocol.")
    with log.shown(progress):
        asked = opened(of)
        config = asked_protocol(asked, protocol)
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


def is_told(factories: Mapping[str, Factory], test: Any, train: Trainer | None) -> bool:
    """Whether a user brings nothing but networks of files, which their digests tell."""
    of_files = all(isinstance(made, FromFile) for made in factories.values())
    return of_files and test is None and train is None


def networks_of(models: Networks) -> tuple[tuple[str, ...], dict[str, Factory]]:
    """The names of our networks, and the functions that make the user's, by name.

    Raises UserError for a file that does not have what is named, and for two functions of a name.
    """
    if isinstance(models, Mapping):
        return (), dict(models)
    names: list[str] = []
    factories: dict[str, Factory] = {}
    for model in [models] if isinstance(models, str) else models:
        if isinstance(model, str) and names_file(model):
            factories[model] = from_file(model)
            continue
        if isinstance(model, str):
            names.append(model)
            continue
        name = name_of(model)
        if name in factories:
            raise UserError(
                f"Two of the networks that you bring are called {name!r}; give them as a "
                "dictionary, by names of your choice."
            )
        factories[name] = model
    return tuple(names), factories


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
