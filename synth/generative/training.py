"""What `buffer` trains of the parts, one after another, and what it computes once.

Encoder and decoder, then the latents of all images, plain and flipped, which are kept beside the
store; the fusion on these latents; the denoiser on them, or on fused ones.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.data import RealSet
from ddengine.system import files, log
from ddengine.system.rng import generator, scoped
from ddengine.system.runtime import Precision, autocast
from synth.generative.config import DenoiserConfig, FusionConfig, VaeConfig
from synth.generative.fusion import Projector, fusion_losses, mse_weight
from synth.generative.minimax import Memory
from synth.generative.parts import Parts
from synth.generative.stages import Batches, Stage, run

LATENTS = "latents.safetensors"  # beside the store
AT_ONCE = 256  # images that are encoded at a time


@dataclass(frozen=True)
class Job:
    """Training the parts on images."""

    parts: Parts
    images: RealSet
    seed: int
    precision: Precision
    folder: Path  # of the checkpoints

    def rng(self, *names: str | int) -> Generator:
        """A random stream."""
        return generator(self.seed, *names)

    def pixels(self, index: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1]."""
        return self.images.stored(index).float() / 255


def vae_stage(job: Job, config: VaeConfig) -> Stage:
    """The training of encoder and decoder on the images and their mirror images."""
    vae = job.parts.part("vae")
    batches = Batches(len(job.images), config.batch, job.seed, "vae")

    def loss(number: int) -> Tensor:
        rng = job.rng("vae", number)
        seen = job.parts.seen(_flipped(job.pixels(batches.index(number)), rng))
        with autocast(seen.device, job.precision):
            posterior = vae.encode(seen).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=rng).to(seen.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            total = functional.l1_loss(decoded, seen) + config.kl * divergence
        total.backward()
        return total.detach()

    return Stage(
        name="vae",
        modules={"vae": vae},
        optimiser=torch.optim.AdamW(vae.parameters(), config.lr, weight_decay=0.0),
        steps=config.epochs * batches.per_epoch,
        loss=loss,
        rate="buffer.step.vae.lr",
        clip=1.0,
    )


def _flipped(images: Tensor, rng: Generator) -> Tensor:
    """Images (B, C, H, W), each mirrored with probability a half."""
    mirrored = (torch.rand(len(images), generator=rng) < 0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def trained(job: Job, stage: Stage) -> float:
    """Run a stage; its modules take gradients meanwhile, and no other part does.

    Returns the mean loss at its end.
    """
    job.parts.requires_grad_(False)
    for module in stage.modules.values():
        module.requires_grad_(True)
    try:
        return run(stage, job.folder)
    finally:
        job.parts.requires_grad_(False).eval()


def latents_of(parts: Parts, images: RealSet, store: Path | None) -> Tensor:
    """The latents (N, 2, c, h, w) of all images and of their mirror images, not scaled.

    They are read from beside the store where they lie there, and written there.
    """
    path = None if store is None else store / LATENTS
    if path is not None and path.is_file():
        latents = files.read_tensor(path, "latents", (len(images), 2, -1, -1, -1))
        return latents.to(images.device)
    made = []
    index = torch.arange(len(images), device=images.device).split(AT_ONCE)
    with log.progress("latents", len(index)) as bar:
        for part in index:
            pixels = images.stored(part).float() / 255
            both = [parts.encode(pixels), parts.encode(pixels.flip(3))]
            made.append(torch.stack(both, dim=1))
            bar.advance()
    latents = torch.cat(made)
    if path is not None:
        files.write_tensors(path, {"latents": latents})
    return latents


def _draw(latents: Tensor, index: Tensor, rng: Generator) -> Tensor:
    """The latents (B, c, h, w) of images at `index`, or of their mirror images, at random."""
    mirrored = torch.randint(2, (len(index),), generator=rng)
    return latents[index.to(latents.device), mirrored.to(latents.device)]


def corrupted(text: Tensor, config: FusionConfig, rng: Generator) -> Tensor:
    """Text tokens (B, M, D) as the fusion sees them in training.

    The whole batch sees none with one probability; else tokens are left out with another, and noise
    is added.
    """
    if float(torch.rand(1, generator=rng)) < config.no_text:
        return torch.zeros_like(text)
    present = torch.rand(text.shape[:2], generator=rng) >= config.no_token
    noise = torch.randn(text.shape, generator=rng) * config.token_noise
    return text * present.unsqueeze(2).to(text) + noise.to(text)


@dataclass(frozen=True)
class FusionTraining:
    """The loss of the fusion on batches of latents."""

    job: Job
    config: FusionConfig
    projector: Projector
    latents: Tensor  # (N, 2, c, h, w)
    batches: Batches

    @property
    def num_batches(self) -> int:
        """Of the whole training."""
        return self.config.epochs * self.batches.per_epoch

    def update(self, number: int) -> Tensor:
        """The mean loss of the batches of an update; their gradients are added up."""
        losses = []
        first = number * self.config.batches
        for batch in range(first, first + self.config.batches):
            loss = self._loss(batch)
            (loss / self.config.batches).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _loss(self, batch: int) -> Tensor:
        """The loss of a batch: contrast and weighted squared error."""
        parts, config = self.job.parts, self.config
        rng = self.job.rng("fusion", batch)
        index = self.batches.index(batch)
        latents = _draw(self.latents, index, rng)
        classes = self.job.images.labels[index.to(latents.device)]
        text = parts.tokens[classes]
        seen = corrupted(text, config, rng)
        with scoped(rng):  # dropout
            contrast, error = fusion_losses(
                parts.fusion.train(),
                self.projector,
                latents,
                text,
                classes,
                parts.ends[classes].long(),
                seen_text=seen,
                temperature=config.temperature,
            )
        weight = mse_weight(batch, self.num_batches // 2, *config.error)
        return config.contrast * contrast + weight * error


def fusion_stage(job: Job, config: FusionConfig, latents: Tensor) -> Stage:
    """The training of the fusion and of the projector, which is not stored (EVLF).

    `latents` are (N, 2, c, h, w), of the images and of their mirror images.
    """
    fusion, sizes = job.parts.fusion, job.parts.sizes
    with scoped(job.rng("projector")):
        projector = Projector(sizes.channels, sizes.text_width).to(latents.device)
    batches = Batches(len(latents), config.batch, job.seed, "fusion")
    training = FusionTraining(job, config, projector, latents, batches)
    groups = [
        {"params": list(fusion.parameters()), "lr": config.lr},
        {"params": list(projector.parameters()), "lr": config.projector_lr},
    ]
    return Stage(
        name="fusion",
        modules={"fusion": fusion, "projector": projector},
        optimiser=torch.optim.AdamW(groups, weight_decay=config.weight_decay),
        steps=max(1, training.num_batches // config.batches),
        loss=training.update,
        rate="buffer.step.fusion.lr",
        clip=config.clip,
    )


@dataclass(frozen=True)
class DenoiserTraining:
    """The loss of the denoiser: the squared error of the noise that it predicts (DDPM)."""

    job: Job
    config: DenoiserConfig
    latents: Tensor  # (N, 2, c, h, w)
    batches: Batches
    alphas_bar: Tensor  # (times,)
    memory: Memory | None

    def update(self, number: int) -> Tensor:
        """The loss of an update, with its gradients."""
        parts, rng = self.job.parts, self.job.rng("denoiser", number)
        index = self.batches.index(number)
        clean, classes = self._clean(index, rng)
        device = clean.device
        times = torch.randint(len(self.alphas_bar), (len(index),), generator=rng).to(device)
        noise = torch.randn(clean.shape, generator=rng).to(device)
        alpha_bar = self.alphas_bar[times].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        without_class = (torch.rand(len(index), generator=rng) < self.config.no_class).to(device)
        labels = parts.labels_of(classes).masked_fill(without_class, parts.sizes.labels)
        with autocast(device, self.job.precision):
            predicted = parts.denoise(noisy, times, labels).noise
        loss = functional.mse_loss(predicted.float(), noise)
        if self.memory is not None:
            of_noise = (1 - alpha_bar).sqrt() * predicted.float()
            predicted_clean = (noisy - of_noise) / alpha_bar.sqrt()
            loss = loss + self.memory.loss(predicted_clean, clean, classes)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def _clean(self, index: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """(scaled latents (B, c, h, w), classes (B,)) of a batch, fused where it is asked for."""
        parts = self.job.parts
        latents = _draw(self.latents, index, rng)
        classes = self.job.images.labels[index.to(latents.device)]
        if self.config.latents == "fused":
            latents = parts.fuse(latents, classes)
        return latents * parts.scale, classes


def denoiser_stage(job: Job, config: DenoiserConfig, latents: Tensor) -> Stage:
    """The training of the denoiser, which becomes its running average; `latents` as above."""
    denoiser = job.parts.part("denoiser")
    batches = Batches(len(latents), config.batch, job.seed, "denoiser")
    memory = None
    if config.represent or config.diversify:
        memory = Memory.empty(config, len(job.parts.labels), latents[0, 0].numel(), latents.device)
    alphas_bar = job.parts.schedule.alphas_bar.float().to(latents.device)
    training = DenoiserTraining(job, config, latents, batches, alphas_bar, memory)
    return Stage(
        name="denoiser",
        modules={"denoiser": denoiser},
        optimiser=torch.optim.AdamW(denoiser.parameters(), config.lr, weight_decay=0.0),
        steps=config.epochs * batches.per_epoch,
        loss=training.update,
        rate="buffer.step.denoiser.lr",
        clip=1.0,
        average=config.average,
        memory={} if memory is None else memory.tensors(),
    )
