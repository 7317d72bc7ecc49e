"""Parts of recipes taken by dotted path, and every published recipe beside the tables it was
written from.
"""

from dataclasses import replace
from itertools import product

import pytest
from loops import for_each
from published import NUM_CLASSES, SUBSETS

from buffers.flat_step import Gsam
from buffers.smooth import Smooth
from buffers.steps import Sgd
from ddengine.recipe import OptimConfig, Recipe, TargetConfig
from ddengine.system.configs import parametrised, to_dict
from ddengine.system.errors import UserError
from synth import catalogue
from synth.ast import BalancedLoss, IntermediateMatching, WeightNoise
from synth.catalogue import RECIPES, find
from synth.datm import GrowingWindow
from synth.recipes.with_codecs import CODED
from synth.trajectory import TrajectoryMatching, UniformWindow

MTT, FTD, DATM, AST = (
    RECIPES[f"{method}/cifar10_ipc10"] for method in ("mtt", "ftd", "datm", "ast")
)


def take(recipe: Recipe, assignments: list[str]) -> Recipe:
    """What `catalogue.take` gives, with the figure and the prose of the recipe it started from."""
    taken = catalogue.take(recipe, assignments)
    assert taken.taken == (*recipe.taken, *assignments) and taken.published is None
    assert "nothing is published" in taken.note
    return replace(taken, taken=recipe.taken, published=recipe.published, note=recipe.note)


TESLA = RECIPES["tesla/cifar10_ipc1"]
SMALL = {
    method: RECIPES[f"{method}/fashion_mnist_ipc10_small"]
    for method in ("mtt", "ftd", "tesla", "datm", "ast")
}


# Dotted paths

PATHS = [
    (
        "objective.window",
        DATM,
        lambda r: replace(r, objective=replace(r.objective, window=DATM.objective.window)),
    ),
    (
        "objective.window.high",
        FTD,
        lambda r: replace(
            r, objective=replace(r.objective, window=replace(r.objective.window, high=20))
        ),
    ),
    (
        "objective.backprop",
        TESLA,
        lambda r: replace(r, objective=replace(r.objective, backprop="detached")),
    ),
    ("objective.momentum", AST, lambda r: replace(r, objective=replace(r.objective, momentum=0.9))),
    (
        "objective.perturb",
        AST,
        lambda r: replace(r, objective=replace(r.objective, perturb=WeightNoise())),
    ),
    ("buffer.step", FTD, lambda r: replace(r, buffer=replace(r.buffer, step=FTD.buffer.step))),
    ("buffer.step", AST, lambda r: replace(r, buffer=replace(r.buffer, step=Smooth()))),
    (
        "buffer.step.decay",
        SMALL["mtt"],
        lambda r: replace(r, buffer=replace(r.buffer, step=replace(r.buffer.step, decay=1.0))),
    ),
    ("buffer.epochs", DATM, lambda r: replace(r, buffer=replace(r.buffer, epochs=100))),
    ("init", DATM, lambda r: replace(r, init=DATM.init)),
    ("init.kind", AST, lambda r: replace(r, init=replace(r.init, kind="real"))),
    ("targets", DATM, lambda r: replace(r, targets=TargetConfig(kind="logits"))),
    ("outer.max_loss", DATM, lambda r: replace(r, outer=replace(r.outer, max_loss=1.0))),
    ("outer.steps", DATM, lambda r: replace(r, outer=replace(r.outer, steps=10000))),
    ("outer.ema", FTD, lambda r: replace(r, outer=replace(r.outer, ema={"images": 0.9995}))),
    (
        "outer.optim.images",
        AST,
        lambda r: replace(
            r, outer=replace(r.outer, optim={**r.outer.optim, "images": OptimConfig(lr=100)})
        ),
    ),
    (
        "outer.optim.images.lr",
        TESLA,
        lambda r: replace(
            r, outer=replace(r.outer, optim={**r.outer.optim, "images": OptimConfig(lr=1000)})
        ),
    ),
    ("evaluation.batch", DATM, lambda r: replace(r, evaluation=replace(r.evaluation, batch=128))),
    ("data.zca", TESLA, lambda r: replace(r, data=replace(r.data, zca=False))),
]


@pytest.mark.parametrize(
    ("path", "source", "change"), PATHS, ids=[f"{p}-{s.name.split('/')[0]}" for p, s, _ in PATHS]
)
@pytest.mark.parametrize("target", ["mtt/cifar10_ipc50", "mtt/cifar10_ipc10"])
def test_a_path_takes_its_place_and_nothing_else(path, source, change, target):
    """Everything beside it stays the recipe's own."""
    taken = take(RECIPES[target], [f"{path}={source.name}"])
    assert taken == change(RECIPES[target])
    # kinds too: equal windows of two classes would not be
    assert to_dict(taken) == to_dict(change(RECIPES[target]))


