"""Self-supervised experts: the loss, what is trained, and that labels are never read."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_data
from torch import nn

from buffers.barlow import BarlowTwins, projector, redundancy
from buffers.train import train_expert
from ddengine.data import Data, RealSet
from ddengine.learning.probe import linear_probe
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig, BufferConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

NETWORK = "convnet-d1-w4-bn"
VIEWS = AugmentConfig(always=("resized_crop", "color"), ops=(), area=0.3)
STEP = BarlowTwins(lr=0.01, widths=(32, 16))
BUFFER = BufferConfig(step=STEP, num_experts=1, epochs=2, batch=32, augment=VIEWS)


def trained(data: Data, config: BufferConfig = BUFFER, name: str = NETWORK):
    """(the network after its training, what is stored of it)."""
    network = build_model(name, data.image_shape, data.num_classes, generator(0, "network"))
    return network, train_expert(network, data, config, 0)


def with_labels(data: Data, labels: torch.Tensor) -> Data:
    """The same images with other labels, in training and validation."""
    train = RealSet(data.train.pixels, labels, 10, data.train.preprocess)
    held_out = data.validation
    assert held_out is not None
    wrong = RealSet(held_out.pixels, 0 * held_out.labels, 10, held_out.preprocess)
    return replace(data, train=train, validation=wrong)


def test_loss_is_that_of_the_paper():
    """Written out once more by numpy's correlation coefficients."""
    rng = generator(0)
    first, second = (torch.randn(50, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    both = torch.corrcoef(torch.cat([first, second], 1).T)
    c = both[:4, 4:]
    wanted = 0.0
    for i in range(4):
        for j in range(4):
            wanted += (1 - c[i, j]) ** 2 if i == j else 0.3 * c[i, j] ** 2
    assert redundancy(first, second, 0.3) == pytest.approx(float(wanted), rel=1e-3)  # eps 1e-5
    assert redundancy(first, first * 7 - 2, 0.0) == pytest.approx(0.0, abs=1e-8)


def test_labels_are_never_read():
    """Permuted and replaced labels give the same store to the bit."""
    data = tiny_data()
    _, stored = trained(data)
    assert stored.buffers is not None and stored.metrics["validation_accuracy"] == []
    order = torch.randperm(len(data.train), generator=generator(3))
    for labels in (data.train.labels[order], torch.zeros_like(data.train.labels)):
        assert not torch.equal(labels, data.train.labels)
        _, other = trained(with_labels(data, labels))
        assert torch.equal(other.params, stored.params)
        assert torch.equal(other.buffers, stored.buffers)
        assert other.metrics == stored.metrics


def test_features_are_trained_and_the_last_layer_is_not():
    """The loss falls by half, and a linear probe finds more in the features than before."""
    data = tiny_data()
    before = build_model(NETWORK, data.image_shape, 10, generator(0, "network"))
    network, stored = trained(data, replace(BUFFER, epochs=20))
    losses = stored.metrics["train_loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(network.classifier.weight, before.classifier.weight)
    assert not torch.equal(network.features[0].weight, before.features[0].weight)
    probed = [linear_probe(n, data.train, data.validation).accuracy for n in (before, network)]
    assert probed[1] > 0.5


def test_views_differ_and_follow_from_the_expert():
    """Two views of an image are two draws; another expert, and another seed, sees others."""
    data = tiny_data()
    seen = []

    class Watching(BarlowTwins):
        """Keeps what it is given."""

        def build(self, model, epochs):
            def step(images, labels, plain, epoch):
                seen.append((images, plain))
                return torch.zeros(())

            return step

    watching = replace(BUFFER, step=Watching(widths=(8,)), epochs=1)
    trained(data, watching)
    images, plain = seen[0]
    first, second = images.chunk(2)
    assert first.shape == plain.shape and not torch.equal(first, second)
    trained(data, replace(watching, seed=1))
    assert not torch.equal(seen[len(seen) // 2][0], images)


def test_projector_has_the_widths():
    """Linear layers without biases, with BatchNorm and ReLU between them."""
    layers = projector(12, (8, 6, 4))
    kinds = [type(layer) for layer in layers]
    between = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*between, *between, nn.Linear]
    assert layers(torch.randn(3, 12)).shape == (3, 4)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"lr": 0.0}, "buffer.step.lr must be positive"),
        ({"off_diagonal": -1.0}, "buffer.step.off_diagonal must be finite and not negative"),
        ({"widths": ()}, "names no layer of the projector"),
        ({"widths": (8, 0)}, "buffer.step.widths must be at least 1"),
    ],
)
def test_bad_settings_are_refused(setting, sentence):
    """In one sentence."""
    with pytest.raises(UserError, match=sentence):
        BarlowTwins(**setting)
