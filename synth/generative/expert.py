"""The parts as an expert, which `buffer` trains and stores and `distill` samples."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ddengine.data import Data
from ddengine.experts import OwnTraining
from ddengine.system import files
from ddengine.system.configs import digest
from ddengine.system.runtime import Precision
from ddengine.types import Json
from synth.generative.building import build
from synth.generative.config import DenoiserConfig, Folders, FusionConfig, VaeConfig
from synth.generative.parts import Parts
from synth.generative.stages import Stage
from synth.generative.text import clip_tokens, word_tokens
from synth.generative.training import (
    Job,
    denoiser_stage,
    fusion_stage,
    latents_of,
    trained,
    vae_stage,
)
from synth.generative.weights import fetched, files_digest

TRAINING = "training"  # the folder of checkpoints in that of the store
TIMED_UPDATES = 3  # of each part, for an estimate
TIMED_IMAGES = 64
PARTS = {"vae": "vae", "text": "text_encoder", "denoiser": "transformer"}  # folders of a pipeline


@dataclass(frozen=True, kw_only=True)
class Generative(OwnTraining):
    """Encoder and decoder, fusion and denoiser, each trained here or, but for the fusion, loaded.

    EVLF: Cai et al., CVPR 2026, arXiv 2603.07476. The denoiser is a DiT (Peebles & Xie, ICCV 2023)
    between the encoder and decoder of a latent diffusion model (Rombach et al., CVPR 2022).
    """

    vae: VaeConfig = VaeConfig()
    fusion: FusionConfig = FusionConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    folder: Folders = Folders()

    @property
    def cites(self) -> tuple[str, ...]:
        """The models, and what their losses are of."""
        works = ["rombach2022ldm", "peebles2023dit"]
        if self.folder.text is not None:
            works.append("radford2021clip")
        if self.denoiser.represent or self.denoiser.diversify:
            works.append("gu2024minimax")
        return tuple(works)

    @property
    def network(self) -> str:
        """What the parts are called together."""
        return "generative-parts"

    @property
    def reads_labels(self) -> bool:
        """The fusion and the denoiser do, and no accuracy is measured."""
        return True

    def _local_folders(self) -> Folders:
        """The folders, with those of the Hub fetched where that is allowed."""
        if not self.folder.download:
            return self.folder
        found = {}
        for part in PARTS:
            path = getattr(self.folder, part)
            found[part] = None if path is None else fetched(path)
        return replace(self.folder, **found)

    def new_model(self, data: Data, rng: Generator) -> Parts:
        """The parts for these images. Raises UserError for what does not go together."""
        return build(self.vae, self.fusion, self.denoiser, self._local_folders(), data, rng)

    def files(self) -> str | None:
        """The digest of the networks of others; None without any."""
        local = self._local_folders()
        digests = {}
        for part, inside in PARTS.items():
            path = getattr(local, part)
            if path is not None:
                digests[part] = files_digest(path, inside)
        return digest(digests) if digests else None

    def train(
        self, network: nn.Module, data: Data, seed: int, folder: Path, precision: Precision
    ) -> Json:
        """Train the parts that are not loaded; returns the loss of each, and the scale."""
        parts = _as_parts(network)
        checkpoints = files.make_folder(folder / TRAINING)
        files.clean(checkpoints)
        job = Job(parts, data.train, seed, precision, checkpoints)
        encode_class_names(parts, data.class_names, self._local_folders())
        measured: Json = {}
        if parts.is_trained("vae"):
            measured["vae_loss"] = trained(job, vae_stage(job, self.vae))
        latents = latents_of(parts, data.train, folder)
        if parts.sizes.scale is None:
            parts.scale.copy_(1 / latents[:, 0].std())
        measured["scale"] = float(parts.scale)
        measured["fusion_loss"] = trained(job, fusion_stage(job, self.fusion, latents))
        if parts.is_trained("denoiser"):
            measured["denoiser_loss"] = trained(job, denoiser_stage(job, self.denoiser, latents))
        return measured

    def seconds(self, network: nn.Module, data: Data) -> float:
        """How long the training takes about, by a few updates of each part."""
        parts = _as_parts(network)
        job = Job(parts, data.train, 0, "fp32", Path())
        latents = placeholder(parts, data)
        stages = [fusion_stage(job, self.fusion, latents)]
        if parts.is_trained("vae"):
            stages.append(vae_stage(job, self.vae))
        if parts.is_trained("denoiser"):
            stages.append(denoiser_stage(job, self.denoiser, latents))
        seconds = _encoding_seconds(parts, data)
        for stage in stages:
            seconds += stage.steps * _update_seconds(stage)
        return seconds

    def bytes_beside(self, network: nn.Module, data: Data) -> int:
        """Those of the latents of all images."""
        latents = placeholder(_as_parts(network), data)
        return latents.numel() * latents.element_size()

    def clean(self, folder: Path) -> None:
        """Delete the checkpoints."""
        shutil.rmtree(folder / TRAINING, ignore_errors=True)


def _as_parts(network: nn.Module) -> Parts:
    """The network, which is one that `new_model` made."""
    assert isinstance(network, Parts)
    return network


def encode_class_names(parts: Parts, names: Sequence[str], folders: Folders) -> None:
    """Compute the tokens of the names of the classes, once, and put them into the parts.

    Raises UserError for classes without names where a text tower reads them.
    """
    if folders.text is None:
        tokens, ends = word_tokens(names)
    else:
        tokens, ends = clip_tokens(folders.text, names)
    parts.tokens.copy_(tokens)
    parts.ends.copy_(ends)


def placeholder(parts: Parts, data: Data) -> Tensor:
    """Latents (N, 2, c, h, w) of the right shape, all 0; they take no memory."""
    side = data.image_shape[1] // parts.sizes.reduction
    shape = (len(data.train), 2, parts.sizes.channels, side, side)
    return torch.zeros(1, device=data.train.device).expand(shape)


def _encoding_seconds(parts: Parts, data: Data) -> float:
    """How long all latents take, by those of a few images."""
    pixels = data.train.pixels[:TIMED_IMAGES].to(data.train.device).float() / 255
    began = time.perf_counter()
    parts.encode(pixels)
    return (time.perf_counter() - began) / len(pixels) * 2 * len(data.train)


def _update_seconds(stage: Stage) -> float:
    """How long an update of a stage takes; the first is slower and not counted."""
    for parameter in stage.parameters().values():
        parameter.requires_grad_(True)
    stage.loss(0)
    began = time.perf_counter()
    for number in range(1, 1 + TIMED_UPDATES):
        stage.loss(number)
        stage.optimiser.step()
    return (time.perf_counter() - began) / TIMED_UPDATES
