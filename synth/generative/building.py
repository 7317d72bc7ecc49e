"""Making the parts: those that are trained here, and how those of others are loaded."""

from collections.abc import Callable
from functools import partial

from torch import Generator, nn

from ddengine.data import Data
from ddengine.system.errors import UserError
from ddengine.system.rng import scoped
from ddengine.types import Json
from synth.generative.config import DenoiserConfig, Folders, FusionConfig, VaeConfig
from synth.generative.fusion import Fusion
from synth.generative.parts import Parts, Sizes, check_shape
from synth.generative.schedule import load_schedule
from synth.generative.text import WIDTH, WORDS, check_names
from synth.generative.weights import config_of, denoiser_config, from_folder, library, load_denoiser

GROUPS = 8  # of the normalisation in an encoder that is trained here


def sizes_of(vae: VaeConfig, folders: Folders, num_classes: int, channels: int) -> Sizes:
    """What the parts fix, those of others by their config.json."""
    reduction, latents, colours, scale = 2 ** (len(vae.widths) - 1), vae.channels, channels, None
    if folders.vae is not None:
        config = config_of(folders.vae, "vae")
        reduction = 2 ** (len(config["block_out_channels"]) - 1)
        latents, colours = config["latent_channels"], config["in_channels"]
        scale = config["scaling_factor"]
    tokens, text_width = WORDS, WIDTH
    if folders.text is not None:
        tower = config_of(folders.text, "text_encoder")
        tokens, text_width = tower["max_position_embeddings"], tower["hidden_size"]
    labels = num_classes
    if folders.denoiser is not None:
        labels = denoiser_config(folders.denoiser)["num_embeds_ada_norm"]
    return Sizes(reduction, latents, colours, tokens, text_width, scale, labels)


def build(
    vae: VaeConfig,
    fusion: FusionConfig,
    denoiser: DenoiserConfig,
    folders: Folders,
    data: Data,
    rng: Generator,
) -> Parts:
    """The parts for images, those that are trained here as they start.

    Raises UserError for images or parts that do not go together.
    """
    library("diffusers")
    channels, height, _ = data.image_shape
    sizes = sizes_of(vae, folders, data.num_classes, channels)
    if folders.text is not None:
        check_names(data.class_names)
    check_shape(sizes, data.image_shape)
    side = height // sizes.reduction
    labels = _labels(denoiser, folders, sizes, data.num_classes)
    trained: dict[str, nn.Module] = {}
    loaders: dict[str, Callable[[], nn.Module]] = {}
    with scoped(rng):
        if folders.vae is None:
            trained["vae"] = new_vae(vae, channels, height)
        else:
            kind = library("diffusers").AutoencoderKL
            loaders["vae"] = partial(from_folder, kind, folders.vae, "vae")
        trained["fusion"] = Fusion(
            sizes.channels,
            sizes.text_width,
            side * side,
            width=fusion.width,
            heads=fusion.heads,
            layers=fusion.layers,
            dropout=fusion.dropout,
            residual=fusion.residual,
        )
        if folders.denoiser is None:
            _check_patch(denoiser, side)
            trained["denoiser"] = new_denoiser(denoiser, sizes, side)
        else:
            _check_denoiser(denoiser_config(folders.denoiser), folders.denoiser, sizes, side)
            loaders["denoiser"] = partial(load_denoiser, folders.denoiser)
    schedule = load_schedule(folders.denoiser)
    return Parts(sizes, trained, loaders, labels, schedule).eval()


def new_vae(config: VaeConfig, channels: int, side: int) -> nn.Module:
    """An autoencoder for images of these channels, as it starts."""
    number = len(config.widths)
    return library("diffusers").AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * number,
        up_block_types=("UpDecoderBlock2D",) * number,
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        latent_channels=config.channels,
        norm_num_groups=GROUPS,
        sample_size=side,
    )


def new_denoiser(config: DenoiserConfig, sizes: Sizes, side: int) -> nn.Module:
    """A diffusion transformer for latents of this side, as it starts."""
    network = library("diffusers").DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=sizes.channels,
        out_channels=sizes.channels,
        num_layers=config.layers,
        sample_size=side,
        patch_size=config.patch,
        num_embeds_ada_norm=sizes.labels,
    )
    # DiT starts every block as the identity, and says 0 (Peebles & Xie, section 3.2)
    for block in network.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    nn.init.zeros_(network.proj_out_2.weight)
    nn.init.zeros_(network.proj_out_2.bias)
    return network


def _check_patch(config: DenoiserConfig, side: int) -> None:
    """Raise UserError for patches that do not divide the latents."""
    if side % config.patch:
        raise UserError(
            f"buffer.step.denoiser.patch {config.patch} does not divide latents of {side} x "
            f"{side}; choose a divisor."
        )


def _check_denoiser(config: Json, path: str, sizes: Sizes, side: int) -> None:
    """Raise UserError for a denoiser of others that these latents do not fit."""
    wanted = (config["in_channels"], config["sample_size"])
    if wanted != (sizes.channels, side):
        raise UserError(
            f"The denoiser in {path} takes latents of {wanted[0]} channels and {wanted[1]} x "
            f"{wanted[1]}, and these images have latents of {sizes.channels} channels and {side} x "
            f"{side}; set data.size to {wanted[1] * sizes.reduction} "
            f"{wanted[1] * sizes.reduction}, or name its encoder."
        )


def _labels(
    config: DenoiserConfig, folders: Folders, sizes: Sizes, num_classes: int
) -> tuple[int, ...]:
    """The denoiser's number of each class. Raises UserError where they do not fit it."""
    if config.labels and folders.denoiser is None:
        raise UserError(
            "buffer.step.denoiser.labels are the numbers of a denoiser of others, and none is "
            "named; name its folder with --buffer.step.folder.denoiser, or leave the labels out."
        )
    labels = config.labels or tuple(range(num_classes))
    if not config.labels and sizes.labels != num_classes:
        raise UserError(
            f"The denoiser in {folders.denoiser} has {sizes.labels} classes and the images have "
            f"{num_classes}, so which is which is not known; say it with "
            "buffer.step.denoiser.labels."
        )
    if len(labels) != num_classes or not all(0 <= label < sizes.labels for label in labels):
        raise UserError(
            f"buffer.step.denoiser.labels says {labels} for {num_classes} classes of a denoiser "
            f"that has {sizes.labels}; give each class one of its numbers."
        )
    return labels
