"""What users bring to an evaluation: networks and training functions of their own."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from ddengine.evaluation.user_file import FromFile
from ddengine.learning import training
from ddengine.learning.training import Labels
from ddengine.models import MODELS, ImageShape
from ddengine.recipe import EvalConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped
from ddengine.types import TrainingSet

# (C, H, W) and the number of classes -> a new network (B, C, H, W) -> (B, K)
Factory = Callable[[ImageShape, int], nn.Module]


class Trainer(Protocol):
    """A training function of the user."""

    def __call__(
        self,
        network: nn.Module,
        examples: "Examples",
        *,
        lr: float,
        updates: int,
        generator: Generator,
    ) -> nn.Module:
        """The trained network, which may be the given one.

        Args:
            network: freshly initialised, on the device, in training mode.
            examples: what it is trained on.
            lr: the learning rate; several are tried where rates are chosen.
            updates: as many as the protocol has, for functions that keep to them.
            generator: decides all random numbers. What draws from torch's global generators repeats
                itself as well, because these are seeded for the call.
        """
        ...


@dataclass(frozen=True)
class Examples:
    """The training examples of a set, for a training function of the user."""

    of: TrainingSet
    labels: Labels  # "own": the targets of the set; "hard": its classes

    def __len__(self) -> int:
        return len(self.of)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The examples at `index` (B,): images (B, C, H, W) and targets.

        Images are preprocessed and on the device. Targets are classes (B,) int64, or logits (B, K)
        of a set with soft labels.
        """
        batch = self.of.batch(index)
        return batch.images, training.target(batch, self.labels)

    def batches(self, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end: epoch after epoch, each in a new order, the ragged last one kept."""
        while True:
            for index in training.epoch_batches(len(self), size, generator):
                yield self.batch(index)


# Networks.


def check_factories(
    factories: Mapping[str, Factory], image_shape: ImageShape, num_classes: int
) -> None:
    """Build each network and let it look at two images.

    Raises UserError for a name of one of our networks, for what raises something, for what is no
    network or always the same one, and for outputs that are no logits.
    """
    for name, factory in factories.items():
        is_ours = name.replace("/", "-").split("-")[0] in MODELS
        if is_ours and not isinstance(factory, FromFile):
            raise UserError(
                f"The network {name!r} that you bring has the name of one of ours; choose another."
            )
        first, output = _tried(name, factory, image_shape, num_classes)
        second, _ = _tried(name, factory, image_shape, num_classes)
        if first is second:
            raise UserError(
                f"The function for the network {name!r} returned the same network twice; let it "
                "make a new one at each call."
            )
        _check_logits(output, f"The network {name!r}", image_shape, num_classes)


def check_network(network: nn.Module, image_shape: ImageShape, num_classes: int) -> None:
    """Let a network of the user that is made already, or a copy of it, look at two images.

    Raises UserError for what it raises, and for outputs that are no logits.
    """
    _, output = _tried("network", lambda *asked: network, image_shape, num_classes)
    _check_logits(output, "The network", image_shape, num_classes)


def _check_logits(output: Any, called: str, image_shape: ImageShape, num_classes: int) -> None:
    """Raise UserError for what are no logits of two images."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (2, num_classes):
        raise UserError(
            f"{called} gives {shape} for two images {image_shape}, and logits of {num_classes} "
            f"classes are (2, {num_classes}); mend its last layer."
        )


def _tried(
    name: str, factory: Factory, image_shape: ImageShape, num_classes: int
) -> tuple[nn.Module, Any]:
    """A network, and what it gives for two images of zeros.

    Raises UserError for anything that it, or what makes it, raises.
    """
    try:
        network = build(factory, image_shape, num_classes, generator(0))
        with torch.no_grad(), scoped(generator(0)):
            return network, network.eval()(torch.zeros(2, *image_shape))
    except UserError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise UserError(
            f"The network {name!r} that you bring fails for images {image_shape} of {num_classes} "
            f"classes ({said}); mend its function, or set data.size."
        ) from error


def build(factory: Factory, image_shape: ImageShape, num_classes: int, rng: Generator) -> nn.Module:
    """A network of the user, initialised from `rng`.

    Global generators are left as they were. Layers that learn their size from the first images see
    one of zeros.
    """
    with scoped(rng):
        network = factory(image_shape, num_classes)
        if not isinstance(network, nn.Module):
            raise UserError(
                f"The function for a network returned {type(network).__name__}; it must return a "
                "torch.nn.Module."
            )
        if any(map(nn.parameter.is_lazy, network.parameters())):
            with torch.no_grad():
                network.eval()(torch.zeros(1, *image_shape))
            network.train()
    return network


# Training.


@dataclass(frozen=True)
class OwnTraining:
    """`training.train_networks` by a training function of the user."""

    train: Trainer

    def __call__(
        self,
        new_model: Callable[[Generator], nn.Module],
        sets: Sequence[TrainingSet],
        seeds: Sequence[int],
        config: EvalConfig,
        lr: float,
        device: torch.device,
        *,
        steps: int | None,
        labels: Labels,
        **options: Any,
    ) -> list[nn.Module]:
        """One network after another, in evaluation mode; other options are those of our loop."""
        networks = []
        for of, seed in zip(sets, seeds, strict=True):
            network = new_model(generator(seed, "network")).to(device).train()
            updates = training.num_updates(len(of), config) if steps is None else steps
            rng = generator(seed, "own training")
            with scoped(generator(seed, "own training", "global")):
                trained = self.train(
                    network, Examples(of, labels), lr=lr, updates=updates, generator=rng
                )
            if not isinstance(trained, nn.Module):
                raise UserError(
                    f"The training function {name_of(self.train)} returned "
                    f"{type(trained).__name__}; it must return the trained network."
                )
            networks.append(trained.to(device).eval())
        return networks


# Their names.


def name_of(brought: Callable[..., Any]) -> str:
    """What a function or class of the user is called, for people."""
    if isinstance(brought, partial):
        return name_of(brought.func)
    if isinstance(brought, FromFile):
        return f"{brought.path.name}:{brought.name}"
    return getattr(brought, "__name__", type(brought).__name__)  # probe: any callable of the user


def stable_name(brought: Callable[..., Any]) -> str | None:
    """What identifies a function or class of the user in another process.

    Its name and the digest of the file it lies in: so what a former text of the file computed is
    not taken for what this one would. None for what has no file (a notebook's), for what is made
    within a function (a lambda, a closure), and for objects that hold values (a partial).
    """
    if isinstance(brought, FromFile):
        return brought.stable_name
    if not (inspect.isfunction(brought) or inspect.isclass(brought)):
        return None
    if "<" in brought.__qualname__:
        return None
    try:
        path = inspect.getsourcefile(brought)
        content = Path(path or "").read_bytes()
    except (OSError, TypeError):
        return None
    return f"{brought.__qualname__}@{hashlib.sha256(content).hexdigest()[:12]}"
