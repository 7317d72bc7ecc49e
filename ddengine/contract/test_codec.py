"""What every codec must hold, whatever images it stores."""

import itertools

import torch
from torch import Tensor

from ddengine.data import Preprocess
from ddengine.recipe import to_dict
from ddengine.sets.codec import CODECS, Codec

PREPROCESS = Preprocess(mean=torch.full((3,), 0.5), std=torch.tensor([0.25, 0.3, 0.2]))
SHAPE = (3, 8, 8)
CLASSES = 2
BUDGET = 6  # images per class


def shipped_decode(codec: Codec, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the decode function of a shipped load.py makes of the stored tensors."""
    return codec.loader()(tensors, to_dict(codec))


def packed(codec_name: str) -> tuple[Codec, dict[str, Tensor]]:
    """The codec, fitted to the budget, and the tensors that it makes of random images."""
    codec, items = CODECS[codec_name]().fit(BUDGET, SHAPE, CLASSES)
    generator = torch.Generator().manual_seed(0)
    num_images = CLASSES * items * codec.per_item
    images = torch.rand(num_images, *SHAPE, generator=generator)
    tensors = {}
    for name, tensor in codec.pack(images, CLASSES, PREPROCESS).items():
        tensors[name] = tensor.detach().clone()
    return codec, tensors


def everything(codec: Codec, tensors: dict[str, Tensor]) -> Tensor:
    """All decoded examples."""
    num = len(codec.source(tensors))
    return codec.decode(tensors, torch.arange(num))


def test_examples_have_their_items(codec_name: str) -> None:
    """Every stored item has decoded examples, and a part decodes as it does in the whole."""
    codec, tensors = packed(codec_name)
    source = codec.source(tensors)
    assert source.dtype == torch.int64
    items = source.unique()
    assert torch.equal(items, torch.arange(len(items)))
    decoded = everything(codec, tensors)
    assert decoded.shape == (len(source), *SHAPE)
    last_and_first = torch.tensor([len(source) - 1, 0])
    some = codec.decode(tensors, last_and_first)
    assert torch.allclose(some, decoded[last_and_first])
    natural = codec.natural(tensors)
    assert torch.equal(source[:natural], torch.arange(natural))
    assert codec.num_images(tensors) <= BUDGET * CLASSES


def test_gradients_reach_what_is_learned(codec_name: str) -> None:
    """Every tensor that the codec calls learned has a gradient, and no other is asked for one."""
    codec, tensors = packed(codec_name)
    learned = list(itertools.chain(*codec.parameters(tensors).values()))
    for name in learned:
        tensors[name].requires_grad_()
    loss = everything(codec, tensors).square().sum()
    loss.backward()
    for name in learned:
        gradient = tensors[name].grad
        assert gradient is not None, name
        assert (gradient != 0).any(), name


def assert_shipped_source_decodes(codec: Codec, tensors: dict[str, Tensor]) -> None:
    """The function that goes into load.py gives the same examples as the codec."""
    decoded, items = shipped_decode(codec, tensors)
    assert torch.allclose(decoded, everything(codec, tensors), atol=1e-6)
    assert torch.equal(items, codec.source(tensors))


def test_the_shipped_source_decodes_alike(codec_name: str) -> None:
    """The function that goes into load.py gives the same examples, before and after shipping."""
    codec, tensors = packed(codec_name)
    codec.project(tensors, PREPROCESS)
    assert_shipped_source_decodes(codec, tensors)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert_shipped_source_decodes(reader, shipped)


def test_shipping_twice_is_shipping_once(codec_name: str) -> None:
    """What is shipped already stays as it is."""
    codec, tensors = packed(codec_name)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    reader_again, shipped_again = reader.ship(shipped, PREPROCESS)
    assert reader_again == reader
    assert shipped_again.keys() == shipped.keys()
    for name, tensor in shipped.items():
        again = shipped_again[name]
        assert again.dtype == tensor.dtype, name
        assert torch.equal(again, tensor), name
