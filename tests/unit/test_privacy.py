import copy
import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score, roc_curve

from ddengine.data import Data, load_data
from ddengine.data.preprocess import fit_preprocess
from ddengine.data.realset import RealSet
from ddengine.learning.training import train_networks
from ddengine.models import build_model
from ddengine.pages import of_privacy
from ddengine.recipe import AugmentConfig, DataConfig, EvalConfig
from ddengine.sets.codec import Identity, MultiFormation, Pixels
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.uses import privacy

CPU = torch.device("cpu")
NETWORK = build_model("mlp", (1, 8, 8), 10, generator(0)).eval()


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataConfig(name="digits", limit=400), CPU, test=True)


def set_of(data, pixels, classes):
    """A set in the codec without codec."""
    return SyntheticSet(
        {"images": data.train.preprocess.forward(pixels)},
        classes,
        data.class_names,
        Identity(),
        data.train.preprocess,
    )


def noise_set(data, ipc=2):
    classes = torch.arange(data.num_classes).repeat_interleave(ipc)
    return set_of(
        data, torch.rand(len(classes), *data.image_shape, generator=generator(3)), classes
    )


def of_train(data, index):
    return set_of(data, data.train.pixels[index].float() / 255, data.train.labels[index])


def random_data(num_train=120, num_test=100, shape=(3, 6, 5), zca=False, seed=0) -> Data:
    """Two classes of noise: no split differs from the other."""
    rng = generator(seed, "random data")
    pixels = torch.randint(256, (num_train + num_test, *shape), generator=rng, dtype=torch.uint8)
    labels = torch.arange(num_train + num_test) % 2
    preprocess = fit_preprocess(pixels[:num_train], zca=zca)
    train = RealSet(pixels[:num_train], labels[:num_train], 2, preprocess)
    test = RealSet(pixels[num_train:], labels[num_train:], 2, preprocess)
    return Data(train, None, test, ("a", "b"), train.pixels.numel(), train.pixels.numel())


def flat(images):
    return images.flatten(1)


def attack(result, name):
    return next(entry for entry in result["membership"] if name in entry["score"])


def test_planted_copy_is_found(data):
    syn = noise_set(data)
    planted = syn.tensors["images"].clone()
    planted[7] = data.train.images(torch.tensor([123]))[0]
    result = privacy.measure(
        syn.with_tensors({"images": planted}), data, NETWORK.embed, None, seed=0
    )
    first = result["shown"][0]
    assert (first["image"], first["class"]) == (7, 3)
    for space in ("pixels", "embedding"):
        found = first[space]["train"]
        assert (
            found["index"] == 123
            and found["class"] == int(data.train.labels[123])
            and found["distance"] < 1e-4
        )
        assert first[space]["ratio"] < 1e-3 and first[space]["held_out"]["distance"] > 0.01
    own = result["neighbours"]["pixels"]["distilled"]
    assert own["near_copies"] == 1 and own["much_nearer"] == 1
    clean = privacy.measure(syn, data, NETWORK.embed, None, seed=0)
    assert (
        clean["neighbours"]["pixels"]["distilled"]["near_copies"]
        == clean["neighbours"]["pixels"]["distilled"]["much_nearer"]
        == 0
    )
    assert clean["shown"][0]["pixels"]["train"]["distance"] > 0.1


def test_distances_by_brute_force(data):
    syn = noise_set(data, ipc=1)
    result = privacy.measure(syn, data, NETWORK.embed, None, seed=0, shown=100)
    assert sorted(entry["image"] for entry in result["shown"]) == list(range(10))
    pixels, real, test = (
        syn.pixels().double(),
        data.train.pixels.double() / 255,
        data.test.pixels.double() / 255,
    )
    with torch.no_grad():
        mine, features = (
            torch.nn.functional.normalize(NETWORK.embed(x).double(), dim=1)
            for x in (syn.tensors["images"], data.train.images(torch.arange(len(real))))
        )
    for entry in result["shown"]:
        i = entry["image"]
        rms = (real - pixels[i]).square().mean((1, 2, 3)).sqrt()
        assert entry["pixels"]["train"]["index"] == int(rms.argmin())
        assert entry["pixels"]["train"]["distance"] == pytest.approx(float(rms.min()), abs=1e-7)
        chord = (2 - 2 * features @ mine[i]).clamp(min=0).sqrt()
        assert entry["embedding"]["train"]["index"] == int(chord.argmin())
        assert entry["embedding"]["train"]["distance"] == pytest.approx(
            float(chord.min()), abs=1e-6
        )
        away = entry["pixels"]["held_out"]
        assert away["distance"] == pytest.approx(
            float((test[away["index"]] - pixels[i]).square().mean().sqrt()), abs=1e-7
        )
        assert away["class"] == int(data.test.labels[away["index"]])
        assert entry["pixels"]["ratio"] == pytest.approx(
            entry["pixels"]["train"]["distance"] / away["distance"]
        )


