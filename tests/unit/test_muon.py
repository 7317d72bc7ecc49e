"""Muon as an optimiser of students, against torch's own, and rates that are fixed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddengine.artefact import loader
from ddengine.evaluation import protocol
from ddengine.learning import muon as of_muon
from ddengine.learning import training
from ddengine.learning.ensemble import Ensemble
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.recipes.protocols import PROTOCOLS

CONFIG = EvalConfig(protocol="x", optimiser="muon", weight_decay=0.1)
POINT = training.ChangePoint(0, 0.02, 0.9, 0.1)


def network(seed=0):
    return build_model("convnet-d2-w4-in", (1, 8, 8), 3, generator(seed))


def stepped(ensemble, images, targets):
    """Two updates of the engine's."""
    optimiser = training._optimiser(CONFIG, POINT, ensemble, None)
    for _ in range(2):
        logits = ensemble(images)
        loss = sum(nn.functional.cross_entropy(z, t) for z, t in zip(logits, targets, strict=True))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def by_torch(model, images, targets):
    """The same with torch's Muon, of kernels that are matrices, and its AdamW of all else."""
    kernels = {n: p for n, p in model.named_parameters() if p.dim() == 4}
    matrices = {n: nn.Parameter(p.detach().flatten(1).clone()) for n, p in kernels.items()}
    rest = [p for n, p in model.named_parameters() if n not in kernels]
    pair = (
        torch.optim.Muon(matrices.values(), 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, 0.02, betas=(0.9, 0.999), weight_decay=0.1),
    )
    for _ in range(2):
        model.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        for name, kernel in kernels.items():
            matrices[name].grad = kernel.grad.flatten(1)
        for optimiser in pair:
            optimiser.step()
        with torch.no_grad():
            for name, kernel in kernels.items():
                kernel.copy_(matrices[name].view_as(kernel))


@pytest.mark.parametrize("num", [1, 2])
def test_matrices_step_by_torchs_muon_and_all_else_by_adamw(num):
    """One network alone and several in one computation."""
    images = torch.randn(num, 6, 1, 8, 8, generator=generator(1))
    targets = torch.arange(6).expand(num, 6) % 3
    networks = [network(seed) for seed in range(num)]
    ensemble = Ensemble(networks)
    stepped(ensemble, images, targets)
    for seed, ours in enumerate(ensemble.unstack()):
        theirs = network(seed)
        start = [p.detach().clone() for p in theirs.parameters()]
        by_torch(theirs, images[seed], targets[seed])
        for a, b, before in zip(ours.parameters(), theirs.parameters(), start, strict=True):
            # a bias before normalisation has no gradient but rounding, whose sign AdamW follows
            if a.dim() > 1:
                assert (b - before).norm() > 1e-3
                assert (a - b).norm() <= 2e-2 * (b - before).norm()


def test_what_muon_cannot_train_is_a_sentence(monkeypatch):
    with pytest.raises(UserError, match=r"set evaluation\.optimiser sgd or adamw"):
        replace(CONFIG, loss="uskd")
    single = Ensemble([nn.Linear(4, 2)])
    with pytest.raises(UserError, match="this network has none"):
        training._optimiser(CONFIG, POINT, single, None)
    of_muon.check()
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"torch 2\.9 and later, and this is torch"):
        of_muon.check()


def test_tables_and_files_name_the_protocols():
    """The rate of hard300 is the published one whatever a set learned; load.py trains by it."""
    said = protocol.facts(PROTOCOLS["hard300"], "convnet-d2-w4-in", 100, learned=0.05)
    assert (said["name"], said["optimiser"], said["lr"]) == ("hard300", "sgd", 0.01)
    assert [(d["epoch"], d["lr_factor"]) for d in said["drops"]] == [(151, pytest.approx(0.1))]
    assert said["epochs"] == 300 and loader.trainable(said)
    said = protocol.facts(PROTOCOLS["muon300"], "convnet-d2-w4-in", 100, learned=0.05)
    assert (said["name"], said["optimiser"], said["lr"]) == ("muon300", "muon", 0.001)
    assert not loader.trainable(said)