def test_paths_into_one_part_add_up():
    """In any order."""
    assignments = [
        "objective.window=datm/cifar10_ipc10",
        "objective.momentum=ast/cifar10_ipc10",
        "objective.perturb=ast/cifar10_ipc10",
    ]
    wanted = replace(
        MTT,
        objective=replace(
            MTT.objective, window=DATM.objective.window, momentum=0.9, perturb=WeightNoise()
        ),
    )
    assert take(MTT, assignments) == take(MTT, assignments[::-1]) == wanted


def test_a_path_after_the_whole_part():
    """Changes what was taken, not what was there."""
    taken = take(
        MTT,
        [
            "objective=datm/cifar10_ipc50",
            "objective.window=ftd/cifar10_ipc10",
            "objective.batch=mtt/cifar10_ipc1",
        ],
    )
    assert taken.objective == replace(
        RECIPES["datm/cifar10_ipc50"].objective, window=UniformWindow(high=20), batch=None
    )
    assert replace(taken, objective=MTT.objective) == MTT


def test_the_whole_part_after_a_path():
    """The last word has it."""
    assert (
        take(MTT, ["objective.window=datm/cifar10_ipc10", "objective=ast/cifar10_ipc10"]).objective
        == AST.objective
    )
    assert (
        take(MTT, ["buffer.step=ast/cifar10_ipc10", "buffer.step=ftd/cifar10_ipc10"]).buffer.step
        == FTD.buffer.step
    )


def test_an_entry_that_the_recipe_lacks():
    """DATM's learned labels alone: what is learned is a mapping, and the entry goes into it."""
    taken = take(MTT, ["targets=datm/cifar10_ipc10", "outer.optim.logits=datm/cifar10_ipc10"])
    assert taken.outer == replace(
        MTT.outer, optim={**MTT.outer.optim, "logits": OptimConfig(lr=2, momentum=0.9)}
    )
    assert taken.targets == DATM.targets


def test_an_average_that_the_recipe_lacks():
    """FTD's running average by its own name, where the recipe has none."""
    assert take(MTT, ["outer.ema.images=ftd/cifar10_ipc10"]).outer == replace(
        MTT.outer, ema={"images": 0.9995}
    )


def test_an_entry_that_both_have():
    """Replaced in its place; the order of the others stays."""
    taken = take(DATM, ["outer.optim.logits=datm/cifar10_ipc500"])
    assert taken.outer.optim["logits"] == OptimConfig(lr=10, momentum=0.9) and list(
        taken.outer.optim
    ) == list(DATM.outer.optim)


def test_empty_slots_go_both_ways():
    """A slot that is None in the source empties it, as the method's own documentation says; a
    filled one fills it.
    """
    ast = RECIPES["ast/cifar100_ipc1_readme"]
    assert all(
        getattr(ast.objective, slot) is not None for slot in ("perturb", "loss_scale", "milestones")
    )
    for slot in ("perturb", "loss_scale", "milestones"):
        without = take(ast, [f"objective.{slot}=mtt/cifar10_ipc10"])
        assert without == replace(ast, objective=replace(ast.objective, **{slot: None}))
        assert take(without, [f"objective.{slot}=ast/cifar100_ipc1_readme"]) == ast
        parametrised(without)  # flags of exactly the parts that are left


def test_recipes_that_are_taken_from_stay_as_they_are():
    """Mappings are not shared."""
    before = {name: to_dict(RECIPES[name]) for name in (MTT.name, DATM.name, FTD.name)}
    taken = take(
        DATM,
        [
            "outer.optim.images=mtt/cifar10_ipc50",
            "outer.ema=ftd/cifar10_ipc10",
            "objective=mtt/cifar10_ipc10",
        ],
    )
    assert taken.outer.optim["images"].lr == 1000
    assert {name: to_dict(RECIPES[name]) for name in before} == before


