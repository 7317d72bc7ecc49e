"""What recipes with teachers and soft labels (INFER, SRe2L, CDA, DWA, RDED) have in common."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from buffers.pretrained import Pretrained
from buffers.steps import Sgd
from ddengine.recipe import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
    OptimConfig,
    OuterConfig,
    Recipe,
    TargetConfig,
)
from ddengine.sets.codec import Codec, Compensated, Identity
from synth.recipes.cells import CLASS_FOLDERS, FILES, SMALL_NOTE, SUBSETS, figure, sentences
from synth.recipes.protocols import PROTOCOLS

Figure = tuple[float, float | None]  # mean and deviation in %, as printed

# what every such set ships
STATIC = TargetConfig(kind="logits", experts="all", relabel=True, dtype="float16")
NONE = AugmentConfig(ops=())
SHIFT_FLIP = AugmentConfig(always=("crop", "flip"), ops=())  # shifts of up to an eighth of the side
CROP_FLIP = AugmentConfig(always=("resized_crop", "flip"), ops=())
# The published training of teachers on CIFAR (DWA's script, which INFER's README names; SRe2L's is
# the same)
SQUEEZE = BufferConfig(
    step=Sgd(lr=0.1, momentum=0.9, weight_decay=5e-4, cosine=True),
    num_experts=1,
    epochs=200,
    batch=128,
    augment=SHIFT_FLIP,
    keep="last",
)
# That of Tiny ImageNet, as recalled: SRe2L has 50 epochs; the file that DWA's validation reads is
# of epoch 100
SQUEEZE_LARGE = BufferConfig(
    step=Sgd(lr=0.2, momentum=0.9, weight_decay=1e-4, cosine=True),
    num_experts=1,
    epochs=50,
    batch=256,
    augment=CROP_FLIP,
    keep="last",
)
# torchvision's weights
PRETRAINED = BufferConfig(step=Pretrained(), num_experts=1, epochs=1, augment=NONE, keep="last")
RECALLED_TEACHERS = "How the teachers are trained was recalled or assumed, not read."

SIDE = {"imagenet": 224, **dict.fromkeys(SUBSETS, 224)}  # to which images are resized
SQUASHED = (
    "Images are squashed to 224 x 224, those of the test too, where the field takes a crop of "
    "the centre."
)
WEIGHTS = "Teachers are torchvision's, whose files must be there."
SUBSET = (
    "Training images are a fixed subset of {:,}, because at this size all of them do not fit into "
    "memory: images are drawn from it, and the row full "
    "is of it."
)
# What differs from the released programs, by where it matters
SHIFTS = "shifts are filled with the mean colour, not with black"
CROPS = "a resized crop longer than the image is cut to it, not drawn again"
BYTES = "images are kept as bytes, not as JPEG"


def differs(*what: str) -> str:
    """The sentence of a note."""
    return f"Differs from the released code: {'; '.join(what)}."


def adam(lr: float) -> OptimConfig:
    """The published optimiser of images and compensators: betas 0.5 and 0.9, a cosine to 0."""
    return OptimConfig(kind="adam", lr=lr, momentum=0.5, beta2=0.9, schedule="cosine")


def cutmix(base: EvalConfig, **changes: Any) -> EvalConfig:
    """The protocol as published for ImageNet.

    CutMix always, resized crops, T = 20, no weight decay on biases and normalisation, 300 epochs.
    """
    fixed = replace(
        base,
        epochs=300,
        batch=128,
        mixup=0.0,
        cutmix=1.0,
        temperature=20.0,
        decay_norms=False,
        augment=CROP_FLIP,
    )
    return replace(fixed, **changes)


def cell(
    method: str,
    cites: tuple[str, ...],
    dataset: str,
    ipc: int,
    *,
    variant: str = "",
    model: str,
    teachers: tuple[str, ...],
    buffer: BufferConfig,
    objective: Any,
    optim: Mapping[str, OptimConfig],
    steps: int,
    checkpoint_every: int | None = None,
    codec: Codec,
    init: InitConfig,
    evaluation: EvalConfig,
    published: Figure | None,
    source: str,
    limit: int | None = None,
    notes: tuple[str, ...],
) -> Recipe:
    """A published cell: static labels are shipped, and checkpoints written ten times a run.

    It trains on the whole split, of ImageNet on a subset.
    """
    large = dataset in SIDE
    where = (
        (CLASS_FOLDERS if large else FILES.get(dataset, "")),
        SQUASHED if large else "",
        WEIGHTS if isinstance(buffer.step, Pretrained) else "",
        SUBSET.format(limit) if limit else "",
    )
    return Recipe(
        name=f"{method}/{dataset}_ipc{ipc}{variant}",
        cites=cites,
        published=figure(published, source),
        note=sentences(*notes, *where),
        data=DataConfig(
            name=dataset,
            validation=0.0,
            size=(SIDE[dataset], SIDE[dataset]) if large else None,
            limit=limit,
        ),
        model=model,
        ipc=ipc,
        buffer=buffer,
        teachers=teachers,
        init=init,
        codec=codec,
        targets=STATIC,
        objective=objective,
        outer=OuterConfig(
            steps=steps, optim=optim, checkpoint_every=checkpoint_every or max(1, steps // 10)
        ),
        evaluation=evaluation,
    )


# dataset, images per class
SMALL_CELLS = (("fashion_mnist", 10), ("fashion_mnist", 50), ("cifar10", 10))
CHOSEN = {"cifar10": "The rates are those of the cell of Fashion-MNIST."}
SMALL_TEACHERS = ("convnet-d3-w16-bn", "resnet18-bn-x12")
SMALL_UPDATES = 600  # of every student


def small_evaluation(examples: int) -> EvalConfig:
    """INFER's protocol, shortened to equal updates for all methods."""
    base = PROTOCOLS["infer-static"]
    epochs = SMALL_UPDATES // -(-examples // base.batch)
    baselines = ("random", "random_soft", "hard_labels", "full")
    return replace(
        base,
        epochs=epochs,
        full_steps=SMALL_UPDATES,
        lr_grid=(0.001, 0.003, 0.01),
        baselines=baselines,
    )


def small(
    method: str,
    cites: tuple[str, ...],
    ipc: int,
    *,
    objective: Any,
    optim: dict[str, OptimConfig],
    steps: int,
    codec: Codec = Identity(),
    init: InitConfig = InitConfig(),
    teachers: tuple[str, ...] = SMALL_TEACHERS,
    dataset: str,
) -> Recipe:
    """A fixed subset of a dataset, narrow networks of two kinds."""
    examples = 10 * codec.budget(ipc, 10)[2] if isinstance(codec, Compensated) else 10 * ipc
    return Recipe(
        name=f"{method}/{dataset}_ipc{ipc}_small",
        cites=cites,
        published=None,
        note=sentences(SMALL_NOTE, CHOSEN.get(dataset, "")),
        data=DataConfig(name=dataset, limit=10_000),
        model="convnet-d3-w16-bn",
        ipc=ipc,
        buffer=replace(SQUEEZE, epochs=8, step=replace(SQUEEZE.step, lr=0.05)),
        teachers=teachers,
        init=init,
        codec=codec,
        targets=STATIC,
        objective=objective,
        outer=OuterConfig(steps=steps, optim=optim, checkpoint_every=max(1, steps // 4)),
        evaluation=small_evaluation(examples),
    )
