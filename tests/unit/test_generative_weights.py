"""Weights of others: folders in the published layout, with small random weights, and DiT's own."""

import importlib.util
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from ddengine.api.inputs import Source
from ddengine.data import Dataset
from ddengine.recipe import DataConfig
from ddengine.system import compat
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.generative import weights
from synth.generative.config import DenoiserConfig, Folders, FusionConfig
from synth.generative.expert import Generative, encode_class_names
from synth.generative.schedule import load_schedule
from synth.generative.text import clip_tokens

assert compat.__name__  # so that the libraries can import torchvision
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None
    or importlib.util.find_spec("transformers") is None,
    reason="the extra `generative` is not installed",
)
NAMES = ("Ankle boot", "coat", "rain boot")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """(the folder of a text-to-image pipeline with encoder and text tower, that of a DiT)."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    diffusion, dit = folder / "stable-diffusion", folder / "dit"
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    ).save_pretrained(diffusion / "vae")
    config = CLIPTextConfig(
        vocab_size=80, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(diffusion / "text_encoder")
    write_tokenizer(diffusion / "tokenizer")
    DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=5,
    ).save_pretrained(dit / "transformer")  # fmt: skip
    DDIMScheduler(num_train_timesteps=100, beta_start=0.001).save_pretrained(dit / "scheduler")
    return diffusion, dit


def write_tokenizer(folder):
    """CLIP's tokenizer as it is published: a vocabulary of single letters, and no merges."""
    folder.mkdir(parents=True)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocabulary[letter] = len(vocabulary)
        vocabulary[f"{letter}</w>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = dict.fromkeys(("pad_token", "unk_token", "eos_token"), "<|endoftext|>")
    options = {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**options, **special}))


def images_of(size: int = 16, names=NAMES) -> Dataset:
    pixels = torch.rand(30, 3, size, size, generator=generator(0))
    labels = torch.arange(30) % len(names)
    return Dataset.of((pixels, labels), classes=list(names))


def data_of(size: int = 16):
    dataset = images_of(size)
    return Source(dataset.settings(DataConfig(name="digits")), dataset).load(CPU, lambda _: None)


def step_of(pipelines, **changes) -> Generative:
    diffusion, dit = map(str, pipelines)
    folders = {"vae": diffusion, "text": diffusion, "denoiser": dit}
    fusion = FusionConfig(width=8, heads=2, epochs=1, batch=8)
    labels = changes.pop("labels", (4, 0, 2))
    return Generative(
        folder=Folders(**{**folders, **changes}),
        fusion=fusion,
        denoiser=DenoiserConfig(labels=labels),
    )


def test_parts_of_others_are_loaded_frozen_and_not_stored(pipelines, tmp_path):
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    diffusion, dit = pipelines
    data = data_of()
    step = step_of(pipelines)
    parts = step.new_model(data, generator(0))
    assert {name.partition(".")[0] for name, _ in parts.named_parameters()} == {"fusion"}
    measured = step.train(parts, data, 0, tmp_path, "fp32")
    assert measured.keys() == {"scale", "fusion_loss"}
    assert measured["scale"] == 0.5  # what the folder says
    vae = AutoencoderKL.from_pretrained(diffusion / "vae")
    pixels = data.train.pixels.float() / 255
    with torch.no_grad():
        wanted = vae.encode(2 * pixels - 1).latent_dist.mean
        assert torch.allclose(parts.encode(pixels), wanted, atol=1e-6)
        decoded = ((vae.decode(wanted).sample + 1) / 2).clamp(0, 1)
    assert torch.allclose(parts.decode(wanted, 3), decoded, atol=1e-6)
    denoiser = DiTTransformer2DModel.from_pretrained(dit / "transformer").eval()
    noisy, times = torch.randn(2, 4, 8, 8, generator=generator(0)), torch.tensor([3, 50])
    labels = parts.labels_of(torch.tensor([0, 2]))
    assert labels.tolist() == [4, 2]
    with torch.no_grad():
        said = denoiser(noisy, timestep=times, class_labels=labels).sample
        ours = parts.denoise(noisy, times, labels)
    assert torch.allclose(ours.noise, said[:, :4], atol=1e-6)
    assert torch.allclose(ours.variance, said[:, 4:], atol=1e-6)
    for part in ("vae", "denoiser"):
        for parameter in parts.part(part).parameters():
            assert not parameter.requires_grad and parameter.grad is None
    assert len(parts.schedule.alphas_bar) == 100


def test_texts_are_those_of_the_tower(pipelines):
    from transformers import CLIPTextModel

    diffusion, _ = pipelines
    tokens, ends = clip_tokens(str(diffusion), NAMES)
    assert tokens.shape == (3, 16, 8)
    # a start, the letters, the end
    assert ends.tolist() == [10, 5, 9]
    tower = CLIPTextModel.from_pretrained(diffusion / "text_encoder").eval()
    letters = [2 + 2 * (ord(letter) - ord("a")) for letter in "coat"]
    letters[-1] += 1  # the last letter of a word
    padded = torch.tensor([[0, *letters, *[1] * 11]])
    with torch.no_grad():
        wanted = tower(input_ids=padded).last_hidden_state
    assert torch.allclose(tokens[1], wanted[0], atol=1e-6)
    with pytest.raises(UserError, match="these have none but numbers"):
        clip_tokens(str(diffusion), ("0", "1", "2"))