def test_near_copies_and_much_nearer_images_are_counted_by_their_bounds(data):
    """Images on the way from a training image to a test image, and training images whose pixels are
    all moved by the same amount.
    """
    own, other = (real.pixels[:10].double() / 255 for real in (data.train, data.test))
    # ratios of the distances to the two ends
    between = torch.cat([(other * r + own) / (1 + r) for r in (0.42, 0.45, 0.48, 0.52, 0.55, 0.58)])
    result = privacy.measure(
        set_of(data, between.float(), data.train.labels[:10].repeat(6)),
        data,
        flat,
        None,
        seed=0,
        shown=60,
    )
    ratios = [entry["pixels"]["ratio"] for entry in result["shown"]]
    # both sides of the bound are tried
    assert sum(0.41 < r < 0.5 for r in ratios) >= 5 <= sum(0.5 < r < 0.6 for r in ratios)
    assert result["neighbours"]["pixels"]["distilled"]["much_nearer"] == sum(
        r < 0.5 for r in ratios
    )
    moves = torch.tensor([0.019, 0.021] * 5).view(-1, 1, 1, 1)
    moved = own.float() + torch.where(own < 0.5, moves, -moves)
    result = privacy.measure(set_of(data, moved, data.train.labels[:10]), data, flat, None, seed=0)
    assert result["neighbours"]["pixels"]["distilled"]["near_copies"] == 5


def test_pixels_beyond_the_range_are_clamped(data):
    black = data.train.pixels[5].float() / 255
    stretched = black.clone()
    stretched[black == 0] = -3.0
    result = privacy.measure(
        set_of(data, stretched[None], data.train.labels[5:6]), data, flat, None, seed=0
    )
    assert (
        result["shown"][0]["pixels"]["train"]["index"] == 5
        and result["neighbours"]["pixels"]["distilled"]["near_copies"] == 1
    )


def test_members_themselves_have_auc_one(data):
    every = torch.arange(len(data.train))
    result = privacy.measure(of_train(data, every), data, NETWORK.embed, None, seed=0)
    for entry in result["membership"]:
        assert entry["auc"] == 1 and entry["ci95"] == [1, 1] and entry["tpr_at_1_fpr"] == 1
        assert entry["control"]["auc"] < 0.7
    for space in ("pixels", "embedding"):
        own = result["neighbours"][space]["distilled"]
        assert (
            own["nearest_in_train"] == 1
            and own["median_train"] < 1e-6
            and own["balanced_nearest_in_train"] > 0.6
        )
    assert result["neighbours"]["pixels"]["distilled"]["near_copies"] == len(every)
    assert result["neighbours"]["pixels"]["control"]["near_copies"] == 0


def test_noise_tells_nothing():
    found = {"pixels": [], "embedding": []}
    shares = []
    for seed in range(8):
        data = random_data(seed=seed)
        syn = set_of(
            data, torch.rand(20, 3, 6, 5, generator=generator(seed, "own")), torch.arange(20) % 2
        )
        result = privacy.measure(syn, data, flat, None, seed=seed)
        for name, values in found.items():
            values.append(attack(result, name)["auc"])
            low, high = attack(result, name)["ci95"]
            assert low - 0.08 < 0.5 < high + 0.08
        own = result["neighbours"]["pixels"]["distilled"]
        assert own["near_copies"] == 0 and own["nearest_in_train_by_chance"] == pytest.approx(
            120 / (120 + 80)
        )
        assert (
            own["balanced_ci95"][0] <= own["balanced_nearest_in_train"] <= own["balanced_ci95"][1]
        )
        shares.append((own["nearest_in_train"], own["balanced_nearest_in_train"]))
    assert all(abs(np.mean(values) - 0.5) < 0.05 for values in found.values())
    assert np.mean(shares, axis=0) == pytest.approx((0.6, 0.5), abs=0.09)


def test_control_images_are_held_out_and_excluded():
    data = random_data()
    syn = set_of(
        data, torch.rand(10, 3, 6, 5, generator=generator(1)), torch.tensor([0] * 7 + [1] * 3)
    )
    result = privacy.measure(syn, data, flat, None, seed=0)
    assert (result["control"], result["held_out"], result["train"]) == (10, 90, 120)
    few = privacy.measure(
        set_of(data, torch.rand(80, 3, 6, 5, generator=generator(80)), torch.arange(80) % 2),
        data,
        flat,
        None,
        seed=0,
    )
    assert few["control"] == 20  # a fifth
    assert few["neighbours"]["pixels"]["control"]["median_held_out"] > 0.1  # not at itself
    assert attack(result, "pixels")["n"] == [90, 90]


