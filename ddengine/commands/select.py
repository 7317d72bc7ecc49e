"""Select."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ddengine.api import ASKS_EXPERTS, check_networks
from ddengine.artefact import folder as set_folders
from ddengine.artefact import runs
from ddengine.commands.distill import meta_of
from ddengine.commands.options import Options, of_recipe
from ddengine.commands.process import one_process
from ddengine.commands.stores import load_for, open_store, run_identity
from ddengine.models import build_model
from ddengine.pages import figures
from ddengine.recipe import (
    Recipe,
    digest,
    resolved,
)  # fmt: skip
from ddengine.sets import synthetic
from ddengine.sets.codec import Pixels
from ddengine.sets.start import SELECTIONS, selected_index
from ddengine.system import log, program
from ddengine.system.errors import UserError
from ddengine.system.rng import generator


def select(options: Options[Recipe]) -> Path:
    """Write the real images that the recipe's init chooses, labelled with their classes, as a set
    like a distilled one; returns the folder.
    """
    recipe, kind = options.recipe, options.recipe.init.kind
    if kind not in SELECTIONS:
        raise UserError(
            f"{program.name()} select chooses among real images, and init.kind is {kind}; set --init.kind "
            f"to one of {', '.join(SELECTIONS)}."
        )
    if options.compile:
        log.say("warning: --compile is ignored, nothing is compiled")
    if options.tensorboard:
        log.say("warning: --tensorboard is ignored, nothing is distilled")
    if options.out is not None:
        runs.check_folder(options.out)
    device = one_process(options, "select")
    asks_experts = kind in ASKS_EXPERTS
    if not asks_experts:  # then nothing depends on a store that happens to be there
        recipe = replace(
            recipe, buffer=None, teachers=(), evaluation=replace(recipe.evaluation, labels="own")
        )
        options = replace(options, recipe=recipe)
    data = load_for(options, device)
    log.say(f"{recipe.data.name}: {data.said()}")
    tiled = recipe.codec.per_item > 1
    recipe = replace(recipe, codec=Pixels())  # the bytes of real images as they are
    # the others play no role
    parts = (
        "name",
        "data",
        "model",
        "ipc",
        "init",
        "evaluation",
        *(["buffer"] if asks_experts else []),
    )
    whole = resolved(recipe)
    deciding = ["select", {part: whole[part] for part in parts}]
    wanted = run_identity(replace(options, compile=False), data.train.digest) | {
        "resolved": digest(deciding)
    }
    folder = options.out or Path("runs") / f"select-{kind}-{digest(wanted)}"
    if options.restart:
        runs.check_own(folder, runs.MARK)
    elif runs.is_finished(folder, wanted):
        log.say(f"{folder} is finished; --restart begins anew")
        return folder
    # which has no say in what networks may look at real images
    check_networks(replace(recipe, objective=None), data)
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    store = open_store(options, data)  # none where the kind asks none
    index = selected_index(
        data.train,
        recipe.ipc,
        data.class_names,
        generator(options.seed, "init"),
        recipe.init,
        store,
        new_model,
    )
    if options.restart:
        runs.delete(folder, runs.MARK)
    if tiled:
        log.say("images are chosen whole: the recipe's codec plays no role")
    runs.begin(folder, recipe, wanted, options.command)
    log.EventLog(folder / "metrics.jsonl").close()  # empty, as of a distillation without steps
    pixels, classes = (
        tensor.index_select(0, index.to(device))
        for tensor in (data.train.pixels, data.train.labels)
    )
    syn = synthetic.SyntheticSet(
        {"images": pixels},
        classes,
        data.class_names,
        recipe.codec,
        data.train.preprocess,
        space=recipe.codec.space,
    )
    figures.real_vs_distilled(folder / "real_vs_distilled.png", data.train, syn, None)
    figures.save_samples(folder / "samples.safetensors", data.train)
    selected = {
        "kind": kind,
        "index": index.tolist(),
        "names": [data.train_names[i] for i in index.tolist()],
    }
    meta = meta_of(options, recipe, data, store, device, selected=selected)
    set_folders.save(syn, folder / "distilled", meta, data.split_names)
    if kind in ("herding", "k_centre", "k_means") and recipe.ipc == 1:
        log.say(f"{kind} with one image per class takes the image nearest to the class mean")
    log.say(f"{len(syn)} images chosen by init.kind {kind}: {folder / 'distilled'}")
    return folder


def main(args: list[str]) -> None:
    """The command."""
    if (options := of_recipe("select", args)) is not None:
        select(options)
