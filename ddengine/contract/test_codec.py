"""What every codec must hold, whatever images it stores."""

import itertools
import math

import torch
from torch import Tensor

from ddengine.data import Preprocess
from ddengine.sets.codec import CODECS, Codec
from ddengine.system.configs import to_dict

PREPROCESS = Preprocess(mean=torch.full((3,), 0.5), std=torch.tensor([0.25, 0.3, 0.2]))
SHAPE = (3, 8, 8)
CLASSES = 2
BUDGET = 6  # images per class
ROUNDING = 0.02  # of images that are stored as bytes


def shipped_decode(codec: Codec, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the decode function of a shipped load.py makes of the stored tensors."""
    return codec.loader()(tensors, to_dict(codec))


def packed(codec_name: str) -> tuple[Codec, dict[str, Tensor]]:
    """The codec, fitted to the budget, and the tensors that it makes of random images."""
    codec, items = CODECS[codec_name]().small().fit(BUDGET, SHAPE, CLASSES)
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
    assert source.dtype == torch.int64, f"source() is of type {source.dtype}: return int64."
    items = source.unique()
    assert torch.equal(items, torch.arange(len(items))), (
        f"source() names the items {items.tolist()}: every stored item, from 0 on, must have an "
        "example."
    )
    decoded = everything(codec, tensors)
    assert decoded.shape == (len(source), *SHAPE), (
        f"decode() gives examples of shape {tuple(decoded.shape)}, and those that source() counts "
        f"have {(len(source), *SHAPE)}."
    )
    last_and_first = torch.tensor([len(source) - 1, 0])
    some = codec.decode(tensors, last_and_first)
    assert torch.allclose(some, decoded[last_and_first]), (
        "decode(tensors, index) of the last and the first example gives others than decoding all "
        "of them: decode the examples at index, in their order."
    )
    natural = codec.natural(tensors)
    assert torch.equal(source[:natural], torch.arange(natural)), (
        f"natural() says that the first {natural} examples are stored as they are, and source() "
        "gives them other items: those come first, each with an item of its own."
    )
    num_images = codec.num_images(tensors)
    assert num_images <= BUDGET * CLASSES, (
        f"The tensors that pack() makes are worth {num_images:.4g} images, and the budget is "
        f"{BUDGET * CLASSES}: fit() must return a codec and a number of items that stay within."
    )


def test_it_keeps_the_images_that_it_says_it_keeps(codec_name: str) -> None:
    """Whoever asks whether images are kept as they are, as pixels, may rely on the answer."""
    codec, tensors = packed(codec_name)
    if codec.keeps_images:
        assert torch.equal(everything(codec, tensors), tensors["images"]), (
            "keeps_images says that each stored image is one example, and decode() gives others."
        )
    shipper, shipped = codec.ship(tensors, PREPROCESS)
    bounded = codec.within_pixels()
    for kept in (codec, shipper, bounded):
        assert not kept.keeps_pixels or kept.keeps_images, (
            "keeps_pixels is true of a codec that does not keep images: say keeps_images too."
        )
    if codec.keeps_pixels:
        assert shipped["images"].dtype == torch.uint8, (
            f"keeps_pixels says that images are shipped as bytes, and ship() gives "
            f"{shipped['images'].dtype}."
        )


def test_a_codec_is_told_from_what_a_method_gains_by_it(codec_name: str) -> None:
    """Real images in the codec stand beside a set, unless it keeps images as they are.

    Whoever evaluates asks for that by `approximates`, or sees more examples than stored items.
    """
    num_bytes = 4 * math.prod(SHAPE) * CLASSES * BUDGET
    codec, items = CODECS[codec_name]().small().within(num_bytes, SHAPE, CLASSES)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(CLASSES * items * codec.per_item, *SHAPE, generator=generator)
    examples = everything(codec, codec.pack(images, CLASSES, PREPROCESS))
    if len(examples) > CLASSES * items or codec.approximates:
        return
    assert torch.allclose(examples, images, atol=ROUNDING), (
        f"A set of {num_bytes} bytes has an example for each stored item, which is not the image "
        "that was packed, and the codec does not say that it approximates: say so, or random "
        "images in it would be missing beside its sets."
    )


def test_items_are_apart_where_it_says_so(codec_name: str) -> None:
    """What is made of the first item alone is what is made of it among the others."""
    codec, tensors = packed(codec_name)
    if not codec.items_are_apart:
        return
    first = {name: tensor[:1] for name, tensor in tensors.items()}
    examples = everything(codec, first)
    assert torch.equal(examples, everything(codec, tensors)[: len(examples)]), (
        "items_are_apart says that an example follows from its own rows of the tensors, and "
        "decode() makes another of the first item where the others are not there."
    )
    assert codec.penalty(tensors) is None, (
        "items_are_apart is true of a codec with a penalty, which may be of all items."
    )


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
        assert gradient is not None, (
            f"parameters() names {name}, and no decoded example has a gradient in it: decode with "
            "functions of torch, and detach nothing."
        )
        assert (gradient != 0).any(), (
            f"parameters() names {name}, and the gradient of the decoded examples in it is zero: "
            "decode() does not use it."
        )


def assert_shipped_source_decodes(codec: Codec, tensors: dict[str, Tensor]) -> None:
    """The function that goes into load.py gives the same examples as the codec."""
    decoded, items = shipped_decode(codec, tensors)
    assert torch.allclose(decoded, everything(codec, tensors), atol=1e-6), (
        "The function that loader() returns, which goes into load.py, decodes to other examples "
        "than decode(): make both compute the same of tensors and fields."
    )
    assert torch.equal(items, codec.source(tensors)), (
        "The function that loader() returns gives examples other items than source()."
    )


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
    assert reader_again == reader, (
        f"Shipping gives the codec {reader}, and shipping once more {reader_again}: what is "
        "shipped must stay as it is."
    )
    assert shipped_again.keys() == shipped.keys(), (
        f"Shipping gives the tensors {', '.join(shipped)}, and shipping once more "
        f"{', '.join(shipped_again)}: what is shipped must stay as it is."
    )
    for name, tensor in shipped.items():
        again = shipped_again[name]
        same = again.dtype == tensor.dtype and torch.equal(again, tensor)
        assert same, f"Shipping once more changes {name}: what is shipped must stay as it is."
