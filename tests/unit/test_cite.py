"""What `run.py cite` prints: entries that BibTeX can read, of everything a recipe uses and of
nothing else.
"""

import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from loops import for_each

from buffers.steps import Sgd
from ddengine.data import DATASETS
from ddengine.recipe import AugmentConfig
from ddengine.sets.codec import Identity
from ddengine.system.errors import UserError
from synth.catalogue import RECIPES, find
from synth.cite import DATASET_CITES, bibtex, bibtex_of_command, entries, keys

ROOT = Path(__file__).resolve().parents[2]
PLAIN = AugmentConfig(ops=())
IPC1 = find("mtt/cifar10_ipc1")


@dataclass(frozen=True, kw_only=True)
class CitedCodec(Identity):
    """A parametrisation with works of its own."""

    cites: ClassVar[tuple[str, ...]] = ("cui2023tesla", "guo2024datm")


@dataclass(frozen=True, kw_only=True)
class CitedStep(Sgd):
    """A training step with a work of its own, and one that the method cites too."""

    cites: ClassVar[tuple[str, ...]] = ("zhuang2022gsam", "cazenavette2022mtt")


def printed(text):
    """Keys of the entries of a text, in order."""
    return re.findall(r"^@\w+\{([\w-]+),$", text, flags=re.MULTILINE)


def fields(entry):
    """{field: value} of an entry whose fields are name = {value}; fails where braces do not pair or
    anything is left over.
    """
    inside, pos, found = re.fullmatch(r"@\w+\{[\w-]+,\n(.*)\n\}", entry, flags=re.DOTALL)[1], 0, {}
    while pos < len(inside):
        start = re.compile(r"\s*(\w+)\s*=\s*\{").match(inside, pos)
        assert start, inside[pos:]
        depth, end = 1, start.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(inside[end], 0)
            end += 1
        assert start[1] not in found
        found[start[1]] = inside[start.end() : end - 1]
        rest = re.compile(r",(?=\s*\w)|$").match(inside, end)
        assert rest, inside[end:]
        pos = rest.end()
    return found


@for_each("name", RECIPES)
def test_everything_a_recipe_uses_has_an_entry(name):
    recipe = RECIPES[name]
    text = bibtex(recipe)
    found = printed(text)
    assert found == keys(recipe) and len(set(found)) == len(found)
    # people's own photographs have no work to cite
    of_dataset = () if recipe.data.name == "folder" else DATASET_CITES[recipe.data.name]
    assert set(found) >= {*recipe.cites, *of_dataset} and recipe.cites
    assert text.isascii() and text.endswith("}\n")


@for_each("key", entries())
def test_entries_parse_and_say_what_is_needed(key):
    found = fields(entries()[key])
    assert {"title", "author", "year"} <= found.keys()
    assert all(value.strip() for value in found.values())
    kind = re.match(r"@(\w+)", entries()[key])[1]
    assert {
        "inproceedings": "booktitle",
        "article": "journal",
        "techreport": "institution",
        "misc": "howpublished",
    }[kind] in found
    assert found["year"] in key and re.fullmatch(r"\d{4}", found["year"])
    first = found["author"].split(",")[0].lower()
    plain = re.sub(r"\W", "", first)  # Ben Baruch
    assert key.startswith((first, plain))  # the key names the first author


def test_keys_of_the_file_are_unique():
    text = (ROOT / "synth" / "references.bib").read_text(encoding="ascii")
    for path in sorted((ROOT / "synth" / "recipes").glob("*.py")):
        text += getattr(importlib.import_module(f"synth.recipes.{path.stem}"), "BIBTEX", "")
    assert printed(text) == list(entries())
    assert text.count("@") == len(entries())  # BibTeX starts an entry at every one


def test_every_dataset_is_cited_or_the_users_own():
    assert all(DATASET_CITES.values()) and DATASET_CITES.keys() <= DATASETS.keys()
    assert DATASETS.keys() - DATASET_CITES.keys() <= {"folder", "parquet", "hub"}


def test_mtt_on_cifar10_cites_mtt_dsa_and_cifar():
    assert printed(bibtex(IPC1)) == ["cazenavette2022mtt", "zhao2021dsa", "krizhevsky2009cifar"]


def test_parts_in_use_are_cited_once_and_in_order():
    recipe = replace(IPC1, codec=CitedCodec(), buffer=replace(IPC1.buffer, step=CitedStep()))
    assert keys(recipe) == [
        "cazenavette2022mtt",
        "zhuang2022gsam",
        "cui2023tesla",
        "guo2024datm",
        "zhao2021dsa",
        "krizhevsky2009cifar",
    ]
    assert printed(bibtex(recipe)) == keys(recipe)


