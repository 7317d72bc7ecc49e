"""Tokens of the names of classes: of CLIP's text tower, or vectors of words."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.generative.weights import from_folder, library

WORDS = 8  # tokens of a name without CLIP, the end among them
WIDTH = 64  # of these tokens


def word_tokens(names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(tokens (K, WORDS, WIDTH), places of the ends (K,)) of names, without any network.

    A token is a fixed random vector of its word, and the end the sum of the words over the root of
    their number; what follows is 0. So names that share a word are alike.
    """
    tokens = torch.zeros(len(names), WORDS, WIDTH)
    ends = torch.zeros(len(names), dtype=torch.long)
    for k, name in enumerate(names):
        words = re.findall(r"\w+", name.lower())[: WORDS - 1]
        of_name = tokens[k]
        for place, word in enumerate(words):
            of_name[place] = _vector(word)
        num = len(words)
        of_name[num] = of_name.sum(0) / max(1, num) ** 0.5
        ends[k] = num
    return tokens, ends


def _vector(word: str) -> Tensor:
    """The fixed vector (WIDTH,) of a word."""
    rng = generator(0, "word", word)
    return torch.randn(WIDTH, generator=rng)


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for classes that have no names which a text tower could read."""
    if not any(re.search(r"[^\W\d_]", name) for name in names):
        raise UserError(
            "The text tower reads the names of the classes, and these have none but numbers; give "
            "the dataset class names, or leave buffer.step.folder.text out."
        )


@torch.no_grad()
def clip_tokens(folder: str, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(tokens (K, M, D), places of the ends (K,)) of names by CLIP's text tower in a folder.

    Tokens are those of its last layer, after its normalisation; M is the longest text that it
    takes. Raises UserError for a folder without tower and tokenizer.
    """
    check_names(names)
    transformers = library("transformers")
    tower = from_folder(transformers.CLIPTextModel, folder, "text_encoder")
    tokenizer = from_folder(transformers.CLIPTokenizer, folder, "tokenizer")
    length = tower.config.max_position_embeddings
    read = tokenizer(
        list(names), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    hidden = tower.eval()(input_ids=read.input_ids).last_hidden_state
    # the first end of a text: padding may look the same
    ends = (read.input_ids == tokenizer.eos_token_id).int().argmax(1)
    return hidden.float(), ends
