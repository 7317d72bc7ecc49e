"""Distillation on pruned data against the published implementation of MDSLR, and CAD with facility
location against an independent reference.
"""

import itertools

import pytest
import torch
from golden_files import load, names

from ddengine.learning.losses import class_deviations, reshaped, soft_loss
from ddengine.recipe import InitConfig
from ddengine.sets.codec import Mixed
from ddengine.sets.coreset import in_order
from ddengine.sets.pruning import (
    cad_scores,
    error_norms,
    facility_location,
    number_kept,
    ranked,
    similarities,
    teacher_losses,
    window_deviations,
)
from ddengine.uses.pruning.students import distilling

F64 = torch.float64
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def assert_close(ours: torch.Tensor, stored: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Largest difference over the largest stored number."""
    error = (ours - stored).abs().max() / stored.abs().max()
    assert ours.shape == stored.shape
    assert error <= tolerance, f"error {error:.3g}, tolerance {tolerance:g}"


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_loss_of_a_student(dtype):
    """(1 - alpha) CE + alpha tau^2 KL, and its gradient, as a student is trained by it."""
    golden = load("kd_pruning", dtype)
    rows = load("kd_pruning", F64)["alpha_tau"].tolist()
    for row, (alpha, temperature) in enumerate(rows):
        student = golden["student_logits"].clone().requires_grad_()
        protocol = distilling(alpha, temperature)
        loss = soft_loss(protocol, student, golden["teacher_logits"], golden["targets"], None)
        assert_close(loss, golden["loss"][row], TOLERANCES[dtype])
        (gradient,) = torch.autograd.grad(loss, student)
        assert_close(gradient, golden["grad_student"][row], TOLERANCES[dtype])


def members_of(labels: torch.Tensor) -> list[torch.Tensor]:
    """Indices of each class, as RealSet has them."""
    return [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]


def test_the_middle_of_each_class_is_kept():
    """At every percentage, exactly."""
    golden = load("kd_pruning", F64)
    labels, scores = golden["select_labels"], golden["select_scores"]
    members = members_of(labels)
    assert len(golden["select_percent"])
    for percent in golden["select_percent"].tolist():
        num = number_kept(len(labels), len(members), percent / 100)
        kept = torch.cat(ranked(members, scores, num, "middle")).sort().values
        assert torch.equal(kept, golden[f"select_kept_{percent}"])


def test_scores_of_a_teacher():
    """Its losses, where the file's scores are those of its logits, and how far logits spread."""
    golden = load("kd_pruning", F64)
    labels, logits = golden["select_labels"], golden["select_logits"]
    spread = class_deviations(logits, labels, len(golden["select_class_std"]))
    assert_close(spread, golden["select_class_std"])
    by_hand = -logits.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    assert_close(teacher_losses(logits, labels), by_hand)


def test_logits_are_reshaped():
    golden = load("kd_pruning", F64)
    logits, classes = golden["reshape_logits"], golden["reshape_targets"]
    assert_close(reshaped(logits, classes, golden["select_class_std"]), golden["reshape_result"])


def test_cad():
    """EL2N of every epoch, its windows, their mean, and the order; the last epoch is not used."""
    golden = load("cad", F64)
    norms = error_norms(golden["logits"], golden["labels"]).T
    assert_close(norms, golden["el2n"])
    choices = [name.removesuffix("_J") for name in golden if name.endswith("_J")]
    assert choices
    for choice in choices:
        length, windows = int(golden[f"{choice}_J"]), int(golden[f"{choice}_W"])
        assert_close(window_deviations(norms, length), golden[f"{choice}_U"])
        scores = cad_scores(norms, length, windows)
        assert_close(scores, golden[f"{choice}_cad"])
        order = ranked([torch.arange(len(scores))], scores, len(scores), "hard")[0]
        assert torch.equal(order, golden[f"{choice}_order"])
        changed = norms.clone()
        changed[:, -1] += 1
        assert torch.equal(cad_scores(changed, length, windows), scores)


def test_selmatch():
    """Which images of a class stay real and which start the learned ones, by two scores."""
    golden = load("cad", F64)
    labels = golden["selmatch_labels"]
    hardness = {
        "cscore": -golden["selmatch_cscores"],
        "forgetting": golden["selmatch_forgetting"].double(),
    }
    cases = names("cad", "_alpha", "selmatch_")
    assert cases
    for case, (rule, scores) in itertools.product(cases, hardness.items()):
        prefix = f"selmatch_{case}"
        ipc, beta = int(golden[f"{prefix}_ipc"]), float(golden[f"{prefix}_beta"])
        init = InitConfig(kind="forgetting", skip=beta)
        codec = Mixed(learned=float(golden[f"{prefix}_alpha"]), items=ipc)
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            rows = in_order(scores[members], ipc, skip=init.num_skipped(ipc))
            frozen, learned = members[rows].tensor_split([ipc - codec.num_learned])
            assert torch.equal(frozen, golden[f"{prefix}_{rule}_frozen"][label])
            assert torch.equal(learned, golden[f"{prefix}_{rule}_distilled"][label])


@pytest.mark.parametrize("rule", ["weighted", "uniform"])
def test_facility_location(rule):
    golden = load("cad", F64)
    kernel = similarities(golden["features"])
    assert_close(kernel, golden["kernel"])
    weights = golden["w0_cad"] if rule == "weighted" else None
    wanted = golden[f"{rule}_selection"]
    chosen, gains = facility_location(golden["kernel"], len(wanted), weights)
    assert chosen == wanted.tolist()
    assert_close(torch.tensor(gains, dtype=F64), golden[f"{rule}_gains"])
    covered = golden["kernel"][:, chosen].max(1).values
    ones = torch.ones(len(kernel), dtype=F64)
    value = (ones if weights is None else weights) @ covered
    assert_close(value, golden[f"{rule}_value"])