def test_a_folder_of_the_network_itself_will_do(pipelines):
    diffusion, dit = pipelines
    data = data_of()
    whole = step_of(pipelines)
    alone = step_of(pipelines, vae=str(diffusion / "vae"), denoiser=str(dit / "transformer"))
    pixels = data.train.pixels[:2].float() / 255
    latents = [s.new_model(data, generator(0)).encode(pixels) for s in (whole, alone)]
    assert torch.allclose(*latents, atol=1e-6)
    assert whole.files() == alone.files()
    other = step_of(pipelines, denoiser=None, labels=())
    assert other.files() != whole.files()
    assert Generative().files() is None


def test_the_schedule_of_the_pipeline(pipelines, tmp_path):
    from diffusers import DDPMScheduler

    _, dit = pipelines
    betas = torch.linspace(0.001, 0.02, 100)
    assert torch.allclose(
        load_schedule(str(dit)).alphas_bar.float(), torch.cumprod(1 - betas, 0), atol=1e-6
    )
    assert len(load_schedule(None).alphas_bar) == 1000
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match="was trained to say v_prediction"):
        load_schedule(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": ()}, "has 5 classes and the images have 3, so which is which"),
        ({"labels": (0, 1, 5)}, "give each class one of its numbers"),
        ({"vae": "stabilityai/sd-vae-ft-mse"}, "is no folder here, and nothing is fetched"),
    ],
)
def test_what_does_not_fit(pipelines, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        step_of(pipelines, **changes).new_model(data_of(), generator(0))


def test_a_folder_that_is_no_network(pipelines, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for part in ("vae", "text", "denoiser"):
        step = step_of(pipelines, **{part: str(tmp_path)})
        with pytest.raises(UserError, match=r"is no folder of a network: it has no config.json"):
            step.new_model(data_of(), generator(0))
    (tmp_path / "config.json").write_text((pipelines[0] / "vae" / "config.json").read_text())
    (tmp_path / "damaged.safetensors").write_text("short")
    parts = step_of(pipelines, vae=str(tmp_path)).new_model(data_of(), generator(0))
    with pytest.raises(UserError, match="holds no AutoencoderKL that can be read"):
        parts.encode(torch.zeros(1, 3, 16, 16))


def test_folders_are_looked_at_before_anything_is_trained(pipelines, tmp_path):
    """Of each part: a network of another kind, and one whose weights are missing or pickled."""
    inside = {"vae": pipelines[0] / "vae", "text": pipelines[0] / "text_encoder"}
    inside["denoiser"] = pipelines[1] / "transformer"
    for part, other in (("vae", "text"), ("text", "denoiser"), ("denoiser", "vae")):
        step = step_of(pipelines, **{part: str(inside[other])})
        with pytest.raises(UserError, match="is the folder of a network of the kind"):
            step.new_model(data_of(), generator(0))
        (tmp_path / "config.json").write_text((inside[part] / "config.json").read_text())
        (tmp_path / "pytorch_model.bin").write_text("pickled")
        step = step_of(pipelines, **{part: str(tmp_path)})
        with pytest.raises(UserError, match=r"has a config\.json and no weights as safetensors"):
            step.new_model(data_of(), generator(0))


def test_what_older_files_leave_out_has_the_default_of_the_library(pipelines, tmp_path):
    """As Stable Diffusion 1.5, whose encoder's file does not say its scale."""
    for name, part, left_out in (
        ("vae", "vae", "scaling_factor"), ("text", "text_encoder", "max_position_embeddings")
    ):  # fmt: skip
        folder = tmp_path / name
        shutil.copytree(pipelines[0] / part, folder)
        config = json.loads((folder / "config.json").read_text())
        del config[left_out]
        (folder / "config.json").write_text(json.dumps(config))
    folders = {"vae": str(tmp_path / "vae"), "text": str(tmp_path / "text")}
    sizes = step_of(pipelines, **folders).new_model(data_of(), generator(0)).sizes
    assert sizes.scale == 0.18215 and sizes.tokens == 77


@pytest.mark.parametrize("names", [("3", "7"), ("", " 1"), ("0", "1")])
def test_a_text_tower_reads_no_numbers(pipelines, names):
    with pytest.raises(UserError, match="these have none but numbers"):
        clip_tokens(str(pipelines[0]), names)
    with pytest.raises(UserError, match="these have none but numbers"):
        step_of(pipelines).new_model(replace(data_of(), class_names=names), generator(0))


def test_images_of_another_size_than_the_denoiser_takes(pipelines):
    with pytest.raises(
        UserError, match=r"takes latents of 4 channels and 8 x 8.* data.size to 16 16"
    ):
        step_of(pipelines).new_model(data_of(32), generator(0))


def test_nothing_is_fetched_but_where_the_flag_says_so(pipelines, monkeypatch):
    asked = []

    def snapshot(name):
        asked.append(name)
        return str(pipelines[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    name = "somebody/stable-diffusion"
    with pytest.raises(UserError, match="nothing is fetched"):
        step_of(pipelines, vae=name).new_model(data_of(), generator(0))
    assert not asked
    step = step_of(pipelines, vae=name, download=True)
    assert step.new_model(data_of(), generator(0)).encode(torch.zeros(1, 3, 16, 16)).shape[1] == 4
    assert set(asked) == {name}

    def refused(name):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(UserError, match="could not be fetched from the Hub"):
        step.new_model(data_of(), generator(0))


def test_names_are_told_once_and_stored(pipelines):
    data = data_of()
    step = step_of(pipelines)
    parts = step.new_model(data, generator(0))
    assert (parts.tokens == 0).all()
    encode_class_names(parts, data.class_names, step.folder)
    assert "tokens" in dict(parts.named_buffers())
    tokens, ends = clip_tokens(str(pipelines[0]), data.class_names)
    assert torch.equal(parts.tokens, tokens)
    assert parts.ends.tolist() == ends.tolist()


# DiT's own layout, by a network written from its paper and the names of its files.


class DitBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift, scale, gate, shift2, scale2, gate2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, 2)
        )
        y = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        q, k, v = self.attn["qkv"](y).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate * self.attn["proj"](seen)
        y = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        y = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](y), approximate="tanh"))
        return x + gate2 * y


