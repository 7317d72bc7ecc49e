"""Several sets as one: classes, labels, what is refused; and some classes of a dataset."""

from dataclasses import replace

import pytest
import torch

from ddengine.artefact.merging import (
    Member,
    are_peoples_own,
    check_named,
    class_ids,
    class_maps,
    same_data,
    whole_data,
)
from ddengine.data import Preprocess, load_data
from ddengine.data.subset import class_subset, of_classes
from ddengine.recipe import DataConfig
from ddengine.sets.codec import Compensated, Identity, MultiFormation, Pixels
from ddengine.sets.merge import merge
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError

CPU = torch.device("cpu")
PLAIN = Preprocess(mean=torch.tensor([0.25]), std=torch.tensor([0.5]))
NAMES = tuple("abcdefgh")


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig(name="digits"), CPU, test=True)


def made(names, *, each=2, seed=0, codec=None, preprocess=PLAIN, **scalars):
    """Noise images, `each` of every class."""
    images = torch.rand(len(names) * each, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    tensors = {"images": images} | {k: torch.tensor(v) for k, v in scalars.items()}
    codec = codec or Identity()
    return SyntheticSet(
        tensors,
        torch.arange(len(names)).repeat_interleave(each),
        tuple(names),
        codec,
        preprocess,
        space=codec.space,
    )


def test_a_merged_set_has_the_classes_of_the_maps_and_all_images_in_order():
    one, other = made("hc"), made("da", each=1, seed=1)
    syn = merge([one, other], [[7, 2], [3, 0]], NAMES)
    assert syn.classes.tolist() == [7, 7, 2, 2, 3, 0] and syn.class_names == NAMES and len(syn) == 6
    batch = syn.batch(torch.tensor([4, 0, 5]))
    assert batch.targets.tolist() == [3, 7, 0]
    assert torch.equal(
        batch.images,
        torch.cat(
            [other.tensors["images"][:1], one.tensors["images"][:1], other.tensors["images"][1:]]
        ),
    )
    assert syn.nbytes == one.nbytes + other.nbytes


def test_sets_of_the_same_classes_are_appended():
    syn = merge([made("ab"), made("bc", seed=1)], [[0, 1], [1, 2]], NAMES[:3])
    assert torch.bincount(syn.classes).tolist() == [2, 4, 2]


def test_a_learned_rate_is_the_mean_where_all_have_one():
    assert merge([made("a", lr=0.1), made("b", lr=0.3)], [[0], [1]], "ab").lr == pytest.approx(0.2)
    assert merge([made("a", lr=0.1), made("b")], [[0], [1]], "ab").lr is None
    one_a_step = made("b", lr=0.3)
    one_a_step.tensors["lr"] = torch.full((3,), 0.3)
    assert merge([made("a", lr=0.1), one_a_step], [[0], [1]], "ab").lr is None


def test_soft_labels_keep_their_probabilities_and_say_nothing_of_other_classes():
    logits = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(5))
    one, other = (
        made(names, seed=i).with_labels(logits[i], dtype=torch.float16)
        for i, names in enumerate(("hc", "da"))
    )
    syn = merge([one, other], [[7, 2], [3, 0]], NAMES)
    assert syn.tensors["logits"].shape == (8, 8) and syn.tensors["logits"].dtype == torch.float16
    for temperature in (1, 30):
        said = (syn.batch(torch.arange(8)).targets / temperature).softmax(1)
        assert said[:4][:, [7, 2]].allclose((one.logits / temperature).softmax(1)) and said[:4].sum(
            1
        ).allclose(torch.ones(4))
        assert (
            said[4:][:, [3, 0]].allclose((other.logits / temperature).softmax(1))
            and said[4:, [1, 2, 4, 5, 6, 7]].max() == 0
        )