# What is refused


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("objective.windw=datm/cifar10_ipc10", r"'objective\.windw'.*objective\.window"),
        (
            "objective.window.hihg=ftd/cifar10_ipc10",
            r"'objective\.window\.hihg'.*objective\.window\.high",
        ),
        # the recipe's own window has none
        (
            "objective.window.grow=datm/cifar10_ipc10",
            r"'objective\.window\.grow'.*objective\.window\.",
        ),
        ("outer.optim.pixels=ftd/cifar10_ipc10", r"'outer\.optim\.pixels'.*outer\.optim\.images"),
        # of GSAM, and the recipe's experts are plain
        ("buffer.step.alpha=ftd/cifar10_ipc10", r"'buffer\.step\.alpha'"),
        ("objectiv.window=datm/cifar10_ipc10", "objective"),
        ("name=datm/cifar10_ipc10", "part"),
        ("ipc=datm/cifar10_ipc10", "part"),
        ("objective.=datm/cifar10_ipc10", r"'objective\.'"),
        (".window=datm/cifar10_ipc10", "part"),
        ("objective.lr.x=datm/cifar10_ipc10", r"'objective\.lr\.x'"),
        ("objective.window.high.bit=ftd/cifar10_ipc10", r"'objective\.window\.high\.bit'"),
        ("objective.window=datm/cifar10_ipc11", "datm/cifar10_ipc10"),
        ("objective.window=", "PART=RECIPE"),
        ("objective.window", "PART=RECIPE"),
        ("=datm/cifar10_ipc10", "part"),
        (
            "objective.perturb.alpha=mtt/cifar10_ipc50",
            r"objective\.perturb is empty in mtt/cifar10_ipc50",
        ),
        ("objective.perturb.alpha=ast/cifar10_ipc10", r"objective\.perturb is empty in mtt/"),
    ],
)
def test_unknown_paths_are_a_sentence(assignment, says):
    """Naming the path as it was given and, where there is one, the nearest that exists."""
    with pytest.raises(UserError, match=says):
        take(MTT, [assignment])


@pytest.mark.parametrize(
    ("assignment", "valid"),
    [
        ("outer.opt.images=ftd/cifar10_ipc10", "outer.optim"),
        ("objective.windw.high=ftd/cifar10_ipc10", "objective.window"),
    ],
)
def test_suggested_paths_exist(assignment, valid):
    """A wrong name in the middle: the sentence must not suggest paths that go through it."""
    with pytest.raises(UserError) as error:
        take(MTT, [assignment])
    wrong = assignment.partition("=")[0].rpartition(".")[0]
    suggested = str(error.value).partition("nearest:")[2]
    assert valid in suggested and f"{wrong}." not in suggested


@pytest.mark.parametrize(
    ("recipe", "assignments", "says"),
    [
        (DATM, ["targets=mtt/cifar10_ipc10"], r"outer\.optim.*'logits'.*targets\.kind"),
        (MTT, ["outer=datm/cifar10_ipc10"], r"outer\.optim.*'logits'.*targets\.kind"),
        (DATM, ["targets=tesla/imagenet_ipc1"], r"targets\.relabel.*outer\.optim"),
        (
            TESLA,
            ["outer=mtt/fashion_mnist_ipc10_small"],
            r"outer\.evaluate_every.*data\.validation",
        ),
    ],
)
def test_parts_that_clash_are_refused_together(recipe, assignments, says):
    """With both names in the sentence."""
    with pytest.raises(UserError, match=says):
        take(recipe, assignments)


def test_parts_that_fit_only_together_are_checked_together():
    """Each of the two alone is refused above."""
    taken = take(MTT, ["outer=datm/cifar10_ipc10", "targets=datm/cifar10_ipc10"])
    assert (taken.outer, taken.targets, taken.objective) == (
        DATM.outer,
        DATM.targets,
        MTT.objective,
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "class", "relabel": True}, r"targets\.relabel.*targets\.kind"),
        ({"kind": "logits", "epochs": (4, 3)}, r"targets\.epochs.*4, 3"),
        ({"kind": "logits", "epochs": (-1, 3)}, r"targets\.epochs.*-1, 3"),
    ],
)
def test_targets_that_make_no_sense(fields, says):
    """Refused on construction."""
    with pytest.raises(UserError, match=says):
        TargetConfig(**fields)


def test_taken_parts_have_flags():
    """On the command line: the slot's own flag exists after it was taken, and only then."""
    from ddengine.commands.on_recipe import options_of

    args = ["mtt/cifar10_ipc10", "--objective.perturb.alpha", "0.5"]
    with pytest.raises(UserError, match=r"objective\.perturb\.alpha"):
        options_of("distill", args)
    options = options_of(
        "distill",
        [
            *args,
            "--take",
            "objective.perturb=ast/cifar10_ipc10",
            "--take=buffer.step=ftd/cifar10_ipc10",
        ],
    )
    assert (
        options.recipe.objective == replace(MTT.objective, perturb=WeightNoise(alpha=0.5))
        and options.recipe.buffer.step == FTD.buffer.step
    )
    options = options_of(
        "distill",
        ["datm/cifar10_ipc10", "--outer.optim.logits.lr", "7", "--targets.epochs", "90", "100"],
    )
    assert options.recipe.outer.optim["logits"] == OptimConfig(
        lr=7.0, momentum=0.9
    ) and options.recipe.targets.epochs == (90, 100)
    options = options_of(
        "buffer", ["ftd/cifar10_ipc10", "--buffer.step.sgd.lr", "0.5", "--buffer.step.alpha", "1"]
    )
    assert options.recipe.buffer.step == Gsam(sgd=Sgd(lr=0.5), rho=0.01, alpha=1.0)


