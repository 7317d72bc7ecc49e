"""What every codec must hold, whatever images it stores."""

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
    images = torch.rand(CLASSES * items * codec.per_item, *SHAPE, generator=generator)
    tensors = codec.pack(images, CLASSES, PREPROCESS)
    return codec, {name: tensor.detach().clone() for name, tensor in tensors.items()}


def everything(codec: Codec, tensors: dict[str, Tensor]) -> Tensor:
    """All decoded examples."""
    return codec.decode(tensors, torch.arange(len(codec.source(tensors))))


def test_examples_have_their_items(codec_name: str) -> None:
    """Every stored item has decoded examples, and a part decodes as it does in the whole."""
    codec, tensors = packed(codec_name)
    source = codec.source(tensors)
    assert source.dtype == torch.int64
    assert source.unique().tolist() == list(range(len(source.unique())))
    decoded = everything(codec, tensors)
    assert decoded.shape == (len(source), *SHAPE)
    some = torch.tensor([len(source) - 1, 0])
    assert torch.allclose(codec.decode(tensors, some), decoded[some])
    natural = codec.natural(tensors)
    assert torch.equal(source[:natural], torch.arange(natural))
    assert codec.num_images(tensors) <= BUDGET * CLASSES


def test_gradients_reach_what_is_learned(codec_name: str) -> None:
    """Every tensor that the codec calls learned has a gradient, and no other is asked for one."""
    codec, tensors = packed(codec_name)
    learned = [name for names in codec.parameters(tensors).values() for name in names]
    for name in learned:
        tensors[name].requires_grad_()
    everything(codec, tensors).square().sum().backward()
    for name in learned:
        gradient = tensors[name].grad
        assert gradient is not None and (gradient != 0).any(), name


def test_the_shipped_source_decodes_alike(codec_name: str) -> None:
    """The function that goes into load.py gives the same examples, before and after shipping."""
    codec, tensors = packed(codec_name)
    codec.project(tensors, PREPROCESS)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    for of, stored in ((codec, tensors), (reader, shipped)):
        decoded, items = shipped_decode(of, stored)
        assert torch.allclose(decoded, everything(of, stored), atol=1e-6)
        assert torch.equal(items, of.source(stored))


def test_shipping_twice_is_shipping_once(codec_name: str) -> None:
    """What is shipped already stays as it is."""
    codec, tensors = packed(codec_name)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    again, once_more = reader.ship(shipped, PREPROCESS)
    assert again == reader and once_more.keys() == shipped.keys()
    for name, tensor in shipped.items():
        assert once_more[name].dtype == tensor.dtype and torch.equal(once_more[name], tensor), name
