"""The plain loops that the engine is measured against do what the published programs do."""

import sys
from pathlib import Path

import pytest
import torch
from golden_files import load

from ddengine.learning.flat import unflatten_into
from ddengine.models.convnet import ConvNet

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import plain_loops

F64 = torch.float64


def apart(ours, stored):
    """Norm of the difference over the norm of the stored tensor."""
    assert ours.shape == stored.shape
    return float((ours - stored).norm() / stored.norm())


def unchanged(images, *_):
    """In place of augmentation."""
    return images


def test_the_plain_step_of_mtt():
    """Loss, end and gradients of the images and of the rate."""
    golden = load("mtt_step", F64)
    network = plain_loops.of_torchs_layers(ConvNet((3, 32, 32), 10, width=8)).to(F64)
    images, lr = golden["x"].clone().requires_grad_(), golden["lr"].clone().requires_grad_()
    loss, end = plain_loops.mtt_loss(
        network, golden["start"], golden["target"], images, golden["labels"], lr,
        golden["indices"], unchanged,
    )  # fmt: skip
    by_images, by_lr = torch.autograd.grad(loss, [images, lr])
    assert apart(loss.detach(), golden["loss"]) < 1e-10
    assert apart(end.detach(), golden["thetas"][-1]) < 1e-10
    assert apart(by_images, golden["grad_x"]) < 1e-10 and apart(by_lr, golden["grad_lr"]) < 1e-10


def test_the_plain_distance_of_dc():
    golden = load("dc_distance", F64)
    real, syn = (
        [golden[k] for k in sorted(golden) if k.startswith(f"{side}.")] for side in ("real", "syn")
    )
    for tensor in syn:
        tensor.requires_grad_()
    distance = plain_loops.layerwise_distance(real, syn)
    assert apart(distance.detach(), golden["distance_ours"].reshape(())) < 1e-12
    slopes = torch.autograd.grad(distance, syn, allow_unused=True, materialize_grads=True)
    flat = torch.cat([slope.flatten() for slope in slopes])
    assert apart(flat, golden["grad_syn_ours"].flatten()) < 1e-12


def test_the_plain_step_of_dm():
    golden = load("dm_loss", F64)
    network = plain_loops.of_torchs_layers(ConvNet((1, 28, 28), 10, width=16)).to(F64)
    unflatten_into(network, golden["params"])
    images = golden["x_syn"].clone().requires_grad_()
    loss = plain_loops.dm_loss(network.embed, list(golden["x_real"]), list(images), unchanged)
    assert apart(loss.detach(), golden["loss"].reshape(())) < 1e-11
    assert apart(torch.autograd.grad(loss, images)[0], golden["grad_x_syn"]) < 1e-11


@pytest.mark.parametrize("num", [1, 3])
def test_the_plain_step_of_dsa_sums_the_classes(num):
    """Of a gradient against itself nothing is left; both sides see the same draw."""
    network = ConvNet((3, 8, 8), 3, width=4, depth=1)
    images = [torch.randn(2, 3, 8, 8) for _ in range(num)]
    seen = []

    def noted(batch, c):
        seen.append(c)
        return batch + c

    equal = plain_loops.dsa_loss(network, images, images, noted).detach()
    assert seen == [c for c in range(num) for _ in range(2)]
    others = [batch.flip(3) + torch.randn_like(batch) for batch in images]
    unequal = plain_loops.dsa_loss(network, images, others, noted).detach()
    assert abs(float(equal)) < 0.01 < 0.1 < float(unequal)
