"""Networks that others have trained, in folders as diffusers and transformers write them.

Nothing is fetched: a name that is no folder is refused, but where `download` says that the
libraries may ask the Hub for it.
"""

import hashlib
import importlib
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddengine.system import (
    archives,
    compat,  # noqa: F401  # so that they can import torchvision
)
from ddengine.system.errors import UserError
from ddengine.types import Json

INSTALL = "pip install 'ddengine[generative]'"
# the width of DiT's published networks -> heads; their files do not say it
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
DIT_FILES = (".pt", ".pth", ".safetensors")
# a part's folder in a pipeline -> what its config.json may say that it is; first, what loads it
KINDS = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("clip_text_model", "clip"),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
}


def library(name: str) -> Any:
    """A library of the extra. Raises UserError where it is not installed.

    They import torchvision, which `system.compat` has made importable.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"Generative distillation needs {name}, which cannot be imported ({error}); install "
            f"it with {INSTALL}."
        ) from None


def place_of(path: str, part: str) -> Path:
    """The folder of a part: `path` itself, or the one in it that is called as in a pipeline.

    Raises UserError for what is no folder, or holds no such part.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(
            f"{path} is no folder here, and nothing is fetched; name a folder that save_pretrained "
            "wrote, or set buffer.step.folder.download True for a name of the Hub."
        )
    inside = folder / part
    return inside if inside.is_dir() else folder


def fetched(path: str) -> str:
    """The folder of a pipeline or network of the Hub, fetched where it is not there yet."""
    if Path(path).expanduser().exists():
        return path
    hub = library("huggingface_hub")
    try:
        return hub.snapshot_download(path)
    except Exception as error:  # of network, rights or spelling: many kinds, one sentence
        raise UserError(
            f"{path} could not be fetched from the Hub ({type(error).__name__}); check the name "
            "and the connection."
        ) from None


