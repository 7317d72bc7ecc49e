"""Recipes as values: stored, parsed from flags, combined, identified; and every recipe that is
shipped.
"""

import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from loops import for_each
from published import NUM_CLASSES, SHAPES

from buffers.pretrained import Pretrained
from ddengine.commands import cli
from ddengine.data import DATASETS
from ddengine.experts import OwnTraining
from ddengine.learning.flat import FlatModel, flatten
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import (
    PARTS,
    AugmentConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
    OptimConfig,
    Recipe,
    TargetConfig,
    resolved,
)
from ddengine.sets.codec import (
    Compensated,
    Gaussians,
    Hallucinated,
    LinearBases,
    Reduced,
    Siren,
    SparseTokens,
    Spectra,
)
from ddengine.sets.codec.within_bytes import fitted
from ddengine.sets.start import INITIALISERS
from ddengine.system.configs import LATE, digest, from_dict, parametrised, to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import RECIPES, find, take
from synth.distribution import DistributionMatching
from synth.paired import PairedFeatures
from synth.recipes import (
    ast,
    at,
    att,
    cim,
    coded_cells,
    datm,
    dc,
    dd,
    dm,
    evlf,
    frepo,
    ftd,
    idc,
    infer,
    krr_st,
    mct,
    mtt,
    ncfm,
    own,
    pad,
    rat,
    rded,
    rtp,
    sre2l,
    tesla,
    tgdd,
    with_codecs,
)

DIGITS = RECIPES["mtt/digits_ipc1"]
CIFAR = RECIPES["mtt/cifar10_ipc10"]
# what is learned of a codec; of others images
STORED = {
    Compensated: ["compensators"],
    LinearBases: ["bases", "coefficients"],
    Gaussians: ["primitives"],
    Siren: ["fields"],
    Spectra: ["spectra"],
    SparseTokens: ["tokens", "network", "coefficients"],
    Hallucinated: ["images", "hallucinators"],
}
every = for_each("name", RECIPES)


# Storage


@pytest.mark.parametrize(
    "value",
    [
        DataConfig(name="digits"),
        DataConfig(name="folder", root="some/place", download=True, size=(48, 64), limit=77, validation=0.25, split_seed=3, zca=True),
        EvalConfig(protocol="mtt"),
        EvalConfig(
            protocol="own", epochs=7, batch=3, momentum=0.5, momentum_after=0.25, weight_decay=0.0, lr_drop=1 / 3, models=("mlp", "lenet"),
            augment=AugmentConfig(ops=("flip",), crop=0.3), lr=0.7, lr_grid=(0.1, 1e-7), search_networks=4, baselines=("full",), full_steps=9,
            num_networks=2,
        ),
        EvalConfig(protocol="bare", augment=AugmentConfig(ops=()), lr_grid=(1.0,), baselines=()),
    ],
)  # fmt: skip
def test_configurations_survive_json(value):
    again = from_dict(type(value), json.loads(json.dumps(to_dict(value))))
    assert again == value
    assert repr(again) == repr(value)  # 1 is not 1.0


def test_stored_data_that_do_not_fit_are_refused_in_words():
    with pytest.raises(UserError):
        from_dict(DataConfig, {})
    with pytest.raises(UserError):
        from_dict(EvalConfig, {"protocol": "mtt", "epochs": 0})


@every
def test_a_recipe_is_json_and_its_shared_parts_come_back(name):
    value = RECIPES[name]
    data = json.loads(json.dumps(to_dict(value), allow_nan=False))
    assert from_dict(DataConfig, data["data"]) == value.data
    assert from_dict(EvalConfig, data["evaluation"]) == value.evaluation


def test_every_part_that_comes_in_kinds_says_its_kind():
    """Two codecs (steps, objectives, windows) without options must not look the same in a stored
    recipe.
    """
    data = to_dict(DIGITS)
    parts = {
        "codec": data["codec"],
        "objective": data["objective"],
        "window": data["objective"]["window"],
        "step": data["buffer"]["step"],
    }
    assert {key: part.get("type") for key, part in parts.items()} == {
        "codec": "Identity", "objective": "TrajectoryMatching", "window": "UniformWindow", "step": "Sgd"
    }  # fmt: skip


