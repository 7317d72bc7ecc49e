"""Files of the published programs: what is read from them, what is refused, and that nothing in
them runs.
"""

import io
import os
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import DIGITS, MODEL, new_model, tiny_data, tiny_store

from buffers import exchange, store
from buffers.steps import Sgd
from buffers.store import ExpertStore
from ddengine.artefact import exchange as sets
from ddengine.recipe import BufferConfig
from ddengine.sets.codec import Identity
from ddengine.sets.synthetic import SyntheticSet
from ddengine.sets.targets import Features
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

CONFIG = BufferConfig(step=Sgd(lr=0.05), num_experts=2, epochs=3, batch=64)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A store of 3 experts."""
    return tiny_store(tmp_path_factory.mktemp("store"), data, num_experts=3)


def take_in(paths, folder, data, config=CONFIG, model=MODEL):
    """The files as a store."""
    network = new_model(data, model)(generator(0))
    count = exchange.import_experts(
        paths, exchange.files_digest(paths), folder, data, DIGITS, config, model, network
    )
    opened = ExpertStore(folder, new_model(data, model))
    assert count == opened.num_experts
    return opened


def saved(path, value):
    torch.save(value, path)
    return path


# load_pt


class Command:
    """An object whose pickle runs a command of the shell when it is loaded."""

    def __init__(self, marker, function=os.system):
        self.marker, self.function = marker, function

    def __reduce__(self):
        return self.function, (
            f"touch {self.marker}"
            if self.function is os.system
            else f"open({str(self.marker)!r}, 'w')",
        )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", [os.system, eval, exec], ids=["system", "eval", "exec"])
def test_a_file_never_runs_anything(tmp_path, function, zipped):
    """Refused with the name of what it wanted, wherever in the file it stands; a plain load would
    have run it.
    """
    path, marker = tmp_path / "replay_buffer_0.pt", tmp_path / "ran"
    torch.save(
        [[[torch.zeros(3)]], Command(marker, function)], path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        UserError, match=rf"replay_buffer_0.pt asks for [\w.]*{function.__name__} .*not read"
    ) as refused:
        exchange.load_pt(path)
    assert not marker.exists() and "\n" not in str(refused.value)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "value", [np.zeros(3), np.array([1.0], dtype=object), DIGITS, io.StringIO, pytest.approx], ids=["array", "objects", "config", "class", "function"]
)  # fmt: skip
def test_what_is_no_tensor_is_refused(tmp_path, value):
    """Arrays and classes, harmless or not: only tensors, containers and numbers come in."""
    with pytest.raises(UserError, match=r"asks for [\w.]+ to be run"):
        exchange.load_pt(saved(tmp_path / "a.pt", [value]))


def test_numpy_numbers_are_forgotten(tmp_path):
    """DC's accuracies: the file is read, and no number of numpy is made on the way."""
    value = {"data": [torch.ones(2)], "accs": [np.float64(0.5), np.float32(1), np.int64(3), 0.25]}
    content = exchange.load_pt(saved(tmp_path / "res.pt", value))
    assert torch.equal(content["data"][0], torch.ones(2)) and content["accs"][3] == 0.25
    assert not any(isinstance(a, np.generic) for a in content["accs"])


def test_numpy_names_of_older_versions(tmp_path):
    """numpy before 2.0 wrote numpy.core; and a type that a file has crafted never reaches numpy."""
    buffer = io.BytesIO()
    torch.save([np.float64(0.5)], buffer)
    buffer.seek(0)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"numpy._core.multiarray") == 1
                content = content.replace(
                    b"numpy._core.multiarray", b"numpy.core.multiarray"
                ).replace(b"f8", b"O8")
            new.writestr(name, content)
    assert not isinstance(exchange.load_pt(tmp_path / "a.pt")[0], float | np.generic)


def test_the_names_are_allowed_only_while_reading(tmp_path):
    """What load_pt lets in stays forbidden elsewhere in the process."""
    path = saved(tmp_path / "a.pt", [np.float64(0.5)])
    exchange.load_pt(path)
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)


def whole(tmp_path):
    return saved(tmp_path / "whole.pt", [torch.arange(1000.0)]).read_bytes()