@pytest.mark.parametrize("family", ["ftd", "ast", "datm"])
def test_a_wrong_rate_of_the_inner_optimiser_says_where_it_is(family):
    """Their experts' rate is `buffer.step.sgd.lr`; a flag `buffer.step.lr` does not exist."""
    from ddengine.commands.on_recipe import options_of

    with pytest.raises(UserError, match=r"buffer\.step\.sgd.*lr.*-1"):
        options_of("buffer", [SMALL[family].name, "--buffer.step.sgd.lr", "-1"])


# The small recipes: MTT's cell with exactly the parts that the method is


@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("ftd", ["buffer", "outer"]),
        ("tesla", ["objective"]),
        ("datm", ["buffer", "init", "targets", "objective", "outer"]),
        ("ast", ["buffer", "init", "objective", "outer"]),
    ],
)
def test_small_recipes_differ_from_mtt_in_their_parts_only(family, parts, ipc):
    """So that a row of one table compares methods and nothing else: taking those parts from MTT's
    gives MTT's.
    """
    ours, base = (
        RECIPES[f"{family}/fashion_mnist_ipc{ipc}_small"],
        RECIPES[f"mtt/fashion_mnist_ipc{ipc}_small"],
    )
    back = take(ours, [f"{part}={base.name}" for part in parts])
    assert replace(back, name=base.name, cites=base.cites) == base
    for part in parts:
        assert getattr(ours, part) != getattr(base, part)
    plain = {"ftd": lambda b: b.step.sgd, "datm": lambda b: b.step.sgd}.get(family)
    if plain is not None:
        assert (
            plain(ours.buffer) == base.buffer.step
            and replace(ours.buffer, step=base.buffer.step) == base.buffer
        )
    assert (
        ours.objective.expert_epochs == base.objective.expert_epochs
        and ours.objective.inner_steps == base.objective.inner_steps
    )
    assert (
        ours.objective.window.last == base.objective.window.last
        and ours.outer.steps == base.outer.steps
    )
    assert ours.outer.optim["images"] == base.outer.optim["images"]


# The published cells, value by value

ALL = None
DEPTH = {"cifar10": 3, "cifar100": 3, "tiny_imagenet": 4, "imagenet": 4} | dict.fromkeys(SUBSETS, 5)
SIDE = {
    "cifar10": None,
    "cifar100": None,
    "tiny_imagenet": None,
    "imagenet": (64, 64),
} | dict.fromkeys(SUBSETS, (128, 128))

# name: N, M, T+, batch, ZCA, rate of pixels, of the rate, starting rate, figure
MTT_CELLS = {
    "cifar10_ipc1":        (50, 2, 2, ALL, True, 100, 1e-7, 0.01, (46.3, 0.8)),
    "cifar10_ipc10":       (30, 2, 20, ALL, True, 100, 1e-5, 0.001, (65.3, 0.7)),
    "cifar10_ipc50":       (30, 2, 40, ALL, False, 1000, 1e-5, 0.001, (71.6, 0.2)),
    "cifar100_ipc1":       (20, 3, 20, ALL, True, 1000, 1e-5, 0.01, (24.3, 0.3)),
    "cifar100_ipc10":      (20, 2, 20, ALL, False, 1000, 1e-5, 0.01, (40.1, 0.4)),
    "cifar100_ipc50":      (80, 2, 40, 125, True, 1000, 1e-5, 0.01, (47.7, 0.2)),
    "tiny_imagenet_ipc1":  (10, 2, 10, ALL, False, 1e4, 1e-4, 0.01, (8.8, 0.3)),
    "tiny_imagenet_ipc10": (20, 2, 40, 200, False, 1e4, 1e-4, 0.01, (23.2, 0.2)),
    "tiny_imagenet_ipc50": (20, 2, 40, 300, False, 1e4, 1e-4, 0.01, (28.0, 0.3)),
    "imagenette_ipc1":     (20, 2, 10, ALL, False, 1e5, 1e-6, 0.01, (47.7, 0.9)),
    "imagenette_ipc10":    (20, 2, 10, 20, False, 1e5, 1e-6, 0.01, (63.0, 1.3)),
    "imagewoof_ipc1":      (20, 2, 10, ALL, False, 1e5, 1e-6, 0.01, (28.6, 0.8)),
    "imagewoof_ipc10":     (20, 2, 10, 20, False, 1e5, 1e-6, 0.01, (35.8, 1.8)),
    "imagefruit_ipc1":     (20, 2, 10, ALL, False, 1e5, 1e-6, 0.01, (26.6, 0.8)),
    "imagefruit_ipc10":    (20, 2, 10, 20, False, 1e5, 1e-6, 0.01, (40.3, 1.3)),
    "imagemeow_ipc1":      (20, 2, 10, ALL, False, 1e5, 1e-6, 0.01, (30.7, 1.6)),
    "imagemeow_ipc10":     (20, 2, 10, 20, False, 1e5, 1e-6, 0.01, (40.4, 2.2)),
    "imagesquawk_ipc1":    (20, 2, 10, ALL, False, 1e5, 1e-6, 0.01, None),  # known from memory only
    "imagesquawk_ipc10":   (20, 2, 10, 20, False, 1e5, 1e-6, 0.01, (52.3, 1.0)),
    "imageyellow_ipc1":    (20, 2, 10, ALL, False, 1e5, 1e-6, 0.01, None),
    "imageyellow_ipc10":   (20, 2, 10, 20, False, 1e5, 1e-6, 0.01, (60.0, 1.5)),
}  # fmt: skip

