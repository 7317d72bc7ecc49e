"""Where synthetic images start, and the selections of real images that serve as baselines."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ddengine.data import RealSet
from ddengine.errors import UserError


def _check(real: RealSet, ipc: int, class_names: tuple[str, ...]) -> None:
    for name, members in zip(class_names, real.members, strict=True):
        if ipc > len(members):
            raise UserError(f"ipc {ipc} is more than the {len(members)} training images of class {name!r}; lower ipc or raise data.limit.")


def random_index(real: RealSet, ipc: int, class_names: tuple[str, ...], rng: Generator) -> Tensor:
    """Indices (K * ipc,) of random real images, class by class."""
    _check(real, ipc, class_names)
    return torch.cat([real.draw_index(c, ipc, rng) for c in range(real.num_classes)])


def herding_index(real: RealSet, ipc: int, class_names: tuple[str, ...], embed: Callable[[Tensor], Tensor], batch: int = 1000) -> Tensor:
    """Indices (K * ipc,) of the images whose running mean stays nearest the class mean in embedding space (Welling, 2009; iCaRL, 2017)."""
    _check(real, ipc, class_names)
    chosen = []
    for members in real.members:
        with torch.no_grad():
            features = torch.cat([embed(real.images(part)) for part in members.split(batch)]).double()
        mean, total = features.mean(0), torch.zeros_like(features[0])
        taken: list[int] = []
        for count in range(1, ipc + 1):
            distance = (mean - (total + features) / count).norm(dim=1)
            distance[taken] = torch.inf
            taken.append(int(distance.argmin()))
            total = total + features[taken[-1]]
        chosen.append(members[taken])
    return torch.cat(chosen)


def real_images(real: RealSet, ipc: int, class_names: tuple[str, ...], rng: Generator) -> Tensor:
    """Random real images (K * ipc, C, H, W), preprocessed."""
    return real.images(random_index(real, ipc, class_names, rng))


def noise(real: RealSet, ipc: int, class_names: tuple[str, ...], rng: Generator) -> Tensor:
    """Standard normal values (K * ipc, C, H, W)."""
    return torch.randn(real.num_classes * ipc, *real.image_shape, generator=rng).to(real.device)


INITIALISERS = {"real": real_images, "noise": noise}
