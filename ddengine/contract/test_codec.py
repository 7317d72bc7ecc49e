"""What every codec must hold, whatever images it stores."""

import torch
from torch import Tensor

from ddengine.data import Preprocess
from ddengine.sets.codec import CODECS

PREPROCESS = Preprocess(mean=torch.full((3,), 0.5), std=torch.tensor([0.25, 0.3, 0.2]))
SHAPE = (3, 8, 8)
CLASSES = 2
BUDGET = 6  # images per class


def shipped_decode(text: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the decode function of a shipped load.py makes of the stored tensors."""
    names: dict = {}
    exec("import torch\n" + text, names)  # as the shipped file has it
    return names["decode"](tensors)


def test_codec(codec_name: str) -> None:
    """Packing and decoding fit, and gradients reach what is learned.

    A part decodes as in the whole, the shipped source does the same, and shipping twice is
    shipping once.
    """
    codec, items = CODECS[codec_name]().fit(BUDGET, CLASSES)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(CLASSES * items * codec.per_item, *SHAPE, generator=generator)
    tensors = codec.pack(images, CLASSES, PREPROCESS)
    for name, tensor in tensors.items():
        tensors[name] = tensor.detach().clone().requires_grad_()
    source = codec.source(tensors)
    assert source.dtype == torch.int64
    assert source.unique().tolist() == list(range(CLASSES * items))

    everything = codec.decode(tensors, torch.arange(len(source)))
    assert everything.shape == (len(source), *SHAPE)
    some = torch.tensor([len(source) - 1, 0])
    assert torch.allclose(codec.decode(tensors, some), everything[some])
    natural = codec.natural(tensors)
    assert torch.equal(source[:natural], torch.arange(natural))

    everything.square().sum().backward()
    gradient = tensors["images"].grad
    assert gradient is not None and (gradient != 0).any()
    decoded, items_of = shipped_decode(codec.loader(), tensors)
    assert torch.allclose(decoded, everything, atol=1e-6) and torch.equal(items_of, source)

    with torch.no_grad():
        codec.project(tensors, PREPROCESS)
        reader, shipped = codec.ship(tensors, PREPROCESS)
        read = reader.decode(shipped, torch.arange(len(source)))
        decoded, items_of = shipped_decode(reader.loader(), shipped)
    assert torch.allclose(decoded, read, atol=1e-6)
    assert torch.equal(items_of, source) and torch.equal(reader.source(shipped), source)
    once_more_reader, once_more = reader.ship(shipped, PREPROCESS)
    assert once_more_reader == reader
    for name, tensor in shipped.items():
        assert once_more[name].dtype == tensor.dtype and torch.equal(once_more[name], tensor), name