DAMAGE = {
    "empty": lambda b: b"",
    "text": lambda b: b"hello world, this is no tensor",
    "half": lambda b: b[: len(b) // 2],
    "end-missing": lambda b: b[:-1],
    "zip-head": lambda b: b[:4],
    "byte-changed": lambda b: b[:2000] + bytes([b[2000] ^ 1]) + b[2001:],
    "pickle": lambda b: pickle.dumps([1, 2], 2),
    "pickle-4": lambda b: pickle.dumps([1, 2], 4),
    "png": lambda b: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage(tmp_path, damage):
    """Truncated, changed, or never a file of torch.save: one sentence that names the file."""
    (tmp_path / "bad.pt").write_bytes(damage(whole(tmp_path)))
    with pytest.raises(UserError, match=r"bad\.pt is damaged.*get the file again\.$"):
        exchange.load_pt(tmp_path / "bad.pt")


def test_other_zip_files(tmp_path):
    """TorchScript and ordinary archives."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "bad.pt"))
    with pytest.raises(UserError, match=r"not written by torch\.save"):
        exchange.load_pt(tmp_path / "bad.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match=r"not written by torch\.save"):
        exchange.load_pt(tmp_path / "bad.pt")


# experts


def test_store_round_trip(data, made, tmp_path):
    """Out and in again: the same bits, over several files, the last one short."""
    paths = exchange.export_experts(made.folder, tmp_path / "pt", per_file=2)
    assert [p.name for p in paths] == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    again = take_in(paths, tmp_path / "store", data)
    assert again.num_experts == 3 and again.epochs == made.epochs
    for expert in range(3):
        assert torch.equal(
            again.snapshots(expert, again.epochs), made.snapshots(expert, made.epochs)
        )
    assert (
        again.manifest["shapes"]
        == made.manifest["shapes"]
        == store.shapes_of(new_model(data)(generator(0)))
    )


def test_exported_layout(made, tmp_path):
    """Experts > snapshots > parameters in the order of `parameters()`, float32, each owning its
    numbers; the published programs can load it.
    """
    content = torch.load(exchange.export_experts(made.folder, tmp_path)[0], weights_only=True)
    assert [len(content), len(content[0])] == [3, 4]
    for expert, epoch in ((0, 0), (2, 3)):
        wanted = list(made.load(expert, epoch).parameters())
        assert len(content[expert][epoch]) == len(wanted)
        for mine, theirs in zip(content[expert][epoch], wanted, strict=True):
            assert mine.dtype == torch.float32 and torch.equal(mine, theirs)
            assert mine.untyped_storage().nbytes() == 4 * mine.numel()
    assert list(tmp_path.iterdir()) == [tmp_path / "replay_buffer_0.pt"]


@pytest.mark.parametrize(("keep", "epochs"), [("last", [3]), ((1, 2), [1, 2])])
def test_keep_and_dtype(data, made, tmp_path, keep, epochs):
    """Only the kept epochs are stored, rounded as the recipe says; tensors on the way in may be of
    any float type and be parameters.
    """
    paths = exchange.export_experts(made.folder, tmp_path / "pt")
    content = [
        [[torch.nn.Parameter(p.double()) for p in snapshot] for snapshot in expert]
        for expert in torch.load(paths[0])
    ]
    config = BufferConfig(step=Sgd(lr=0.05), epochs=3, batch=64, keep=keep, dtype="bfloat16")
    part = take_in([saved(tmp_path / "double.pt", content)], tmp_path / "store", data, config)
    assert list(part.epochs) == epochs
    assert torch.equal(part.snapshots(1, epochs), made.snapshots(1, epochs).bfloat16().float())


def test_identity_of_imported_experts(data, made, tmp_path):
    """Seed and precision are as the store says; images, network, training and files decide, and
    nobody adds to it.
    """
    paths = exchange.export_experts(made.folder, tmp_path / "pt", per_file=2)
    folder = take_in(paths, tmp_path / "store", data).folder
    given = store.read_manifest(folder)["identity"]
    assert given["imported"] == exchange.files_digest(paths) and given["seed"] is None
    for seed, precision in ((0, "fp32"), (5, "bf16")):
        config = replace(CONFIG, seed=seed)
        store.check_identity(
            folder, store.identity(data.train.digest, DIGITS, config, MODEL, precision)
        )
    other = BufferConfig(step=Sgd(lr=0.01), epochs=3, batch=64)
    for content in (
        store.identity("abc", DIGITS, CONFIG, MODEL, "fp32"),
        store.identity(data.train.digest, DIGITS, CONFIG, "mlp", "fp32"),
        store.identity(data.train.digest, DIGITS, other, MODEL, "fp32"),
    ):
        with pytest.raises(UserError, match="other settings"):
            store.check_identity(folder, content)
    with pytest.raises(UserError, match=r"imported from files.*--out"):
        tiny_store(folder, data)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert take_in(paths, folder, data).num_experts == 3  # the same files again: left alone
    with pytest.raises(UserError, match=r"imported from files.*--out"):
        take_in(paths[:1], folder, data)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_an_own_store_is_not_imported_into(data, made, tmp_path):
    """The manifest there has no imported files."""
    paths = exchange.export_experts(made.folder, tmp_path)
    with pytest.raises(UserError, match=r"imported is not set there"):
        take_in(paths, made.folder, data)


def spoil(change):
    """What `change` makes of the experts of a file."""

    def made(experts):
        change(experts)
        return experts

    return made


def put(tensor, expert=0, epoch=1, part=0):
    return spoil(lambda experts: experts[expert][epoch].__setitem__(part, tensor))


WRONG = {
    "tensor": (lambda e: torch.zeros(3), r"holds a tensor of shape \(3,\) \(float32\) and not a list of experts"),
    "empty": (lambda e: [], "not a list of experts"),
    "dict": (lambda e: {"state_dict": 1}, "holds a dict with the key state_dict and not a list"),
    "one-expert": (lambda e: e[0], r"Expert 0 of .* is not a list of snapshots"),
    "one-snapshot": (lambda e: e[0][0], r"Expert 0 of .* is not a list of snapshots"),
    "too-short": (lambda e: [x[:3] for x in e], r"has 3 snapshots, and buffer.epochs 3 makes 4.*set buffer.epochs 2"),
    "too-long": (lambda e: [x + x[:1] for x in e], r"has 5 snapshots.*set buffer.epochs 4"),
    "second-short": (lambda e: [e[0], e[1][:2]], r"Expert 1 of .* has 2 snapshots"),
    "nan": (put(torch.full((4, 1, 3, 3), torch.nan)), r"not finite in \S+ of snapshot 1"),
    "inf": (put(torch.full((4,), torch.inf), 2, 3, 1), r"Expert 2 .*not finite in \S+ of snapshot 3"),
    "shape": (put(torch.zeros(8, 1, 3, 3)), rf"is not of {MODEL}, its \S+weight is a tensor of shape \(8, 1.* should be.*\(4, 1, 3, 3\).*--model"),
    "transposed": (put(torch.zeros(64, 10), part=-2), r"its \S+weight is a tensor of shape \(64, 10\)"),
    "integers": (put(torch.zeros(4, 1, 3, 3, dtype=torch.int64)), r"\(int64\) and should be a float tensor"),
    "number": (put(1.5), r"is a value of type float and should be a float tensor"),
    "sparse": (put(torch.zeros(4, 1, 3, 3).to_sparse()), r"is a sparse tensor .* and should be"),
    "tensors-missing": (spoil(lambda e: e[1][2].pop()), r"Expert 1 of .* has 5 parameter tensors for 6 \(\S+bias is missing\)"),
    "tensors-more": (spoil(lambda e: e[1][2].append(torch.zeros(1))), r"has 7 parameter tensors for 6 \(nothing follows \S+bias"),
    "still": (lambda e: [[x[0]] * 4 for x in e], r"does not move.*without a GPU"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_experts_that_do_not_fit(data, made, tmp_path, change, words):
    """One sentence that names file and expert, and no store."""
    paths = exchange.export_experts(made.folder, tmp_path / "pt")
    bad = saved(tmp_path / "bad.pt", change(torch.load(paths[0])))
    for files in ([bad], [*paths, bad]):  # alone, and after one that was good
        with pytest.raises(UserError, match=words) as refused:
            take_in(files, tmp_path / "to" / "store", data)
        assert "bad.pt" in str(refused.value) and "\n" not in str(refused.value)
        assert not (tmp_path / "to").exists() or not list((tmp_path / "to").iterdir())


def test_networks_with_batchnorm(data, made, tmp_path):
    """The files hold parameters only: matching works on them, looking at images is refused."""
    model = "convnet-d1-w4-bn"
    whole = tiny_store(tmp_path / "own", data, model=model)
    again = take_in(
        exchange.export_experts(whole.folder, tmp_path / "pt"),
        tmp_path / "store",
        data,
        model=model,
    )
    assert torch.equal(again.snapshots(1, [2]), whole.snapshots(1, [2]))
    whole.load(0, 3)
    with pytest.raises(UserError, match="without BatchNorm statistics"):
        again.load(0, 3)


def test_export_refusals(data, made, tmp_path):
    """Existing files, stores of an older version, a size that is none."""
    folder = tiny_store(tmp_path / "store", data).folder
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "replay_buffer_1.pt").write_text("precious")
    with pytest.raises(UserError, match=r"replay_buffer_1.pt exists already"):
        exchange.export_experts(folder, tmp_path / "there", per_file=1)
    assert len(list((tmp_path / "there").iterdir())) == 1
    with pytest.raises(UserError, match="--per_file"):
        exchange.export_experts(folder, tmp_path / "new", per_file=0)
    manifest = store.read_manifest(folder)
    for shapes, words in (
        ([[3]], "not those of its experts"),
        (None, "before stores kept the shapes"),
    ):
        manifest["shapes"] = shapes
        store.files.write_json(
            folder / "manifest.json", {k: v for k, v in manifest.items() if v is not None}
        )
        with pytest.raises(UserError, match=words):
            exchange.export_experts(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folders_stand_for_their_files(tmp_path):
    """In numeric order, and nothing else of the folder."""
    for name in (
        "replay_buffer_10.pt",
        "replay_buffer_2.pt",
        "replay_buffer_0.pt",
        "replay_buffer_x.pt",
        "images_best.pt",
    ):
        (tmp_path / name).touch()
    assert [p.name for p in exchange.expand([tmp_path])] == [
        "replay_buffer_0.pt",
        "replay_buffer_2.pt",
        "replay_buffer_10.pt",
    ]
    assert exchange.expand([tmp_path / "images_best.pt"]) == [tmp_path / "images_best.pt"]
    with pytest.raises(UserError, match="does not exist"):
        exchange.expand([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no replay_buffer"):
        exchange.expand([tmp_path / "empty"])


# sets


def read(path, data, **options):
    return sets.read_set(path, exchange.load_pt(path), exchange.load_pt, data, **options)[0]


def files_of(folder, images, labels=None, lr=None, name="best"):
    """images_NAME.pt, and the others that are given."""
    for kind, value in (("labels", labels), ("lr", lr)):
        if value is not None:
            torch.save(value, folder / f"{kind}_{name}.pt")
    return saved(folder / f"images_{name}.pt", images)


IMAGES = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(10).repeat_interleave(2)
LOGITS = torch.randn(20, 10, generator=torch.Generator().manual_seed(1)) * 3


def test_classes_and_learned_rate(data, tmp_path):
    """The numbers of the files, as networks see them."""
    shuffled = CLASSES.flip(0)
    syn = read(
        files_of(tmp_path, IMAGES.clone().requires_grad_(), shuffled, torch.tensor(0.02)), data
    )
    assert torch.equal(syn.tensors["images"], IMAGES) and not syn.tensors["images"].requires_grad
    assert (
        torch.equal(syn.batch(torch.arange(20)).targets, shuffled)
        and syn.target_kind == "class"
        and syn.space == "model"
    )
    assert syn.lr == pytest.approx(0.02) and syn.class_names == data.class_names
    assert read(tmp_path / "images_best.pt", data, lr=0.5).lr == 0.5


def test_labels_are_found(data, tmp_path, capsys):
    """--labels, else those beside, else classes in order, which is said; those of another step are
    not taken.
    """
    path = files_of(tmp_path, IMAGES, CLASSES.flip(0), name="100")
    other = saved(tmp_path / "mine.pt", CLASSES.roll(2))
    assert torch.equal(read(path, data, labels=other).classes, CLASSES.roll(2))
    assert torch.equal(read(path, data).classes, CLASSES.flip(0))
    assert not capsys.readouterr().out
    assert torch.equal(read(files_of(tmp_path, IMAGES, name="200"), data).classes, CLASSES)
    assert "classes in order, 2 images each" in capsys.readouterr().out
    assert read(tmp_path / "images_200.pt", data).lr is None


def test_logits_and_probabilities(data, tmp_path):
    """DATM's raw logits stay, TESLA's probabilities become logits of the same softmax, also where
    they are 0 and 1.
    """
    syn = read(files_of(tmp_path, IMAGES, LOGITS), data)
    assert (
        syn.target_kind == "logits"
        and torch.equal(syn.batch(torch.arange(20)).targets, LOGITS)
        and torch.equal(syn.classes, CLASSES)
    )
    for given in (
        LOGITS.softmax(1),
        LOGITS.softmax(1).double(),
        torch.eye(10).repeat_interleave(2, 0),
    ):
        again = read(files_of(tmp_path, IMAGES, given), data).tensors["logits"]
        assert again.dtype == torch.float32 and again.isfinite().all()
        assert torch.allclose(again.softmax(1), given.float(), atol=1e-6)
    positive = LOGITS.abs()  # does not sum to 1: raw
    assert torch.equal(read(files_of(tmp_path, IMAGES, positive), data).tensors["logits"], positive)


def test_soft_labels_of_an_uneven_set(data, tmp_path):
    """21 images of 10 classes: the class of an image is the largest logit."""
    logits = torch.cat([torch.eye(10).repeat_interleave(2, 0), torch.eye(10)[3:4]]) * 5
    syn = read(files_of(tmp_path, torch.randn(21, 1, 8, 8), logits), data)
    assert torch.equal(syn.classes, torch.cat([CLASSES, torch.tensor([3])]))


def test_results_of_dc(data, tmp_path):
    """The last experiment, or the one asked for."""
    pairs = [[IMAGES + i, CLASSES.roll(2 * i)] for i in range(3)]
    path = saved(
        tmp_path / "res_DC.pt",
        {"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float32(0.25)]}},
    )
    for experiment, wanted in ((None, 2), (0, 0), (1, 1), (2, 2)):
        syn = read(path, data, experiment=experiment)
        assert torch.equal(syn.tensors["images"], pairs[wanted][0]) and torch.equal(
            syn.classes, pairs[wanted][1]
        )
        assert syn.lr is None
    with pytest.raises(UserError, match=r"--experiment 3 is not in .* 0 to 2"):
        read(path, data, experiment=3)
    with pytest.raises(UserError, match="--experiment -1"):
        read(path, data, experiment=-1)
    with pytest.raises(UserError, match="labels of its own"):
        read(path, data, labels=path)


NAN = IMAGES.clone()
NAN[3, 0, 2, 2] = torch.nan
BAD_SETS = {
    "not-4d": ((IMAGES[0],), {}, r"shape \(1, 8, 8\) \(float32\) and not images"),
    "integers": ((torch.zeros(20, 1, 8, 8, dtype=torch.uint8),), {}, "not images, which are a float tensor"),
    "sparse": ((torch.zeros(20, 1, 8, 8).to_sparse(),), {}, "not images"),
    "no-images": ((IMAGES[:0],), {}, "not images"),
    "dict": (({"images": IMAGES},), {}, r"holds a state dict of 1 tensors \(images\) and not images"),
    "number": ((3,), {}, "holds a value of type int and not images"),
    "nan": ((NAN,), {}, "numbers that are not finite"),
    "shape": ((torch.zeros(20, 3, 8, 8),), {}, r"\(3, 8, 8\).* and those of data.name are \(1, 8, 8\)"),
    "uneven": ((IMAGES[:15],), {}, "15 images .* not as many for each of 10 classes"),
    "fewer-labels": ((IMAGES, CLASSES[:10]), {}, r"shape \(10,\), and 20 images .* need \(20,\), one class"),
    "other-classes": ((IMAGES, LOGITS[:, :9]), {}, r"shape \(20, 9\), and 20 images .* need \(20, 10\)"),
    "soft-one-dim": ((IMAGES, LOGITS[:, 0]), {}, r"shape \(20,\).* need \(20, 10\)"),
    "hard-two-dim": ((IMAGES, CLASSES[:, None]), {}, r"shape \(20, 1\).* need \(20,\)"),
    "class-too-high": ((IMAGES, CLASSES + 1), {}, "from 1 to 10, and the classes from 0 to 9"),
    "class-negative": ((IMAGES, CLASSES - 1), {}, "from -1 to 8"),
    "class-missing": ((IMAGES, CLASSES.clamp(max=8)), {}, "leave class 9"),
    "logits-nan": ((IMAGES, LOGITS / 0), {}, "labels .* not finite"),
    "labels-list": ((IMAGES, [1, 2]), {}, "are a value of type list and not a tensor"),
    "labels-bool": ((IMAGES, torch.zeros(20, 10, dtype=torch.bool)), {}, "not a tensor of numbers"),
    "lr-negative": ((IMAGES, CLASSES, torch.tensor(-0.1)), {}, r"lr_best.pt says a learning rate of -0.1.*--lr"),
    "lr-nan": ((IMAGES, CLASSES, torch.tensor(torch.nan)), {}, "lr_best.pt says a learning rate of nan"),
    "lr-several": ((IMAGES, CLASSES, torch.ones(3)), {}, r"lr_best.pt holds a tensor of shape \(3,\) \(float32\) and not one"),
    "lr-given": ((IMAGES, CLASSES), {"lr": 0.0}, "--lr says a learning rate of 0"),
    "experiment": ((IMAGES, CLASSES), {"experiment": 0}, "--experiment 0 chooses from a result of DC"),
    "dc-empty": (({"data": []},), {}, "data in .* is a value of type list"),
    "dc-nesting": (({"data": [IMAGES]},), {}, "Experiment 0 in .* is not a pair"),
    "dc-one": (({"data": [[IMAGES]]},), {}, "Experiment 0 in .* is not a pair"),
    "dc-labels": (({"data": [[IMAGES, CLASSES[:3]]]},), {}, r"labels in .*images_best.pt have shape \(3,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "options", "words"), BAD_SETS.values(), ids=BAD_SETS)
def test_sets_that_do_not_fit(data, tmp_path, parts, options, words):
    """One sentence that says what there is and what should be."""
    path = files_of(tmp_path, *parts)
    with pytest.raises(UserError, match=words) as refused:
        read(path, data, **options)
    assert "\n" not in str(refused.value)


def small_set(data, **scalars):
    tensors = {"images": IMAGES.clone()} | {k: torch.tensor(v) for k, v in scalars.items()}
    return SyntheticSet(tensors, CLASSES, data.class_names, Identity(), data.train.preprocess)


def test_set_round_trip(data, tmp_path):
    """Out and in again: classes and rate, then logits; and a set of pixels comes out as networks
    see it.
    """
    syn = small_set(data, lr=0.03)
    paths = sets.export_set(syn, "8", tmp_path)
    assert [p.name for p in paths] == ["images_8.pt", "labels_8.pt", "lr_8.pt"]
    assert (
        torch.load(paths[1], weights_only=True).dtype == torch.int64
        and torch.load(paths[2], weights_only=True).shape == ()
    )
    again = read(paths[0], data)
    assert all(
        torch.equal(again.tensors[k], syn.tensors[k]) for k in ("images", "lr")
    ) and torch.equal(again.classes, syn.classes)

    soft = syn.with_labels(LOGITS)
    paths = sets.export_set(soft, "soft", tmp_path)
    again = read(paths[0], data)
    assert torch.equal(again.tensors["logits"], LOGITS) and torch.equal(
        again.batch(torch.arange(20)).targets, LOGITS
    )

    syn.space, syn.tensors = "pixel", {"images": syn.pixels()}
    paths = sets.export_set(syn, "pixel", tmp_path)
    assert len(paths) == 2
    assert torch.allclose(torch.load(paths[0]), soft.tensors["images"], atol=1e-5)
    with pytest.raises(UserError, match=r"images_pixel\.pt exists already"):
        sets.export_set(syn, "pixel", tmp_path)
    assert not list(tmp_path.glob(".writing-*"))


def test_features_have_no_file(data, tmp_path):
    """Targets that only this engine knows."""
    syn = small_set(data)
    syn.targets = Features()
    with pytest.raises(UserError, match="labels of this set are features"):
        sets.export_set(syn, "a", tmp_path)
    assert not list(tmp_path.iterdir())
