"""NCFM, TGDD and the later parts of trajectory matching against their published implementations."""

import math

import pytest
import torch
from golden_files import convnet, load, names, shapes_of

from buffers import convex
from ddengine.learning.flat import FlatModel
from synth.distances import (
    Characteristic,
    LearnedCharacteristic,
    Means,
    characteristic_distance,
    sampled,
)
from synth.distances import characteristic as characteristic_function
from synth.distribution import judged
from synth.expert_networks import blended, judge_window
from synth.trajectory import matching_loss, nearest

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@pytest.fixture(params=DTYPES)
def dtype(request) -> torch.dtype:
    """float64 and float32."""
    return DTYPES[request.param]


def near(ours, stored, tolerance):
    """Equal up to a part of the largest stored number."""
    assert ours.shape == stored.shape
    apart, largest = (ours - stored).abs().max(), stored.abs().max()
    assert float(apart) <= tolerance * float(largest), float(apart / largest)


# NCFM


@pytest.mark.parametrize("case", names("ncfm", "_alpha"))
def test_ncfm_loss(case, dtype):
    """The bare loss, and the published one, with their gradients."""
    golden, tolerance = load("ncfm", dtype), {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    weights = [float(golden[f"{case}_{name}"]) for name in ("alpha", "beta")]
    real, frequencies = golden["features_real"], golden["frequencies"]
    syn = golden["features_syn"].clone().requires_grad_()
    sides = [characteristic_function(side[None], frequencies) for side in (real, syn)]
    loss = characteristic_distance(*sides, *weights)
    near(loss.detach(), golden[f"{case}_loss"], tolerance)
    near(torch.autograd.grad(loss, syn)[0], golden[f"{case}_grad_features_syn"], tolerance)
    alpha, beta = weights
    draw = {"frequencies": frequencies}
    for kind in (Characteristic, LearnedCharacteristic):
        distance = kind(alpha=alpha, beta=beta)
        summaries = [distance.summary(side[None], draw) for side in (real, syn)]
        loss = distance.between(*summaries, draw)
        near(loss.detach(), golden[f"{case}_matched_loss"], tolerance)
        slope = torch.autograd.grad(loss, syn)[0]
        near(slope, golden[f"{case}_matched_grad_features_syn"], tolerance)


def test_ncfm_frequencies(dtype):
    """The network that makes frequencies of noise, without the mixture as published."""
    golden, tolerance = load("ncfm", dtype), {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    noise, wanted = golden["sampler_noise"], golden["sampler_frequencies"]
    near(sampled(golden["sampler_params"], noise), wanted, tolerance)
    distance = LearnedCharacteristic(mixture=False)
    near(distance.frequencies(golden["sampler_params"], {"noise": noise}), wanted, tolerance)


def test_ncfm_networks(dtype):
    """Between an expert's start and its end."""
    golden, tolerance = load("ncfm", dtype), {torch.float64: 1e-11, torch.float32: 1e-5}[dtype]
    between = blended(golden["params_init"], golden["params_trained"], golden["blend_l"])
    near(between, golden["params_blend"], tolerance)


# TGDD


def test_tgdd(dtype):
    """Both terms, their sum, and the gradients in the images."""
    golden, tolerance = load("tgdd", dtype), {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    syn = golden["x_syn"].clone().requires_grad_()
    model = FlatModel(convnet(shapes_of("tgdd"), syn.shape[1:]).to(dtype))
    distance, extractor = Means(), golden["params_extractor"]
    summaries = []
    for images in (golden["x_real"], syn):
        summaries.append(distance.summary(model.embed(extractor, images)[None], {}))
    match = distance.between(*summaries, {})
    label = int(golden["label"])
    of_judge = judged(model, golden["params_judge"], syn, len(syn), label)
    total = match + golden["alpha"] * of_judge
    for name, loss in {"match": match, "judge_ce": of_judge, "total": total}.items():
        near(loss.detach(), golden[name], tolerance)
        slope = torch.autograd.grad(loss, syn, retain_graph=True)[0]
        near(slope, golden[f"grad_{name}"], tolerance)


def test_tgdd_window():
    """Which epochs of the judge go with an epoch of the extractor."""
    for last, interval, start, lowest, highest in load("tgdd", torch.float64)["window_table"]:
        assert judge_window(int(start), int(interval), int(last)) == (int(lowest), int(highest))


# ATT


@pytest.mark.parametrize("case", names("att", "_sequence"))
def test_att(case, dtype):
    """The nearest step, and the loss there with its gradient."""
    golden, tolerance = load("att", dtype), {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    start, *reached = golden[f"{case}_sequence"]
    target = golden[f"{case}_target"]
    steps = torch.stack(reached)
    near((steps - target).abs().sum(1), golden[f"{case}_l1"], tolerance)
    index = nearest(steps, target)
    assert index == int(golden[f"{case}_index"])
    end = steps[index - 1].clone().requires_grad_()
    loss = matching_loss(end[None], target[None], start, [1.0])
    near(loss.detach(), golden[f"{case}_loss"], tolerance)
    near(torch.autograd.grad(loss, end)[0], golden[f"{case}_grad"], tolerance)


# MCT


@pytest.mark.parametrize("count", ["two", "four"])
@pytest.mark.parametrize("case", names("mct", "_trajectory"))
def test_mct(case, count, dtype):
    """Waypoints, shares, and the parameters at whole and at broken epochs."""
    golden, tolerance = load("mct", dtype), {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    points = golden[f"{case}_trajectory"]
    sizes = [math.prod(shape) for shape in shapes_of("mct")]
    stored = golden[f"{case}_{count}_waypoints"]
    at = convex.waypoint_epochs(len(points), len(stored))
    assert at == golden[f"{case}_{count}_waypoint_index"].tolist()
    trajectory = convex.convexified(points, sizes, len(stored))
    near(trajectory.waypoints, stored, tolerance)
    near(trajectory.shares, golden[f"{case}_{count}_shares"], tolerance)
    epochs = golden[f"{case}_{count}_epochs"].tolist()
    ours = torch.stack([convex.point(trajectory, epoch, at, sizes) for epoch in epochs])
    near(ours, golden[f"{case}_{count}_points"], tolerance)
    near(convex.point(trajectory, at[-1], at, sizes), stored[-1], tolerance)
    if count == "two":
        whole = [convex.point(trajectory, epoch, at, sizes) for epoch in range(len(points))]
        near(torch.stack(whole), golden[f"{case}_convex"], tolerance)