# Flags


def parsed(value, *flags):
    """The recipe after flags, as the command line parses it."""
    return cli.parse(parametrised(value), list(flags), value, "")


def test_parametrised_fills_every_type_parameter():
    def open_parameters(kind):
        return getattr(kind, "__parameters__", ()) + tuple(
            p for a in typing.get_args(kind) for p in open_parameters(a)
        )

    for value in RECIPES.values():
        kind = parametrised(value)
        assert typing.get_origin(kind) is Recipe
        assert not open_parameters(kind)
        assert typing.get_args(kind)[1:2] == (type(value.codec),)


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        ([], lambda r: r),
        (
            ["--objective.window.high", "3"],
            lambda r: replace(
                r, objective=replace(r.objective, window=replace(r.objective.window, high=3))
            ),
        ),
        (
            ["--outer.optim.images.lr", "5"],
            lambda r: replace(
                r,
                outer=replace(
                    r.outer,
                    optim={**r.outer.optim, "images": replace(r.outer.optim["images"], lr=5.0)},
                ),
            ),
        ),
        (
            ["--buffer.step.lr", "0.5"],
            lambda r: replace(r, buffer=replace(r.buffer, step=replace(r.buffer.step, lr=0.5))),
        ),
        (["--buffer.keep", "0", "5"], lambda r: replace(r, buffer=replace(r.buffer, keep=(0, 5)))),
        (["--buffer.keep", "last"], lambda r: replace(r, buffer=replace(r.buffer, keep="last"))),
        (["--data.size", "16", "24"], lambda r: replace(r, data=replace(r.data, size=(16, 24)))),
        (["--data.zca"], lambda r: replace(r, data=replace(r.data, zca=True))),
        (
            ["--objective.batch", "10", "--ipc", "2"],
            lambda r: replace(r, ipc=2, objective=replace(r.objective, batch=10)),
        ),
        (
            ["--objective.augment.ops", "flip", "crop"],
            lambda r: replace(
                r, objective=replace(r.objective, augment=AugmentConfig(ops=("flip", "crop")))
            ),
        ),
        (
            ["--evaluation.models", "mlp", "lenet"],
            lambda r: replace(r, evaluation=replace(r.evaluation, models=("mlp", "lenet"))),
        ),
        (["--init.kind", "noise"], lambda r: replace(r, init=replace(r.init, kind="noise"))),
        (["--outer.max_loss", "1.5"], lambda r: replace(r, outer=replace(r.outer, max_loss=1.5))),
    ],
)
def test_a_flag_changes_its_field_and_no_other(flags, change):
    assert parsed(DIGITS, *flags) == change(DIGITS)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--objective.window.low", "9"], "low"),
        (["--outer.optim.imges.lr", "1"], "optim.images.lr"),
        (["--objective.windw.high", "3"], "objective.window.high"),
        (["--ipc", "many"], "--ipc takes a whole number, and got many"),
        (["--outer.max_loss", "x"], "--outer.max_loss takes a number, and got x"),
        (["--data.size", "32"], "--data.size takes None or INT INT, and got 32"),
        (["--data.classes", "a", "b"], "--data.classes takes None or INT INT ..., and got a b"),
        (["--objective.batch", "x"], "--objective.batch takes None or INT, and got x"),
        (["--ipc", "0"], "ipc"),
        (["--budget", "ipc1"], "budget is ipcN:f32, ipcN:u8 or a number of bytes"),
    ],
)
def test_a_wrong_flag_is_a_sentence(flags, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parsed(DIGITS, *flags)


# The shipped recipes


def test_no_recipe_hides_another():
    assert len(RECIPES) == sum(
        len(method.recipes())
        for method in (
            mtt,
            ftd,
            tesla,
            datm,
            ast,
            dc,
            dm,
            idc,
            infer,
            sre2l,
            rded,
            own,
            at,
            dd,
            evlf,
            frepo,
            krr_st,
            rat,
            rtp,
            ncfm,
            tgdd,
            att,
            mct,
            pad,
            cim,
            with_codecs,
            coded_cells,
        )
    )
    assert all(value.name == name for name, value in RECIPES.items())


@every
def test_name_and_figure(name):
    value = RECIPES[name]
    found = re.fullmatch(r"[a-z0-9_]+/[a-z0-9]+(_[a-z0-9]+)*_ipc(\d+)(_[a-z]+)*", name)
    # that of people's own photographs is called after where they lie
    assert name == "own/folder" or (found and int(found[2]) == value.ipc)
    assert value.cites
    assert value.published is not None or value.note
    if value.published is not None:
        assert 0.01 < value.published.accuracy < 1 and value.published.source
        assert value.published.std is None or 0 < value.published.std < 0.1


@cache
def built(model, shape, classes):
    """A network, once for all recipes that name it."""
    return build_model(model, shape, classes, generator(0))


@every
def test_a_recipe_builds_its_objects(name):
    """Network, and with experts of just the epochs the recipe stores the training step and the
    objective; without experts the objective elsewhere.
    """
    value = RECIPES[name]
    assert value.data.name in DATASETS and value.init.kind in INITIALISERS
    shape = (3, *value.data.size) if value.data.size else SHAPES[value.data.name]
    classes = 4 if name == "own/folder" else NUM_CLASSES[value.data.name]

    def new_model(rng):
        return build_model(value.model, shape, classes, rng)

    network = built(value.model, shape, classes)
    model = FlatModel(network)
    assert model.num_params == len(flatten(network))
    stored = STORED.get(type(value.codec), ["images"])
    if isinstance(value.codec, Reduced) and value.codec.colours is not None:
        stored = ["images", "palettes"]
    values = {"logits": "logits", "centred": "logits", "features": "features"}
    values["weights"] = "weights"
    learned = {*stored, *value.objective.initial()}
    if value.targets.kind in values and not value.targets.relabel:
        learned.add(values[value.targets.kind])
    assert set(value.outer.optim) == (learned if value.outer.steps else set())
    assert all(isinstance(o, OptimConfig) for o in value.outer.optim.values())
    if value.buffer is None:
        return
    if isinstance(value.buffer.step, OwnTraining):
        return  # its networks are built and trained in test_generative
    for teacher in value.teachers or (value.model,):
        of = built(teacher, shape, classes)
        assert (
            teacher.startswith("torchvision/")
            if isinstance(value.buffer.step, Pretrained)
            else value.buffer.step.build(of, value.buffer.epochs)
        )
    if value.teachers or value.targets.kind == "features":
        return  # its objective wants them trained: test_soft_recipes, test_krr_and_frepo
    value.objective.check(value.buffer.kept_epochs())
    if isinstance(value.objective, DistributionMatching):
        return  # its objective wants images: test_expert_distribution
    if isinstance(value.objective, PairedFeatures):
        return  # its objective wants them trained: test_paired
    experts = SimpleNamespace(
        num_experts=value.buffer.num_experts,
        num_params=model.num_params,
        epochs=value.buffer.kept_epochs(),
    )
    objective = value.objective.build(Env(None, new_model, model, experts, torch.device("cpu")))
    assert bool(objective.init(generator(0))) == bool(value.objective.views)
    _, items = fitted(value, shape, classes)
    assert value.objective.batch is None or value.objective.batch <= items * classes


# --take


def test_take_takes_whole_parts():
    for part in PARTS:
        donor = "mtt/cifar100_ipc1" if part == "outer" else "mtt/digits_ipc1"
        taken = take(CIFAR, [f"{part}={donor}"])
        wanted = replace(CIFAR, **{part: getattr(RECIPES[donor], part)})
        assert resolved(taken) == resolved(wanted) and taken.taken == (f"{part}={donor}",)
    with pytest.raises(UserError, match="validation split"):
        # evaluates while distilling, and a published cell holds nothing out
        take(CIFAR, ["outer=mtt/digits_ipc1"])
    both = take(DIGITS, ["buffer=mtt/cifar10_ipc10", "outer=mtt/cifar100_ipc1"])
    wanted = replace(DIGITS, buffer=CIFAR.buffer, outer=RECIPES["mtt/cifar100_ipc1"].outer)
    assert resolved(both) == resolved(wanted)
    assert take(DIGITS, []) == DIGITS
    assert parsed(both, "--buffer.step.lr", "0.3").buffer.step.lr == 0.3


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("bufer=mtt/cifar10_ipc10", "buffer"),
        ("buffer=mtt/cifar10_ipc11", "mtt/cifar10_ipc1"),
        ("buffer", "PART=RECIPE"),
        ("name=x", "part"),
    ],
)
def test_take_of_what_is_not_there(assignment, says):
    with pytest.raises(UserError, match=says):
        take(DIGITS, [assignment])