def test_labels_of_decoded_examples_follow_them():
    """IDC decodes tile by tile over all items, so the examples of two sets interleave."""
    sets = [
        made(names, seed=i, codec=MultiFormation(factor=2)).with_labels(
            100.0 * i + torch.arange(32.0).view(16, 2)
        )
        for i, names in enumerate(("hc", "da"))
    ]
    assert sets[0].label_of == "decoded"
    maps = [[7, 2], [3, 0]]
    batch = (syn := merge(sets, maps, NAMES)).batch(torch.arange(len(syn)))
    images, labels = [], []
    for part, own in zip(sets, maps, strict=True):
        decoded = part.batch(torch.arange(len(part)))
        images.append(decoded.images)
        labels += [(own, target) for target in decoded.targets]
    nearest = torch.cdist(batch.images.flatten(1).double(), torch.cat(images).flatten(1).double())
    assert (
        nearest.shape == (32, 32)
        and sorted(nearest.argmin(1).tolist()) == list(range(32))
        and nearest.amin(1).max() < 1e-5
    )
    for target, place in zip(batch.targets, nearest.argmin(1).tolist(), strict=True):
        own, said = labels[place]
        assert torch.equal(target[own], said)


def test_labels_of_some_largest_logits_are_written_out():
    sets = [
        made(names, seed=i).with_labels(
            torch.randn(8, 4, generator=torch.Generator().manual_seed(i)), top=1
        )
        for i, names in enumerate(("abcd", "efgh"))
    ]
    assert "logits.index" in sets[0].tensors
    syn = merge(sets, [range(4), range(4, 8)], NAMES)
    assert "logits.index" not in syn.tensors and torch.equal(syn.logits[:8, :4], sets[0].logits)


def test_another_preprocessing_is_refused_or_images_are_brought_under_one():
    other = replace(PLAIN, mean=torch.tensor([0.5]))
    sets = [made("ab"), made("cd", seed=1, preprocess=other)]
    with pytest.raises(UserError, match="Set 2 has another preprocessing"):
        merge(sets, [[0, 1], [2, 3]], "abcd")
    syn = merge(sets, [[0, 1], [2, 3]], "abcd", PLAIN)
    assert syn.pixels()[4:].allclose(sets[1].pixels()) and syn.preprocess is PLAIN
    # what is the same already needs no codec that can be brought under another
    tiles = [made("ab", codec=MultiFormation()), made("cd", codec=MultiFormation(), seed=1)]
    tiles = [replace(syn, space="model") for syn in tiles]
    assert len(merge(tiles, [[0, 1], [2, 3]], "abcd", PLAIN)) == sum(map(len, tiles))
    stored = [made("ab", codec=Pixels()), made("cd", codec=Pixels(), preprocess=other)]
    assert (
        merge(stored, [[0, 1], [2, 3]], "abcd", PLAIN)
        .batch(torch.tensor([4]))
        .images.allclose(PLAIN.forward(stored[1].pixels()[:1]))
    )


