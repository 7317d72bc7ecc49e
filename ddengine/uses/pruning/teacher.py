"""The teachers of a repeat, and what they say of the training images."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.learning.losses import class_deviations, reshaped
from ddengine.recipe import EvalConfig
from ddengine.system.rng import generator
from ddengine.types import Json
from ddengine.uses.pruning.context import Context
from ddengine.uses.pruning.rates import chosen_rate

BATCH = 1000  # images that a teacher looks at together


@dataclass(frozen=True)
class Teacher:
    """A network that was trained on all training images, and these."""

    name: str
    network: nn.Module
    context: Context

    @cached_property
    @torch.no_grad()
    def logits(self) -> Tensor:
        """What it says of the training images as they are: (N, K)."""
        real = self.context.data.train
        parts = torch.arange(len(real)).split(BATCH)
        return torch.cat([self.network(real.images(part)).float() for part in parts])

    @cached_property
    @torch.no_grad()
    def features(self) -> Tensor:
        """What lies before its last layer: (N, D) float64 on the CPU."""
        real = self.context.data.train
        embed = self.network.embed
        assert callable(embed), "networks by name embed images"
        parts = torch.arange(len(real)).split(BATCH)
        return torch.cat([embed(real.images(part)).double().cpu() for part in parts])

    @cached_property
    def reshaped_logits(self) -> Tensor:
        """Its logits, brought to the spread of their class: (N, K)."""
        real = self.context.data.train
        deviations = class_deviations(self.logits, real.labels, real.num_classes)
        return reshaped(self.logits, real.labels, deviations)


def teacher_of(context: Context, name: str, repeat: int) -> tuple[Teacher, Json]:
    """(the teacher of a repeat, its learning rate and test accuracy).

    It is trained on all training images with their classes, as the protocol says.
    """
    data, protocol = context.data, _alone(context, name)
    label = f"teacher {name}, repeat {repeat + 1}"

    def train(lr: float, seed: int) -> nn.Module:
        networks = training.train_networks(
            context.builder(name),
            [data.train],
            [seed],
            protocol,
            lr,
            context.device,
            steps=context.config.teacher_steps,
            precision=context.precision,
            labels="hard",
        )
        return networks[0]

    lr = chosen_rate(context, f"teacher/{name}", label, train)
    seed = context.seed_of("teacher", name, repeat)
    state = context.kept_tensors(
        f"teacher/{name}/{repeat}", label, lambda: train(lr, seed).state_dict()
    )
    network = context.builder(name)(generator(0))
    network.load_state_dict(state)
    network.to(context.device).eval()
    assert data.test is not None
    accuracy = training.accuracy(network, data.test, context.precision)
    return Teacher(name, network, context), {"lr": lr, "accuracy": accuracy}


def _alone(context: Context, name: str) -> EvalConfig:
    """The protocol of a network that learns classes and nothing else."""
    plain = replace(context.protocol, loss="ce", hard_weight=0.0, soft_weight=1.0, labels="hard")
    return adapted(plain, name)