TESLA_CELLS = {
    "cifar10_ipc1":   (50, 2, 5, ALL, False, 1000, 1e-7, 0.01, (48.5, 0.8)),
    "cifar100_ipc50": (80, 2, 40, 125, True, 1000, 1e-5, 0.01, (47.9, 0.3)),
    "imagenet_ipc1":  (10, 3, 10, 100, False, 1e4, 1e-4, 0.01, (7.7, 0.2)),
}  # fmt: skip

# as above, with alpha and the decay of the average before the figure
FTD_CELLS = {
    "cifar10_ipc1":        (50, 2, 2, ALL, True, 100, 1e-7, 0.01, 0.3, 0.9999, (46.8, 0.3)),
    "cifar10_ipc10":       (30, 2, 20, ALL, True, 100, 1e-5, 0.001, 0.3, 0.9995, (66.6, 0.3)),
    "cifar10_ipc50":       (30, 2, 40, ALL, False, 1000, 1e-5, 0.01, 1.0, 0.999, (73.8, 0.2)),
    "cifar100_ipc1":       (40, 3, 20, ALL, True, 1000, 1e-5, 0.01, 1.0, 0.9995, (25.2, 0.2)),
    "cifar100_ipc10":      (20, 2, 40, ALL, True, 1000, 1e-5, 0.01, 1.0, 0.9995, (43.4, 0.3)),
    "cifar100_ipc50":      (80, 2, 40, 1000, True, 1000, 1e-5, 0.01, 1.0, 0.999, (50.7, 0.3)),
    "tiny_imagenet_ipc1":  (30, 2, 10, ALL, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (10.4, 0.3)),
    "tiny_imagenet_ipc10": (20, 2, 40, 500, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (24.5, 0.2)),
    "imagenette_ipc1":     (20, 2, 10, 64, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (52.2, 1.0)),
    "imagenette_ipc10":    (20, 2, 10, 64, False, 1e4, 1e-4, 0.001, 1.0, 0.999, (67.7, 0.7)),
    "imagewoof_ipc1":      (20, 2, 10, 64, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (30.1, 1.0)),
    "imagewoof_ipc10":     (20, 2, 10, 64, False, 1e4, 1e-4, 0.001, 1.0, 0.999, (38.8, 1.4)),
    "imagefruit_ipc1":     (20, 2, 10, 64, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (29.1, 0.9)),
    "imagefruit_ipc10":    (20, 2, 10, 64, False, 1e4, 1e-4, 0.001, 1.0, 0.999, (44.9, 1.5)),
    "imagemeow_ipc1":      (20, 2, 10, 64, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (33.8, 1.5)),
    "imagemeow_ipc10":     (20, 2, 10, 64, False, 1e4, 1e-4, 0.001, 1.0, 0.999, (43.3, 0.6)),
    "imagesquawk_ipc1":    (20, 2, 10, 64, False, 1e4, 1e-4, 0.01, 1.0, 0.999, None),
    "imagesquawk_ipc10":   (20, 2, 10, 64, False, 1e4, 1e-4, 0.001, 1.0, 0.999, None),
    "imageyellow_ipc1":    (20, 2, 10, 64, False, 1e4, 1e-4, 0.01, 1.0, 0.999, None),
    "imageyellow_ipc10":   (20, 2, 10, 64, False, 1e4, 1e-4, 0.001, 1.0, 0.999, None),
}  # fmt: skip

