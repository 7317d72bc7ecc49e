"""A last batch of one image, from which BatchNorm cannot learn in maps of one pixel."""

import pytest
import torch
from helpers import CPU

from buffers.steps import Sgd
from buffers.train import train_expert
from ddengine.data import load_data
from ddengine.learning import training
from ddengine.learning.last_batch import check_last_batch
from ddengine.models import build_model
from ddengine.recipe import BufferConfig, DataConfig, EvalConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

LARGE = "torchvision/resnet18"


@pytest.fixture(scope="module")
def data():
    """Digits, 17 of them to train on."""
    return load_data(DataConfig(name="digits", limit=17, validation=0.0), CPU)


def network(name=LARGE):
    """For digits."""
    return build_model(name, (1, 8, 8), 10, generator(0))


def test_one_image_of_single_pixels_is_refused_with_the_flag_to_turn(data):
    says = r"^The last batch of 17 images holds one, .* set evaluation\.batch, now 8, to another"
    with pytest.raises(UserError, match=says):
        check_last_batch(network(), data.train, 8, "evaluation.batch")
    config = EvalConfig(protocol="test", epochs=1, batch=16)
    with pytest.raises(UserError, match=r"evaluation\.batch, now 16"):
        build = lambda rng: network()  # noqa: E731
        training.train_networks(build, [data.train], [0], config, 0.01, CPU, steps=1)
    buffer = BufferConfig(step=Sgd(lr=0.1), num_experts=1, epochs=1, batch=4)
    with pytest.raises(UserError, match=r"buffer\.batch, now 4"):
        train_expert(network(), data, buffer, 0)


@pytest.mark.parametrize(
    ("name", "batch"),
    [(LARGE, 5), (LARGE, 17), (f"{LARGE}-small", 8), ("convnet-d1-w4-in", 8), ("vgg11-bn", 16)],
)
def test_what_can_be_learnt_from_is_left_alone(data, name, batch):
    """Other batches, networks whose maps are larger, networks without BatchNorm."""
    of = network(name)
    before = {key: value.clone() for key, value in of.state_dict().items()}
    state = torch.get_rng_state()
    check_last_batch(of.eval(), data.train, batch, "evaluation.batch")
    assert torch.equal(torch.get_rng_state(), state) and not of.training
    assert all(torch.equal(before[key], value) for key, value in of.state_dict().items())


def test_a_set_of_one_image_is_a_last_batch(data):
    class One:
        def __len__(self):
            return 1

        def batch(self, index):
            return data.train.batch(index)

    with pytest.raises(UserError, match="The last batch of 1 images"):
        check_last_batch(network(), One(), 256, "evaluation.batch")
    with pytest.raises(UserError, match="now 1"):
        check_last_batch(network(), data.train, 1, "evaluation.batch")
