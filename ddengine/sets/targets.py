"""What a set is trained towards: classes, logits, weights of classes or features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ddengine.data import RealSet
from ddengine.learning.probe import linear_probe
from ddengine.learning.training import Classified, classified
from ddengine.recipe import EvalConfig
from ddengine.sets.codec import Tensors
from ddengine.system.runtime import Precision
from ddengine.types import TargetKind

LabelOf = Literal["stored", "decoded"]
# logit of a class that a label says nothing about: probability 0 at all usual temperatures, finite,
# and exact in float16
NOT_SEEN = -1e4
# (network, images, precision) -> what it is right about
Classify = Callable[[nn.Module, RealSet, Precision], Classified]


class Targets(Protocol):
    """What decoded examples are trained towards.

    Targets are a frozen dataclass without state; what they store lies among the set's tensors, in a
    file of its own (labels.safetensors) in the shipped folder.
    """

    @property
    def kind(self) -> TargetKind:
        """As meta.json names it."""
        ...

    @property
    def label_of(self) -> LabelOf:
        """Whether one target is stored for each stored item or for each decoded example."""
        return "stored"

    @property
    def words(self) -> str:
        """As a person names them."""
        return "classes"

    @property
    def names(self) -> tuple[str, ...]:
        """Names that tensors of these targets can have, that of their values first."""
        return ()

    @property
    def column(self) -> str | None:
        """What the values of examples are called beside exported images; None: they are classes."""
        return self.names[0] if self.names else None

    @property
    def soft(self) -> bool:
        """Whether they are logits, which the losses of soft labels compare with."""
        return False

    @property
    def of_classes(self) -> bool:
        """Whether a target has a number for each class."""
        return self.soft

    @property
    def regressed(self) -> bool:
        """Whether networks are fitted to them by regression, and so do not say classes."""
        return False

    def store(
        self, values: Tensor, num_classes: int, dtype: torch.dtype, top: int | None = None
    ) -> dict[str, Tensor]:
        """The tensors that hold these targets (N or S, outputs)."""
        return {}

    def values(self, tensors: Tensors, num_classes: int) -> Tensor | None:
        """All targets (N or S, outputs) from the tensors that hold them; None: they are classes."""
        return None

    def encode(
        self, tensors: Tensors, num_classes: int, index: Tensor, item: Tensor, classes: Tensor
    ) -> Tensor:
        """Targets of the examples at `index` (B,) of N, as the loss takes them.

        `item` (B,) are the stored items that the examples are decoded of, `classes` (B,) theirs.
        """
        values = self.values(tensors, num_classes)
        if values is None:
            return classes
        return values.index_select(0, index if self.label_of == "decoded" else item)

    def among(self, values: Tensor, classes: Sequence[int], num_classes: int) -> Tensor:
        """Targets (N or S, outputs) of a set whose class c is classes[c] of `num_classes`."""
        return values

    def outputs(self, tensors: Tensors, num_classes: int) -> int:
        """How many outputs a network has that is trained towards them."""
        return num_classes

    def trained_by(self, protocol: EvalConfig) -> EvalConfig:
        """The protocol by which networks are trained towards them, of one for classes."""
        return protocol

    def evaluate(
        self,
        network: nn.Module,
        labelled: RealSet,
        on: RealSet,
        precision: Precision = "fp32",
        classify: Classify = classified,
    ) -> Classified:
        """What a trained network makes of the classes of the images of `on`.

        `classify` counts what networks are right about that say classes; `labelled` are real
        training images, for those that do not.
        """
        return classify(network, on, precision)

    def project(self, tensors: Tensors) -> None:
        """Bring stored targets back to where they may be, in place, after an outer step."""

    def flaw(self, tensors: Tensors, num: int, num_classes: int) -> str | None:
        """What is wrong with stored targets for `num` examples or items; None where nothing is.

        The words follow the name of their folder.
        """
        return None


@dataclass(frozen=True)
class Classes(Targets):
    """The class of each stored item."""

    @property
    def kind(self) -> TargetKind:
        """Classes."""
        return "class"


@dataclass(frozen=True)
class Logits(Targets):
    """Soft labels: logits, which pass through a softmax.

    "logits" (N or S, K). Where only some largest are stored, "logits" holds these and then the mean
    of the others (N, top + 1), and "logits.index" whose they are: at a high temperature, where
    labels are as good as their logits, no other single number is nearer to what is left out.
    """

    label_of: LabelOf = "stored"

    @property
    def kind(self) -> TargetKind:
        """Logits."""
        return "logits"

    @property
    def words(self) -> str:
        """As the field names them."""
        return "soft labels"

    @property
    def names(self) -> tuple[str, ...]:
        """The logits, and whose they are where some are left out."""
        return ("logits", "logits.index")

    @property
    def soft(self) -> bool:
        """They are."""
        return True

    def store(
        self, values: Tensor, num_classes: int, dtype: torch.dtype, top: int | None = None
    ) -> dict[str, Tensor]:
        """All of them, or the `top` largest of each and the mean of the others.

        The latter only where that saves bytes.
        """
        if top is None:
            return {"logits": values.to(dtype)}
        whose = index_dtype(num_classes)
        bytes_of_top = (top + 1) * dtype.itemsize + top * whose.itemsize
        if bytes_of_top >= num_classes * dtype.itemsize:
            return {"logits": values.to(dtype)}
        largest, index = values.topk(top, dim=1)
        others = values.sum(1, keepdim=True) - largest.sum(1, keepdim=True)
        mean = others / (num_classes - top)
        stored = torch.cat([largest, mean], 1)
        return {"logits": stored.to(dtype), "logits.index": index.to(whose)}

    def values(self, tensors: Tensors, num_classes: int) -> Tensor | None:
        """The soft labels (N or S, K); of some largest logits the others are their mean."""
        stored = tensors["logits"]
        stored = stored.float() if stored.dtype == torch.float16 else stored
        if "logits.index" not in tensors:
            return stored
        index = tensors["logits.index"].long()
        return stored[:, -1:].expand(-1, num_classes).scatter(1, index, stored[:, :-1])

    def among(self, values: Tensor, classes: Sequence[int], num_classes: int) -> Tensor:
        """The same logits in the columns of their classes; NOT_SEEN in the others."""
        wide = values.new_full((len(values), num_classes), NOT_SEEN)
        wide[:, list(classes)] = values
        return wide

    def flaw(self, tensors: Tensors, num: int, num_classes: int) -> str | None:
        """Labels that are lost or of another shape."""
        return _flaw_of_labels(self, tensors, num, num_classes)


@dataclass(frozen=True)
class Weights(Targets):
    """Weights of the classes (N or S, K), which need not add up to one.

    The loss of an example is the sum of -w_k log softmax(s)_k (RaT-BPTT, Feng et al., ICLR 2024),
    so that an example whose weights are large counts for more. Where they are learned they stay at
    least 0.
    """

    label_of: LabelOf = "stored"

    @property
    def kind(self) -> TargetKind:
        """Weights."""
        return "weights"

    @property
    def words(self) -> str:
        """As labels are called that are not normalised."""
        return "weights of the classes"

    @property
    def names(self) -> tuple[str, ...]:
        """The weights."""
        return ("weights",)

    @property
    def of_classes(self) -> bool:
        """They have one for each class."""
        return True

    def store(
        self, values: Tensor, num_classes: int, dtype: torch.dtype, top: int | None = None
    ) -> dict[str, Tensor]:
        """All of them."""
        return {"weights": values.to(dtype)}

    def values(self, tensors: Tensors, num_classes: int) -> Tensor | None:
        """The weights (N or S, K)."""
        stored = tensors["weights"]
        return stored.float() if stored.dtype == torch.float16 else stored

    def among(self, values: Tensor, classes: Sequence[int], num_classes: int) -> Tensor:
        """The same weights in the columns of their classes, 0 in the others."""
        wide = values.new_zeros(len(values), num_classes)
        wide[:, list(classes)] = values
        return wide

    def trained_by(self, protocol: EvalConfig) -> EvalConfig:
        """By weighted cross-entropy alone."""
        return replace(protocol, loss="weighted", hard_weight=0.0)

    def project(self, tensors: Tensors) -> None:
        """At least 0."""
        tensors["weights"].clamp_(min=0)

    def flaw(self, tensors: Tensors, num: int, num_classes: int) -> str | None:
        """Weights that are lost or of another shape."""
        return _flaw_of_labels(self, tensors, num, num_classes)


def _flaw_of_labels(targets: Targets, tensors: Tensors, num: int, num_classes: int) -> str | None:
    """What is wrong with targets that have a number for each class; None where nothing is."""
    if targets.names[0] not in tensors:
        return (
            f"has lost its {targets.words}, labels.safetensors; put the file back, or distill it "
            "again."
        )
    stored = tensors[targets.names[0]]
    if not stored.is_floating_point() or stored.dim() != 2:
        kind = str(stored.dtype).removeprefix("torch.")
        return (
            f"has labels of shape {tuple(stored.shape)} and type {kind} for {num} images of "
            f"{num_classes} classes; distill it again."
        )
    values = targets.values(tensors, num_classes)
    assert values is not None
    if values.shape == (num, num_classes):
        return None
    return (
        f"has labels of shape {tuple(values.shape)} for {num} images of {num_classes} classes; "
        "distill or import it again."
    )


@dataclass(frozen=True)
class Features(Targets):
    """Features (N or S, D), such as a self-supervised network's.

    A network of D outputs is fitted to them by squared error. How good it is, a linear classifier
    of what lies before its last layer says.
    """

    label_of: LabelOf = "stored"

    @property
    def kind(self) -> TargetKind:
        """Features."""
        return "features"

    @property
    def words(self) -> str:
        """As the field names them."""
        return "features"

    @property
    def names(self) -> tuple[str, ...]:
        """The features."""
        return ("features",)

    @property
    def regressed(self) -> bool:
        """They are."""
        return True

    def store(
        self, values: Tensor, num_classes: int, dtype: torch.dtype, top: int | None = None
    ) -> dict[str, Tensor]:
        """All of them."""
        return {"features": values.to(dtype)}

    def values(self, tensors: Tensors, num_classes: int) -> Tensor | None:
        """The features (N or S, D)."""
        stored = tensors["features"]
        return stored.float() if stored.dtype == torch.float16 else stored

    def outputs(self, tensors: Tensors, num_classes: int) -> int:
        """D."""
        return tensors["features"].shape[1]

    def trained_by(self, protocol: EvalConfig) -> EvalConfig:
        """By squared error alone."""
        return replace(protocol, loss="mse", hard_weight=0.0, soft_weight=1.0)

    def evaluate(
        self,
        network: nn.Module,
        labelled: RealSet,
        on: RealSet,
        precision: Precision = "fp32",
        classify: Classify = classified,
    ) -> Classified:
        """A linear probe."""
        return linear_probe(network, labelled, on, precision)

    def flaw(self, tensors: Tensors, num: int, num_classes: int) -> str | None:
        """Features that are lost or of another shape."""
        if "features" not in tensors:
            return (
                "has lost its features, labels.safetensors; put the file back, or distill it again."
            )
        shape = tuple(tensors["features"].shape)
        is_floating = tensors["features"].is_floating_point()
        if is_floating and len(shape) == 2 and shape[0] == num and shape[1]:
            return None
        return f"has features of shape {shape} for {num} images; distill it again."


# names of tensors that go into a file of their own
LABELS = (*Logits().names, *Weights().names, *Features().names)


def index_dtype(num_classes: int) -> torch.dtype:
    """The smallest type for numbers of classes."""
    if num_classes <= 256:
        return torch.uint8
    return torch.int16 if num_classes < 2**15 else torch.int32


def targets_of(kind: str, label_of: LabelOf) -> Targets:
    """The targets that a meta.json names. Raises KeyError for an unknown kind."""
    kinds: dict[str, Targets] = {
        "class": Classes(),
        "logits": Logits(label_of),
        "weights": Weights(label_of),
        "features": Features(label_of),
    }
    return kinds[kind]