# name: N, M, T-, T, T+, steps of growth, batch, rates of pixels, rate and labels, gate, initial
# images, figure; ZCA and rate 0.01 everywhere
DATM_CELLS = {
    "cifar10_ipc1":        (80, 2, 0, None, 4, None, 10, 100, 1e-7, 5, 1.1, "correct", (46.9, 0.5)),
    "cifar10_ipc10":       (80, 2, 0, 10, 20, 1000, 100, 100, 1e-5, 2, 1.0, "correct", (66.8, 0.2)),
    "cifar10_ipc50":       (80, 2, 0, 20, 40, 2000, 500, 1000, 1e-5, 2, 1.0, "correct", (76.1, 0.3)),
    "cifar10_ipc500":      (40, 2, 40, None, 60, None, 1000, 50, 1e-5, 10, 1.0, "correct", (83.5, 0.2)),
    "cifar10_ipc1000":     (100, 2, 40, None, 60, None, 1000, 50, 1e-5, 10, 1.0, "correct", (85.5, 0.4)),
    "cifar100_ipc1":       (40, 3, 0, 10, 20, 1000, 1000, 1000, 1e-5, 10, 1.0, "correct", (27.9, 0.2)),
    "cifar100_ipc10":      (80, 2, 0, 30, 50, 2000, 1000, 1000, 1e-5, 10, 1.0, "correct", (47.2, 0.4)),
    "cifar100_ipc50":      (80, 2, 20, None, 70, None, 1000, 1000, 1e-5, 10, 1.0, "real", (55.0, 0.2)),
    "cifar100_ipc100":     (80, 2, 30, None, 70, None, 1000, 50, 1e-5, 10, 1.0, "correct", (57.5, 0.2)),
    "tiny_imagenet_ipc1":  (40, 2, 0, 15, 20, 2000, 1000, 1e4, 1e-4, 10, 1.0, "correct", (17.1, 0.3)),
    "tiny_imagenet_ipc10": (40, 2, 10, None, 50, None, 500, 100, 1e-4, 10, 1.0, "correct", (31.1, 0.3)),
    "tiny_imagenet_ipc50": (20, 2, 40, None, 70, None, 1000, 100, 1e-4, 10, 1.0, "correct", (39.7, 0.3)),
}  # fmt: skip

# name: N, M, T+, batch, ZCA, rates of pixels and rate, (representative, perturb, middle, balanced),
# epochs of the evaluation
AST_CELLS = {
    "cifar10_ipc10":        (30, 2, 20, ALL, True, 100, 1e-6, (False, True, True, True), 1000),
    "cifar100_ipc1":        (40, 3, 15, ALL, False, 100, 1e-5, (True, True, True, False), 300),
    "cifar100_ipc1_readme": (20, 3, 20, ALL, True, 1000, 1e-5, (True, True, True, True), 1000),
    "cifar100_ipc10":       (20, 2, 30, 128, False, 1000, 1e-5, (True, True, True, False), 300),
    "cifar100_ipc50":       (80, 2, 40, 700, False, 1000, 1e-5, (True, False, False, False), 1000),
    "tiny_imagenet_ipc1":   (10, 2, 10, ALL, False, 1e4, 1e-4, (False, True, True, False), 1000),
}  # fmt: skip

OWN = {f"mtt/{name}" for ipc in (1, 10) for name in (f"digits_ipc{ipc}", f"cifar10_ipc{ipc}_small")}
OWN |= {"mtt/fashion_mnist_ipc1_quantised_small", "mtt/fashion_mnist_ipc10_mixed_small"}
OWN |= {f"mtt/fashion_mnist_ipc1_{name}_small" for name, _, _ in CODED}
OWN |= {f"datm/cifar10_ipc{ipc}_quantised" for ipc in (1, 10)}
OWN |= {f"{m}/fashion_mnist_ipc{ipc}_small" for m in SMALL for ipc in (1, 10)}


def test_every_recipe_is_in_a_table():
    """Of this file, or one of this project's own; TESLA's cells also with the exact gradient."""
    tables = {
        "mtt": MTT_CELLS,
        "ftd": FTD_CELLS,
        "tesla": TESLA_CELLS,
        "datm": DATM_CELLS,
        "ast": AST_CELLS,
    }
    known = (
        OWN
        | {f"{method}/{name}" for method, table in tables.items() for name in table}
        | {f"tesla/{name}_exact" for name in TESLA_CELLS}
    )
    assert {name for name in RECIPES if name.split("/")[0] in tables} == known


