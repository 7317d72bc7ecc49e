"""Sets that are sampled: what the method makes is the result.

Images of a class are sampled around modes of its real latents, which are centres of k-means, fused
with the text of the class or not (MGD3, EVLF), or from noised modes (D4M).
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Generator, Tensor

from ddengine.data import RealSet
from ddengine.experts import StoredExperts
from ddengine.objective import Env
from ddengine.recipe import require, require_at_least
from ddengine.system import files, log
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.generative.parts import Parts
from synth.generative.sampling import Guidance, modes_of, sample
from synth.generative.training import latents_of
from synth.selection import NoObjective

FUSED_AT_ONCE = 1024  # latents that are fused at a time


@dataclass(frozen=True, kw_only=True)
class Sampling(NoObjective):
    """Nothing is minimised; `outer.steps` is 0."""

    # around modes (MGD3) | from noised modes (D4M) | random real images through encoder and
    # decoder, which shows what these alone cost
    kind: Literal["modes", "prototypes", "reconstructed"] = "modes"
    fused: bool = True  # modes are those of latents fused with text (EVLF); else of latents alone
    # centres of k-means, or the latents nearest to them
    modes: Literal["centre", "real"] = "centre"
    guidance: float = 0.1  # towards the mode, in units of a step's deviation; 0: none
    stop: int = 25  # the last so many steps are not guided towards the mode
    class_guidance: float = 4.0  # weight of the class (guidance without a classifier); 1: as it is
    strength: float = 0.7  # of prototypes: the share of the steps that is sampled
    steps: int = 50  # times of the schedule that are sampled
    batch: int = 100  # images at once, which changes no image but by rounding

    def __post_init__(self) -> None:
        require_at_least("objective.steps", self.steps, 2)
        require_at_least("objective.batch", self.batch)
        require_at_least("objective.stop", self.stop, 0)
        require(
            0 <= self.guidance < float("inf"),
            f"objective.guidance must be finite and not negative, got {self.guidance}; 0 leads "
            "nothing.",
        )
        require(
            0 <= self.class_guidance < float("inf"),
            "objective.class_guidance must be finite and not negative, got "
            f"{self.class_guidance}; 1 takes the class as it is.",
        )
        require(
            0 < self.strength < 1,
            f"objective.strength must lie between 0 and 1, got {self.strength}; 0.7 is usual.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        if self.kind == "reconstructed":
            return ()
        works = ["ho2020ddpm"]
        if self.kind == "modes" and self.guidance:
            works.append("chansantiago2025mgd3")
        if self.kind == "prototypes":
            works.append("su2024d4m")
        if self.fused and (self.guidance or self.kind == "prototypes"):
            works.append("cai2026evlf")
        if self.class_guidance != 1:
            works.append("ho2022guidance")
        return tuple(works)

    @property
    def reads_experts(self) -> bool:
        """The parts."""
        return True

    def small(self) -> Self:
        """Few steps."""
        return replace(self, steps=4, stop=1)

    @property
    def needs_modes(self) -> bool:
        """Whether any are found: unguided sampling has none."""
        return self.kind == "prototypes" or (self.kind == "modes" and self.guidance > 0)

    def make_images(self, env: Env, number: int, rng: Generator) -> Tensor:
        """The images (K * number, C, H, W), pixels in [0, 1], class by class.

        Batches that are done lie beside the store until all are, so that sampling goes on where it
        was killed. Raises UserError for experts that are no generative parts, and classes of fewer
        images than are sampled.
        """
        parts, store = _parts_of(env)
        seed = int(torch.randint(2**62, (), generator=rng))
        real = env.real
        if self.needs_modes or self.kind == "reconstructed":
            _check_numbers(real, number)
        if self.kind == "reconstructed":
            return _reconstructed(parts, real, number, rng)
        parts.schedule.steps(self.steps)  # before the latents
        modes = None
        if self.needs_modes:
            latents = latents_of(parts, real, store)[:, 0]
            modes = self.modes_of_classes(parts, real, latents, number)
        cache = None
        if store is not None:
            cache = store / f"samples-{digest([to_dict(self), number, seed])}"
        images = self._sampled(parts, real, number, seed, modes, cache)
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
        return images

    def modes_of_classes(self, parts: Parts, real: RealSet, latents: Tensor, number: int) -> Tensor:
        """The modes (K * number, c, h, w), scaled, of latents (N, c, h, w) of all classes."""
        found = []
        with log.progress("modes", real.num_classes) as bar:
            for label, members in enumerate(real.members):
                of_class = latents[members.to(latents.device)]
                if self.fused:
                    of_class = fused(parts, of_class, label)
                found.append(modes_of(of_class * parts.scale, number, self.modes))
                bar.advance()
        return torch.cat(found)

    def _sampled(
        self,
        parts: Parts,
        real: RealSet,
        number: int,
        seed: int,
        modes: Tensor | None,
        cache: Path | None,
    ) -> Tensor:
        """The images around modes, batch by batch; those of batches in `cache` are read."""
        total = real.num_classes * number
        images = []
        with log.progress("samples", -(-total // self.batch)) as bar:
            for place, index in enumerate(torch.arange(total).split(self.batch)):
                path = None if cache is None else cache / f"{place:05d}.safetensors"
                images.append(self._batch(parts, real, index, number, seed, modes, path))
                bar.advance()
        return torch.cat(images).to(real.device)

    def _batch(
        self,
        parts: Parts,
        real: RealSet,
        index: Tensor,
        number: int,
        seed: int,
        modes: Tensor | None,
        path: Path | None,
    ) -> Tensor:
        """The images of numbers `index` (B,) of all, on the CPU."""
        if path is not None and path.is_file():
            return files.read_tensor(path, "images", (len(index), -1, -1, -1))
        classes = (index // number).to(parts.device)
        streams = [generator(seed, "image", int(image)) for image in index]
        guided_to = None if modes is None else modes[index.to(modes.device)]
        side = real.image_shape[1] // parts.sizes.reduction
        latents = sample(
            parts.denoise,
            parts.schedule.steps(self.steps),
            parts.labels_of(classes),
            guided_to,
            streams,
            shape=(parts.sizes.channels, side, side),
            null=parts.sizes.labels,
            guidance=Guidance(modes=self.guidance, stop=self.stop, classes=self.class_guidance),
            strength=self.strength if self.kind == "prototypes" else 1.0,
        )
        images = parts.decode(latents / parts.scale, real.image_shape[0]).cpu()
        if path is not None:
            files.make_folder(path.parent)
            files.write_tensors(path, {"images": images})
        return images


def _parts_of(env: Env) -> tuple[Parts, Path | None]:
    """(the parts, the folder of their store). Raises UserError for other experts."""
    experts = env.experts
    network = None if experts is None else experts.load(0, experts.epochs[-1])
    if experts is None or not isinstance(network, Parts):
        given = "none are given" if network is None else f"these are {type(network).__name__}"
        raise UserError(
            f"Sampling needs an encoder and a denoiser as experts, and {given}; take the buffer of "
            "a generative recipe (--take buffer=evlf/fashion_mnist_ipc10_small)."
        )
    store = experts.place() if isinstance(experts, StoredExperts) else None
    return network.to(env.device).requires_grad_(False), store


def _check_numbers(real: RealSet, number: int) -> None:
    """Raise UserError for a class with fewer images than modes, or than are reconstructed."""
    for label, members in enumerate(real.members):
        if len(members) < number:
            raise UserError(
                f"ipc asks for {number} modes of class {real.called(label)}, which has "
                f"{len(members)} training images; lower ipc, or raise data.limit."
            )


@torch.no_grad()
def fused(parts: Parts, latents: Tensor, label: int) -> Tensor:
    """Latents (N, c, h, w) of a class, fused with its text."""
    done = []
    for part in latents.split(FUSED_AT_ONCE):
        classes = torch.full((len(part),), label, device=latents.device)
        done.append(parts.fuse(part, classes))
    return torch.cat(done)


def _reconstructed(parts: Parts, real: RealSet, number: int, rng: Generator) -> Tensor:
    """Random real images (K * number, C, H, W) as encoder and decoder give them again."""
    images = []
    for label in range(real.num_classes):
        index = real.draw_index(label, number, rng).to(real.device)
        latents = parts.encode(real.stored(index).float() / 255)
        images.append(parts.decode(latents, real.image_shape[0]))
    return torch.cat(images)
