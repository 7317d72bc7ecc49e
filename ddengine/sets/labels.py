"""What images are labelled with beside classes: logits or features of experts, or numbers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddengine.learning.teachers import BATCH, features, target_network
from ddengine.recipe import TargetConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.types import Experts

SURE = 0.9  # of a class, in labels that start from it
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # that labels are shipped in


def cites(config: TargetConfig) -> tuple[str, ...]:
    """Works to cite for the labels: logits of the experts that are right about an image."""
    asked = config.kind == "logits" and config.start == "experts"
    of_right_ones = asked and config.experts == "correct"
    return ("guo2024datm",) if of_right_ones else ()


def expert_epochs(config: TargetConfig, stored: Sequence[int]) -> list[int]:
    """The expert epochs that label, of those stored. Raises UserError when one is not stored."""
    if config.epochs is None:
        return [stored[-1]]
    wanted = list(range(config.epochs[0], config.epochs[1] + 1))
    missing = sorted(set(wanted) - set(stored))
    if missing:
        raise UserError(
            f"targets.epochs {config.epochs[0]} {config.epochs[1]} needs expert epoch "
            f"{missing[0]}, and the store has {stored[0]} to {stored[-1]}; "
            "lower targets.epochs or train longer experts (buffer.epochs, buffer.keep)."
        )
    return wanted


def labelled(syn: SyntheticSet, experts: Experts | None, config: TargetConfig) -> SyntheticSet:
    """The set with the targets of the configuration. Raises UserError as `label` does."""
    if config.kind == "logits":
        return label(syn, experts, config)
    if config.kind == "features":
        return featured(syn, experts)
    if config.kind == "weights":
        classes = syn.classes[syn.source]
        return syn.with_weights(functional.one_hot(classes, len(syn.class_names)).float())
    if config.kind == "centred":
        return syn.with_labels(_scaled(syn.classes[syn.source], len(syn.class_names)))
    return syn


def featured(syn: SyntheticSet, experts: Experts | None) -> SyntheticSet:
    """The set with the features (N, D) that the first expert, after its last epoch, gives it.

    Raises UserError: no experts; features that are not finite.
    """
    if experts is None:
        raise UserError(
            "targets.kind features needs a network whose features they are; give the recipe a "
            "buffer."
        )
    device = syn.classes.device
    network = target_network(experts, device)
    # decoded part by part: all may be more than fits
    said = []
    for index in torch.arange(len(syn), device=device).split(BATCH):
        with torch.no_grad():
            images = syn.batch(index).images
        said.append(features(network, images))
    values = torch.cat(said)
    if not values.isfinite().all():
        raise UserError(
            "The network whose features are targets gives some that are not finite, because it "
            "diverged in training; lower the rate in buffer.step."
        )
    return syn.with_features(values)


def centred(classes: Tensor, num_classes: int) -> Tensor:
    """One-hot classes (B, K), less their mean 1 / K (FRePo; KIP)."""
    return functional.one_hot(classes, num_classes).float() - 1 / num_classes


def _scaled(classes: Tensor, num_classes: int) -> Tensor:
    """Where FRePo's labels (B, K) start: centred ones, smaller by the root of K / 10."""
    return centred(classes, num_classes) / math.sqrt(num_classes / 10)


def label(syn: SyntheticSet, experts: Experts | None, config: TargetConfig) -> SyntheticSet:
    """The set with soft labels: "logits" (N, K), the mean of what experts say of its images.

    The images are seen as they are. `config.experts` "correct" averages over those experts whose
    answer is right (DATM, Guo et al., ICLR 2024, section 3.3). With `config.start` class they say
    the class of each image, and no expert is asked.

    Raises UserError: no experts; an epoch that is not stored; an image about which no expert is
    right, naming its class.
    """
    if config.start == "class":
        return syn.with_labels(of_classes(syn), DTYPES[config.dtype], config.top)
    if experts is None:
        raise UserError(
            "targets.kind logits needs experts that label; give the recipe a buffer, or set "
            "targets.start class or targets.kind class."
        )
    classes = syn.classes[syn.source]
    total = torch.zeros(len(syn), len(syn.class_names), device=classes.device)
    count = torch.zeros(len(syn), 1, device=classes.device)
    num_experts = 1 if config.experts == "first" else experts.num_experts
    for expert in range(num_experts):
        for epoch in expert_epochs(config, experts.epochs):
            network = experts.load(expert, epoch).to(classes.device)
            _add(network, syn, classes, total, count, correct=config.experts == "correct")
    if bool((count == 0).any()):
        lost = classes[count[:, 0] == 0]
        if config.experts != "correct":
            raise UserError(
                "The experts that label give no finite logits, because they diverged in training; "
                "take others with --experts."
            )
        raise UserError(
            f"No expert is right about {int((lost == lost[0]).sum())} of the images of class "
            f"{syn.class_names[int(lost[0])]!r}, so targets.experts "
            "correct has no logits for them; set targets.experts all, or init.kind correct."
        )
    return syn.with_labels(total / count, DTYPES[config.dtype], config.top)


def of_classes(syn: SyntheticSet) -> Tensor:
    """Logits (N, K) that give the class of each example the probability SURE.

    The other classes share the rest.
    """
    num_classes = len(syn.class_names)
    others = (1 - SURE) / (num_classes - 1)
    hot = torch.nn.functional.one_hot(syn.classes[syn.source], num_classes)
    return hot * math.log(SURE / others)


@torch.no_grad()
def _add(
    network: nn.Module,
    syn: SyntheticSet,
    classes: Tensor,
    total: Tensor,
    count: Tensor,
    *,
    correct: bool,
) -> None:
    """Add the logits that an expert gives the examples to `total` (N, K), and 1 to `count` (N, 1).

    What is not finite is left out and, with `correct`, what is wrong by `classes` (N,).
    """
    # decoded part by part: all may be more than fits
    for index in torch.arange(len(syn), device=classes.device).split(BATCH):
        logits = network(syn.batch(index).images)
        # an imported expert may have diverged
        counted = logits.isfinite().all(1, keepdim=True)
        if correct:
            counted &= (logits.argmax(1) == classes[index])[:, None]
        total[index] += torch.where(counted, logits, 0)
        count[index] += counted