def check_cell(
    name,
    ipc_name,
    steps,
    epochs,
    high,
    batch,
    zca,
    pixels,
    lr_lr,
    start,
    figure,
    *,
    outer_steps,
    low=0,
):
    """What all cells have in common; returns the recipe."""
    recipe = find(name)
    dataset, _, ipc = ipc_name.partition("_ipc")
    ipc = int(ipc.split("_")[0])
    assert (recipe.name, recipe.data.name, recipe.ipc) == (name, dataset, ipc)
    assert (
        recipe.model == f"convnet-d{DEPTH[dataset]}-w128-in" and recipe.data.size == SIDE[dataset]
    )
    assert recipe.data.zca is zca and recipe.data.limit is None and recipe.data.validation == 0
    objective = recipe.objective
    images = ipc * NUM_CLASSES[dataset]
    assert objective.batch is None or objective.batch <= images
    # some tables print a batch larger than the set
    assert (objective.batch or images) == min(batch or images, images)
    assert (objective.inner_steps, objective.expert_epochs, objective.lr) == (steps, epochs, start)
    assert (objective.window.low, objective.window.high, objective.window.last) == (
        low,
        high,
        high - 1,
    )
    assert objective.augment.ops == ("color", "crop", "cutout", "flip", "scale", "rotate")
    assert recipe.outer.optim["images"] == OptimConfig(
        lr=pixels, momentum=0.5
    ) and recipe.outer.optim["lr"] == OptimConfig(lr=lr_lr, momentum=0.5)
    assert recipe.outer.steps == outer_steps
    assert (
        recipe.buffer.batch == 256
        and recipe.buffer.keep == "all"
        and recipe.buffer.dtype == "float32"
        and recipe.buffer.model is None
    )
    if figure is None:
        assert recipe.published is None and "No published figure" in recipe.note
    else:
        assert recipe.published is not None
        assert (recipe.published.accuracy, recipe.published.std) == (
            pytest.approx(figure[0] / 100),
            pytest.approx(figure[1] / 100),
        )
    return recipe


def plain_parts(recipe, *but):
    """The parts a method does not have are those of plain trajectory matching."""
    parts = {
        "perturb": None,
        "loss_scale": None,
        "milestones": None,
        "momentum": 0.0,
        "backprop": "auto",
        "labels": "stored",
    }
    assert {k: getattr(recipe.objective, k) for k in parts if k not in but} == {
        k: v for k, v in parts.items() if k not in but
    }
    assert "init" in but or recipe.init.kind == "real"
    assert "targets" in but or recipe.targets == TargetConfig()
    assert "ema" in but or dict(recipe.outer.ema) == {}
    assert "gate" in but or recipe.outer.max_loss == float("inf")
    assert "logits" in but or set(recipe.outer.optim) == {"images", "lr"}


@for_each("cell", MTT_CELLS)
def test_mtt(cell):
    """Sgd 0.01 for 50 epochs; MTT's protocol."""
    recipe = check_cell(f"mtt/{cell}", cell, *MTT_CELLS[cell], outer_steps=5000)
    plain_parts(recipe)
    assert recipe.buffer.step == Sgd(lr=0.01) and (
        recipe.buffer.epochs,
        recipe.buffer.num_experts,
    ) == (50, 100)
    assert (
        recipe.evaluation.protocol,
        recipe.evaluation.num_networks,
        recipe.evaluation.epochs,
    ) == ("mtt", 5, 1000)


@for_each("cell, variant", product(TESLA_CELLS, ("", "_exact")))
def test_tesla(cell, variant):
    """The truncated gradient, 10000 steps, 3 networks; labels of the target for ImageNet-1K, whose
    experts are 50.
    """
    recipe = find(f"tesla/{cell}")
    if variant:
        exact = find(f"tesla/{cell}_exact")
        assert exact.published is None and "nothing is published" in exact.note
        shared = {"name": exact.name, "note": exact.note, "published": None}
        assert exact == replace(
            recipe, **shared, objective=replace(recipe.objective, backprop="replay")
        )
        return
    check_cell(f"tesla/{cell}", cell, *TESLA_CELLS[cell], outer_steps=10000)
    soft = cell.startswith("imagenet")
    plain_parts(recipe, "backprop", *(["labels", "targets"] if soft else []))
    assert recipe.objective.backprop == "detached" and recipe.buffer.step == Sgd(lr=0.01)
    assert (recipe.buffer.epochs, recipe.buffer.num_experts) == (50, 50 if soft else 100)
    assert (
        recipe.evaluation.protocol,
        recipe.evaluation.num_networks,
        recipe.evaluation.epochs,
    ) == ("mtt", 3, 1000)
    if soft:  # every epoch at which a segment can end: starts 0 to 9, three epochs on
        assert recipe.objective.labels == "target"
        assert recipe.targets == TargetConfig(
            kind="logits", experts="all", epochs=(3, 12), relabel=True
        )


@for_each("cell", FTD_CELLS)
def test_ftd(cell):
    """GSAM with rho 0.01 and the cell's alpha, 50 epochs; the average of the images; MTT's
    protocol.
    """
    *common, alpha, decay, figure = FTD_CELLS[cell]
    recipe = check_cell(f"ftd/{cell}", cell, *common, figure, outer_steps=5000)
    plain_parts(recipe, "ema")
    assert recipe.buffer.step == Gsam(sgd=Sgd(lr=0.01), rho=0.01, alpha=alpha, adaptive=True)
    assert (recipe.buffer.epochs, recipe.buffer.num_experts) == (50, 100)
    assert dict(recipe.outer.ema) == {"images": decay}
    assert (
        recipe.evaluation.protocol,
        recipe.evaluation.num_networks,
        recipe.evaluation.epochs,
    ) == ("mtt", 5, 1000)


