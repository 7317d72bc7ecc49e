"""The shipped load.py: its augmentation, mixing and training against the engine's, and the protocol
that goes with a set.
"""

import importlib.util
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, new_model, tiny_data

from ddengine.artefact import eight_bit, image_folder, results
from ddengine.artefact import folder as folders
from ddengine.data import Preprocess
from ddengine.data.preprocess import fit_zca
from ddengine.evaluation import protocol
from ddengine.learning import augment, losses, training
from ddengine.learning.augment import CutMix, MixUp
from ddengine.recipe import DSA_OPS, OPS, AugmentConfig, EvalConfig
from ddengine.sets import codec
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import Logits
from ddengine.system import files
from ddengine.system.configs import to_dict
from ddengine.system.rng import generator
from synth.recipes.protocols import PROTOCOLS

SHAPES = ((1, 8, 8), (3, 32, 32), (3, 9, 14), (1, 28, 28), (2, 5, 4))
MODEL = "convnet-d1-w4-in"
# Settings that differ from the usual ones, and what each operation is tried with.
ODD = AugmentConfig(
    brightness=0.4,
    saturation=1.3,
    contrast=0.8,
    crop=0.3,
    cutout=0.35,
    flip=0.8,
    scale=1.5,
    rotate=40.0,
    roll=3,
    area=0.3,
    ratio=2.0,
    patches=3,
)
AUGMENTS = [
    *(replace(of, ops=(op,), always=()) for of in (AugmentConfig(), ODD) for op in OPS),
    *(replace(AugmentConfig(), ops=ops, always=always) for ops, always in (
        (DSA_OPS, ()), ((), ("crop", "flip")), (("crop", "scale", "rotate"), ("flip", "color")), (("cutout",), ("cutout", "flip")),
        (OPS, ("resized_crop", "shuffle", "cutout", "roll")), ((), ()),
    )),
]  # fmt: skip


def images_of(shape, num=12, dtype=torch.float64):
    """Pixels with values in [0, 1], as different as those of pictures."""
    return torch.rand(num, *shape, generator=generator(0, *map(str, shape)), dtype=dtype)


