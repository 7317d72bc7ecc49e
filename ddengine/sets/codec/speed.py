"""Images as sparse codes of tokens through a small network that all share (SPEED)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require, require_at_least
from ddengine.sets.codec.packed import in_parts
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.values import other_shape
from ddengine.sets.codec.within_bytes import NearImages, decoded_in_parts
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

BYTES = 2  # of a float16, and of a place
FIRST_DEVIATION = 0.2  # of tokens and coefficients before the first step
MOST_PLACES = 2**15  # that a place tells apart


@dataclass(frozen=True, kw_only=True)
class SparseTokens(NearImages):
    """An image is sparse combinations of shared tokens, decoded patch by patch (SPEED).

    Wei et al., NeurIPS 2023. Stored: "tokens" (K, D); "coefficients" (S, heads, patches, K);
    "network" (R,), the weights of `blocks` blocks and a last layer, all of all classes. A block
    adds to what it is given the projected combinations of the tokens, each head of its share of D,
    normalises, adds a layer of two linear maps, normalises; the last layer makes the pixels of a
    patch. All blocks use the same coefficients, of which `sparsity` times the sum of magnitudes is
    added to the loss.

    Shipped: the `kept` largest coefficients of each head in magnitude, and their places in 16 bits;
    all numbers in float16. As published, the set that is evaluated is sparse and the one that is
    learned is not, which takes sparsity and many steps; `sparse_while_learned` decodes what will be
    shipped at every step, so that of the images only kept coefficients have a gradient.
    """

    WORKS: ClassVar[tuple[str, ...]] = ("wei2023speed",)
    MAIN: ClassVar[str] = "coefficients"  # of each image, before they are shipped

    tokens: int = 16  # K; published for CIFAR-10: 16, 64 and 64
    dim: int = 32  # D; published: 32, 96 and 192
    blocks: int = 1  # published: 1, 1 and 3
    heads: int = 2  # published: 2, 3 and 6
    patch: int = 4  # side of a patch, which divides both sides of an image
    kept: int = 48  # coefficients of a head of an image, in what is shipped
    sparsity: float = 3e-6  # weight of the sum of magnitudes
    sparse_while_learned: bool = False  # whether only those kept count before they are shipped
    fit_steps: int = (
        1000  # of Adam at fit_lr, in which they come near to the images they start from
    )
    fit_lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens", "dim", "blocks", "heads", "patch", "kept"):
            require_at_least(f"codec.{name}", self.sizes[name])
        require(
            self.dim % self.heads == 0,
            f"codec.heads {self.heads} do not share codec.dim {self.dim} evenly; set a divisor.",
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The whole numbers that decide the shapes of what is stored."""
        return {
            "tokens": self.tokens,
            "dim": self.dim,
            "blocks": self.blocks,
            "heads": self.heads,
            "patch": self.patch,
            "kept": self.kept,
        }

    @property
    def of_all_classes(self) -> str:
        """Tokens and network."""
        return "tokens"

    def small(self) -> Self:
        """With few short tokens, in few steps."""
        return replace(super().small(), tokens=4, dim=4, blocks=1, heads=2, kept=4)

    def num_patches(self, image_shape: tuple[int, ...]) -> int:
        """Patches of an image."""
        return (image_shape[1] // self.patch) * (image_shape[2] // self.patch)

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError for images that patches do not make up, and for coefficients too many."""
        _, height, width = image_shape
        if height % self.patch or width % self.patch:
            raise UserError(
                f"codec.patch {self.patch} does not divide images of {height} x {width} pixels; "
                "set codec.patch to a divisor of both sides."
            )
        places = self.num_patches(image_shape) * self.tokens
        if self.kept > places:
            raise UserError(
                f"codec.kept {self.kept} is more than the {places} coefficients of a head; lower "
                f"it to {places}."
            )
        if places > MOST_PLACES:
            raise UserError(
                f"codec.tokens {self.tokens} in patches of {self.patch} make {places} coefficients "
                f"of a head, and 15 bits tell {MOST_PLACES} apart; lower codec.tokens or raise "
                "codec.patch."
            )

    def network_shapes(self, channels: int) -> list[tuple[int, ...]]:
        """Shapes of the parameters of the network, in their order."""
        return network_shapes(self.dim, self.blocks, self.patch**2 * channels)

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Two bytes for each number of tokens, network and coefficients, and for each place."""
        weights = sum(map(math.prod, self.network_shapes(image_shape[0])))
        shared = self.tokens * self.dim + weights
        return BYTES * (shared + 2 * items * num_classes * self.heads * self.kept)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Random numbers as published, brought near to the images."""
        rng = rng or generator(0, "speed")
        shape = tuple(images.shape[1:])
        sizes = (len(images), self.heads, self.num_patches(shape), self.tokens)
        start = {
            "tokens": torch.randn(self.tokens, self.dim, generator=rng) * FIRST_DEVIATION,
            "coefficients": torch.randn(sizes, generator=rng) * FIRST_DEVIATION,
            "network": first_network(self.network_shapes(shape[0]), rng),
        }

        def decode(tensors: dict[str, Tensor], index: Tensor) -> Tensor:
            return self._images(tensors, self._learned(tensors, index), shape)

        start = {name: tensor.to(images) for name, tensor in start.items()}
        return self.near(images, start, decode)

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """Tokens, network and coefficients; of what is shipped those that are left."""
        name = "coefficients" if "coefficients" in tensors else "largest"
        return {"tokens": ("tokens",), "network": ("network",), "coefficients": (name,)}

    @property
    def by_item(self) -> tuple[str, ...]:
        """Those of each image, and of what is shipped their places too."""
        return ("coefficients", "largest", "places")

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        rows = tensors["coefficients" if "coefficients" in tensors else "largest"]
        return torch.arange(len(rows), device=rows.device)

    def bytes_by_part(self, tensors: Tensors) -> dict[str, int]:
        """Places are a part of coefficients."""
        parts = super().bytes_by_part(tensors)
        if "places" in tensors:
            parts["coefficients"] += tensors["places"].nbytes
        return parts

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The patches of the combinations of tokens."""
        if "coefficients" in tensors:
            chosen = self._learned(tensors, index)
        else:
            numbers = self.num_patches(self.image_shape) * self.tokens
            coefficients = dense(tensors["largest"], tensors["places"], numbers, self.tokens)
            chosen = coefficients.index_select(0, index)
        return self._images(tensors, chosen, self.image_shape)

    def _learned(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The coefficients of some images, before they are shipped."""
        chosen = tensors["coefficients"].index_select(0, index)
        return largest_alone(chosen, self.kept) if self.sparse_while_learned else chosen

    def _images(self, tensors: Tensors, coefficients: Tensor, shape: tuple[int, ...]) -> Tensor:
        shapes = self.network_shapes(shape[0])
        tokens, network = in_learned(tensors["tokens"]), in_learned(tensors["network"])

        def images_of(part: Tensor) -> Tensor:
            return token_images(part, tokens, network, shapes, shape, self.patch)

        numbers = self.num_patches(shape) * max(self.dim, self.tokens * self.heads)
        return decoded_in_parts(images_of, coefficients, numbers)

    def penalty(self, tensors: Tensors) -> Tensor | None:
        """The sum of magnitudes of the coefficients."""
        return self.sparsity * tensors["coefficients"].abs().sum() if self.sparsity else None

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """The largest coefficients and their places, in float16 and int16."""
        if "coefficients" not in tensors:
            return self, dict(tensors)
        shipped = dict(tensors)
        flat = shipped.pop("coefficients").detach().flatten(2)
        places = largest_places(flat, self.kept)
        shipped["largest"] = flat.gather(2, places).half()
        shipped["places"] = places.short()
        for name in ("tokens", "network"):
            shipped[name] = tensors[name].half()
        return self, shipped

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Tokens and network; all coefficients, or the largest and their places."""
        shared = {"tokens": 2, "network": 1}
        if "coefficients" in tensors:
            return {**shared, "coefficients": 4}
        return {**shared, "largest": 3, "places": 3}

    def memory(self, tensors: Tensors) -> int:
        """All coefficients with their zeros, and what an image is made of on the way."""
        patches = self.num_patches(self.image_shape)
        rows = len(self.source(tensors)) * self.heads
        return 4 * patches * (rows * self.tokens + 8 * self.dim * self.blocks)

    def flaw(self, tensors: Tensors) -> str | None:
        """Other numbers than the settings say, and places that there are not."""
        weights = sum(map(math.prod, self.network_shapes(self.image_shape[0])))
        patches = self.num_patches(self.image_shape)
        sizes: dict[str, tuple[int | None, ...]] = {
            "network": (weights,),
            "tokens": (self.tokens, self.dim),
            "coefficients": (None, self.heads, patches, self.tokens),
            "largest": (None, self.heads, None),  # more in older sets, of equally large ones
        }
        wrong = other_shape(tensors, sizes)
        if wrong is not None:
            return wrong
        if "places" in tensors:
            places = tensors["places"]
            most = self.num_patches(self.image_shape) * self.tokens
            if (
                places.shape != tensors["largest"].shape
                or not 0 <= int(places.min()) <= int(places.max()) < most
            ):
                return f"holds 'places' that are not of {most} coefficients of a head"
        return None

    def loader(self) -> Loader:
        """All images."""
        return images_of_tokens


def first_network(shapes: list[tuple[int, ...]], rng: Generator) -> Tensor:
    """(R,): weights uniform as torch.nn.init.xavier_uniform_ has them, no biases, no change."""
    parts = []
    for place, shape in enumerate(shapes):
        if len(shape) == 2:
            bound = math.sqrt(6 / sum(shape))
            parts.append((2 * torch.rand(math.prod(shape), generator=rng) - 1) * bound)
        else:
            # of a normalisation come a scale and a shift, of a layer its weight and a bias
            scales = place + 1 < len(shapes) and len(shapes[place + 1]) == 1
            parts.append(torch.full(shape, float(scales)))
    return torch.cat(parts)


# What is shipped: plain torch, see `Codec.loader`.


def images_of_tokens(tensors, settings):
    """(examples, the stored item of each): the patches of the combinations of tokens."""
    shape, patch, num = settings["shape"], settings["patch"], settings["tokens"]
    shapes = network_shapes(settings["dim"], settings["blocks"], patch**2 * shape[0])
    tokens, network = in_learned(tensors["tokens"]), in_learned(tensors["network"])
    patches = (shape[1] // patch) * (shape[2] // patch)
    if "coefficients" in tensors:
        coefficients = tensors["coefficients"]
        if settings["sparse_while_learned"]:
            coefficients = largest_alone(coefficients, settings["kept"])
    else:
        coefficients = dense(tensors["largest"], tensors["places"], patches * num, num)

    def images_of(part):
        return token_images(part, tokens, network, shapes, shape, patch)

    numbers = patches * max(settings["dim"], num * settings["heads"])
    examples = in_parts(images_of, coefficients, numbers)
    return examples, torch.arange(len(examples))


def in_learned(numbers):
    """Shipped numbers in float32; others as they are."""
    return numbers.float() if numbers.dtype == torch.float16 else numbers


def dense(largest, places, numbers, num_tokens):
    """Coefficients (S, heads, patches, K) of those kept (S, heads, kept); others are 0."""
    empty = torch.zeros(*largest.shape[:2], numbers, device=largest.device)
    flat = empty.scatter(2, places.long(), largest.float())
    return flat.view(*largest.shape[:2], -1, num_tokens)


def largest_places(coefficients, kept):
    """(S, heads, kept), ascending: the places of the largest of (S, heads, patches K).

    Never more, because a budget promises their bytes; the released program also keeps those that
    are as large as the last of them.
    """
    return coefficients.abs().topk(kept, 2).indices.sort(2).values


def largest_alone(coefficients, kept):
    """Coefficients (S, heads, patches, K), of which all but the largest of a head are 0."""
    flat = coefficients.flatten(2)
    places = largest_places(flat.detach(), kept)
    alone = torch.zeros_like(flat).scatter(2, places, flat.gather(2, places))
    return alone.view_as(coefficients)


def network_shapes(dim, blocks, values):
    """Shapes of the parameters, for patches of so many values, in the order of the network."""
    pair = [(dim,), (dim,)]
    linear = [(dim, dim), (dim,)]
    return (pair + linear + pair + linear + linear) * blocks + [(values, dim), (values,)]


def token_images(coefficients, tokens, network, shapes, shape, patch):
    """Images (B, C, H, W) of coefficients (B, heads, patches, K) of tokens (K, D)."""
    flat = network.split([math.prod(part) for part in shapes])
    weights = [part.view(size) for part, size in zip(flat, shapes, strict=True)]
    x = torch.zeros(1, device=tokens.device, dtype=tokens.dtype)
    for first in range(0, len(weights) - 2, 10):
        x = token_block(x, coefficients, tokens, weights[first : first + 10])
    pixels = torch.nn.functional.linear(x, *weights[-2:])
    channels, height, width = shape
    grid = pixels.view(-1, height // patch, width // patch, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)


def token_block(x, coefficients, tokens, weights):
    """What a block makes of x (B, patches, D), or of 0."""
    scale1, shift1, project, bias, scale2, shift2, first, bias1, second, bias2 = weights
    size = (tokens.shape[1],)
    heads = coefficients.shape[1]
    of_heads = tokens.view(len(tokens), heads, -1).transpose(0, 1)
    combined = (coefficients @ of_heads).transpose(1, 2).flatten(2)
    x = x + torch.nn.functional.linear(combined, project, bias)
    x = torch.nn.functional.layer_norm(x, size, scale1, shift1, 1e-6)
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(x, first, bias1))
    x = x + torch.nn.functional.linear(hidden, second, bias2)
    return torch.nn.functional.layer_norm(x, size, scale2, shift2, 1e-6)
