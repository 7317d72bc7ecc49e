"""What a parametrisation of the stored tensors is."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, Self

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import Recipe
from ddengine.system.errors import UserError

Tensors = Mapping[str, Tensor]
Space = Literal["pixel", "model"]
Unit = Literal["f32", "u8"]  # what a value of an image takes in a budget of images
BYTES_OF_VALUE: dict[Unit, int] = {"f32": 4, "u8": 1}
# decode(tensors, settings) -> (examples, items); see `Codec.loader`
Loader = Callable[[Any, Any], tuple[Tensor, Tensor]]


class Codec(Protocol):
    """How training examples are made from what is stored.

    A codec is a frozen dataclass without state: its fields are its configuration, and what is
    learned lies in the tensors, of which there may be any number under any names. A codec names
    this class as its base, and writes down what differs from the defaults below.
    """

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ()

    @property
    def space(self) -> Space:
        """What decoded values are: pixels or what networks see.

        Pixels lie in [0, 1] and are preprocessed after decoding.
        """
        return "pixel"

    @property
    def per_item(self) -> int:
        """Images that one stored item starts from."""
        return 1

    @property
    def least_items(self) -> int:
        """Stored items of a class at least."""
        return 1

    @property
    def keeps_images(self) -> bool:
        """Whether each stored image is one training example, and the tensors hold no other part."""
        return False

    @property
    def keeps_pixels(self) -> bool:
        """Whether it keeps images, within what pixels can be, and ships them as bytes."""
        return False

    @property
    def approximates(self) -> bool:
        """Whether examples are coarser than the images that they were packed of.

        Random real images in the codec say then what it is worth, however many it holds.
        """
        return False

    def of_real_images(self) -> "Codec":
        """The codec in which real images that nobody learned stand beside a set."""
        return self

    def holding(self, items: int) -> "Codec | None":
        """The codec of so many items of a class, where what is shipped is compressed; else None.

        As many items take more bytes in one set than in another then. Real images beside a set are
        as many as take its bytes.
        """
        return None

    @property
    def of_all_classes(self) -> str:
        """What is stored of all classes at once, so that sets cannot be merged; "" for nothing."""
        return ""

    @property
    def items_are_apart(self) -> bool:
        """Whether each example follows from its own rows of the tensors, without a penalty.

        Then some items can be optimised without the others, to the same numbers.
        """
        return False

    def within_pixels(self) -> "Codec":
        """The codec that keeps images within what pixels can be; itself where it cannot, or does.

        Of preprocessing by mean and deviation, because whitened images have no such bounds.
        """
        return self

    def small(self) -> "Codec":
        """The same for two small images a class, as tests have them; itself where it fits."""
        return self

    def warning(self, recipe: Recipe) -> str | None:
        """What to know before a recipe with this codec begins; None for nothing."""
        return None

    def fit(
        self, ipc: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> "tuple[Codec, int]":
        """(the codec for a budget of `ipc` images (C, H, W) per class, items stored per class).

        Raises UserError for a budget below one item.
        """
        return self, ipc

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Bytes of `items` stored items of each class as they are shipped, at most; no labels.

        Networks, bases, masks, indices, scales and tables count. Raises UserError where it is not
        known.
        """
        raise UserError(
            f"The codec {type(self).__name__} does not say how many bytes it takes, so budget "
            "cannot choose what it holds; leave budget out and set ipc."
        )

    def counted_in(self, unit: Unit) -> Self:
        """The same where the images of a budget have so many bytes a value; itself if it is."""
        return self

    def most_items(
        self, num_bytes: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> int:
        """Items of each class that so many bytes hold.

        Raises UserError, with the smallest budget that would do, for less than `least_items`.
        """

        def fits(items: int) -> bool:
            return self.shipped_bytes(items, image_shape, num_classes) <= num_bytes

        least = self.least_items
        if not fits(least):
            needed = self.shipped_bytes(least, image_shape, num_classes)
            held = "no image" if least == 1 else f"less than the {least} images"
            raise UserError(
                f"A budget of {num_bytes} bytes holds {held} of each of {num_classes} classes in "
                f"the codec {type(self).__name__}, whose smallest set takes {needed}; set --budget "
                f"{needed}, raise ipc, or make the codec's parts smaller."
            )
        above = 2 * least
        while fits(above):
            above *= 2
        below = above // 2
        while above - below > 1:
            middle = (above + below) // 2
            if fits(middle):
                below = middle
            else:
                above = middle
        return below

    def within(
        self, num_bytes: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> "tuple[Codec, int]":
        """As `fit`, for a budget of bytes of all classes together, as shipped.

        Raises UserError, with the smallest budget that would do, for one below an image of each.
        """
        items = self.most_items(num_bytes, image_shape, num_classes)
        return self.fit(items, image_shape, num_classes)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The tensors to start from, made of images (S * per_item, C, H, W).

        Each stored item has `per_item` of them, in a row. `rng` is for what starts at random, such
        as a network (None: a stream of the codec's own). Raises UserError when the images do not
        suit the configuration.
        """
        ...

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The tensors of the codec that can be learned, in groups.

        `outer.optim` may name a group in place of each of its tensors, and the ledger counts the
        bytes of each group.
        """
        ...

    def source(self, tensors: Tensors) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        ...

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) of N.

        They are differentiable in the tensors as often as wanted.
        """
        ...

    def natural(self, tensors: Tensors) -> int:
        """How many of the decoded examples, the first ones, are images that are stored as they are.

        Others are made of them; 0 where all are stored so.
        """
        return 0

    def penalty(self, tensors: Tensors) -> Tensor | None:
        """A loss of the codec's own, beside those of the objective in each step; None for none.

        It is added once a step; where the images move after each loss, to the first of them.
        """
        return None

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Move the tensors into their valid range, in place; called after each outer step."""

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> "tuple[Codec, dict[str, Tensor]]":
        """What is stored in the end, as small as it is meant to be, and the codec that reads it.

        It is the same again for what is shipped already.
        """
        return self, dict(tensors)

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The tensors that must be there, and of how many dimensions each is; see `load`.

        Which these are may depend on others of `tensors`, such as those that only learning needs.
        """
        return {}

    def memory(self, tensors: Tensors) -> int:
        """Bytes that it takes to say whose the decoded examples are, and to decode one.

        It is asked of tensors of the right dimensions before anything is decoded, because a file
        may say settings that ask for more than there is.
        """
        stored = max((len(tensor) for tensor in tensors.values() if tensor.dim()), default=0)
        return 8 * self.per_item * stored

    def flaw(self, tensors: Tensors) -> str | None:
        """What is wrong with the numbers of stored tensors; None where they can be used.

        All of them are finite. The words follow the name of their file.
        """
        return None

    def bytes_by_part(self, tensors: Tensors) -> dict[str, int]:
        """Bytes of each part that is stored, labels apart.

        The parts are the groups of `parameters`. What is in no part is counted as "other".
        """
        sizes = {}
        for part, names in self.parameters(tensors).items():
            size = 0
            for name in names:
                size += tensors[name].nbytes
            sizes[part] = size
        return sizes

    def num_images(self, tensors: Tensors) -> float:
        """How many images have as many values as the tensors of all parts, labels apart."""
        values = 0
        for names in self.parameters(tensors).values():
            for name in names:
                values += tensors[name].numel()
        first = self.source(tensors)[:1] * 0
        with torch.no_grad():
            image = self.decode(tensors, first)
        return values / image.numel()

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> "tuple[Codec, dict[str, Tensor]]":
        """The codec and the tensors of some stored items (n,) alone, in that order.

        There are as many of each class, class by class. Each decodes to what it did before, to the
        bit. Raises UserError where items do not stand alone.
        """
        raise inseparable(self)

    def loader(self) -> Loader:
        """The function whose text goes into the shipped `load.py`.

        It is decode(tensors, settings) -> (all N examples (N, C, H, W), their stored items (N,));
        `settings` are the fields of this codec. It is plain torch: of other names it may use
        `torch`, `math`, `itertools`, and functions of the file it lies in, which are then shipped
        too.
        """
        ...


def inseparable(codec: Codec) -> UserError:
    """What to raise where stored images of a codec do not stand alone."""
    return UserError(
        f"Stored images of the codec {type(codec).__name__} cannot be left out one by one; take a "
        "set in another codec."
    )
