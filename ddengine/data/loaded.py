"""A dataset as it was loaded: its splits on the device, and what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddengine.data.realset import RealSet


@dataclass(frozen=True)
class Data:
    """The splits of a dataset.

    `test` is None unless it was asked for: distillation never sees it.
    """

    train: RealSet
    validation: RealSet | None
    test: RealSet | None
    class_names: tuple[str, ...]
    bytes: int  # size of the training images in use, one byte a value
    dataset_bytes: int  # of the whole training split, at the same image size
    num_test: int = 0  # test images, whether or not they are loaded
    # whether they were held out of the training images, for want of a test split
    held_out: bool = False
    notes: tuple[str, ...] = ()  # what was said of how the images were read
    # what each training image is called below data.root, else its index in the dataset's training
    # split
    train_names: tuple[Any, ...] = ()
    # which images are validation and test images, for a file beside the set
    split_names: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {
            "train": len(self.train),
            "validation": len(self.validation or ()),
            "test": self.num_test,
        }

    def said(self) -> str:
        """The splits in words."""
        listed = ", ".join(f"{num} {split}" for split, num in self.counts.items())
        if self.held_out:
            return f"{listed} images (held out, there is no test split)"
        return f"{listed} images"
