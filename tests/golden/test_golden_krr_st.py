"""KRR-ST's objective against inputs and outputs of the published implementation."""

from types import SimpleNamespace

import pytest
import torch
from golden_files import convnet, load, shapes_of
from torch import nn

from ddengine.learning.flat import FlatModel
from ddengine.learning.kernel_ridge import dual, predictions, primal, with_constant
from ddengine.models.convnet import ConvNet
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig
from ddengine.sets.codec import Identity
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.rng import generator
from synth.krr_st import KrrSt, regression_loss
from synth.pool import Pool

F64 = torch.float64


def assert_close(ours: torch.Tensor, stored: torch.Tensor, tolerance: float) -> None:
    """Largest difference over the largest stored number."""
    error = (ours - stored).abs().max() / stored.abs().max()
    assert ours.shape == stored.shape
    assert error <= tolerance, f"error {error:.3g}, tolerance {tolerance:g}"


def test_loss_of_features():
    """The loss and its gradients, from features that are given; lambda is a constant."""
    golden = load("krr_st", F64)
    leaves = [golden[name].clone().requires_grad_() for name in ("features_syn", "targets_syn")]
    loss = regression_loss(golden["features_real"], *leaves, golden["targets_real"])
    assert_close(loss, golden["loss"], 1e-10)
    of_features, of_targets = torch.autograd.grad(loss, leaves)
    assert_close(of_features, golden["grad_features_syn"], 1e-10)
    assert_close(of_targets, golden["grad_targets_syn"], 1e-10)


@pytest.mark.parametrize("form", [dual, primal])
def test_both_forms_say_the_same(form):
    """And the one that is chosen is one of them."""
    golden = load("krr_st", F64)
    real, syn = (with_constant(golden[f"features_{which}"]) for which in ("real", "syn"))
    said = form(real, syn, golden["targets_syn"])
    assert_close(said, predictions(real, syn, golden["targets_syn"]), 1e-8)
    loss = (said - golden["targets_real"]).square().mean()
    assert_close(loss, golden["loss"], 1e-8)


class Target(nn.Module):
    """A target network that says stored vectors of a batch of images."""

    def __init__(self, said: torch.Tensor):
        super().__init__()
        self.said = said

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The vectors, whatever the images are."""
        assert len(images) == len(self.said)
        return self.said


def network_of(golden) -> ConvNet:
    """The network of the file."""
    image_shape = golden["net.x_syn"].shape[1:]
    return convnet(shapes_of("krr_st"), image_shape, "bn").double()


def test_objective_of_a_network():
    """A step of the objective, whose pool holds the network of the file."""
    golden = load("krr_st", F64)
    targets = golden["net.targets_syn"]
    num = len(targets)

    def new_model(rng):
        return network_of(golden)

    class Real:
        """Real images, in the order of the file."""

        def __len__(self):
            return len(golden["net.x_real"])

        def images(self, index):
            assert sorted(index.tolist()) == list(range(len(self)))
            return golden["net.x_real"]

    class Experts:
        """The target network."""

        epochs = (0,)

        def load(self, expert, epoch):
            return Target(golden["net.targets_real"])

    device = torch.device("cpu")
    env = Env(Real(), new_model, FlatModel(new_model(generator(0))), Experts(), device)
    config = KrrSt(
        pool=Pool(size=1, steps=2),
        augment=AugmentConfig(ops=()),
        real_batch=len(golden["net.x_real"]),
    )
    objective = config.build(env)
    state = objective.init(generator(0))
    # an earlier step drew the network, and there is no more training before the next
    state["last"] = torch.zeros_like(state["last"])
    statistics = []
    for block in range(sum(name.startswith("net.bn_running_mean.") for name in golden)):
        mean = golden[f"net.bn_running_mean.{block}"]
        var = golden[f"net.bn_running_var.{block}"]
        statistics += [mean, var, torch.zeros(1, dtype=F64)]
    state["theta.0"] = golden["net.params"]
    state["statistics.0"] = torch.cat(statistics)
    objective.networks._go_on = lambda *args: None
    leaves = {
        "images": golden["net.x_syn"].clone().requires_grad_(),
        "features": targets.clone().requires_grad_(),
    }
    classes = torch.zeros(num, dtype=torch.long)
    preprocess = SimpleNamespace()
    plain = SyntheticSet({"images": leaves["images"]}, classes, ("0",), Identity(), preprocess)
    syn = plain.with_features(targets, F64).with_tensors(leaves)
    (loss,) = objective.losses(syn, state, 1, generator(0))
    assert_close(loss, golden["net.loss"], 1e-8)
    of_images, of_targets = torch.autograd.grad(loss, list(leaves.values()))
    assert_close(of_images, golden["net.grad_x_syn"], 1e-8)
    assert_close(of_targets, golden["net.grad_targets_syn"], 1e-8)
