"""Where synthetic images start.

They start as noise, as real images chosen at random, by experts or as a coreset, or as patches of
real images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.learning import augment
from ddengine.learning.teachers import ensemble_logits, load_all
from ddengine.recipe import AugmentConfig, InitConfig
from ddengine.sets import coreset
from ddengine.sets.codec import resize
from ddengine.sets.coreset import NewModel, check_ipc, near_centres, random_index
from ddengine.system.errors import UserError
from ddengine.types import Experts

# kind of init -> works to cite for it
CITES = {
    "correct": ("guo2024datm",),
    "representative": ("shen2023ast",),
    "herding": ("welling2009herding",),
    "k_centre": ("sener2018kcentre",),
    "forgetting": ("toneva2019forgetting",),
    "el2n": ("paul2021el2n",),
    "cad": ("dey2026hard",),
    "patches": ("sun2024rded",),
}
SKIPPING = ("lee2024selmatch",)  # for images that are passed over by their score


def cites(config: InitConfig) -> tuple[str, ...]:
    """Works to cite for where images start."""
    return (*CITES.get(config.kind, ()), *(SKIPPING if config.skip else ()))


def correct_index(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    rng: Generator,
    experts: Experts,
    batch: int = 256,
) -> Tensor:
    """Indices (K * ipc,) of random real images that an expert classifies correctly.

    The expert is that after its last epoch (DATM, Guo et al., ICLR 2024). The first expert chooses;
    where it leaves a class short the next ones go on. Raises UserError naming a class that stays
    short.
    """
    check_ipc(real, ipc, class_names)
    left = []
    chosen: list[list[int]] = []
    for members in real.members:
        order = torch.randperm(len(members), generator=rng)
        left.append(members[order])
        chosen.append([])
    for expert in range(experts.num_experts):
        short = [c for c in range(real.num_classes) if len(chosen[c]) < ipc]
        if not short:
            break
        network = experts.load(expert, experts.epochs[-1]).to(real.device)
        for c in short:
            missing = ipc - len(chosen[c])
            right = _first_right(network, real, left[c], c, missing, batch)
            taken = torch.isin(left[c], torch.tensor(right, dtype=torch.long))
            left[c] = left[c][~taken]
            chosen[c] += right
    for name, taken in zip(class_names, chosen, strict=True):
        if len(taken) < ipc:
            raise UserError(
                f"init.kind correct found {len(taken)} images of class {name!r} that an expert "
                f"classifies correctly, and ipc is {ipc}; "
                "lower ipc, train longer or more experts, or set init.kind real."
            )
    return torch.tensor(chosen).flatten()


@torch.no_grad()
def _first_right(
    network: nn.Module, real: RealSet, members: Tensor, label: int, num: int, batch: int
) -> list[int]:
    """The first `num` of the images `members` (n,) of a class that a network classifies correctly.

    They are all of these, where there are fewer. It looks at no more batches than it needs.
    """
    right: list[int] = []
    for part in members.split(batch):
        said = network(real.images(part)).argmax(1)
        hits = (said == label).cpu()
        right += part[hits].tolist()
        if len(right) >= num:
            break
    return right[:num]


def representative_index(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    rng: Generator,
    experts: Experts,
    clusters: int,
) -> Tensor:
    """Indices (K * ipc,) of the images nearest to k-means centres of a class's logits.

    The logits are those of a random expert (AST, Shen et al., 2023). There are min(clusters, ipc)
    centres, with as many images for each; what does not divide goes to the largest clusters. The
    released code takes 10 centres and floor(ipc / 10) images, so nothing below 10 images per class.
    """
    check_ipc(real, ipc, class_names)
    expert = int(torch.randint(experts.num_experts, (1,), generator=rng))
    network = experts.load(expert, experts.epochs[-1]).to(real.device)
    chosen = []
    for members in real.members:
        with torch.no_grad():
            logits = torch.cat([network(real.images(part)) for part in members.split(1000)])
        values = logits.double().cpu().numpy()
        chosen.append(members[torch.tensor(near_centres(values, ipc, min(clusters, ipc), rng))])
    return torch.cat(chosen)


def patches(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    rng: Generator,
    config: InitConfig,
    experts: Experts | None,
    *rest: Any,
) -> Tensor:
    """Images (K * ipc, C, H, W) tiled of the crops that a teacher is most sure of.

    This is RDED (Sun et al., CVPR 2024, section 4). Of each of `config.candidates` random images of
    a class, `config.crops` random square crops are shrunk to a tile, and the one of lowest
    cross-entropy stays; of those the `ipc * factor^2` best fill the images, tile by tile: the best
    `ipc` lie in the first tile of all images. (The published crops have one ratio: 1:1.) A teacher
    sees a tile in the middle of an image of zeros. Raises UserError when there are no teachers, too
    few images, or the factor does not divide the sides.
    """
    teachers = _needed(experts, config.kind)
    factor = config.factor
    _, height, width = real.image_shape
    if height % factor or width % factor:
        raise UserError(
            f"init.factor {factor} does not divide the {height} x {width} pixels of an image; set "
            "init.factor to a divisor of both."
        )
    needed = ipc * factor**2
    check_ipc(real, needed, class_names)
    if config.candidates < needed:
        raise UserError(
            f"init.candidates {config.candidates} are fewer than the {needed} patches of a class; "
            "raise init.candidates."
        )
    networks = load_all(teachers, real.device)
    tile = (height // factor, width // factor)
    chosen = []
    for c, members in enumerate(real.members):
        index = real.draw_index(c, min(config.candidates, len(members)), rng)
        kept = []
        losses = []
        for part in index.split(max(1, 256 // config.crops)):
            best, loss = _best_crops(networks, real, part, c, config.crops, tile, rng)
            kept.append(best)
            losses.append(loss)
        order = torch.cat(losses).argsort(stable=True)[:needed]
        tiles = torch.cat(kept)[order].view(factor, factor, ipc, -1, *tile)
        chosen.append(tiles.permute(2, 3, 0, 4, 1, 5).reshape(ipc, -1, height, width))
    return torch.cat(chosen)


def _best_crops(
    networks: Sequence[nn.Module],
    real: RealSet,
    index: Tensor,
    label: int,
    crops: int,
    tile: tuple[int, int],
    rng: Generator,
) -> tuple[Tensor, Tensor]:
    """(tiles (n, C, h, w), losses (n,)) of the images at `index` (n,), which are of one class.

    Of so many random crops of each the one of lowest cross-entropy is shrunk to a tile of that
    height and width.
    """
    config = AugmentConfig(ops=(), always=("resized_crop",), ratio=1.0)
    images = real.images(index).repeat_interleave(crops, 0)
    draw = augment.sample(config, len(images), rng).to(real.device)
    cut = augment.apply(config, images, draw)
    height, width = cut.shape[2:]
    rows, columns = tile
    if tile != (height, width):
        cut = resize(cut, tile)
    above = (height - rows) // 2
    left = (width - columns) // 2
    around = (left, width - columns - left, above, height - rows - above)
    logits = ensemble_logits(networks, torch.nn.functional.pad(cut, around))
    labels = torch.full((len(logits),), label, device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    best = loss.view(len(index), -1).argmin(1)
    first = torch.arange(len(index), device=best.device) * crops
    chosen = first + best
    return cut[chosen], loss[chosen]


def _needed(experts: Experts | None, kind: str) -> Experts:
    """The experts. Raises UserError where there are none."""
    if experts is None:
        raise UserError(
            f"init.kind {kind} needs experts; give the recipe a buffer, or set init.kind real."
        )
    return experts


def _embedded(
    real: RealSet,
    rng: Generator,
    config: InitConfig,
    new_model: NewModel | None,
    train_networks: coreset.TrainNetworks | None,
) -> coreset.Embed:
    """What embeds images for a coreset: their pixels, or a network trained on all of them."""
    if config.embedding == "pixels":
        return coreset.pixels
    assert new_model is not None, "a network is needed to embed"
    network = coreset.train(
        real, new_model, rng, steps=config.steps, lr=config.lr, train_networks=train_networks
    )
    return network.embed  # type: ignore[return-value]


def selected_index(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    rng: Generator,
    config: InitConfig,
    experts: Experts | None = None,
    new_model: NewModel | None = None,
    train_networks: coreset.TrainNetworks | None = None,
) -> Tensor:
    """Indices (K * ipc,) of the real images that `config.kind` chooses, class by class.

    `new_model` builds the network that embeds or scores; kinds that look at images with a network
    need it, others with `experts`. Raises UserError for a kind that chooses none (noise), for
    experts that are not there, and for a class with fewer than `ipc` images.
    """
    kind = config.kind
    check_ipc(real, ipc, class_names)  # before any network is trained
    if kind == "real":
        return random_index(real, ipc, class_names, rng)
    if kind == "correct":
        return correct_index(real, ipc, class_names, rng, _needed(experts, kind))
    if kind == "representative":
        return representative_index(
            real, ipc, class_names, rng, _needed(experts, kind), config.clusters
        )
    if kind in coreset.KINDS:
        return coreset.choose(
            kind,
            real,
            ipc,
            class_names,
            rng,
            embed=lambda: _embedded(real, rng, config, new_model, train_networks),
            new_model=new_model,
            train_networks=train_networks,
            steps=config.steps,
            lr=config.lr,
            networks=config.networks,
            order=config.order,
            skip=config.num_skipped(ipc),
        )
    raise UserError(
        f"init.kind {kind} chooses no real images; set init.kind to one of {', '.join(SELECTIONS)}."
    )


def _noise(
    real: RealSet,
    ipc: int,
    class_names: tuple[str, ...],
    rng: Generator,
    config: InitConfig,
    *rest: Any,
) -> Tensor:
    """Numbers of a normal distribution, of each image brought to the norm that is asked for."""
    noise = torch.randn(real.num_classes * ipc, *real.image_shape, generator=rng)
    if config.norm is not None:
        noise = noise * (config.norm / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    return noise.to(real.device)


def _unlabelled(
    real: RealSet, ipc: int, class_names: tuple[str, ...], rng: Generator, *rest: Any
) -> Tensor:
    """Random real images of any class, without repetition. Raises UserError for too few."""
    wanted = real.num_classes * ipc
    if wanted > len(real):
        raise UserError(
            f"ipc {ipc} of {real.num_classes} classes starts from {wanted} images, and there are "
            f"{len(real)}; lower ipc, or take more images."
        )
    return real.images(torch.randperm(len(real), generator=rng)[:wanted])


def _selected(real: RealSet, *args: Any) -> Tensor:
    """Real images that `selected_index` chooses."""
    return real.images(selected_index(real, *args))


SELECTIONS = ("real", "correct", "representative", *coreset.KINDS)  # kinds that choose real images
# the arguments of selected_index -> the images (K * ipc, C, H, W) that the synthetic ones start
# from, preprocessed
INITIALISERS: dict[str, Callable[..., Tensor]] = {
    "noise": _noise,
    "patches": patches,
    "unlabelled": _unlabelled,
    **dict.fromkeys(SELECTIONS, _selected),
}
