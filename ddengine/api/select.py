"""Selections: the real images that a rule chooses, as a set like a distilled one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddengine.api import experts as of_experts
from ddengine.api.begun import begun, followed, place
from ddengine.api.checks import check_folder, check_recipe, check_run
from ddengine.api.distill import Bibtex
from ddengine.api.inputs import AUTO, Images, dataset_of, pointed_at
from ddengine.api.results import Distilled, load
from ddengine.artefact import runs
from ddengine.data import Data, Dataset
from ddengine.experts import ExpertSource
from ddengine.models import build_model
from ddengine.pages import writing
from ddengine.prepare import ASKS_EXPERTS, check_networks
from ddengine.recipe import Recipe, resolved
from ddengine.sets.codec import Pixels
from ddengine.sets.start import SELECTIONS, selected_index
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import claims, log, program, runtime
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import Experts

DECIDING = ("name", "data", "model", "ipc", "init", "evaluation")  # the other parts play no role
NEAREST = ("herding", "k_centre", "k_means")  # kinds that start from the mean of a class


def select(
    data: Images,
    recipe: Recipe,
    experts: Experts | ExpertSource | None = None,
    *,
    kind: str | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
    restart: bool = False,
    bibtex: Bibtex | None = None,
    command: Sequence[str] = (),
) -> Distilled:  # long: its arguments are explained
    """The real images that a recipe's init chooses, labelled with their classes, as a set.

    It is evaluated, exported and trained on like a distilled one.

        chosen = ddengine.select(my_torch_dataset, recipe, kind="herding")

    Args:
        data: as `distill` takes it.
        recipe: says which images, how many of a class, the network that looks at them, the rule
            (`init`) and how the set is evaluated.
        experts: as `distill` takes them, for the kinds `correct` and `representative`.
        kind: the rule; None: that of the recipe.
        folder: where the run is kept; "auto" is the one that the command line would name; None
            leaves nothing behind.
        seed: decides every random draw.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.
        restart: begin anew, deleting what the folder holds of an earlier run.
        bibtex: makes the BibTeX entries for the card of the set, such as `synth.bibtex`.
        command: the words by which a command line asked for this.

    Raises:
        UserError: a kind that chooses no real images, experts that are missing, data that do not
            go, a folder of something else.
    """
    recipe = _choosing(recipe, kind)
    check_run(seed, precision)
    if folder != AUTO:
        check_folder(folder)
    with log.shown(progress):
        choice = _loaded(dataset_of(data), recipe, experts, seed, device, precision)
        if folder is None:
            syn, meta = choice.made(bibtex)
            return Distilled(syn, meta, None, choice.data.split_names)
        name = f"select-{recipe.init.kind}"
        path, asked = place(choice, folder, name), choice
        if restart:
            runs.check_own(path, runs.MARK)
        else:
            path, choice = begun(choice, folder, name)
            if runs.is_finished(path, choice.recipe, choice.identity(), parts=choice.parts):
                log.say(f"{path} is finished; --restart begins anew")
                return load(path, str(choice.device))
        with claims.claimed(path, "select"):
            syn, meta = choice.made(bibtex)
            if restart:
                runs.delete(path, runs.MARK)
            runs.begin(path, asked.recipe, choice.identity(), command)
            log.EventLog(path / "metrics.jsonl").close()  # empty, as of no steps
            writing.write_run(path, syn, choice.data, meta)
        _say(syn, choice.recipe, path)
        return Distilled(syn, meta, path, choice.data.split_names)


@dataclass(frozen=True)
class Choice:
    """A selection among images that are loaded."""

    recipe: Recipe
    data: Data
    origin: ExpertSource
    device: torch.device
    seed: int
    precision: Precision

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the recipe, which decide."""
        return (*DECIDING, "buffer") if self.recipe.init.kind in ASKS_EXPERTS else DECIDING

    def identity(self) -> dict[str, Any]:
        """What makes two selections the same: the parts of the recipe that decide one."""
        recipe, images = self.recipe, self.data.train.digest
        values = resolved(recipe)
        run = runs.identity(
            recipe,
            images,
            seed=self.seed,
            precision=self.precision,
            compile=False,
            experts=followed(recipe, self.seed, self.origin.origin(images)),
        )
        return run | {"resolved": digest(["select", {part: values[part] for part in self.parts}])}

    def made(self, bibtex: Bibtex | None) -> tuple[SyntheticSet, dict[str, Any]]:
        """The set, and what meta.json says of it."""
        recipe, data = self.recipe, self.data
        check_networks(recipe, data, selection=True)
        experts = self.origin.open(data)  # none where the kind asks none
        index = _chosen(recipe, data, experts, self.seed)
        numbers = index.tolist()
        names = [data.train_names[i] for i in numbers] if data.train_names else []
        more = {} if bibtex is None else {"bibtex": bibtex(recipe)}
        meta = runs.meta_of(
            recipe,
            data,
            of_experts.summary_of(experts),
            self.device,
            seed=self.seed,
            precision=self.precision,
            **more,
            selected={"kind": recipe.init.kind, "index": numbers, "names": names},
        )
        return _set_of(recipe, data, index), meta