def from_folder(kind: Any, folder: str, part: str) -> Any:
    """What lies in a folder, loaded by a class of diffusers or transformers.

    Raises UserError where it is none of that kind. Pickled weights are refused.
    """
    place = place_of(folder, part)
    options: Json = {"local_files_only": True}
    load: Any = kind.from_pretrained
    if issubclass(kind, nn.Module):
        options["use_safetensors"] = True
        options["low_cpu_mem_usage"] = False  # else diffusers warns that it lacks another library
    try:
        return load(place, **options)
    except Exception as error:  # the libraries raise many kinds for files that do not fit
        raise UserError(
            f"{place} holds no {kind.__name__} that can be read ({_first_line(error)}); name a "
            f"folder that save_pretrained wrote, with its weights as safetensors."
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(".")


def config_of(path: str, part: str) -> Json:
    """The config.json of a network, with the defaults of its library for what it leaves out.

    Raises UserError where there is none, where it is of another kind of network than the part, and
    where no weights lie beside it.
    """
    place = place_of(path, part)
    try:
        config = json.loads((place / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise UserError(
            f"{place} is no folder of a network: it has no config.json that can be read; name one "
            "that save_pretrained wrote."
        )
    _check_kind(place, part, config)
    if not any(place.glob("*.safetensors")):
        raise UserError(
            f"{place} has a config.json and no weights as safetensors; fetch them too, or convert "
            "pickled ones with save_pretrained."
        )
    return {**_defaults(part), **config.get("text_config", {}), **config}


def _check_kind(place: Path, part: str, config: Json) -> None:
    """Raise UserError for the folder of a network that is not of the kinds of a part."""
    kind = str(config.get("_class_name", config.get("model_type")))
    if kind not in KINDS[part]:
        raise UserError(
            f"{place} is the folder of a network of the kind {kind}, and the part needs "
            f"{' or '.join(KINDS[part])}; name the folder of such a one."
        )


@cache
def _defaults(part: str) -> Json:
    """The options of a part's network that its library has for those that nobody gives.

    Files of older versions of the libraries lack what was added later.
    """
    if part == "text_encoder":
        return library("transformers").CLIPTextConfig().to_dict()
    kind = getattr(library("diffusers"), KINDS[part][0])
    defaults = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            defaults[name] = parameter.default
    return defaults


def files_digest(path: str, part: str) -> str:
    """The digest of the content of a file, or of all files of a part's folder.

    Gigabytes are read once: while names, sizes and times stay, so does what was computed.
    """
    place = place_of(path, part)
    names = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    states = []
    for name in names:
        state = name.stat()
        states.append((str(name), state.st_size, state.st_mtime_ns))
    return _digest_of(tuple(states))


@cache
def _digest_of(states: tuple[tuple[str, int, int], ...]) -> str:
    """The digest of the names and the content of files."""
    sha = hashlib.sha256()
    for path, _, _ in states:
        sha.update(Path(path).name.encode())
        with open(path, "rb") as file:
            while block := file.read(2**22):
                sha.update(block)
    return sha.hexdigest()[:12]


def is_dit_file(path: str) -> bool:
    """Whether a path is a file of DiT's own weights."""
    return Path(path).suffix in DIT_FILES and not Path(path).expanduser().is_dir()


def denoiser_config(path: str) -> Json:
    """What says the sizes of a denoiser: of a folder its config.json, of a file its shapes."""
    if not is_dit_file(path):
        return config_of(path, "transformer")
    return dit_config(_dit_state(Path(path).expanduser()))


def load_denoiser(path: str) -> Any:
    """The denoiser in a folder, or of a file of DiT's own weights.

    Raises UserError for what is neither.
    """
    kind = library("diffusers").DiTTransformer2DModel
    if not is_dit_file(path):
        return from_folder(kind, path, "transformer")
    state = _dit_state(Path(path).expanduser())
    network = kind(**dit_config(state))
    network.load_state_dict(dit_to_diffusers(state), strict=True)
    for module in network.modules():
        # DiT's frequencies of the time reach max_period at half the width, not one before it
        if type(module).__name__ == "Timesteps":
            module.downscale_freq_shift = 0
    return network


def _dit_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of DiT's weights. Raises UserError for any other file."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            archives.check_sums(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        raise UserError(
            f"{path} cannot be read as weights ({_first_line(error)}); name DiT's file again."
        ) from None
    if isinstance(state, dict) and "ema" in state:  # a checkpoint of its training
        state = state["ema"]
    if not isinstance(state, dict) or "x_embedder.proj.weight" not in state:
        raise UserError(
            f"{path} holds no weights of DiT (no x_embedder.proj.weight); name a file of its "
            "program, or a folder that save_pretrained wrote."
        )
    return state


def dit_config(state: dict[str, Tensor]) -> Json:
    """The options of DiTTransformer2DModel that has DiT's own weights."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if width not in HEADS:
        raise UserError(
            f"A DiT of width {width} is none of those that are published ({sorted(HEADS)}), so its "
            "number of heads is not known; convert it with diffusers."
        )
    side = round(state["pos_embed"].shape[1] ** 0.5)
    outputs = len(state["final_layer.linear.bias"]) // patch**2
    return {
        "num_attention_heads": HEADS[width],
        "attention_head_dim": width // HEADS[width],
        "in_channels": channels,
        "out_channels": outputs,
        "num_layers": len(blocks),
        "sample_size": side * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(state["y_embedder.embedding_table.weight"]) - 1,
        "norm_eps": 1e-6,
    }


OF_BLOCKS = {  # in a block of diffusers -> in a block of DiT
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
OF_EMBEDDING = {  # in each block of diffusers -> once in DiT
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
}
OF_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}


def dit_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DiT's own weights by the names that diffusers has for them.

    Diffusers embeds time and class in every block anew, and has queries, keys and values apart.
    """
    renamed: dict[str, Tensor] = {}

    def take(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            renamed[f"{ours}.{kind}"] = state[f"{theirs}.{kind}"]

    for ours, theirs in OF_ENDS.items():
        take(ours, theirs)
    for number in range(dit_config(state)["num_layers"]):
        block, dit_block = f"transformer_blocks.{number}", f"blocks.{number}"
        for ours, theirs in OF_BLOCKS.items():
            take(f"{block}.{ours}", f"{dit_block}.{theirs}")
        for ours, theirs in OF_EMBEDDING.items():
            take(f"{block}.{ours}", theirs)
        table = state["y_embedder.embedding_table.weight"]
        renamed[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = table
        for kind in ("weight", "bias"):
            parts = state[f"{dit_block}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                renamed[f"{block}.attn1.to_{name}.{kind}"] = part.contiguous()
    return renamed
