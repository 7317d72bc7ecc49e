"""`Dataset`: where images come from, as a Python user says it."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import torch

from ddengine.data.load import DATASETS, load_data
from ddengine.data.loaded import Data
from ddengine.data.preprocess import Preprocess
from ddengine.data.torch_dataset import OWN, data_of, is_pair, named_classes, own_config
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError, unknown

LAYOUTS = ("folder", "parquet", "hub")  # values of data.name that name no dataset
PEOPLES = (OWN, *LAYOUTS)  # of images of a user
SHOWN_CLASSES = 10  # names in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Where images come from; nothing is read before they are needed.

    It stands for the settings `--data.name` and `--data.root` of the command line: everything
    else (size, limit, classes, validation, whitening) is said by the recipe's `data`, so that the
    same recipe can be run on any source.

        photos = ddengine.data.Dataset.folder("photos")      # photos/cat/*.jpg, photos/dog/*.jpg
        result = ddengine.distill(photos, synth.find("dm/cifar10_ipc10", ipc=5))

    Use one of the constructors: `of` for a torch Dataset, `folder`, `parquet`, `hub` and `named`
    for files.
    """

    name: str
    root: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    examples: Any = None
    test_examples: Any = None
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        dataset: Any,
        classes: Sequence[Any] | None = None,
        test: Any = None,
    ) -> "Dataset":
        """Images that Python holds, all of which are training images.

            Dataset.of(torchvision.datasets.CIFAR10("data"), test=CIFAR10("data", train=False))

        Args:
            dataset: a map-style torch Dataset or a list of (image, label), or a pair of tensors
                (images, labels); `ddengine.data.torch_dataset.data_of` says which images and
                labels it may hold. A `Dataset` is returned as it is.
            classes: the names of all classes, where label i means classes[i]; None: as the
                dataset names them, else by their numbers.
            test: the test images in the same form; without them nothing can be evaluated on it.

        Raises:
            UserError: classes that are named twice, or names or test images beside a `Dataset`,
                which has its own.
        """
        if isinstance(dataset, Dataset):
            if classes is not None or test is not None:
                raise UserError(
                    "Dataset.of was given a Dataset with classes or test images beside it, and it "
                    "has its own; give these where the Dataset is made."
                )
            return dataset
        names = None if classes is None else named_classes(classes)
        return cls(OWN, examples=dataset, test_examples=test, class_names=names)

    @classmethod
    def folder(cls, path: Path | str) -> "Dataset":
        """A folder of images: one folder a class, or train/ and test/ with one folder a class.

        Dataset.folder("photos")
        """
        return cls("folder", str(path))

    @classmethod
    def parquet(
        cls,
        path: Path | str,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> "Dataset":
        """The parquet files below a folder.

        Columns that are not named are told by their features and names.

            Dataset.parquet("flowers", label_column="species")
        """
        return cls("parquet", str(path), image_column, label_column)

    @classmethod
    def hub(cls, name: str) -> "Dataset":
        """A dataset of the Hugging Face Hub, "user/name" or "user/name:configuration".

        It may also be a folder that is laid out like one. The package datasets is needed, `pip
        install ddengine[hub]`.

            Dataset.hub("ylecun/mnist")
        """
        return cls("hub", name)

    @classmethod
    def named(cls, name: str, root: Path | str | None = None) -> "Dataset":
        """A dataset that the engine knows by name, in the folder `root` or in its usual place.

            Dataset.named("cifar10", root="data")

        Raises:
            UserError: a name that is not known; the nearest are said.
        """
        if name not in DATASETS:
            raise unknown("dataset", name, DATASETS)
        return cls(name, None if root is None else str(root))

    def __repr__(self) -> str:
        """The call that makes it, in a line; images that Python holds are counted."""
        if self.name == OWN:
            said = [f"{_num_of(self.examples)} images"]
            if self.test_examples is not None:
                said.append(f"test={_num_of(self.test_examples)} images")
            if self.class_names is not None:
                said.append(f"classes={len(self.class_names)} names")
            return f"Dataset.of({', '.join(said)})"
        if self.name in LAYOUTS:
            return f"Dataset.{self.name}({self.root!r})"
        root = "" if self.root is None else f", {self.root!r}"
        return f"Dataset.named({self.name!r}{root})"

    def _repr_html_(self) -> str:
        """The call that makes it, and what is known without reading a file, for a notebook."""
        lines = [f"<tr><th colspan=2>{escape(repr(self))}</th></tr>"]
        for name, value in self._facts().items():
            lines.append(f"<tr><td>{name}</td><td>{escape(str(value))}</td></tr>")
        return f"<table>{''.join(lines)}</table>"

    def _facts(self) -> dict[str, Any]:
        """What is known of the images without reading a file."""
        facts: dict[str, Any] = {}
        if self.name == OWN:
            facts["training images"] = _num_of(self.examples)
            if is_pair(self.examples):
                facts["size"] = " x ".join(map(str, self.examples[0].shape[1:]))
            if self.test_examples is not None:
                facts["test images"] = _num_of(self.test_examples)
        elif self.root is not None:
            facts["images of"] = called(self.name, self.root)
            facts["there"] = "yes" if Path(self.root).exists() else "no"
        if self.class_names is not None:
            shown = ", ".join(self.class_names[:SHOWN_CLASSES])
            more = ", ..." if len(self.class_names) > SHOWN_CLASSES else ""
            facts["classes"] = f"{len(self.class_names)}: {shown}{more}"
        return facts

    def settings(self, config: DataConfig) -> DataConfig:
        """A recipe's data settings pointed at these images.

        They are what `--data.name` and `--data.root` make of them.
        """
        if self.name == OWN:
            return own_config(config)
        pointed = replace(config, name=self.name, root=self.root)
        if self.image_column is not None:
            pointed = replace(pointed, image_column=self.image_column)
        if self.label_column is not None:
            pointed = replace(pointed, label_column=self.label_column)
        return pointed

    def load(
        self,
        config: DataConfig,
        device: torch.device,
        stored: Callable[[str], Preprocess | None] | None = None,
        *,
        test: bool = False,
    ) -> Data:
        """The training and validation images on `device`, split as `config` says.

            Dataset.named("digits").load(recipe.data, torch.device("cpu")).train.images(index)

        Args:
            config: a recipe's data settings; `settings` is applied to them.
            device: where the images shall lie.
            stored: gives the preprocessing that belongs to a digest of training images, or None
                where it is to be fitted; None: it is fitted.
            test: whether the test images are read too, which distillation never sees.

        Raises:
            UserError: images that cannot be read, or settings that do not fit them.
        """
        pointed = self.settings(config)
        stored = stored or _not_stored
        if self.name != OWN:
            return load_data(pointed, device, test=test, stored=stored)
        if test and self.test_examples is None:
            raise UserError(
                "The Dataset has no test images, and they are needed here; give them as "
                "Dataset.of(dataset, test=...)."
            )
        return data_of(
            self.examples,
            pointed,
            device,
            test=self.test_examples,
            classes=self.class_names,
            stored=stored,
            load_test=test,
        )


def called(name: str, root: str | None) -> str | None:
    """What people call images that `data.name` and `data.root` point at.

    That is the dataset, or for a user's own their folder or their name on the Hub; None for images
    that Python held.
    """
    if name == OWN:
        return None
    if name not in LAYOUTS or root is None:
        return name
    return root if name == "hub" and not Path(root).exists() else Path(root).resolve().name


def _num_of(examples: Any) -> Any:
    """How many examples a dataset has, or ? where it has no length."""
    if is_pair(examples):
        return len(examples[1])
    return len(examples) if isinstance(examples, Sized) else "?"


def _not_stored(digest: str) -> None:
    """No preprocessing is stored for any images."""