def module_of(folder: Path):
    """The load.py of a folder, imported."""
    spec = importlib.util.spec_from_file_location(
        f"load_{abs(hash(str(folder)))}", folder / "load.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_of(shape=(1, 8, 8), num_classes=3, ipc=2, *, soft=False, lr=None, whitened=False, top=None):
    """A set of random pixels that are shipped as bytes."""
    pixels = images_of(shape, num_classes * ipc, torch.float32)
    many = images_of(shape, 40, torch.float32)
    preprocess = (
        fit_zca(many)
        if whitened
        else Preprocess(torch.full(shape[:1], 0.4), torch.full(shape[:1], 0.3))
    )
    tensors = {"images": codec.as_bytes(pixels)} | ({} if lr is None else {"lr": torch.tensor(lr)})
    classes = torch.arange(num_classes).repeat_interleave(ipc)
    names = tuple(f"class {c}" for c in range(num_classes))
    syn = SyntheticSet(tensors, classes, names, codec.Pixels(), preprocess, space="pixel")
    return (
        syn.with_labels(3 * torch.randn(len(syn), num_classes, generator=generator(1)), top=top)
        if soft
        else syn
    )


def shipped(folder: Path, syn: SyntheticSet, config: EvalConfig, model: str = MODEL):
    """The load.py of a set that is saved with this protocol."""
    folders.save(syn, folder, {"recipe": {"model": model, "evaluation": to_dict(config)}})
    return module_of(folder)


# Augmentation


def test_the_augmentation_is_ours_for_the_same_draw(tmp_path):
    """Every operation alone, usual and unusual settings, mixtures with what is always applied: in
    float64, several shapes, whitened too.
    """
    for i, config in enumerate(AUGMENTS):
        module = shipped(tmp_path / str(i), set_of(), EvalConfig(protocol="x", augment=config))
        settings = module.load()[2]["protocol"]["augment"]
        for shape in SHAPES:
            if min(shape[1:]) < config.patches:
                continue
            pixels = images_of(shape)
            seen = [
                Preprocess(
                    torch.full(shape[:1], 0.4).double(), torch.full(shape[:1], 0.3).double()
                ).forward(pixels)
            ]
            if shape == (1, 8, 8):
                seen.append(fit_zca(images_of(shape, 100)).forward(pixels))
            for images, repeat in itertools.product(seen, range(2)):
                draw = augment.sample(config, len(images), generator(i, repeat))
                ours = augment.apply(config, images, draw)
                if not config.any:
                    assert torch.equal(module.load()[2]["augment"](images), images)
                    continue
                name = None if draw.ops[0] == "none" else draw.ops[0]
                always = torch.zeros(len(images), 0, 3) if draw.always is None else draw.always[0]
                theirs = module.apply(
                    images, settings, (name, draw.uniform[0].expand(len(images), -1), always)
                )
                assert theirs.dtype == torch.float64 and torch.allclose(theirs, ours, atol=1e-9), (
                    config,
                    shape,
                    draw.ops,
                )
                assert (
                    repeat
                    or not torch.equal(theirs, images)
                    or config.ops + config.always in (("flip",), ("roll",), ("shuffle",))
                ), config


def test_the_draws_are_ours_for_the_same_generator(tmp_path):
    """So operations come equally often and parameters have our ranges."""
    for i, config in enumerate(c for c in AUGMENTS if c.ops):
        module = shipped(tmp_path / str(i), set_of(), EvalConfig(protocol="x", augment=config))
        settings = module.load()[2]["protocol"]["augment"]
        for seed in range(5):
            name, numbers, always = module.sample(7, settings, generator(seed))
            ours = augment.sample(config, 7, generator(seed))
            assert (name,) == ours.ops and torch.equal(numbers, ours.uniform[0])
            assert torch.equal(
                always,
                torch.zeros(7, 0, numbers.shape[1]) if ours.always is None else ours.always[0],
            )


def test_info_augments_a_batch_and_follows_its_generator(tmp_path):
    module = shipped(tmp_path / "set", set_of(), PROTOCOLS["fast"])
    images, _, info = module.load()
    one, again, other = (
        info["augment"](images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == images.shape
    torch.manual_seed(1)
    assert torch.equal(info["augment"](images), one)  # without one, torch's own numbers


# Mixing


def test_mixing_is_ours_for_the_same_draw(tmp_path, monkeypatch):
    images = images_of((3, 9, 14))
    module = shipped(tmp_path / "cutmix", set_of(), PROTOCOLS["idc"])
    trained = module.load()[2]["protocol"]
    whole = 0
    for seed in range(40):
        draw = augment.sample_cutmix(1.0, 12, (9, 14), generator(seed))
        assert isinstance(draw, CutMix)
        top, bottom, left, right = draw.box
        monkeypatch.setattr(
            module,
            "sample_cutmix",
            lambda *args, d=draw, b=(slice(top, bottom), slice(left, right)): (
                d.partner,
                d.share,
                b,
            ),
        )
        mixed, partner, share = module.mixed_by(images, trained, None)
        assert (
            torch.equal(mixed, augment.mix(images, draw))
            and torch.equal(partner, draw.partner)
            and share == draw.share
        )
        monkeypatch.undo()
        # the same four numbers
        _, share, box = module.sample_cutmix(
            12, 9, 14, trained | {"cutmix_probability": 1.0}, generator(seed)
        )
        assert share == draw.share and [(b.start, b.stop) for b in box] == [
            (top, bottom),
            (left, right),
        ]
        whole += module.sample_cutmix(12, 9, 14, trained, generator(seed))[1] == 1.0
    assert 10 <= whole <= 30  # half of the batches
    module = shipped(tmp_path / "mixup", set_of(soft=True), PROTOCOLS["infer-static"])
    draw = augment.sample_mixup(0.8, 12, generator(0))
    monkeypatch.setattr(module, "sample_mixup", lambda *args: (draw.partner, draw.share))
    assert torch.allclose(module.mixed_by(images, None, None)[0], augment.mix(images, draw))


def test_the_share_of_mixup_has_the_distribution_it_says(tmp_path):
    """Mean 1/2 and variance 1 / (4 (2 a + 1)) of Beta(a, a)."""
    module = shipped(tmp_path / "set", set_of(soft=True), PROTOCOLS["infer-static"])
    for alpha in (0.2, 0.8, 1.0, 2.0):
        rng = generator(3)
        shares = torch.tensor(
            [module.sample_mixup(4, {"mixup_beta": alpha}, rng)[1] for _ in range(2000)]
        )
        assert 0 <= shares.min() and shares.max() <= 1
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.04)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


# Training

RANDPERM = torch.randperm
SHORT = {"epochs": 7, "lr": 0.05}
TRAINED = {
    "sgd, one drop": EvalConfig(protocol="mtt", **SHORT),
    "ragged batches": EvalConfig(protocol="mtt", batch=4, **SHORT),
    "another momentum after the drop": EvalConfig(
        protocol="ast", momentum_after=0.5, lr_drop=0.5, weight_decay=0.1, **SHORT
    ),
    "two drops and cutmix": replace(PROTOCOLS["idc"], epochs=13, lr=0.05, batch=4, cutmix=0.6),
    "no weight decay of biases": EvalConfig(
        protocol="x", decay_norms=False, weight_decay=0.3, **SHORT
    ),
    "adamw with a drop": EvalConfig(protocol="x", optimiser="adamw", weight_decay=0.2, **SHORT),
    "adamw, cosine, sparing": EvalConfig(
        protocol="x",
        optimiser="adamw",
        weight_decay=0.2,
        schedule="cosine",
        stretch=2.0,
        decay_norms=False,
        **SHORT,
    ),
    "soft, kl and mixup": replace(PROTOCOLS["infer-static"], epochs=7, batch=4),
    "soft, kl squared, probabilities, cutmix, classes too": replace(
        PROTOCOLS["infer-static"],
        epochs=7,
        batch=4,
        mixup=0.0,
        cutmix=0.7,
        squared=True,
        mix_labels="probabilities",
        hard_weight=0.4,
        soft_weight=0.6,
        temperature=3.0,
    ),
    "soft, kl, probabilities, mixup": replace(
        PROTOCOLS["infer-static"], epochs=7, mix_labels="probabilities", temperature=4.0
    ),
    "soft, squared error": EvalConfig(protocol="x", loss="mse", hard_weight=0.5, **SHORT),
    "soft, cross-entropy": EvalConfig(protocol="x", **SHORT),
    "soft, cross-entropy, cutmix": EvalConfig(protocol="x", cutmix=0.8, **SHORT),
    "features": EvalConfig(protocol="x", batch=4, **SHORT),
    "features, cutmix": EvalConfig(protocol="x", cutmix=0.8, hard_weight=0.5, **SHORT),
    "features, but its classes only": EvalConfig(protocol="x", labels="hard", **SHORT),
    "soft, but its classes only": EvalConfig(
        protocol="x", labels="hard", loss="kl", cutmix=0.8, **SHORT
    ),
}


def test_training_is_ours_step_by_step(tmp_path, monkeypatch):
    """From the same initialisation, with our orders and draws, the same network in float64:
    schedule, optimiser, loss, labels, mixing.
    """
    data = tiny_data()
    build = new_model(data, MODEL)
    for i, (name, config) in enumerate(TRAINED.items()):
        syn = set_of((1, 8, 8), 10, soft="soft" in name, top=3 if "mixup" in name else None)
        if "features" in name:  # as many as classes, so that the network fits
            syn = syn.with_features(3 * torch.randn(len(syn), 10, generator=generator(2)))
        module = shipped(tmp_path / str(i), syn, config)

        class Doubled:
            def __len__(self, syn=syn):
                return len(syn)

            def batch(self, index, syn=syn):
                found = syn.batch(index)
                return type(found)(
                    found.images.double(),
                    found.targets.double() if found.targets.is_floating_point() else found.targets,
                    found.classes,
                )

        ours = training.train_networks(
            lambda rng, build=build: build(rng).double(),
            [Doubled()],
            [5],
            config if config.labels == "hard" else syn.targets.trained_by(config),
            config.lr,
            CPU,
        )[0]

        # load.py draws in its own order; here it gets the numbers of our streams
        num, batch = len(syn), config.batch
        places = iter([(e, s) for e in range(config.epochs + 1) for s in range(-(-num // batch))])
        orders = (
            torch.randperm(num, generator=generator(5, "order", e)) for e in itertools.count()
        )
        at: list[tuple[int, int]] = []

        def sample(size, settings, rng, config=config, places=places, at=at):
            at[:] = [next(places)]
            draw = augment.sample(config.augment, size, generator(5, "augment", *at[0]))
            always = torch.zeros(size, 0, 3) if draw.always is None else draw.always[0]
            return (
                None if draw.ops[0] == "none" else draw.ops[0],
                draw.uniform[0].expand(size, -1),
                always,
            )

        def sample_cutmix(size, height, width, *rest, config=config, at=at):
            draw = augment.sample_cutmix(
                config.cutmix, size, (height, width), generator(5, "cutmix", *at[0])
            )
            if draw is None:
                return torch.arange(size), 1.0, (slice(0, 0), slice(0, 0))
            return draw.partner, draw.share, (slice(*draw.box[:2]), slice(*draw.box[2:]))

        def sample_mixup(size, *rest, config=config, at=at):
            draw = augment.sample_mixup(config.mixup, size, generator(5, "mixup", *at[0]))
            return draw.partner, draw.share

        load = module.load

        def double(folder, load=load):
            images, targets, info = load(folder)
            return (
                images.double(),
                targets,
                info
                | {name: info[name].double() for name in ("logits", "features") if name in info},
            )

        network = build(generator(5, "network")).double()
        start = torch.cat([p.detach().flatten() for p in network.parameters()])
        with monkeypatch.context() as patch:
            patch.setattr(module, "sample", sample)
            patch.setattr(module, "sample_cutmix", sample_cutmix, raising=False)
            patch.setattr(module, "sample_mixup", sample_mixup, raising=False)
            patch.setattr(module, "load", double)
            patch.setattr(
                torch,
                "randperm",
                lambda n, generator=None, own=orders: (
                    RANDPERM(n, generator=generator) if generator else next(own)
                ),
            )
            theirs = module.train(network, tmp_path / str(i))
        wanted, found = (
            torch.cat([p.detach().flatten() for p in of.parameters()]) for of in (ours, theirs)
        )
        assert not theirs.training and (wanted - start).norm() > 1e-3
        # the engine takes its loss in float32
        assert (found - wanted).norm() < 1e-3 * (wanted - start).norm(), name


def test_train_takes_another_rate_and_follows_its_generator(tmp_path):
    module = shipped(tmp_path / "set", set_of(lr=0.02), EvalConfig(protocol="x", epochs=2))

    def trained(seed, **options):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        return module.train(network, generator=torch.Generator().manual_seed(seed), **options)[
            1
        ].weight

    assert torch.equal(trained(1), trained(1)) and not torch.equal(trained(1), trained(2))
    assert torch.equal(trained(1), trained(1, lr=0.02)) and not torch.equal(
        trained(1), trained(1, lr=0.1)
    )


def test_what_cannot_be_trained_here_says_so(tmp_path):
    """Labels of teachers and losses that are not in the file: a sentence, and the card says it too."""
    for i, config in enumerate(
        (
            PROTOCOLS["rded"],
            replace(PROTOCOLS["infer-static"], loss="nkd"),
            EvalConfig(protocol="x", loss="uskd"),
        )
    ):
        module = shipped(tmp_path / str(i), set_of(soft=True), config)
        with pytest.raises(NotImplementedError, match="not in this folder"):
            module.train(torch.nn.Linear(1, 1))
        assert "load.py cannot train so" in (tmp_path / str(i) / "README.md").read_text()
        images, _, info = module.load()
        assert info["augment"](images).shape == images.shape
    shipped(tmp_path / "fine", set_of(), PROTOCOLS["fast"])
    assert "`train(network)` of load.py does all of it" in (tmp_path / "fine/README.md").read_text()


def test_the_losses_of_labels_are_ours(tmp_path):
    """Where nothing is mixed, at several temperatures; a label that says nothing of a class (-1e4)
    stays finite.
    """
    logits = torch.randn(6, 3, generator=generator(1), dtype=torch.float64)
    logits[0, 0] = -1e4
    outputs = torch.randn(6, 3, generator=generator(2), dtype=torch.float64)
    for temperature, squared in ((1.0, False), (4.0, True)):
        config = replace(PROTOCOLS["infer-static"], temperature=temperature, squared=squared)
        module = shipped(tmp_path / f"{temperature}", set_of(soft=True), config)
        said = module.soft_loss(outputs, logits, module.load()[2]["protocol"])
        assert said.isfinite() and float(said) == pytest.approx(
            float(losses.soft_loss(config, outputs, logits, None, None)), rel=1e-9
        )
    for share in (0.0, 0.3, 1.0):
        config = replace(PROTOCOLS["infer-static"], mix_labels="probabilities", temperature=2.0)
        module = shipped(tmp_path / f"mixed {share}", set_of(soft=True), config)
        partner = torch.randperm(6, generator=generator(3))
        found = module.mixed_logits(logits, partner, share, {"temperature": 2.0})
        wanted = losses.mixed_logits(logits, MixUp(partner, share), "probabilities", 2.0)
        assert torch.allclose((found / 2).softmax(1), (wanted / 2).softmax(1))


# What is written


def test_what_is_written_is_whole_and_readable(tmp_path):
    """For every protocol and kind of set: no name is missing, none is there in vain, nothing of the
    engine; a plain one is short.
    """
    sets = {
        "classes": set_of(),
        "soft": set_of(soft=True),
        "top": set_of(soft=True, top=1),
        "white": set_of(whitened=True),
        "features": set_of().with_features(torch.zeros(len(set_of()), 5)),
    }
    cases = [*itertools.product({**PROTOCOLS, **TRAINED}.values(), sets.items())]
    cases += [
        (EvalConfig(protocol="x", augment=augment), ("classes", sets["classes"]))
        for augment in AUGMENTS
    ]
    for i, (config, (_, syn)) in enumerate(cases):
        trained = protocol.facts(config, MODEL, len(syn), targets=syn.targets, learned=0.01)
        (tmp_path / f"load_{i}.py").write_text(folders.load_py(syn, trained))
    (tmp_path / "load_none.py").write_text(folders.load_py(sets["classes"], None))
    lint = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,B",
        "--line-length",
        "130",
        str(tmp_path),
    ]
    found = subprocess.run(lint, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]
    for path in tmp_path.glob("load_*.py"):
        text = path.read_text()
        defined = [
            line.split("def ")[1].split("(")[0]
            for line in text.splitlines()
            if line.startswith("def ")
        ]
        assert len(set(defined)) == len(defined)
        assert all(text.count(name) > 1 for name in defined), path
        assert "ddengine" not in text and "Any" not in text
    plain = folders.load_py(sets["classes"], protocol.facts(PROTOCOLS["fast"], MODEL, 6))
    assert len(plain.splitlines()) < 310


def test_a_set_without_a_protocol_says_none(tmp_path):
    folders.save(set_of(), tmp_path / "set", {})
    images, targets, info = module_of(tmp_path / "set").load()
    assert info["protocol"] is None and "augment" not in info and len(images) == len(targets) == 6
    assert "How it was trained on" not in (tmp_path / "set/README.md").read_text()


# The protocol


def test_the_protocol_says_what_is_done():
    """Against the schedule and the number of updates of the training itself."""
    for config in (*PROTOCOLS.values(), *TRAINED.values()):
        for num in (3, 300):
            said = protocol.facts(config, MODEL, num, targets=Logits(), learned=0.02)
            assert json.loads(json.dumps(said)) == said
            assert (
                said["updates"]
                == training.num_updates(num, config)
                == said["epochs"] * -(-num // config.batch)
            )
            learned = config.optimiser == "sgd" and config.rate != "fixed"
            assert said["lr"] == (0.02 if learned else config.lr)
            assert (said["lr_chosen_by"] == protocol.LEARNED) == learned
            points = training.schedule(config, 1.0)
            if config.schedule == "cosine":
                assert said["cosine_stretch"] == config.stretch and "drops" not in said
            else:
                later = {p.epoch: p.lr for p in points[1:] if p.epoch < said["epochs"]}
                assert {d["epoch"]: d["lr_factor"] for d in said["drops"]} == later
            assert dict(protocol.words(said))["training"].startswith(
                f"{said['epochs']} epochs, {said['updates']} updates"
            )
    transformer = protocol.facts(EvalConfig(protocol="x"), "torchvision/vit_b_16", 10, learned=0.02)
    assert (
        transformer["optimiser"] == "adamw"
        and transformer["lr"] == 0.001
        and transformer["lr_chosen_by"] == protocol.USUAL
    )


def evaluation_of(
    config: EvalConfig, lr: float, *, model: str = MODEL, validation: int = 5, num: int = 6
):
    """What evaluation.json says of a set on two networks."""
    rows = [
        {
            "set": name,
            "model": network,
            "images": num,
            "lr": rate,
            "accuracy_mean": 0.5,
            "accuracy_std": 0.1,
            "ci95": [0.4, 0.6],
            "n": 5,
        }
        for network, rate in (("mlp", 0.7), (model, lr))
        for name in ("distilled", "random")
    ]
    return {
        "rows": rows,
        "protocol": to_dict(replace(config, models=("mlp", model))),
        "num_images": {"train": 30, "validation": validation, "test": 10},
        "seed": 0,
        "command": [
            "python",
            "run.py",
            "evaluate",
            "/home/me/runs/x",
            "--out=/tmp/deep/y",
            "--epochs",
            "3",
            "runs/x",
        ],
    }


def test_an_evaluation_is_put_into_the_folder(tmp_path):
    """Its rate and protocol into meta.json, the card and load.py, which trains by it; a copy beside
    them; a later one replaces it all.
    """
    folder = tmp_path / "set"
    module = shipped(folder, set_of(lr=0.02), PROTOCOLS["fast"])
    assert module.load()[2]["protocol"]["lr"] == pytest.approx(0.02)
    for config, lr, validation, chosen in (
        (replace(PROTOCOLS["fast"], epochs=4), 0.3, 5, protocol.CHOSEN),
        (replace(PROTOCOLS["idc"], epochs=6), 0.1, 5, protocol.CHOSEN),
        (PROTOCOLS["fast"], float(torch.tensor(0.02)), 0, protocol.LEARNED),
        (
            replace(PROTOCOLS["fast"], rate="learned"),
            float(torch.tensor(0.02)),
            5,
            protocol.LEARNED,
        ),
        (replace(PROTOCOLS["mtt"], epochs=5), 0.01, 0, protocol.USUAL),
    ):
        evaluation = evaluation_of(config, lr, validation=validation)
        results.add_results(folder, evaluation)
        before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        results.add_results(folder, evaluation)
        assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
        copied = files.read_json(folder / "evaluation.json")
        assert copied == evaluation | {
            "command": ["python", "run.py", "evaluate", "x", "--out=y", "--epochs", "3", "runs/x"]
        }
        _, _, info = module_of(folder).load()
        said = info["protocol"]
        # not the network that comes first
        assert info["lr"] == pytest.approx(0.02) and said["lr"] == lr and said["network"] == MODEL
        assert (said["lr_chosen_by"], said["name"], said["epochs"]) == (
            chosen,
            config.protocol,
            training.num_updates(6, config) // (-(-6 // config.batch)),
        )
        assert (said.get("lr_tried") is not None) == (chosen == protocol.CHOSEN)
        card = (folder / "README.md").read_text()
        assert card.count("## How it was trained on") == card.count("## Accuracy") == 1
        assert f"{lr:.6g}, {chosen}" in card and card.index("How it was trained on") < card.index(
            "## Accuracy"
        )
        assert folders.load(folder, CPU)[1]["protocol"] == said
        assert not list(folder.glob(".writing*"))
    assert "cutmix" not in (folder / "load.py").read_text()  # of the second one


def test_a_folder_of_an_older_version_gets_all_of_it(tmp_path):
    """Without a protocol in meta.json and its place in the card, which then has it at the end."""
    folder = tmp_path / "set"
    shipped(folder, set_of(), PROTOCOLS["fast"])
    meta = files.read_json(folder / "meta.json")
    del meta["protocol"]
    files.write_json(folder / "meta.json", meta)
    (folder / "README.md").write_text("# Old\n")
    for _ in range(2):
        results.add_results(folder, evaluation_of(PROTOCOLS["fast"], 0.3))
    card = (folder / "README.md").read_text()
    assert (
        card.startswith("# Old\n")
        and card.count("## How it was trained on") == card.count("## Accuracy") == 1
    )
    assert module_of(folder).load()[2]["protocol"]["lr"] == 0.3


# Names that sort


def test_names_sort_like_their_numbers(tmp_path):
    """Class folders of 10,000 classes and more, pictures of a million and more."""
    for num, digits in ((10, 4), (10_000, 4), (10_001, 5), (123_456, 6)):
        names = tuple(f"{num - c}" for c in range(num))  # which sort otherwise
        syn = replace(set_of(), class_names=names)
        some = sorted({0, 1, 2, 9, num // 2, num - 2, num - 1})
        folders = [eight_bit.class_folder(syn.class_names, c) for c in some]
        assert sorted(folders) == folders and all(
            f.split("_")[0] == f"{c:0{digits}d}" for f, c in zip(folders, some, strict=True)
        )
    for num, digits in ((1, 6), (1_000_000, 6), (1_000_001, 7)):
        some = [i for i in (0, 99, 999_999, 1_000_000) if i < num]
        names = [eight_bit.example_name(i, num) for i in some]
        assert sorted(names) == names and {len(n) for n in names} == {digits}
    syn = set_of()
    wide = replace(
        syn,
        class_names=tuple(f"c{i}" for i in range(12_000)),
        classes=torch.tensor([0, 9_999, 10_000, 11_999, 2, 2]),
    )
    folder = image_folder.write_image_folder(wide, tmp_path / "classes")
    assert sorted(p.name for p in folder.iterdir()) == [
        "00000_c0",
        "00002_c2",
        "09999_c9999",
        "10000_c10000",
        "11999_c11999",
    ]