def test_classes_are_balanced():
    data = random_data(num_train=30, num_test=100)
    data.train.labels[:] = torch.tensor([0] * 25 + [1] * 5)
    result = privacy.measure(
        set_of(data, torch.rand(2, 3, 6, 5, generator=generator(2)), torch.tensor([0, 1])),
        data,
        flat,
        None,
        seed=0,
    )
    assert attack(result, "pixels")["n"] == [30, 30]  # all members, and as many others: 25 and 5
    data = replace(
        data,
        test=RealSet(
            data.test.pixels[:20], torch.tensor([0] * 10 + [1] * 10), 2, data.test.preprocess
        ),
    )
    assert attack(
        privacy.measure(
            set_of(data, torch.rand(2, 3, 6, 5, generator=generator(2)), torch.tensor([0, 1])),
            data,
            flat,
            None,
            seed=0,
        ),
        "pixels",
    )["n"] == [14, 14]


@pytest.mark.parametrize("zca", [False, True])
def test_chunked_equals_unchunked(zca):
    data = random_data(zca=zca)
    syn = set_of(data, torch.rand(11, 3, 6, 5, generator=generator(1)), torch.arange(11) % 2)
    whole = privacy.measure(syn, data, flat, None, seed=0)
    parts = privacy.measure(syn, data, flat, None, seed=0, block=7, chunk=4)
    assert json.dumps(parts) == json.dumps(whole) or _nearly(parts, whole)


def _nearly(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_nearly(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_nearly, a, b))
    return a == pytest.approx(b, abs=1e-6) if isinstance(a, float) else a == b


def test_one_channel_zca_without_validation():
    data = load_data(DataConfig(name="digits", limit=300, validation=0.0, zca=True), CPU, test=True)
    assert data.validation is None
    result = privacy.measure(
        of_train(data, torch.tensor([4, 40, 200])), data, NETWORK.embed, None, seed=0
    )
    assert sorted(
        (entry["image"], entry["pixels"]["train"]["index"]) for entry in result["shown"]
    ) == [(0, 4), (1, 40), (2, 200)]
    assert all(
        entry["pixels"]["train"]["distance"] < 1e-4
        and entry["embedding"]["train"]["distance"] < 1e-3
        for entry in result["shown"]
    )
    assert result["neighbours"]["pixels"]["distilled"]["near_copies"] == 3


def test_soft_labels_and_multi_formation(data):
    index = torch.tensor([[int(m[i]) for i in range(4)] for m in data.train.members]).flatten()
    syn = coded(
        MultiFormation(factor=2),
        data.train.images(index),
        torch.arange(10),
        data.class_names,
        data.train.preprocess,
    )
    assert len(syn) == 40
    soft = syn.with_labels(torch.randn(40, 10, generator=generator(0)))
    a, b = (privacy.measure(s, data, NETWORK.embed, None, seed=0, shown=40) for s in (syn, soft))
    assert a == b and a["images"] == 40
    # tile by tile
    assert {(e["image"], e["class"]) for e in a["shown"]} == {(i, i % 10) for i in range(40)}


def test_stored_bytes_are_exact_copies(data):
    index = torch.tensor([int(m[0]) for m in data.train.members])
    syn = coded(
        Pixels(),
        data.train.images(index),
        torch.arange(10),
        data.class_names,
        data.train.preprocess,
    ).shipped()
    result = privacy.measure(syn, data, NETWORK.embed, None, seed=0)
    assert all(entry["pixels"]["train"]["distance"] < 1e-6 for entry in result["shown"])


def test_loss_of_a_network_that_learnt_members_by_heart():
    data = random_data()
    every = of_train(data, torch.arange(120))
    config = EvalConfig(protocol="dc", epochs=30, batch=32)
    config = replace(config, augment=replace(config.augment, ops=()))
    network = train_networks(
        lambda rng: build_model("mlp", (3, 6, 5), 2, rng), [every], [0], config, 0.05, CPU
    )[0]
    result = privacy.measure(every, data, flat, network.train(), seed=0)
    assert network.training  # as it came
    loss = attack(result, "loss")
    assert loss["auc"] > 0.8 and loss["ci95"][0] > 0.7 and loss["control"] is None
    fresh = build_model("mlp", (3, 6, 5), 2, generator(1))
    low, high = attack(privacy.measure(every, data, flat, fresh, seed=0), "loss")["ci95"]
    assert low - 0.05 < 0.5 < high + 0.05
    assert len(privacy.measure(every, data, flat, None, seed=0)["membership"]) == 2