@pytest.mark.parametrize(
    ("change", "map_", "message"),
    [
        ({}, [2, 2], "map of set 2"),
        ({}, [2], "map of set 2"),
        ({}, [2, 4], "from 0 to 3"),
        ({"codec": Pixels()}, [2, 3], "another codec"),
        ({"codec": Compensated(base=2, compensators=1)}, [2, 3], "compensators"),
        ({"weight": 1.0}, [2, 3], "holds weight"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(change, map_, message):
    with pytest.raises(UserError, match=message) as error:
        merge([made("ab"), made("cd", **change)], [[0, 1], map_], "abcd")
    assert str(error.value).count(". ") == 0


def test_kinds_of_labels_and_types_of_images_are_not_mixed():
    soft, pixels = made("ab").with_labels(torch.zeros(4, 2)), made("ab", codec=Pixels())
    with pytest.raises(UserError, match="kind of labels"):
        merge([made("ab"), soft], [[0, 1], [0, 1]], "ab")
    with pytest.raises(UserError, match="type of images"):
        merge([pixels, pixels.shipped()], [[0, 1], [0, 1]], "ab")
    with pytest.raises(UserError, match="at least one"):
        merge([], [], "ab")


def test_class_maps_go_by_name_in_order_of_first_appearance():
    names = [("7", "2"), ("3", "7")]
    assert class_maps(names) == ([[0, 1], [2, 0]], ("7", "2", "3"))
    assert class_maps(names, sort_numbers=True) == ([[2, 0], [1, 2]], ("2", "3", "7"))
    words = [("b", "10"), ("2", "a")]
    assert class_maps(words, sort_numbers=True)[1] == ("b", "10", "2", "a")
    with pytest.raises(UserError, match="two classes called 'a'"):
        class_maps([("a", "a")])


def test_sets_of_peoples_own_images_are_told_from_sets_of_one_dataset():
    """By where the images lie: two folders are two people's, one folder is one dataset."""
    own, flowers = DataConfig(name="own"), DataConfig(name="folder", root="flowers")
    assert are_peoples_own([own, own]) and are_peoples_own([own, flowers])
    assert are_peoples_own([flowers, replace(flowers, root="others")])
    assert not are_peoples_own([flowers, flowers]) and not are_peoples_own([config(), config()])
    for other in (own, DataConfig(name="mnist")):
        with pytest.raises(UserError, match=r"Set 2 is of dataset .*merge sets of one dataset"):
            are_peoples_own([config(), other])
    check_named([{"recipe": {"data": {"name": "own"}}}])
    with pytest.raises(
        UserError, match=r"Set 2 does not say of which dataset it is.*distill it again"
    ):
        check_named([{"recipe": {"data": {"name": "own"}}}, {}])


def config(**settings):
    return DataConfig(name="digits", **settings)


@pytest.mark.parametrize(
    "settings",
    [{"validation": 0.2}, {"limit": 200}, {"split_seed": 1}, {"zca": True}, {"size": (9, 9)}],
)
def test_sets_of_other_images_are_not_merged(settings):
    """Test images of one may be training images of the other."""
    with pytest.raises(
        UserError, match=f"Set 2 was made with data.{next(iter(settings))} "
    ) as error:
        same_data([config(classes=(7, 2)), config(classes=(3, 4), **settings)])
    assert str(error.value).count(". ") == 0
    same_data([config(classes=(7, 2)), config(classes=(3, 4), root="elsewhere", download=True)])


def test_a_limit_takes_other_images_for_each_choice_of_classes():
    same_data([config(limit=100, classes=(7, 2)), config(limit=100, classes=(7, 2))])
    with pytest.raises(UserError, match=r"distill them with data\.limit None"):
        same_data([config(limit=100, classes=(7, 2)), config(limit=100, classes=(2, 0, 5))])


def test_ids_of_classes_are_not_invented():
    """Known where all sets say them and agree; a set that says nothing has all classes of the
    dataset, or is not believed.
    """
    maps = [[0, 1], [1, 2]]
    assert class_ids(maps, [config(classes=(7, 2)), config(classes=(2, 5))], 3) == [7, 2, 5]
    assert class_ids(maps, [config(), config(classes=(2, 5))], 3) is None
    assert class_ids(maps, [config(classes=(7, 2)), config(classes=(3, 5))], 3) is None
    assert class_ids(maps, [config(classes=(7, 2)), config(classes=(2, 7))], 3) is None
    assert class_ids(maps, [config(classes=(7, 2, 1)), config(classes=(2, 5))], 3) is None
    assert class_ids([[0, 1], [0, 1]], [config(), config()], 2) == [0, 1]


def test_the_images_of_the_whole_are_those_of_the_parts(capsys):
    """Their digest is known where every set saw its part of them; a set that saw others is refused;
    what cannot be checked is said.
    """
    configs, whole = [config(classes=(7, 2)), config(classes=(2, 5))], config(classes=(7, 2, 5))
    members = []
    for names, part in zip(("72", "25"), configs, strict=True):
        digest = load_data(part, CPU).train.digest
        members.append(Member(made(names), {"images": digest}, part, "somewhere"))
    found = whole_data(members, whole, PLAIN)
    assert (
        found is not None
        and found.train.digest == load_data(whole, CPU).train.digest
        and capsys.readouterr().out == ""
    )
    with pytest.raises(UserError, match="Set 2 was distilled from other images"):
        whole_data([members[0], replace(members[1], meta={"images": "0" * 12})], whole, PLAIN)
    with pytest.raises(UserError, match="Set 2 was distilled from other images"):
        whole_data([members[0], replace(members[1], syn=made("52"))], whole, PLAIN)
    assert whole_data([members[0], replace(members[1], meta={})], whole, PLAIN) is None
    assert "do not all say which images" in capsys.readouterr().out
    assert (
        whole_data(members, None, PLAIN) is None
        and "do not say which classes" in capsys.readouterr().out
    )
    gone = replace(configs[0], name="cifar10", root="/nowhere")
    assert (
        whole_data([replace(member, config=gone) for member in members], gone, PLAIN) is None
        and "cannot be read" in capsys.readouterr().out
    )


# Some classes of a dataset


def test_a_subset_of_loaded_data_is_numbered_anew_under_the_preprocessing_of_the_whole(digits):
    data = class_subset(digits, [7, 2])
    assert data.class_names == ("7", "2") and data.num_classes == 2 and data.train.num_classes == 2
    for part, whole in (
        (data.train, digits.train),
        (data.validation, digits.validation),
        (data.test, digits.test),
    ):
        assert [len(m) for m in part.members] == [len(whole.members[7]), len(whole.members[2])]
        assert (
            torch.equal(part.pixels[part.members[0]], whole.pixels[whole.members[7]])
            and part.preprocess is whole.preprocess
        )
    assert data.bytes == len(data.train) * 64 and data.dataset_bytes == digits.dataset_bytes
    assert class_subset(digits, [2, 7]).train.digest != data.train.digest != digits.train.digest
    with pytest.raises(UserError, match="twice"):
        class_subset(digits, [1, 1])
    with pytest.raises(UserError, match="classes 0 to 9"):
        class_subset(digits, [1, 10])


def test_images_of_classes_keep_their_labels(digits):
    real = of_classes(digits.test, [3, 8])
    assert real.labels.unique().tolist() == [3, 8] and len(real) == len(
        digits.test.members[3]
    ) + len(digits.test.members[8])


def loaded(**settings):
    return load_data(DataConfig(name="digits", **settings), CPU, test=True)


def test_data_classes_restricts_all_splits_to_the_images_they_have_of_these_classes(digits):
    data, subset = loaded(classes=(7, 2)), class_subset(digits, [7, 2])
    assert data.class_names == ("7", "2")
    for mine, same in (
        (data.train, subset.train),
        (data.validation, subset.validation),
        (data.test, subset.test),
    ):
        assert torch.equal(mine.pixels, same.pixels) and torch.equal(mine.labels, same.labels)
    flat = data.train.pixels.double().flatten() / 255
    # fitted on what remains
    assert data.train.preprocess.mean.item() == pytest.approx(flat.mean().item())
    assert data.train.preprocess.mean.item() != digits.train.preprocess.mean.item()


def test_a_limit_counts_images_of_these_classes():
    data = loaded(classes=(0, 9, 4), limit=60)
    assert len(data.train) + len(data.validation) == 60 and data.test.labels.unique().tolist() == [
        0,
        1,
        2,
    ]
    whole = loaded()
    tested = {p.numpy().tobytes() for p in whole.test.pixels}
    assert not tested & {p.numpy().tobytes() for p in data.train.pixels}


def test_all_classes_in_their_order_change_nothing(digits):
    assert loaded(classes=tuple(range(10))).train.digest == digits.train.digest


@pytest.mark.parametrize("classes", [(1,), (1, 1), (-1, 2), ()])
def test_data_classes_are_checked(classes):
    with pytest.raises(UserError, match="at least two different class numbers"):
        DataConfig(name="digits", classes=classes)


def test_a_class_that_the_dataset_has_not_is_named():
    with pytest.raises(
        UserError, match=r"data.classes names class 12, and the dataset has classes 0 to 9"
    ):
        loaded(classes=(1, 12))