def test_take_on_the_command_line():
    from ddengine.commands.on_recipe import options_of

    options = options_of(
        "distill",
        [
            "mtt/digits_ipc1",
            "--take",
            "buffer=mtt/cifar10_ipc10",
            "--seed",
            "4",
            "--data.zca",
            "True",
        ],
    )
    assert options.seed == 4
    note, taken = options.recipe.note, ("buffer=mtt/cifar10_ipc10",)
    assert options.recipe == replace(
        DIGITS,
        buffer=CIFAR.buffer,
        data=replace(DIGITS.data, zca=True),
        note=note,
        taken=taken,
        published=None,
    )
    assert "buffer=mtt/cifar10_ipc10" in note and "nothing is published" in note
    assert (
        options_of(
            "distill", ["datm/cifar10_ipc10", "--take", "buffer=ast/cifar10_ipc10"]
        ).recipe.published
        is None
    )


def test_find_names_the_nearest():
    assert find("mtt/digits_ipc1") is DIGITS
    with pytest.raises(UserError, match="mtt/digits_ipc1"):
        find("mtt/digit_ipc1")


# Identity

# What the digest of the images says already, which is beside that of the recipe in the identity of
# a run.
READ = {"data.fit", "data.background", "data.image_column", "data.label_column"}
PROSE = {"cites", "published", "note", "taken", "data.root", "data.download", "data.cache", *READ}
BESIDE = "buffer.seed"  # a run says beside its recipe which experts it follows


