"""The options of the parts: encoder and decoder, text, fusion, denoiser, and whose they are."""

from dataclasses import dataclass
from typing import Literal

from ddengine.recipe import require, require_at_least

STEP = "buffer.step"  # where these options lie in a recipe


def _require_rate(name: str, value: float) -> None:
    """Raise UserError for what is no learning rate."""
    require(0 < value < float("inf"), f"{name} must be positive and finite, got {value}.")


def _require_share(name: str, value: float) -> None:
    """Raise UserError for a probability that is none."""
    require(0 <= value <= 1, f"{name} is a probability and must lie within 0 and 1, got {value}.")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where networks lie that others have trained; None: the part is trained here.

    Each is a folder that save_pretrained wrote, or that of a pipeline which holds it.
    """

    vae: str | None = None  # AutoencoderKL; of Stable Diffusion
    text: str | None = None  # CLIP's text tower and its tokenizer; None: vectors of words
    # DiTTransformer2DModel, or a file of DiT's own weights (DiT-XL-2-256x256.pt)
    denoiser: str | None = None
    # let the libraries fetch what is named and is no folder here, such as a name of the Hub
    download: bool = False


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """An autoencoder that is trained here: absolute error, and KL from the normal distribution."""

    widths: tuple[int, ...] = (32, 64, 64)  # maps at each size; each but the last halves the sides
    layers: int = 1  # blocks at each size
    channels: int = 4  # of the latents
    kl: float = 1e-3  # weight of the KL, a mean over the latents' values
    epochs: int = 10
    batch: int = 64
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("layers", "channels", "epochs", "batch"):
            require_at_least(f"{STEP}.vae.{name}", getattr(self, name))
        _require_rate(f"{STEP}.vae.lr", self.lr)
        require(self.kl >= 0, f"{STEP}.vae.kl must not be negative, got {self.kl}.")
        require(
            len(self.widths) > 0 and all(width > 0 and width % 8 == 0 for width in self.widths),
            f"{STEP}.vae.widths must be multiples of 8, which are normalised in groups, got "
            f"{self.widths}.",
        )


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion of latents and text, and its training (EVLF; values of the released program)."""

    width: int = 256
    heads: int = 4
    layers: int = 2
    dropout: float = 0.1
    # add what the layers give to the latents, which is 0 at the start; published: it is the result
    residual: bool = False
    contrast: float = 0.1  # weight of the contrastive loss
    error: tuple[float, float] = (0.05, 1.0)  # weight of the squared error, before and after half
    temperature: float = 0.07  # of the contrastive loss; not learned, as in the released program
    no_text: float = 0.2  # probability that a batch sees no text
    no_token: float = 0.1  # probability that a token is left out in other batches
    token_noise: float = 0.01  # standard deviation of what is added to the tokens there
    epochs: int = 4
    batch: int = 16
    batches: int = 2  # whose gradients are averaged for an update
    lr: float = 3e-4
    projector_lr: float = 1e-4
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "epochs", "batch", "batches"):
            require_at_least(f"{STEP}.fusion.{name}", getattr(self, name))
        for name in ("no_text", "no_token", "dropout"):
            _require_share(f"{STEP}.fusion.{name}", getattr(self, name))
        for name in ("lr", "projector_lr", "temperature", "clip"):
            _require_rate(f"{STEP}.fusion.{name}", getattr(self, name))
        require(
            self.width % self.heads == 0,
            f"{STEP}.fusion.heads {self.heads} does not divide {STEP}.fusion.width {self.width}; "
            "choose a divisor.",
        )


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The diffusion transformer (DiT), which is told the class, and its training."""

    width: int = 192
    heads: int = 6
    layers: int = 6
    patch: int = 1  # latents along the side of a token
    # the number that a denoiser of others has for each class; none: the classes' own
    labels: tuple[int, ...] = ()
    # what it is trained on: latents of the encoder (MGD3) | fused ones (D4M with EVLF)
    latents: Literal["plain", "fused"] = "plain"
    no_class: float = 0.1  # probability that it is not told the class, for guidance without one
    epochs: int = 40
    batch: int = 128
    lr: float = 5e-4
    average: float = 0.999  # decay of the running average of the weights, which is kept
    # MinimaxDiffusion: weights of the distance to the least similar of the latents of a class seen
    # last, and of the likeness to the most similar of those predicted last; published .002 and .008
    represent: float = 0.0
    diversify: float = 0.0
    memory: int = 64  # latents of a class that are remembered for both

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "patch", "epochs", "batch", "memory"):
            require_at_least(f"{STEP}.denoiser.{name}", getattr(self, name))
        _require_share(f"{STEP}.denoiser.no_class", self.no_class)
        _require_rate(f"{STEP}.denoiser.lr", self.lr)
        require(
            0 <= self.average < 1,
            f"{STEP}.denoiser.average must be at least 0 and below 1, got {self.average}.",
        )
        require(
            min(self.represent, self.diversify) >= 0,
            f"{STEP}.denoiser.represent and diversify are weights and must not be negative, got "
            f"{self.represent} and {self.diversify}.",
        )
        require(
            self.width % (4 * self.heads) == 0,
            f"{STEP}.denoiser.width {self.width} must be a multiple of 4 times "
            f"{STEP}.denoiser.heads {self.heads}.",
        )