def test_augmentation_is_cited_when_any_part_augments():
    parts = {
        name: replace(getattr(IPC1, name), augment=PLAIN)
        for name in ("objective", "buffer", "evaluation")
    }
    assert keys(replace(IPC1, **parts)) == ["cazenavette2022mtt", "krizhevsky2009cifar"]
    for name in parts:
        assert "zhao2021dsa" in keys(replace(IPC1, **{k: v for k, v in parts.items() if k != name}))
    # a method without experts
    assert keys(replace(IPC1, **(parts | {"buffer": None}))) == [
        "cazenavette2022mtt",
        "krizhevsky2009cifar",
    ]


def test_what_everybody_does_to_images_is_not_cited():
    """Shifts, flips and crops that are always applied; colours are DSA's."""
    usual = AugmentConfig(always=("crop", "flip", "roll", "resized_crop", "shuffle"), ops=())
    parts = {
        name: replace(getattr(IPC1, name), augment=usual)
        for name in ("objective", "buffer", "evaluation")
    }
    assert keys(replace(IPC1, **parts)) == ["cazenavette2022mtt", "krizhevsky2009cifar"]
    for augment in (AugmentConfig(always=("color",), ops=()), AugmentConfig(ops=("flip",))):
        assert "zhao2021dsa" in keys(
            replace(IPC1, **(parts | {"evaluation": replace(IPC1.evaluation, augment=augment)}))
        )


def test_methods_of_soft_labels_are_cited_with_what_they_use():
    """SRe2L where its loss is used, its variants by the options that make them, mixing as the
    evaluation does it.
    """
    cited = {
        "infer/cifar10_ipc10": {
            "zhang2025infer",
            "yin2023sre2l",
            "zhang2018mixup",
            "krizhevsky2009cifar",
        },
        "infer/imagenet_ipc10": {
            "zhang2025infer",
            "yin2023sre2l",
            "yun2019cutmix",
            "deng2009imagenet",
        },
        "sre2l/cifar100_ipc10": {"yin2023sre2l", "zhang2018mixup", "krizhevsky2009cifar"},
        "sre2l/tiny_imagenet_ipc50_cda": {
            "yin2023sre2l",
            "yin2024cda",
            "yun2019cutmix",
            "le2015tiny",
        },
        "sre2l/cifar10_ipc10_dwa": {
            "yin2023sre2l",
            "du2024dwa",
            "zhang2018mixup",
            "krizhevsky2009cifar",
        },
        "rded/imagenette_ipc10": {"sun2024rded", "yun2019cutmix", "deng2009imagenet"},
    }
    assert {name: set(keys(find(name))) for name in cited} == cited


def test_datasets_of_ones_own_are_not_cited_and_unknown_ones_are_refused():
    for name in ("folder", "parquet"):
        assert keys(replace(IPC1, data=replace(IPC1.data, name=name))) == [
            "cazenavette2022mtt",
            "zhao2021dsa",
        ]
    with pytest.raises(UserError, match=r"'cifar11'.*cifar10"):
        keys(replace(IPC1, data=replace(IPC1.data, name="cifar11")))


def test_a_key_without_an_entry_is_refused():
    with pytest.raises(UserError, match="'nobody1900', of which there is no entry"):
        bibtex(replace(IPC1, cites=("nobody1900",)))


def test_command_line_prints_plain_text_with_flags_and_parts_taken():
    """What goes into a file is byte for byte the entries, however narrow the terminal is."""
    command = [
        sys.executable,
        "run.py",
        "cite",
        "mtt/cifar10_ipc1",
        "--take",
        "data=mtt/imagewoof_ipc1",
        "--buffer.num_experts",
        "3",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        env={"COLUMNS": "40", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = bibtex(replace(IPC1, data=find("mtt/imagewoof_ipc1").data))
    assert done.stdout.decode() == expected and printed(expected)[-1] == "deng2009imagenet"


def test_what_passes_over_images_by_score_is_cited():
    skipping = replace(IPC1, init=replace(IPC1.init, kind="el2n", skip=0.5))
    assert "lee2024selmatch" in keys(skipping)
    assert "lee2024selmatch" not in keys(replace(IPC1, init=replace(IPC1.init, kind="el2n")))


def test_the_contrast_of_views_is_cited_where_it_counts():
    apart = find("haba/fashion_mnist_ipc1_small")
    assert {"liu2022haba", "khosla2020supcon"} <= set(keys(apart))
    views = replace(apart.objective.views, contrast=0.0)
    assert "khosla2020supcon" not in keys(
        replace(apart, objective=replace(apart.objective, views=views))
    )


@pytest.mark.parametrize(
    ("command", "wanted"),
    [("thin", ["pleiss2020aum", "zheng2024hmn"]), ("quantise", ["tran2026ptq"])],
)
def test_commands_on_finished_sets_are_cited(command, wanted):
    assert printed(bibtex_of_command(command)) == wanted