def other_value(path, value, kind):
    """A valid value that differs, for one field."""
    if isinstance(value, bool):
        return not value
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return (
            1.0
            if math.isinf(value)
            else value + 1
            if path.endswith(".ratio")
            else value / 2 or 0.25
        )
    if isinstance(value, str):
        return {"buffer.keep": "last", "data.background": "black"}.get(path, value + "x")
    if isinstance(value, tuple):
        return value[1:] or (("flip",) if path.endswith(".always") else ("mlp",))
    if isinstance(value, Mapping):
        return {**value, "more": 0.5}
    assert value is None
    return {
        "data.size": (5, 5),
        "buffer.model": "mlp",
        "targets.epochs": (1, 2),
        "data.classes": (1, 2),
    }.get(path, 7)


# can only be changed with other fields
TOGETHER = (
    "objective.labels",
    "targets.dtype",
    "targets.top",
    "teachers",
    "more_models",
    "scaled_to",
    "budget",
    "evaluation.drop_at",
    "buffer.waypoints",
    "objective.fractional",
    "init.skip",
)


def variants(value, prefix=""):
    """(path, the dataclass with that one leaf changed), for every leaf below a dataclass."""
    hints = typing.get_type_hints(type(value))
    for one in fields(value):
        path, inner = f"{prefix}{one.name}", getattr(value, one.name)
        if is_dataclass(inner):
            changes = variants(inner, f"{path}.")
        elif isinstance(inner, Mapping) and any(is_dataclass(v) for v in inner.values()):
            changes = (
                (p, {**inner, k: v})
                for k, part in inner.items()
                for p, v in variants(part, f"{path}.{k}.")
            )
        else:
            changes = [(path, other_value(path, inner, hints[one.name]))]
        for where, changed in changes:
            if where not in TOGETHER:
                yield where, replace(value, **{one.name: changed})