def test_auc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.7, 1, 500).round(1), rng.normal(0, 1, 400).round(1)
    labels, scores = [1] * 500 + [0] * 400, np.concatenate((members, others))
    found = privacy.auc(members, others)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found["tpr_at_1_fpr"] == pytest.approx(max(tpr[fpr <= 0.01])) and found["n"] == [
        500,
        400,
    ]
    truth = 0.6897  # Phi(0.7 / sqrt 2)
    assert (
        found["ci95"][0] < truth < found["ci95"][1]
        and 0.05 < found["ci95"][1] - found["ci95"][0] < 0.08
    )
    assert (
        privacy.auc(np.zeros(5), np.zeros(5))["auc"] == 0.5
        and privacy.auc(np.zeros(5), np.zeros(5))["tpr_at_1_fpr"] == 0
    )
    assert privacy.auc(np.zeros(5), np.ones(5))["auc"] == 0


def test_interval_of_the_auc_covers():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = privacy.auc(rng.normal(0.7, 1, 60), rng.normal(0, 1, 60))["ci95"]
        hits += low < 0.6897 < high
    assert 180 <= hits <= 199


def test_seed_alone_decides(data):
    syn = noise_set(data)
    first = privacy.measure(syn, data, NETWORK.embed, NETWORK, seed=5)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert privacy.measure(syn, data, NETWORK.embed, NETWORK, seed=5) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        privacy.measure(syn, data, NETWORK.embed, NETWORK, seed=6)["membership"]
        != first["membership"]
    )
    json.dumps(first, allow_nan=False)
    assert first["note"].startswith(privacy.SENTENCE) and "no proof of privacy" in first["note"]


def test_errors(data):
    with pytest.raises(UserError, match="no test split"):
        privacy.measure(noise_set(data), replace(data, test=None), flat, None, seed=0)
    with pytest.raises(UserError, match="in 10 classes"):
        privacy.measure(noise_set(data), random_data(), flat, None, seed=0)


def test_picture_and_table(data, tmp_path):
    syn = noise_set(data)
    result = privacy.measure(syn, data, NETWORK.embed, copy.deepcopy(NETWORK), seed=0)
    of_privacy.picture(tmp_path / "privacy.png", syn, data, result)
    assert [p.name for p in tmp_path.iterdir()] == ["privacy.png"]
    image = np.asarray(Image.open(tmp_path / "privacy.png"))
    assert image.shape[1] > 1200 and image.std() > 10
    out = io.StringIO()
    Console(file=out, width=80).print(of_privacy.table(result))
    text = out.getvalue()
    assert (
        "near copies" in text
        and f"{attack(result, 'loss')['auc']:.2f}" in text
        and "Distilled is not anonymous" in " ".join(text.split())
    )
    colour = random_data()
    painted = set_of(
        colour, torch.rand(3, 3, 6, 5, generator=generator(3)), torch.tensor([0, 1, 0])
    )
    of_privacy.picture(
        tmp_path / "colour.png",
        painted,
        colour,
        privacy.measure(painted, colour, flat, None, seed=0),
    )


def test_the_check_trains_both_networks_and_measures(data):
    """One call: networks of equal seed, the learned rate for the network it was learned for alone."""
    syn = noise_set(data).with_tensors({"lr": torch.tensor(0.05)})
    config = EvalConfig(
        protocol="fast", epochs=2, batch=64, full_steps=7, augment=AugmentConfig(ops=())
    )
    found = privacy.run(syn, data, config, "mlp", seed=3, device=CPU, learned_for="mlp")
    build = partial(build_model, "mlp", data.image_shape, data.num_classes)
    (full,) = train_networks(
        build, [data.train], [3], config, config.lr, CPU, steps=7, labels="hard"
    )
    (on_set,) = train_networks(build, [syn], [3], config, 0.05, CPU, labels="own")
    expected = privacy.measure(syn, data, full.embed, on_set, seed=3)
    assert {key: found[key] for key in expected} == expected
    assert found["training"] == {
        "model": "mlp",
        "optimiser": "sgd",
        "lr": config.lr,
        "lr_on_set": pytest.approx(0.05),
        "full_updates": 7,
        "labels": "own",
    }
    assert found["machine"] and found["versions"]
    other = privacy.run(syn, data, config, "mlp", seed=3, device=CPU, learned_for="convnet")
    assert other["training"]["lr_on_set"] == config.lr