class Dit(nn.Module):
    """As facebookresearch/DiT names its weights."""

    def __init__(self, width=384, heads=6, depth=2, side=8, patch=2, channels=4, classes=5):
        super().__init__()
        self.patch, self.side, self.outputs = patch, side // patch, 2 * channels
        self.pos_embed = nn.Parameter(positions(width, self.side), requires_grad=False)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.blocks = nn.ModuleList(DitBlock(width, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, patch**2 * self.outputs),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )

    def forward(self, x, t, y):
        frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = t[:, None].float() * frequencies
        c = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], 1))
        c = c + self.y_embedder["embedding_table"](y)
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).unsqueeze(1).chunk(2, 2)
        x = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        x = self.final_layer["linear"](x)
        x = x.view(-1, self.side, self.side, self.patch, self.patch, self.outputs)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(
            len(x), self.outputs, *[self.side * self.patch] * 2
        )


def positions(width, side):
    """Sines and cosines of the column, then of the row."""
    frequencies = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    parts = []
    for place in (columns, rows):
        angles = place.flatten()[:, None].double() * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, 1).float().unsqueeze(0)


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(0)
    return Dit().eval()


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "checkpoint"])
def test_dits_own_weights(dit, suffix, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "DiT-S-2.pt"
    if suffix == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(dit.state_dict(), path)
    else:
        state = dit.state_dict()
        torch.save({"ema": state, "opt": {}} if suffix == "checkpoint" else state, path)
    noisy, times = torch.randn(2, 4, 8, 8, generator=generator(0)), torch.tensor([3, 950])
    labels = torch.tensor([4, 5])
    loaded = weights.load_denoiser(str(path)).eval()
    with torch.no_grad():
        ours = loaded(noisy, timestep=times, class_labels=labels).sample
        theirs = dit(noisy, times, labels)
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert theirs.std() > 0.1
    config = weights.denoiser_config(str(path))
    assert (config["sample_size"], config["num_embeds_ada_norm"]) == (8, 5)


def test_files_that_hold_no_dit(tmp_path):
    other, damaged, narrow = (tmp_path / f"{name}.pt" for name in ("other", "damaged", "narrow"))
    torch.save({"weight": torch.zeros(2)}, other)
    damaged.write_bytes(b"nothing")
    torch.save(Dit(width=32, heads=2, depth=1).state_dict(), narrow)
    for path, sentence in (
        (other, "holds no weights of DiT"),
        (damaged, "cannot be read as weights"),
        (narrow, "A DiT of width 32 is none of those that are published"),
        (tmp_path / "absent.pt", "is no folder here, and nothing is fetched|cannot be read"),
    ):
        with pytest.raises(UserError, match=sentence):
            weights.load_denoiser(str(path))


def test_a_flipped_bit_of_weights_is_noticed(tmp_path):
    """torch.load takes any bytes of a tensor for numbers."""
    path = tmp_path / "DiT.pt"
    torch.save({"x_embedder.proj.weight": torch.linspace(-1, 1, 4000)}, path)
    assert weights._dit_state(path)["x_embedder.proj.weight"].shape == (4000,)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged in"):
        weights._dit_state(path)


def test_without_the_libraries_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UserError, match=r"needs diffusers.*pip install 'ddengine\[generative\]'"):
        weights.library("diffusers")