def test_the_digest_changes_with_every_field_but_prose_and_places():
    soft = replace(DIGITS, targets=TargetConfig(kind="logits", experts="all"))
    seen, known = {}, digest(resolved(soft))
    paths = []
    for path, changed in variants(soft):
        paths.append(path)
        assert changed != soft, path
        found = digest(resolved(changed))
        if path.partition(".")[0] in PROSE or path in (*PROSE, BESIDE):
            assert found == known, path
            continue
        assert found != known, path
        assert found not in seen, (path, seen.get(found))
        seen[found] = path
    target = replace(soft, targets=replace(soft.targets, relabel=True))
    assert digest(resolved(target)) != digest(
        resolved(replace(target, objective=replace(soft.objective, labels="target")))
    )
    shipped = [
        replace(target, targets=replace(target.targets, **change))
        for change in ({}, {"dtype": "float16"}, {"top": 5})
    ]
    taught = [
        replace(RECIPES["sre2l/fashion_mnist_ipc10_small"], teachers=names)
        for names in ((), ("resnet18-bn",), ("resnet18-bn", "vgg11-bn"))
    ]
    drawn = [replace(RECIPES["dm/cifar10_ipc1"], more_models=names) for names in ((), ("mlp",))]
    drawn += [replace(drawn[0], scaled_to="mlp"), replace(drawn[0], budget="30720")]
    drawn += [replace(drawn[0], init=InitConfig(kind="el2n", skip=share)) for share in (0.0, 0.5)]
    assert len({digest(resolved(changed)) for changed in (*shipped, *taught, *drawn)}) == 12
    assert {
        "data.limit",
        "objective.window.high",
        "outer.optim.images.lr",
        "buffer.step.momentum",
        "buffer.augment.scale",
        "ipc",
    } <= set(paths)
    assert len(paths) > 70


def test_late_fields_are_left_out_while_they_hold_their_default():
    """Stored recipes and identities of before equal those of the same recipe now."""

    @dataclass(frozen=True)
    class Part:
        old: int = 1
        late: int = field(default=2, metadata=LATE)
        many: tuple[str, ...] = field(default_factory=tuple, metadata=LATE)

    assert to_dict(Part()) == {"old": 1}
    assert to_dict(Part(late=3)) == {"old": 1, "late": 3}
    assert to_dict(Part(many=("a",))) == {"old": 1, "many": ["a"]}
    assert from_dict(Part, {"old": 1}) == Part()
    assert from_dict(Part, to_dict(Part(2, 3, ("a",)))) == Part(2, 3, ("a",))


def test_what_was_taken_is_stored_and_decides_nothing():
    taken = replace(DIGITS, taken=("buffer=ast/cifar10_ipc10",))
    assert "taken" not in to_dict(DIGITS)
    assert to_dict(taken) == {**to_dict(DIGITS), "taken": ["buffer=ast/cifar10_ipc10"]}
    assert resolved(taken) == resolved(DIGITS)


def test_the_digest_changes_with_the_kind_of_a_part():
    @dataclass(frozen=True, kw_only=True)
    class OtherWindow:
        """The fields of UniformWindow under another name."""

        low: int = 0
        high: int = 4

    window = DIGITS.objective.window
    assert (window.low, window.high) == (0, 4)
    other = replace(DIGITS, objective=replace(DIGITS.objective, window=OtherWindow()))
    assert digest(resolved(other)) != digest(resolved(DIGITS))


def test_the_digest_depends_on_no_order_and_resolving_changes_nothing():
    assert (
        digest({"a": 1, "b": [1, 2]})
        == digest({"b": [1, 2], "a": 1})
        != digest({"a": 1, "b": [2, 1]})
    )
    before = to_dict(DIGITS)
    resolved(DIGITS)
    assert to_dict(DIGITS) == before and digest(before) == digest(to_dict(DIGITS))
