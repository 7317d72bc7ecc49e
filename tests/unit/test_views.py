"""Views of a stored image that a second network keeps apart (HaBa)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_data, tiny_env, tiny_set, tiny_store

from ddengine.recipe import OptimConfig
from ddengine.sets.codec import Hallucinated
from ddengine.sets.synthetic import coded
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.views import THETA, Extractor, ViewsApart, extractor_loss, pairs, supervised_contrast


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def hallucinated(data, styles=3):
    """Two stored images of each class, each seen in three ways; leaves."""
    num = 2 * data.num_classes
    classes = torch.arange(data.num_classes).repeat_interleave(2)
    images = torch.rand(num, *data.image_shape, generator=generator(0, "images"))
    codec, _ = Hallucinated(styles=styles, items=2).within(
        10**6, data.image_shape, data.num_classes
    )
    syn = coded(codec, images, classes, data.class_names, data.train.preprocess)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in syn.tensors.items()}
    return syn.with_tensors(leaves)


def test_a_pair_is_two_views_of_one_stored_image():
    source = torch.tensor([0, 1, 2, 0, 1, 0, 3])
    seen = set()
    for seed in range(60):
        one, other = pairs(source, 9, generator(seed)).tolist()
        assert sorted(source[one].tolist()) == [0, 1]  # the others have one view
        assert torch.equal(source[one], source[other])
        assert all(a != b for a, b in zip(one, other, strict=True))
        seen.update(zip(one, other, strict=True))
    assert seen == {(a, b) for a in (0, 3, 5) for b in (0, 3, 5) if a != b} | {(1, 4), (4, 1)}
    assert pairs(source, 1, generator(0)).shape == (2, 1)


def test_the_losses_are_those_of_the_paper():
    rng = generator(0)
    logits = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    features = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    classes = torch.tensor([0, 1, 1, 0, 1, 1])
    z = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    shares = np.exp(z @ z.T / 0.5)
    contrast = []
    for i in range(6):
        others = [a for a in range(6) if a != i]
        total = shares[i, others].sum()
        alike = [np.log(shares[i, p] / total) for p in others if classes[p] == classes[i]]
        contrast.append(-np.mean(alike))
    found = float(supervised_contrast(features, classes, 0.5))
    assert found == pytest.approx(np.mean(contrast), rel=1e-12)
    said = logits.log_softmax(1).numpy()
    classify = -np.mean([said[i, c] for i, c in enumerate(classes.tolist())])
    cosines = (z[:3] * z[3:]).sum(1)
    config = ViewsApart(classify=2.0, alike=0.3, contrast=0.7, temperature=0.5)
    wanted = 2 * classify + 0.3 * np.mean((1 - cosines) / 2) + 0.7 * np.mean(contrast)
    assert float(extractor_loss(config, logits, features, classes)) == pytest.approx(wanted)


def test_the_extractor_moves_first_and_the_codec_away_from_it(data):
    env, syn = tiny_env(data, None), hallucinated(data)
    config = ViewsApart(weight=0.4, items=5)
    extractor = Extractor(config, env)
    state = extractor.start(generator(0))
    before = state[THETA].clone()
    loss = extractor.loss(syn, state, generator(1))
    assert not torch.equal(state[THETA], before)
    loss.backward()
    assert syn.tensors["kernels"].grad.abs().sum() > 0
    still = Extractor(replace(config, optim=OptimConfig(lr=0.0)), env)
    kept = {THETA: before}
    value = float(still.loss(syn, kept, generator(1)).detach())
    assert torch.equal(kept[THETA], before)
    network = env.new_model(generator(0)).train()
    index = pairs(syn.source, 5, generator(1)).flatten()
    with torch.no_grad():
        one, other = network.embed(syn.batch(index).images).flatten(1).chunk(2)
        cosines = torch.nn.functional.cosine_similarity(one, other)
    assert value == pytest.approx(0.4 * float((cosines + 1).mean()) / 2, rel=1e-5)


def test_the_extractor_goes_on_from_its_state(data):
    """What it has become is all that it keeps."""
    syn = hallucinated(data)
    config, env = ViewsApart(items=3), tiny_env(data, None)
    extractor = Extractor(config, env)
    state = extractor.start(generator(0))
    extractor.loss(syn, state, generator(1))
    copied = {name: tensor.clone() for name, tensor in state.items()}
    value = extractor.loss(syn, state, generator(2))
    again = Extractor(config, env).loss(syn, copied, generator(2))
    assert torch.equal(value, again)
    assert all(torch.equal(copied[name], tensor) for name, tensor in state.items())
    assert len(state) == 2  # parameters and momentum


def test_it_is_a_second_loss_of_trajectory_matching(data, tmp_path):
    """Whose first is as it would be without."""
    store = tiny_store(tmp_path, data)
    recipe = find("haba/fashion_mnist_ipc1_small")
    config = recipe.objective.small()
    assert config.views.items == 4
    objective = config.build(tiny_env(data, store))
    syn = hallucinated(data)
    syn = syn.with_tensors({**syn.tensors, "lr": torch.tensor(0.05, requires_grad=True)})
    state = objective.init(generator(0))
    losses = list(objective.losses(syn, state, 0, generator(3)))
    plain = replace(config, views=None).build(tiny_env(data, store))
    assert plain.init(generator(0)) == {}
    (alone,) = plain.losses(syn, {}, 0, generator(3))
    assert len(losses) == 2 and torch.equal(losses[0], alone)
    with pytest.raises(UserError, match="shows each in one way; take a codec such as"):
        config.choices(objective, tiny_set(data, lr=0.1), 10**9)