@for_each("cell", DATM_CELLS)
def test_datm(cell):
    """GSAM with alpha 0.3 for 100 epochs, window, learned labels with momentum 0.9, gate, batches
    of 128 in the evaluation.
    """
    steps, epochs, low, first, high, grow, batch, pixels, lr_lr, lr_labels, gate, start, figure = (
        DATM_CELLS[cell]
    )
    recipe = check_cell(
        f"datm/{cell}",
        cell,
        steps,
        epochs,
        high,
        batch,
        True,
        pixels,
        lr_lr,
        0.01,
        figure,
        outer_steps=10000,
        low=low,
    )
    plain_parts(recipe, "init", "targets", "gate", "logits")
    window = (
        UniformWindow(low=low, high=high)
        if first is None
        else GrowingWindow(low=low, first=first, high=high, grow=grow)
    )
    assert recipe.objective.window == window and type(recipe.objective.window) is type(window)
    assert (
        dict(recipe.outer.optim)["logits"] == OptimConfig(lr=lr_labels, momentum=0.9)
        and len(recipe.outer.optim) == 3
    )
    assert recipe.outer.max_loss == gate and recipe.init.kind == start
    assert recipe.targets == TargetConfig(
        kind="logits", experts="correct" if start == "correct" else "first"
    )
    assert recipe.buffer.step == Gsam(sgd=Sgd(lr=0.01), rho=0.01, alpha=0.3, adaptive=True)
    assert (recipe.buffer.epochs, recipe.buffer.num_experts) == (100, 100)
    assert (
        recipe.evaluation.protocol,
        recipe.evaluation.batch,
        recipe.evaluation.weight_decay,
    ) == ("datm", 128, 5e-4)
    if first is not None:  # one more start epoch every so many steps, all of them in the end
        ends = [window(step)[1] for step in range(0, 10000, 10)]
        assert (
            ends[0] == first and ends[-1] == high and window(grow)[1] == high > window(grow - 1)[1]
        )
        assert (
            grow // (high - first) in (100, 400) and window(grow // (high - first))[1] == first + 1
        )


@for_each("cell", AST_CELLS)
def test_ast(cell):
    """The smooth step, the heavy-ball student, the three slots by the cell's flags; no published
    figure was found.
    """
    (
        steps,
        epochs,
        high,
        batch,
        zca,
        pixels,
        lr_lr,
        (representative, perturb, middle, balanced),
        eval_epochs,
    ) = AST_CELLS[cell]
    recipe = check_cell(
        f"ast/{cell}",
        cell,
        steps,
        epochs,
        high,
        batch,
        zca,
        pixels,
        lr_lr,
        0.01,
        None,
        outer_steps=5000,
    )
    plain_parts(recipe, "perturb", "loss_scale", "milestones", "momentum", "init")
    assert recipe.objective.momentum == 0.9
    assert recipe.objective.perturb == (WeightNoise(alpha=1.0) if perturb else None)
    assert recipe.objective.milestones == (
        IntermediateMatching(weights="equal") if middle else None
    )
    assert recipe.objective.loss_scale == (BalancedLoss() if balanced else None)
    assert recipe.init.kind == ("representative" if representative else "real")
    assert recipe.buffer.step == Smooth(
        sgd=Sgd(lr=0.003, momentum=0.9, weight_decay=1e-3, decay=0.6),
        clip=0.5,
        clip_epochs=10,
        penalty=2.0,
    )
    assert (recipe.buffer.epochs, recipe.buffer.num_experts) == (50, 100)
    evaluation = recipe.evaluation
    assert (evaluation.protocol, evaluation.epochs, evaluation.weight_decay) == (
        "ast",
        eval_epochs,
        1e-3,
    )
    assert (evaluation.lr_drop, evaluation.momentum, evaluation.momentum_after) == (0.5, 0.9, 0.8)


def test_the_last_segment_ends_within_the_experts():
    """Start plus length is at most the epochs trained, in every recipe, and the labels' epochs are
    trained too.
    """
    for recipe in (r for r in RECIPES.values() if isinstance(r.objective, TrajectoryMatching)):
        assert (
            recipe.objective.window.last + recipe.objective.expert_epochs <= recipe.buffer.epochs
        ), recipe.name
        assert recipe.targets.epochs is None or recipe.targets.epochs[1] <= recipe.buffer.epochs
