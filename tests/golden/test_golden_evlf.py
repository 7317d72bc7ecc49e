"""The fusion of EVLF against its published implementation."""

import json
import math

import pytest
import torch
from golden_files import GOLDEN, load
from safetensors import safe_open

from ddengine.learning.flat import unflatten_into
from synth.generative.fusion import Fusion, Projector, fusion_losses, mse_weight

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def shapes(name: str) -> dict[str, list[int]]:
    with safe_open(GOLDEN / "evlf.safetensors", "pt") as file:
        return dict(json.loads(file.metadata()[name]))


def networks(golden: dict[str, torch.Tensor]) -> tuple[Fusion, Projector]:
    of_fusion, of_projector = shapes("fusion_shapes"), shapes("projector_shapes")
    _, positions, width = of_fusion["pos_embed"]
    channels = of_fusion["latent_proj.weight"][1]
    text_width = of_fusion["text_proj.weight"][1]
    fusion = Fusion(
        channels,
        text_width,
        positions,
        width=width,
        heads=int(golden["heads"]),
        layers=int(golden["layers"]),
    )
    projector = Projector(channels, text_width, of_projector["conv_down.weight"][0])
    dtype = golden["latent"].dtype
    unflatten_into(fusion.to(dtype), golden["fusion_params"])
    unflatten_into(projector.to(dtype), golden["projector_params"])
    return fusion.eval(), projector.eval()


def assert_close(ours: torch.Tensor, stored: torch.Tensor, dtype: torch.dtype) -> None:
    assert ours.shape == stored.shape
    error = (ours.double() - stored.double()).norm() / stored.double().norm()
    assert error <= TOLERANCE[dtype], f"error {error:.3g}"


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_fusion_and_its_losses(dtype):
    golden = load("evlf", dtype)
    fusion, projector = networks(golden)
    latents, text = golden["latent"].requires_grad_(), golden["text"].requires_grad_()
    fused = fusion(latents, text)
    assert_close(fused, golden["fused"], dtype)
    assert_close(projector(fused), golden["projected"], dtype)
    classes = golden["labels"]
    ends = golden["text_position"].expand(len(classes))
    contrast, error = fusion_losses(
        fusion, projector, latents, text, classes, ends, temperature=float(golden["temperature"])
    )
    assert_close(contrast, golden["nce"], dtype)
    assert_close(error, golden["mse"], dtype)
    loss = golden["lambda1"] * contrast + golden["lambda2"] * error
    inputs = [latents, text, *fusion.parameters()]
    of_latents, of_text, *of_parameters = torch.autograd.grad(loss, inputs)
    assert_close(of_latents, golden["grad_latent"], dtype)
    assert_close(of_text, golden["grad_text"], dtype)
    flat = torch.cat([gradient.flatten() for gradient in of_parameters])
    assert_close(flat, golden["grad_fusion_params"], dtype)


def test_the_weight_of_the_squared_error():
    for step, total, weight in load("evlf", torch.float64)["ramp"].tolist():
        assert mse_weight(int(step), int(total)) == pytest.approx(weight, rel=1e-11)


def test_the_parameters_are_those_of_the_published_module():
    golden = load("evlf", torch.float64)
    for network, name in zip(networks(golden), ("fusion_shapes", "projector_shapes"), strict=True):
        ours = [parameter.numel() for parameter in network.parameters()]
        assert ours == [math.prod(shape) for shape in shapes(name).values()]