def _choosing(recipe: Recipe, kind: str | None) -> Recipe:
    """The recipe with what plays a role for a selection of this kind; None: of its own.

    Raises UserError for what is no recipe, and a kind that chooses no real images.
    """
    check_recipe(recipe)
    if kind is not None:
        recipe = replace(recipe, init=replace(recipe.init, kind=kind))
    if recipe.init.kind not in SELECTIONS:
        raise UserError(
            f"{program.name()} select chooses among real images, and init.kind is "
            f"{recipe.init.kind}; set --init.kind to one of {', '.join(SELECTIONS)}."
        )
    if recipe.init.kind in ASKS_EXPERTS:
        return recipe
    # then nothing depends on a store that happens to be there
    own_labels = replace(recipe.evaluation, labels="own")
    return replace(recipe, buffer=None, teachers=(), evaluation=own_labels)


def _loaded(
    dataset: Dataset | None,
    recipe: Recipe,
    experts: Experts | ExpertSource | None,
    seed: int,
    device: str,
    precision: Precision,
) -> Choice:
    """The selection among these images, which are loaded here."""
    recipe, source = pointed_at(recipe, dataset)
    recipe, origin = _source(recipe, experts, precision)
    where = runtime.setup(device, precision)
    data = source.load(where, origin.preprocess)
    log.say(f"{recipe.data.name}: {data.said()}")
    if recipe.codec.per_item > 1:
        log.say("images are chosen whole: the recipe's codec plays no role")
    uncoded = replace(recipe, codec=Pixels())  # the bytes of real images as they are
    return Choice(uncoded, data, origin, where, seed, precision)


def _say(syn: SyntheticSet, recipe: Recipe, folder: Path) -> None:
    """What was chosen, and where it lies."""
    kind = recipe.init.kind
    if kind in NEAREST and recipe.ipc == 1:
        log.say(f"{kind} with one image per class takes the image nearest to the class mean")
    log.say(f"{len(syn)} images chosen by init.kind {kind}: {folder / 'distilled'}")


def _source(
    recipe: Recipe, experts: Experts | ExpertSource | None, precision: str
) -> tuple[Recipe, ExpertSource]:
    """As `experts.source_of`; without experts where the kind asks none."""
    if recipe.init.kind not in ASKS_EXPERTS:
        return recipe, of_experts.Given(recipe, None, precision)
    return of_experts.source_of(recipe, experts, precision)


def _chosen(recipe: Recipe, data: Data, experts: Experts | None, seed: int) -> Tensor:
    """The training images that are chosen (S,), all of a class in a row."""
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    return selected_index(
        data.train,
        recipe.ipc,
        data.class_names,
        generator(seed, "init"),
        recipe.init,
        experts,
        new_model,
    )


def _set_of(recipe: Recipe, data: Data, index: Tensor) -> SyntheticSet:
    """The images at `index` with their bytes as they are."""
    on_device = index.to(data.train.device)
    return SyntheticSet(
        {"images": data.train.stored(on_device)},
        data.train.labels.index_select(0, on_device),
        data.class_names,
        recipe.codec,
        data.train.preprocess,
        space=recipe.codec.space,
    )
