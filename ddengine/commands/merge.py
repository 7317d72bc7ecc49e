"""Merge."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddengine.artefact import folder as set_folders
from ddengine.artefact import runs
from ddengine.commands import cli
from ddengine.commands.options import paths_of
from ddengine.system import files, log, program, runtime
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Flags of merge."""

    out: Path | None = None  # folder to write


def main(args: list[str]) -> None:
    """Make one distilled folder of several of one dataset; classes are matched by name."""
    from ddengine.sets import merge

    paths = paths_of(args, "merge", "the folders of runs or distilled sets")
    options = cli.parse(MergeOptions, args[len(paths) :], MergeOptions(), "merge SET SET ...")
    if options.out is None:
        raise UserError(f"{program.name()} merge needs a folder to write; name it with --out.")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} exists already; name another folder with --out.")
    folders = [runs.set_folder(path) for path in paths]
    loaded = [set_folders.load(folder, torch.device("cpu")) for folder in folders]
    metas = [meta for _, meta in loaded]
    maps, names = merge.class_maps(metas)
    # a run knows where its files lie, which a set does not say
    configs = [
        merge.config_of(meta, runs.data_of(path) if path != folder else None)
        for path, folder, meta in zip(paths, folders, metas, strict=True)
    ]
    merge.same_data(configs)
    merged = merge.merge(
        [syn for syn, _ in loaded], maps, names, preprocess=loaded[0][0].preprocess
    )
    ids = merge.class_ids(maps, configs, len(names))
    all_classes = all(config.classes is None for config in configs)
    wanted = (
        None if ids is None else replace(configs[0], classes=None if all_classes else tuple(ids))
    )
    data = merge.whole_data(configs, metas, wanted, merged.preprocess)
    own = {k: v for k, v in metas[0]["recipe"]["data"].items() if k != "classes"} | (
        {} if ids is None or all_classes else {"classes": ids}
    )
    recipe = {
        **metas[0]["recipe"],
        "ipc": max(1, round(merged.images_per_class())),
        "data": own,
        "published": None,
    }
    facts = (
        {}
        if data is None
        else {
            "images": data.train.digest,
            "raw_bytes": data.bytes,
            "dataset_bytes": data.dataset_bytes,
        }
    )
    if kinds := list(
        dict.fromkeys(str(meta["selected"].get("kind")) for meta in metas if "selected" in meta)
    ):
        if any("selected" not in meta for meta in metas):
            raise UserError(
                "Some of the sets are real images that were selected and some are distilled; "
                "merge those of one kind."
            )
        facts["selected"] = {"kind": " and ".join(kinds)}
    files.make_folder(options.out.parent)
    set_folders.save(
        merged,
        options.out,
        {
            "recipe": recipe,
            "merged": [str(f) for f in folders],
            "seed": None,
            **facts,
            "versions": runtime.versions(),
            "commit": runtime.commit(),
        },
    )
    log.say(f"{len(merged)} images of {len(names)} classes in {options.out}")
    root = [] if configs[0].root is None else ["--data.root", configs[0].root]
    log.say(f"evaluate them with {program.as_typed('evaluate', str(options.out), *root)}")
